"""Video transformer in two forms of ViViT (Arnab et al. 2021, arXiv 2103.15691, section 3.3).

The forms are joint space-time attention (model 1) and the factorized encoder (model 2). Both can use the local
correlation of neighboring times, with which they learn motion from few clips.

Legend: B batch, t h w grid, N tokens of a sequence, D width, K displacements.
"""

import torch
import torch.nn.functional as F
from timm.layers import Mlp, trunc_normal_
from timm.models import named_apply
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from vidtok.heads.embed import make_embed
from vidtok.heads.head import Head, register_head


class Position(nn.Module):
    """Learned position embeddings, added to x [B, t, h, w, D]: the sum of one vector per time, row and column.

    Vectors per axis need fewer parameters than vectors per cell, and fit any grid: on a grid of another size they are
    interpolated linearly.

    Args:
        grid: (t, h, w) of the learned vectors.
        dim: D.
    """

    def __init__(self, grid: tuple[int, int, int], dim: int):
        super().__init__()
        self.axes = nn.ParameterList(nn.Parameter(torch.empty(size, dim)) for size in grid)
        for axis in self.axes:
            trunc_normal_(axis, std=0.02)

    def forward(self, x_BthwD: Tensor) -> Tensor:
        for number, axis in enumerate(self.axes):
            shape = [1] * x_BthwD.ndim
            shape[1 + number], shape[-1] = x_BthwD.shape[1 + number], -1
            x_BthwD = x_BthwD + _resized(axis, shape[1 + number]).view(shape)
        return x_BthwD


def _resized(axis_nD: Tensor, size: int) -> Tensor:
    if len(axis_nD) == size:
        return axis_nD
    return F.interpolate(axis_nD.T[None], size, mode="linear")[0].T


class LocalCorrelation(nn.Module):
    """Cost volume of each cell with the cells around it at the previous time, added to x [B, t, h, w, D].

    The cost volume holds cosine similarities of learned projections (FlowNet, arXiv 1504.06852; for recognition,
    MotionSqueeze, arXiv 2007.09933). An MLP maps it to D channels. The parameters are the same for any input. The
    similarity is 0 for cells outside the grid, and for all cells at the first time.

    Args:
        dim: D.
        radius: largest displacement in cells along each axis; K = (2 radius + 1)^2.
        heads: number of projections that are compared separately, a divisor of D.
    """

    def __init__(self, dim: int, radius: int, heads: int):
        super().__init__()
        self.radius, self.heads = radius, heads
        # No bias: the subtraction of the mean over the clip would cancel it.
        self.norm, self.project = nn.LayerNorm(dim, bias=False), nn.Linear(dim, dim, bias=False)
        self.mlp = Mlp(heads * (2 * radius + 1) ** 2, dim, dim)
        named_apply(init_weights_vit_timm, self)

    def forward(self, x_BthwD: Tensor) -> Tensor:
        y = self.project(self.norm(x_BthwD))
        # Subtract the mean over the clip: with this common component, all cells would be similar to each other.
        y = (y - y.mean((1, 2, 3), keepdim=True)).unflatten(-1, (self.heads, -1))
        y = (y * torch.rsqrt(y.square().sum(-1, keepdim=True) + 1e-6)).permute(0, 1, 4, 2, 3, 5)
        r, (h, w) = self.radius, x_BthwD.shape[2:4]
        before = F.pad(y[:, :-1], (0, 0, r, r, r, r, 0, 0, 1, 0))
        rows = [y @ before[..., i : i + h, :, :].transpose(-1, -2) for i in range(2 * r + 1)]
        # Take the diagonals from (0, 0) to (0, 2r) of each [..., w, w + 2r]. Products with shifted cells are slower.
        diagonals = [F.pad(row.flatten(-2), (0, w)).unflatten(-1, (w, -1))[..., : 2 * r + 1] for row in rows]
        similarities = torch.cat(diagonals, -1).permute(0, 1, 3, 4, 5, 2).flatten(-2)  # [B, t, h, w, K * heads]
        return x_BthwD + self.mlp(similarities)


