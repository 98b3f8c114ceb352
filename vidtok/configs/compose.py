"""Composition of hydra configs, with errors that name the nearest legal key.

Settings have two equivalent forms, which may be mixed: hydra overrides ("optimizer.lr=1e-3", "head=linear") and a
nested mapping ({"optimizer": {"lr": 1e-3}, "head": "linear"}). Functions for training accept both:

    finetune("recipe=k400-linear", data={"source": "train.csv", "root": "videos"}, trainer={"max_steps": 100})
"""

import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any, cast

from vidtok.errors import UserError, nearest
from vidtok.remote import ADDRESS

if TYPE_CHECKING:
    from omegaconf import Container, DictConfig

Settings = Sequence[str] | Mapping[str, object]  # hydra overrides, or a nested mapping
CONFIGS = Path(__file__).parent

# Settings that are null by default, and must be above 0 otherwise.
COUNTS = {
    "grid_crop", "image_batch_size", "latents", "max_steps", "resize", "save_steps", "train_clips", "train_views",
    "val_clips",
}  # fmt: skip
AMOUNTS = {"fps", "max_flops", "max_minutes"}

# Patterns of the options that a config offers of a shared group. All options of other groups are offered.
OFFERED: dict[str, dict[str, tuple[str, ...]]] = {
    "train_tokenizer": {"data": ("digits", "folder")},
    "train_generator": {"data": ("generation",), "experiment": ("generator/*",)},
    "finetune": {"data": ("labeled",)},
}


def compose_config(name: str, *settings: Settings, complete: bool = True) -> "DictConfig":
    """Compose the config `name`.yaml with settings. Later settings override earlier ones.

    Args:
        name: name of a file in this folder.
        settings: hydra overrides or nested mappings. A group takes the name of one of its options, {"head": "linear"},
            or new values for the default option's keys, {"head": {"dim": 64}}.
        complete: whether a setting without a value (??? in the YAML) is an error.

    Returns:
        An OmegaConf `DictConfig`.

    Raises:
        UserError: an unknown key or option (the message names the nearest legal one), a value of another type than the
            default, or a missing value.
    """
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    overrides, mappings = split_settings(settings)
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        try:
            cfg = compose(name, overrides=overrides)
            for mapping in mappings:
                update(cfg, mapping)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(str(error), flat_keys(to_dict(compose(name), resolve=False)))) from error
        groups = [o for o in overrides if is_group(o.split("=")[0])]
        defaults = compose(name, overrides=groups)
        validate_types(to_dict(defaults, resolve=False), to_dict(cfg, resolve=False))
    for key in ("run", "data.cache"):
        if ADDRESS.match(str(OmegaConf.select(cfg, key))):
            raise UserError(f"{key} is a folder on this machine, not an address")
    if complete:
        try:
            OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise UserError(f"{error.full_key} is needed: give {error.full_key}=VALUE") from error
    return cfg


def to_dict(cfg: "Container", resolve: bool = True) -> dict[str, Any]:
    """Return a config as nested plain dicts and lists. resolve: whether references ${...} are replaced by values."""
    from omegaconf import OmegaConf

    return cast("dict[str, Any]", OmegaConf.to_container(cfg, resolve=resolve))


def split_settings(layers: Sequence[Settings]) -> tuple[list[str], list[dict]]:
    """Split settings into (overrides for hydra, mappings to apply after them), so that later layers win.

    Options of groups always become overrides. Hydra overrides after a mapping become mappings.
    """
    from omegaconf import OmegaConf

    overrides: list[str] = []
    mappings: list[dict] = []
    for layer in filter(None, layers):
        if isinstance(layer, Mapping):
            chosen = {key: value for key, value in layer.items() if isinstance(value, str) and is_group(key)}
            overrides += [f"{key}={value}" for key, value in chosen.items()]
            mappings.append({key: plain(value) for key, value in layer.items() if key not in chosen})
            continue
        if added := [o for o in layer if o.startswith(("+", "~"))]:
            raise UserError(f"keys are neither added nor removed: {added[0]}")
        if bare := [o for o in layer if "=" not in o[1:]]:
            raise UserError(f"{bare[0]!r} sets nothing: want KEY=VALUE")
        if not mappings:
            overrides += layer
            continue
        more = split_settings([to_dict(OmegaConf.from_dotlist([override]), resolve=False) for override in layer])
        overrides, mappings = overrides + more[0], mappings + more[1]
    return overrides, mappings


def is_group(key: str) -> bool:
    return (CONFIGS / key.split("@")[0]).is_dir()


