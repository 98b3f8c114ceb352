"""Videos to features: tokens, codes, latents, hidden features or embeddings, in records that survive anything."""

from vidtok.extract.container import Entry, Reader, Writer
from vidtok.extract.npz import read_npz, write_npz
from vidtok.extract.open import open_reader, open_writer
from vidtok.extract.record import SCHEMA, Record, RecordMeta, Settings
from vidtok.extract.token_batches import TokenBatches
from vidtok.extract.token_dataset import TokenDataset

__all__ = [
    "SCHEMA", "Entry", "Reader", "Record", "RecordMeta", "Settings", "TokenBatches", "TokenDataset", "Writer",
    "open_reader", "open_writer", "read_npz", "write_npz",
]  # fmt: skip
