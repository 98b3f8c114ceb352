"""Describe a tokenizer, a head, a generator, features, a video or a compressed video.

vidtok info vidtok-t           # a shipped tokenizer, head or generator, a folder or a hub id (of a tokenizer)
vidtok info runs/masked/model
vidtok info tokens/            # features: a folder of `vidtok extract`, or one of its files
vidtok info tokens/clip.npz
vidtok info clip.mp4
vidtok info clip.vtk
"""

import argparse

from vidtok.cli.common import print_rows


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "thing", metavar="THING", help="tokenizer, head, generator, folder or file of features, video or .vtk file"
    )


def run(args: argparse.Namespace) -> None:
    from vidtok.info import describe

    rows = describe(args.thing)
    card = rows.pop("model card", None)
    print_rows(rows)
    if card is not None:
        print(f"\nmodel card: {card}")
