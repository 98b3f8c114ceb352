"""The attentive probe of V-JEPA (Bardes et al. 2024, arXiv 2404.08471) and V-JEPA 2 (arXiv 2506.09985)."""

from timm.layers import AttentionPoolLatent
from timm.models import named_apply
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from vidtok.heads.embed import make_embed
from vidtok.heads.head import Head, register_head
from vidtok.heads.transformer import Position


@register_head("attentive")
class AttentiveProbe(Head):
    """Attentive pooling: a learned query attends to all features, after `depth` - 1 layers of self-attention.

    V-JEPA has depth 1, V-JEPA 2 depth 4. Features and codes are read unchanged, D = C; ids and pixels are embedded in
    `dim` dimensions. Position embeddings are added, since features of a convolutional encoder, unlike a ViT's, carry no
    position.

    Args:
        input, grid, num_classes: as in `VideoTransformer`.
        dim: D for ids and pixels, and for features whose width is not divisible by `heads`.
        depth: number of attention layers, including the query's.
        heads: number of attention heads, a divisor of D.
        mlp_ratio: hidden width of the MLPs as a multiple of D.
        position: whether to add position embeddings; False for features that carry positions, as in V-JEPA.
        head_drop: dropout before the last layer.

    Raises:
        ValueError: heads is below 1, or divides neither the width of the features nor `dim`.
    """

    def __init__(
        self,
        input: dict,
        grid: tuple[int, int, int],
        num_classes: int,
        dim: int = 256,
        depth: int = 1,
        heads: int = 16,
        mlp_ratio: float = 4.0,
        position: bool = True,
        head_drop: float = 0.0,
    ):
        if heads < 1:
            raise ValueError(f"heads={heads} must be at least 1")
        embed = make_embed(input, dim, project=False)
        D = embed.dim
        if D % heads:
            if dim % heads:
                raise ValueError(f"neither the width {D} of the input nor dim={dim} divides into heads={heads}")
            embed = make_embed(input, dim)  # the features, such as 18 signs, can't be split among the heads
            D = dim
        super().__init__(D, num_classes, head_drop)
        self.embed = embed
        self.position = Position(grid, D) if position else nn.Identity()
        self.blocks = nn.ModuleList(Block(D, heads, mlp_ratio, qkv_bias=True) for _ in range(depth - 1))
        self.pool_norm = nn.LayerNorm(D)
        # V-JEPA adds the query as a residual. The query is constant, so the bias of `proj` can represent it.
        self.query = AttentionPoolLatent(D, num_heads=heads, mlp_ratio=mlp_ratio, norm_layer=nn.LayerNorm)
        self.norm = nn.Identity()  # V-JEPA's linear layer follows the query's MLP
        named_apply(init_weights_vit_timm, self.blocks)

    def encode(self, x_BthwD: Tensor) -> Tensor:
        x_BND = self.position(x_BthwD).flatten(1, 3)
        for block in self.blocks:
            x_BND = block(x_BND)
        return x_BND

    def pool(self, f_BND: Tensor) -> Tensor:
        return self.query(self.pool_norm(f_BND))
