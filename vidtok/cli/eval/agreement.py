"""Does a classifier see the same in a clip and in what the tokens keep of it?

    vidtok eval agreement videos/ --i3d i3d.safetensors
    vidtok eval agreement videos/ --i3d i3d.safetensors --model vidtok-t --model vidtok-t-r --json result.json

I3D of Kinetics-400 classifies each clip and its reconstruction: how often the best class stays the best (top-1) or
among the best five (top-5), and how much of its probability is lost, for each bit rate (--model again). No labels are
needed. One clip per file: the first --frames frames, short side --size, centre crop to a square.
"""

import argparse

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders of videos, glob patterns")
    parser.add_argument(
        "--i3d", required=True, metavar="WEIGHTS", help="of I3D, file or URL, see vidtok.eval.metrics.i3d"
    )
    parser.add_argument("--classes", metavar="FILE", help="names of I3D's classes, one a line (default: numbers)")
    parser.add_argument("--model", action="append", metavar="NAME", help="tokenizer (vidtok-t); may be given again")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--frames", type=positive(int), default=17, help="of each clip, 1 + 4k (%(default)s)")
    parser.add_argument("--size", type=positive(int), default=128, metavar="PIXELS", help="of the crop (%(default)s)")
    parser.add_argument("--fps", type=positive(float), help="resample by time (default: native)")
    parser.add_argument("--split", metavar="NAME", help="which part of the data this is, for the record")
    parser.add_argument("--json", metavar="OUT", help="write the whole result, clip by clip")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from vidtok.checks import pick_device
    from vidtok.cli.progress import track
    from vidtok.eval import I3D, clip_protocol, validation_clips
    from vidtok.eval.reconstruction.classifier_agreement import evaluate_agreement, format_agreement
    from vidtok.files import find_videos, validate_output, write_json
    from vidtok.tokenizer import VideoTokenizer

    validate_output(args.json, args.force)
    files = [file for file, _ in find_videos(args.inputs)]
    device = pick_device(args.device)
    clips = validation_clips(files, args.frames, args.size, args.fps)
    result = evaluate_agreement(
        I3D(args.i3d).to(device),
        [VideoTokenizer.from_pretrained(name, device) for name in args.model or ["vidtok-t"]],
        track(clips, len(files), "clips"),
        weights=args.i3d,
        protocol=clip_protocol(" ".join(args.inputs), args.split, args.frames, args.size, args.fps),
        classes=Path(args.classes).read_text().splitlines() if args.classes else None,
        device=device,
    )
    print(format_agreement(result))
    if args.json:
        write_json(args.json, result)
    return 1 if result["n_failed"] else 0
