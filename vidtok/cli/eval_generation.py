"""Measure a generator against real clips.

    vidtok eval generation runs/masked/model digits --i3d FILE --n-fake 256 --folds 2
    vidtok eval generation runs/masked/model digits --head runs/head/best --n-fake 90
    vidtok eval generation MODEL k600/val --convention magvit-k600 --i3d FILE
    vidtok eval generation MODEL train.csv --root videos --i3d FILE --fid FILE --neighbours nearest.png

FVD with I3D of Kinetics-400 (--i3d), FID of frames (--fid), and how often a trained recogniser (--head) sees
the class that was asked for. The two networks' weights aren't shipped: `python -m vidtok.eval.i3d_weights --help` and
`python -m vidtok.eval.inception_weights --help` say how to get them. REAL is what `vidtok extract` takes: "digits", a
folder, an annotation file; --split says which part of it. Conventions set frames, sizes and numbers: magvit-k600 (5
frames of a real clip of the same split are given; papers take the eval split, generate at 128 pixels and score at 64),
magvit-ucf, stylegan-v-2048x16; or plain, all as it is. --n-real, --n-fake and --folds change their numbers, and the
result says so. --others is a split of other real clips: the floor, what a perfect generator gets, and what the
tokenizer alone loses. --neighbours draws generated clips beside those of all of --split whose features are nearest,
where copies of training clips show; the result has their distances, and with --others those of clips that are none.
"""

import argparse
import statistics
from pathlib import Path

from vidtok.cli import options
from vidtok.cli.generate import SAMPLING


def configure(parser: argparse.ArgumentParser) -> None:
    positive = options.positive
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
    from vidtok.cli.error import UserError
    from vidtok.cli.jsonfile import refuse_existing, write_json
    from vidtok.cli.progress import Progress
    from vidtok.cli.table import print_rows
    from vidtok.eval.generation import convention
    from vidtok.eval.generation_run import Evaluation, check_conditions, smaller, summary
    from vidtok.eval.real_clips import real_clips
    from vidtok.eval.table import short_seconds
    from vidtok.generator import from_pretrained, load_tokenizer

    for out in (args.json, args.neighbours):
        refuse_existing(out, args.force)
    if args.neighbours and not args.neighbours.lower().endswith(".png"):
        raise UserError(f"--neighbours writes a .png, not {args.neighbours}")
    if not (args.i3d or args.fid or args.head):
        raise UserError("nothing to measure: give --i3d FILE, --fid FILE or --head NAME")
    if args.neighbours and not args.i3d:
        raise UserError("--neighbours needs --i3d FILE, whose features say what is near")
    device = options.pick_device(args.device)
    how = smaller(convention(args.convention), args.n_real, args.n_fake, args.folds)
    generator = from_pretrained(args.generator, device)
    tokenizer = load_tokenizer(generator.config, args.tokenizer, device)
    detectors = load_detectors(args.i3d, args.fid, args.head, tokenizer, device)
    columns = {"label_column": args.label_column}
    real = real_clips(args.source, args.root, args.split, args.others, generator.config, how, args.batch, **columns)
    sampling = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    generator.check_sampling(**sampling)
    check_conditions(how, generator.config, real.classes, detectors.head, tokenizer, sampling)
    evaluation = Evaluation(real, detectors, tokenizer, how, args.convention, args.batch)
    limits = evaluation.limits()
    with Progress(how.folds * how.n_fake, "clips") as bar:
        result = evaluation.measure(generator, args.seed, bar.reach, **sampling)
    result["metrics"] |= limits
    rows = {"generator": f"{result['generator']['name']}, {result['generator']['parameters']:,} parameters"}
    rows["convention"] = (
        f"{result['protocol']['convention']}; {result['n_real']} real clips, {how.folds} x {how.n_fake} generated"
    )
    rows |= {f"detector of {name}": text for name, text in result["detector"].items()}
    print_rows({**rows, **summary(result["metrics"]), "seconds per clip": short_seconds(result["seconds_per_clip"])})
    if args.json:
        write_json(args.json, result)
    if args.neighbours:
        found = result["neighbours"] = draw_neighbours(args.neighbours, evaluation, generator, args.seed, sampling)
        middles = {name: f"{statistics.median(found[name]):.1f}" for name in ("generated", "others") if name in found}
        said = ", ".join(f"{name} {value}" for name, value in middles.items())
        print(f"generated clips, each beside the nearest of {found['n_real']} real ones: {args.neighbours}")
        print(f"distance to the nearest, median: {said}")
        if args.json:
            write_json(args.json, result)


def load_detectors(i3d: str | None, fid: str | None, head: str | None, tokenizer, device):
    """The `Detectors` of weight files and of a head."""
    from vidtok.eval import I3D
    from vidtok.eval.generation_run import Detectors
    from vidtok.eval.inception import InceptionFID
    from vidtok.heads import Head
    from vidtok.weights import hash_weights

    found = Detectors()
    if i3d:
        found.fvd = I3D(i3d).to(device)
        found.names["fvd"] = f"I3D Kinetics-400 logits, weights {found.fvd.weight_hash}"
    if fid:
        found.fid = InceptionFID(fid).to(device)
        found.names["fid"] = f"Inception of 2015-12-05, pooled features, weights {hash_weights(found.fid)}"
    if head:
        found.head = Head.from_pretrained(head, device).eval()
        found.head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash)
        found.names["agreement"] = f"{found.head.config.name}, weights {found.head.weight_hash}"
    return found


def draw_neighbours(path: str, evaluation, generator, seed: int, sampling: dict, rows: int = 6) -> dict:
    """Each row: a middle frame of a generated clip, then those of the three real clips with the nearest features.

    Returns:
        n_real: clips that were looked at, all there are. generated: each row's distance to the nearest of them; others:
        those of as many other real clips, which are no copies, where there are some.
    """
    import torch

    from vidtok.datasets import write_video
    from vidtok.eval.generation import Neighbours, prepare
    from vidtok.generator.pictures import frame_rows
    from vidtok.generator.samples import generate_samples

    how, network = evaluation.how, evaluation.kinds["fvd"]

    def features(video):
        with torch.inference_mode():
            return network(prepare(video, how)).cpu()

    conditions = evaluation.conditions(generator)
    ids = torch.cat(list(generate_samples(generator, rows, *conditions, evaluation.batch, seed=seed, **sampling)))
    video = evaluation.tokenizer.decode(ids)
    asked = [features(video)]
    if evaluation.real.others is not None:
        batches = []
        for other, _ in evaluation.other_clips():
            batches.append(other)
            if sum(map(len, batches)) >= rows:
                break
        asked.append(features(torch.cat(batches)[:rows]))
    middle, nearest, n_real = video.shape[2] // 2, Neighbours(torch.cat(asked)), 0
    for real in evaluation.real.clips():
        nearest.update(features(real.to(evaluation.device)), list(real[:, :, middle].clone()))
        n_real += len(real)
    shown = zip(video, nearest.pictures[:rows], strict=True)
    cells = [torch.stack([clip[:, middle].cpu(), *near], 1) for clip, near in shown]
    picture = frame_rows(torch.stack(cells), columns=cells[0].shape[1])
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    write_video(path, picture[:, None], 1)
    distances = nearest.distances[:, 0].tolist()
    found = {"n_real": n_real, "generated": distances[:rows]}
    return found | ({"others": distances[rows:]} if len(asked) > 1 else {})
