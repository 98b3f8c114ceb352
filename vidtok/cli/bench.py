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
minutes more; loader, reading beside decord, torchcodec and PyAV on rendered files of 360 to 2160 lines (without
DATASET), and the clips of DATASET (or rendered ones) that reach training and evaluation through 1 and 2 worker
processes, of those that this process decodes and resizes. What is compared is measured in turns; every figure is a
median of several runs.

`vidtok bench generate`: how much faster 12 masked steps are than a step per token.

`vidtok bench loader`: rates of reading as multiples of decord's, PSNR of the resizing, memory of 4K; and what arrives
through a loader, of what one process decodes and resizes.
"""

import argparse

from vidtok.cli import common

KINDS_OF_BENCH = ("all", "tokenizer", "magvit2", "streaming", "loss", "train", "generate", "loader")


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
    from vidtok.bench.suite import ALONE, run_benchmark
    from vidtok.bench.table import print_part
    from vidtok.errors import UserError
    from vidtok.files import validate_output, write_json

    settings = dict(vars(args))
    json, chart, force = (settings.pop(name) for name in ("json", "chart", "force"))
    if chart and args.kind in ALONE:
        raise UserError(f"--chart: there is none of {args.kind}")
    for out in (json, chart):
        validate_output(out, force)

    def report(part: dict, result: dict) -> None:
        print_part(part)
        if json and "header" not in part:  # now: the next part may take many minutes
            write_json(json, result)

    result = run_benchmark(**settings, report=report)
    if chart:
        from vidtok.bench.chart import draw_chart

        draw_chart(result, chart)
