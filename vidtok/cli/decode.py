"""Token files to videos.

    vidtok decode clip.npz -o clip.mp4
    vidtok decode tokens/ -o videos             # the tree below tokens/, as .mp4
    vidtok decode part.parquet -o videos        # .tar, too: all videos in it
    vidtok decode clip.npz -o clip.gif          # .mp4, .mov, .mkv, .gif; .png for one frame

The number and the size of the frames are those that were encoded, played at their mean rate. The model must be the one
that made the tokens: a file of other weights is refused.
"""

import argparse
from functools import partial

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="token files, folders of them, glob patterns")
    common.add_output(parser, "folder, or a name in .mp4, .mov, .mkv, .gif, .png for one file")
    common.add_model(parser)
    common.add_precision(parser)
    common.add_tile(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import show_run
    from vidtok.extraction.videos import decode_files

    return int(show_run(partial(decode_files, **vars(args)), "decoded").failed > 0)
