"""Read and write the container of compressed videos, `.vtk`. Little-endian; nothing in it is pickled or executed.

    magic     8 bytes, 89 56 54 4B 0D 0A 1A 0A ("VTK" between bytes that transfers as text destroy)
    version   u16, 1
    header    u32 length, u32 CRC32, JSON: the fields of `Header`
    chunks    one after the other, each
                  "CHNK"
                  u32 number of the chunk, from 0
                  u32 latents, u32 frames: 1 + s_t (n - 1) frames of n latents in the first chunk, s_t n in the others;
                      fewer in the last one, whose other frames are padding
                  u32 length of the times, u32 length of the tokens
                  u32 CRC32 of the five numbers, the times and the tokens
                  times: zlib of the second differences of the frames' ticks, int64 (two zeros precede the first tick);
                      a tick is one time base of the header, counted from the first frame of the video
                  tokens: as the entropy model of the header codes [latents, h, w] ids; chunks are independent
    audio     in files that carry the audio of their source
                  "AUDI"
                  u64 length of the packets
                  f64 lead in seconds, at least 0
                  u32 CRC32 of the length, the lead and the packets
                  packets: a NUT file (a format of FFmpeg) of one stream, with the unchanged packets of the first audio
                      track of the source; their times count from `lead` seconds before the first frame of the video
    index     "INDX", u32 length, u32 CRC32, JSON: {"chunks": [[offset, latents, frames, first tick], ...]}; with audio,
                  also "audio": its offset
    end       u64 offset of the index, "VTKE"

All chunks but the last have `chunk_latents` latents. A file without index was cut off, or is still being written: its
complete chunks can be read in order, which is what salvaging does. Every length is checked against the header and
against the size of the file before memory is allocated for it. Audio, which may be larger than memory, is read in
blocks. It has no version of its own: a reader that doesn't know of it finds the chunks of such a file, too.
"""

import io
import json
import math
import os
import struct
import zlib
from collections.abc import Iterator
from functools import partial
from typing import BinaryIO, NamedTuple

import numpy as np

from vidtok.codec.header import MAX_CHUNK_FRAMES, MAX_HEADER, Header, pack_header, parse_header
from vidtok.errors import UserError
from vidtok.virtual_files import Pieces

MAGIC = b"\x89VTK\r\n\x1a\n"
VERSION = 1
MAX_TICK = 1 << 60
SCAN_LIMIT = 16  # largest number of bytes read to find chunks without the index, relative to the size of the file

_PREFIX = struct.Struct("<8sHII")
_CHUNK = struct.Struct("<4s5II")
_AUDIO = struct.Struct("<4sQdI")
_BLOCK = struct.Struct("<4sII")
_END = struct.Struct("<Q4s")
CHUNK_BYTES = _CHUNK.size  # size of a chunk without its times and tokens


class CodecError(UserError):
    """Error of a file that is damaged, cut off, or not a compressed video.

    Attributes:
        chunk: number of the first bad chunk, or None.
    """

    def __init__(self, message: str, chunk: int | None = None):
        super().__init__(message)
        self.chunk = chunk


class Chunk(NamedTuple):
    """A chunk as it is stored.

    Attributes:
        number: from 0.
        latents: number of latent frames.
        ticks: int64 [frames], ascending from 0 or above; see `Header.time_base`.
        tokens: ids as the entropy model coded them.
    """

    number: int
    latents: int
    ticks: np.ndarray
    tokens: bytes


class Entry(NamedTuple):
    """Index entry of a chunk: offset in the file in bytes, number of latent frames and frames, tick of the first."""

    offset: int
    latents: int
    frames: int
    first_tick: int


def pack_ticks(ticks: np.ndarray) -> bytes:
    """Compress the ticks of a chunk, int64 [frames]."""
    return zlib.compress(np.diff(ticks, n=2, prepend=[0, 0]).astype("<i8").tobytes(), 9)


def unpack_ticks(data: bytes, frames: int) -> np.ndarray:
    """Invert `pack_ticks` in memory bounded by the number of frames; return int64 [frames].

    Raises:
        ValueError: the data doesn't hold this number of ticks, ascending within 0 .. `MAX_TICK`.
    """
    stream = zlib.decompressobj()
    try:
        raw = stream.decompress(data, 8 * frames + 1)
    except zlib.error as error:
        raise ValueError(f"its times are damaged ({error})") from error
    if len(raw) != 8 * frames or not stream.eof or stream.unused_data:
        raise ValueError(f"its times are not those of {frames} frames")
    ticks = np.frombuffer(raw, "<i8").astype(np.int64).cumsum().cumsum()
    # The range comes first: differences of ticks within it can't overflow.
    if ticks.min() < 0 or ticks.max() > MAX_TICK or (np.diff(ticks) <= 0).any():
        raise ValueError("its times don't ascend")
    return ticks


