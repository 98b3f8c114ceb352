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


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos or token files, folders of them, glob patterns")
    parser.add_argument("--head", required=True, metavar="NAME", help="shipped name, folder or hub id")
    parser.add_argument("--top", type=common.positive(int), default=5, metavar="K", help="labels shown (%(default)s)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each file instead of a table")
    parser.add_argument("--model", metavar="NAME", help="tokenizer (default: by the name recorded with the head)")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")


def run(args: argparse.Namespace) -> int:
    from vidtok.datasets.decode import VIDEO_SUFFIXES
    from vidtok.errors import is_expected, one_line
    from vidtok.eval.recognition.prediction import Recognizer
    from vidtok.files import find_files

    files = [file for file, _ in find_files(args.inputs, (*VIDEO_SUFFIXES, ".npz"))]
    recognizer = Recognizer(args.head, args.model, args.device)
    failed = 0
    for file in files:
        try:
            probabilities, views = recognizer.file(file)
        except Exception as error:
            if not is_expected(error):
                raise
            failed += 1
            text = one_line(error)
            print(f"vidtok: {text if str(file) in text else f'{file}: {text}'}", file=sys.stderr)
            continue
        top = recognizer.top(probabilities, args.top)
        if args.json:
            labels = [{"label": label, "probability": round(p, 6)} for label, p in top]
            print(json.dumps({"path": str(file), "views": views, "labels": labels}), flush=True)
        else:
            print(*[f"{file}  {p:6.1%}  {label}" for label, p in top], sep="\n", flush=True)
    return 1 if failed else 0
