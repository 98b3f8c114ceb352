"""Finding the files that annotations mean."""

import os
from collections import defaultdict
from pathlib import Path


def find_media(root: str | Path, suffixes: tuple[str, ...]) -> list[str]:
    """Files below `root` with one of `suffixes`, sorted, hidden ones left out. Raises ValueError if it is no folder."""
    if not Path(root).is_dir():
        raise ValueError(f"{root} is not a folder")
    return sorted(
        os.path.join(where, name)
        for where, _, names in os.walk(root, followlinks=True)
        for name in names
        if name.lower().endswith(suffixes) and not name.startswith(".")
    )


class Names:
    """Files below a folder by their name without suffix, wherever they lie."""

    def __init__(self, root: str | Path, suffixes: tuple[str, ...]):
        self._root, self._places = Path(root), defaultdict(list)
        for path in find_media(root, suffixes):
            self._places[Path(path).stem].append(path)

    def find(self, name: str, folder: str, suffix: str) -> str:
        """The file called `name`, where there are several the one in a folder called `folder`; where there is none, the
        path it should have: name + suffix in the root."""
        places = self._places.get(name) or [str(self._root / f"{name}{suffix}")]
        return next((path for path in places if Path(path).parent.name == folder), places[0])
