"""Errors that the user can fix, and suggestions of legal names for their messages."""

import difflib
import dis
import re
from collections.abc import Iterable
from pathlib import Path


class UserError(Exception):
    """Error whose text is the one line that the user sees."""


_ADDRESS, _SLASHES = re.compile(r"^([a-z][a-z0-9]+):/(?=[^/])"), r"\1://"  # `Path` takes one slash of an address


class VideoError(Exception):
    """Error of a file that can't be read as video. `str()` is one line: the file, then the reason.

    Attributes:
        path: the file.
        reason: why it can't be read, without the file's name.
        good_frames: number of frames decoded before the stream broke; None if decoding never started.
    """

    def __init__(self, path: str | Path, reason: str, good_frames: int | None = None):
        super().__init__(path, reason, good_frames)  # all three in args: the error survives pickling out of a worker
        self.path, self.reason, self.good_frames = Path(path), reason, good_frames

    def __str__(self) -> str:
        return f"{_ADDRESS.sub(_SLASHES, str(self.path))}: {self.reason}"


# Names that settings had in earlier versions. Saved files with these names can still be read, see
# `vidtok.hub.rename_keys`; a user who types one is told the new name.
RENAMED = {
    "cells": "grid_crop",
    "halve_time": "temporal_downsample",
    "joined": "concat_segments",
    "label_drop": "class_dropout_prob",
    "merge": "patch_merge",
    "multipliers": "channel_multipliers",
    "neighbours": "neighbors",
    "recogniser": "recognizer",
}


def nearest(given: str, legal: Iterable[str]) -> str:
    """Suggest the legal name closest to `given`, or list all of them if none is close."""
    legal = list(legal)
    renamed = ".".join(RENAMED.get(part, part) for part in given.split("."))
    if renamed != given and (renamed in legal or "." in given):  # a key of a config group may be missing in `legal`
        return f"did you mean {renamed!r}?"
    close = difflib.get_close_matches(given, legal, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(map(str, legal)) or 'none'}"


def is_expected(error: Exception) -> bool:
    """Return whether an error is caused by the user's input or machine, and not by a bug.

    A plain ValueError counts as expected, except if Python or a C extension raised it without a `raise` statement (as
    `a, b = [1]` does): its text was not written for the user.
    """
    if type(error) is ValueError:
        return _is_written(error)
    if isinstance(error, (UserError, ValueError, OSError, MemoryError, FloatingPointError)):
        return True
    # Imported late, because it imports torch.
    from torch import OutOfMemoryError

    # A GPU raises OutOfMemoryError, the CPU's allocator a plain RuntimeError.
    return isinstance(error, (VideoError, OutOfMemoryError)) or "can't allocate memory" in str(error)


def _is_written(error: Exception) -> bool:
    """Return whether a `raise` statement raised the error, by the instruction at which its traceback ends."""
    end = error.__traceback__
    if end is None:
        return True
    while end.tb_next is not None:
        end = end.tb_next
    code = end.tb_frame.f_code.co_code
    return 0 <= end.tb_lasti < len(code) and dis.opname[code[end.tb_lasti]] == "RAISE_VARARGS"


def one_line(error: BaseException) -> str:
    """Return the text of an error without line breaks; of an OSError, "FILE: REASON"."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: {error.strerror}"
    return " ".join(str(error).split()) or type(error).__name__
