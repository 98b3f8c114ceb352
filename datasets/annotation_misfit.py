"""What is said of annotations that can't be read, and how the confusable ones are told apart."""

import re
from collections.abc import Sequence

from .container import MEDIA_SUFFIXES

UNDERSTOOD = (
    "Formats understood: Kinetics csv (label,youtube_id,time_start,time_end,split); Something-Something-v2 json "
    "([{id, template}] or [{id}]); csv with a header (path, label, split); list of 'path label' or 'path,label' lines"
)


class Misfit(Exception):
    """Why a file, or one line of it, is none of the formats. `str()` goes after the name of the file."""

    def __init__(self, why: str, number: int | None = None, line: str | None = None):
        shown = "" if line is None else f": {line if len(line) <= 200 else line[:200] + '...'!r}"
        super().__init__(f"{'' if number is None else f', line {number}'}{shown}: {why}")


def is_whole(word: str) -> bool:
    return re.fullmatch(r"-?\d+", word) is not None


def is_media(word: str) -> bool:
    return word.lower().endswith(MEDIA_SUFFIXES)


def is_several(label: str) -> bool:
    """Whether a label is several: [1, 2] or 1,2 or a;b or a|b."""
    parts = label.split(",")
    numbers = len(parts) > 1 and all(part.strip().isdigit() for part in parts)
    return numbers or (label.startswith("[") and label.endswith("]")) or ";" in label or "|" in label


def is_class_list(names: Sequence[str], labels: Sequence[str | None]) -> bool:
    """Whether two columns number names: one holds 0..n-1 or 1..n, the other n different words, most without digits."""
    for numbers, words in (([name.rstrip(":.)") for name in names], labels), (labels, names)):
        if not all(numbers) or not all(words) or not all(map(is_whole, numbers)) or len(set(words)) < len(words):
            continue
        if any(is_whole(word) or is_media(word) or "/" in word for word in words):
            continue
        first = min(map(int, numbers), default=-1)
        counts = first in (0, 1) and set(map(int, numbers)) == set(range(first, first + len(numbers)))
        if counts and 2 * sum(re.search(r"\d", word) is None for word in words) > len(words):
            return True
    return False
