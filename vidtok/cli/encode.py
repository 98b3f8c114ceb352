"""Videos to token files: `vidtok extract` with its defaults.

    vidtok encode clip.mp4 -o tokens                      # tokens/clip.npz
    vidtok encode videos/ -o tokens --size 128            # the tree below videos/, short sides 128 pixels
    vidtok encode 'videos/*/*.mp4' more/ -o tokens        # patterns and folders
    vidtok encode clip.mp4 -o clip.npz --precision bf16   # faster; says how far its tokens are those of fp32

Videos of any length are read in pieces. Sides and lengths that the model's stride doesn't divide (multiples of 8 and
1 + 4k frames for vidtok-t) are padded, at the right, the bottom and the end; `vidtok decode` cuts that off again. A
folder holds one model and one setting; what is complete in it is skipped, and the rest is done. A file that fails is
named, and in failures.csv, and the run goes on. The format of token files is described in vidtok/extraction/npz.py;
`vidtok info FILE` shows one.
"""

import argparse

from vidtok.cli import common
from vidtok.cli.common import add_running


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("inputs", nargs="+", metavar="IN", help="videos, folders of videos, glob patterns")
    common.add_output(parser, "folder, or a name in .npz for one video")
    common.add_model(parser)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_tile(parser)
    add_running(parser)
    parser.set_defaults(features="ids", pool=None, dtype="float32", crop=None, head=None, measure=False)


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from vidtok.extraction.run import Extraction
    from vidtok.extraction.sources import plan_files, validate_unique
    from vidtok.files import find_videos, plan_jobs

    files = find_videos(args.inputs)
    jobs = plan_jobs(files, args.output, ".npz", (".npz",))
    extraction = Extraction(args, validate_unique(plan_files(files)))
    if jobs[0].target == Path(args.output):
        status = extraction.run_one(jobs[0].target, args.force, "encoded")
    else:
        status = extraction.run(args.output, "npz", "encoded", args.force)
    if args.precision != "fp32":
        report_agreement(args, extraction)
    return status


def report_agreement(args: argparse.Namespace, extraction) -> None:
    """Says how far the tokens are those of fp32."""
    from vidtok.datasets import VideoError
    from vidtok.extraction.videos import Agreement

    agreement = Agreement(extraction.tokenizer, common.load_tokenizer(args, precision="fp32"))
    for item in extraction.items:
        try:
            agreement.add(item.path, args.size, args.fps, args.tile)
        except VideoError:  # named already
            continue
    if agreement.tokens:
        print(agreement)
