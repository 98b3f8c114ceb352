"""Encode and decode one clip, recognize actions from tokens, and continue the clip.

    vidtok demo                     # a rendered clip
    vidtok demo clip.mp4 -o out     # the first frames of a video

The demo writes tokens.npz, original.mp4, reconstruction.mp4 and picture.png to a folder, and prints quality, bitrate
and speed. Without CLIP it also renders a digit that moves in nine ways (actions.mp4), and the shipped recognition head
labels the nine actions from their tokens; the shipped generator continues the first five frames of the clip
(continuation.mp4: left the clip, right the continuation). Files of an earlier demo are overwritten only in the default
folder, vidtok-demo, or with --force.
"""

import argparse

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clip", nargs="?", metavar="CLIP", help="video (default: a rendered clip)")
    parser.add_argument(
        "-o", "--output", default="vidtok-demo", metavar="DIR", help="folder for the files (%(default)s)"
    )
    parser.add_argument("--force", action="store_true", help="overwrite existing files in DIR")
    common.add_model(parser)
    common.add_precision(parser)


def run(args: argparse.Namespace) -> None:
    from vidtok.demo import run_demo

    for i, rows in enumerate(run_demo(**vars(args))):
        if i:
            print()
        common.print_rows(rows)
