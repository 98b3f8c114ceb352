"""Measure a generator against real clips.

    vidtok eval generation runs/masked/model digits --i3d FILE --n-fake 256 --folds 2
    vidtok eval generation runs/masked/model digits --head runs/head/best --n-fake 90
    vidtok eval generation MODEL k600/val --convention magvit-k600 --i3d FILE
    vidtok eval generation MODEL train.csv --root videos --i3d FILE --fid FILE --neighbors nearest.png

The metrics are FVD with I3D trained on Kinetics-400 (--i3d), FID of frames (--fid), FRD, the same distance in the
features of a recognition head (--head), and how often the head predicts the requested class. Distances from real clips
have a second value: that from reconstructions of these clips, which no tokenizer hides. I3D and the head also give
precision (fidelity) and recall (coverage), by 3 nearest neighbors, with density and coverage. The weights of I3D and
Inception are not shipped: `python -m vidtok.eval.metrics.i3d --help` and `python -m vidtok.eval.metrics.inception
--help` explain how to get them.

REAL is "digits", a folder or an annotation file; --split names the split.

A convention sets frames, sizes and numbers of clips: magvit-k600 (each clip continues 5 frames of a real clip of the
same split; papers use the eval split, generate at 128 pixels and score at 64), magvit-ucf, stylegan-v-2048x16, or
plain, which scores clips as they are. --n-real, --n-fake and --folds override the numbers, which the result records.

--others is a split of other real clips. It gives two reference distances: the floor, that of these real clips, which a
perfect generator reaches; and that of their reconstructions, which no generator on these tokens can beat. A convention
that gives frames adds a baseline, *_repeated: reconstructions of clips whose last given frame stands still.

--neighbors draws generated clips beside the real clips of --split with the nearest features, to detect copies of
training clips. The result has the distances, and with --others also those of other real clips.
"""

import argparse
from contextlib import ExitStack

from vidtok.cli import common
from vidtok.cli.eval import add_result, arguments, write_result
from vidtok.cli.settings import SAMPLING


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("generator", metavar="MODEL", help="generator: shipped name, folder or hub id")
    parser.add_argument("source", metavar="REAL", help="real clips: digits, a folder or an annotation file")
    parser.add_argument(
        "--convention", default="plain", help="convention: plain (default), magvit-k600, magvit-ucf, ..."
    )
    parser.add_argument("--root", help="folder of the videos (default: that of the annotation file)")
    parser.add_argument("--split", help="split of the real clips (default: train, or all of a folder without splits)")
    parser.add_argument("--others", metavar="SPLIT", help="split of other real clips, for floor and reconstructions")
    parser.add_argument("--label-column", metavar="NAME", help="csv column of the labels")
    parser.add_argument(
        "--n-real", type=positive(int), metavar="N", help="number of real clips (default: the convention's)"
    )
    parser.add_argument(
        "--n-fake", type=positive(int), metavar="N", help="generated clips per fold (default: the convention's)"
    )
    parser.add_argument("--folds", type=positive(int), metavar="N", help="number of folds (default: the convention's)")
    parser.add_argument("--i3d", metavar="WEIGHTS", help="I3D weights, file or URL; enables FVD")
    parser.add_argument("--fid", metavar="WEIGHTS", help="Inception weights, file or URL; enables FID")
    parser.add_argument(
        "--head", metavar="NAME", help="recognition head on tokens, codes or pixels; for FRD, agreement"
    )
    parser.add_argument("--neighbors", metavar="PNG", help="picture of generated clips and their nearest real clips")
    parser.add_argument("--tokenizer", metavar="NAME", help="tokenizer: name, folder or hub id (default: by its name)")
    parser.add_argument("--device", default="auto", help="device: auto (cuda if available), cpu, cuda, cuda:1, ...")
    parser.add_argument("--batch", type=positive(int), default=8, help="clips per batch (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="number of decoding processes (%(default)s)")
    parser.add_argument("--precision", default="fp32", help="precision of I3D: fp32 (default) or bf16")
    parser.add_argument("--seed", type=int, default=0, help="seed of the sampling (%(default)s)")
    for name, (kind, text) in SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    add_result(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import Progress
    from vidtok.eval.generation import evaluate
    from vidtok.files import validate_output

    for out in (args.json, args.neighbors):
        validate_output(out, args.force)
    bars: list[Progress] = []
    with ExitStack() as stack:

        def progress(done: int, total: int) -> None:
            if not bars:
                bars.append(stack.enter_context(Progress(total, "clips")))
            bars[0].reach(done)

        result = evaluate(**arguments(args), progress=progress)
    print_result(result, args.neighbors)
    return write_result(result, args)


def print_result(result: dict, picture: str | None) -> None:
    from statistics import median

    from vidtok.cli.common import print_rows
    from vidtok.eval.generation.run import summary
    from vidtok.eval.report import short_seconds

    counts = f"{result['n_real']} real clips, {result['folds']} x {result['n_fake']} generated"
    rows = {
        "generator": f"{result['generator']['name']}, {result['generator']['parameters']:,} parameters",
        "convention": f"{result['protocol']['convention']}; {counts}",
        **{f"detector of {name}": text for name, text in result["detector"].items()},
        **summary(result["metrics"]),
        "seconds per clip": short_seconds(result["seconds_per_clip"]),
    }
    print_rows(rows)
    if found := result.get("neighbors"):
        middles = [f"{name} {median(found[name]):.1f}" for name in ("generated", "others") if name in found]
        print(f"generated clips, each beside the nearest of {found['n_real']} real ones: {picture}")
        print(f"distance to the nearest, median: {', '.join(middles)}")
