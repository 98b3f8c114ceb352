"""Videos through the tokenizer and back: what is left of them.

    vidtok reconstruct clip.mp4 -o clip-128.mp4 --size 128
    vidtok reconstruct videos/ -o out --side-by-side      # original | reconstruction

The same as `encode` and `decode`, in one pass and with nothing kept in between. The audio is copied as it is.
"""

import argparse
from functools import partial

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders or tar or zip files of them, patterns")
    common.add_output(parser, "folder, or a name in .mp4, .mov, .mkv, .gif, .png for one video")
    parser.add_argument("--side-by-side", action="store_true", help="the original on the left")
    parser.add_argument("--no-audio", dest="audio", action="store_false", help="leave the audio of the videos out")
    common.add_model(parser)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_frame_folders(parser)
    common.add_tile(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import show_run
    from vidtok.extraction.videos import reconstruct_files

    return int(show_run(partial(reconstruct_files, **vars(args)), "reconstructed").failed > 0)
