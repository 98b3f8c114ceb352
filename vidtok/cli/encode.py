"""Videos to token files.

    vidtok encode clip.mp4 -o tokens                      # tokens/clip.npz
    vidtok encode videos/ -o tokens --size 128            # the tree below videos/, short sides 128 pixels
    vidtok encode 'videos/*/*.mp4' more/ -o tokens        # patterns and folders
    vidtok encode clip.mp4 -o clip.npz --precision bf16   # faster; says how far its tokens are those of fp32

Videos of any length are read in pieces. Sides and lengths that the model's stride doesn't divide (for vidtok-t those
other than multiples of 8 and 1 + 4k frames) are padded, at the right, the bottom and the end; `vidtok decode` cuts that
off again. A file that fails is named and the run goes on. The format of token files is described in
vidtok/extract/npz.py; `vidtok info FILE` shows one.
"""

import argparse

from vidtok.cli import options


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders of videos, glob patterns")
    options.add_output(parser, "folder, or a name in .npz for one video")
    options.add_model(parser)
    options.add_precision(parser)
    options.add_reading(parser)
    options.add_tile(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.agreement import Agreement
    from vidtok.cli.batch import run_jobs
    from vidtok.cli.inputs import find_videos, plan_jobs
    from vidtok.cli.videos import Source, collect_ids, encode_chunks
    from vidtok.extract import write_npz

    jobs = plan_jobs(find_videos(args.inputs), args.output, ".npz", (".npz",))
    tokenizer = options.load_tokenizer(args)
    agreement = None
    if args.precision != "fp32":
        agreement = Agreement(tokenizer, options.load_tokenizer(args, precision="fp32"))

    def work(job, count):
        with Source(job.source, args.size, args.fps, args.max_frames, count) as source:
            ids = collect_ids(encode_chunks(tokenizer, source, args.tile), tokenizer.bits)
            write_npz(job.target, [source.record(tokenizer, ids, args.precision, args.tile)])
        if agreement is not None:
            agreement.add(job.source, args.size, args.fps, args.tile)

    status = run_jobs(jobs, work, force=args.force, done="encoded")
    if agreement is not None and agreement.tokens:
        print(agreement)
    return status
