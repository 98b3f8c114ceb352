"""Linear and MLP probes on mean-pooled features, which ignore position and time."""

from timm.layers import Mlp
from torch import Tensor, nn

from vidtok.heads.embed import make_embed
from vidtok.heads.head import Head, register_head


@register_head("linear")
class LinearHead(Head):
    """Linear probe of MAE (arXiv 2111.06377, appendix A): mean over the grid, batch norm without affine, linear layer.

    Args:
        input, num_classes: as in `VideoTransformer`.
        grid: not used.
        dim: D for ids and pixels; other inputs keep their width.
        head_drop: dropout before the last layer.
    """

    def __init__(
        self, input: dict, grid: tuple[int, int, int], num_classes: int, dim: int = 256, head_drop: float = 0.0
    ):
        embed = make_embed(input, dim, project=False)
        super().__init__(embed.dim, num_classes, head_drop)
        self.embed = embed
        self.norm = nn.BatchNorm1d(embed.dim, affine=False)

    def encode(self, x_BthwD: Tensor) -> Tensor:
        return x_BthwD.flatten(1, 3)


@register_head("mlp")
class MlpHead(LinearHead):
    """MLP on mean-pooled features, followed by batch norm and a linear layer as in `LinearHead`.

    Args:
        input, grid, num_classes, dim, head_drop: as in `LinearHead`.
        hidden: width of the hidden layer.
        drop: dropout in the MLP.
    """

    def __init__(
        self,
        input: dict,
        grid: tuple[int, int, int],
        num_classes: int,
        dim: int = 256,
        hidden: int = 512,
        drop: float = 0.0,
        head_drop: float = 0.0,
    ):
        super().__init__(input, grid, num_classes, dim, head_drop)
        self.mlp = Mlp(self.num_features, hidden, self.num_features, drop=drop)

    def pool(self, f_BND: Tensor) -> Tensor:
        return self.mlp(f_BND.mean(1))
