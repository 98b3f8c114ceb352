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
