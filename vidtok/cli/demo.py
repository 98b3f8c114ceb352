"""See what a tokenizer does to one clip, and what can be told from tokens.

    vidtok demo                     # a clip that vidtok renders itself
    vidtok demo clip.mp4 -o out     # the beginning of one of yours

Writes tokens.npz, original.mp4, reconstruction.mp4 and picture.png into a folder, and prints how good the
reconstruction is, what it costs and how fast it went. Then, unless the clip is one of yours, a digit moves in nine ways
(actions.mp4), and the shipped head tells them from the tokens: clip to tokens to action. Only in its own folder,
vidtok-demo, it writes over the files of the last time.
"""

import argparse

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clip", nargs="?", metavar="CLIP", help="a video (default: rendered)")
    parser.add_argument("-o", "--output", default="vidtok-demo", metavar="DIR", help="folder to write to (%(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite what exists in DIR")
    common.add_model(parser)
    common.add_precision(parser)


def run(args: argparse.Namespace) -> None:
    from vidtok.demo import run_demo

    for i, rows in enumerate(run_demo(**vars(args))):
        if i:
            print()
        common.print_rows(rows)
