"""Masked pretraining of a video transformer: predict the token ids of masked cells ("tokens as output", MAGVIT-v2).

The paper pretrains on SSv2 by BEVT's recipe (Wang et al. 2022, arXiv 2112.01529): a transformer sees the pixels of a
clip in which blocks of cells are masked at all times, and predicts the ids of their tokens. Here its input may also be
tokens, which load many times faster. Each id is predicted as two factors (token factorization), by linear layers on the
features of its cell. A second target may be the features of frozen teachers: an I3D or an image classifier of timm
beside clips, or any features that were extracted from the same clips beside stored ids.

Legend: B batch, T H W video, t h w grid of cells, D width, m patch_merge, N cells, V vocabulary of a factor.
"""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from omegaconf import DictConfig
from torch import Tensor, nn

from vidtok.configs.compose import to_dict
from vidtok.datasets.loading import Shard
from vidtok.errors import nearest
from vidtok.extraction.dataset import TokenBatches, TokenDataset
from vidtok.extraction.sources import Clips
from vidtok.generator.sampling import PerSampleRNG
from vidtok.generator.training import (
    FIRST_SAMPLES,
    Batch,
    ClipBatches,
    StoredBatches,
    build_generator_batches,
    encode_batch,
)
from vidtok.heads import Head
from vidtok.heads.embed import merge_patches
from vidtok.heads.head import build_head
from vidtok.heads.transformer import VideoTransformer
from vidtok.quantize.lfq import factor_bits, factorize_ids
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.loop import build_schedule
from vidtok.train.run_folder import RunFolder, check_fingerprint
from vidtok.train.state import build_state

if TYPE_CHECKING:
    from vidtok.eval.recognition.references import ReferenceEncoder

INPUTS = ("tokens", "codes", "pixels")
EXAMPLES = 256  # clips from which mean and deviation of extracted features are taken


def random_cells(grid: tuple[int, ...], count: int, rng: PerSampleRNG) -> Tensor:
    """Mask `count` random cells of each sample: bool [B, *grid]."""
    order_BN = rng.uniform(math.prod(grid)).argsort(1).argsort(1)
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
    # Rectangles reach over the border: inside it they would mask the center far more often than the corners.
    top = (rng.uniform(n) * h - height / 2).round()
    left = (rng.uniform(n) * w - width / 2).round()
    y, x = torch.arange(h, device=top.device)[:, None], torch.arange(w, device=top.device)
    top, left, height, width = (side[..., None, None] for side in (top, left, height, width))
    inside_Bnhw = (y >= top) & (y < top + height) & (x >= left) & (x < left + width)
    first_Bhw = torch.where(inside_Bnhw, torch.arange(n, device=top.device).view(-1, 1, 1), n).amin(1)
    rank_BN = (first_Bhw.flatten(1) + rng.uniform(h * w)).argsort(1).argsort(1)
    return (rank_BN < count).view(-1, h, w)


# Block and tube masks (BEVT, VideoMAE) are the same at all times. Random ones (arXiv 2205.09113) differ from time to
# time: what is masked can then be copied from another time by a model that finds the motion.
MASKS: dict[str, Callable[..., Tensor]] = {"tube": random_cells, "block": blocks, "random": random_cells}


