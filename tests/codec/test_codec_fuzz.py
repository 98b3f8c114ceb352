"""Fuzzing without tokenizers: damaged files give a CodecError, never other tokens, and crafted ones no endless work.

Checksums catch damage before it reaches the layers behind them. These get it with the checksums made right, see `mend`.
"""

import io
import json
import re
import struct
import zlib
from contextlib import suppress
from dataclasses import replace
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
from test_codec_container import AUDIO, BITS, HEADER, LEAD, damage, make_file, make_ids, read_audio

from vidtok.codec.container import MAGIC, Chunk, CodecError, ContainerReader, ContainerWriter
from vidtok.codec.entropy import EntropyModel, entropy_model
from vidtok.codec.header import MAX_CHUNK_FRAMES, MAX_CHUNK_TOKENS, Header, pack_header, parse_header
from vidtok.codec.prior import load_prior

CASES = [("raw", True), ("adaptive", False), ("adaptive", True), ("prior", True)]


SMALL_BITS = 2  # of the files whose damage is decoded, which takes time with each bit


def make_models(folder: Path, bits: int) -> dict[str, EntropyModel]:
    from test_codec_prior import make_prior  # not above, since that file imports this folder's others

    prior = load_prior(make_prior(folder, bits=bits))
    return {name: entropy_model(name, prior if name == "prior" else None) for name in ("raw", "adaptive", "prior")}


@pytest.fixture(scope="module")
def models(tmp_path_factory) -> dict[str, EntropyModel]:
    return make_models(tmp_path_factory.mktemp("prior"), BITS)


@pytest.fixture(scope="module")
def small_models(tmp_path_factory) -> dict[str, EntropyModel]:
    return make_models(tmp_path_factory.mktemp("small"), SMALL_BITS)


def header_of(entropy: str) -> Header:
    return replace(HEADER, entropy=entropy, prior="0" * 16 if entropy == "prior" else None)


def reader_of(model: EntropyModel):
    """Function that reads the ids of all chunks; it decodes the same bytes once."""
    decode = lru_cache(256)(model.decode)

    def read(data: bytes, salvage: bool = False) -> dict[int, np.ndarray]:
        reader = ContainerReader(io.BytesIO(data), "x.vtk", salvage)
        header, found = reader.header, {}
        for number in reader.entries:
            chunk = reader.read(number)
            assert len(chunk.tokens) <= header.max_tokens_bytes and len(chunk.ticks) <= 4 * chunk.latents
            assert (np.diff(chunk.ticks) > 0).all() and chunk.ticks[0] >= 0
            try:
                found[number] = decode(chunk.tokens, (chunk.latents, *header.grid), header.bits, header.levels)
            except ValueError as error:
                raise reader.bad_chunk(number, error) from error
        return found

    return read


def fuzz(cases: int, entropy: str, audio: bool, model: EntropyModel) -> None:
    """Damage in files of `make_file`: each chunk comes back as it was or not at all, as does the audio."""
    whole, ids = make_file(audio=audio, header=header_of(entropy), model=model), make_ids()
    generator, read, refused = np.random.default_rng(1), reader_of(model), 0
    expected = (AUDIO, LEAD) if audio else None
    for _ in range(cases):
        data = damage(whole, generator)
        try:
            found = read(data)
            assert [*found] == [0, 1, 2, 3]
            assert read_audio(data) == expected
        except CodecError as error:
            assert "\n" not in str(error)
            refused += 1
            found = {}
        with suppress(CodecError):
            found |= read(data, salvage=True)
            assert read_audio(data, salvage=True) in (expected, None)
        assert all((tokens == ids[number]).all() for number, tokens in found.items())
    assert refused > 0.9 * cases


def small_file(entropy: str, model: EntropyModel) -> tuple[bytes, list[np.ndarray]]:
    """(file of three chunks of a latent of 2 x 2 tokens with audio, their ids)."""
    header = replace(header_of(entropy), bits=SMALL_BITS, chunk_latents=1, size=(16, 16))
    file, parts = io.BytesIO(), list(np.random.default_rng(3).integers(0, 2**SMALL_BITS, (3, 1, 2, 2)))
    writer = ContainerWriter(file, header)
    for number, ids in enumerate(parts):
        ticks = np.arange(1) if number == 0 else np.arange(4 * number - 3, 4 * number + 1)
        writer.add(Chunk(number, 1, ticks, model.encode(ids, SMALL_BITS, 1)))
    writer.add_audio(io.BytesIO(AUDIO[:40]), LEAD)
    writer.finish()
    return file.getvalue(), parts


def mend(data: bytes) -> bytes:
    """Make the checksums of chunks, audio and index right, and at the end the place of the index."""
    fixed = bytearray(data)
    for match in re.finditer(rb"CHNK|AUDI|INDX", data):
        start, tag = match.start(), match[0]
        head = {b"CHNK": 20, b"AUDI": 16, b"INDX": 4}[tag]  # bytes of the numbers before the checksum
        if len(data) < start + 8 + head:
            continue
        numbers = data[start + 4 : start + 4 + head]
        content = start + 8 + head
        if tag == b"CHNK":
            length = sum(struct.unpack("<5I", numbers)[3:])
        else:
            length = struct.unpack_from("<Q" if tag == b"AUDI" else "<I", numbers)[0]
        checked = data[content : content + length]
        crc = zlib.crc32(checked) if tag == b"INDX" else zlib.crc32(checked, zlib.crc32(numbers))
        struct.pack_into("<I", fixed, content - 4, crc)
    if fixed.endswith(b"VTKE") and (place := data.rfind(b"INDX")) >= 0:
        struct.pack_into("<Q", fixed, len(fixed) - 12, place)
    return bytes(fixed)


