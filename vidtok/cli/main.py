"""`vidtok VERB ...`. A verb's module is imported only when it runs, so that --help is quick.

Every module in `vidtok.cli` named here has `configure(parser)` and `run(args)`. What the user did wrong is raised as
`UserError`, ValueError, VideoError (a ValueError too), OSError or MemoryError, and becomes one line and exit status 1.
"""

import argparse
import sys
from importlib import import_module

VERBS = {
    "demo": "show what a tokenizer does to one clip",
    "encode": "videos to token files",
    "decode": "token files to videos",
    "reconstruct": "videos through the tokenizer and back",
    "info": "what a tokenizer, a token file or a video is",
    "eval": "measure: eval reconstruction",
    "train": "train a model: train tokenizer",
    "bench": "measure speed and memory: bench tokenizer",
}


class UserError(Exception):
    """Something that the user can put right; its text is the one line that they see."""


def main(argv: list[str] | None = None) -> int:
    argv = sys.argv[1:] if argv is None else argv
    parser = argparse.ArgumentParser(prog="vidtok", description="Video as discrete tokens.")
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
    module = import_module(f"vidtok.cli.{args.verb}")
    verb_parser = argparse.ArgumentParser(
        prog=f"vidtok {args.verb}",
        description=module.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    module.configure(verb_parser)
    try:
        return module.run(verb_parser.parse_intermixed_args(argv[1:])) or 0
    except KeyboardInterrupt:
        print("vidtok: stopped", file=sys.stderr)
        return 130
    except (UserError, ValueError, OSError, MemoryError, FloatingPointError) as error:
        print(f"vidtok: {' '.join(str(error).split())}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
