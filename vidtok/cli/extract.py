"""Videos to features, in a folder that survives anything: run the same command again and it goes on.

    vidtok extract videos/ -o tokens                                  # ids of whole videos, a mirrored tree of .npz
    vidtok extract train.csv --root videos/ -o tokens --size 128      # labels and splits of an annotation file
    vidtok extract digits -o digits --container parquet               # the built-in labeled videos
    vidtok extract videos/ -o hidden --features hidden --pool mean --clips dense:2 --frames 16 --size 128 --crop center

SRC: files, folders, tar and zip files, patterns; annotations (.csv, .json, .jsonl, .txt; of Kinetics, SSv2, lists);
"digits". Labels and splits come from the annotations, or with --class-folders from the folders SRC/[SPLIT/]CLASS/VIDEO.

--features embedding takes what a trained --head has before its last layer, of the clips that it was trained for.

Whole videos are streamed, in bounded memory. --clips takes clips of --frames frames instead: uniform:N, N clips, each
the middles of equal segments; dense:N, N clips of --frames every --stride; windows[:HOP], the whole video in windows.
--fps is their rate, as it is that of whole videos.

--engine ray does it on all machines of a Ray cluster, each GPU (or two CPUs) with a model of its own. --ray-address
says which; else one is started on this machine. Only this process writes to OUT; the videos' paths must be good on all.

OUT holds one model and one setting (settings.json); anything else is refused. What is complete and verified is skipped,
the rest is done. Several processes may fill one folder at once. Videos that fail are listed in OUT/failures.csv, and
the exit status is 1. The formats are described in vidtok/extraction/: record.py, npz.py, parquet.py, webdataset.py.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from vidtok.cli import common, progress
from vidtok.names import printable


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("sources", nargs="+", metavar="SRC", help="videos, folders, patterns, annotations, digits")
    parser.add_argument("-o", "--output", required=True, metavar="OUT", help="folder")
    parser.add_argument("--features", default="ids", help="ids (default), codes, latents, hidden, embedding")
    parser.add_argument("--pool", help="mean: hidden or latents over the whole grid")
    parser.add_argument("--dtype", default="float32", help="of stored floats: float32 (default) or float16")
    parser.add_argument("--head", metavar="NAME", help="trained head, for --features embedding")
    parser.add_argument("--container", default="npz", help="npz (default), parquet, webdataset")
    common.add_model(parser)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_frame_folders(parser)
    parser.add_argument("--crop", help="center, or with --clips three: squares of --size (default: none)")
    parser.add_argument("--clips", metavar="SAMPLER", help="uniform:N, dense:N, windows[:HOP] (default: whole videos)")
    parser.add_argument("--frames", type=positive(int), help="of a clip (16)")
    parser.add_argument("--stride", type=positive(int), help="from frame to frame of a clip (1)")
    common.add_tile(parser)
    parser.add_argument("--root", help="folder of the videos (default: where the annotation file is)")
    parser.add_argument("--split", help="of the annotations, one of them (default: all)")
    parser.add_argument("--renderings", type=positive(int), metavar="N", help="of each of the digits (1)")
    parser.add_argument("--class-folders", action="store_true", help="the folders in SRC are classes")
    parser.add_argument("--path-column", metavar="NAME", help="in the header of a csv, where it is not found by itself")
    parser.add_argument("--label-column", metavar="NAME")
    parser.add_argument("--split-column", metavar="NAME")
    common.add_running(parser)
    parser.add_argument("--engine", choices=["local", "ray"], default="local", help="local (default) or ray")
    parser.add_argument("--ray-address", metavar="ADDRESS", help="running cluster: auto or HOST:PORT (default: new)")
    parser.add_argument("--actors", type=positive(int), metavar="N", help="of Ray (default: one per GPU, or two CPUs)")
    parser.add_argument("--dry-run", action="store_true", help="write nothing; say what there is to do, and how long")
    parser.add_argument("--measure", action="store_true", help="write nothing; measure decoding, model and both")


def run(args: argparse.Namespace) -> int:
    from vidtok.errors import UserError
    from vidtok.extraction.containers import SUFFIXES
    from vidtok.extraction.run import dry_run, extract, measure
    from vidtok.extraction.stats import describe_speeds

    if Path(args.output).suffix in SUFFIXES.values() or Path(args.output).is_file():
        raise UserError(f"-o {args.output}: extract fills a folder (vidtok encode writes one .npz of one video, too)")
    validate_flags(args)
    settings = dict(vars(args))
    log_json = settings.pop("log_json")
    measured, is_dry = settings.pop("measure"), settings.pop("dry_run")
    if measured:
        del settings["output"]
        common.print_rows(describe_speeds(measure(**settings)))
        return 0
    if is_dry:
        forecast = dry_run(**settings)
        for item, why in forecast.failures:
            print(f"vidtok: {printable(f'{item}: {why}')}", file=sys.stderr)
        common.print_rows(forecast.rows())
        return int(bool(forecast.failures))
    return int(progress.show_run(partial(extract, **settings), "extracted", "videos", log_json).failed > 0)


def validate_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that would do nothing beside the others."""
    on_ray = args.engine == "ray"
    progress.validate_flags((
        ("--frames", args.frames and not args.clips, "is of --clips"),
        ("--stride", args.stride and not args.clips, "is of --clips"),
        ("--renderings", args.renderings and "digits" not in args.sources, "is of digits"),
        ("--ray-address", args.ray_address and not on_ray, "is for --engine ray"),
        ("--actors", args.actors and not on_ray, "is for --engine ray"),
        ("--measure", args.measure and on_ray, "is of this machine, without --engine ray"),
        ("--dry-run", args.dry_run and (on_ray or args.measure), "is without --engine ray and --measure"),
        ("--device", args.device != "auto" and on_ray, "is not for --engine ray, whose actors take GPUs"),
    ))  # fmt: skip
