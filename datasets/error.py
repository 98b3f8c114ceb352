"""The one exception of reading."""

from pathlib import Path


class VideoError(Exception):
    """A file that can't be read as video. `str()` is one line: the file, then the reason.

    path: the file. reason: why, without the file's name. good_frames: how many frames could be decoded before the
    stream broke, or None where it never started.
    """

    def __init__(self, path: str | Path, reason: str, good_frames: int | None = None):
        super().__init__(path, reason, good_frames)  # all three in args: the error survives pickling out of a worker
        self.path, self.reason, self.good_frames = Path(path), reason, good_frames

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"
