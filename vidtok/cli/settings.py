"""Commands whose settings are a hydra config: KEY=VALUE arguments, and --config."""

import argparse
from functools import partial

log = partial(print, flush=True)  # takes lines of progress


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="hydra overrides")
    parser.add_argument("--config", action="store_true", help="print the resolved config and exit")


def show_config(args: argparse.Namespace, name: str) -> bool:
    """Print the config `name` and what its groups offer, where --config is given; return whether it is."""
    if args.config:
        from vidtok.configs.compose import describe_config

        print(describe_config(name, args.overrides))
    return args.config


SAMPLING = {
    "steps": (int, "of sampling (default: the kind's own)"),
    "guidance": (float, "strength of classifier-free guidance, 1 is none (default)"),
    "guidance_schedule": (str, "constant (default), linear, cosine"),
    "temperature": (float, "of the tokens drawn (default 1)"),
    "choice_temperature": (float, "masked: noise on what is kept (default 4.5)"),
    "schedule": (str, "masked: cosine (default) or uniform"),
    "top_k": (int, "autoregressive: of each half of a token"),
    "top_p": (float, "autoregressive: of each half of a token"),
    "solver": (str, "diffusion: ddim (default) or dpm"),
}
