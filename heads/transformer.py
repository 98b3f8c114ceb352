"""The video transformer, in two of ViViT's forms (Arnab et al. 2021, arXiv 2103.15691): joint space-time attention
(section 3.3, model 1) and the factorised encoder (model 2).

Legend: B batch, t h w grid, N tokens of a sequence, D width.
"""

import torch
from timm.models import named_apply
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from vidtok.heads.embed import Position, make_embed
from vidtok.heads.head import Head


class VideoTransformer(Head):
    """Joint: all cells of all times attend to each other, and the features are theirs, N = t*h*w. Factorised: `depth`
    layers on the cells of each time alone, whose mean is then one of t vectors for `temporal_depth` more layers, N = t.

    Two transformers of one size and two inputs have the same parameters but for `embed`, and with one seed the same
    initial values. Positions are one learned vector per time, row and column; features are averaged, there is no class
    token.

    Args:
        input: see `make_embed`.
        grid: (t, h, w) after merging; other grids work too, see `Position`.
        num_classes: of the last layer.
        dim: D; depth: layers; heads: of attention.
        temporal_depth: layers over time in the factorised form; 0, joint attention.
        mlp_ratio: hidden width of the MLPs, of D.
        drop: dropout after positions, attention and MLPs; attn_drop: of attention weights; head_drop: before the last
            layer; drop_path: stochastic depth of the last layer, rising linearly from 0 in the first.
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
    ):
        if heads < 1 or dim % heads:
            raise ValueError(f"a width of {dim} doesn't divide into {heads} heads")
        super().__init__(dim, num_classes, head_drop)
        self.position = Position(grid, dim)
        self.drop = nn.Dropout(drop)
        self.depth, self.factorised = depth, temporal_depth > 0
        layers = depth + temporal_depth
        rates = [drop_path * i / max(layers - 1, 1) for i in range(layers)]
        self.blocks = nn.ModuleList(
            Block(dim, heads, mlp_ratio, qkv_bias=True, proj_drop=drop, attn_drop=attn_drop, drop_path=rate)
            for rate in rates
        )
        self.space_norm = nn.LayerNorm(dim) if self.factorised else nn.Identity()
        named_apply(init_weights_vit_timm, self.blocks)
        # Last, so that with one seed everything else begins alike, whatever the input.
        self.embed = make_embed(input, dim)

    def encode(self, x_BthwD: Tensor) -> Tensor:
        x = self.drop(self.position(x_BthwD))
        if not self.factorised:
            return self._run(x.flatten(1, 3), self.blocks)
        B, t = x.shape[:2]
        x_nND = self._run(x.flatten(2, 3).flatten(0, 1), self.blocks[: self.depth])
        x_BtD = self.space_norm(x_nND).mean(1).unflatten(0, (B, t))
        return self._run(x_BtD, self.blocks[self.depth :])

    def group_matcher(self, coarse: bool = False) -> dict:
        last = self.depth - 1  # of the spatial blocks, which the norm belongs to
        return {"stem": r"^embed|^position", "blocks": [(r"^blocks\.(\d+)", None), (r"^space_norm", (last,))]}

    def _run(self, x_BND: Tensor, blocks: nn.ModuleList) -> Tensor:
        # Forth and back in bf16 on a CPU, torch's fused attention takes 2 to 9 times as long as plain products.
        fused = x_BND.device.type != "cpu" or not torch.is_autocast_enabled("cpu")
        for block in blocks:
            block.attn.fused_attn = fused
            x_BND = block(x_BND)
        return x_BND
