"""Which code made a result."""

import subprocess
from pathlib import Path


def git_hash() -> str | None:
    """Commit of the checkout this file is tracked in, 40 hex digits, "-dirty" where tracked files are changed."""
    here = Path(__file__).resolve()

    def git(*args: str) -> subprocess.CompletedProcess:
        return subprocess.run(["git", "-C", str(here.parent), *args], capture_output=True, text=True)

    try:
        # Tracked, because site-packages may lie inside somebody else's repository.
        if git("ls-files", "--error-unmatch", here.name).returncode:
            return None
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*").stdout.strip()
    except FileNotFoundError:  # no git
        return None
