"""Compress a video to one file of entropy-coded tokens.

    vidtok compress clip.mp4 -o clip.vtk
    vidtok compress clip.mp4 -o clip.vtk --size 128 --fps 15     # smaller: fewer pixels, fewer frames
    vidtok compress clip.mp4 -o clip.vtk --quality 50            # smaller: tokens change where it matters
    vidtok compress clip.mp4 -o clip.vtk --bpp 0.03              # the best quality that takes so many bits per pixel
    vidtok compress clip.mp4 -o clip.vtk --entropy prior         # fewer bytes, more time: a trained network predicts
    vidtok compress clip.mp4 -o clip.vtk --entropy raw           # packed bits, without the package constriction

Memory doesn't grow with the length of the video. `vidtok decompress` restores number, size and times of the frames
exactly; their pictures are those of the tokenizer. The file grows chunk by chunk: where the run is killed, `vidtok
decompress --salvage` decodes the complete ones. The format is described in vidtok/codec/container.py; `vidtok info
FILE.vtk` shows a file.
"""

import argparse

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", metavar="IN", help="video to compress")
    common.add_output(parser, "file to write (.vtk)")
    common.add_model(parser)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_tile(parser)
    parser.add_argument("--entropy", default="adaptive", help="entropy model: adaptive (default), prior or raw")
    parser.add_argument("--prior", metavar="FILE", help="weights of the entropy model prior (default: shipped)")
    rate = parser.add_mutually_exclusive_group()
    rate.add_argument(
        "--quality", type=float, default=100, metavar="Q",
        help="up to 100 (default), which keeps all tokens; below, their bits change where it matters",
    )  # fmt: skip
    rate.add_argument(
        "--bpp", type=common.positive(float), metavar="BITS",
        help="bits per pixel of the file, not to be exceeded: each chunk gets the best quality that fits",
    )  # fmt: skip
    parser.add_argument(
        "--chunk-latents",
        type=common.positive(int),
        default=64,
        metavar="N",
        help="latent frames per chunk (default: %(default)s); larger chunks compress better, smaller ones seek faster",
    )


def run(args: argparse.Namespace) -> None:
    from vidtok.cli.progress import Progress
    from vidtok.codec import compress

    with Progress(None, "frames") as bar:
        stats = compress(**vars(args), progress=bar.advance)
    print(f"compressed {stats}")
