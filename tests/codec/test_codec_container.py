"""Container: every byte is checked; what is damaged is named, and the rest can be read."""

import io
import json
import struct
import zlib

import numpy as np
import pytest

from vidtok.codec.container import (
    MAGIC,
    Chunk,
    CodecError,
    ContainerReader,
    ContainerWriter,
    pack_ticks,
    unpack_ticks,
)
from vidtok.codec.entropy import EntropyModel, entropy_model
from vidtok.codec.header import Header

BITS = 6
HEADER = Header(
    model="tiny", weight_hash="0" * 16, precision="fp32", bits=BITS, levels=1, stride=(4, 8, 8), entropy="adaptive",
    chunk_latents=3, size=(20, 30), fps=30.0, time_base=(1, 30), tile=None, source={"name": "clip.mp4"},
)  # fmt: skip
FRAMES = [9, 12, 12, 6]
LATENTS = [3, 3, 3, 2]


def make_ids() -> list[np.ndarray]:
    generator = np.random.default_rng(0)
    return [generator.integers(0, 2**BITS, (latents, *HEADER.grid)) for latents in LATENTS]


AUDIO, LEAD = np.random.default_rng(2).bytes(400), 0.25


def make_file(
    finish: bool = True, audio: bool = False, header: Header = HEADER, model: EntropyModel | None = None
) -> bytes:
    file, coder = io.BytesIO(), model or entropy_model("adaptive")
    writer, tick = ContainerWriter(file, header), 0
    for number, (ids, frames) in enumerate(zip(make_ids(), FRAMES, strict=True)):
        writer.add(Chunk(number, len(ids), np.arange(tick, tick + frames), coder.encode(ids, BITS, 1)))
        tick += frames
    if audio:
        writer.add_audio(io.BytesIO(AUDIO), LEAD)
    if finish:
        writer.finish()
    return file.getvalue()


def read_all(data: bytes, salvage: bool = False) -> dict[int, np.ndarray]:
    """Ids of all chunks."""
    reader = ContainerReader(io.BytesIO(data), "x.vtk", salvage)
    chunks = {number: reader.read(number) for number in reader.entries}
    decode = entropy_model(reader.header.entropy).decode
    return {n: decode(c.tokens, (c.latents, *reader.header.grid), BITS, 1) for n, c in chunks.items()}


def read_audio(data: bytes, salvage: bool = False) -> tuple[bytes, float] | None:
    reader = ContainerReader(io.BytesIO(data), "x.vtk", salvage)
    if not reader.audio_bytes:
        return None
    packets, lead = reader.open_audio()
    return packets.read(), lead


def chunk_offset(data: bytes, number: int) -> int:
    return ContainerReader(io.BytesIO(data)).entries[number].offset


def test_round_trip():
    reader = ContainerReader(io.BytesIO(make_file()))
    assert reader.header == HEADER and reader.header.grid == (3, 4) and reader.damaged == []
    assert [(entry.latents, entry.frames) for entry in reader.entries.values()] == [*zip(LATENTS, FRAMES, strict=True)]
    assert np.concatenate([reader.read(number).ticks for number in range(4)]).tolist() == [*range(39)]
    assert all((a == b).all() for a, b in zip(read_all(make_file()).values(), make_ids(), strict=True))


def test_audio_stands_after_the_chunks():
    data, silent = make_file(audio=True), make_file()
    assert data[8:10] == silent[8:10]  # the version
    offset, _ = struct.unpack("<Q4s", silent[-12:])
    assert data[:offset] == silent[:offset]
    assert struct.unpack_from("<4sQd", data, offset) == (b"AUDI", len(AUDIO), LEAD)
    assert struct.unpack_from("<I", data, offset + 20) == (zlib.crc32(data[offset + 4 : offset + 20] + AUDIO),)
    end, _ = struct.unpack("<Q4s", data[-12:])
    assert data[offset + 24 : end] == AUDIO and json.loads(data[end + 12 : -12])["audio"] == offset
    assert read_audio(data) == (AUDIO, LEAD) and read_audio(silent) is None
    assert (ContainerReader(io.BytesIO(data)).audio_bytes, ContainerReader(io.BytesIO(silent)).audio_bytes) == (424, 0)
    assert [*read_all(data)] == [*read_all(data, salvage=True)] == [0, 1, 2, 3]


