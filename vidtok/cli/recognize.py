"""What clips show, as a trained head sees it.

    vidtok recognize clip.mp4 --head digits-tokens           # a shipped head, a folder or a hub id
    vidtok recognize videos/ tokens/*.npz --head runs/mine/best --json

Every video is cut and seen as the head was trained: frames, rate, size, crops; the probabilities of several views are
averaged. Heads on tokens bring their tokenizer: the one recorded with them, or --model. Files of `vidtok encode` are
taken as they are, if they hold clips of that length and size by that tokenizer. A file that fails is named and the run
goes on.
"""

import argparse
import json
import sys

from vidtok.cli import common
from vidtok.names import escape_name, printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos or token files, folders of them, glob patterns")
    parser.add_argument("--head", required=True, metavar="NAME", help="shipped name, folder or hub id")
    parser.add_argument("--top", type=common.positive(int), default=5, metavar="K", help="labels shown (%(default)s)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each file instead of a table")
    parser.add_argument("--model", metavar="NAME", help="tokenizer (default: by the name recorded with the head)")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")


def run(args: argparse.Namespace) -> int:
    from vidtok.eval.recognition.recognizer import Recognizer

    failed = 0
    for found in Recognizer(args.head, args.model, args.device)(args.inputs, args.top):
        path = escape_name(str(found.path))
        if found.error is not None:
            failed += 1
            text = found.error if str(found.path) in found.error else f"{path}: {found.error}"
            print(f"vidtok: {printable(text)}", file=sys.stderr)
        elif args.json:
            labels = [{"label": label, "probability": round(p, 6)} for label, p in found.labels]
            print(json.dumps({"path": path, "views": found.views, "labels": labels}), flush=True)
        else:
            print(*[f"{path}  {p:6.1%}  {label}" for label, p in found.labels], sep="\n", flush=True)
    return 1 if failed else 0
