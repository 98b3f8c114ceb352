"""Make new clips with a trained generator.

    vidtok generate runs/masked/model -o new                       # of each class in turn, .mp4 files
    vidtok generate runs/masked/model -o new --label left --number 16 --guidance 2 --seed 1
    vidtok generate runs/masked/model -o grid.png --number 9       # one picture: a clip in each row
    vidtok generate runs/masked/model -o grid.mp4 --number 16      # one video of all, side by side; .gif, too
    vidtok generate runs/k600/model -o new --prefix clip.mp4       # what comes after the first 5 frames
    vidtok generate runs/masked/model -o new --frames 65 --tokens  # longer than its training clips; token files, too

Sample i depends on the seed and on i alone. A prefix gives its first 1 + 4k frames, which stay as the tokenizer has
them. Flags of sampling belong to kinds of generators: --schedule and --choice-temperature to masked ones, --top-k and
--top-p to autoregressive ones, --solver to diffusion.
"""

import argparse
from pathlib import Path

from vidtok.cli import common
from vidtok.cli.common import SAMPLING


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
    parser.add_argument("--frames", type=positive(int), help="of each clip, 1 + 4k (default: as it was trained)")
    parser.add_argument("--format", choices=["mp4", "gif"], help="of clips in a folder (mp4)")
    parser.add_argument("--tokens", action="store_true", help="write token files, too")
    parser.add_argument("--fps", type=positive(float), help="of what is written (default: the generator's, or 25)")
    parser.add_argument("--batch", type=positive(int), default=8, help="clips at a time (%(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="(%(default)s)")
    for name, (kind, text) in SAMPLING.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=kind, help=text)


def run(args: argparse.Namespace) -> None:
    import torch

    from vidtok.checks import pick_device
    from vidtok.cli.progress import Progress
    from vidtok.datasets import write_video
    from vidtok.datasets.frames import frame_rows, tiled
    from vidtok.errors import UserError
    from vidtok.generator import from_pretrained, load_tokenizer
    from vidtok.generator.long import generate_samples
    from vidtok.generator.run import latents_of, name_of, named, read_prefixes, write_ids

    target = Path(args.output)
    single = target.suffix.lower() in (".png", ".gif", ".mp4")
    if single and target.exists() and not args.force:
        raise UserError(f"{target} exists: --force overwrites it")
    if single and args.tokens:
        raise UserError("--tokens needs a folder: give -o DIR")
    if args.label and args.free:
        raise UserError("give --label or --free, not both")
    common.validate_flags((
        ("--format", args.format and single, f"is of clips in a folder, not of {target.name}"),
        ("--prefix-frames", args.prefix_frames and not args.prefix, "is of --prefix CLIP"),
    ))  # fmt: skip
    device = pick_device(args.device)
    generator = from_pretrained(args.generator, device)
    config = generator.config
    tokenizer = load_tokenizer(config, args.tokenizer, device)
    if args.label and not config.classes:
        raise UserError(f"{args.generator} was trained without classes: leave --label out")
    labels = None
    if config.classes and not args.free:
        labels = [named(label, config.classes) for label in args.label or config.classes]
        generator.check_label(labels, len(labels))
    prefixes = read_prefixes(args, tokenizer, config) if args.prefix else None
    number = args.number or max(len(labels or ()), len(prefixes) if prefixes is not None else 0, 1)
    fps = args.fps or config.fps or 25
    latents = None if args.frames is None else latents_of(args.frames, config.stride[0])
    sampling = {name: value for name in SAMPLING if (value := getattr(args, name)) is not None}
    generator.check_sampling(**sampling)
    names = [f"{name_of(labels, i)}{i:04d}" for i in range(number)]
    if not single:
        target.mkdir(parents=True, exist_ok=True)
        endings = [args.format or "mp4", *(["npz"] if args.tokens else [])]
        for file in (target / f"{name}.{ending}" for name in names for ending in endings):
            if file.exists() and not args.force:
                raise UserError(f"{file} exists: --force overwrites it")
    else:
        target.parent.mkdir(parents=True, exist_ok=True)

    def step(done: int, total: int) -> None:
        bar.count_steps(done, total)

    clips, done = [], 0
    with Progress(number, "clips") as bar:
        settings = {"seed": args.seed, "progress": step, **sampling}
        for ids in generate_samples(generator, number, labels, prefixes, args.batch, latents, **settings):
            for sample in ids:
                video = tokenizer.decode(sample[None])[0].cpu()
                if single:
                    clips.append(video)
                else:
                    write_video(target / f"{names[done]}.{args.format or 'mp4'}", video, fps)
                if args.tokens:
                    label = None if labels is None else labels[done % len(labels)]
                    write_ids(target / f"{names[done]}.npz", names[done], label, sample.cpu(), config, fps)
                done += 1
                bar.advance()
    if single and target.suffix.lower() == ".png":
        write_video(target, frame_rows(torch.stack(clips))[:, None], fps)
    elif single:
        write_video(target, tiled(torch.stack(clips)), fps)
    print(f"{number} clips of {config.name} in {target}")
