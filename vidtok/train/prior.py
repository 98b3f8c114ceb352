"""Train the prior of a tokenizer, the network by which `vidtok compress --entropy prior` predicts bits of tokens.

Weights and activations are rounded in the forward pass as `vidtok.codec.prior` stores and computes them, with
straight-through gradients: what is trained is what codes.

Legend: B latent frames, K bits of a token, h w grid of tokens, C channels, H units of each plane's network.
"""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from safetensors.torch import save_file
from torch import Tensor, nn

from vidtok.codec.prior import (
    AROUND,
    FILE,
    HISTORY,
    LARGEST,
    ONE,
    OWN,
    SCHEMA,
    SIDES,
    first_history,
    history_inputs,
    last_signs,
    next_history,
)
from vidtok.configs.compose import to_dict
from vidtok.generator.training import Batch, build_generator_batches, encode_batch
from vidtok.quantize.lfq import unpack_bits
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import build_schedule
from vidtok.train.run_folder import RunFolder, check_fingerprint
from vidtok.train.state import build_state

CHANGE = -1.5  # log odds that a bit changes, at first
MAX_SHIFT = 14  # binary places of a weight


def straight_through(x: Tensor, rounded: Tensor) -> Tensor:
    return x + (rounded - x).detach()


class _Quantize(torch.autograd.Function):
    """Fewer passes over memory than `straight_through`, which take as long as the convolutions."""

    @staticmethod
    def forward(ctx, x: Tensor, lowest: int) -> Tensor:
        whole = (x * ONE).add_(0.5).floor_()
        y = whole.clamp(lowest, LARGEST)
        ctx.save_for_backward(torch.sign(whole - y).to(torch.int8))
        ctx.two_sided = lowest < 0
        return y.mul_(1 / ONE)

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, None]:
        (side,) = ctx.saved_tensors
        keep = (side == 0) | (side > 0) & (grad > 0)
        if ctx.two_sided:
            keep |= (side < 0) & (grad < 0)
        return grad * keep, None


def quantize_activations(x: Tensor, lowest: int) -> Tensor:
    """Round to multiples of 1 / `ONE` in lowest .. `LARGEST`, with a straight-through gradient.

    Outside the range the gradient passes where it leads back inside: weights grow in training, and units that are stuck
    at a bound would stay there. Below a bound of 0 it is that of a rectifier.
    """
    return _Quantize.apply(x, lowest)


