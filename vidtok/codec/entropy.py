"""Entropy models: lossless coding of the tokens of a chunk as bytes.

raw       packed bits, lowest bit first: ceil(bits * tokens / 8) bytes
adaptive  u32 words of constriction's range coder with the probabilities of `ContextMixer`, which learns within the
          chunk and needs no weights
prior     u32 CRC32 of the ids as int64, then as adaptive, with a `vidtok.codec.prior.Prior` as a further predictor of
          every bit, and two contexts of longer history

The bits of a latent frame are coded bit plane by bit plane. Each plane takes two passes over a checkerboard, so that
all bits of a pass are predicted at once. The predicted event is that a bit differs from the same bit in the previous
latent. The decoder knows all bits of earlier latents, earlier planes of all tokens of this latent, and in the second
pass the same plane of the four neighbors.

Each context model looks up two counts by its context: how often bits changed, and how often they didn't. The log
ratios of the counts are weighted, summed and mapped to a probability by the logistic function (PAQ's logistic mixing).
Counts and weights are updated after each pass. All arithmetic is int64, so the result doesn't depend on the order of
a sum, the number of threads or a math library.
"""

import struct
import zlib
from collections.abc import Callable
from decimal import Decimal, localcontext
from functools import cache, partial
from typing import NamedTuple

import numpy as np

from vidtok.codec.prior import Prior, PriorState
from vidtok.errors import UserError, nearest

ONE = 1 << 16  # probability 1 in fixed point
_NAT = 256  # one nat of log odds in fixed point
_LIMIT = 11 * _NAT  # bound of log odds, beyond which probabilities of 16 bits saturate
_MAX_COUNT = 255
_WEIGHT = 1 << 16  # weight 1 in fixed point
_START = 1.4  # initial sum of the weights; above 1 because each context lacks evidence that the others have
_STEP = 1 << 18  # divisor of the gradient of the weights, for passes of up to _PASS bits
_PASS = 256
_CHECKSUM = struct.Struct("<I")  # checksum of `encode_prior`
NAMES = ("raw", "adaptive", "prior")
_LEARNED = 8  # divisor of the contexts' initial weights with a prior

# Number of contexts of each model, see `ContextMixer._contexts`. The first three models are shared by all planes.
_SIZES: tuple[int, ...] = (1024, 64 * 140, 250, 0, 0, 0, 0)
_HISTORY_SIZES, _HISTORY_PLANE_SIZES = (12 * 9 * 10, 0), (0, 12 * 9 * 4)  # further models with a prior
_MAX_LEVELS = 4  # largest number of a channel's levels that a context uses
_PLANE_SIZES: tuple[int, ...] = (0, 0, 0, 256, 224, 280, 4**_MAX_LEVELS)  # for each plane and pass


@cache
def _tables() -> tuple[np.ndarray, np.ndarray]:
    """Compute tables of the log of counts and of the logistic function from -_LIMIT on.

    They are correctly rounded, so they don't depend on the system's math library.
    """
    with localcontext() as context:
        context.prec = 20
        logs = [round(_NAT * (count + Decimal("0.4")).ln()) for count in range(_MAX_COUNT + 1)]
        exps = [(Decimal(-x) / _NAT).exp() for x in range(-_LIMIT, _LIMIT + 1)]
        squash = [min(max(round(ONE / (1 + x)), 1), ONE - 1) for x in exps]
    return np.array(logs, np.int64), np.array(squash, np.int64)


Coder = Callable[[np.ndarray, np.ndarray | None], np.ndarray]


