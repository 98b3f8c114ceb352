"""Recognition heads: their config, base class with timm's model interface, registry of kinds, loading and saving.

head(x) -> logits [B, classes]
head.forward_features(x) -> [B, N, D]; N depends on the head, D is head.num_features
head.pool(f) -> [B, D]
head.forward_head(f, pre_logits=False) -> logits, or the input of the last layer
head.reset_classifier(n): replace the last layer by one of n classes; 0, remove it
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.layers import trunc_normal_
from torch import Tensor, nn

from vidtok.configs.compose import to_dict
from vidtok.errors import nearest
from vidtok.heads.embed import INPUTS
from vidtok.hub import (
    PRETRAINED,
    PretrainedModel,
    describe_weights,
    find_pretrained,
    list_shipped,
    load_config,
    load_weights,
)

SCHEMA = "vidtok.head/1"
SHIPPED = PRETRAINED / "heads"
HEADS: dict[str, Callable[..., "Head"]] = {}  # kind, its name in configs -> class; filled by `register_head`


@dataclass(frozen=True)
class HeadConfig:
    """Architecture of a head, and the input, classes and clips that it was trained on.

    Attributes:
        name: name of the head in results.
        net: {"kind": a name in `vidtok.heads.HEADS`, **arguments of the class}.
        input: {"kind": a name in `vidtok.heads.INPUTS`, **arguments of the embedding}.
        grid: (t, h, w) of the tokens, before `patch_merge`.
        num_classes: number of classes of the last layer; 0 for a backbone, which has no last layer.
        classes: the name of each class number; None, unknown.
        tokenizer: {"name", "weight_hash"} of the tokenizer that produced the input; for pixels, of the tokenizer that
            reconstructed them. None: unknown, or original pixels.
        protocol: sampling of the clips. None, unknown. Else a dict:
            "frames": frames T per clip.
            "size": side of the square crop in pixels.
            "stride": frames from one sampled frame to the next; None, spread over the whole video.
            "fps": frame rate at which the stride is counted, if not the video's own.
            "resize": short side in pixels before the crop, if not `size`.
            "clips": clips per video.
            "crops": 1 or 3 per clip, whose probabilities are averaged.
            "concat_segments": whether the head sees the features of all clips at once.
            "grid_crop": side of the center crop of the grid, if it was trained on crops of the grid.
            "middle_frame": True, the head sees the middle frame of each clip alone.
        class_counts: number of training clips of each class; None, unknown.
        license: license of the weights.
    """

    name: str
    net: dict
    input: dict
    grid: tuple[int, int, int]
    num_classes: int
    classes: list[str] | None = None
    tokenizer: dict | None = None
    protocol: dict | None = None
    class_counts: list[int] | None = None
    license: str = "apache-2.0"

    def __post_init__(self):
        if self.classes is not None and len(self.classes) != self.num_classes:
            raise ValueError(f"{len(self.classes)} class names for num_classes={self.num_classes}: give one per class")
        if self.class_counts is not None and len(self.class_counts) != self.num_classes:
            counts, classes = len(self.class_counts), self.num_classes
            raise ValueError(f"{counts} class counts for num_classes={classes}: give one per class")
        self.net["kind"], self.input["kind"]


def read_head_config(path: Path) -> HeadConfig:
    """Read a config file; raise ValueError if it is not a head's config or of another schema."""
    config = load_config(path, SCHEMA, HeadConfig, "head")
    return replace(config, grid=tuple(config.grid))


