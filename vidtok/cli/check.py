"""Decode every video of a dataset and report the bad ones.

    vidtok check videos/ -o checked.csv
    vidtok check train.csv val.csv --root videos/ --min-frames 16 -o checked.csv

DATASET is a folder, an archive or an annotation file (Kinetics csv, Something-Something-v2 json, csv with a header,
list), on this machine or at an address. The table has one row per video: status (ok, missing, corrupt, too short),
reason, warning (such as timestamps that restart), guard (why decord is not used for it; PyAV reads it instead), frames,
fps, height, width and duration. Segments (start, end) that do not lie within their video get rows too. Datasets accept
the table as `checked`. A file that occurs in two splits, even under different names, is an error. The exit status is 1
if there is any problem.
"""

import argparse

from vidtok.cli import common
from vidtok.names import printable

SHOWN = 30  # maximum number of bad videos printed; the table lists all


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help="folders of videos, archives, annotation files")
    parser.add_argument("--root", help="folder of the videos (default: that of the annotation file)")
    parser.add_argument("--path-column", metavar="NAME", help="csv column of the video paths (default: detected)")
    parser.add_argument("--label-column", metavar="NAME", help="csv column of the labels (default: detected)")
    parser.add_argument("--split-column", metavar="NAME", help="csv column of the splits (default: detected)")
    common.add_frame_folders(parser)
    parser.add_argument("--min-frames", type=positive(int), default=1, help="minimum number of frames (%(default)s)")
    parser.add_argument("--workers", type=positive(int), help="number of decoding processes (default: one per CPU)")
    help = "seconds after which the decoding of a video is stopped (default: %(default)s)"
    parser.add_argument("--time-limit", type=positive(float), default=300, metavar="S", help=help)
    parser.add_argument("-o", "--output", metavar="TABLE", help="csv file for the table, also s3://...")
    parser.add_argument("--force", action="store_true", help="overwrite an existing table")


def run(args: argparse.Namespace) -> int:
    from vidtok.cli.progress import Progress
    from vidtok.datasets import check

    settings = dict(vars(args))
    with Progress(None, "videos") as bar:
        found = check(settings.pop("datasets"), progress=bar.reach, **settings)
    bad, table = found.bad, found.table
    for row in bad.head(SHOWN).itertuples():
        print(f"{row.path}: {row.status}" + ("" if row.status == "missing" else f": {row.reason}"))
    if len(bad) > SHOWN:
        print(f"... and {len(bad) - SHOWN} more" + (f", see {args.output}" if args.output else ": give -o TABLE"))
    for row in found.warned.head(SHOWN).itertuples():
        print(f"{row.path}: ok, but {row.warning}")
    for split, ours, other, theirs in found.overlap:
        text = f"{ours} of {split} is in {other}, too" + (f", as {theirs}" if theirs != ours else "")
        print(printable(text))
    counts = table["status"].value_counts()
    print(
        f"{table['start'].isna().sum()} videos: {', '.join(f'{n} {status}' for status, n in counts.items())}; "
        f"{(table['guard'] != '').sum()} not trusted to decord; {len(found.overlap)} in two splits"
    )
    return int(not found.ok)
