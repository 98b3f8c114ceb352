"""Measure the reconstructions of a tokenizer.

    vidtok eval reconstruction videos/                                  # first 17 frames, 128x128
    vidtok eval reconstruction videos/ --json result.json --split val
    vidtok eval reconstruction videos/ --lpips vgg16.pth --i3d i3d.safetensors
    vidtok eval reconstruction digits --size 32 --model runs/digits/model  # MovingDigits that no training sees

The metrics are PSNR (also of the block-mean baseline on the same token grid), SSIM, visibility of block edges, bits per
pixel and codebook usage, and LPIPS and rFVD if their weights are given. One clip is used per file: the first --frames
frames, resized to short side --size and center-cropped to a square. Clips that can't be read or are too short count as
failed, and are not replaced.
"""

import argparse

from vidtok.cli import common
from vidtok.cli.eval import add_result, arguments, write_result


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "inputs", nargs="+", metavar="IN", help="videos, folders, glob patterns; or digits (./digits: a folder)"
    )
    common.add_model(parser, custom=True)
    common.add_precision(parser)
    positive = common.positive
    parser.add_argument("--frames", type=positive(int), default=17, help="frames per clip (%(default)s)")
    parser.add_argument(
        "--size", type=positive(int), default=128, metavar="PIXELS", help="center-crop size in pixels (%(default)s)"
    )
    parser.add_argument("--fps", type=positive(float), help="frame rate to resample to (default: native)")
    parser.add_argument(
        "--clips",
        type=positive(int),
        metavar="N",
        help="number of files or digits' clips, evenly spread over all (default: all)",
    )
    parser.add_argument(
        "--split", metavar="NAME", help="name of the split, recorded in the result; of digits: train, or val (default)"
    )
    parser.add_argument("--lpips", metavar="FILE", help="torchvision's VGG16 weights; enables LPIPS by VGG")
    parser.add_argument("--lpips-alex", metavar="FILE", help="torchvision's AlexNet weights; enables LPIPS by AlexNet")
    parser.add_argument("--i3d", metavar="FILE", help="I3D weights (see vidtok.eval.metrics.i3d); enables rFVD")
    parser.add_argument("--batch-size", type=positive(int), default=1, help="clips per batch (%(default)s)")
    add_result(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import track
    from vidtok.eval.reconstruction import evaluate
    from vidtok.eval.reconstruction.run import format_table
    from vidtok.files import validate_output

    validate_output(args.json, args.force)
    result = evaluate(**arguments(args), track=lambda clips, total: track(clips, total, "clips"))
    print(format_table(result))
    print(f"{args.precision} on {result['provenance']['device']}, {result['wall_time_s']:.0f} s")
    return write_result(result, args)
