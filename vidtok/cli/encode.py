"""Encode videos to token files, as `vidtok extract` does with its defaults.

    vidtok encode clip.mp4 -o tokens                      # tokens/clip.npz
    vidtok encode videos/ -o tokens --size 128            # the tree of videos/, short side 128 pixels
    vidtok encode 'videos/*/*.mp4' more/ -o tokens        # patterns and folders
    vidtok encode clip.mp4 -o clip.npz --precision bf16   # faster; prints the agreement with fp32 tokens

Videos of any length are read in chunks. Videos are padded at the right, the bottom and the end to sizes that the model
can encode (for vidtok-t, multiples of 8 pixels and 1 + 4k frames); `vidtok decode` removes the padding. A folder holds
tokens of one model and one configuration. Complete files in it are skipped. A video that fails is printed and listed in
failures.csv, and the run continues. The format of token files is described in vidtok/extraction/npz.py; `vidtok info
FILE` describes a file.
"""

import argparse
import sys
from functools import partial

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders, archives, patterns, annotation files")
    common.add_output(parser, "output folder, also s3://..., or for one video an .npz file")
    common.add_model(parser, custom=True)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_frame_folders(parser)
    common.add_tile(parser)
    common.add_running(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import show_run
    from vidtok.extraction.run import encode_files
    from vidtok.extraction.stats import RunLog

    settings = dict(vars(args))
    log = RunLog("encode", settings, sys.stderr) if settings.pop("log_json") else None
    stats = show_run(partial(encode_files, **settings), "encoded", "videos", log)
    if stats.agreement is not None:
        print(stats.agreement)
    return int(stats.failed > 0)
