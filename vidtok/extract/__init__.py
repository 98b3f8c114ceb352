"""Videos to features: tokens, codes, latents, hidden features or embeddings, in records that survive anything."""

from vidtok.extract.container import Entry, Reader, Writer
from vidtok.extract.npz import read_npz, write_npz
from vidtok.extract.open import open_reader, open_writer
from vidtok.extract.record import SCHEMA, Record, RecordMeta, Settings

__all__ = [
    "SCHEMA", "Entry", "Reader", "Record", "RecordMeta", "Settings", "Writer", "open_reader", "open_writer",
    "read_npz", "write_npz",
]  # fmt: skip
