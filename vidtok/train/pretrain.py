"""Masked pretraining of a video transformer: predict the token ids of masked cells ("tokens as output", MAGVIT-v2).

The paper pretrains on SSv2 by BEVT's recipe (Wang et al. 2022, arXiv 2112.01529): a transformer sees the pixels of a
clip in which blocks of cells are masked at all times, and predicts the ids of their tokens. Here its input may also be
tokens, which load many times faster. Each id is predicted as two factors (token factorization), by linear layers on the
features of its cell.

Legend: B batch, T H W video, t h w grid of cells, D width, m patch_merge, N cells, V vocabulary of a factor.
"""

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from vidtok.configs.compose import to_dict
from vidtok.errors import nearest
from vidtok.generator.sampling import PerSampleRNG
from vidtok.generator.training import Batch, build_generator_batches, encode_batch
from vidtok.heads import Head
from vidtok.heads.embed import merge_patches
from vidtok.heads.factory import build_head
from vidtok.heads.transformer import VideoTransformer
from vidtok.quantize.bits import factor_bits, factorize_ids
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import build_schedule
from vidtok.train.run_folder import RunFolder, check_fingerprint
from vidtok.train.state import build_state

INPUTS = ("tokens", "codes", "pixels")


def random_cells(grid: tuple[int, int], count: int, rng: PerSampleRNG) -> Tensor:
    """Mask `count` random cells of each sample: bool [B, h, w] (tube masking, VideoMAE)."""
    order_BN = rng.uniform(grid[0] * grid[1]).argsort(1).argsort(1)
    return (order_BN < count).view(-1, *grid)


def blocks(grid: tuple[int, int], count: int, rng: PerSampleRNG) -> Tensor:
    """Mask `count` cells of each sample in rectangles: bool [B, h, w] (block masking, BEiT and BEVT).

    Cells are ranked by the first of 16 random rectangles that covers them; ties, and cells that none covers, at random.
    """
    (h, w), n = grid, 16
    area = rng.uniform(n) * (0.4 - 0.1) + 0.1  # of the grid
    aspect = torch.exp((2 * rng.uniform(n) - 1) * math.log(3))
    height = (area * h * w * aspect).sqrt().round().clamp(1, h)
    width = (area * h * w / aspect).sqrt().round().clamp(1, w)
    top = (rng.uniform(n) * (h - height + 1)).floor()
    left = (rng.uniform(n) * (w - width + 1)).floor()
    y, x = torch.arange(h, device=top.device)[:, None], torch.arange(w, device=top.device)
    top, left, height, width = (side[..., None, None] for side in (top, left, height, width))
    inside_Bnhw = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    first_Bhw = torch.where(inside_Bnhw, torch.arange(n, device=top.device).view(-1, 1, 1), n).amin(1)
    rank_BN = (first_Bhw.flatten(1) + rng.uniform(h * w)).argsort(1).argsort(1)
    return (rank_BN < count).view(-1, h, w)


MASKS: dict[str, Callable[[tuple[int, int], int, PerSampleRNG], Tensor]] = {"tube": random_cells, "block": blocks}