class Imitation(nn.Module):
    """Cosine distance of linear functions of a backbone's features to the features of one teacher.

    Each channel of the teacher is standardized. Otherwise a few channels with large means would determine the cosine.

    Args:
        dim: D of the backbone.
        examples_BCthw: features of the teacher, from which mean and standard deviation of its channels are taken.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, dim: int, examples_BCthw: Tensor):
        super().__init__()
        std, mean = torch.std_mean(examples_BCthw.float(), (0, 2, 3, 4), correction=0)
        # A channel that is silent in the examples must not outweigh the others where it isn't.
        std = std.clamp_min(max(0.1 * std.mean().item(), 1e-6))
        self.register_buffer("mean", mean.view(-1, 1, 1, 1))
        self.register_buffer("std", std.view(-1, 1, 1, 1))
        self.on_grid, self.pooled = (nn.Linear(dim, len(mean)) for _ in range(2))

    def forward(self, own_BDthw: Tensor, teacher_BCthw: Tensor, norm: nn.Module) -> Tensor:
        """Compute the mean distance on a grid and pooled.

        The finer of the two grids is averaged over the cells of the coarser one, along each axis.

        Args:
            own_BDthw: features of the backbone. norm: layer that normalizes them after they are averaged.
            teacher_BCthw: features of the teacher.
        """
        teacher_BCthw = (teacher_BCthw.float() - self.mean) / self.std
        t, h, w = (min(sides) for sides in zip(own_BDthw.shape[2:], teacher_BCthw.shape[2:], strict=True))
        own, other = (F.adaptive_avg_pool3d(x, (t, h, w)).movedim(1, -1) for x in (own_BDthw, teacher_BCthw))
        pairs = (
            (self.on_grid(norm(own)), other),
            (self.pooled(norm(own_BDthw.mean((2, 3, 4)))), teacher_BCthw.mean((2, 3, 4))),
        )
        return torch.stack([1 - F.cosine_similarity(a, b, -1).mean() for a, b in pairs]).mean()


class MaskedPretraining(nn.Module):
    """A backbone with a mask embedding and one linear layer for both factors of the ids in a cell.

    Only the backbone is saved, as a head without classes.

    Args:
        backbone: a transformer head on tokens, codes or pixels.
        bits: log2 of the codebook size, a whole number.
        mask: kind of mask: "block" or "tube", which mask a cell at all times, or "random".
        mask_ratio: share of the cells that is masked; 0, teachers are the only target.
        teachers: examples of the features of each teacher, [B, C, t, h, w], see `Imitation`.

    Raises:
        ValueError: an unknown kind of mask, a ratio that masks all cells or (without teachers) none, or another kind of
            head.
    """

    def __init__(
        self,
        backbone: Head,
        bits: int,
        mask: str = "block",
        mask_ratio: float = 0.75,
        teachers: Sequence[Tensor] = (),
    ):
        super().__init__()
        backbone = VideoTransformer.validate(backbone)
        if mask not in MASKS:
            raise ValueError(f"unknown mask {mask!r}: {nearest(mask, MASKS)}")
        self.backbone, self.bits, self.mask = backbone, bits, mask
        self.merge: int = backbone.config.input["patch_merge"]
        _, h, w = backbone.config.grid
        self.grid = h // self.merge, w // self.merge
        self.count = round(mask_ratio * self.grid[0] * self.grid[1])
        if not 0 < self.count < self.grid[0] * self.grid[1] and not (teachers and mask_ratio == 0):
            cells = f"{self.grid[0]} x {self.grid[1]}"
            hint = "it must leave some of each" if mask_ratio else "that needs a teacher"
            raise ValueError(f"mask_ratio={mask_ratio} masks {self.count} of {cells} cells: {hint}")
        if self.count:
            self.mask_embed = nn.Parameter(torch.randn(backbone.num_features) * 0.02)
            self.sizes = [2**factor for factor in factor_bits(bits)]
            self.predict = nn.Linear(backbone.num_features, self.merge**2 * sum(self.sizes))
        self.imitate = nn.ModuleList(Imitation(backbone.num_features, examples) for examples in teachers)

    @property
    def device(self) -> torch.device:
        return next(self.backbone.parameters()).device

    def forward(
        self, x: Tensor, ids_Bthw: Tensor, seed_B: Tensor, teachers: Sequence[Tensor] = ()
    ) -> dict[str, Tensor]:
        """Compute the training terms.

        Args:
            x: input of the backbone.
            ids_Bthw: int64 ids of the clip's tokens.
            seed_B: int64 [B], seeds of the masks.
            teachers: features of each teacher, [B, C, t, h, w] on any grid.

        Returns:
            cross_entropy: of a factor of a masked id in nats. bits: of a masked id. accuracy: share of masked ids whose
            two factors are both predicted. Without masks, none of these. cosine: mean distance to the teachers, see
            `Imitation`; without teachers, it is missing.
        """
        x_BthwD, terms = self.backbone.embed(x), {}
        if self.count:
            masked_Bthw = self.masks(x_BthwD.shape[1], PerSampleRNG(seed_B))
            x_BthwD = torch.where(masked_Bthw[..., None], self.mask_embed, x_BthwD)
        cells_BthwD = self.backbone.encode_cells(x_BthwD)
        if self.count:
            targets = merge_patches(ids_Bthw[..., None], self.merge)[masked_Bthw]
            terms = self.prediction_terms(cells_BthwD[masked_Bthw], targets)
        if teachers:
            own_BDthw = cells_BthwD.movedim(-1, 1).float()
            pairs = zip(self.imitate, teachers, strict=True)
            terms["cosine"] = torch.stack([part(own_BDthw, x, self.backbone.norm) for part, x in pairs]).mean()
        return terms

    def masks(self, t: int, rng: PerSampleRNG) -> Tensor:
        """Draw which cells are masked, bool [B, t, h, w]."""
        if self.mask == "random":
            return random_cells((t, *self.grid), t * self.count, rng)
        return MASKS[self.mask](self.grid, self.count, rng)[:, None].expand(-1, t, -1, -1)

    def prediction_terms(self, cells_ND: Tensor, targets_NM: Tensor) -> dict[str, Tensor]:
        """Compute the terms of N masked cells with M = m^2 ids each."""
        # All samples have as many masked cells, so that a mean over them does not depend on how a batch is sharded.
        logits = self.predict(self.backbone.norm(cells_ND)).unflatten(-1, (self.merge**2, -1)).float()
        pairs = list(zip(logits.split(self.sizes, -1), factorize_ids(targets_NM, self.bits), strict=True))
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


# Setting of extracted features -> option of `vidtok extract` that determines it.
_CLIPS = {"sampler": "--clips", "resize": "--size", "crop": "--crop", "resample": "--fps", "max_frames": "--max-frames"}


class TeacherBatches(StoredBatches):
    """Batches of extracted ids or latents with teachers' features of the same clips.

    They are in "teacher-0", "teacher-1", ...: [B, C, t, h, w], read in the process that trains; with a cache, that is
    fast.

    Args:
        tokens: batches of the ids or latents.
        teachers: the features of each teacher, on any grid.
        seed: see `StoredBatches`.

    Raises:
        ValueError: features are pooled, of other clips, or lack one of the clips.
    """

    def __init__(self, tokens: TokenBatches, teachers: Sequence[TokenDataset], seed: int = 0):
        super().__init__(tokens, seed)
        self.teachers = [(teacher, self._rows(teacher)) for teacher in teachers]

    def _rows(self, teacher: TokenDataset) -> list[int]:
        """Return the row of each clip in a teacher's features."""
        tokens = self.tokens
        if teacher.meta["pool"] is not None or teacher.feature in ("ids", "embedding"):
            raise ValueError(f"{teacher.path}: a teacher's features are floats on a grid: extract hidden, unpooled")
        for key, option in _CLIPS.items():
            theirs, own = teacher.meta[key], tokens.dataset.meta[key]
            if theirs != own:
                both = f"{teacher.path} was extracted with {option} {theirs}, and {tokens.dataset.path} with {own}"
                raise ValueError(f"{both}: extract both with the same")
        if tokens.window is not None and teacher.meta["stride"][0] != tokens.dataset.meta["stride"][0]:
            raise ValueError(f"data.latents={tokens.window} needs a teacher with as many frames per latent")
        rows = {(entry.id, entry.clip): row for row, entry in enumerate(teacher.entries)}
        clips = [(entry.id, entry.clip) for entry in tokens.dataset.entries]
        if lacking := [name for name, clip in clips if (name, clip) not in rows]:
            many = f"{len(lacking)} of the {len(clips)} clips, the first of {lacking[0]}"
            raise ValueError(f"{teacher.path} has no features of {many}")
        return [rows[clip] for clip in clips]

    def features(self, clips: Sequence[int]) -> list[Tensor]:
        """Read the features of each teacher for clips, by their numbers in the dataset of the tokens."""
        return [
            torch.stack([teacher.tensor(teacher.features(rows[clip])[:, : self.tokens.window]) for clip in clips])
            for teacher, rows in self.teachers
        ]

    def _complete(self, number: int, read: Batch, shard: Shard) -> Batch:
        found = enumerate(self.features(read["index"].tolist()))
        return {**super()._complete(number, read, shard), **{f"teacher-{i}": x_BCthw for i, x_BCthw in found}}


