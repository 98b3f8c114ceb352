"""From a `HeadConfig` to the head: the table of all kinds."""

from importlib.resources import files

from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

from vidtok.errors import nearest
from vidtok.heads.attentive import AttentiveProbe
from vidtok.heads.config import HeadConfig
from vidtok.heads.head import Head
from vidtok.heads.pooled import LinearHead, MlpHead
from vidtok.heads.transformer import VideoTransformer

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


def list_heads() -> list[str]:
    """Names that `create_head` takes: the files of `vidtok/configs/head`."""
    return sorted(p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("head").iterdir())


def create_head(
    name: str,
    input: str = "tokens",
    num_classes: int = 0,
    grid: tuple[int, int, int] = (5, 16, 16),
    merge: int = 1,
    bits: float = 18,
    channels: int | None = None,
    stride: tuple[int, int, int] = (4, 8, 8),
    **arguments,
) -> "Head":
    """An untrained recognition head by config name, in training mode on the CPU.

    Args:
        name: one of `list_heads()`.
        input: what it reads: "tokens" or "codes", int64 ids [B, t, h, w]; "latents" or "hidden", float
            [B, channels, t, h, w]; "embedding", float [B, N, channels]; "pixels", float [B, 3, T, H, W] in [-1, 1].
        num_classes: of the last layer; 0, none.
        grid: (t, h, w) of the tokens, of the pixels too; heads work on other grids as well.
        merge: neighbouring merge x merge cells become one.
        bits: log2 of the codebook, of tokens and codes; channels: of features; stride: pixels per token, of pixels.
        arguments: of the head's class instead of the config's, such as drop_path=0.1.

    Raises:
        ValueError: for an unknown name, input or argument, or a grid that doesn't divide by `merge`.
    """
    if name not in list_heads():
        raise ValueError(f"unknown head {name!r}: {nearest(name, list_heads())}")
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        cfg = compose(overrides=[f"+head={name}"])
    own = {"bits": bits, "channels": channels, "stride": list(stride)}
    return build_head(cfg, name, input, num_classes, grid, merge, own, arguments)


def build_head(
    cfg: DictConfig,
    name: str,
    input: str,
    num_classes: int,
    grid: tuple[int, int, int],
    merge: int,
    own: dict,
    arguments: dict | None = None,
) -> "Head":
    """The head of the group `head`. own: values of all inputs' own settings, of which `input` takes its one; for the
    rest see `create_head`."""
    from vidtok.heads import INPUTS, HeadConfig

    if input not in INPUTS:
        raise ValueError(f"unknown input {input!r}: {nearest(input, INPUTS)}")
    key = INPUTS[input][1]
    if own.get(key) is None:
        raise ValueError(f"input {input!r} needs {key}=")
    net = {**OmegaConf.to_container(cfg.head, resolve=True), **(arguments or {})}
    spec = {"kind": input, "merge": merge, key: own[key]}
    return make_head(HeadConfig(name, net, spec, tuple(grid), num_classes))
