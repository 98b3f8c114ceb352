"""Generate clips with a trained generator.

    vidtok generate runs/masked/model -o new                       # one .mp4 per class
    vidtok generate runs/masked/model -o new --label left --number 16 --guidance 2 --seed 1
    vidtok generate runs/masked/model -o grid.png --number 9       # one picture with a clip per row
    vidtok generate runs/masked/model -o grid.mp4 --number 16      # one video of all clips, side by side; also .gif
    vidtok generate runs/masked/model -o new.html --head JUDGE     # a page of playable clips with a head's verdicts
    vidtok generate clips-prediction -o new --prefix clip.mp4      # continue the first 5 frames; a shipped generator
    vidtok generate runs/k600/model -o new --video clip.mp4 --task inpaint --mask 32:96,32:96  # box in pixels
    vidtok generate runs/masked/model -o new --frames 65 --tokens  # longer than the training clips; also token files

Sample i depends only on the seed and on i. The first 1 + 4k frames of a prefix are kept, as reconstructed by the
tokenizer. Some sampling flags are for one kind of generator: --schedule and --choice-temperature for masked, --top-k
and --top-p for autoregressive, and --solver for diffusion generators. --top-k and --top-p apply to each of the two
factors of a token, its low and its high bits.
"""

import argparse
from pathlib import Path

from vidtok.cli import common
from vidtok.cli.settings import SAMPLING


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("generator", metavar="MODEL", help="generator: shipped name, folder or hub id")
    common.add_output(parser, "output folder, or one .png, .gif, .mp4 or .html of all clips")
    parser.add_argument("--tokenizer", metavar="NAME", help="tokenizer: name, folder or hub id (default: by its name)")
    parser.add_argument("--device", default="auto", help="device: auto (cuda if available), cpu, cuda, cuda:1, ...")
    parser.add_argument("--number", type=positive(int), help="number of clips (default: one per class or per video)")
    parser.add_argument(
        "--label", action="append", metavar="CLASS", help="name or number of a class; several are used in turn"
    )
    parser.add_argument("--free", action="store_true", help="generate without a class")
    parser.add_argument("--prefix", action="append", metavar="CLIP", help="video to continue; several are used in turn")
    parser.add_argument("--prefix-frames", type=positive(int), help="frames of the prefix, 1 + 4k (default: 5)")
    parser.add_argument(
        "--task", choices=["class", "predict", "interpolate", "inpaint", "outpaint"],
        help="what to generate: new clips (class, default), or the end, the middle, a box or all but a box of --video",
    )  # fmt: skip
    parser.add_argument("--video", action="append", metavar="CLIP", help="video of --task; several are used in turn")
    parser.add_argument(
        "--mask", metavar="PLACE",
        help="frames to interpolate, START:END; the box, TOP:BOTTOM,LEFT:RIGHT; or an image, white where to generate",
    )  # fmt: skip
    parser.add_argument(
        "--frames", type=positive(int), help="frames per clip, 1 + 4k; longer ones slide (default: as in training)"
    )
    parser.add_argument("--format", choices=["mp4", "gif"], help="file format of clips in a folder (default: mp4)")
    parser.add_argument("--tokens", action="store_true", help="also write token files")
    parser.add_argument("--head", metavar="NAME", help="recognition head whose verdict a .html page shows")
    parser.add_argument(
        "--fps",
        type=positive(float),
        help="frame rate of the clips (default: the generator's, the first video's, or 25)",
    )
    parser.add_argument("--batch", type=positive(int), default=8, help="clips per batch (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (default: %(default)s)")
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
