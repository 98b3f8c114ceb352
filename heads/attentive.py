"""The attentive probe of V-JEPA (Bardes et al. 2024, arXiv 2404.08471) and V-JEPA 2 (arXiv 2506.09985)."""

from timm.layers import AttentionPoolLatent
from timm.models import named_apply
from timm.models.vision_transformer import Block, init_weights_vit_timm
from torch import Tensor, nn

from vidtok.heads.embed import Position, make_embed
from vidtok.heads.head import Head


class AttentiveProbe(Head):
    """One learned query attends to all features and gives the pooled vector; before it, `depth` - 1 layers of
    self-attention (V-JEPA: depth 1; V-JEPA 2: 4).

    The features stay as they are, D = C, where the input has any; ids and pixels are embedded in `dim`. A ViT's
    features know where they are; a convolutional encoder's don't, so that positions are added.

    Args:
        input, grid, num_classes: as in `VideoTransformer`.
        dim: D of ids and pixels.
        depth: layers of attention in all, the query's included.
        heads: of attention; D is a multiple of it.
        mlp_ratio: hidden width of the MLPs, of D.
        position: False, for features that know where they are (V-JEPA's own form).
        head_drop: dropout before the last layer.
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
            raise ValueError(f"attention has at least 1 head, not {heads}")
        embed = make_embed(input, dim, project=False)
        D = embed.dim
        if D % heads:
            if dim % heads:
                raise ValueError(f"neither a width of {D} nor dim={dim} divides into {heads} heads")
            embed = make_embed(input, dim)  # such as 18 signs: too narrow to be split among heads
            D = dim
        super().__init__(D, num_classes, head_drop)
        self.embed = embed
        self.position = Position(grid, D) if position else nn.Identity()
        self.blocks = nn.ModuleList(Block(D, heads, mlp_ratio, qkv_bias=True) for _ in range(depth - 1))
        self.pool_norm = nn.LayerNorm(D)
        # The residual of V-JEPA's query is a constant, and proj's bias is one too.
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
