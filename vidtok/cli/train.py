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
from importlib import import_module

from vidtok.cli import common
from vidtok.errors import UserError

# What can be trained, each by the config train_KIND, and the function that gives the arguments of
# `vidtok.train.loop.train`.
BUILDERS = {
    "tokenizer": ("vidtok.train.tokenizer", "build_tokenizer_training"),
    "generator": ("vidtok.generator.training", "build_generator_training"),
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=BUILDERS)
    common.add_overrides(parser)


def run(args: argparse.Namespace) -> None:
    from vidtok.configs.compose import compose_config
    from vidtok.generator.training import check_generator

    cfg = compose_config(f"train_{args.kind}", args.overrides)
    from omegaconf import OmegaConf

    if args.config:
        print(OmegaConf.to_yaml(cfg))
        return
    validate_start(cfg, args.overrides)

    from vidtok.train.distributed import is_lost_peer, join_processes
    from vidtok.train.loop import StopSignal, train
    from vidtok.train.run_folder import RunFolder

    module, name = BUILDERS[args.kind]
    arguments = getattr(import_module(module), name)(cfg)
    processes = join_processes()
    folder = RunFolder(cfg.run)
    if args.kind == "generator":
        check_generator(cfg, arguments["state"].model.config)

    def log(line: str) -> None:
        processes.print(line, flush=True)

    if cfg.get("branch"):
        schedule = arguments["schedule"]
        lengths = {"steps": schedule.max_steps, "minutes": schedule.max_minutes}
        length = " or ".join(f"{number} {unit}" for unit, number in lengths.items() if number is not None)
        log(f"branch of {cfg.branch} from step {schedule.start_step}: the learning rate decays over {length}")
    text = OmegaConf.to_yaml(cfg, resolve=True)
    try:
        with StopSignal() as stop:
            train(**arguments, run=folder, stop=stop, config_yaml=text, log=log)
    except RuntimeError as error:
        if processes.num_processes == 1 or not is_lost_peer(error):
            raise
        raise UserError(
            f"process {processes.process_index} can't reach the others, of which one has ended (its own message or the "
            f"launcher's says why): the same command goes on from the last checkpoint in {folder.path}"
        ) from error
    log(f"model: {folder.path / 'model'}")
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