class PretrainingTask:
    """Training task of masked pretraining; see `vidtok.train.task.Task` for the interface and `Batch` for batches.

    Args:
        tokenizer: encodes clips.
        reads_pixels: whether the backbone reads the clips in place of their ids.
        teacher: frozen network, video -> [B, C, t, h, w]; None, batches have features of teachers, or there is none.
        teacher_weight: weight of the teachers' term beside the cross-entropy.
        held_out: a validation batch; None, no validation.
    """

    def __init__(
        self,
        tokenizer: VideoTokenizer,
        reads_pixels: bool = False,
        teacher: "ReferenceEncoder | None" = None,
        teacher_weight: float = 1.0,
        held_out: Batch | None = None,
    ):
        self.tokenizer, self.reads_pixels, self.held_out = tokenizer, reads_pixels, held_out
        self.teacher, self.teacher_weight = teacher, teacher_weight

    def terms(self, model: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor], None]:
        batch = encode_batch(batch, self.tokenizer)
        x = batch["video" if self.reads_pixels else "ids"]
        terms = model(x, batch["ids"], batch["seed"], self.teachers_of(batch))
        weights = {"cross_entropy": 1.0, "cosine": self.teacher_weight}
        return sum((weight * terms[name] for name, weight in weights.items() if name in terms)), terms, None

    def teachers_of(self, batch: Batch) -> list[Tensor]:
        """Return the features of each teacher for a batch of `encode_batch`."""
        if self.teacher is not None:
            return [teacher_features(self.teacher, batch["video"])]
        names = (f"teacher-{number}" for number in range(len(batch)))
        return [batch[name] for name in names if name in batch]

    def validate(self, model: Any, run: RunFolder, step: int) -> str | None:
        """Compute the terms of the held-out batch, whose masks stay the same."""
        if self.held_out is None:
            return None
        batch = {name: value.to(model.device) for name, value in self.held_out.items()}
        _, terms, _ = self.terms(model, batch, step)
        scalars = {name: value.item() for name, value in terms.items()}
        run.save_scalars({f"held_out_{name}": value for name, value in scalars.items()}, step)
        return f"{len(batch['seed'])} held out: {self.progress(scalars)}"

    def progress(self, scalars: dict[str, float]) -> str:
        parts = {
            "bits": "bits per masked token {:.2f}",
            "accuracy": "accuracy {:.3f}",
            "cosine": "distance to teachers {:.3f}",
        }
        return "  ".join(text.format(scalars[name]) for name, text in parts.items() if name in scalars)


