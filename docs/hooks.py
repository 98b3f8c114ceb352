"""Assemble the package as it is installed, so that mkdocstrings finds vidtok.heads, vidtok.datasets and vidtok.eval."""

import shutil
from pathlib import Path

ROOT = Path(__file__).parent.parent


def on_startup(command: str, dirty: bool) -> None:
    """Copy the four source folders into build/src/vidtok."""
    target = ROOT / "build" / "src" / "vidtok"
    shutil.rmtree(target, ignore_errors=True)
    ignore = shutil.ignore_patterns("__pycache__", "pretrained", "results")
    shutil.copytree(ROOT / "vidtok", target, ignore=ignore)
    for name in ("heads", "datasets", "eval"):
        shutil.copytree(ROOT / name, target / name, ignore=ignore)


if __name__ == "__main__":
    on_startup("tree", False)
