"""Label videos with a trained recognition head.

    vidtok recognize clip.mp4 --head digits-tokens           # a shipped head, a folder or a hub id
    vidtok recognize videos/ tokens/*.npz --head runs/mine/best --json
    vidtok recognize hour.mp4 --head runs/mine/best --windows out --hop 1     # out/hour.csv, out/hour.srt

Every video is sampled as in the training of the head: frames, frame rate, size and crops. The probabilities of several
views are averaged. Heads on tokens use the tokenizer recorded with them, or --model. Token files of `vidtok encode` are
accepted if they hold clips of the head's length and size, encoded by its tokenizer. A file that fails is named, and the
run continues.

--windows labels videos of any length in windows of the length that the head was trained on. It writes a csv with the
--top labels of each window (start, end, label, probability) and subtitles with the most probable label.
"""

import argparse
import json
import sys

from vidtok.cli import common
from vidtok.cli.progress import validate_flags
from vidtok.names import escape_name, printable


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, token files, folders, glob patterns")
    parser.add_argument("--head", required=True, metavar="NAME", help="recognition head: name, folder or hub id")
    parser.add_argument(
        "--top", type=common.positive(int), default=5, metavar="K", help="number of labels (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line per file instead of a table")
    parser.add_argument("--windows", metavar="OUT", help="label windows of videos; folder for the results")
    help = "length of a window in seconds, for heads on frames spread over a video"
    parser.add_argument("--seconds", type=common.positive(float), help=help)
    help = "seconds between the starts of windows (default: length of a window)"
    parser.add_argument("--hop", type=common.positive(float), metavar="SECONDS", help=help)
    parser.add_argument("--force", action="store_true", help="overwrite existing files of --windows")
    parser.add_argument("--model", metavar="NAME", help="tokenizer: name, folder or hub id (default: the head's)")
    parser.add_argument("--device", default="auto", help="device: auto (cuda if available), cpu, cuda, cuda:1, ...")


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
