"""Heads that recognise what a clip shows, from tokens, codes, features or pixels; all on timm's contract."""

from .attentive import AttentiveProbe
from .config import HeadConfig
from .embed import INPUTS
from .head import Head, list_shipped_heads
from .make import HEADS, make_head
from .pooled import LinearHead, MlpHead
from .transformer import VideoTransformer

__all__ = [
    "HEADS", "INPUTS", "AttentiveProbe", "Head", "HeadConfig", "LinearHead", "MlpHead", "VideoTransformer",
    "list_shipped_heads", "make_head",
]  # fmt: skip
