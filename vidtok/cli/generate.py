"""Make new clips with a trained generator.

    vidtok generate runs/masked/model -o new                       # of each class in turn, .mp4 files
    vidtok generate runs/masked/model -o new --label left --number 16 --guidance 2 --seed 1
    vidtok generate runs/masked/model -o grid.png --number 9       # one picture: a clip in each row
    vidtok generate runs/masked/model -o grid.mp4 --number 16      # one video of all, side by side; .gif, too
    vidtok generate runs/k600/model -o new --prefix clip.mp4       # what comes after the first 5 frames
    vidtok generate runs/k600/model -o new --video clip.mp4 --task inpaint --mask 32:96,32:96  # a box, in pixels
    vidtok generate runs/masked/model -o new --frames 65 --tokens  # longer than its training clips; token files, too

Sample i depends on the seed and on i alone. A prefix gives its first 1 + 4k frames, which stay as the tokenizer has
them. Flags of sampling belong to kinds of generators: --schedule and --choice-temperature to masked ones, --top-k and
--top-p to autoregressive ones, --solver to diffusion.
"""

import argparse
from pathlib import Path

from vidtok.cli import common
from vidtok.cli.settings import SAMPLING


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("generator", metavar="MODEL", help="folder or hub id of a generator")
    common.add_output(parser, "folder, or one .png, .gif or .mp4 of all")
    parser.add_argument("--tokenizer", metavar="NAME", help="where the generator's tokenizer is (default: by its name)")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--number", type=positive(int), help="of clips (default: one of each class, or one per prefix)")
    parser.add_argument("--label", action="append", metavar="CLASS", help="name or number; several are taken in turn")
    parser.add_argument("--free", action="store_true", help="without a class")
    parser.add_argument("--prefix", action="append", metavar="CLIP", help="video to go on from; several, in turn")
    parser.add_argument("--prefix-frames", type=positive(int), help="of the prefix, 1 + 4k (5)")
    parser.add_argument(
        "--task", choices=["class", "predict", "interpolate", "inpaint", "outpaint"],
        help="what is made of --video: its end, its middle, what lies in a box, or around one (default: class)",
    )  # fmt: skip
    parser.add_argument("--video", action="append", metavar="CLIP", help="video that is kept in part; several, in turn")
    parser.add_argument(
        "--mask", metavar="PLACE",
        help="START:END frames to interpolate; TOP:BOTTOM,LEFT:RIGHT box, or an image, white where it is made anew",
    )  # fmt: skip
    parser.add_argument("--frames", type=positive(int), help="of each clip, 1 + 4k (default: as it was trained)")
    parser.add_argument("--format", choices=["mp4", "gif"], help="of clips in a folder (mp4)")
    parser.add_argument("--tokens", action="store_true", help="write token files, too")
    parser.add_argument("--fps", type=positive(float), help="of what is written (default: the generator's, or 25)")
    parser.add_argument("--batch", type=positive(int), default=8, help="clips at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    for name, (kind, text) in SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)


def run(args: argparse.Namespace) -> None:
    from vidtok.cli.progress import Progress, validate_flags
    from vidtok.generator.run import PICTURES, generate_files

    single = Path(args.output).suffix.lower() in PICTURES
    validate_flags((
        ("--format", args.format and single, f"is of clips in a folder, not of {Path(args.output).name}"),
        (
            "--prefix-frames", args.prefix_frames and not args.prefix and args.task != "predict",
            "is of --prefix CLIP and --task predict",
        ),
    ))  # fmt: skip
    settings = dict(vars(args))
    sampling = {name: value for name in SAMPLING if (value := settings.pop(name)) is not None}
    labels = settings.pop("label")
    with Progress(None, "clips") as bar:
        settings |= {"progress": bar.count_steps, "report": bar.reach}
        clips = generate_files(settings.pop("generator"), labels=labels, **settings, **sampling)
    print(f"{len(clips)} clips of {clips.config.name} in {args.output}")
