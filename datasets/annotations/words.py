"""What a word of an annotation file may be, and the error for a file or a line that fits no format.

Names of splits are such words, too.
"""

import re
from collections.abc import Sequence

from vidtok.names import MEDIA_SUFFIXES


class AnnotationFormatError(Exception):
    """The reason why a file, or the line `line` with the 1-based `number`, fits none of the formats.

    `str()` is written to follow the name of the file.
    """

    def __init__(self, why: str, number: int | None = None, line: str | None = None):
        shown = "" if line is None else f": {line if len(line) <= 200 else line[:200] + '...'!r}"
        super().__init__(f"{'' if number is None else f', line {number}'}{shown}: {why}")


def is_whole(word: str) -> bool:
    return re.fullmatch(r"-?\d+", word) is not None


def is_media(word: str) -> bool:
    return word.lower().endswith(MEDIA_SUFFIXES)


def is_several(label: str) -> bool:
    """Return whether a label holds several classes: [1, 2] or 1,2 or a;b or a|b."""
    parts = label.split(",")
    numbers = len(parts) > 1 and all(part.strip().isdigit() for part in parts)
    return numbers or (label.startswith("[") and label.endswith("]")) or ";" in label or "|" in label


def is_class_list(names: Sequence[str], labels: Sequence[str | None]) -> bool:
    """Return whether one column holds 0..n-1 or 1..n, and the other n distinct words, most of them without digits."""
    known = [label for label in labels if label is not None]
    if len(known) < len(labels):
        return False
    for numbers, words in (([name.rstrip(":.)") for name in names], known), (known, names)):
        if not all(numbers) or not all(words) or not all(map(is_whole, numbers)) or len(set(words)) < len(words):
            continue
        if any(is_whole(word) or is_media(word) or "/" in word for word in words):
            continue
        first = min(map(int, numbers), default=-1)
        counts = first in (0, 1) and set(map(int, numbers)) == set(range(first, first + len(numbers)))
        if counts and 2 * sum(re.search(r"\d", word) is None for word in words) > len(words):
            return True
    return False


_SPLITS = {"validate": "val", "validation": "val", "valid": "val", "dev": "val", "training": "train", "testing": "test"}


def canonical_split(name: str) -> str:
    """Return the name by which splits are compared: lower case; "val" for "validation" and "dev", and so on."""
    return _SPLITS.get(name.lower(), name.lower())


def tidy_split(name: str) -> str:
    """Return "train", "val" or "test" for their usual names in whatever case; other names as they are."""
    canonical = canonical_split(name)
    return canonical if canonical in ("train", "val", "test") else name