class MaskedPretraining(nn.Module):
    """A backbone with a mask embedding and one linear layer for both factors of the ids in a cell.

    Only the backbone is saved, as a head without classes.

    Args:
        backbone: a transformer head on tokens, codes or pixels.
        bits: log2 of the codebook size, a whole number.
        mask: kind of mask, "block" or "tube"; both mask a cell at all times.
        mask_ratio: share of the cells that is masked.

    Raises:
        ValueError: an unknown kind of mask, a ratio that masks no cell or all, or another kind of head.
    """

    def __init__(self, backbone: Head, bits: int, mask: str = "block", mask_ratio: float = 0.75):
        super().__init__()
        if not isinstance(backbone, VideoTransformer):
            kind = backbone.config.net["kind"]
            raise ValueError(f"head {kind!r} has no features for each cell: give one of kind transformer")
        if mask not in MASKS:
            raise ValueError(f"unknown mask {mask!r}: {nearest(mask, MASKS)}")
        self.backbone, self.bits, self.mask = backbone, bits, mask
        self.merge = backbone.embed.patch_merge
        _, h, w = backbone.config.grid
        self.grid = h // self.merge, w // self.merge
        self.count = round(mask_ratio * self.grid[0] * self.grid[1])
        if not 0 < self.count < self.grid[0] * self.grid[1]:
            cells = f"{self.grid[0]} x {self.grid[1]}"
            raise ValueError(f"mask_ratio={mask_ratio} masks {self.count} of {cells} cells: it must leave some of each")
        self.mask_embed = nn.Parameter(torch.randn(backbone.num_features) * 0.02)
        self.sizes = [2**factor for factor in factor_bits(bits)]
        self.predict = nn.Linear(backbone.num_features, self.merge**2 * sum(self.sizes))

    @property
    def device(self) -> torch.device:
        return self.mask_embed.device

    def forward(self, x: Tensor, ids_Bthw: Tensor, seed_B: Tensor) -> dict[str, Tensor]:
        """Compute the training terms.

        Args:
            x: input of the backbone.
            ids_Bthw: int64 ids of the clip's tokens.
            seed_B: int64 [B], seeds of the masks.

        Returns:
            cross_entropy: of a factor of a masked id in nats. bits: of a masked id. accuracy: share of masked ids whose
            two factors are both predicted.
        """
        x_BthwD = self.backbone.embed(x)
        masked_Bhw = MASKS[self.mask](self.grid, self.count, PerSampleRNG(seed_B))
        x_BthwD = torch.where(masked_Bhw[:, None, ..., None], self.mask_embed, x_BthwD)
        cells_BthwD = self.backbone.encode_cells(x_BthwD)
        masked_Bthw = masked_Bhw[:, None].expand(cells_BthwD.shape[:-1])
        # All samples have as many masked cells, so that a mean over them does not depend on how a batch is sharded.
        logits = self.predict(self.backbone.norm(cells_BthwD[masked_Bthw])).unflatten(-1, (self.merge**2, -1)).float()
        targets = merge_patches(ids_Bthw[..., None], self.merge)[masked_Bthw]
        pairs = list(zip(logits.split(self.sizes, -1), factorize_ids(targets, self.bits), strict=True))
        losses = [F.cross_entropy(factor.flatten(0, -2), target.flatten()) for factor, target in pairs]
        right = torch.stack([factor.argmax(-1) == target for factor, target in pairs]).all(0)
        total = losses[0] + losses[1]
        return {"cross_entropy": total / 2, "bits": total.detach() / math.log(2), "accuracy": right.float().mean()}

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay; see `Head.no_weight_decay`."""
        return {"mask_embed", *(f"backbone.{name}" for name in self.backbone.no_weight_decay())}

    def save_pretrained(self, folder: Path) -> None:
        """Write the backbone, which `Head.from_pretrained` loads."""
        self.backbone.save_pretrained(folder)


class PretrainingTask:
    """Training task of masked pretraining; see `vidtok.train.task` for the interface and `Batch` for batches.

    Args:
        tokenizer: encodes clips.
        reads_pixels: whether the backbone reads the clips in place of their ids.
        held_out: a validation batch; None, no validation.
    """

    def __init__(self, tokenizer: VideoTokenizer, reads_pixels: bool = False, held_out: Batch | None = None):
        self.tokenizer, self.reads_pixels, self.held_out = tokenizer, reads_pixels, held_out

    def terms(self, model: nn.Module, batch: Batch, step: int) -> tuple[dict[str, Tensor], None]:
        batch = encode_batch(batch, self.tokenizer)
        return model(batch["video" if self.reads_pixels else "ids"], batch["ids"], batch["seed"]), None

    def total(self, terms: dict[str, Tensor], step: int) -> Tensor:
        return terms["cross_entropy"]

    def validate(self, model: Any, run: RunFolder, step: int) -> str | None:
        """Compute the terms of the held-out batch, whose masks stay the same."""
        if self.held_out is None:
            return None
        batch = {name: value.to(model.device) for name, value in self.held_out.items()}
        scalars = {name: value.item() for name, value in self.terms(model, batch, step)[0].items()}
        run.save_scalars({f"held_out_{name}": value for name, value in scalars.items()}, step)
        return f"{len(batch['seed'])} held out: {self.progress(scalars)}"

    def progress(self, scalars: dict[str, float]) -> str:
        return f"bits per masked token {scalars['bits']:.2f}  accuracy {scalars['accuracy']:.3f}"


def build_pretraining(cfg: DictConfig) -> dict:
    """Build the arguments of `vidtok.train.loop.train` from the config of `vidtok train pretrain`.

    Raises:
        ValueError: settings that don't fit together, the tokenizer or the data.
    """
    plain = to_dict(cfg)
    data, reads, seed = plain["data"] | {"classes": []}, plain["input"], plain["seed"]
    if reads not in INPUTS:
        raise ValueError(f"unknown input {reads!r}: {nearest(reads, INPUTS)}")
    if reads == "pixels" and data["features"] is not None:
        raise ValueError("input=pixels reads videos: give data.source= in place of data.features=")
    tokenizer = VideoTokenizer.from_pretrained(plain["tokenizer"])
    if tokenizer.bits != int(tokenizer.bits):
        raise ValueError(
            f"token factorization needs a codebook of a whole number of bits, and {plain['tokenizer']} has "
            f"{tokenizer.bits:.2f}"
        )
    batches = build_generator_batches(data, data["split"], data["batch_size"], tokenizer, seed)[0]
    task = PretrainingTask(tokenizer, reads == "pixels")
    if data["held_out"]:
        count = data["held_out_samples"]
        task.held_out = build_generator_batches(data, data["held_out"], count, tokenizer, seed)[0][0]
    grid = tuple(encode_batch(batches.first(1), tokenizer)["ids"].shape[1:])
    own = {"bits": tokenizer.bits, "channels": None, "stride": tuple(tokenizer.stride)}
    torch.manual_seed(seed)  # of the initial weights
    backbone = build_head(cfg, cfg.name, reads, 0, grid, plain["patch_merge"], own, plain["head_options"])
    backbone.record(
        tokenizer=None if reads == "pixels" else {"name": tokenizer.config.name, "weight_hash": tokenizer.weight_hash},
        protocol=None if data["features"] else {key: data[key] for key in ("frames", "stride", "size", "fps")},
    )
    model = MaskedPretraining(backbone, int(tokenizer.bits), plain["mask"], plain["mask_ratio"])
    return {"task": task, "state": build_state(model, plain), "batches": batches, **build_schedule(plain)}


def check_pretraining(cfg: DictConfig, tokenizer: VideoTokenizer) -> None:
    """Check the fingerprint of a run folder: its tokenizer, data and backbone.

    Raises:
        ValueError: the folder was created with others. Its checkpoint might load, and continue with wrong tokens.
    """
    plain = to_dict(cfg)
    data = {key: value for key, value in plain["data"].items() if key not in ("batch_size", "cache", "workers")}
    kept = ("input", "head", "head_options", "patch_merge", "mask", "mask_ratio", "seed")
    facts = {key: plain[key] for key in kept} | {f"data.{key}": value for key, value in data.items()}
    facts |= {"command": "train pretrain", "tokenizer": tokenizer.weight_hash}
    check_fingerprint(Path(cfg.run), facts)
