"""Recognition heads: classify clips from tokens, codes, features or pixels, with timm's model interface."""

from vidtok.heads.attentive import AttentiveProbe
from vidtok.heads.embed import INPUTS
from vidtok.heads.head import (
    HEADS,
    Head,
    HeadConfig,
    create_head,
    list_heads,
    list_shipped_heads,
    make_head,
    register_head,
)
from vidtok.heads.pooled import LinearHead, MlpHead
from vidtok.heads.transformer import VideoTransformer

__all__ = [
    "HEADS", "INPUTS", "AttentiveProbe", "Head", "HeadConfig", "LinearHead", "MlpHead", "VideoTransformer",
    "create_head", "list_heads", "list_shipped_heads", "make_head", "register_head",
]  # fmt: skip
