"""`vidtok bench generate`: how much faster 12 masked steps are than a step per token."""

import argparse

from vidtok.cli import options

TARGET = 20  # times as fast as uncached autoregressive sampling


def bench_generate(args: argparse.Namespace) -> None:
    from vidtok.bench.generation import bench_generation
    from vidtok.cli.jsonfile import write_json
    from vidtok.eval.provenance import provenance

    device = options.pick_device(args.device)
    about, rows = provenance(device), []
    print(f"generators on {about['device']}, {about['threads']} threads", flush=True)
    for row in bench_generation(device, batches=(1,) if args.quick else (1, 8), runs=args.runs or 3):
        rows.append(row)
        print(describe(row), flush=True)
        if args.json:  # now: the next one takes many minutes
            write_json(args.json, {"schema": "vidtok.bench.generate/1", "rows": rows, "provenance": about})


def describe(row: dict) -> str:
    trunk = row["trunk"]
    line = (
        f"batch {row['batch']}, {row['tokens']} tokens, {trunk['depth']} layers x {trunk['width']}: masked, "
        f"{row['steps']} steps {seconds(row['masked'])}; autoregressive with cache {seconds(row['cached'])} "
        f"({row['over_cached']['median']:.1f} x)"
    )
    if "uncached" not in row:
        return line
    return f"{line}, without {seconds(row['uncached'])} ({row['over_uncached']['median']:.1f} x, target {TARGET})"


def seconds(times: dict) -> str:
    from vidtok.eval.table import short_seconds

    return f"{short_seconds(times['median_s'])} s"
