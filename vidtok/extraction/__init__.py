"""Videos to features: tokens, codes, latents, hidden features or embeddings, in records that survive anything."""

from vidtok.extraction.containers import open_reader, open_writer
from vidtok.extraction.dataset import TokenBatches, TokenDataset
from vidtok.extraction.npz import read_npz, write_npz
from vidtok.extraction.record import SCHEMA, Entry, Reader, Record, RecordMeta, Settings, Writer

# Not here: `vidtok.extraction.run.extract`, which is `vidtok.extract`. What reads features needs none of it.

__all__ = [
    "SCHEMA", "Entry", "Reader", "Record", "RecordMeta", "Settings", "TokenBatches", "TokenDataset", "Writer",
    "open_reader", "open_writer", "read_npz", "write_npz",
]  # fmt: skip
