"""Measure whether a classifier predicts the same for clips and for their reconstructions.

    vidtok eval agreement videos/ --i3d i3d.safetensors
    vidtok eval agreement videos/ --i3d i3d.safetensors --model vidtok-t --model vidtok-t-r --json result.json

I3D of Kinetics-400 classifies each clip and its reconstruction: how often the best class stays the best (top-1) or
among the best five (top-5), and how much of its probability is lost, for each tokenizer (--model again). No labels are
needed. One clip per file: the first --frames frames, short side --size, center crop to a square.
"""

import argparse

from vidtok.cli import common
from vidtok.cli.eval import add_result, arguments, write_result


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders of videos, glob patterns")
    parser.add_argument(
        "--i3d", required=True, metavar="WEIGHTS", help="I3D weights, file or URL (see vidtok.eval.metrics.i3d)"
    )
    parser.add_argument("--classes", metavar="FILE", help="names of I3D's classes, one a line (default: numbers)")
    parser.add_argument("--model", action="append", metavar="NAME", help="tokenizer (vidtok-t); may be given again")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--frames", type=positive(int), default=17, help="number of frames, 1 + 4k (%(default)s)")
    parser.add_argument(
        "--size", type=positive(int), default=128, metavar="PIXELS", help="center-crop size in pixels (%(default)s)"
    )
    parser.add_argument("--fps", type=positive(float), help="frame rate to resample to (default: native)")
    parser.add_argument("--split", metavar="NAME", help="name of the split, for the record")
    add_result(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import track
    from vidtok.eval.reconstruction import agreement
    from vidtok.eval.reconstruction.classifier_agreement import format_agreement
    from vidtok.files import validate_output

    validate_output(args.json, args.force)
    args.model = args.model or ["vidtok-t"]
    result = agreement(**arguments(args), track=lambda clips, total: track(clips, total, "clips"))
    print(format_agreement(result))
    return write_result(result, args)
