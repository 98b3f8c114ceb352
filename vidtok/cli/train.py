"""Train a model.

    vidtok train tokenizer data.root=DIR trainer.max_minutes=60
    vidtok train tokenizer data.root=DIR trainer.max_minutes=60 init=vidtok-t     # go on from the shipped model
    vidtok train tokenizer data.root=DIR trainer.shape=constant run=A             # until it is stopped
    vidtok train tokenizer data.root=DIR branch=A run=B trainer.max_steps=2000    # A's checkpoint, decaying rate
    vidtok train tokenizer experiment=vidtok-t data.root=DIR                      # the recipe of the next shipped model
    vidtok train tokenizer --config data.root=DIR                                 # print the resolved config only
    torchrun --nproc-per-node 8 -m vidtok train tokenizer ...                     # eight processes share each batch

Everything after the kind of model is hydra: key=value, group=name. The run folder (run=DIR) holds the resolved config,
checkpoints, the model, TensorBoard scalars and pictures; the same command again goes on from its checkpoint.
"""

import argparse
import re
from importlib.resources import files

from vidtok.cli import options
from vidtok.cli.error import UserError
from vidtok.hints import nearest

# Settings that are null by default, and otherwise above 0.
COUNTS = {
    "cells", "image_batch_size", "latents", "max_steps", "resize", "save_steps", "train_clips", "train_views",
    "val_clips",
}  # fmt: skip
AMOUNTS = {"fps", "max_minutes"}

# What can be trained, each by the config train_KIND, and the function of `vidtok.builders` that gives the arguments of
# `vidtok.train.loop.train`.
BUILDERS = {"tokenizer": "build_tokenizer_training", "generator": "build_generator_training"}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=BUILDERS)
    options.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    cfg = compose_config(f"train_{args.kind}", args.overrides)
    from omegaconf import OmegaConf

    if args.config:
        print(OmegaConf.to_yaml(cfg))
        return
    validate_start(cfg, args.overrides)

    from vidtok import builders
    from vidtok.train.folder import RunFolder
    from vidtok.train.loop import train
    from vidtok.train.processes import is_lost_peer, join_processes
    from vidtok.train.stop import StopSignal

    arguments = getattr(builders, BUILDERS[args.kind])(cfg)
    processes = join_processes()
    folder = RunFolder(cfg.run)
    if args.kind == "generator":
        builders.hold_generator(cfg, arguments["state"].model.config)

    def say(line: str) -> None:
        processes.print(line, flush=True)

    if cfg.get("branch"):
        schedule = arguments["schedule"]
        lengths = {"steps": schedule.max_steps, "minutes": schedule.max_minutes}
        length = " or ".join(f"{number} {unit}" for unit, number in lengths.items() if number is not None)
        say(f"branch of {cfg.branch} from step {schedule.start_step}: the learning rate decays over {length}")
    text = OmegaConf.to_yaml(cfg, resolve=True)
    try:
        with StopSignal() as stop:
            train(**arguments, run=folder, stop=stop, config_yaml=text, say=say)
    except RuntimeError as error:
        if processes.num_processes == 1 or not is_lost_peer(error):
            raise
        raise UserError(
            f"process {processes.process_index} can't reach the others, of which one has ended (its own message or the "
            f"launcher's says why): the same command goes on from the last checkpoint in {folder.path}"
        ) from error
    say(f"model: {folder.path / 'model'}")
    processes.destroy_process_group()


def validate_start(cfg, overrides: list[str]) -> None:
    """Raise UserError for settings that contradict what the weights start as."""
    own_model = any(re.match(r"(model|quantizer)\b", override) for override in overrides)
    starts = ("branch", "init", "inflate", "grow")
    given = [key for key in starts if cfg.get(key) and any(override.startswith(f"{key}=") for override in overrides)]
    if len(given) > 1:
        raise UserError(f"give one of {'= and '.join(given)}=: each says what the weights start as")
    if given:  # instead of what an experiment names
        for key in starts:
            cfg[key] = cfg[key] if key in given else None
    for key in ("init", "branch"):
        if cfg.get(key) and own_model:
            raise UserError(f"{key} brings its own model: give either {key}=, or model= and quantizer=")
    if not cfg.get("branch"):
        return
    if any(re.match(r"trainer\.shape=(?!decay$)", override) for override in overrides):
        raise UserError("the learning rate of a branch decays: leave out trainer.shape=")
    if not any(override.startswith("run=") for override in overrides):
        raise UserError("a branch needs a folder of its own: give run=DIR")


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
        refuse_other_kinds(OmegaConf.to_container(compose(name, overrides=groups)), OmegaConf.to_container(cfg))
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


def refuse_other_kinds(old: dict, new: dict, prefix: str = "") -> None:
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
            refuse_other_kinds(value, new[key], f"{prefix}{key}.")


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
