"""Test a trained head on the videos of a split.

    vidtok eval recognition runs/grid/best grid.csv --split val --label-column command
    vidtok eval recognition runs/grid/best grid.csv --split test --label-column command --json result.json
    vidtok eval recognition HEAD digits --recon                  # a head of pixels on reconstructed clips

HEAD is a shipped head, a folder or a hub id. Clips are cut as in the head's training, or by --protocol. The tokenizer
is the head's own; another one is an error. A head that was trained on reconstructions is tested on them. The table has
two controls: shuffled frames, and the most frequent training class, where the head knows it. Videos that can't be read
are counted and named.
"""

import argparse

from vidtok.cli import common
from vidtok.cli.common import add_source
from vidtok.cli.eval import add_result, arguments, write_result


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("head", metavar="HEAD", help="shipped head, folder or hub id")
    parser.add_argument("source", metavar="SOURCE", help="csv or json of annotations, folder, or digits")
    add_source(parser)
    parser.add_argument("--split", default="val", metavar="NAME", help="name of the split (%(default)s)")
    parser.add_argument("--clips", type=positive(int), metavar="N", help="largest number of videos (default: all)")
    parser.add_argument("--model", metavar="NAME", help="the tokenizer (default: the head's, or vidtok-t)")
    parser.add_argument("--recon", action="store_true", help="test a head of pixels on reconstructed clips")
    parser.add_argument("--no-shuffle", action="store_true", help="skip the test on shuffled frames, half of the work")
    parser.add_argument(
        "--protocol", metavar="FxSxSxC", help="clips of a video, such as 17x4x5x3 (default: the head's)"
    )
    parser.add_argument("--batch-size", type=positive(int), default=8, help="number of videos at a time (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="number of decoding processes (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    add_result(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.eval.recognition import evaluate
    from vidtok.eval.report import format_table
    from vidtok.files import validate_output

    validate_output(args.json, args.force)
    result = evaluate(**arguments(args))
    print(format_table(result))
    return write_result(result, args)
