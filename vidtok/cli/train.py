"""Train a model.

    vidtok train tokenizer data.root=DIR trainer.max_minutes=60
    vidtok train tokenizer data.root=DIR trainer.max_minutes=60 init=vidtok-t     # go on from the shipped model
    vidtok train tokenizer experiment=vidtok-t data.root=DIR                      # the recipe of the shipped model
    vidtok train tokenizer --config data.root=DIR                                 # print the resolved config only
    torchrun --nproc-per-node 8 -m vidtok train tokenizer ...                     # eight processes share each batch

Everything after the kind of model is hydra: key=value, group=name. The run folder (run=DIR) holds the resolved config,
checkpoints, the model, TensorBoard scalars and pictures; the same command again goes on from its checkpoint.
"""

import argparse
import re
import warnings
from pathlib import Path

from vidtok.cli.error import UserError
from vidtok.hints import nearest


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=["tokenizer"])
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="hydra overrides")
    parser.add_argument("--config", action="store_true", help="print the resolved config and exit")


def run(args: argparse.Namespace) -> None:
    cfg = compose_config(f"train_{args.kind}", args.overrides)
    from omegaconf import OmegaConf

    if args.config:
        print(OmegaConf.to_yaml(cfg))
        return
    if cfg.init and any(re.match(r"(model|quantizer)\b", override) for override in args.overrides):
        raise UserError("init brings its own model: give either init=, or model= and quantizer=")

    from vidtok.builders import build_trainer
    from vidtok.train.folder import RunFolder
    from vidtok.train.loop import train
    from vidtok.train.processes import join_processes
    from vidtok.train.stop import StopSignal

    lpips = load_lpips(cfg)
    if lpips is None:
        cfg.loss.perceptual = 0.0
    parts = build_trainer(cfg)
    clips = fixed_clips(cfg.validation.root, cfg.validation.clips)
    processes = join_processes()
    folder = RunFolder(cfg.run)

    def say(line: str) -> None:
        processes.print(line, flush=True)

    text = OmegaConf.to_yaml(cfg, resolve=True)
    with StopSignal() as stop:
        train(**parts, fixed_clips=clips, run=folder, stop=stop, config_yaml=text, lpips=lpips, say=say)
    say(f"model: {folder.path / 'model'}")
    processes.destroy_process_group()


def compose_config(name: str, overrides: list[str]):
    """The resolved config; an unknown key or group is a UserError that names the nearest one."""
    from hydra import compose, initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException

    if added := [o for o in overrides if o.startswith(("+", "~"))]:
        raise UserError(f"keys are neither added nor removed: {added[0]}")
    with initialize_config_module("vidtok.configs", version_base="1.3"):
        try:
            cfg = compose(name, overrides=overrides)
        except (HydraException, OmegaConfBaseException) as error:
            raise UserError(explain(str(error), flat_keys(OmegaConf.to_container(compose(name))))) from error
        try:
            OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue as error:
            raise UserError(f"{error.full_key} is needed: give {error.full_key}=VALUE") from error
    return cfg


def explain(message: str, keys: list[str]) -> str:
    """hydra's message in one line, with the nearest key where one is unknown."""
    first = message.splitlines()[0]
    if match := re.search(r"Could not override '([^']+)'", message):
        return f"unknown key {match[1]!r}: {nearest(match[1], keys)}"
    if match := re.search(r"Could not find '([^']+)'", message):
        group, _, name = match[1].rpartition("/")
        options = re.findall(r"^\t(\S+)$", message, re.MULTILINE)
        return f"unknown {group or 'config'} {name!r}: {nearest(name, options)}"
    return first


def flat_keys(tree: dict, prefix: str = "") -> list[str]:
    keys = []
    for key, value in tree.items():
        keys.append(prefix + key)
        if isinstance(value, dict):
            keys += flat_keys(value, f"{prefix}{key}.")
    return keys


def load_lpips(cfg):
    """The LPIPS network, or None where its weight is 0 or its weights are absent (said in a warning)."""
    if cfg.loss.perceptual == 0:
        return None
    if cfg.lpips.weights is None:
        warnings.warn("no lpips.weights=FILE: training without the perceptual term", stacklevel=2)
        return None
    from vidtok.lpips import LPIPS

    return LPIPS(cfg.lpips.net, cfg.lpips.weights)


def fixed_clips(root: str | None, count: int) -> list:
    """The first 17 frames at 128x128 of `count` videos, spread over the sorted files of a folder."""
    if root is None:
        return []
    from vidtok.datasets import read_video
    from vidtok.datasets.container import VIDEO_SUFFIXES

    files = sorted(p for p in Path(root).rglob("*") if p.suffix.lower() in VIDEO_SUFFIXES)
    if not files:
        raise UserError(f"validation.root={root} holds no video")
    return [
        read_video(p, size=(128, 128), max_frames=17) for p in files[:: max(1, len(files) // max(1, count))][:count]
    ]