def build_pretraining(cfg: DictConfig) -> dict:
    """Build the arguments of `vidtok.train.loop.train` from the config of `vidtok train pretrain`.

    Raises:
        ValueError: settings that don't fit together, the tokenizer or the data.
    """
    plain = to_dict(cfg)
    data, reads, seed = plain["data"] | {"classes": []}, plain["input"], plain["seed"]
    if reads not in INPUTS:
        raise ValueError(f"unknown input {reads!r}: {nearest(reads, INPUTS)}")
    stored, given = data["features"] is not None, plain["teacher"]
    teachers = list_teachers(given)
    if stored and reads == "pixels":
        raise ValueError("input=pixels reads videos: give data.source= in place of data.features=")
    exist = [Path(name).exists() for name in teachers]
    if not all(exist) if stored else len(teachers) > 1 or (any(exist) and teachers != ["i3d"]):
        wanted = "folders of features of the same clips" if stored else "i3d or an image classifier of timm"
        raise ValueError(f"teacher={given}: with {'data.features=' if stored else 'data.source='} give {wanted}")
    if stored and plain["teacher_weights"] is not None:
        raise ValueError(
            "teacher_weights= is for networks, and with data.features= the teacher is a folder of features"
        )
    tokenizer = VideoTokenizer.from_pretrained(plain["tokenizer"])
    if tokenizer.bits != int(tokenizer.bits):
        raise ValueError(
            f"token factorization needs a codebook of a whole number of bits, and {plain['tokenizer']} has "
            f"{tokenizer.bits:.2f}"
        )
    teacher = None
    if teachers and not stored:
        from vidtok.eval.recognition.references import build_teacher  # other runs don't need teachers

        teacher = build_teacher(teachers[0], plain["teacher_weights"])
    features = [TokenDataset(folder, cache=data["cache"]) for folder in teachers] if stored else []

    def build_batches(split: str, batch_size: int) -> ClipBatches | StoredBatches:
        batches = build_generator_batches(data, split, batch_size, tokenizer, seed)[0]
        return TeacherBatches(batches.tokens, features, seed) if features else batches

    batches = build_batches(data["split"], data["batch_size"])
    task = PretrainingTask(tokenizer, reads == "pixels", teacher, plain["teacher_weight"])
    if data["held_out"]:
        task.held_out = build_batches(data["held_out"], data["held_out_samples"])[0]
    first = encode_batch(batches.first(min(FIRST_SAMPLES, data["batch_size"])), tokenizer)
    _, t, h, w = first["ids"].shape
    examples = task.teachers_of(first)
    if isinstance(batches, TeacherBatches):
        clips = len(batches.tokens.dataset)
        examples = batches.features(range(0, clips, -(-clips // EXAMPLES)))
    own = {"bits": tokenizer.bits, "channels": None, "stride": tuple(tokenizer.stride)}
    torch.manual_seed(seed)  # of the initial weights
    net = {**plain["head"], **(plain["head_options"] or {})}
    backbone = build_head(net, cfg.name, reads, 0, (t, h, w), plain["patch_merge"], own)
    backbone.record(
        tokenizer=None if reads == "pixels" else {"name": tokenizer.config.name, "weight_hash": tokenizer.weight_hash},
        protocol=protocol_of(batches, data, (t, h, w), tokenizer),
    )
    model = MaskedPretraining(backbone, int(tokenizer.bits), plain["mask"], plain["mask_ratio"], examples)
    return {"task": task, "state": build_state(model, plain), "batches": batches, **build_schedule(plain)}


def list_teachers(given: str | Sequence[str] | None) -> list[str]:
    """Return the setting `teacher` as a list."""
    return [] if given is None else [given] if isinstance(given, str) else [str(name) for name in given]


def protocol_of(
    batches: ClipBatches | StoredBatches, data: dict, grid: tuple[int, int, int], tokenizer: VideoTokenizer
) -> dict | None:
    """Return which clips a backbone is trained on, see `HeadConfig.protocol`; None for features of another size than
    their settings say, such as those of videos at their native size.

    grid: (t, h, w) of the tokens.
    """
    if isinstance(batches, ClipBatches):
        return {key: data[key] for key in ("frames", "stride", "size", "fps")}
    meta = batches.tokens.dataset.meta
    (t, h, w), (s_t, s_h, s_w) = grid, tokenizer.stride
    frames = 1 + (t - 1) * s_t
    if not h * s_h == w * s_w == meta["resize"]:
        return None
    whole = Clips("windows", None, frames, fps=meta["resample"])
    clips = Clips.of_record(meta["sampler"]) if meta["sampler"] else whole
    stride = None if clips.name == "uniform" else clips.stride
    return {"frames": frames, "stride": stride, "size": meta["resize"], "fps": clips.fps}


@torch.no_grad()
def teacher_features(teacher: "ReferenceEncoder", video: Tensor) -> Tensor:
    """Compute a teacher's features of clips in float32, on their device, to which the teacher is moved."""
    teacher.network.to(video.device)
    with torch.autocast(video.device.type, enabled=False):
        return teacher(video).float()


def check_pretraining(cfg: DictConfig, task: PretrainingTask, batches: ClipBatches | StoredBatches) -> None:
    """Check the fingerprint of a run folder: its tokenizer, data, teachers and backbone.

    Raises:
        ValueError: the folder was created with others. Its checkpoint might load, and continue with wrong targets.
    """
    plain = to_dict(cfg)
    data = {key: value for key, value in plain["data"].items() if key not in ("batch_size", "cache", "workers")}
    kept = ("input", "head", "head_options", "patch_merge", "mask", "mask_ratio", "teacher_weight", "seed")
    facts = {key: plain[key] for key in kept} | {f"data.{key}": value for key, value in data.items()}
    hashes = [] if task.teacher is None else [task.teacher.network.weight_hash]
    if isinstance(batches, TeacherBatches):
        hashes = [teacher.meta["weight_hash"] for teacher, _ in batches.teachers]
    # Runs from before their features were standardized have a name in place of the list, and can't be resumed.
    facts["teacher"] = [*zip(list_teachers(plain["teacher"]), hashes, strict=True)] or None
    facts |= {"command": "train pretrain", "tokenizer": task.tokenizer.weight_hash}
    check_fingerprint(Path(cfg.run), facts)
