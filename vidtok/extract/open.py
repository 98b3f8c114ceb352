"""The door to all containers."""

from pathlib import Path

from vidtok.extract.container import Reader, Writer
from vidtok.extract.npz_folder import NpzReader, NpzWriter
from vidtok.extract.shards import ShardReader, ShardWriter
from vidtok.hints import nearest

SUFFIXES = {"npz": ".npz", "parquet": ".parquet", "webdataset": ".tar"}
CONTAINERS = tuple(SUFFIXES)


def check_container(container: str) -> None:
    """Raises ValueError for a name that is not one of `CONTAINERS`."""
    if container not in CONTAINERS:
        raise ValueError(f"unknown container {container!r}: {nearest(container, CONTAINERS)}")


def open_writer(folder: str | Path, container: str) -> Writer:
    """container: one of `CONTAINERS`. Raises ValueError for another one."""
    check_container(container)
    return NpzWriter(Path(folder)) if container == "npz" else ShardWriter(Path(folder), _form(container))


def open_reader(path: str | Path) -> Reader:
    """Of a folder of any container, or of one of its files.

    Raises:
        ValueError: where there are no features, or features of several settings.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"{path}: no such file or folder")
    for container, suffix in SUFFIXES.items():
        files = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path] * (path.suffix == suffix)
        if files := [file for file in files if file.is_file() and not file.name.startswith(".")]:
            return NpzReader(files) if container == "npz" else ShardReader(files, _form(container))
    raise ValueError(f"{path}: no features here ({', '.join(SUFFIXES.values())})")


def _form(container: str):
    """The `vidtok.extract.shards.Format` of a container; pyarrow is needed for parquet alone."""
    if container == "webdataset":
        from vidtok.extract.tar import TarFormat

        return TarFormat()
    try:
        from vidtok.extract.parquet import ParquetFormat
    except ImportError as error:
        raise ValueError("parquet needs pyarrow: pip install 'vidtok[parquet]'") from error
    return ParquetFormat()
