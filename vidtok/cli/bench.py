"""Measure speed and memory.

    vidtok bench
    vidtok bench --quick
    vidtok bench tokenizer --model runs/mine/model --device cuda --compile
    vidtok bench --threads 2 --json bench.json --chart bench.png
    vidtok bench loader videos/

kinds of all, the default, which takes some minutes:
  tokenizer   frames per second, memory and FLOP rate of encode and decode, and the FLOP rate of the convolutions alone;
              compared with magvit2-pytorch if it is installed
  magvit2     encoding with the paper's network: fp32 and contiguous against bf16 and channels-last
  streaming   latency of a single latent
  loss        LFQ loss, forward and backward; compared with vector-quantize-pytorch if it is installed
  train       training step, with and without a discriminator

kinds that run only by name:
  generate    12 steps of masked decoding against autoregressive sampling of 1280 tokens, with a cache and without,
              with buffers and without; takes minutes, and half a minute with --quick (one clip, none without a cache);
              with --compile also compiled
  loader      throughput of data loaders with 1 and 2 worker processes, relative to decoding in the main process, on
              DATASET or rendered clips. Without DATASET also vidtok's reader against decord, torchcodec and PyAV on
              rendered files of 360 to 2160 lines: speed, PSNR of the resizing, and memory at 2160 lines.

Compared variants are measured in turns. Every figure is the median of several runs.
"""

import argparse

from vidtok.cli import common

KINDS_OF_BENCH = ("all", "tokenizer", "magvit2", "streaming", "loss", "train", "generate", "loader")


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("kind", nargs="?", choices=KINDS_OF_BENCH, default="all", help="benchmark (all)")
    parser.add_argument("data", nargs="?", metavar="DATASET", help="data of loader: folder or annotation file")
    common.add_model(parser)
    parser.add_argument("--threads", type=common.positive(int), help="CPU threads (default: torch's)")
    parser.add_argument("--runs", type=common.positive(int), help="number of runs of fast measurements (default: 15)")
    parser.add_argument("--quick", action="store_true", help="measure one size in few runs, and no memory")
    parser.add_argument("--compile", action="store_true", help="also measure with torch.compile (takes minutes)")
    parser.add_argument("--json", metavar="OUT", help="JSON file for the whole result")
    parser.add_argument("--chart", metavar="OUT", help="PNG file for a chart of the result")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


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
        if json and "header" not in part:  # after every part, since the next one may take minutes
            write_json(json, result)

    result = run_benchmark(**settings, report=report)
    if chart:
        from vidtok.bench.chart import draw_chart

        draw_chart(result, chart)
