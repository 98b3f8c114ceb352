"""Extract tokens or other features of videos into a folder. An interrupted run resumes with the same command.

    vidtok extract videos/ -o tokens                                  # ids of whole videos, a mirrored tree of .npz
    vidtok extract train.csv --root videos/ -o tokens --size 128      # labels and splits of an annotation file
    vidtok extract digits -o digits --container parquet               # the built-in labeled videos
    vidtok extract videos/ -o hidden --features hidden --pool mean --clips dense:2 --frames 16 --size 128 --crop center

SRC is a video, a folder, a tar or zip file, a glob pattern, an annotation file (.csv, .tsv, .json, .jsonl, .txt;
Kinetics, SSv2 or a list of videos), an address of one (s3://, https://, ...) or "digits". Labels and splits come from
the annotation file, or with --class-folders from the folders SRC/[SPLIT/]CLASS/VIDEO.

--features embedding is the input of the last layer of a trained --head, for the clips that the head was trained on.

Whole videos are streamed in bounded memory. --clips extracts clips of --frames frames instead. uniform:N extracts N
clips whose frames are the middles of equal segments of the video; dense:N extracts N evenly spaced clips with a frame
every --stride frames; windows[:HOP] covers the whole video with sliding windows. --fps sets the frame rate of clips and
of whole videos.

--engine ray runs on all machines of a Ray cluster, with one model per GPU (or per two CPUs). The cluster is that of
--ray-address; without it, one is started on this machine. Only this process writes to OUT, unless --ray-write actors
lets all machines write to a shared folder or an address. The paths of the videos must be valid on all machines.

OUT holds features of one model and one configuration (settings.json); other settings are an error. Complete, verified
videos are skipped. Several processes may fill one folder at once. Videos that fail are listed in OUT/failures.csv, and
the exit status is then 1. The file formats are described in vidtok/extraction/: record.py, npz.py and parquet.py.
"""

import argparse
import sys
from functools import partial
from pathlib import Path

from vidtok.cli import common, progress
from vidtok.names import printable


def configure(parser: argparse.ArgumentParser) -> None:
    positive, add = common.positive, parser.add_argument
    add("sources", nargs="+", metavar="SRC", help="videos, folders, glob patterns, annotation files or digits")
    add("-o", "--output", required=True, metavar="OUT", help="folder for the features, also s3://...")
    add("--features", default="ids", help="features: ids (default), codes, latents, hidden or embedding")
    add("--pool", help="pooling of hidden or latents: mean, over the whole grid (default: none)")
    add("--dtype", default="float32", help="dtype of stored floats: float32 (default) or float16")
    add("--head", metavar="NAME", help="head or backbone of --features embedding: name, folder or hub id")
    add("--container", default="npz", help="file format: npz (default), parquet or webdataset")
    common.add_model(parser, custom=True)
    common.add_precision(parser)
    common.add_reading(parser)
    common.add_frame_folders(parser)
    add("--crop", help="square crop of side --size: center or, with --clips, three (default: none)")
    add("--clips", metavar="SAMPLER", help="clips: uniform:N, dense:N or windows[:HOP] (default: whole videos)")
    add("--frames", type=positive(int), help="frames per clip (default: 16)")
    add("--stride", type=positive(int), help="stride between frames of a clip, in frames (default: 1)")
    common.add_tile(parser)
    add("--root", help="folder of the videos (default: that of the annotation file)")
    add("--split", help="split of the annotations to extract (default: all)")
    add("--renderings", type=positive(int), metavar="N", help="number of renderings of each digit video (default: 1)")
    add("--task", metavar="NAME", help="motion task, or all: extract its clips, with --clips dense:1 and --size")
    add("--task-clips", type=positive(int), metavar="N", help="total number of clips of --task (default: as of eval)")
    add("--class-folders", action="store_true", help="take labels from the names of the folders in SRC")
    add("--path-column", metavar="NAME", help="csv column of the video paths (default: detected)")
    add("--label-column", metavar="NAME", help="csv column of the labels (default: detected)")
    add("--split-column", metavar="NAME", help="csv column of the splits (default: detected)")
    common.add_running(parser)
    add("--engine", choices=["local", "ray"], default="local", help="engine: local (default) or ray")
    add("--ray-address", metavar="ADDRESS", help="running Ray cluster: auto or HOST:PORT (default: start one)")
    help = "number of Ray actors (default: one per GPU, or per two CPUs)"
    add("--actors", type=positive(int), metavar="N", help=help)
    help = "who writes with Ray: driver (default), or actors, to a folder of all machines or an address"
    add("--ray-write", choices=["driver", "actors"], default="driver", help=help)
    add("--dry-run", action="store_true", help="write nothing; print what there is to do and how long it takes")
    add("--measure", action="store_true", help="write nothing; measure the speed of decoding, model and both")


def run(args: argparse.Namespace) -> int:
    from vidtok.errors import UserError
    from vidtok.extraction.containers import SUFFIXES
    from vidtok.extraction.run import dry_run, extract, measure
    from vidtok.extraction.stats import RunLog, describe_speeds

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
    log = RunLog("extract", settings, sys.stderr) if log_json else None
    return int(progress.show_run(partial(extract, **settings), "extracted", "videos", log).failed > 0)


def validate_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that have no effect together with the others."""
    on_ray = args.engine == "ray"
    progress.validate_flags((
        ("--frames", args.frames and not args.clips, "is of --clips"),
        ("--stride", args.stride and not args.clips, "is of --clips"),
        ("--renderings", args.renderings and "digits" not in args.sources, "is of digits"),
        ("--class-folders", args.class_folders and args.task, "is without --task, whose classes are labels"),
        ("--task-clips", args.task_clips and not args.task, "is of --task"),
        ("--ray-address", args.ray_address and not on_ray, "is for --engine ray"),
        ("--actors", args.actors and not on_ray, "is for --engine ray"),
        ("--ray-write", args.ray_write != "driver" and not on_ray, "is for --engine ray"),
        ("--measure", args.measure and on_ray, "is of this machine, without --engine ray"),
        ("--dry-run", args.dry_run and (on_ray or args.measure), "is without --engine ray and --measure"),
        ("--device", args.device != "auto" and on_ray, "is not for --engine ray, whose actors take GPUs"),
    ))  # fmt: skip
