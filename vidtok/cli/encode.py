"""Videos to token files: `vidtok extract` with its defaults.

    vidtok encode clip.mp4 -o tokens                      # tokens/clip.npz
    vidtok encode videos/ -o tokens --size 128            # the tree below videos/, short sides 128 pixels
    vidtok encode 'videos/*/*.mp4' more/ -o tokens        # patterns and folders
    vidtok encode clip.mp4 -o clip.npz --precision bf16   # faster; says how far its tokens are those of fp32

Videos of any length are read in pieces. Sides and lengths that the model's stride doesn't divide (multiples of 8 and
1 + 4k frames for vidtok-t) are padded, at the right, the bottom and the end; `vidtok decode` cuts that off again. A
folder holds one model and one setting; what is complete in it is skipped, and the rest is done. A file that fails is
named, and in failures.csv, and the run goes on. The format of token files is described in vidtok/extraction/npz.py;
`vidtok info FILE` shows one.
"""

import argparse
from functools import partial

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders or tar or zip files of them, patterns")
    common.add_output(parser, "folder, or a name in .npz for one video")
    common.add_model(parser)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_frame_folders(parser)
    common.add_tile(parser)
    common.add_running(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import show_run
    from vidtok.extraction.run import encode_files

    settings = dict(vars(args))
    log_json = settings.pop("log_json")
    stats = show_run(partial(encode_files, **settings), "encoded", "videos", log_json)
    if stats.agreement is not None:
        print(stats.agreement)
    return int(stats.failed > 0)
