"""Learned prior of token bits: a small network for the tokens of one tokenizer, in exact integer arithmetic.

For each latent frame, 3 x 3 convolutions compute features of the chunk's history: the last two latents, and fast and
slow averages of every bit and of its flips. Each bit plane then has a network of its own. Its inputs for a token are
the features at the token's position, the plane's history, earlier planes of the 3 x 3 neighborhood, and in the second
pass over the checkerboard the same plane of the four neighbors. Its outputs are log odds of two kinds: that the bit
changes, and that it is 1. The former are what decides in static places, the latter where the content is new.
`vidtok.train.prior` trains the network.

Weights are int8 with a shift for each output. Activations are integers of at most 8 bits in units of 1 / `ONE`. Matrix
products are computed in float32. They are exact in any order of summation because no sum reaches 2^24, which `Prior`
checks for its weights. The result is therefore the same for every number of threads and on every machine. Convolutions
are sums of nine matrix products, because a library may compute them by transforms that round.

A file (.safetensors) holds for each layer `weight` (int8), `shift` (uint8) and `bias` (int32). Its metadata holds the
schema, the tokenizer's name and weight hash, and the bits per token.
"""

import json
import os
import struct
from functools import cache
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from vidtok.codec.container import Header
from vidtok.errors import UserError, one_line
from vidtok.hub import PRETRAINED, describe_weights, hash_file

SCHEMA = "vidtok.prior/2"
FILE = "prior.safetensors"  # in the folder of a tokenizer
ONE = 32  # activation 1 in fixed point
LARGEST = 127  # largest activation
NAT = 256  # one nat of log odds in fixed point
HISTORY = 6  # inputs for each bit, see `history_inputs`
MAX_TOKENS = 1 << 18  # largest number of tokens of a latent frame, which bounds the memory
_FINE = 32  # resolution of averages over time, relative to that of activations
OWN = 8 + HISTORY + 8 + 1  # number of inputs of a plane's network that its own bits give, see `PriorState`
AROUND = (0, 1, 2, 3, 5, 6, 7, 8)  # places of the eight neighbors in a 3 x 3 neighborhood
SIDES = (1, 7, 3, 5)  # places of the four nearest
_UNIT = ONE * _FINE  # average 1
_SPANS = (4, 24, 6, 32)  # latents over which the averages are taken: fast, slow; fast, slow of flips