@register_head("transformer")
class VideoTransformer(Head):
    """Video transformer with joint space-time attention, or with a factorized encoder.

    With joint attention, all cells attend to each other, and N = t*h*w. In the factorized form, `depth` spatial layers
    process each time separately. The mean over the cells of a time is then one of N = t vectors for `temporal_depth`
    temporal layers. Features are averaged; there is no class token.

    Transformers of one size on different inputs have the same parameters except for `embed`. With the same seed, their
    initial values are the same, too.

    Args:
        input: see `make_embed`.
        grid: (t, h, w) after `patch_merge`; other grids work too, see `Position`.
        num_classes: classes of the last layer; 0, no last layer.
        dim: D.
        depth: number of layers (spatial layers in the factorized form).
        heads: number of attention heads, a divisor of D.
        temporal_depth: number of temporal layers of the factorized form; 0, joint attention.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        drop: dropout after the position embeddings, attention and MLPs.
        attn_drop: dropout of attention weights.
        drop_path: stochastic depth rate of the last layer; it rises linearly from 0 in the first.
        head_drop: dropout before the last layer.
        correlation: radius in cells of the `LocalCorrelation` before the first layer; 0, none. With it, motion of one
            cell or more per time is learned from few clips.

    Raises:
        ValueError: dim is not divisible by heads, or the radius is negative.
    """

    def __init__(
        self,
        input: dict,
        grid: tuple[int, int, int],
        num_classes: int,
        dim: int = 192,
        depth: int = 12,
        heads: int = 3,
        temporal_depth: int = 0,
        mlp_ratio: float = 4.0,
        drop: float = 0.0,
        attn_drop: float = 0.0,
        drop_path: float = 0.0,
        head_drop: float = 0.0,
        correlation: int = 0,
    ):
        if heads < 1 or dim % heads:
            raise ValueError(f"dim={dim} doesn't divide into heads={heads}: give a multiple")
        if correlation < 0:
            raise ValueError(f"correlation={correlation}: give its radius in cells, or 0 for none")
        super().__init__(dim, num_classes, head_drop)
        self.position = Position(grid, dim)
        self.drop = nn.Dropout(drop)
        self.depth, self.factorized = depth, temporal_depth > 0
        layers = depth + temporal_depth
        rates = [drop_path * i / max(layers - 1, 1) for i in range(layers)]
        self.blocks = nn.ModuleList(
            [
                Block(dim, heads, mlp_ratio, qkv_bias=True, proj_drop=drop, attn_drop=attn_drop, drop_path=rate)
                for rate in rates
            ]
        )
        self.space_norm = nn.LayerNorm(dim) if self.factorized else nn.Identity()
        named_apply(init_weights_vit_timm, self.blocks)
        self.correlation = LocalCorrelation(dim, correlation, heads) if correlation else nn.Identity()
        # Created last, so that all other parameters have the same initial values for one seed and any input.
        self.embed = make_embed(input, dim)

    def encode(self, x_BthwD: Tensor) -> Tensor:
        cells_BthwD, times_BtD = self._features(x_BthwD)
        return cells_BthwD.flatten(1, 3) if times_BtD is None else times_BtD

    def encode_cells(self, x_BthwD: Tensor) -> Tensor:
        """Encode the output of `embed` to one feature per cell [B, t, h, w, D], for masked pretraining and probes.

        In the factorized form this is the sum of the cell's spatial feature and the temporal feature of its time.
        """
        cells_BthwD, times_BtD = self._features(x_BthwD)
        return cells_BthwD if times_BtD is None else cells_BthwD + times_BtD[:, :, None, None]

    def _features(self, x_BthwD: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return (features of cells [B, t, h, w, D], features of times [B, t, D] or None with joint attention)."""
        x = self.drop(self.position(self.correlation(x_BthwD)))
        blocks = [*self.blocks]  # a slice of a ModuleList would create a new module in every forward pass
        if not self.factorized:
            return self._run(x.flatten(1, 3), blocks).view_as(x), None
        x_nND = self._run(x.flatten(2, 3).flatten(0, 1), blocks[: self.depth])
        cells_BthwD = self.space_norm(x_nND).view_as(x)
        return cells_BthwD, self._run(cells_BthwD.mean((2, 3)), blocks[self.depth :])

    def group_matcher(self, coarse: bool = False) -> dict:
        last = self.depth - 1  # the last spatial block, which the norm belongs to
        return {
            "stem": r"^embed|^position|^correlation",
            "blocks": [(r"^blocks\.(\d+)", None), (r"^space_norm", (last,))],
        }

    @classmethod
    def validate(cls, head: Head) -> "VideoTransformer":
        """Return a head that is a video transformer; raise ValueError for another, which has no features of cells."""
        if not isinstance(head, cls):
            kind = head.config.net["kind"]
            raise ValueError(f"head {kind!r} has no features for each cell: give one of kind transformer")
        return head

    def _run(self, x_BND: Tensor, blocks: list[nn.Module]) -> Tensor:
        # In bf16 on a CPU, torch's fused attention is slower than plain products, forward and backward.
        fused = x_BND.device.type != "cpu" or not torch.is_autocast_enabled("cpu")
        for block in blocks:
            block.attn.fused_attn = fused  # type: ignore[union-attr, assignment]  # modules aren't typed as blocks
            x_BND = block(x_BND)
        return x_BND
