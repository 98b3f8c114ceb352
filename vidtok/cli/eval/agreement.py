"""Measure the agreement of a classifier's predictions for clips and for their reconstructions.

    vidtok eval agreement videos/ --i3d i3d.safetensors
    vidtok eval agreement videos/ --i3d i3d.safetensors --model vidtok-t --model vidtok-t-r --json result.json
    vidtok eval agreement videos/ --efficientnet tf_efficientnet_lite0.safetensors

I3D, trained on Kinetics-400, or EfficientNet-Lite0, trained on ImageNet, classifies each clip and its reconstruction.
The result has, for each tokenizer, how often the top class of the clip is the top class of the reconstruction (top-1)
or among its five top classes (top-5), and how much of its probability is lost. Probabilities of EfficientNet are means
over the frames of a clip. No labels are needed. One clip is used per file: the first --frames frames, resized to short
side --size and center-cropped to a square.
"""

import argparse

from vidtok.cli import common
from vidtok.cli.eval import add_result, arguments, write_result


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders of videos, glob patterns")
    parser.add_argument("--i3d", metavar="WEIGHTS", help="I3D weights, file or URL; this or --efficientnet")
    parser.add_argument("--efficientnet", metavar="WEIGHTS", help="timm's tf_efficientnet_lite0 weights, file or URL")
    parser.add_argument("--classes", metavar="FILE", help="names of the classes, one per line (default: numbers)")
    parser.add_argument(
        "--model", action="append", metavar="NAME", help="tokenizer (default: vidtok-t); may be repeated"
    )
    parser.add_argument("--device", default="auto", help="device: auto (cuda if available), cpu, cuda, cuda:1, ...")
    parser.add_argument("--frames", type=positive(int), default=17, help="frames per clip, 1 + 4k (%(default)s)")
    parser.add_argument(
        "--size", type=positive(int), default=128, metavar="PIXELS", help="center-crop size in pixels (%(default)s)"
    )
    parser.add_argument("--fps", type=positive(float), help="frame rate to resample to (default: native)")
    parser.add_argument("--split", metavar="NAME", help="name of the split, recorded in the result")
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
