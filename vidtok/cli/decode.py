"""Decode token files to videos.

    vidtok decode clip.npz -o clip.mp4
    vidtok decode tokens/ -o videos             # the tree of tokens/, as .mp4
    vidtok decode part.parquet -o videos        # all videos in the file; also .tar
    vidtok decode clip.npz -o clip.gif          # .mp4, .mov, .mkv, .gif; .png for one frame

The frames have the number and size of those that were encoded, at their mean frame rate. The model must be the one that
encoded the tokens; other weights are an error.
"""

import argparse
from functools import partial

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="token files, folders, glob patterns")
    common.add_output(parser, "output folder, or for one token file a video: .mp4, .mov, .mkv, .gif or .png")
    common.add_model(parser, custom=True)
    common.add_precision(parser)
    common.add_tile(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import show_run
    from vidtok.extraction.videos import decode_files

    return int(show_run(partial(decode_files, **vars(args)), "decoded").failed > 0)
