"""Videos through the tokenizer and back: what is left of them.

    vidtok reconstruct clip.mp4 -o clip-128.mp4 --size 128
    vidtok reconstruct videos/ -o out --side-by-side      # original | reconstruction

The same as `encode` and `decode`, in one pass and with nothing kept in between.
"""

import argparse

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders of videos, glob patterns")
    common.add_output(parser, "folder, or a name in .mp4, .mov, .mkv, .gif, .png for one video")
    parser.add_argument("--side-by-side", action="store_true", help="the original on the left")
    common.add_model(parser)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_tile(parser)


def run(args: argparse.Namespace) -> int:
    import torch

    from vidtok.cli.progress import run_jobs
    from vidtok.datasets import VideoWriter
    from vidtok.extraction.videos import Echo, Source, decode_chunks, encode_chunks
    from vidtok.files import MOVIES, find_videos, plan_jobs

    jobs = plan_jobs(find_videos(args.inputs), args.output, ".mp4", MOVIES)
    tokenizer = common.load_tokenizer(args)

    def work(job, count):
        with Source(job.source, args.size, args.fps, args.max_frames, count) as source:
            originals = Echo(source)
            ids = encode_chunks(tokenizer, originals, args.tile)
            with VideoWriter(job.target, source.stream.fps) as writer:
                for chunk in decode_chunks(tokenizer, ids, args.tile):
                    original = originals.take(chunk.shape[2])
                    chunk = chunk.cpu()[:, :, : original.shape[2], : original.shape[3], : original.shape[4]]
                    writer.write(torch.cat([original, chunk], 4) if args.side_by_side else chunk)

    return run_jobs(jobs, work, force=args.force, done="reconstructed")