class IntegerWeights(nn.Module):
    """Weights and biases that are rounded as they are stored: [outputs, ...] with a shift for each output."""

    mask: Tensor | None

    def __init__(self, *shape: int, mask: Tensor | None = None):
        super().__init__()
        fan_in = math.prod(shape[1:]) if mask is None else mask.flatten(1).sum(1).view(-1, *[1] * (len(shape) - 1))
        self.weight = nn.Parameter((torch.rand(shape) * 2 - 1) / fan_in**0.5 * math.sqrt(3 / 2))
        self.bias = nn.Parameter(torch.zeros(shape[0]))
        self.register_buffer("mask", mask, persistent=False)

    def rounded(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return (whole weights, shifts [outputs], whole biases), floats without gradient but for rounding."""
        weight = self.weight if self.mask is None else self.weight * self.mask
        largest = weight.detach().flatten(1).abs().amax(1).clamp_min(1e-9)
        shift = (LARGEST / largest).log2().floor().clamp(1, MAX_SHIFT)
        weight = weight * (2**shift).view(-1, *[1] * (weight.ndim - 1))
        bias = self.bias * 2**shift * ONE
        weight = straight_through(weight, weight.round().clamp(-LARGEST, LARGEST))
        return weight, shift, straight_through(bias, bias.round())

    def forward(self) -> tuple[Tensor, Tensor]:
        """Return the rounded weights and biases."""
        weight, shift, bias = self.rounded()
        return weight / (2**shift).view(-1, *[1] * (weight.ndim - 1)), bias / (2**shift * ONE)


def _convolve(x: Tensor, layer: IntegerWeights) -> Tensor:
    weight, bias = layer()
    return F.conv2d(x, weight, bias, padding=1)


def _shift(x: Tensor, place: int) -> Tensor:
    """Move the neighbors at a place of the 3 x 3 neighborhood to the center; zeros come from outside."""
    h, w = x.shape[-2:]
    row, column = divmod(place, 3)
    return F.pad(x, (1, 1, 1, 1))[..., row : row + h, column : column + w]


class PriorNetwork(nn.Module):
    """The network of `vidtok.codec.prior.Prior`, for training.

    Args:
        tokenizer: whose tokens it predicts.
        channels: C. blocks: number of residual blocks. hidden: H.
    """

    def __init__(self, tokenizer: dict, bits: int, channels: int = 64, blocks: int = 2, hidden: int = 40):
        super().__init__()
        self.tokenizer, self.bits, self.hidden = tokenizer, bits, hidden
        self.stem = IntegerWeights(channels, HISTORY * bits + 1, 3, 3)
        parts = (nn.ModuleList(IntegerWeights(channels, channels, 3, 3) for _ in range(2)) for _ in range(blocks))
        self.blocks = cast("Sequence[Sequence[IntegerWeights]]", nn.ModuleList(parts))
        # Inputs of plane p's network, see `PriorState`: those of all planes, and ten of each plane before.
        inputs = channels + OWN
        known = torch.arange(10 * bits) < 10 * torch.arange(bits)[:, None]
        mask = torch.cat([torch.ones(bits, inputs), known.float()], 1).repeat_interleave(hidden, 0)
        layers = [
            IntegerWeights(bits * hidden, inputs + 10 * bits, mask=mask),
            IntegerWeights(bits * hidden, hidden),
            IntegerWeights(2 * bits, hidden),
        ]
        self.planes = cast("Sequence[IntegerWeights]", nn.ModuleList(layers))
        with torch.no_grad():
            self.planes[2].bias[::2] = CHANGE
            for _, second in self.blocks:
                second.weight.mul_(0.3)  # so that the sums of many blocks stay in the range

    @property
    def device(self) -> torch.device:
        return self.planes[0].weight.device

    def forward(self, history: list[Tensor], signs_BKhw: Tensor) -> Tensor:
        """Log odds [B, K, h, w] that the bits of latent frames differ from those one latent before.

        Args:
            history: state of `next_history` before each frame, each [B, K, h, w].
            signs_BKhw: bits of the frames, -1 and 1.
        """
        inputs = torch.cat(history_inputs(history), 1).float() / ONE
        inputs = F.pad(inputs, (0, 0, 0, 0, 0, 1), value=1.0)
        x = quantize_activations(_convolve(inputs, self.stem), -LARGEST)
        for first, second in self.blocks:
            y = quantize_activations(_convolve(x, first), 0)
            x = quantize_activations(x + quantize_activations(_convolve(y, second), -LARGEST), -LARGEST)
        sums = self._first_sums(x, history, signs_BKhw)
        x = quantize_activations(sums, 0)
        for layer in (0, 1):
            weight, bias = self.planes[1 + layer]()
            x = F.conv2d(x, weight[..., None, None], bias, groups=self.bits)
            x = quantize_activations(x, 0) if layer == 0 else x
        return x[:, ::2] - last_signs(history) * x[:, 1::2]

    def _first_sums(self, x_BChw: Tensor, history: list[Tensor], signs_BKhw: Tensor) -> Tensor:
        """Sums of the first layers of all planes' networks [B, K H, h, w], of all places whatever their color."""
        weight, bias = self.planes[0]()
        sizes = [x_BChw.shape[1], 8, HISTORY, 4, 4, 1, 10 * self.bits]
        features, around, own, unchanged, sides, color, earlier = weight.split(sizes, 1)
        earlier = earlier.unflatten(1, (self.bits, 10))
        h, w = x_BChw.shape[2:]
        checker = torch.arange(h, device=x_BChw.device)[:, None] + torch.arange(w, device=x_BChw.device)
        checker = (checker % 2).float()
        signs, last = signs_BKhw.float(), last_signs(history).float()
        same = signs * last
        parts = [part.float() / ONE for part in history_inputs(history)]
        agreement = [last * _shift(parts[0], place) for place in AROUND]
        known = [checker * _shift(same, place) for place in SIDES]
        known += [checker * last * _shift(signs, place) for place in SIDES]
        inputs = torch.stack([*agreement, *parts, *known], 2).flatten(1, 2)
        weights = torch.cat([around, own, unchanged, sides], 1)[..., None, None]
        points = torch.cat([features, earlier[:, :, 0]], 1)[..., None, None]
        sums = F.conv2d(torch.cat([x_BChw, signs], 1), points, bias)
        sums = sums + F.conv2d(same, earlier[:, :, 1:].unflatten(2, (3, 3)), padding=1)
        sums = sums + F.conv2d(inputs, weights, groups=self.bits)
        return sums + color.view(1, -1, 1, 1) * checker

    @torch.no_grad()
    def save_pretrained(self, folder: Path) -> None:
        """Write `FILE`, which `vidtok.codec.prior.Prior` loads."""
        tensors: dict[str, Tensor] = {}

        def add(name: str, weight: Tensor, shift: Tensor, bias: Tensor) -> None:
            parts = {"weight": weight.to(torch.int8), "shift": shift.to(torch.uint8), "bias": bias.to(torch.int32)}
            tensors.update({f"{name}.{part}": value.cpu().contiguous() for part, value in parts.items()})

        named: list[tuple[str, IntegerWeights]] = [("stem", self.stem)]
        named += [(f"blocks.{i}.{j}", layer) for i, block in enumerate(self.blocks) for j, layer in enumerate(block)]
        for name, layer in named:
            weight, shift, bias = layer.rounded()
            add(name, weight.permute(0, 2, 3, 1).flatten(1), shift, bias)
        for i, layer in enumerate(self.planes):
            for plane, parts in enumerate(zip(*(part.chunk(self.bits) for part in layer.rounded()), strict=True)):
                inputs = parts[0].shape[1] - 10 * (self.bits - plane) if i == 0 else self.hidden
                add(f"planes.{plane}.{i}", parts[0][:, :inputs], *parts[1:])
        folder.mkdir(parents=True, exist_ok=True)
        metadata = {"schema": SCHEMA, "bits": str(self.bits), **self.tokenizer}
        save_file(tensors, folder / FILE, metadata)


class PriorTask:
    """Training task of a prior; see `vidtok.train.task.Task` for the interface and `Batch` for batches.

    Args:
        tokenizer: encodes clips.
        frames: number of random latents of each clip that are predicted in a step.
        held_out: a validation batch; None, no validation.
    """

    def __init__(self, tokenizer: VideoTokenizer, frames: int, held_out: Batch | None = None):
        self.tokenizer, self.frames, self.held_out = tokenizer, frames, held_out

    def terms(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor], None]:
        ids_Bthw = encode_batch(batch, self.tokenizer)["ids"]
        frames = torch.rand(ids_Bthw.shape[:2], device=ids_Bthw.device).argsort(1)[:, : self.frames]
        terms = self._terms(model, ids_Bthw, frames)
        return terms["cross_entropy"], terms, None

    def _terms(self, model: nn.Module, ids_Bthw: Tensor, frames_Bn: Tensor) -> dict[str, Tensor]:
        """Compute the terms of the latents `frames_Bn` of each clip."""
        signs_BKthw = unpack_bits(ids_Bthw, math.ceil(self.tokenizer.bits)).int() * 2 - 1
        state, states = first_history(signs_BKthw[:, :, 0]), []
        for signs in signs_BKthw.unbind(2):
            states.append(torch.stack(state, 1))
            state = next_history(state, signs)
        clips = torch.arange(len(ids_Bthw), device=ids_Bthw.device)[:, None]
        history = torch.stack(states, 1)[clips, frames_Bn].flatten(0, 1)  # [B n, HISTORY, K, h, w]
        signs_BKhw = signs_BKthw.transpose(1, 2)[clips, frames_Bn].flatten(0, 1)
        state = list(history.unbind(1))
        odds = model(state, signs_BKhw).float()
        loss = F.softplus(odds * (signs_BKhw * last_signs(state))).mean()
        return {"cross_entropy": loss, "bits": loss.detach() * self.tokenizer.bits / math.log(2)}

    def validate(self, model: Any, run: RunFolder, step: int) -> str | None:
        """Compute the terms of all latents of the held-out batch."""
        if self.held_out is None:
            return None
        batch = {name: value.to(model.device) for name, value in self.held_out.items()}
        ids = encode_batch(batch, self.tokenizer)["ids"]
        frames = torch.arange(ids.shape[1], device=ids.device).expand(1, -1)
        parts = [self._terms(model, clip, frames) for clip in ids.split(1)]
        scalars = {name: torch.stack([part[name] for part in parts]).mean().item() for name in parts[0]}
        run.save_scalars({f"held_out_{name}": value for name, value in scalars.items()}, step)
        return f"{len(ids)} held out: {self.progress(scalars)}"

    def progress(self, scalars: dict[str, float]) -> str:
        return f"bits per token {scalars['bits']:.2f}"


