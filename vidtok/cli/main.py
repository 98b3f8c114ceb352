"""`vidtok VERB ...`. A verb's module is imported only when it runs, so that --help is quick.

Every module in `vidtok.cli` named here has `configure(parser)` and `run(args)`, which returns the exit status or None;
or it is a package with KINDS, kind -> what it does, whose modules have the two (`vidtok eval probe`: `eval/probe.py`).
What the user did wrong (see `is_expected`) becomes one line and exit status 1, or a traceback with --debug or
VIDTOK_DEBUG=1. A programming error keeps its traceback.
"""

import argparse
import os
import sys
import warnings
from importlib import import_module

from vidtok.errors import RENAMED, is_expected, one_line
from vidtok.names import printable

VERBS = {
    "demo": "show what a tokenizer does to one clip",
    "extract": "videos to features, at any scale",
    "encode": "videos to token files",
    "decode": "token files to videos",
    "compress": "a video to one entropy-coded file",
    "decompress": "such a file to a video, whole or in part",
    "reconstruct": "videos through the tokenizer and back",
    "recognize": "what clips show: labels and probabilities of a trained head",
    "info": "what a tokenizer, features or a video is",
    "eval": "measure: eval reconstruction, recognition, generation, compare, probe, ...",
    "train": "train a model: train tokenizer, generator",
    "generate": "new clips from a trained generator",
    "bench": "measure speed and memory: bench tokenizer, magvit2, streaming, loss, train, or all; generate, loader",
    "check": "decode every video of a dataset and say which are bad",
}


def main(argv: list[str] | None = None) -> int:
    if hasattr(sys.stdout, "reconfigure"):  # a name is printed, whatever the encoding of the terminal
        sys.stdout.reconfigure(errors="backslashreplace")
    argv = sys.argv[1:] if argv is None else argv
    end = [*argv, "--"].index("--")  # behind it, too, argparse takes a name that begins with a dash for an option
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
    """Add --debug to the help; `main` takes it wherever it stands."""
    # Suppressed: commands pass their arguments on to library functions, which know none of it.
    text = "show the traceback of every error (or VIDTOK_DEBUG=1)"
    parser.add_argument("--debug", action="store_true", default=argparse.SUPPRESS, help=text)


def one_line_once(seen: set[str]):
    """A `warnings.formatwarning` without a line of our code, and with nothing for what has been said."""

    def format_warning(message, *_, **__) -> str:
        text = f"vidtok: {printable(str(message))}\n"
        if text in seen:
            return ""
        seen.add(text)
        return text

    return format_warning


def pick_kind(module, verb: str, argv: list[str]) -> str:
    """The kind of a verb with several; --help and an unknown one end the program, as argparse does it."""
    parser = argparse.ArgumentParser(
        prog=f"vidtok {verb}", description=module.__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    kinds = parser.add_subparsers(dest="kind", metavar="KIND", required=True)
    for kind, text in module.KINDS.items():
        kinds.add_parser(kind, help=text, add_help=False)
    return parser.parse_args(argv).kind
