"""Token files to videos.

    vidtok decode clip.npz -o clip.mp4
    vidtok decode tokens/ -o videos             # the tree below tokens/, as .mp4
    vidtok decode part.parquet -o videos        # .tar, too: all videos in it
    vidtok decode clip.npz -o clip.gif          # .mp4, .mov, .mkv, .gif; .png for one frame

The number and the size of the frames are those that were encoded, played at their mean rate. The model must be the one
that made the tokens: a file of other weights is refused.
"""

import argparse
from pathlib import Path

from vidtok.cli import common


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="token files, folders of them, glob patterns")
    common.add_output(parser, "folder, or a name in .mp4, .mov, .mkv, .gif, .png for one file")
    common.add_model(parser)
    common.add_precision(parser)
    common.add_tile(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import run_jobs
    from vidtok.datasets import VideoWriter
    from vidtok.extraction.videos import chunk_ids, decode_chunks
    from vidtok.streaming import cut_chunks

    jobs = plan(args)
    tokenizer = common.load_tokenizer(args)

    def work(job, count):
        record = jobs[job]()
        meta = record.meta
        if meta.feature != "ids" or meta.clips is not None:
            raise ValueError(f"it holds {meta.feature} of {meta.clips or 1} clips: only the ids of whole videos decode")
        if meta.weight_hash != tokenizer.weight_hash:
            raise ValueError(
                f"its tokens are of {meta.model} with weights {meta.weight_hash}, and --model {args.model} has weights "
                f"{tokenizer.weight_hash}: give the model that made them"
            )
        with VideoWriter(job.target, meta.fps) as writer:
            chunks = decode_chunks(tokenizer, chunk_ids(record.features), args.tile)
            for chunk in cut_chunks(chunks, meta.frames, meta.size):
                writer.write(chunk)
                count(chunk.shape[2])

    return run_jobs([*jobs], work, force=args.force, done="decoded")


def plan(args: argparse.Namespace) -> dict:
    """{job: what reads its record}: one for each .npz, as many as there are videos for each shard."""
    from functools import partial

    from vidtok.extraction import open_reader, read_npz
    from vidtok.extraction.npz import npz_name
    from vidtok.files import MOVIES, Job, find_files, plan_jobs

    files = find_files(args.inputs, (".npz", ".parquet", ".tar"))
    shards = [file for file, _ in files if file.suffix in (".parquet", ".tar")]
    files = [(file, below) for file, below in files if file not in shards]
    jobs = {job: partial(_only, read_npz, job.source) for job in plan_jobs(files, args.output, ".mp4", MOVIES)}
    for shard in shards:
        reader = open_reader(shard)
        below = [(shard, Path(npz_name(entry.id))) for entry in reader.entries]
        for i, job in enumerate(plan_jobs(below, args.output, ".mp4", MOVIES)):
            jobs[Job(shard, job.target)] = partial(reader.read, i)
    return jobs


def _only(read, path: Path):
    return read(path)[0]