def build_prior_training(cfg: DictConfig) -> dict:
    """Build the arguments of `vidtok.train.loop.train` from the config of `vidtok train prior`.

    Raises:
        ValueError: settings that don't fit together, the tokenizer or the data.
    """
    plain = to_dict(cfg)
    data, seed = plain["data"] | {"classes": []}, plain["seed"]
    tokenizer = VideoTokenizer.from_pretrained(plain["tokenizer"])
    batches = build_generator_batches(data, data["split"], data["batch_size"], tokenizer, seed)[0]
    task = PriorTask(tokenizer, plain["frames_per_clip"])
    if data["held_out"]:
        count = data["held_out_samples"]
        task.held_out = build_generator_batches(data, data["held_out"], count, tokenizer, seed)[0][0]
    torch.manual_seed(seed)  # of the initial weights
    names = {"model": tokenizer.config.name, "weight_hash": tokenizer.weight_hash}
    network = PriorNetwork(names, math.ceil(tokenizer.bits), **plain["network"])
    return {"task": task, "state": build_state(network, plain), "batches": batches, **build_schedule(plain)}


def check_prior(cfg: DictConfig, tokenizer: VideoTokenizer) -> None:
    """Check the fingerprint of a run folder: its tokenizer, data and network.

    Raises:
        ValueError: the folder was created with others.
    """
    plain = to_dict(cfg)
    data = {key: value for key, value in plain["data"].items() if key not in ("batch_size", "cache", "workers")}
    facts = {f"data.{key}": value for key, value in data.items()} | {"network": plain["network"], "seed": plain["seed"]}
    check_fingerprint(Path(cfg.run), facts | {"command": "train prior", "tokenizer": tokenizer.weight_hash})
