"""'Did you mean': the part of an error message that names what is legal."""

import difflib
from collections.abc import Iterable


def nearest(given: str, legal: Iterable[str]) -> str:
    """The legal name most like `given` where one is close, else all of them."""
    legal = list(legal)
    close = difflib.get_close_matches(given, legal, n=1)
    return f"did you mean {close[0]!r}?" if close else f"known are {', '.join(map(str, legal)) or 'none'}"
