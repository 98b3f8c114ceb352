"""The token file format."""

import json
from dataclasses import replace

import numpy as np
import pytest

from vidtok.tokenfile import TokenMeta, id_type, read_tokens, write_tokens

META = TokenMeta(
    model="test", weight_hash="0123456789abcdef", precision="fp32", bits=18, stride=(4, 8, 8), fps=23.976, frames=7,
    size=(21, 30), coded_size=(24, 32), native_size=(42, 60), native_fps=23.976, resize=21, tile=None,
    source="clip.mp4", reader="pyav",
)  # fmt: skip


def grid(bits=18, shape=(3, 3, 4)):
    ids = np.random.default_rng(0).integers(0, 2**bits, shape)
    ids.flat[0], ids.flat[1] = 2**bits - 1, 0
    return ids


def times(frames=7):
    return np.arange(frames) / 23.976


@pytest.mark.parametrize(
    "bits, kind", [(1, "uint8"), (8, "uint8"), (9, "uint16"), (18, "uint32"), (32, "uint32"), (60, "uint64")]
)
def test_round_trip_in_the_smallest_type(tmp_path, bits, kind):
    path = tmp_path / "clip.npz"
    write_tokens(path, grid(bits), times(), replace(META, bits=bits))
    tokens = read_tokens(path)
    assert tokens.ids.dtype == np.int64
    assert np.array_equal(tokens.ids, grid(bits))
    assert tokens.timestamps.dtype == np.float64 and np.array_equal(tokens.timestamps, times())
    assert tokens.meta == replace(META, bits=bits)
    with np.load(path, allow_pickle=False) as arrays:
        assert arrays["ids"].dtype == kind == id_type(bits)
        meta = json.loads(str(arrays["meta"]))
    assert meta["schema"] == "vidtok.tokens/1" and meta["bytes_per_token"] == np.dtype(kind).itemsize
    assert [p.name for p in tmp_path.iterdir()] == ["clip.npz"]


@pytest.mark.parametrize(
    "ids, timestamps, change",
    [
        (grid(19), times(), {}),  # an id beyond the codebook
        (grid()[0], times(), {}),
        (grid().astype(float), times(), {}),
        (grid(), times(6), {}),
        (grid(), times(10), {"frames": 10}),
        (grid(), times(5), {"frames": 5}),
        (grid(), times(), {"size": (25, 30)}),
        (grid(), times(), {"size": (16, 30)}),
        (grid(), times(), {"coded_size": (24, 40)}),
    ],
)
def test_refuses_what_does_not_belong_together(tmp_path, ids, timestamps, change):
    with pytest.raises(ValueError):
        write_tokens(tmp_path / "clip.npz", ids, timestamps, replace(META, **change))
    assert not list(tmp_path.iterdir())


def test_another_schema_is_named(tmp_path):
    path = tmp_path / "clip.npz"
    write_tokens(path, grid(), times(), META)
    with np.load(path) as arrays:
        parts = dict(arrays)
    meta = json.loads(str(parts["meta"])) | {"schema": "vidtok.tokens/2"}
    np.savez(path, **parts | {"meta": np.array(json.dumps(meta))})
    with pytest.raises(ValueError, match=r"clip\.npz.*'vidtok\.tokens/2'.*'vidtok\.tokens/1'"):
        read_tokens(path)


def test_damage_is_one_error_that_names_the_file(tmp_path):
    path = tmp_path / "clip.npz"
    write_tokens(path, grid(shape=(3, 3, 4)), times(), META)
    good, tokens = path.read_bytes(), read_tokens(path)
    rng = np.random.default_rng(0)
    damaged = [good[:cut] for cut in rng.integers(0, len(good), 40)]
    for _ in range(200):
        data = bytearray(good)
        data[rng.integers(len(data))] ^= int(rng.integers(1, 256))
        damaged.append(bytes(data))
    refused = 0
    for data in damaged:
        path.write_bytes(data)
        try:
            # Bytes that don't matter, of times and attributes in the zip, may change.
            assert np.array_equal(read_tokens(path).ids, tokens.ids)
        except ValueError as error:
            assert "clip.npz" in str(error) and "\n" not in str(error)
            refused += 1
    assert refused > 150


@pytest.mark.parametrize(
    "content", [b"", b"<html></html>", b"PK\x03\x04", b"\x80\x04N.", b"\x93NUMPY\x01\x00", b"\x1aE\xdf\xa3" * 99]
)
def test_another_kind_of_file(tmp_path, content):
    path = tmp_path / "clip.npz"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"clip\.npz: not a token file"):
        read_tokens(path)


def test_pickles_are_not_loaded(tmp_path):
    path = tmp_path / "clip.npz"
    np.savez(path, ids=np.array([{}], dtype=object), timestamps=times(), meta=np.array("{}"))
    with pytest.raises(ValueError, match="not a token file"):
        read_tokens(path)


def test_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_tokens(tmp_path / "clip.npz")
