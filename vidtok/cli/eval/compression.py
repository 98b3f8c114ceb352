"""Compare rate, quality and speed of .vtk files with x264, x265, SVT-AV1 and VVenC.

    vidtok eval compression videos/ -o out
    vidtok eval compression val.tar -o out --codec vidtok-t --codec x265 --rate x265=28,34,40 --rate vidtok-t=100,50
    vidtok eval compression videos/ -o out --tokens --codec vidtok-t         # bytes of tokens per entropy model
    vidtok eval compression videos/ -o out --size 640x360 --frames 150 --lpips alexnet.pth --efficientnet lite0.pth

Every codec encodes and decodes every clip at every rate. The encoders of ffmpeg run in two modes, random-access
(bidirectional prediction) and low-delay. OUT holds result.json, points.csv, clips.csv, charts, crops at equal bits per
pixel, and page.html. The same command resumes an interrupted run; codecs and clips can be added to a finished one.

Metrics are bytes of the elementary stream, PSNR (RGB and luma), MS-SSIM, and the speed of encoding and decoding. With
weights there are also LPIPS (AlexNet) and the agreement of classifiers, with libvmaf in ffmpeg VMAF, and with the
package bjontegaard BD-rates. Codecs that ffmpeg lacks are named and left out. By default ffmpeg is that of the package
imageio-ffmpeg.

    pip install 'vidtok[compression]'
"""

import argparse

from vidtok.cli import common
from vidtok.cli.eval import arguments, exit_status


def configure(parser: argparse.ArgumentParser) -> None:
    positive, add = common.positive, parser.add_argument
    add("inputs", nargs="+", metavar="IN", help="videos, folders or archives of videos, glob patterns")
    add("-o", "--output", required=True, metavar="OUT", help="folder for the result")
    add(
        "--codec", action="append", dest="codecs", metavar="NAME",
        help="x264, x265, svt-av1, vvenc or a tokenizer; may be repeated (default: vidtok-t and the other four)",
    )  # fmt: skip
    add(
        "--rate", action="append", dest="rates", type=_rates, metavar="CODEC=A,B,...",
        help="rates of a codec: CRF, QP (vvenc), QUALITY or QUALITY@SCALE (tokenizers); may be repeated",
    )  # fmt: skip
    add("--entropy", action="append", metavar="NAME", help="entropy model of tokenizers (adaptive); may be repeated")
    add("--tokens", action="store_true", help="only compare entropy models, on tokens of whole frames of --size")
    add(
        "--mode",
        action="append",
        dest="modes",
        metavar="NAME",
        help="mode of ffmpeg: random-access or low-delay (default: both)",
    )
    add("--preset", help="preset of ffmpeg's encoders (default: medium; svt-av1: 6)")
    add("--gop", type=positive(int), default=256, metavar="N", help="maximum keyframe interval in frames (%(default)s)")
    add("--ffmpeg", metavar="PATH", help="path of ffmpeg (default: that of the package imageio-ffmpeg)")
    add(
        "--size", type=_size, default=128, metavar="SIZE",
        help="side of a center crop in pixels (%(default)s), WIDTHxHEIGHT such as 640x360, or native",
    )  # fmt: skip
    add("--frames", type=positive(int), default=65, help="frames per clip, the first of each file (%(default)s)")
    add("--fps", type=positive(float), help="frame rate to resample to (default: native)")
    add("--clips", type=positive(int), metavar="N", help="number of files, evenly spread over all (default: all)")
    add("--split", metavar="NAME", help="name of the split, recorded in the result")
    add("--lpips", metavar="FILE", help="torchvision's AlexNet weights; enables LPIPS")
    add("--efficientnet", metavar="FILE", help="timm's tf_efficientnet_lite0 weights; enables agreement on frames")
    add("--i3d", metavar="FILE", help="I3D weights (see vidtok.eval.metrics.i3d); enables agreement on clips")
    add("--crops", type=int, default=4, metavar="N", help="number of clips to draw side by side (%(default)s)")
    add("--device", default="auto", help="device: auto (cuda if available), cpu, cuda, cuda:1, ...")
    common.add_precision(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import track
    from vidtok.eval import compression
    from vidtok.eval.compression.report import format_result

    given = arguments(args)
    given["rates"] = dict(given["rates"] or [])
    given = {name: value for name, value in given.items() if value is not None}
    given["size"] = None if args.size == "native" else args.size
    if given.pop("tokens"):
        return _compare_tokens(args, given["size"])
    result = compression.evaluate(**given, track=lambda files, total: track(files, total, "clips"))
    print(format_result(result))
    print(f"{args.output}/page.html shows all of it; {result['wall_time_s']:.0f} s")
    return exit_status(result)


def _compare_tokens(args: argparse.Namespace, size: object) -> int:
    from vidtok.cli.progress import track
    from vidtok.eval import compression
    from vidtok.eval.compression.report import format_tokens

    names = ("inputs", "output", "frames", "clips", "split", "device")
    given = {name: getattr(args, name) for name in names} | {"models": args.codecs or ["vidtok-t"], "size": size}
    result = compression.compare_entropy(**given, track=lambda files, total: track(files, total, "clips"))
    print(format_tokens(result))
    return 0


def _size(text: str) -> int | tuple[int, int] | str:
    """Parse "native", a side, or (height, width) of WIDTHxHEIGHT."""
    if text == "native":
        return text
    sides = [int(side) for side in text.split("x")]
    if len(sides) > 2 or any(side < 2 or side % 2 for side in sides):
        raise argparse.ArgumentTypeError(f"{text}: give an even number of pixels, two as 640x360, or native")
    return sides[0] if len(sides) == 1 else (sides[1], sides[0])


def _rates(text: str) -> tuple[str, list[str]]:
    codec, _, rates = text.rpartition("=")
    if not codec or not rates:
        raise argparse.ArgumentTypeError(f"{text}: give CODEC=RATE,RATE,...")
    return codec, rates.split(",")
