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
"""

import argparse

from vidtok.cli import options

KINDS_OF_BENCH = ("all", "tokenizer", "magvit2", "streaming", "loss", "train", "generate", "loader")
SCHEMA = "vidtok.bench/1"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=KINDS_OF_BENCH, default="all")
    parser.add_argument("data", nargs="?", metavar="DATASET", help="for loader: folder of videos, or annotation file")
    options.add_model(parser)
    parser.add_argument("--threads", type=options.positive(int), help="CPU threads (default: torch's)")
    parser.add_argument("--runs", type=options.positive(int), help="of each quick measurement (default 15)")
    parser.add_argument("--quick", action="store_true", help="one size, few runs, no memory")
    parser.add_argument("--compile", action="store_true", help="with torch.compile, too (a minute or more)")
    parser.add_argument("--json", metavar="OUT", help="write the whole result")
    parser.add_argument("--chart", metavar="OUT", help="draw it, as PNG")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def run(args: argparse.Namespace) -> None:
    from dataclasses import replace

    import torch

    from vidtok.bench.machine import machine
    from vidtok.bench.peers import peer_versions
    from vidtok.bench.suite import KINDS, QUICK, Effort
    from vidtok.bench.targets import check_targets
    from vidtok.cli.benchtable import print_part, print_targets
    from vidtok.cli.error import UserError
    from vidtok.cli.jsonfile import refuse_existing, write_json
    from vidtok.eval.provenance import provenance

    if args.data is not None and args.kind != "loader":
        raise UserError(f"bench {args.kind} takes no dataset, {args.data}: loader does")
    if args.chart and args.kind in ("generate", "loader"):
        raise UserError(f"--chart: there is none of {args.kind}")
    for out in (args.json, args.chart):
        refuse_existing(out, args.force)
    if args.threads:
        torch.set_num_threads(args.threads)
    if args.kind == "generate":  # minutes by itself, and no part of "all"
        from vidtok.cli.bench_generate import bench_generate

        bench_generate(args)
        return
    if args.kind == "loader":
        from vidtok.cli.bench_loader import bench_loader

        bench_loader(args)
        return
    device = options.pick_device(args.device)
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