def plain(value: object) -> object:
    """Convert a value to YAML types: paths become strings, tuples lists."""
    if isinstance(value, Mapping):
        return {key: plain(each) for key, each in value.items()}
    if isinstance(value, list | tuple):
        return [plain(each) for each in value]
    return str(value) if isinstance(value, PurePath) else value


def update(cfg, mapping: Mapping, prefix: str = "") -> None:
    """Set the values of a nested mapping in a config. A nested mapping changes only the keys that it names."""
    from omegaconf import OmegaConf

    for key, value in mapping.items():
        if isinstance(value, Mapping) and OmegaConf.is_dict(OmegaConf.select(cfg, prefix + key)):
            update(cfg, value, f"{prefix}{key}.")
        else:
            OmegaConf.update(cfg, prefix + key, value, merge=False)


def given_keys(*settings: Settings) -> set[str]:
    """Return the dotted keys that settings give a value: {"optimizer.lr", "head"}."""
    keys: set[str] = set()
    for layer in settings:
        keys |= set(flat_keys(layer)) if isinstance(layer, Mapping) else {o.split("=")[0] for o in layer}
    return keys


def describe_config(name: str, *settings: Settings) -> str:
    """Return the composed config as YAML, with ??? for missing values and the options of each group in comments."""
    from omegaconf import OmegaConf

    yaml = OmegaConf.to_yaml(compose_config(name, *settings, complete=False))
    lines = [yaml, "# Options of the groups, GROUP=OPTION:"]
    for group, options in list_options(name).items():
        indent = f"# {group}: "
        lines += textwrap.wrap(
            ", ".join(options), 110, initial_indent=indent, subsequent_indent="#     ", break_on_hyphens=False
        )
    return "\n".join(lines)


def list_options(name: str) -> dict[str, list[str]]:
    """Return {group: its options} for the groups of a config that have several options."""
    from omegaconf import OmegaConf

    found: dict[str, list[str]] = {}
    for entry in to_dict(OmegaConf.load(CONFIGS / f"{name}.yaml"), resolve=False)["defaults"]:
        if isinstance(entry, Mapping):
            (group,) = entry
            folder = CONFIGS / group.split("@")[0]
            paths = [path for each in OFFERED.get(name, {}).get(group, ("*",)) for path in folder.glob(f"{each}.yaml")]
            if len(paths) > 1:
                found[group] = sorted(path.relative_to(folder).as_posix().removesuffix(".yaml") for path in paths)
        elif entry != "_self_":  # a config that this one extends
            found |= list_options(entry)
    return found


def explain(message: str, keys: list[str]) -> str:
    """Convert hydra's message to one line, which names the nearest key if a key is unknown."""
    first = message.splitlines()[0]
    if match := re.search(r"full_key: (\S+)", message):
        return f"unknown key {match[1]!r}: {nearest(match[1], keys)}"
    if match := re.search(r"Could not override '([^']+)'", message):
        if inside := [key.removeprefix(f"{match[1]}.") for key in keys if key.startswith(f"{match[1]}.")]:
            return f"{match[1]} has the keys {', '.join(inside)} and no others"
        return f"unknown key {match[1]!r}: {nearest(match[1], keys)}"
    if match := re.search(r"Could not find '([^']+)'", message):
        group, _, name = match[1].rpartition("/")
        options = re.findall(r"^\t(\S+)$", message, re.MULTILINE)
        return f"unknown {group or 'config'} {name!r}: {nearest(name, options)}"
    return first


def validate_types(old: dict, new: dict, prefix: str = "") -> None:
    """Raise UserError for a setting of another type than its default. null is always legal."""
    for key, value in old.items():
        wanted, given = kind_of(value), kind_of(new[key])
        if value is None and given and key in COUNTS | AMOUNTS:
            kinds, what = (int, "whole number") if key in COUNTS else ((int, float), "number")
            if given != "a number" or not isinstance(new[key], kinds) or not new[key] > 0:
                raise UserError(f"{prefix}{key} is a {what} above 0, and not {new[key]!r}")
        one_of_many = (wanted, given) == ("a list", "a number") and key != "scale"  # a single size
        if wanted and given and wanted != given and not one_of_many:
            raise UserError(f"{prefix}{key} is {wanted}, such as {value}, and not {new[key]!r}")
        if isinstance(value, dict) and isinstance(new[key], dict):
            validate_types(value, new[key], f"{prefix}{key}.")


def kind_of(value: object) -> str | None:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    kinds: dict[type, str] = {str: "text", list: "a list", dict: "a mapping"}
    return None if value == "???" else kinds.get(type(value))


def flat_keys(tree: Mapping, prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += flat_keys(value, f"{prefix}{key}.")
    return keys
