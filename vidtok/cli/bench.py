"""Measure speed and memory.

    vidtok bench tokenizer
    vidtok bench tokenizer --threads 2 --json bench.json
    vidtok bench tokenizer --model runs/mine/model --device cuda --compile

Tokenizer: frames a second of encode and decode at 17 x 128 x 128, in fp32 and bf16; and time and memory of the entropy
terms of the LFQ loss, forward and backward. Every figure is a median over several runs, with the best run beside it.
"""

import argparse

from vidtok.cli import options

TARGET_FRAMES, TARGET_MS, TARGET_MB = 500, 40, 100  # what vidtok-t is meant to reach on 2 CPU cores


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", choices=["tokenizer"])
    options.add_model(parser)
    parser.add_argument("--threads", type=options.positive(int), help="CPU threads (default: torch's)")
    parser.add_argument("--runs", type=options.positive(int), default=15, help="of each measurement (%(default)s)")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, too (a minute or more)")
    parser.add_argument("--json", metavar="OUT", help="write the whole result")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def run(args: argparse.Namespace) -> None:
    import torch

    from vidtok.bench import bench_entropy, bench_tokenizer
    from vidtok.cli.jsonfile import refuse_existing, write_json
    from vidtok.eval.provenance import provenance

    refuse_existing(args.json, args.force)
    if args.threads:
        torch.set_num_threads(args.threads)
    device = options.pick_device(args.device)
    about = provenance(device)
    print(f"{args.model} at 17 x 128 x 128 on {about['device']}, {about['threads']} threads, torch {torch.__version__}")
    print(f"{'':8}{'precision':11}{'batch':>5}{'':10}{'frames/s':>10}{'best':>8}")
    rows = []
    for row in bench_tokenizer(args.model, device, runs=args.runs, compiled=args.compile):
        rows.append(row)
        print(
            f"{row['what']:8}{row['precision']:11}{row['batch']:>5}{' compiled' if row['compiled'] else '':10}"
            f"{row['frames_per_s']:>10.0f}{row['best_frames_per_s']:>8.0f}",
            flush=True,
        )
    entropy = bench_entropy(device, runs=2 * args.runs)
    fastest = max(row["frames_per_s"] for row in rows if row["what"] == "encode")
    memory = "memory not known" if entropy["peak_mb"] is None else f"{entropy['peak_mb']:.0f} MB"
    print(
        f"lfq_entropy forward and backward, {entropy['bits']} bits, {entropy['tokens']} tokens: "
        f"{entropy['median_s'] * 1e3:.1f} ms (best {entropy['best_s'] * 1e3:.1f}), {memory} "
        f"(targets {TARGET_MS} ms, {TARGET_MB} MB)"
    )
    print(f"fastest encode: {fastest:.0f} frames/s (target {TARGET_FRAMES} on 2 CPU cores)")
    if args.json:
        write_json(
            args.json,
            {"schema": "vidtok.bench.tokenizer/1", "model": args.model, "tokenizer": rows, "lfq_entropy": entropy}
            | {"provenance": about},
        )