def test_audio_is_copied_in_blocks():
    class Source(io.BytesIO):
        def read(self, size=-1):
            assert 0 <= size <= 1 << 20
            return super().read(size)

    source, file = Source(bytes((1 << 22) + 5)), io.BytesIO()
    writer = ContainerWriter(file, HEADER)
    writer.add_audio(source, 0.0)
    assert writer.audio_bytes == len(source.getvalue()) + 24 and file.getvalue().endswith(source.getvalue())


@pytest.mark.parametrize("place", [-1, 0, True, None, "9", 10**400])
def test_the_place_of_audio_in_the_index_is_checked(place):
    data = make_file(audio=True)
    with pytest.raises(CodecError, match="the place of the audio in the index is not possible"):
        ContainerReader(io.BytesIO(change_index(data, 9, audio=place)))


def test_damaged_audio_is_named_and_the_chunks_stay_good():
    data = make_file(audio=True)
    start = data.index(b"AUDI")
    for place in (start, start + 4, start + 12, start + 20, start + 24, start + 423):
        damaged = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        with pytest.raises(CodecError, match=r"x\.vtk: its audio is damaged .*: --no-audio or --salvage decodes"):
            read_audio(damaged)
        assert [*read_all(damaged)] == [0, 1, 2, 3]


def test_times_of_any_kind():
    for ticks in ([0], [0, 1], [0, 512, 1024], [0, 7, 8, 1000, 2**50]):
        assert unpack_ticks(pack_ticks(np.array(ticks)), len(ticks)).tolist() == ticks
    for data, frames in [(b"x", 1), (pack_ticks(np.arange(4)), 3), (pack_ticks(np.arange(4)), 5)]:
        with pytest.raises(ValueError, match="times"):
            unpack_ticks(data, frames)
    with pytest.raises(ValueError, match="ascend"):
        unpack_ticks(pack_ticks(np.array([0, 2, 1])), 3)
    for ticks in ([2**62, -(2**62) - 1], [0, 2**62], [-1, 0]):  # the difference of the first two overflows
        with pytest.raises(ValueError, match="ascend"):
            unpack_ticks(pack_ticks(np.array(ticks)), len(ticks))
    bomb = zlib.compress(bytes(10**6))
    with pytest.raises(ValueError, match="not those of 2 frames"):
        unpack_ticks(bomb, 2)


def test_tokens_that_fit_no_prediction_may_take_more_than_packed_bits():
    file = io.BytesIO()
    writer = ContainerWriter(file, HEADER)
    chunk = Chunk(0, 3, np.arange(9), bytes(3 * 12 * BITS * 2))  # 16 bits for each bit
    writer.add(chunk)
    writer.finish()
    assert ContainerReader(file).read(0).tokens == chunk.tokens


def test_a_flipped_bit_names_the_chunk_and_salvage_reads_the_others():
    data = bytearray(make_file())
    data[chunk_offset(bytes(data), 1) + 50] ^= 4
    with pytest.raises(CodecError, match=r"x.vtk: chunk 1 of 4 is damaged .*--salvage") as error:
        read_all(bytes(data))
    assert error.value.chunk == 1
    salvaged = read_all(bytes(data), salvage=True)
    assert [*salvaged] == [0, 2, 3] and all((salvaged[n] == make_ids()[n]).all() for n in salvaged)
    reader = ContainerReader(io.BytesIO(bytes(data)), salvage=True)
    assert reader.damaged == [1] and reader.complete


def test_a_truncated_file_names_the_chunk():
    data = make_file()
    cut = data[: chunk_offset(data, 2) + 5]
    with pytest.raises(CodecError, match=r"at chunk 2 .*2 chunks are good") as error:
        read_all(cut)
    assert error.value.chunk == 2
    assert [*read_all(cut, salvage=True)] == [0, 1]
    assert [*read_all(make_file(finish=False), salvage=True)] == [0, 1, 2, 3]
    assert not ContainerReader(io.BytesIO(cut), salvage=True).complete


