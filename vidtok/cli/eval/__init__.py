"""Evaluate a model. Every kind has its own --help:

vidtok eval reconstruction videos/                     # quality and rate of a tokenizer
vidtok eval probe grid.csv --label-column command      # a classifier on frozen features of a tokenizer
vidtok eval recognition HEAD grid.csv --split val      # a trained head on a split
vidtok eval finetune data.source=grid.csv ...          # train and test a recognition head
vidtok eval compare data.source=grid.csv ...           # tokens, codes, latents, pixels, reconstructions
vidtok eval generation MODEL digits --i3d FILE         # generated clips against real ones
vidtok eval generation-compare data.source=digits ...  # masked, autoregressive, diffusion at equal budgets
vidtok eval agreement videos/ --i3d FILE               # a classifier on clips and on reconstructions
vidtok eval compression videos/ -o OUT                 # .vtk files beside x264, x265, SVT-AV1, VVenC

Kinds that train (finetune, compare, generation-compare) take hydra settings; the others take flags.
"""

import argparse
from collections.abc import Mapping

# kind -> help; its module is KIND.py
KINDS = {
    "reconstruction": "PSNR, SSIM, LPIPS, rFVD, rate and codebook usage of a tokenizer",
    "probe": "logistic regression or kNN on a tokenizer's features",
    "recognition": "accuracy of a trained head on a split",
    "finetune": "train a recognition head end to end and test it",
    "generation": "FVD, FID, precision, recall and class agreement of a generator's clips",
    "generation-compare": "masked, autoregressive and diffusion generators at equal data, parameters and training time",
    "agreement": "agreement of a classifier's predictions for clips and their reconstructions",
    "compression": "rate and quality of .vtk files beside x264, x265, SVT-AV1 and VVenC",
    "compare": "the same head reading tokens, codes, latents, pixels or reconstructions",
}


def add_result(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", metavar="OUT", help="JSON file for the whole result, with every clip")
    parser.add_argument("--force", action="store_true", help="overwrite existing files")


def arguments(args: argparse.Namespace) -> dict:
    """Return the keyword arguments of a library function: all flags except those of `add_result`."""
    return {name: value for name, value in vars(args).items() if name not in ("json", "force")}


def write_result(result: Mapping, args: argparse.Namespace) -> int:
    """Write the result to the file of --json, if given; return the exit status."""
    from vidtok.files import write_json

    if args.json:
        write_json(args.json, result)
    return exit_status(result)


def exit_status(result: Mapping | None) -> int:
    """Return 1 if a clip failed, else 0. `result` is None if there is none."""
    return 1 if result and result.get("n_failed") else 0
