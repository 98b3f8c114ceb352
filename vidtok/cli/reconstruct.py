"""Encode and decode videos, to compare a tokenizer's reconstructions with the originals.

    vidtok reconstruct clip.mp4 -o clip-128.mp4 --size 128
    vidtok reconstruct videos/ -o out --side-by-side      # original | reconstruction

The result is that of `encode` and `decode`, in one pass and without files in between. The audio is copied unchanged.
"""

import argparse
from functools import partial

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders, tar or zip files, glob patterns")
    common.add_output(parser, "output folder, or for one video a file: .mp4, .mov, .mkv, .gif or .png")
    parser.add_argument("--side-by-side", action="store_true", help="show the original beside the reconstruction")
    parser.add_argument("--no-audio", dest="audio", action="store_false", help="leave out the audio")
    common.add_model(parser, custom=True)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_frame_folders(parser)
    common.add_tile(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import show_run
    from vidtok.extraction.videos import reconstruct_files

    return int(show_run(partial(reconstruct_files, **vars(args)), "reconstructed").failed > 0)
