"""Measure what a tokenizer loses.

    vidtok eval reconstruction videos/                                  # first 17 frames, 128x128
    vidtok eval reconstruction videos/ --json result.json --split val
    vidtok eval reconstruction videos/ --lpips vgg16.pth --i3d i3d.safetensors

PSNR (against the trivial codec of the same token grid, too), SSIM, visibility of block edges, bits per pixel and use of
the codebook; LPIPS and rFVD where their weights are given. One clip per file: the first --frames frames, short side
--size, centre crop to a square. A clip that can't be read, or is too short, counts as failed; nothing takes its place.
"""

import argparse

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders of videos, glob patterns")
    common.add_model(parser)
    common.add_precision(parser)
    positive = common.positive
    parser.add_argument("--frames", type=positive(int), default=17, help="of each clip (%(default)s)")
    parser.add_argument("--size", type=positive(int), default=128, metavar="PIXELS", help="of the crop (%(default)s)")
    parser.add_argument("--fps", type=positive(float), help="resample by time (default: native)")
    parser.add_argument("--clips", type=positive(int), metavar="N", help="only N files, evenly spread (default: all)")
    parser.add_argument("--split", metavar="NAME", help="which part of the data this is, for the record")
    parser.add_argument("--lpips", metavar="FILE", help="torchvision's VGG16 or AlexNet weights: measure LPIPS")
    parser.add_argument("--lpips-net", choices=["vgg", "alex"], default="vgg", help="which of the two (%(default)s)")
    parser.add_argument("--i3d", metavar="FILE", help="I3D weights (see vidtok.eval.metrics.i3d): measure rFVD")
    parser.add_argument("--batch-size", type=positive(int), default=1, help="clips at a time (%(default)s)")
    parser.add_argument("--json", metavar="OUT", help="write the whole result, clip by clip")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import track
    from vidtok.eval import I3D, clip_protocol, evaluate_reconstruction, format_table, validation_clips
    from vidtok.files import find_videos, validate_output, write_json
    from vidtok.train.perceptual import LPIPS

    validate_output(args.json, args.force)
    files = [file for file, _ in find_videos(args.inputs)]
    chosen = {} if args.clips is None else {"clips": f"{args.clips} of {len(files)} files, evenly spread"}
    files = spread(files, args.clips or len(files))
    tokenizer = common.load_tokenizer(args)
    device = tokenizer.device
    clips = validation_clips(files, args.frames, args.size, args.fps, tokenizer.stride)
    result = evaluate_reconstruction(
        tokenizer,
        track(clips, len(files), "clips"),
        name=tokenizer.config.name,
        weight_hash=tokenizer.weight_hash,
        protocol={
            **clip_protocol(" ".join(args.inputs), args.split, args.frames, args.size, args.fps),
            "precision": args.precision,
            **chosen,
        },
        lpips=LPIPS(args.lpips_net, args.lpips).to(device) if args.lpips else None,
        fvd=I3D(args.i3d).to(device) if args.i3d else None,
        batch_size=args.batch_size,
        device=device,
    )
    print(format_table(result))
    print(f"{args.precision} on {result['provenance']['device']}, {result['wall_time_s']:.0f} s")
    if args.json:
        write_json(args.json, result)
    return 1 if result["n_failed"] else 0


def spread(files: list, count: int) -> list:
    """Choose `count` files at even distances, the first and the last included; all where there are no more."""
    if count >= len(files):
        return files
    return [files[round(i * (len(files) - 1) / max(1, count - 1))] for i in range(count)]
