"""Compose hydra configs, with errors that name the nearest legal key."""

import re
from importlib.resources import files

from vidtok.errors import UserError, nearest

# Settings that are null by default, and otherwise above 0.
COUNTS = {
    "cells", "image_batch_size", "latents", "max_steps", "resize", "save_steps", "train_clips", "train_views",
    "val_clips",
}  # fmt: skip
AMOUNTS = {"fps", "max_minutes"}


def compose_config(name: str, overrides: list[str]):
    """The resolved config; an unknown key or group is a UserError that names the nearest one."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if added := [o for o in overrides if o.startswith(("+", "~"))]:
        raise UserError(f"keys are neither added nor removed: {added[0]}")
    if bare := [o for o in overrides if "=" not in o[1:]]:
        raise UserError(f"{bare[0]!r} sets nothing: want KEY=VALUE")
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        try:
            cfg = compose(name, overrides=overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(str(error), flat_keys(OmegaConf.to_container(compose(name))))) from error
        groups = [o for o in overrides if files("vidtok.configs").joinpath(o.split("=")[0]).is_dir()]
        validate_types(OmegaConf.to_container(compose(name, overrides=groups)), OmegaConf.to_container(cfg))
        try:
            OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise UserError(f"{error.full_key} is needed: give {error.full_key}=VALUE") from error
    return cfg


def explain(message: str, keys: list[str]) -> str:
    """hydra's message in one line, with the nearest key where one is unknown."""
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
    """Raises UserError where a setting has become another kind of thing than it is by default; null goes anywhere."""
    for key, value in old.items():
        wanted, given = kind_of(value), kind_of(new[key])
        if value is None and given and key in COUNTS | AMOUNTS:
            kinds, what = (int, "whole number") if key in COUNTS else ((int, float), "number")
            if given != "a number" or not isinstance(new[key], kinds) or not new[key] > 0:
                raise UserError(f"{prefix}{key} is a {what} above 0, and not {new[key]!r}")
        one_of_many = (wanted, given) == ("a list", "a number") and key != "scale"  # of sizes, one
        if wanted and given and wanted != given and not one_of_many:
            raise UserError(f"{prefix}{key} is {wanted}, such as {value}, and not {new[key]!r}")
        if isinstance(value, dict) and isinstance(new[key], dict):
            validate_types(value, new[key], f"{prefix}{key}.")


def kind_of(value: object) -> str | None:
    if isinstance(value, bool):
        return "true or false"
    if isinstance(value, int | float):
        return "a number"
    kinds = {str: "text", list: "a list", dict: "keys"}
    return None if value == "???" else kinds.get(type(value))


def flat_keys(tree: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += flat_keys(value, f"{prefix}{key}.")
    return keys