def test_other_files_and_versions():
    for data in (b"", b"x" * 100, MAGIC, b"<html>"):
        with pytest.raises(CodecError, match="not a video that vidtok compressed"):
            ContainerReader(io.BytesIO(data))
    data = make_file()
    with pytest.raises(CodecError, match="version 7 of the format; this vidtok reads version 1"):
        ContainerReader(io.BytesIO(data[:8] + struct.pack("<H", 7) + data[10:]))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("bits", 99), ("bits", True), ("bits", "18"), ("levels", 4), ("stride", [4, 8]), ("size", [0, 8]),
        ("size", [1 << 20, 8]), ("fps", 0), ("time_base", [1, 0]), ("time_base", [1, 1 << 31]),
        ("precision", "int8"), ("model", ""), ("chunk_latents", 1 << 16), ("source", []), ("tile", -1),
        ("size", [32768, 32768]),
    ],
)  # fmt: skip
def test_headers_are_checked_before_memory_is_allocated(field, value):
    data = make_file()
    (length,) = struct.unpack_from("<I", data, 10)
    values = json.loads(data[18 : 18 + length]) | {field: value}
    header = json.dumps(values).encode()
    prefix = data[:10] + struct.pack("<II", len(header), zlib.crc32(header))
    with pytest.raises(CodecError, match="the header is not valid"):
        ContainerReader(io.BytesIO(prefix + header + data[18 + length :]))


def change_index(data: bytes, tick: int, **others) -> bytes:
    """Replace the first tick of chunk 1 in the index, and other entries."""
    offset, _ = struct.unpack("<Q4s", data[-12:])
    index = json.loads(data[offset + 12 : -12])
    index["chunks"][1][3] = tick
    index |= others
    changed = json.dumps(index).encode()
    return data[:offset] + struct.pack("<4sII", b"INDX", len(changed), zlib.crc32(changed)) + changed + data[-12:]


@pytest.mark.parametrize("tick", [-1, 10**400, (1 << 60) + 1])
def test_times_in_the_index_are_checked(tick):
    with pytest.raises(CodecError, match="the entry of chunk 1 in the index is not possible"):
        ContainerReader(io.BytesIO(change_index(make_file(), tick)))


def test_an_index_of_other_chunks_is_noticed():
    reader = ContainerReader(io.BytesIO(change_index(make_file(), 10)))
    with pytest.raises(CodecError, match=r"chunk 1 of 4 is damaged \(the index describes another one"):
        reader.read(1)
    reader = ContainerReader(io.BytesIO(change_index(make_file(), 8)))
    with pytest.raises(CodecError, match=r"chunk 0 of 4 is damaged \(the next chunk begins before it ends"):
        reader.read(0)


def test_more_bytes_than_tokens_can_take_are_not_read():
    file = io.BytesIO()
    writer = ContainerWriter(file, HEADER)
    writer.add(Chunk(0, 3, np.arange(9), bytes(HEADER.max_tokens_bytes + 1)))
    writer.finish()
    with pytest.raises(CodecError, match=r"it states \d+ bytes of times and 497 of tokens"):
        ContainerReader(file).read(0)


def test_a_chunk_of_an_absurd_number_is_no_chunk():
    file, ids = io.BytesIO(), make_ids()[0]
    writer = ContainerWriter(file, HEADER)
    for number in (0, 2**32 - 1):
        writer.add(Chunk(number, 1, np.arange(4 if number else 1), entropy_model("raw").encode(ids[:1], BITS, 1)))
    reader = ContainerReader(file, salvage=True)
    assert [*reader.entries] == [0] and reader.damaged == []


def damage(data: bytes, generator: np.random.Generator) -> bytes:
    """Flip, cut or insert bytes at up to three places."""
    for _ in range(generator.integers(1, 4)):
        place = int(generator.integers(len(data)))
        kind = generator.integers(5)
        if kind == 0:
            data = data[:place] + bytes([data[place] ^ 1 << int(generator.integers(8))]) + data[place + 1 :]
        elif kind == 1:
            data = data[:place] + generator.bytes(int(generator.integers(1, 20))) + data[place:]
        elif kind == 2:
            data = data[:place] + data[place + int(generator.integers(1, 200)) :]
        elif kind == 3:
            data = data[:place] + bytes(4) + data[place + 4 :]
        else:
            end = place + int(generator.integers(1, 400))
            data = data[:end] + data[place:end] + data[end:]  # a part twice
        if not data:
            return data
    return data
