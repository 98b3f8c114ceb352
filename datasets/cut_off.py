"""Matroska, WebM and AVI files that end before they should: FFmpeg takes that for the end of the video."""

from pathlib import Path

from av.container import InputContainer
from av.video.stream import VideoStream

_EBML, _SEGMENT = b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67"


def is_cut_off(path: Path, container: InputContainer, stream: VideoStream, end: float) -> bool:
    """Whether the file is shorter than its header says, and so is the video, which ends at `end` (seconds).

    Both, so that neither a wrong header nor a missing index behind the last frame makes a good video a bad one.
    """
    whole = {"matroska,webm": _segment_end, "avi": _riff_end}.get(container.format.name, lambda head: None)
    with open(path, "rb") as file:
        size = whole(file.read(4096))
    if size is None or size <= path.stat().st_size:
        return False
    promised = _seconds(stream.metadata.get("DURATION"))
    if promised is None:
        promised = float(stream.duration * stream.time_base) if stream.duration else (container.duration or 0) / 1e6
    return end < promised - 1.5 / float(stream.average_rate or 25)


def _riff_end(head: bytes) -> int | None:
    """How long the file is by its header."""
    return 8 + int.from_bytes(head[4:8], "little") if head.startswith(b"RIFF") else None


def _segment_end(head: bytes) -> int | None:
    """The same; None where the header doesn't say (live streams)."""
    if not head.startswith(_EBML):
        return None
    size, place = _number(head, 4)
    if size is None or head[place + size : place + size + 4] != _SEGMENT:
        return None
    size, place = _number(head, place + size + 4)
    return None if size is None else place + size


def _number(data: bytes, place: int) -> tuple[int | None, int]:
    """(EBML's variable-length integer at `place`, the place behind it); all ones, and None, is "unknown"."""
    if place >= len(data) or not data[place]:
        return None, place
    length = 9 - data[place].bit_length()
    bits = int.from_bytes(data[place : place + length], "big") & ((1 << 7 * length) - 1)
    return (None if bits == (1 << 7 * length) - 1 else bits), place + length


def _seconds(text: str | None) -> float | None:
    """ "00:01:02.500000000" -> 62.5"""
    try:
        hours, minutes, seconds = text.split(":")
        return 3600 * int(hours) + 60 * int(minutes) + float(seconds)
    except (AttributeError, ValueError):
        return None
