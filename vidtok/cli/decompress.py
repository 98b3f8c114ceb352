"""Decompress a file of `vidtok compress` to a video.

    vidtok decompress clip.vtk -o clip.mp4
    vidtok decompress clip.vtk -o part.mp4 --start 60 --end 70   # decodes only the chunks of this part
    vidtok decompress broken.vtk -o clip.mp4 --salvage           # intact chunks of a damaged or unfinished file

The frames have the number, size and timestamps of the compressed ones (.gif: constant rate). Without --model the file
is decoded with the shipped model that it names. Weights other than those that compressed the file are an error. Audio
that the file carries is written unchanged beside the frames; of a part, the packets that begin in it.
"""

import argparse

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="IN", help="file to decompress (.vtk)")
    common.add_output(parser, "video to write: .mp4, .mov, .mkv, .gif, or .png for a single frame")
    common.add_model(parser, default=None)
    parser.add_argument(
        "--prior", metavar="FILE", help="weights of the entropy model prior (default: the shipped ones)"
    )
    common.add_precision(parser)
    common.add_tile(parser)
    parser.add_argument(
        "--start", type=float, default=0.0, metavar="S", help="start of the part to decode, in seconds (default: 0)"
    )
    parser.add_argument(
        "--end", type=float, metavar="S", help="end of the part to decode, in seconds (default: end of the video)"
    )
    parser.add_argument("--no-audio", dest="audio", action="store_false", help="leave out the audio")
    parser.add_argument("--salvage", action="store_true", help="skip damaged chunks, and accept unfinished files")


def run(args: argparse.Namespace) -> None:
    from vidtok.cli.progress import Progress
    from vidtok.codec import decompress

    with Progress(None, "frames") as bar:
        frames = decompress(**vars(args), progress=bar.advance)
    print(f"decompressed {frames} frames")
