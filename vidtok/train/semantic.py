"""Semantic term of the tokenizer's objective: predict a frozen teacher's features of a clip from its codes.

A small network predicts the features from the codes, pooled over the clip and in each cell. Both terms are cosine
distances. As in VQGAN (Esser et al. 2021, eq. 7), the term is weighted by gradients: the norm of its gradient at the
codes is `LossWeights.semantic_ratio` times that of the reconstruction term.

Legend: B batch, C code channels, D teacher's channels, T H W video, t h w grid of the codes.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from vidtok.eval.metrics.i3d import MIN_FRAMES
from vidtok.eval.recognition.references import ReferenceEncoder, build_teacher
from vidtok.tokenizer import VideoTokenizer
from vidtok.train.pretraining import teacher_features

TINY = 1e-12


class SemanticTokenizer(nn.Module):
    """A tokenizer in training with the network that predicts a teacher's features from its codes.

    Only the tokenizer is saved.

    Args:
        tokenizer: the tokenizer, with LFQ, FSQ or VQ.
        channels: D.
        width: channels of the two hidden layers.
    """

    def __init__(self, tokenizer: VideoTokenizer, channels: int, width: int = 256):
        super().__init__()
        self.tokenizer = tokenizer
        self.trunk = nn.Sequential(
            nn.Conv3d(tokenizer.quantizer.code_channels, width, 3, padding=1),
            nn.GELU(),
            nn.Conv3d(width, width, 3, padding=1),
            nn.GELU(),
        )
        self.cells, self.pooled = nn.Conv3d(width, channels, 1), nn.Linear(width, channels)

    def forward(self, video: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Run a training pass; return that of `VideoTokenizer.forward`, and predictions [B, D, t, h, w] and [B, D]."""
        decoded, z, codes = self.tokenizer(video)
        x_BWthw = self.trunk(codes)
        return decoded, z, codes, self.cells(x_BWthw), self.pooled(x_BWthw.mean((2, 3, 4)))

    def save_pretrained(self, folder: Path) -> None:
        """Write the tokenizer."""
        self.tokenizer.save_pretrained(folder)


@dataclass(frozen=True)
class SemanticLoss:
    """Distance of predicted features to those of a teacher.

    Args:
        teacher: frozen network behind an encoder of clips.
        pooled, cells: weights of the two terms; 0 leaves one out.

    Raises:
        ValueError: illegal weights.
    """

    teacher: ReferenceEncoder
    pooled: float = 1.0
    cells: float = 1.0

    def __post_init__(self):
        if min(self.pooled, self.cells) < 0 or self.pooled == self.cells == 0:
            raise ValueError(f"semantic.pooled={self.pooled} and semantic.cells={self.cells}: want one above 0")

    @property
    def fingerprint(self) -> dict:
        """What can't change when a run is resumed: the weights of the teacher."""
        return {"semantic.teacher": self.teacher.network.weight_hash}

    def features(self, video: Tensor) -> Tensor:
        """Compute the teacher's features, float32 [B, D, t, h, w] on its own grid, on the device of the clips.

        I3D sees clips of fewer frames than it needs, such as images, with their last frame repeated.
        """
        if self.teacher.kind == "i3d" and (missing := MIN_FRAMES - video.shape[2]) > 0:
            video = torch.cat([video, video[:, :, -1:].expand(-1, -1, missing, -1, -1)], 2)
        return teacher_features(self.teacher, video)

    def __call__(
        self,
        video: Tensor,
        predicted: Sequence[Tensor],
        reconstruction: Tensor,
        codes: Tensor,
        ratio: float,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the term.

        Args:
            video: the clips. predicted: the predictions of `SemanticTokenizer` in cells and pooled.
            reconstruction: weighted reconstruction term. codes: the codes that it and the predictions come from.
            ratio: see `LossWeights.semantic_ratio`.

        Returns:
            The term with its weight; and, by name, each part of it without weights, and the weight.
        """
        cells_BDthw, pooled_BD = predicted
        teacher = self.features(video)
        terms = {}
        if self.pooled:
            terms["semantic_pooled"] = cosine_distance(pooled_BD, teacher.mean((2, 3, 4)))
        if self.cells:
            terms["semantic_cells"] = cosine_distance(cells_BDthw, resample(teacher, cells_BDthw.shape[2:]))
        weights = {"semantic_pooled": self.pooled, "semantic_cells": self.cells}
        total = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        weight = gradient_weight(reconstruction, total, codes, ratio)
        return weight * total, terms | {"semantic_weight": weight}


def cosine_distance(x_BD: Tensor, y_BD: Tensor) -> Tensor:
    """Compute 1 - cosine similarity along dimension 1, in float32; mean over all others."""
    return 1 - F.cosine_similarity(x_BD.float(), y_BD.float(), 1).mean()


def resample(x_BDthw: Tensor, grid: Sequence[int]) -> Tensor:
    """Resample features to a grid: average along each axis where they are finer, interpolate where they are coarser."""
    t, h, w = (min(sides) for sides in zip(x_BDthw.shape[2:], grid, strict=True))
    x = F.adaptive_avg_pool3d(x_BDthw, (t, h, w))
    return x if (t, h, w) == (*grid,) else F.interpolate(x, (*grid,), mode="trilinear", align_corners=False)


def gradient_weight(reference: Tensor, term: Tensor, codes: Tensor, ratio: float) -> Tensor:
    """Compute the factor of `term` with which its gradient at `codes` is `ratio` times that of `reference`.

    The factor is a constant for the backward pass. It is 0 where the term has no gradient.
    """
    norms = [torch.autograd.grad(value, codes, retain_graph=True)[0].float().norm() for value in (reference, term)]
    return torch.where(norms[1] > TINY, ratio * norms[0] / norms[1].clamp_min(TINY), 0.0)


def build_semantic(settings: dict, tokenizer: VideoTokenizer, video: Tensor) -> tuple[SemanticTokenizer, SemanticLoss]:
    """Build the term from the group `semantic`.

    Args:
        settings: teacher, weights, pooled, cells and width.
        tokenizer: the tokenizer that is trained.
        video: a clip of the training's shape, which determines the teacher's channels.

    Raises:
        ValueError: illegal settings, or weights of another network.
        FileNotFoundError: there are no such weights.
    """
    name, weights = settings["teacher"], settings["weights"]
    if name is None or weights is None:
        needed = "semantic.teacher=NAME (i3d, or an image classifier of timm) and semantic.weights=FILE"
        raise ValueError(f"loss.semantic_ratio needs a teacher: give {needed}")
    teacher = build_teacher(name, weights)
    loss = SemanticLoss(teacher, settings["pooled"], settings["cells"])
    model = SemanticTokenizer(tokenizer, loss.features(video).shape[1], settings["width"])
    for part, weight in ((model.pooled, loss.pooled), (model.cells, loss.cells)):
        part.requires_grad_(weight > 0)  # several processes expect a gradient of every trained parameter
    return model, loss
