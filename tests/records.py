"""Compare what runs of extraction have written."""

import numpy as np

from vidtok.extraction import open_reader


def read_all(folder):
    """{id: record}; every video is there once."""
    reader = open_reader(folder)
    assert len({entry.id for entry in reader.entries}) == len(reader)
    return {entry.id: reader.read(i) for i, entry in enumerate(reader.entries)}


def assert_same(ours, theirs):
    assert set(ours) == set(theirs)
    for id, record in ours.items():
        assert np.array_equal(record.features, theirs[id].features) and record.meta == theirs[id].meta
        assert np.array_equal(record.timestamps, theirs[id].timestamps)
