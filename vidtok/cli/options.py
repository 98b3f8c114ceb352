"""Flags that several verbs share, and the tokenizer they ask for."""

import argparse


def add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", default="vidtok-t", metavar="NAME", help="shipped name, folder or hub id (%(default)s)"
    )
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")


def add_precision(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--precision", default="fp32", help="of the networks: fp32 (default) or bf16")


def add_output(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help=what)
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def add_reading(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--size", type=positive(int), metavar="PIXELS", help="resize the short side (default: native)")
    parser.add_argument("--fps", type=positive(float), help="resample by time (default: native)")
    parser.add_argument("--max-frames", type=positive(int), metavar="N", help="stop after N frames")


def add_tile(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--tile", type=positive(int), metavar="PIXELS", help="spatial tiles, for frames that don't fit")


def add_overrides(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE", help="hydra overrides")
    parser.add_argument("--config", action="store_true", help="print the resolved config and exit")


def refuse_idle(flags) -> None:
    """flags: (flag, whether it was given and would do nothing, why). Raises UserError for the first of these."""
    from vidtok.cli.error import UserError

    for flag, idle, why in flags:
        if idle:
            raise UserError(f"{flag} {why}")


def positive(kind: type):
    """An argparse type: `kind` above 0."""

    def parse(text: str):
        value = kind(text)
        if not value > 0:
            raise argparse.ArgumentTypeError(f"{text} is not above 0")
        return value

    parse.__name__ = kind.__name__
    return parse


def pick_device(name: str):
    """A torch.device; "auto" is CUDA where there is one. Raises UserError for one that isn't there."""
    import torch

    from vidtok.cli.error import UserError

    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"device {name!r}: {str(error).splitlines()[0]}") from error
    return device


def load_tokenizer(args: argparse.Namespace, precision: str | None = None):
    """The `VideoTokenizer` of --model, --device and --precision (or another one), ready for inference."""
    from vidtok.tokenizer import VideoTokenizer

    tokenizer = VideoTokenizer.from_pretrained(args.model, pick_device(args.device), precision or args.precision)
    if getattr(args, "tile", None) is not None:
        from vidtok.tiling import tile_cells

        tile_cells(args.tile, tokenizer.stride[1:])  # a wrong one is one error, not one for every file
    return tokenizer
