"""Measure a generator against real clips.

    vidtok eval generation runs/masked/model digits --i3d FILE --n-fake 256 --folds 2
    vidtok eval generation runs/masked/model digits --head runs/head/best --n-fake 90
    vidtok eval generation MODEL k600/val --convention magvit-k600 --i3d FILE
    vidtok eval generation MODEL train.csv --root videos --i3d FILE --fid FILE --neighbours nearest.png

FVD with I3D of Kinetics-400 (--i3d), FID of frames (--fid), and how often a trained recogniser (--head) sees
the class that was asked for. The two networks' weights aren't shipped: `python -m vidtok.eval.metrics.i3d --help` and
`python -m vidtok.eval.metrics.inception --help` say how to get them. REAL is what `vidtok extract` takes: "digits", a
folder, an annotation file; --split says which part of it. Conventions set frames, sizes and numbers: magvit-k600 (5
frames of a real clip of the same split are given; papers take the eval split, generate at 128 pixels and score at 64),
magvit-ucf, stylegan-v-2048x16; or plain, all as it is. --n-real, --n-fake and --folds change their numbers, and the
result says so. --others is a split of other real clips: the floor, what a perfect generator gets, and what the
tokenizer alone loses. --neighbours draws generated clips beside those of all of --split whose features are nearest,
where copies of training clips show; the result has their distances, and with --others those of clips that are none.
"""

import argparse
import statistics

from vidtok.cli import common
from vidtok.cli.common import SAMPLING


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("generator", metavar="MODEL", help="folder or hub id of a generator")
    parser.add_argument("source", metavar="REAL", help="digits, a folder, or an annotation file")
    parser.add_argument("--convention", default="plain", help="plain (default), magvit-k600, magvit-ucf, ...")
    parser.add_argument("--root", help="folder of the videos (default: where the annotation file is)")
    parser.add_argument("--split", help="of the real clips (default: train, or all of a folder without a folder train)")
    parser.add_argument("--others", metavar="SPLIT", help="other real clips: the floor, and reconstructions")
    parser.add_argument("--label-column", metavar="NAME", help="in the header of a csv")
    parser.add_argument("--n-real", type=positive(int), metavar="N", help="real clips (default: the convention's)")
    parser.add_argument("--n-fake", type=positive(int), metavar="N", help="generated clips of a fold (likewise)")
    parser.add_argument("--folds", type=positive(int), metavar="N", help="(likewise)")
    parser.add_argument("--i3d", metavar="WEIGHTS", help="weights of I3D, file or URL: measure FVD")
    parser.add_argument(
        "--fid", metavar="WEIGHTS", help="weights of FID's Inception, file or URL: measure FID of frames"
    )
    parser.add_argument("--head", metavar="NAME", help="recognition head of tokens, codes or pixels: measure agreement")
    parser.add_argument("--neighbours", metavar="PNG", help="draw generated clips and the nearest real ones")
    parser.add_argument("--tokenizer", metavar="NAME", help="where the generator's tokenizer is (default: by its name)")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--batch", type=positive(int), default=8, help="clips at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    for name, (kind, text) in SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)
    parser.add_argument("--json", metavar="OUT", help="write the whole result")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def run(args: argparse.Namespace) -> None:
    from vidtok.checks import pick_device
    from vidtok.cli.common import print_rows
    from vidtok.cli.progress import Progress
    from vidtok.errors import UserError
    from vidtok.eval.generation.conventions import get_convention, real_clips
    from vidtok.eval.generation.run import (
        Evaluation,
        check_conditions,
        draw_neighbors,
        load_feature_extractors,
        smaller,
        summary,
    )
    from vidtok.eval.report.table import short_seconds
    from vidtok.files import validate_output, write_json
    from vidtok.generator import from_pretrained, load_tokenizer

    for out in (args.json, args.neighbours):
        validate_output(out, args.force)
    if args.neighbours and not args.neighbours.lower().endswith(".png"):
        raise UserError(f"--neighbours writes a .png, not {args.neighbours}")
    if not (args.i3d or args.fid or args.head):
        raise UserError("nothing to measure: give --i3d FILE, --fid FILE or --head NAME")
    if args.neighbours and not args.i3d:
        raise UserError("--neighbours needs --i3d FILE, whose features say what is near")
    device = pick_device(args.device)
    convention = smaller(get_convention(args.convention), args.n_real, args.n_fake, args.folds)
    generator = from_pretrained(args.generator, device)
    tokenizer = load_tokenizer(generator.config, args.tokenizer, device)
    detectors = load_feature_extractors(args.i3d, args.fid, args.head, tokenizer, device)
    columns = {"label_column": args.label_column}
    real = real_clips(
        args.source, args.root, args.split, args.others, generator.config, convention, args.batch, **columns
    )
    sampling = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    generator.check_sampling(**sampling)
    check_conditions(convention, generator.config, real.classes, detectors.head, tokenizer, sampling)
    evaluation = Evaluation(real, detectors, tokenizer, convention, args.convention, args.batch)
    limits = evaluation.limits()
    with Progress(convention.folds * convention.n_fake, "clips") as bar:
        result = evaluation.measure(generator, args.seed, bar.reach, **sampling)
    result["metrics"] |= limits
    rows = {"generator": f"{result['generator']['name']}, {result['generator']['parameters']:,} parameters"}
    rows["convention"] = (
        f"{result['protocol']['convention']}; {result['n_real']} real clips, "
        f"{convention.folds} x {convention.n_fake} generated"
    )
    rows |= {f"detector of {name}": text for name, text in result["detector"].items()}
    print_rows({**rows, **summary(result["metrics"]), "seconds per clip": short_seconds(result["seconds_per_clip"])})
    if args.json:
        write_json(args.json, result)
    if args.neighbours:
        found = result["neighbours"] = draw_neighbors(args.neighbours, evaluation, generator, args.seed, sampling)
        middles = {name: f"{statistics.median(found[name]):.1f}" for name in ("generated", "others") if name in found}
        said = ", ".join(f"{name} {value}" for name, value in middles.items())
        print(f"generated clips, each beside the nearest of {found['n_real']} real ones: {args.neighbours}")
        print(f"distance to the nearest, median: {said}")
        if args.json:
            write_json(args.json, result)