def first_history(signs):
    """Return the state of `next_history` before the first latent. signs: integers of a latent's shape, any values."""
    zero = 0 * signs
    return [zero, zero, zero, zero, zero + _UNIT // 8, zero + _UNIT // 8, zero]


def next_history(state, signs):
    """Update the state with a latent. signs: its bits as -1 and +1, integers of NumPy or torch.

    An average over n latents is that of all latents as long as these are fewer than n. It starts from a usual value,
    which counts as one latent, or two for flips.
    """
    before, _, *averages, age = state
    flip = abs(signs - before) * (_UNIT // 2)
    for i, (value, span) in enumerate(zip((signs * _UNIT, signs * _UNIT, flip, flip), _SPANS, strict=True)):
        step = (value - averages[i]) // ((age + 2).clip(max=span))
        averages[i] = averages[i] + (step if i < 2 else step * (age > 0))  # the first latent is no flip
    return [signs, before, *averages, age + 1]


def history_inputs(state) -> list:
    """Return the network's inputs in units of 1 / `ONE`: the last latent; the one before and both averages of the bits,
    as agreement with the last; both averages of flips.

    Flips are multiplied by 3, since they are rare and their rate is the most informative input.
    """
    before, before2, mean, slow, flips, slow_flips, _ = state
    agreement = [before * before2 * ONE, before * mean // _FINE, before * slow // _FINE]
    return [before * ONE, *agreement, flips * 3 // _FINE, slow_flips * 3 // _FINE]


def last_signs(state):
    """Return the bits of the last latent as -1 and +1; -1 if there is none."""
    return state[0] - (state[0] == 0) * 1


class Layer:
    """Integer linear layer, or a convolution whose inputs are the 3 x 3 neighborhood, position by position.

    Args:
        weight: int8 [outputs, inputs]. shift: [outputs], number of fractional bits of the weights. bias: int32
            [outputs], in units of a product.

    Raises:
        ValueError: a sum could exceed the integers that float32 represents exactly.
    """

    def __init__(self, weight: np.ndarray, shift: np.ndarray, bias: np.ndarray):
        most = np.abs(weight.astype(np.int64)).sum(1) * LARGEST + np.abs(bias.astype(np.int64))
        if (most + (1 << shift.astype(np.int64)) >= 1 << 24).any() or (shift < 1).any() or (shift > 20).any():
            raise ValueError("its sums could exceed 24 bits")
        self.weight = np.ascontiguousarray(weight.T, np.float32)
        self.scale = (0.5 ** shift.astype(np.float64)).astype(np.float32)
        self.bias = bias.astype(np.float32)

    def round(self, sums: np.ndarray, lowest: int) -> np.ndarray:
        """Rescale sums of products to activations, clipped to at least `lowest`."""
        return np.clip(np.floor((sums + self.bias) * self.scale + np.float32(0.5)), lowest, LARGEST)


class Prior:
    """Prior network of one tokenizer, see the top of this file.

    Args:
        file: file of its weights.

    Attributes:
        model, weight_hash: name and weight hash of the tokenizer. bits: bits per token. hash: hash of the file.

    Raises:
        ValueError: the file is damaged or isn't a prior.
    """

    def __init__(self, file: Path):
        self.hash = hash_file(file)
        try:
            data = file.read_bytes()
            (length,) = struct.unpack("<Q", data[:8])
            about = json.loads(data[8 : 8 + length])["__metadata__"]
            if about["schema"] != SCHEMA:
                raise ValueError(f"its schema is {about['schema']!r}, and this vidtok reads {SCHEMA!r}")
            self.model, self.weight_hash, self.bits = about["model"], about["weight_hash"], int(about["bits"])
            self._build(load(data))
        except (ValueError, KeyError, struct.error, SafetensorError) as error:
            raise ValueError(f"{file} holds no prior ({type(error).__name__}: {one_line(error)})") from error

    def _build(self, tensors: dict[str, np.ndarray]) -> None:
        def layer(name: str) -> Layer:
            return Layer(*(tensors[f"{name}.{part}"] for part in ("weight", "shift", "bias")))

        blocks = sum(name.startswith("blocks.") and name.endswith(".0.weight") for name in tensors)
        self.stem = layer("stem")
        self.blocks = [[layer(f"blocks.{block}.{i}") for i in range(2)] for block in range(blocks)]
        self.planes = [[layer(f"planes.{plane}.{i}") for i in range(3)] for plane in range(self.bits)]
        self.channels = self.stem.weight.shape[1]
        inputs = [plane[0].weight.shape[0] for plane in self.planes]
        outputs = {plane[2].weight.shape[1] for plane in self.planes}
        if inputs != [self.channels + OWN + 10 * plane for plane in range(self.bits)] or outputs != {2}:
            raise ValueError("its layers don't fit together")

    def features(self, inputs: np.ndarray) -> np.ndarray:
        """Compute the features [h, w, C] from the inputs [h, w, I] of a latent frame."""
        x = self.stem.round(_convolve(inputs, self.stem), -LARGEST)
        for first, second in self.blocks:
            y = first.round(_convolve(x, first), 0)
            x = np.clip(x + second.round(_convolve(y, second), -LARGEST), -LARGEST, LARGEST)
        return x


def _convolve(x: np.ndarray, layer: Layer) -> np.ndarray:
    """Convolve with 3 x 3 kernels: float32 [h, w, I] -> sums of products, float32 [h, w, outputs]."""
    h, w, inputs = x.shape
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))
    sums = np.zeros((h * w, layer.weight.shape[1]), np.float32)
    for tap in range(9):
        part = padded[tap // 3 : tap // 3 + h, tap % 3 : tap % 3 + w].reshape(h * w, inputs)
        sums += part @ layer.weight[tap * inputs : (tap + 1) * inputs]
    return sums.reshape(h, w, -1)


class PriorState:
    """Predictor of the bits of one chunk of tokens, latent by latent.

    Args:
        prior: the network. bits: bits per token.
        grid: number of rows and columns of tokens.

    Raises:
        ValueError: the prior is for another number of bits, or the grid has more than `MAX_TOKENS` tokens.
    """

    def __init__(self, prior: Prior, bits: int, grid: tuple[int, int]):
        h, w = self._grid = grid
        if bits != prior.bits:
            raise ValueError(f"the prior is for tokens of {prior.bits} bits, not {bits}")
        if h * w > MAX_TOKENS:
            raise ValueError(f"a prior is for frames of at most {MAX_TOKENS} tokens, not {h * w}: use adaptive")
        self._prior, self._history = prior, first_history(np.zeros((prior.bits, h, w), np.int64))
        checker = (np.arange(h)[:, None] + np.arange(w)).reshape(-1) % 2
        self._places = [np.flatnonzero(checker == color) for color in (0, 1)]
        # Inputs of the planes' networks, in this order. The features. From the own plane: the eight neighbors in the
        # previous latent, as agreement with the token's own bit there; the history at the position; for each of the
        # four neighbors whether its bit is unchanged, and whether it agrees with the token's bit in the previous
        # latent; the color. From each earlier plane: the bit, and for each place of the 3 x 3 neighborhood whether its
        # bit is unchanged.
        self._fixed = prior.channels + OWN
        self._inputs = np.zeros((h * w, self._fixed + 10 * prior.bits), np.float32)
        self._inputs[self._places[1], self._fixed - 1] = ONE
        self._fill_features()

    def odds(self, plane: int, color: int, planes: np.ndarray) -> np.ndarray:
        """Compute the log odds that bits of a pass differ from the previous latent's, or from 0 in the first latent.

        Args:
            plane: number of the plane. color: color of the pass on the checkerboard, first 0, then 1.
            planes: uint8 [bits, h, w] of the latent; bits that aren't known yet may have any value.

        Returns:
            int64 [places], in units of 1 / `NAT`.
        """
        channels = self._prior.channels
        last = last_signs([self._history[0][plane]]).reshape(-1)
        if color == 0:
            history = history_inputs([part[plane] for part in self._history])
            own = self._inputs[:, channels : channels + 8 + HISTORY]
            own[:, :8] = _neighbors(history[0])[:, AROUND] * last[:, None]
            own[:, 8:] = np.stack(history, 2).reshape(-1, HISTORY)
            if plane:
                signs, same = self._compared(plane - 1, planes)
                earlier = self._inputs[:, self._fixed + 10 * (plane - 1) :]
                earlier[:, 0] = signs.reshape(-1)
                earlier[:, 1:10] = _neighbors(same)
        rows = self._places[color]
        inputs = self._inputs[rows, : self._fixed + 10 * plane]
        if color:
            signs, same = (_neighbors(part)[rows][:, SIDES] for part in self._compared(plane, planes))
            inputs[:, self._fixed - 9 : self._fixed - 1] = np.concatenate([same, signs * last[rows, None]], 1)
        first, second, third = self._prior.planes[plane]
        x = first.round(inputs @ first.weight, 0)
        x = second.round(x @ second.weight, 0)
        change, one = ((x @ third.weight + third.bias).astype(np.float64) * third.scale).T
        return np.floor((change - last[rows] * one) * (NAT // ONE) + 0.5).astype(np.int64)

    def history(self, plane: int, color: int, last: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Quantize the averages over time at the positions of a pass.

        Args:
            plane, color: as in `odds`. last: bits of the previous latent, 0 and 1.

        Returns:
            int64 [places]: how often the bit flips, 0 .. 11; how often it had the value of `last`, 0 .. 8.
        """
        mean, flips = (self._history[i][plane].reshape(-1)[self._places[color]] for i in (2, 4))
        stay = (mean * (2 * last.astype(np.int64) - 1) + ONE * _FINE) >> 8
        return np.minimum(flips >> 6, 11), np.clip(stay, 0, 8)

    def _compared(self, plane: int, planes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (bits of a plane as -`ONE` and `ONE`; -`ONE` where a bit has changed, `ONE` where it hasn't)."""
        signs = (planes[plane].astype(np.int64) * 2 - 1) * ONE
        return signs, signs * last_signs([self._history[0][plane]])

    def next(self, planes: np.ndarray) -> None:
        """Advance to the next latent. planes: uint8 [bits, h, w] of the complete one."""
        self._history = next_history(self._history, planes.astype(np.int64) * 2 - 1)
        self._fill_features()

    def _fill_features(self) -> None:
        inputs = np.concatenate([*history_inputs(self._history), np.full((1, *self._grid), ONE)]).astype(np.float32)
        features = self._prior.features(np.ascontiguousarray(inputs.transpose(1, 2, 0)))
        self._inputs[:, : self._prior.channels] = features.reshape(-1, self._prior.channels)


def _neighbors(plane: np.ndarray) -> np.ndarray:
    """Gather the zero-padded 3 x 3 neighborhood of each position: [h, w] -> [h w, 9]."""
    h, w = plane.shape
    padded = np.pad(plane, 1)
    taps = [padded[tap // 3 : tap // 3 + h, tap % 3 : tap % 3 + w].reshape(-1) for tap in range(9)]
    return np.stack(taps, 1)


@cache
def load_prior(file: Path) -> Prior:
    """Load a prior; later calls return the same object."""
    return Prior(file)


def find_prior(model: str, weight_hash: str, wanted: str | None = None, file: str | os.PathLike | None = None) -> Prior:
    """Find the prior of a tokenizer.

    Args:
        model, weight_hash: name of the tokenizer, and the hash of its weights.
        wanted: hash that the prior must have; None, any.
        file: file of the prior; None, a shipped one.

    Raises:
        ValueError: the file is damaged, isn't a prior, is for another tokenizer or has another hash.
        UserError: no such file, or no prior is shipped for these weights.
    """
    made = f"{model!r} with {describe_weights(weight_hash)}"
    if file is not None:
        if not Path(file).is_file():
            raise UserError(f"{file}: no such file")
        prior = load_prior(Path(file))
        if prior.weight_hash != weight_hash:
            theirs = describe_weights(prior.weight_hash)
            raise ValueError(f"{file} is the prior of {prior.model!r} with {theirs}, not of {made}")
        if wanted not in (None, prior.hash):
            raise ValueError(f"{file} is the prior {prior.hash}, and {wanted} compressed the video: give that one")
        return prior
    for path in sorted(PRETRAINED.glob(f"*/{FILE}")):
        prior = load_prior(path)
        if prior.weight_hash == weight_hash and wanted in (None, prior.hash):
            return prior
    if wanted is not None:
        raise UserError(f"compressed by the prior {wanted} of {made}, which isn't shipped: give its file (--prior)")
    raise UserError(f"no prior is shipped for {made}: use --entropy adaptive, or train one (vidtok train prior)")


def prior_of(header: Header, file: str | os.PathLike | None = None) -> Prior | None:
    """Find the prior that a video was compressed with, None if without one; file and errors as in `find_prior`."""
    if header.prior is None:
        return None
    return find_prior(header.model, header.weight_hash, header.prior, file)
