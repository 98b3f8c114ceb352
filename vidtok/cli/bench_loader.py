"""`vidtok bench loader`: what arrives through a loader, of what one process decodes and resizes."""

import argparse

from vidtok.cli import options

TARGET = 0.85  # of one process, for one worker and more


def bench_loader(args: argparse.Namespace) -> None:
    from vidtok.bench import loader
    from vidtok.cli.jsonfile import write_json
    from vidtok.eval.provenance import provenance

    about, rows = provenance(options.pick_device("cpu")), []
    print(f"clips of {loader.FRAMES} x {loader.SIDE} x {loader.SIDE}, of {args.data or 'rendered videos'}", flush=True)
    for row in loader.bench_loader(args.data, batches=3 if args.quick else 12, runs=args.runs or 3):
        rows.append(row)
        who = f"{row['workers']} worker{'s' * (row['workers'] > 1)}" if row["workers"] else "this process"
        share = f", {row['share']:.0%} of this process alone (target at least {TARGET:.0%})" if row["workers"] else ""
        print(
            f"  {row['of']}, {who:14}{row['clips_per_s']:7.1f} clips/s ({row['worst_clips_per_s']:.1f} .. "
            f"{row['best_clips_per_s']:.1f}), {row['cpu_ms']:.1f} ms of processor time a clip{share}",
            flush=True,
        )
    if args.json:
        write_json(args.json, {"schema": "vidtok.bench.loader/1", "rows": rows, "provenance": about})
