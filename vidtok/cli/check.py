"""Decode every video of a dataset once and say which are bad.

    vidtok check videos/ -o checked.csv
    vidtok check train.csv val.csv --root videos/ --min-frames 16 -o checked.csv

DATASET: a folder, or an annotation file (Kinetics csv, Something-Something-v2 json, csv with a header, list). The table
has a row per video: status (ok, missing, corrupt, too short), reason, warning (a clock that restarts), guard (why
decord is not trusted with it: it is read all the same, by PyAV), frames, fps, height, width, duration; and a row per
segment (start, end) that is not within its video. Datasets take the table as `checked`. A file that is in two splits,
under whatever name, is an error. Exit status 1 where anything is wrong.
"""

import argparse

from vidtok.cli import common
from vidtok.names import printable

SHOWN = 30  # bad videos on the console; the table has all


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("datasets", nargs="+", metavar="DATASET", help="folders or annotation files")
    parser.add_argument("--root", help="folder of the videos (default: where the annotation file is)")
    parser.add_argument("--path-column", metavar="NAME", help="in the header of a csv, where it is not found by itself")
    parser.add_argument("--label-column", metavar="NAME")
    parser.add_argument("--split-column", metavar="NAME")
    common.add_frame_folders(parser)
    parser.add_argument("--min-frames", type=positive(int), default=1, help="fewer are too short (%(default)s)")
    parser.add_argument("--workers", type=positive(int), help="processes (default: one per CPU)")
    parser.add_argument("--time-limit", type=positive(float), default=300, metavar="S", help="a video (%(default)s s)")
    parser.add_argument("-o", "--output", metavar="TABLE", help="csv file to write")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


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
