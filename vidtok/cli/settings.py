"""Arguments of commands whose settings are a hydra config (KEY=VALUE, --config), and flags of sampling."""

import argparse
from functools import partial

log = partial(print, flush=True)  # called with each line of progress


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="settings to override (hydra syntax)")
    parser.add_argument(
        "--config", action="store_true", help="print the resolved config and the options of its groups, and exit"
    )


def show_config(args: argparse.Namespace, name: str) -> bool:
    """Print the config `name` and the options of its groups if --config is given; return whether it is."""
    if args.config:
        from vidtok.configs.compose import describe_config

        print(describe_config(name, args.overrides))
    return args.config


SAMPLING = {
    "steps": (int, "number of sampling steps (default: that of the kind of generator)"),
    "guidance": (float, "scale of classifier-free guidance; 1, none (default)"),
    "guidance_schedule": (str, "growth of the guidance over the steps: constant (default), linear or cosine"),
    "temperature": (float, "temperature of token sampling; 0, greedy (default: 1)"),
    "choice_temperature": (float, "scale of the noise on the confidence, for masked generators (default: 4.5)"),
    "schedule": (str, "mask schedule of masked generators: cosine (default) or uniform"),
    "top_k": (int, "number of likeliest values to sample from, for autoregressive generators (default: all)"),
    "top_p": (float, "probability mass to sample from (nucleus), for autoregressive generators (default: 1)"),
    "solver": (str, "solver of diffusion generators: ddim (default) or dpm"),
}