def fuzz_behind_checksums(cases: int, entropy: str, model: EntropyModel) -> None:
    """Bytes that were never encoded may decode to any tokens, but with `prior`, which has a checksum of the tokens."""
    whole, ids = small_file(entropy, model)
    assert mend(whole) == whole
    start, generator, read = whole.index(b"CHNK"), np.random.default_rng(2), reader_of(model)
    known, taken = {part.tobytes() for part in ids}, 0
    for _ in range(cases):
        data = mend(whole[:start] + damage(whole[start:], generator))
        for salvage in (False, True):
            try:
                found = read(data, salvage)
                read_audio(data, salvage)
            except CodecError as error:
                assert "\n" not in str(error)
                continue
            taken += 1
            for tokens in found.values():
                assert tokens.shape == (1, 2, 2) and tokens.min() >= 0 and tokens.max() < 2**SMALL_BITS
                assert entropy != "prior" or tokens.tobytes() in known
    assert taken > cases / 20


def fuzz_headers(cases: int) -> None:
    """Damage of headers and indexes that have right checksums: what is taken is within the limits."""
    whole, generator, taken = make_file(), np.random.default_rng(5), 0
    (length,) = struct.unpack_from("<I", whole, 10)
    place = whole.rindex(b"INDX")
    text, index = whole[18 : 18 + length], whole[place + 12 : -12]
    for _ in range(cases):
        other = damage(text, generator)
        with suppress(ValueError):
            header = parse_header(other)
            assert header.chunk_latents * np.prod(header.grid) <= MAX_CHUNK_TOKENS
            assert header.chunk_latents * header.stride[0] <= MAX_CHUNK_FRAMES
            assert parse_header(pack_header(header)) == header
            taken += 1
        changed = damage(index, generator)
        block = struct.pack("<4sII", b"INDX", len(changed), zlib.crc32(changed)) + changed
        with suppress(CodecError):
            reader = ContainerReader(io.BytesIO(whole[:place] + block + whole[-12:]))
            assert [*reader.entries] == [*range(len(reader.entries))]
            for number in reader.entries:
                assert reader.read(number).number == number
            taken += 1
    assert taken > cases / 100


@pytest.mark.parametrize(("entropy", "audio"), CASES)
def test_damage_is_never_taken_for_tokens(models, entropy, audio):
    fuzz(200, entropy, audio, models[entropy])


@pytest.mark.parametrize("entropy", ["raw", "adaptive", "prior"])
def test_damage_behind_checksums(small_models, entropy):
    fuzz_behind_checksums(200, entropy, small_models[entropy])


def test_damaged_headers_and_indexes():
    fuzz_headers(200)


@pytest.mark.slow
@pytest.mark.parametrize(("entropy", "audio"), CASES)
def test_damage_is_never_taken_for_tokens_20000_times(models, entropy, audio):
    fuzz(20_000, entropy, audio, models[entropy])


@pytest.mark.slow
@pytest.mark.parametrize("entropy", ["raw", "adaptive", "prior"])
def test_damage_behind_checksums_20000_times(small_models, entropy):
    fuzz_behind_checksums(20_000, entropy, small_models[entropy])


@pytest.mark.slow
def test_damaged_headers_and_indexes_20000_times():
    fuzz_headers(20_000)


class Counting(io.BytesIO):
    """File that counts the bytes that are read from it."""

    count = 0

    def read(self, size=-1):
        data = super().read(size)
        self.count += len(data)
        return data


def test_a_crafted_file_is_not_read_many_times():
    """Each of 2000 tags states a chunk that is half the file, and none is good."""
    header = pack_header(replace(HEADER, size=(2048, 2048), chunk_latents=64))
    begin = MAGIC + struct.pack("<HII", 1, len(header), zlib.crc32(header)) + header
    chunk = struct.pack("<4s6I", b"CHNK", 0, 64, 253, 16, 28_000, 0)
    file = Counting(begin + 2000 * chunk)
    with pytest.raises(CodecError, match=r"no chunk is good$"):
        ContainerReader(file)
    assert file.count < 20 * len(file.getvalue())


def test_chunks_that_overlap_are_refused():
    """The second chunk lies in the tokens of the first, and both have right checksums."""

    def written(*chunks: Chunk) -> tuple[bytes, int]:
        """(file without index, offset of its last chunk)."""
        file = io.BytesIO()
        writer = ContainerWriter(file, HEADER)
        for chunk in chunks:
            writer.add(chunk)
        return file.getvalue(), writer.entries[-1].offset

    data, start = written(Chunk(0, 1, np.arange(1), b""), Chunk(1, 3, np.arange(9, 21), bytes(9)))
    data, start = written(Chunk(0, 3, np.arange(9), data[start:]))
    index = json.dumps({"chunks": [[start, 3, 9, 0], [data.rindex(b"CHNK"), 3, 12, 9]]}).encode()
    block = struct.pack("<4sII", b"INDX", len(index), zlib.crc32(index)) + index
    reader = ContainerReader(io.BytesIO(data + block + struct.pack("<Q4s", len(data), b"VTKE")))
    assert reader.read(1).number == 1
    with pytest.raises(CodecError, match=r"chunk 0 of 2 is damaged \(it reaches into what follows it\)"):
        reader.read(0)
