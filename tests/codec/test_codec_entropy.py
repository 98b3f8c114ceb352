"""Entropy models: lossless, the same bytes everywhere, small where nothing changes, an error for other bytes."""

import hashlib
import sys

import numpy as np
import pytest

from vidtok.codec.entropy import ENTROPY_MODELS, encode_adaptive, encode_raw, entropy_model
from vidtok.errors import UserError


def noise(*shape: int, bits: int = 18) -> np.ndarray:
    """ids by a congruential generator in exact arithmetic, the same with every version of NumPy."""
    values, state = [], 1
    for _ in range(int(np.prod(shape))):
        state = (state * 6364136223846793005 + 1442695040888963407) % 2**64
        values.append(state >> (64 - bits))
    return np.array(values, np.int64).reshape(shape)


def moving(t: int, h: int, w: int) -> np.ndarray:
    """A texture that moves by a token every second latent, and a few tokens that change."""
    texture = noise(h, w + t)
    ids = np.stack([texture[:, i // 2 : i // 2 + w] for i in range(t)])
    return ids ^ (noise(t, h, w, bits=6) == 0)


@pytest.mark.parametrize("name", ENTROPY_MODELS)
@pytest.mark.parametrize(("bits", "levels"), [(18, 1), (18, 3), (1, 1), (16, 1), (60, 60)])
def test_round_trip(name, bits, levels):
    model = entropy_model(name)
    for shape in [(1, 1, 1), (3, 1, 5), (4, 5, 3), (2, 4, 4)]:
        ids = noise(*shape, bits=bits)
        data = model.encode(ids, bits, levels)
        decoded = model.decode(data, shape, bits, levels)
        assert decoded.dtype == np.int64 and (decoded == ids).all()
        assert len(data) <= ids.size * bits / 8 * 17 / 16 + 64


def test_counts_that_reach_their_limit():
    ids = np.repeat(noise(1, 12, 12, bits=1), 40, 0)
    ids[20:] ^= 1
    assert (entropy_model("adaptive").decode(encode_adaptive(ids, 1), ids.shape, 1, 1) == ids).all()


def test_what_stays_the_same_costs_next_to_nothing():
    first = noise(1, 8, 8)
    still = len(encode_adaptive(np.repeat(first, 64, 0), 18)) - len(encode_adaptive(first, 18))
    assert still < 0.03 * len(encode_raw(np.repeat(first, 63, 0), 18))
    assert len(encode_adaptive(moving(32, 8, 8), 18)) < 0.7 * len(encode_raw(moving(32, 8, 8), 18))


def test_bytes_are_the_same_everywhere():
    """A file of an older version must decode; nothing depends on the machine, the process or NumPy's threads."""
    data = encode_adaptive(moving(6, 8, 9), 18, 3)
    assert hashlib.sha256(data).hexdigest()[:16] == "fd857ea76c807b30"


@pytest.mark.parametrize("name", ENTROPY_MODELS)
def test_bytes_of_something_else_are_refused(name):
    model = entropy_model(name)
    data = model.encode(noise(2, 4, 4), 18, 1)
    for other in (data + bytes([255] * 8), data[:-1]):
        with pytest.raises(ValueError, match="tokens"):
            model.decode(other, (2, 4, 4), 18, 1)


def test_an_unknown_model():
    with pytest.raises(ValueError, match="did you mean 'adaptive'"):
        entropy_model("adaptiv")


def test_without_constriction_raw_works(monkeypatch):
    monkeypatch.setitem(sys.modules, "constriction", None)
    assert entropy_model("raw").encode(noise(1, 1, 1), 18, 1)
    with pytest.raises(UserError, match=r"pip install 'vidtok\[codec\]'"):
        entropy_model("adaptive")