class ContainerWriter:
    """Writer of a file, chunk by chunk. Complete chunks can be read before the file is finished.

    Args:
        file: opened for writing in binary; seeking isn't needed.
        header: properties of the video.

    Attributes:
        entries: the `Entry` of every chunk written so far.
        audio_bytes: size of the audio with its length and checksum; 0, none was written.

    Raises:
        ValueError: an illegal field of the header.
    """

    def __init__(self, file: BinaryIO, header: Header):
        data = pack_header(header)
        self._file, self._offset, self.entries = file, 0, list[Entry]()
        self._index: dict[str, object] = {"chunks": self.entries}
        self.audio_bytes = 0
        self._write(_PREFIX.pack(MAGIC, VERSION, len(data), zlib.crc32(data)) + data)

    def add(self, chunk: Chunk) -> None:
        """Append the next chunk."""
        times = pack_ticks(chunk.ticks)
        numbers = struct.pack("<5I", chunk.number, chunk.latents, len(chunk.ticks), len(times), len(chunk.tokens))
        crc = zlib.crc32(chunk.tokens, zlib.crc32(times, zlib.crc32(numbers)))
        self.entries.append(Entry(self._offset, chunk.latents, len(chunk.ticks), int(chunk.ticks[0])))
        self._write(b"CHNK" + numbers + struct.pack("<I", crc) + times + chunk.tokens)

    def add_audio(self, packets: BinaryIO, lead: float) -> None:
        """Append the audio after the last chunk.

        Args:
            packets: file that `vidtok.datasets.writing.copy_audio` wrote, seekable. lead: as there.
        """
        numbers = struct.pack("<Qd", packets.seek(0, os.SEEK_END), lead)
        crc = _crc_of(packets, numbers)
        self._index["audio"] = offset = self._offset
        self._write(b"AUDI" + numbers + struct.pack("<I", crc))
        for block in _blocks(packets):
            self._write(block)
        self.audio_bytes = self._offset - offset

    def finish(self) -> None:
        """Write the index."""
        data = json.dumps(self._index, separators=(",", ":")).encode()
        end = _END.pack(self._offset, b"VTKE")
        self._write(_BLOCK.pack(b"INDX", len(data), zlib.crc32(data)) + data + end)

    @property
    def bytes_written(self) -> int:
        return self._offset

    @property
    def expected_bytes(self) -> int:
        """Size of the file once it has an index with one more chunk, to within a few bytes."""
        entry = len(json.dumps([self._offset, *4 * [MAX_CHUNK_FRAMES]]))
        return self._offset + _BLOCK.size + _END.size + len('{"chunks":[]}') + (len(self.entries) + 1) * entry

    @property
    def frames(self) -> int:
        return sum(entry.frames for entry in self.entries)

    def _write(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()
        self._offset += len(data)


class ContainerReader:
    """Reader of a file: reads header and index when it is created, chunks on request.

    Args:
        file: opened for reading in binary, seekable.
        name: name of the file in error messages.
        salvage: scan the file for chunks instead of using the index, and leave out damaged ones.

    Attributes:
        header: the `Header`.
        entries: the `Entry` of every chunk, by number.
        damaged: with `salvage`, numbers of chunks that were left out.
        complete: whether the file has an index, which is written last.
        audio_bytes: size of the audio with its length and checksum; 0 if there is none, or no index that says where.

    Raises:
        CodecError: the file is not a compressed video, of another version, damaged or cut off.
    """

    def __init__(self, file: BinaryIO, name: str = "file", salvage: bool = False):
        self._file, self._name = file, name
        self._size = file.seek(0, os.SEEK_END)
        self._chunks_end, self._bytes_read = self._size, 0
        self._audio_at = self.audio_bytes = 0
        self.header = self._read_header()
        try:
            stated = self._read_index()
        except (ValueError, RecursionError) as error:
            if not salvage:
                raise self._no_index(error) from error
            stated = {}
        self.complete = bool(stated)
        self.entries = self._scan() if salvage else stated
        expected = stated or range(max(self.entries, default=0))
        self.damaged = [number for number in expected if number not in self.entries]

    def read(self, number: int) -> Chunk:
        """Read a chunk.

        Raises:
            CodecError: it is damaged.
        """
        entry, following = self.entries[number], self.entries.get(number + 1)
        try:
            chunk = self._read_chunk(entry.offset, self._chunks_end if following is None else following.offset)
            if (chunk.number, chunk.latents, len(chunk.ticks), chunk.ticks[0]) != (number, *entry[1:]):
                raise ValueError("the index describes another one")
            if following is not None and chunk.ticks[-1] >= following.first_tick:
                raise ValueError("the next chunk begins before it ends")
        except ValueError as error:
            raise self.bad_chunk(number, error) from error
        return chunk

    def open_audio(self) -> tuple[BinaryIO, float]:
        """Check the audio of a file that has some, and open it.

        Returns:
            (packets as a file, to be read while this reader's file is open; their lead in seconds), for
            `vidtok.datasets.AudioPackets`.

        Raises:
            CodecError: it is damaged.
        """
        try:
            tag, length, lead, crc = _AUDIO.unpack(self._at(self._audio_at, _AUDIO.size))
            if tag != b"AUDI" or _AUDIO.size + length != self.audio_bytes:
                raise ValueError("it doesn't begin as audio of its length does")
            packets = io.BufferedReader(_Part(self._file, self._audio_at + _AUDIO.size, length))
            if _crc_of(packets, struct.pack("<Qd", length, lead)) != crc:
                raise ValueError("its checksum differs")
            if not 0 <= lead < math.inf:
                raise ValueError(f"it states a lead of {lead} s")
        except ValueError as error:
            raise self.bad_audio(error) from error
        packets.seek(0)
        return packets, lead

    def _read_header(self) -> Header:
        data = self._at(0, min(_PREFIX.size, self._size))
        if data[: len(MAGIC)] != MAGIC or len(data) < _PREFIX.size:
            raise CodecError(f"{self._name}: not a video that vidtok compressed (or its first bytes are damaged)")
        _, version, length, crc = _PREFIX.unpack(data)
        if version != VERSION:
            raise CodecError(f"{self._name}: version {version} of the format; this vidtok reads version {VERSION}")
        if length > MAX_HEADER or _PREFIX.size + length > self._size:
            raise CodecError(f"{self._name}: the header is damaged or cut off")
        data = self._at(_PREFIX.size, length)
        if zlib.crc32(data) != crc:
            raise CodecError(f"{self._name}: the header is damaged (its checksum differs)")
        self._chunks_at = _PREFIX.size + length
        try:
            return parse_header(data)
        except ValueError as error:
            raise CodecError(f"{self._name}: the header is not valid: {error}") from error

    def _read_index(self) -> dict[int, Entry]:
        """Read the entries of the index. Raises ValueError if there is no valid index."""
        offset, tag = _END.unpack(self._at(max(self._size - _END.size, 0), _END.size))
        if tag != b"VTKE" or not self._chunks_at <= offset <= self._size - _END.size - _BLOCK.size:
            raise ValueError("there is no index at the end")
        tag, length, crc = _BLOCK.unpack(self._at(offset, _BLOCK.size))
        if tag != b"INDX" or offset + _BLOCK.size + length + _END.size != self._size:
            raise ValueError("the index isn't where the end says")
        data = self._at(offset + _BLOCK.size, length)
        if zlib.crc32(data) != crc:
            raise ValueError("the checksum of the index differs")
        return self._check_index(json.loads(data), offset)

    def _no_index(self, error: Exception) -> CodecError:
        good = self._scan()
        number = next(number for number in range(len(good) + 1) if number not in good)
        rest = f"{len(good)} chunks are good: --salvage decodes them" if good else "no chunk is good"
        return CodecError(
            f"{self._name}: cut off or damaged at chunk {number} or at the index ({error}); {rest}", number
        )

    def _check_index(self, index: object, end: int) -> dict[int, Entry]:
        """Check an index parsed from JSON. Raises ValueError unless its chunks are complete and in order."""
        if not isinstance(index, dict) or not isinstance(index.get("chunks"), list) or not index["chunks"]:
            raise ValueError("the index holds no chunks")
        entries, place, rows = {}, self._chunks_at, index["chunks"]
        for number, row in enumerate(rows):
            if not isinstance(row, list) or len(row) != 4 or not all(type(value) is int for value in row):
                raise ValueError(f"the index has no entry for chunk {number}")
            entry = Entry(*row)
            self._check_counts(number, entry.latents, entry.frames)
            full = entry.latents == self.header.chunk_latents and entry.frames == self.header.frames_of(number, row[1])
            possible = place <= entry.offset <= end - _CHUNK.size and 0 <= entry.first_tick <= MAX_TICK
            if not possible or not (full or number == len(rows) - 1):
                raise ValueError(f"the entry of chunk {number} in the index is not possible")
            entries[number], place = entry, entry.offset + _CHUNK.size
        self._chunks_end = end
        if "audio" in index:
            self._audio_at = index["audio"]
            if type(self._audio_at) is not int or not place <= self._audio_at <= end - _AUDIO.size:
                raise ValueError("the place of the audio in the index is not possible")
            self._chunks_end, self.audio_bytes = self._audio_at, end - self._audio_at
        return entries

    def _check_counts(self, number: int, latents: int, frames: int) -> None:
        most = self.header.frames_of(number, latents)
        if not 1 <= latents <= self.header.chunk_latents or not most - self.header.stride[0] < frames <= most:
            raise ValueError(f"it states {latents} latents and {frames} frames")
        if frames < 1:
            raise ValueError("it states no frames")

    def _read_chunk(self, offset: int, end: int) -> Chunk:
        """Read the chunk at an offset, which ends at `end` or before. Raises ValueError if it is damaged."""
        tag, number, latents, frames, time_bytes, token_bytes, crc = _CHUNK.unpack(self._at(offset, _CHUNK.size))
        if tag != b"CHNK":
            raise ValueError("it doesn't begin as a chunk does")
        self._check_counts(number, latents, frames)
        if time_bytes > 16 * frames + 64 or token_bytes > self.header.max_tokens_bytes:
            raise ValueError(f"it states {time_bytes} bytes of times and {token_bytes} of tokens")
        if offset + _CHUNK.size + time_bytes + token_bytes > end:
            raise ValueError("it reaches into what follows it")
        data = self._at(offset + _CHUNK.size, time_bytes + token_bytes)
        if zlib.crc32(data, zlib.crc32(struct.pack("<5I", number, latents, frames, time_bytes, token_bytes))) != crc:
            raise ValueError("its checksum differs")
        return Chunk(number, latents, unpack_ticks(data[:time_bytes], frames), data[time_bytes:])

    def _scan(self) -> dict[int, Entry]:
        """Find all undamaged chunks without the index."""
        entries: dict[int, Entry] = {}
        last, begun = -1, self._bytes_read
        for offset in self._find_tags():
            # Tags that were put into a file by the thousand, each of a long chunk, would take its size squared.
            if self._bytes_read - begun > SCAN_LIMIT * self._size:
                break
            try:
                chunk = self._read_chunk(offset, self._size)
            except ValueError:
                continue
            # Numbers must ascend, so that inserted copies are ignored. A number must also be possible in a file of this
            # size, because all missing numbers before it are listed as damaged.
            if last < chunk.number <= self._size // _CHUNK.size:
                entries[chunk.number] = Entry(offset, chunk.latents, len(chunk.ticks), int(chunk.ticks[0]))
                last = chunk.number
        return entries

    def _find_tags(self, block: int = 1 << 20) -> Iterator[int]:
        """Yield the offset of every occurrence of a chunk's tag."""
        for start in range(self._chunks_at, self._size, block):
            data = self._at(start, min(block + 3, self._size - start))
            place = data.find(b"CHNK")
            while 0 <= place < block:
                yield start + place
                place = data.find(b"CHNK", place + 1)

    def _at(self, offset: int, length: int) -> bytes:
        if offset + length > self._size:
            raise ValueError("the file ends in it")
        self._file.seek(offset)
        data = self._file.read(length)
        self._bytes_read += length
        if len(data) != length:
            raise ValueError("the file ends in it")
        return data

    def bad_chunk(self, number: int, error: Exception) -> CodecError:
        """Return the error for a chunk that can't be decoded."""
        return CodecError(
            f"{self._name}: chunk {number} of {len(self.entries)} is damaged ({error}): --salvage decodes the others",
            number,
        )

    def bad_audio(self, error: Exception) -> CodecError:
        """Return the error for audio that can't be read."""
        return CodecError(f"{self._name}: its audio is damaged ({error}): --no-audio or --salvage decodes the frames")


class _Part(Pieces):
    """Part of an open file, read in place."""

    def __init__(self, file: BinaryIO, start: int, size: int):
        super().__init__(size)
        self._file, self._start = file, start

    def _read(self, place: int, count: int) -> bytes:
        self._file.seek(self._start + place)
        return self._file.read(count)


def _blocks(file: BinaryIO, size: int = 1 << 20) -> Iterator[bytes]:
    """Read a file from its start in blocks."""
    file.seek(0)
    return iter(partial(file.read, size), b"")


def _crc_of(file: BinaryIO, before: bytes) -> int:
    """Return the CRC32 of `before` and a file."""
    crc = zlib.crc32(before)
    for block in _blocks(file):
        crc = zlib.crc32(block, crc)
    return crc
