"""What clips show, as a trained head sees it.

    vidtok recognize clip.mp4 --head digits-tokens           # a shipped head, a folder or a hub id
    vidtok recognize videos/ tokens/*.npz --head runs/mine/best --json
    vidtok recognize hour.mp4 --head runs/mine/best --windows out --hop 1     # out/hour.csv, out/hour.srt

Every video is cut and seen as the head was trained: frames, rate, size, crops; the probabilities of several views are
averaged. Heads on tokens bring their tokenizer: the one recorded with them, or --model. Files of `vidtok encode` are
taken as they are, if they hold clips of that length and size by that tokenizer. A file that fails is named and the run
goes on.

--windows labels videos of any length window by window, as long as the clips that the head was trained on, in a csv of
the --top labels of each (start, end, label, probability) and in subtitles.
"""

import argparse
import json
import sys

from vidtok.cli import common
from vidtok.cli.progress import validate_flags
from vidtok.names import escape_name, printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos or token files, folders of them, glob patterns")
    parser.add_argument("--head", required=True, metavar="NAME", help="shipped name, folder or hub id")
    parser.add_argument("--top", type=common.positive(int), default=5, metavar="K", help="labels shown (%(default)s)")
    parser.add_argument("--json", action="store_true", help="a line of JSON for each file instead of a table")
    parser.add_argument("--windows", metavar="OUT", help="folder for the labels of every window of each video")
    help = "of a window, for a head that sees frames spread over a video"
    parser.add_argument("--seconds", type=common.positive(float), help=help)
    parser.add_argument("--hop", type=common.positive(float), metavar="SECONDS", help="between windows (end to end)")
    parser.add_argument("--force", action="store_true", help="overwrite files of windows")
    parser.add_argument("--model", metavar="NAME", help="tokenizer (default: by the name recorded with the head)")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")


def run(args: argparse.Namespace) -> int:
    from vidtok.eval.recognition.recognizer import Recognizer, label_windows

    validate_flags((
        ("--json", args.json and args.windows, "is without --windows, which writes csv"),
        ("--seconds", args.seconds and not args.windows, "is of --windows"),
        ("--hop", args.hop and not args.windows, "is of --windows"),
        ("--force", args.force and not args.windows, "is of --windows"),
    ))  # fmt: skip
    failed = 0
    if args.windows:
        recognizer = Recognizer(args.head, args.model, args.device)
        settings = {"seconds": args.seconds, "hop": args.hop, "top": args.top, "force": args.force}
        for video, table, answer in label_windows(recognizer, args.inputs, args.windows, **settings):
            if isinstance(answer, str):
                failed += 1
                text = answer if str(video) in answer else f"{video}: {answer}"
                print(f"vidtok: {printable(text)}", file=sys.stderr)
            else:
                print(printable(f"{video}: {answer} windows, {table}"), flush=True)
        return 1 if failed else 0
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
