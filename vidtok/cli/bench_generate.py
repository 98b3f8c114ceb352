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
    for row in bench_generation(device, batches=(1,) if args.quick else (1, 8), runs=args.runs or 1):
        rows.append(row)
        took = {name: f"{row[name]['median_s']:.2f} s" for name in ("masked", "cached", "uncached")}
        print(
            f"batch {row['batch']}, {row['tokens']} tokens: masked, {row['steps']} steps {took['masked']}; "
            f"autoregressive with cache {took['cached']} ({row['over_cached']['median']:.1f} x), "
            f"without {took['uncached']} ({row['over_uncached']['median']:.1f} x, target {TARGET})",
            flush=True,
        )
    if args.json:
        write_json(args.json, {"schema": "vidtok.bench.generate/1", "rows": rows, "provenance": about})
