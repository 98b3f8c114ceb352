"""Measure speed and memory.

    vidtok bench
    vidtok bench --quick
    vidtok bench tokenizer --model runs/mine/model --device cuda --compile
    vidtok bench --threads 2 --json bench.json --chart bench.png
    vidtok bench loader videos/

tokenizer: frames a second of encode and decode, memory, and arithmetic a second beside what this machine reaches with
the same convolutions alone; against magvit2-pytorch's model where that is installed. magvit2: the paper's network,
naive against bf16 and channels-last. streaming: the latency of one latent. loss: the LFQ loss, forward and backward,
against vector-quantize-pytorch's. train: a training step, with and without discriminator. Without a kind all of these,
in some minutes. By their names alone: generate, 12 masked steps against autoregressive sampling of 1280 tokens, in some
minutes more; loader, the clips of DATASET (or rendered ones) that reach training and evaluation through 1 and 2 worker
processes, of those that this process decodes and resizes. What is compared is measured in turns; every figure is a
median of several runs.

`vidtok bench generate`: how much faster 12 masked steps are than a step per token.

`vidtok bench loader`: what arrives through a loader, of what one process decodes and resizes.
"""

import argparse

from vidtok.cli import common

KINDS_OF_BENCH = ("all", "tokenizer", "magvit2", "streaming", "loss", "train", "generate", "loader")
SCHEMA = "vidtok.bench/1"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=KINDS_OF_BENCH, default="all")
    parser.add_argument("data", nargs="?", metavar="DATASET", help="for loader: folder of videos, or annotation file")
    common.add_model(parser)
    parser.add_argument("--threads", type=common.positive(int), help="CPU threads (default: torch's)")
    parser.add_argument("--runs", type=common.positive(int), help="of each quick measurement (default 15)")
    parser.add_argument("--quick", action="store_true", help="one size, few runs, no memory")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, too (a minute or more)")
    parser.add_argument("--json", metavar="OUT", help="write the whole result")
    parser.add_argument("--chart", metavar="OUT", help="draw it, as PNG")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def run(args: argparse.Namespace) -> None:
    from dataclasses import replace

    import torch

    from vidtok.bench.peers import peer_versions
    from vidtok.bench.suite import KINDS, QUICK, Effort, check_targets
    from vidtok.bench.table import print_part, print_targets
    from vidtok.bench.timing import machine
    from vidtok.checks import pick_device
    from vidtok.errors import UserError
    from vidtok.files import validate_output, write_json
    from vidtok.provenance import provenance

    if args.data is not None and args.kind != "loader":
        raise UserError(f"bench {args.kind} takes no dataset, {args.data}: loader does")
    if args.chart and args.kind in ("generate", "loader"):
        raise UserError(f"--chart: there is none of {args.kind}")
    for out in (args.json, args.chart):
        validate_output(out, args.force)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.kind == "generate":  # minutes by itself, and no part of "all"
        bench_generate(args)
        return
    if args.kind == "loader":
        bench_loader(args)
        return
    device = pick_device(args.device)
    effort = QUICK if args.quick else Effort()
    if args.runs:
        effort = replace(effort, runs=args.runs)
    about = {**provenance(device), "machine": machine()}
    about["versions"] |= peer_versions()
    print(f"{args.model} on {about['device']}, {about['threads']} threads, torch {torch.__version__}", flush=True)
    result = {"schema": SCHEMA, "model": args.model, "kind": args.kind, "quick": args.quick, "provenance": about}
    for kind in KINDS if args.kind == "all" else [args.kind]:
        for part in KINDS[kind](args.model, device, effort, args.compile):
            print_part(part)
            for key, value in part.items():
                result[key] = result[key] + value if key in result and isinstance(value, list) else value
    result["targets"] = check_targets(result)
    print_targets(result["targets"])
    if args.json:
        write_json(args.json, result)
    if args.chart:
        from vidtok.bench.chart import draw_chart

        draw_chart(result, args.chart)


def bench_generate(args: argparse.Namespace) -> None:
    from vidtok.bench.generation import bench_generation, describe
    from vidtok.checks import pick_device
    from vidtok.files import write_json
    from vidtok.provenance import provenance

    device = pick_device(args.device)
    about, rows = provenance(device), []
    print(f"generators on {about['device']}, {about['threads']} threads", flush=True)
    for row in bench_generation(device, batches=(1,) if args.quick else (1, 8), runs=args.runs or 3):
        rows.append(row)
        print(describe(row), flush=True)
        if args.json:  # now: the next one takes many minutes
            write_json(args.json, {"schema": "vidtok.bench.generate/1", "rows": rows, "provenance": about})


TARGET = 0.85  # of one process, for one worker and more


def bench_loader(args: argparse.Namespace) -> None:
    from vidtok.bench import loader
    from vidtok.checks import pick_device
    from vidtok.files import write_json
    from vidtok.provenance import provenance

    about, rows = provenance(pick_device("cpu")), []
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
