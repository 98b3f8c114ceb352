"""See what a tokenizer does to one clip, and what can be told from tokens.

    vidtok demo                     # a clip that vidtok renders itself
    vidtok demo clip.mp4 -o out     # the beginning of one of yours

Writes tokens.npz, original.mp4, reconstruction.mp4 and picture.png into a folder, and prints how good the
reconstruction is, what it costs and how fast it went. Then, unless the clip is one of yours, a digit moves in nine ways
(actions.mp4), and the shipped head tells them from the tokens: clip to tokens to action. Only in its own folder,
vidtok-demo, it writes over the files of the last time.
"""

import argparse
from pathlib import Path

from vidtok.cli import common
from vidtok.errors import UserError

FOLDER = "vidtok-demo"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("clip", nargs="?", metavar="CLIP", help="a video (default: rendered)")
    parser.add_argument("-o", "--output", default=FOLDER, metavar="DIR", help="folder to write to (%(default)s)")
    parser.add_argument("--force", action="store_true", help="overwrite what exists in DIR")
    common.add_model(parser)
    common.add_precision(parser)


def run(args: argparse.Namespace) -> None:
    import torch

    from vidtok.cli.common import print_rows
    from vidtok.datasets import demo_clip, write_video
    from vidtok.demo import FRAMES, _timed, draw_picture, tell_actions
    from vidtok.eval import CodebookUsage, psnr, ssim
    from vidtok.extraction import write_npz
    from vidtok.extraction.videos import Source, chunk_ids, collect_ids, decode_chunks, encode_chunks
    from vidtok.streaming import cut_chunks

    tokenizer = common.load_tokenizer(args)
    folder = Path(args.output)
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / name for name in ("original.mp4", "reconstruction.mp4", "tokens.npz", "picture.png")}
    if args.clip is None:
        files["actions.mp4"] = folder / "actions.mp4"
    validate_no_overwrite(args, files.values())
    if args.clip is None:
        write_video(files["original.mp4"], demo_clip(), 30)
    clip = args.clip or files["original.mp4"]
    with Source(Path(clip), tokenizer.config.preprocessing["size"], max_frames=FRAMES) as source:
        original = torch.cat(list(source), 2)
    if args.clip is None:
        original = demo_clip()  # what was rendered, not what H.264 left of it

    def encode():
        return collect_ids(encode_chunks(tokenizer, [original], None), tokenizer.bits)

    def decode():
        chunks = decode_chunks(tokenizer, chunk_ids(ids), None)
        return torch.cat(list(cut_chunks(chunks, meta.frames, meta.size)), 2).cpu()

    ids, encode_seconds = _timed(encode)
    record = source.record(tokenizer, ids, args.precision, None)
    meta = record.meta
    decoded, decode_seconds = _timed(decode)
    if args.clip is not None:
        write_video(files["original.mp4"], original, meta.fps)
    write_video(files["reconstruction.mp4"], decoded, meta.fps)
    write_npz(files["tokens.npz"], [record])

    usage = CodebookUsage(round(2**tokenizer.bits))
    usage.update(torch.from_numpy(ids.astype("int64")))
    clip_name = "rendered" if args.clip is None else args.clip
    quality = psnr(original, decoded).item()
    rate = tokenizer.bits * ids.size / original[0, 0].numel()
    caption = f"{meta.model}: {quality:.1f} dB at {rate:.3f} bits per pixel"
    draw_picture(files["picture.png"], original, decoded, ids, tokenizer, caption)
    print_rows(
        {
            "clip": f"{clip_name}, {meta.frames} frames, {meta.size[0]} x {meta.size[1]}",
            "tokenizer": f"{meta.model}, weights {meta.weight_hash}, {args.precision} on {tokenizer.device}",
            "tokens": " x ".join(map(str, ids.shape)) + f" = {ids.size}",
            "PSNR": f"{quality:.2f} dB",
            "SSIM": f"{ssim(original, decoded).item():.4f}",
            "bits per pixel": f"{rate:.4f}",
            "codebook": f"{usage.distinct} codes used, {usage.entropy_bits:.2f} bits of entropy",
            "encode": f"{meta.frames / encode_seconds:.0f} frames/s",
            "decode": f"{meta.frames / decode_seconds:.0f} frames/s",
            **{name: path for name, path in files.items()},
        }
    )
    if args.clip is None:
        print()
        print_rows(tell_actions(tokenizer, files["actions.mp4"]))


def validate_no_overwrite(args: argparse.Namespace, files) -> None:
    """Raises UserError where a file is in the way, or is the clip itself."""
    for file in files:
        if args.clip is not None and file.exists() and file.samefile(args.clip):
            raise UserError(f"{args.clip} would be overwritten by the demo: give another -o DIR")
        if file.exists() and args.output != FOLDER and not args.force:
            raise UserError(f"{file} exists: --force overwrites it")
