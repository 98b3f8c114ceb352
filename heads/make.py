"""From a `HeadConfig` to the head: the table of all kinds."""

from vidtok.hints import nearest

from .attentive import AttentiveProbe
from .config import HeadConfig
from .head import Head
from .pooled import LinearHead, MlpHead
from .transformer import VideoTransformer

HEADS = {"transformer": VideoTransformer, "attentive": AttentiveProbe, "linear": LinearHead, "mlp": MlpHead}


def make_head(config: HeadConfig) -> Head:
    """An untrained head, in training mode on the CPU.

    Raises:
        ValueError: for an unknown kind, input or argument, or a grid that doesn't divide by the input's merge.
    """
    arguments = dict(config.net)
    kind = arguments.pop("kind")
    if kind not in HEADS:
        raise ValueError(f"unknown head {kind!r}: {nearest(kind, HEADS)}")
    m = config.input.get("merge", 1)
    t, h, w = config.grid
    if m < 1 or h % m or w % m:
        raise ValueError(f"merge={m} takes a grid whose sides are multiples of {m}, not {h} x {w}")
    try:
        head = HEADS[kind](config.input, (t, h // m, w // m), config.num_classes, **arguments)
    except TypeError as error:  # an argument that it doesn't know: configs come from outside
        raise ValueError(f"head {kind!r}: {error}") from error
    head.config = config
    return head
