"""Entropy models: the tokens of a chunk to bytes and back, without loss.

raw       packed bits, lowest bit first: ceil(bits * tokens / 8) bytes
adaptive  constriction's range coder with the probabilities of `vidtok.codec.mixing`, as u32 words; ids are made to
          fit each machine in the same way, and no weights are needed
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vidtok.codec.mixing import ONE, ContextMixer
from vidtok.errors import UserError, nearest


class EntropyModel(NamedTuple):
    """encode: (int64 ids [t, h, w], bits, levels) -> bytes. decode: (bytes, (t, h, w), bits, levels) -> ids; raises
    ValueError for bytes that are none of its. bits: of a token. levels: bits per encoder channel, a divisor of bits."""

    encode: Callable[[np.ndarray, int, int], bytes]
    decode: Callable[[bytes, tuple[int, int, int], int, int], np.ndarray]


def entropy_model(name: str) -> EntropyModel:
    """Look up an entropy model. Raises ValueError for an unknown one, UserError where its package isn't installed."""
    if name not in ENTROPY_MODELS:
        raise ValueError(f"unknown entropy model {name!r}: {nearest(name, ENTROPY_MODELS)}")
    if name == "adaptive":
        _constriction()
    return ENTROPY_MODELS[name]


def encode_raw(ids: np.ndarray, bits: int, levels: int = 1) -> bytes:
    data = ids.astype("<u8").reshape(-1, 1).view(np.uint8)
    return np.packbits(np.unpackbits(data, axis=1, bitorder="little")[:, :bits], bitorder="little").tobytes()


def decode_raw(data: bytes, shape: tuple[int, int, int], bits: int, levels: int = 1) -> np.ndarray:
    count = int(np.prod(shape))
    if len(data) != -(-count * bits // 8):
        raise ValueError(f"{len(data)} bytes of tokens are not {count} of {bits} bits")
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    padded = np.zeros((count, 64), np.uint8)
    padded[:, :bits] = planes
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.int64).reshape(shape)


def encode_adaptive(ids: np.ndarray, bits: int, levels: int = 1) -> bytes:
    constriction = _constriction()
    encoder = constriction.stream.queue.RangeEncoder()
    bernoulli = constriction.stream.model.Bernoulli(perfect=False)

    def code(probabilities: np.ndarray, symbols: np.ndarray | None) -> np.ndarray:
        assert symbols is not None
        # Division by a power of two is exact: the coder sees the same number everywhere.
        encoder.encode(symbols.astype(np.int32), bernoulli, probabilities / ONE)
        return symbols

    mixer = ContextMixer(bits, levels, ids.shape[1:])
    for frame in ids:
        mixer.latent(code, frame)
    return encoder.get_compressed().astype("<u4").tobytes()


def decode_adaptive(data: bytes, shape: tuple[int, int, int], bits: int, levels: int = 1) -> np.ndarray:
    if len(data) % 4:
        raise ValueError(f"{len(data)} bytes of tokens are no whole words")
    constriction = _constriction()
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    bernoulli = constriction.stream.model.Bernoulli(perfect=False)

    def code(probabilities: np.ndarray, _: np.ndarray | None) -> np.ndarray:
        return decoder.decode(bernoulli, probabilities / ONE).astype(np.uint8)

    mixer = ContextMixer(bits, levels, shape[1:])
    try:
        ids = np.stack([mixer.latent(code) for _ in range(shape[0])])
    except AssertionError as error:  # how constriction reports it
        raise ValueError("its tokens are damaged") from error
    if not decoder.maybe_exhausted():
        raise ValueError("more bytes of tokens than it has tokens")
    return ids


def _constriction():
    try:
        import constriction
    except ImportError as error:
        raise UserError(
            "the entropy model 'adaptive' needs the package constriction: pip install 'vidtok[codec]', or "
            "compress with --entropy raw"
        ) from error
    return constriction


ENTROPY_MODELS = {
    "raw": EntropyModel(encode_raw, decode_raw),
    "adaptive": EntropyModel(encode_adaptive, decode_adaptive),
}