class Head(PretrainedModel, tags=["video-classification"]):
    """Base class of recognition heads.

    A new architecture is a subclass registered with `register_head`. `make_head` calls its constructor as
    `(input, grid, num_classes, **arguments)`:

    - input: {"kind": a name in `vidtok.heads.INPUTS`, ...}, which `vidtok.heads.embed.make_embed` takes.
    - grid: (t, h, w) of the cells that the head sees, after `patch_merge`.
    - num_classes: classes of the last layer; 0, no last layer.
    - arguments: the other entries of `HeadConfig.net`, by keyword.

    The constructor calls that of `Head` and sets `embed`, and the subclass defines `encode`. A subclass overrides other
    members only where its architecture needs it:

    - `pool`: if it does not average the features [B, N, D] over N.
    - `no_weight_decay`: if it has other parameters without weight decay.
    - `group_matcher`: if its layers are not those of `embed`, `position` and `blocks`.
    - `compiled_parts`: if it has submodules under other names that torch.compile should compile.
    - `encode_cells`: for masked pretraining and probes, features of cells [B, t, h, w, D] (see `VideoTransformer`).

    `forward_features`, `forward_head` and `forward` are built from these members.

    Args:
        num_features: D.
        num_classes: classes of the last layer; 0, no last layer.
        head_drop: dropout before the last layer.

    Attributes:
        config: the `HeadConfig`, set by `make_head`.
        embed: input embedding, x -> [B, t, h, w, D'].
        norm: norm of the pooled features.
        compiled_parts: names of the submodules that are compiled in place.
        compiled_methods: names of the methods, besides `forward`, that also run compiled.
    """

    compiled_parts = ("embed", "position", "blocks", "query", "mlp")
    compiled_methods = ("encode", "forward_features", "pool", "forward_head")

    config: HeadConfig
    embed: nn.Module

    def __init__(self, num_features: int, num_classes: int, head_drop: float = 0.0):
        super().__init__()
        self.num_features = num_features
        self.norm: nn.Module = nn.LayerNorm(num_features)
        self.head_drop = nn.Dropout(head_drop)
        self._set_classifier(num_classes)

    def encode(self, x_BthwD: Tensor) -> Tensor:
        """Encode the output of `embed` to features [B, N, D]. Mixup is applied before it, for any kind of input."""
        raise NotImplementedError

    def forward_features(self, x: Tensor) -> Tensor:
        return self.encode(self.embed(x))

    def pool(self, f_BND: Tensor) -> Tensor:
        return f_BND.mean(1)

    def forward_head(self, f_BND: Tensor, pre_logits: bool = False) -> Tensor:
        pooled_BD = self.head_drop(self.norm(self.pool(f_BND)))
        return pooled_BD if pre_logits else self.head(pooled_BD)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))

    def load_backbone(self, pretrained: "Head") -> None:
        """Copy all weights but those of the last layer from a head of the same architecture and input.

        Raises:
            ValueError: another architecture, input or grid.
        """
        mine, other = self.config, pretrained.config
        for key in ("net", "input", "grid"):
            if getattr(mine, key) != getattr(other, key):
                raise ValueError(
                    f"head {other.name!r} has {key} {getattr(other, key)}, not {getattr(mine, key)}: give the settings "
                    "that it was trained with"
                )
        weights = {name: value for name, value in pretrained.state_dict().items() if not name.startswith("head.")}
        self.load_state_dict(weights, strict=False)

    # -------------------------------------------------------------- classes

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int) -> None:
        """Replace the last layer by a new one, and remove the class names and counts from the config."""
        self._set_classifier(num_classes)
        self.config = replace(self.config, num_classes=num_classes, classes=None, class_counts=None)

    def _set_classifier(self, num_classes: int) -> None:
        old = next(self.parameters()).device
        self.num_classes = num_classes
        self.head: nn.Module = nn.Identity()
        if num_classes:
            self.head = linear = nn.Linear(self.num_features, num_classes)
            trunc_normal_(linear.weight, std=0.02)
            nn.init.zeros_(linear.bias)
        self.head.to(old)

    # ------------------------------------------- parameter groups, for timm.optim

    def no_weight_decay(self) -> set[str]:
        """Return the names of parameters without weight decay besides biases and norms: positions and latents."""
        spared = ("position.", ".latent")
        return {name for name, _ in self.named_parameters() if any(part in f".{name}" for part in spared)}

    def group_matcher(self, coarse: bool = False) -> dict:
        """Return patterns that group parameters by depth, for layer-wise learning rates as in BEiT and VideoMAE."""
        return {"stem": r"^embed|^position", "blocks": r"^blocks\.(\d+)", "head": r".*"}

    # -------------------------------------------------------- load and save

    def record(
        self,
        classes: list[str] | None = None,
        tokenizer: dict | None = None,
        protocol: dict | None = None,
        name: str | None = None,
        class_counts: list[int] | None = None,
    ) -> None:
        """Record in `config` what the head was trained on; None keeps the current value.

        Args:
            classes: the name of each class number.
            tokenizer: {"name", "weight_hash"} of the tokenizer that produced the input, and "layer" of hidden features.
            protocol: sampling of the clips, see `HeadConfig`.
            name: name of the head in results.
            class_counts: number of training clips of each class.

        Raises:
            ValueError: the number of class names or counts differs from the classes of the last layer.
        """
        given: dict[str, Any] = {"classes": classes, "tokenizer": tokenizer, "protocol": protocol, "name": name}
        given["class_counts"] = class_counts
        self.config = replace(self.config, **{key: value for key, value in given.items() if value is not None})

    def validate_uncropped(self) -> None:
        """Raise ValueError if the head was trained on crops of the grid and therefore can't take whole grids."""
        if side := (self.config.protocol or {}).get("grid_crop"):
            raise ValueError(f"head {self.config.name!r} sees crops of {side} x {side} cells, not the whole grid")

    def check_classes(self) -> None:
        """Raise ValueError for a backbone, which has no classes."""
        if not self.config.num_classes:
            raise ValueError(
                f"head {self.config.name!r} is a backbone, without classes: fine-tune it first, "
                "vidtok eval finetune init=NAME"
            )

    def check_tokenizer(self, name: str, weight_hash: str, layer: str | None = None) -> None:
        """Raise ValueError unless the head was trained on the output of this tokenizer, or on pixels.

        layer: the tokenizer's layer of hidden features (`encoder.feature_layer`), for heads that read them.
        """
        source = self.config.tokenizer
        if source is not None and source["weight_hash"] != weight_hash:
            raise ValueError(
                f"head {self.config.name!r} reads {self.config.input['kind']} of tokenizer {source['name']!r} "
                f"({describe_weights(source['weight_hash'])}), not of {name!r} (weights {weight_hash})"
            )
        if source is not None and self.config.input["kind"] == "hidden" and source.get("layer") != layer:
            trained, given = (f"the {each or 'last'} layer" for each in (source.get("layer"), layer))
            raise ValueError(
                f"head {self.config.name!r} reads hidden features of {trained}, not of {given}: train it anew"
            )

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @classmethod
    def from_pretrained(  # type: ignore[override]  # the hub's takes other arguments
        cls, name: str | os.PathLike, device: str | torch.device = "cpu", **hub_arguments
    ) -> "Head":
        """Load a trained head in evaluation mode.

        Args:
            name: name of a shipped head (`list_shipped_heads`), folder with config.json and model.safetensors, or
                Hugging Face hub id ("owner/name").
            device: device of the head.
            hub_arguments: `revision`, `token`, `cache_dir`, ... of huggingface_hub.

        Raises:
            ValueError: the name is none of these, or the weights are missing or don't fit the config.
        """
        config, weights = find_pretrained(name, "head", SHIPPED, **hub_arguments)
        head = make_head(read_head_config(config))

        def known(tensor: str) -> str:
            if tensor == "embed.low.weight":
                raise ValueError(
                    f"head {head.config.name!r} is of an earlier version, with tables of ids: train it anew"
                )
            return tensor

        head.set_file_hash(load_weights(head, weights, known))
        return head.eval().to(device)

    def _describe(self) -> tuple[str, str]:
        return SCHEMA, "A recognition head for vidtok: `vidtok.heads.Head.from_pretrained(PATH)`."


