"""Test a trained recognition head on the videos of a split.

    vidtok eval recognition runs/grid/best grid.csv --split val --label-column command
    vidtok eval recognition runs/grid/best grid.csv --split test --label-column command --json result.json
    vidtok eval recognition HEAD digits --recon                  # head on pixels, tested on reconstructions

Clips are sampled as in the training of the head, or by --protocol. The tokenizer must be the one the head was trained
with. A head that was trained on reconstructions is tested on reconstructions. The table has two controls: shuffled
frames, and the most frequent training class, if the head records it. Videos that can't be read are counted and named.
"""

import argparse

from vidtok.cli import common
from vidtok.cli.common import add_source
from vidtok.cli.eval import add_result, arguments, write_result


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("head", metavar="HEAD", help="recognition head: name, folder or hub id")
    parser.add_argument("source", metavar="SOURCE", help="csv or json of annotations, folder or digits")
    add_source(parser)
    parser.add_argument("--split", default="val", metavar="NAME", help="name of the split (%(default)s)")
    parser.add_argument("--clips", type=positive(int), metavar="N", help="maximum number of videos (default: all)")
    parser.add_argument("--model", metavar="NAME", help="tokenizer (default: the head's, or vidtok-t)")
    parser.add_argument("--recon", action="store_true", help="test a head on pixels on reconstructed clips")
    parser.add_argument(
        "--no-shuffle", action="store_true", help="skip the control with shuffled frames, half of the work"
    )
    parser.add_argument(
        "--protocol",
        metavar="FxSxSxC",
        help="sampling of clips, such as 17x4x5x3: frames, stride, segments, crops (default: the head's)",
    )
    parser.add_argument("--batch-size", type=positive(int), default=8, help="videos per batch (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="number of decoding processes (%(default)s)")
    parser.add_argument("--device", default="auto", help="device: auto (cuda if available), cpu, cuda, cuda:1, ...")
    add_result(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.eval.recognition import evaluate
    from vidtok.eval.report import format_table
    from vidtok.files import validate_output

    validate_output(args.json, args.force)
    result = evaluate(**arguments(args))
    print(format_table(result))
    return write_result(result, args)
