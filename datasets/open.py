"""The door to all readers."""

from pathlib import Path

from .error import VideoError
from .reader import OnError, VideoReader
from .reader_decord import DecordReader, has_decord
from .reader_pyav import PyAVReader
from .reader_torchcodec import TorchCodecReader


def open_video(path: str | Path, backend: str | None = None, on_error: OnError = "raise") -> VideoReader:
    """Open a video, or an image as a video of one frame.

    backend: "pyav" decodes from the start, always right; "decord" and "torchcodec" refuse a file they can't be proven
    right on. None takes decord where that proof succeeds, otherwise PyAV.
    on_error: "keep" ends a video that breaks in the middle at its last good frame instead of raising.
    Raises `VideoError` for a file that can't be decoded, ValueError for an unknown backend.
    """
    if on_error not in ("raise", "keep"):
        raise ValueError(f"on_error={on_error!r} is not 'raise' or 'keep'")
    if backend not in (None, "pyav", "decord", "torchcodec"):
        raise ValueError(f"backend={backend!r} is not 'pyav', 'decord', 'torchcodec' or None (automatic)")
    if on_error == "keep" and backend not in (None, "pyav"):
        raise ValueError("on_error='keep' needs the pyav backend: only decoding from the start finds the break")
    if backend == "pyav" or on_error == "keep" or (backend is None and not has_decord()):
        return PyAVReader(path, on_error)
    if backend == "torchcodec":
        return TorchCodecReader(path)
    if backend == "decord":
        return DecordReader(path)
    try:
        return DecordReader(path)
    except VideoError:  # no proof; and if the file itself is at fault, PyAV says it better
        return PyAVReader(path)