HeadClass = TypeVar("HeadClass", bound=type[Head])


def register_head(kind: str) -> Callable[[HeadClass], HeadClass]:
    """Decorate a subclass of `Head`: `kind` is its name in configs."""

    def register(head_class: HeadClass) -> HeadClass:
        HEADS[kind] = head_class
        return head_class

    return register


def make_head(config: HeadConfig) -> Head:
    """Build an untrained head, in training mode on the CPU.

    Raises:
        ValueError: an unknown kind, input or argument, or a grid that is not divisible by the input's patch_merge.
    """
    arguments = dict(config.net)
    kind = arguments.pop("kind")
    if kind not in HEADS:
        raise ValueError(f"unknown head {kind!r}: {nearest(kind, HEADS)}")
    m = config.input.get("patch_merge", 1)
    t, h, w = config.grid
    if m < 1 or h % m or w % m:
        raise ValueError(f"patch_merge={m} needs a grid whose sides are multiples of {m}, not {h} x {w}")
    try:
        head = HEADS[kind](config.input, (t, h // m, w // m), config.num_classes, **arguments)
    except TypeError as error:  # an unknown argument: configs come from users
        raise ValueError(f"head {kind!r}: {error}") from error
    head.config = config
    return head


def list_shipped_heads() -> list[str]:
    """List the names that `Head.from_pretrained` accepts without a download."""
    return list_shipped(SHIPPED)


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
    from hydra import compose, initialize_config_module

    with initialize_config_module("vidtok.configs", version_base="1.3"):
        net = to_dict(compose(overrides=[f"+head={name}"]).head)
    input_settings = {"bits": bits, "channels": channels, "stride": list(stride)}
    return build_head({**net, **arguments}, name, input, num_classes, grid, patch_merge, input_settings)


def build_head(
    net: dict,
    name: str,
    input: str,
    num_classes: int,
    grid: tuple[int, int, int],
    patch_merge: int,
    input_settings: dict,
) -> Head:
    """Build an untrained head, in training mode on the CPU.

    Args:
        net: {"kind": a name in `HEADS`, **arguments of the class}.
        input_settings: {"bits", "channels", "stride"}, of which the one that `input` needs is used.
        name, input, num_classes, grid, patch_merge: see `create_head`.

    Raises:
        ValueError: see `create_head`.
    """
    if input not in INPUTS:
        raise ValueError(f"unknown input {input!r}: {nearest(input, INPUTS)}")
    key = INPUTS[input][1]
    if input_settings.get(key) is None:
        raise ValueError(f"input {input!r} needs {key}=: give it")
    spec = {"kind": input, "patch_merge": patch_merge, key: input_settings[key]}
    return make_head(HeadConfig(name, net, spec, (grid[0], grid[1], grid[2]), num_classes))
