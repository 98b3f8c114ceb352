"""Build heads by config name, or from a hydra config."""

from importlib.resources import files

from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from vidtok.configs.compose import to_dict
from vidtok.errors import nearest
from vidtok.heads.config import HeadConfig
from vidtok.heads.embed import INPUTS
from vidtok.heads.head import Head, make_head


def list_heads() -> list[str]:
    """List the names that `create_head` accepts: the files in `vidtok/configs/head`."""
    return sorted(p.name.removesuffix(".yaml") for p in files("vidtok.configs").joinpath("head").iterdir())


def create_head(
    name: str,
    input: str = "tokens",
    num_classes: int = 0,
    grid: tuple[int, int, int] = (5, 16, 16),
    patch_merge: int = 1,
    bits: float = 18,
    channels: int | None = None,
    stride: tuple[int, int, int] = (4, 8, 8),
    **arguments,
) -> Head:
    """Create an untrained recognition head by config name, in training mode on the CPU.

    Args:
        name: one of `list_heads()`.
        input: kind of input: "tokens" or "codes", int64 ids [B, t, h, w]; "latents" or "hidden", float
            [B, channels, t, h, w]; "embedding", float [B, N, channels]; "pixels", float [B, 3, T, H, W] in [-1, 1].
        num_classes: classes of the last layer; 0, no last layer.
        grid: (t, h, w) of the tokens that positions are learned for; heads work on other grids too.
        patch_merge: patch_merge x patch_merge neighboring cells become one, a divisor of h and w.
        bits: log2 of the codebook size, for tokens and codes.
        channels: channels of the features, for latents, hidden and embedding.
        stride: (time, height, width), pixels per token, for pixels.
        arguments: arguments of the head's class that replace those of the config, such as drop_path=0.1.

    Raises:
        ValueError: an unknown name, input or argument, or a grid that is not divisible by `patch_merge`.
    """
    if name not in list_heads():
        raise ValueError(f"unknown head {name!r}: {nearest(name, list_heads())}")
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        cfg = compose(overrides=[f"+head={name}"])
    input_settings = {"bits": bits, "channels": channels, "stride": list(stride)}
    return build_head(cfg, name, input, num_classes, grid, patch_merge, input_settings, arguments)


def build_head(
    cfg: DictConfig,
    name: str,
    input: str,
    num_classes: int,
    grid: tuple[int, int, int],
    patch_merge: int,
    input_settings: dict,
    arguments: dict | None = None,
) -> Head:
    """Build the head of a hydra config with a group `head`.

    Args:
        cfg: the config.
        input_settings: {"bits", "channels", "stride"}, of which the one that `input` needs is used.
        name, input, num_classes, grid, patch_merge, arguments: see `create_head`.

    Raises:
        ValueError: see `create_head`.
    """
    if input not in INPUTS:
        raise ValueError(f"unknown input {input!r}: {nearest(input, INPUTS)}")
    key = INPUTS[input][1]
    if input_settings.get(key) is None:
        raise ValueError(f"input {input!r} needs {key}=: give it")
    net = {**to_dict(cfg.head), **(arguments or {})}
    spec = {"kind": input, "patch_merge": patch_merge, key: input_settings[key]}
    return make_head(HeadConfig(name, net, spec, (grid[0], grid[1], grid[2]), num_classes))