class ContextMixer:
    """Adaptive predictor of the bits of one chunk of tokens. Chunks are independent, so each starts with a new one.

    Args:
        bits: bits per token.
        levels: bits per encoder channel, see `vidtok.quantize.LFQ`.
        grid: number of rows and columns of tokens.
        prior: further predictor of the bits, or None.
    """

    def __init__(self, bits: int, levels: int, grid: tuple[int, int], prior: PriorState | None = None):
        self.bits, self.channels, (h, w) = bits, bits // levels, grid
        self._prior = prior
        self._levels = min(levels, _MAX_LEVELS)
        row = w + 2  # planes have a border of zeros
        self._inside = (np.arange(h)[:, None] + 1) * row + np.arange(w) + 1
        checker = (np.arange(h)[:, None] + np.arange(w)) % 2
        around = np.array([0, -1, 1, -row, row, -1 - row, 1 - row, row - 1, row + 1])[:, None]
        places = [self._inside[checker == color] for color in (0, 1)]
        self._passes = [(color, place, place + around) for color, place in enumerate(places) if len(place)]
        self._cells = (h + 2) * row
        shared, own = (_SIZES, _PLANE_SIZES)
        if prior is not None:
            shared, own = shared + _HISTORY_SIZES, own + _HISTORY_PLANE_SIZES
        sizes = [count + 2 * bits * each for count, each in zip(shared, own, strict=True)]
        # The first latent of a chunk has no previous one, and uses separate counts.
        self._offsets = 2 * np.cumsum([0, *sizes[:-1]])[:, None]
        self._sizes = np.array(sizes)[:, None]
        self._counts = np.zeros((2 * sum(sizes), 2), np.int64)
        self._weights = np.full((4, len(sizes)), int(_START * _WEIGHT) // len(sizes), np.int64)
        if prior is not None:
            self._weights = np.insert(self._weights // _LEARNED, len(sizes), _WEIGHT, axis=1)
        self._before = [np.zeros((bits, self._cells), np.uint8) for _ in range(2)]
        self._started = False

    def latent(self, code: Coder, ids: np.ndarray | None = None) -> np.ndarray:
        """Code one latent frame.

        Args:
            code: codes the symbols of a pass. Its arguments are the probabilities of 1, int64 [n] in units of 1 /
                `ONE`, and the symbols, uint8 [n] of 0 and 1, or None to decode them. It returns the symbols.
            ids: int64 [h, w] to encode; None, to decode.

        Returns:
            int64 [h, w], the ids.
        """
        logs, squash = _tables()
        before = self._before[0]
        planes = np.zeros((self.bits, self._cells), np.uint8)
        if ids is not None:
            known = (ids.reshape(-1) >> np.arange(self.bits)[:, None] & 1).astype(np.uint8)
            source = np.zeros_like(planes)
            source[:, self._inside.reshape(-1)] = known
        changes = np.zeros(self._cells, np.int64)  # number of changed bits of each token in earlier planes
        for plane in range(self.bits):
            for color, place, around in self._passes:
                last = before[plane][place]
                rows = self._offsets + self._contexts(plane, color, around, planes, changes)
                if not self._started:
                    rows += self._sizes
                counts = self._counts[rows]
                evidence = logs[counts[..., 1]] - logs[counts[..., 0]]
                if self._prior is not None:
                    odds = self._prior.odds(plane, color, planes[:, self._inside])
                    evidence = np.concatenate([evidence, odds[None]])
                weights = self._weights[2 * self._started + color]
                odds = np.clip(weights @ evidence >> 16, -_LIMIT, _LIMIT)
                probabilities = squash[odds + _LIMIT]
                symbols = code(probabilities, None if ids is None else source[plane][place] ^ last)
                planes[plane][place] = symbols ^ last
                error = (symbols.astype(np.int64) << 16) - probabilities
                weights += evidence @ error // (_STEP * max(len(place), _PASS) // _PASS)
                self._learn(rows, symbols)
            changes += planes[plane] ^ before[plane]
        self._before, self._started = [planes, before], True
        if self._prior is not None:
            self._prior.next(planes[:, self._inside])
        bits = planes[:, self._inside].astype(np.int64)
        return (bits << np.arange(self.bits)[:, None, None]).sum(0)

    def _learn(self, rows: np.ndarray, symbols: np.ndarray) -> None:
        np.add.at(self._counts.reshape(-1), 2 * rows + symbols, 1)
        counts = self._counts[rows]
        most = counts.max(-1)
        if (full := most > _MAX_COUNT).any():
            # Scale the counts down, so that old observations weigh less than new ones.
            self._counts[rows[full]] = counts[full] * (_MAX_COUNT // 2) // most[full][:, None]

    def _contexts(
        self, plane: int, color: int, around: np.ndarray, planes: np.ndarray, changes: np.ndarray
    ) -> np.ndarray:
        """Return the number of the context of each bit of a pass in each model, int64 [models, n].

        Neighboring bits are compared with the bit in the previous latent, so that zeros and ones share contexts.
        """
        before, before2 = self._before
        place = around[0]
        old = before[plane][around].astype(np.int64)
        last = old[0]
        moved = changes[around]
        own, near, far = moved[0], _level(moved[1:5].sum(0)), _level(moved[5:].sum(0))
        differs = old[1:] ^ last
        time = before2[plane][place] ^ last
        sides = differs[0] * 8 + differs[1] * 4 + differs[2] * 2 + differs[3]
        corners = differs[4:].sum(0)
        few = np.minimum(own, 3)
        own = np.minimum(own, 7)
        new_sides = left_up = new = flips = 0
        if color:
            here = planes[plane][around[1:5]].astype(np.int64)
            flips = (here ^ old[1:5]).sum(0)
            fresh = here ^ last
            new_sides = fresh[0] * 8 + fresh[1] * 4 + fresh[2] * 2 + fresh[3]
            left_up = fresh[0] * 2 + fresh[2]
            new = fresh.sum(0)
        key = 2 * plane + color
        shape = (sides * 2 + time) * 2 + color
        level, channel = divmod(plane, self.channels)
        value = np.zeros_like(last)  # all bits of the channel in the previous latent, and the known ones of this latent
        for known in (before[channel :: self.channels], planes[channel :: self.channels][:level]):
            for bit in known[: self._levels]:
                value = 2 * value + bit[place]
        contexts = [
            shape * 16 + new_sides,
            ((shape * 4 + few) * 5 + flips) * 7 + near,
            ((differs[:4].sum(0) * 5 + corners) * 5 + new) * 2 + color,
            (((key * 2 + last) * 2 + time) * 16 + sides) * 4 + left_up,
            ((key * 8 + own) * 7 + near) * 4 + last * 2 + time,
            (((key * 2 + last) * 4 + few) * 5 + flips) * 7 + far,
            key * 4**_MAX_LEVELS + value,
        ]
        if self._prior is not None:
            rare, stay = self._prior.history(plane, color, last)
            contexts += [((rare * 9 + stay) * 2 + color) * 5 + flips, ((key * 12 + rare) * 9 + stay) * 4 + few]
        return np.stack(contexts)


def _level(count: np.ndarray) -> np.ndarray:
    """Quantize a count to 0 .. 6."""
    return np.minimum(count, 3) + (count > 5) + (count > 9) + (count > 15)


class EntropyModel(NamedTuple):
    """Encoder and decoder of the ids of one chunk.

    Attributes:
        encode: (int64 ids [t, h, w] in 0 .. 2^bits - 1, bits, levels) -> bytes. bits: bits per token. levels: bits per
            encoder channel, a divisor of bits.
        decode: (bytes, (t, h, w), bits, levels) -> int64 ids. Raises ValueError for bytes that aren't a valid code.
    """

    encode: Callable[[np.ndarray, int, int], bytes]
    decode: Callable[[bytes, tuple[int, int, int], int, int], np.ndarray]


def validate_entropy(name: str) -> None:
    """Check the name of an entropy model, one of `NAMES`.

    Raises:
        ValueError: unknown name.
        UserError: the package constriction is missing, which all entropy models but "raw" need.
    """
    if name not in NAMES:
        raise ValueError(f"unknown entropy model {name!r}: {nearest(name, NAMES)}")
    if name != "raw":
        _constriction()


def entropy_model(name: str, prior: Prior | None = None) -> EntropyModel:
    """Look up an entropy model by name.

    Args:
        name: see `validate_entropy`, also for its errors.
        prior: network of "prior", see `vidtok.codec.prior.find_prior`.

    Raises:
        ValueError: "prior" without its network.
    """
    validate_entropy(name)
    if name != "prior":
        return ENTROPY_MODELS[name]
    if prior is None:
        raise ValueError("the entropy model 'prior' needs a prior")
    return EntropyModel(partial(encode_prior, prior), partial(decode_prior, prior))


def encode_raw(ids: np.ndarray, bits: int, levels: int = 1) -> bytes:
    """Pack the bits of ids; see `EntropyModel.encode`."""
    data = ids.astype("<u8").reshape(-1, 1).view(np.uint8)
    return np.packbits(np.unpackbits(data, axis=1, bitorder="little")[:, :bits], bitorder="little").tobytes()


def decode_raw(data: bytes, shape: tuple[int, int, int], bits: int, levels: int = 1) -> np.ndarray:
    """Unpack the bits of ids; see `EntropyModel.decode`."""
    count = int(np.prod(shape))
    if len(data) != -(-count * bits // 8):
        raise ValueError(f"{len(data)} bytes of tokens are not {count} of {bits} bits")
    planes = np.unpackbits(np.frombuffer(data, np.uint8), count=count * bits, bitorder="little").reshape(count, bits)
    padded = np.zeros((count, 64), np.uint8)
    padded[:, :bits] = planes
    return np.packbits(padded, axis=1, bitorder="little").view("<u8").astype(np.int64).reshape(shape)


def encode_adaptive(ids: np.ndarray, bits: int, levels: int = 1) -> bytes:
    """Code ids with the probabilities of a `ContextMixer`; see `EntropyModel.encode`."""
    return _encode(ids, ContextMixer(bits, levels, ids.shape[1:]))


def decode_adaptive(data: bytes, shape: tuple[int, int, int], bits: int, levels: int = 1) -> np.ndarray:
    """Invert `encode_adaptive`; see `EntropyModel.decode`."""
    return _decode(data, shape, ContextMixer(bits, levels, shape[1:]))


def encode_prior(prior: Prior, ids: np.ndarray, bits: int, levels: int = 1) -> bytes:
    """Code ids with the probabilities of a `ContextMixer` with a prior; see `EntropyModel.encode`."""
    mixer = ContextMixer(bits, levels, ids.shape[1:], PriorState(prior, bits, ids.shape[1:]))
    return _CHECKSUM.pack(_checksum(ids)) + _encode(ids, mixer)


def decode_prior(prior: Prior, data: bytes, shape: tuple[int, int, int], bits: int, levels: int = 1) -> np.ndarray:
    """Invert `encode_prior`; see `EntropyModel.decode`."""
    if len(data) < _CHECKSUM.size:
        raise ValueError(f"{len(data)} bytes of tokens have no checksum")
    mixer = ContextMixer(bits, levels, shape[1:], PriorState(prior, bits, shape[1:]))
    ids = _decode(data[_CHECKSUM.size :], shape, mixer)
    # Without the checksum, wrong tokens from another network or from inexact sums would go unnoticed.
    if _CHECKSUM.unpack(data[: _CHECKSUM.size])[0] != _checksum(ids):
        raise ValueError("the checksum of its tokens differs: the prior computed other probabilities when it encoded")
    return ids


def _checksum(ids: np.ndarray) -> int:
    return zlib.crc32(ids.astype("<i8").tobytes())


def _encode(ids: np.ndarray, mixer: ContextMixer) -> bytes:
    """Encode the ids of a chunk with a range coder."""
    constriction = _constriction()
    encoder = constriction.stream.queue.RangeEncoder()
    bernoulli = constriction.stream.model.Bernoulli(perfect=False)

    def code(probabilities: np.ndarray, symbols: np.ndarray | None) -> np.ndarray:
        assert symbols is not None
        # Division by a power of two is exact, so the coder gets the same numbers on every machine.
        encoder.encode(symbols.astype(np.int32), bernoulli, probabilities / ONE)
        return symbols

    for frame in ids:
        mixer.latent(code, frame)
    return encoder.get_compressed().astype("<u4").tobytes()


def _decode(data: bytes, shape: tuple[int, int, int], mixer: ContextMixer) -> np.ndarray:
    """Invert `_encode`."""
    if len(data) % 4:
        raise ValueError(f"{len(data)} bytes of tokens are not a multiple of 4")
    constriction = _constriction()
    decoder = constriction.stream.queue.RangeDecoder(np.frombuffer(data, "<u4").astype(np.uint32))
    bernoulli = constriction.stream.model.Bernoulli(perfect=False)

    def code(probabilities: np.ndarray, _: np.ndarray | None) -> np.ndarray:
        return decoder.decode(bernoulli, probabilities / ONE).astype(np.uint8)

    try:
        ids = np.stack([mixer.latent(code) for _ in range(shape[0])])
    except AssertionError as error:  # raised by constriction for invalid data
        raise ValueError("the coded tokens are damaged") from error
    if not decoder.maybe_exhausted():
        raise ValueError(f"the bytes of tokens go on after {int(np.prod(shape))} tokens")
    return ids


def _constriction():
    try:
        import constriction
    except ImportError as error:
        raise UserError(
            "the entropy models 'adaptive' and 'prior' need the package constriction: pip install 'vidtok[codec]', or "
            "compress with --entropy raw"
        ) from error
    return constriction


# Entropy models without weights; `entropy_model` makes that of "prior" from its network.
ENTROPY_MODELS = {
    "raw": EntropyModel(encode_raw, decode_raw),
    "adaptive": EntropyModel(encode_adaptive, decode_adaptive),
}
