"""Extract features of videos (ids, codes, latents, hidden features, embeddings), store them and read them back."""

from vidtok.extraction.containers import open_reader, open_writer
from vidtok.extraction.dataset import TokenBatches, TokenDataset
from vidtok.extraction.npz import read_npz, write_npz
from vidtok.extraction.record import SCHEMA, Entry, Reader, Record, RecordMeta, Settings, Writer

# `vidtok.extract` (`vidtok.extraction.run.extract`) is not imported here: reading features doesn't need the engine.

__all__ = [
    "SCHEMA", "Entry", "Reader", "Record", "RecordMeta", "Settings", "TokenBatches", "TokenDataset", "Writer",
    "open_reader", "open_writer", "read_npz", "write_npz",
]  # fmt: skip
