"""Entry point of the command line, `vidtok VERB ...`.

Each verb has a module in `vidtok.cli`: `configure(parser)` adds its flags, `run(args)` returns the exit status or None.
A verb with several kinds is a package with KINDS ({kind: help}) and a module per kind. Only what runs is imported.

User errors (see `is_expected`) are printed as one line, with exit status 1; --debug or VIDTOK_DEBUG=1 shows their
traceback. Programming errors always show it.
"""

import argparse
import os
import sys
import warnings
from importlib import import_module

from vidtok.errors import RENAMED, is_expected, one_line
from vidtok.names import printable

VERBS = {
    "demo": "encode and decode one clip, and recognize actions from tokens",
    "extract": "extract tokens or features of videos, at any scale",
    "encode": "encode videos to token files",
    "decode": "decode token files to videos",
    "compress": "compress a video to a .vtk file of entropy-coded tokens",
    "decompress": "decompress a .vtk file to a video, whole or in part",
    "reconstruct": "encode and decode videos, to see the quality of a tokenizer",
    "recognize": "label videos with a trained recognition head",
    "info": "describe a tokenizer, head, generator, features or video",
    "eval": "evaluate a model: eval reconstruction, recognition, generation, compare, probe, ...",
    "train": "train a model: train tokenizer, generator, pretrain, prior",
    "generate": "generate clips with a trained generator",
    "bench": "measure speed and memory: bench tokenizer, magvit2, streaming, loss, train, all, generate, loader",
    "check": "decode every video of a dataset and report the bad ones",
}


def main(argv: list[str] | None = None) -> int:
    if hasattr(sys.stdout, "reconfigure"):  # so that any file name can be printed
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    end = [*argv, "--"].index("--")  # argparse takes names that start with a dash as options even after it
    argv = argv[:end] + [f"./{name}" if name.startswith("-") else name for name in argv[end + 1 :]]
    debug = "--debug" in argv or os.environ.get("VIDTOK_DEBUG", "") not in ("", "0")
    argv = [argument for argument in argv if argument != "--debug"]
    parser = argparse.ArgumentParser(prog="vidtok", description="Video as discrete tokens.")
    add_debug(parser)
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB")
    for verb, text in VERBS.items():
        verbs.add_parser(verb, help=text, add_help=False)
    args, rest = parser.parse_known_args(argv[:1])
    if args.version:
        from vidtok import __version__

        print(f"vidtok {__version__}")
        return 0
    if args.verb is None:
        parser.print_help()
        return 0 if not rest else 2
    module, rest, name = import_module(f"vidtok.cli.{args.verb}"), argv[1:], args.verb
    if hasattr(module, "KINDS"):
        kind = pick_kind(module, args.verb, rest[:1])
        module, rest = import_module(f"vidtok.cli.{args.verb}.{kind.replace('-', '_')}"), rest[1:]
        name = f"{args.verb} {kind}"
    verb_parser = argparse.ArgumentParser(
        prog=f"vidtok {name}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_debug(verb_parser)
    warnings.formatwarning = one_line_once(set())
    module.configure(verb_parser)
    for flag in rest:
        if flag.startswith("--") and flag[2:] in RENAMED:
            verb_parser.error(f"unknown flag {flag}: did you mean --{RENAMED[flag[2:]]}?")
    try:
        return module.run(verb_parser.parse_intermixed_args(rest)) or 0
    except KeyboardInterrupt:
        print("vidtok: stopped", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `vidtok info ... | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except Exception as error:
        if debug or not is_expected(error):
            raise
        print(f"vidtok: {printable(one_line(error))}", file=sys.stderr)
        return 1


def add_debug(parser: argparse.ArgumentParser) -> None:
    """Add --debug to the help. `main` itself accepts it at any place."""
    # Suppressed: commands pass their arguments on to library functions, which have no such argument.
    text = "show the traceback of every error (or set VIDTOK_DEBUG=1)"
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)


def one_line_once(seen: set[str]):
    """Return a `warnings.formatwarning` that prints one line per message, and repeated messages only once."""

    def format_warning(message, *_, **__) -> str:
        text = f"vidtok: {printable(str(message))}\n"
        if text in seen:
            return ""
        seen.add(text)
        return text

    return format_warning


def pick_kind(module, verb: str, argv: list[str]) -> str:
    """Parse the kind of a verb with several; --help or an unknown kind exits, as in argparse."""
    parser = argparse.ArgumentParser(
        prog=f"vidtok {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, text in module.KINDS.items():
        kinds.add_parser(kind, help=text, add_help=False)
    return parser.parse_args(argv).kind
