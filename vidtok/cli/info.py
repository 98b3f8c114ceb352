"""What a tokenizer, a head, a generator, a folder or file of features, or a video is.

vidtok info vidtok-t           # a shipped tokenizer or head, a folder or a hub id (of a tokenizer)
vidtok info runs/masked/model
vidtok info tokens/            # features: a folder of `vidtok extract`, or one of its files
vidtok info tokens/clip.npz
vidtok info clip.mp4
"""

import argparse
from pathlib import Path

from vidtok.errors import UserError


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("thing", metavar="THING", help="tokenizer, head, generator, features (folder or file) or video")


def run(args: argparse.Namespace) -> None:
    from vidtok.info import features_info, folder_info, model_info, video_info

    path = Path(args.thing)
    if not path.exists() and path.suffix:
        raise UserError(f"{path}: no such file")
    if (path / "settings.json").is_file() or path.suffix.lower() in (".parquet", ".tar"):
        folder_info(path)
    elif not path.is_file():
        model_info(args.thing)
    elif path.suffix.lower() == ".npz":
        features_info(path)
    else:
        video_info(path)
