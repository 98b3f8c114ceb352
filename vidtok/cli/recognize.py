"""Label videos with a trained recognition head.

    vidtok recognize clip.mp4 --head digits-tokens           # a shipped head, a folder or a hub id
    vidtok recognize videos/ tokens/*.npz --head runs/mine/best --json
    vidtok recognize hour.mp4 --head runs/mine/best -o labels.csv -o labels.srt -o overlay.mp4 --hop 1
    vidtok recognize videos/ --head runs/mine/best -o out --formats csv,vtt    # out/NAME.csv, out/NAME.vtt

Every video is sampled as in the training of the head: frames, frame rate, size and crops. The probabilities of several
views are averaged. Heads on tokens use the tokenizer recorded with them, or --model. Token files of `vidtok encode` are
accepted if they hold clips of the head's length and size, encoded by its tokenizer. A file that fails is named, and the
run continues.

-o (or --windows) labels videos of any length in windows of the length that the head was trained on, in bounded memory.
The suffix of OUT says what is written: .csv, the --top labels of each window (start, end, label, probability); .srt or
.vtt, subtitles with the most probable label; .mp4, .mov or .mkv, the video with this label below the picture and with
its audio. A folder gets files in --formats.
"""

import argparse
import json
import sys
from typing import TYPE_CHECKING

from vidtok.cli import common
from vidtok.cli.progress import validate_flags
from vidtok.names import escape_name, printable
from vidtok.remote import as_text

if TYPE_CHECKING:
    from vidtok.eval.recognition.recognizer import Recognizer


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, token files, folders, glob patterns")
    parser.add_argument("--head", required=True, metavar="NAME", help="recognition head: name, folder or hub id")
    parser.add_argument(
        "--top", type=common.positive(int), default=5, metavar="K", help="number of labels (%(default)s)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON line per file instead of a table")
    help = "label windows of videos: file in .csv, .srt, .vtt, .mp4, .mov or .mkv, or a folder; may be repeated"
    parser.add_argument("-o", "--windows", dest="outputs", action="append", metavar="OUT", help=help)
    help = "formats of the files in a folder OUT, separated by commas (default: csv,srt)"
    parser.add_argument("--formats", metavar="NAMES", help=help)
    help = "length of a window in seconds, for heads on frames spread over a video"
    parser.add_argument("--seconds", type=common.positive(float), help=help)
    help = "seconds between the starts of windows (default: length of a window)"
    parser.add_argument("--hop", type=common.positive(float), metavar="SECONDS", help=help)
    parser.add_argument("--force", action="store_true", help="overwrite existing files")
    parser.add_argument("--model", metavar="NAME", help="tokenizer: name, folder or hub id (default: the head's)")
    parser.add_argument("--device", default="auto", help="device: auto (cuda if available), cpu, cuda, cuda:1, ...")
    common.add_reader(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.eval.recognition.recognizer import Recognizer

    validate_flags((
        ("--json", args.json and args.outputs, "is without -o, which writes csv"),
        *((f"--{name}", getattr(args, name) and not args.outputs, "is of -o, which labels windows")
          for name in ("seconds", "hop", "formats", "force")),
    ))  # fmt: skip
    recognizer = Recognizer(args.head, args.model, args.device, reader=args.reader)
    return _windows(args, recognizer) if args.outputs else _videos(args, recognizer)


def _windows(args: argparse.Namespace, recognizer: "Recognizer") -> int:
    from vidtok.eval.recognition.windows import label_windows

    failed = 0
    settings = {"seconds": args.seconds, "hop": args.hop, "top": args.top, "force": args.force}
    formats = (args.formats or "csv,srt").split(",")
    for video, files, answer in label_windows(recognizer, args.inputs, args.outputs, formats=formats, **settings):
        if isinstance(answer, str):
            failed += 1
            text = answer if as_text(video) in answer else f"{as_text(video)}: {answer}"
            print(f"vidtok: {printable(text)}", file=sys.stderr)
        else:
            print(printable(f"{as_text(video)}: {answer} windows, {', '.join(map(str, files))}"), flush=True)
    return 1 if failed else 0


def _videos(args: argparse.Namespace, recognizer: "Recognizer") -> int:
    failed = 0
    for found in recognizer(args.inputs, args.top):
        path = escape_name(as_text(str(found.path)))
        if found.error is not None:
            failed += 1
            text = found.error if as_text(str(found.path)) in found.error else f"{path}: {found.error}"
            print(f"vidtok: {printable(text)}", file=sys.stderr)
        elif args.json:
            labels = [{"label": label, "probability": round(p, 6)} for label, p in found.labels]
            print(json.dumps({"path": path, "views": found.views, "labels": labels}), flush=True)
        else:
            print(*[f"{path}  {p:6.1%}  {label}" for label, p in found.labels], sep="\n", flush=True)
    return 1 if failed else 0
