"""Test a trained head on the videos of a split.

    vidtok eval recognition runs/grid/best grid.csv --split val --label-column command
    vidtok eval recognition runs/grid/best grid.csv --split test --label-column command --json result.json
    vidtok eval recognition HEAD digits --recon                  # a head of pixels on what the tokens keep of them

HEAD is a shipped head, a folder or a hub id. The clips are cut as the head was trained on, or by --protocol; the
tokenizer is the head's own, and another one is refused; a head that was trained on reconstructions is tested on them.
The table holds two controls: shuffled frames, and the most frequent class of the training, where the head knows it.
Videos that can't be read are counted and named.
"""

import argparse

from vidtok.cli import common
from vidtok.cli.common import add_source


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("head", metavar="HEAD", help="shipped head, folder or hub id")
    parser.add_argument("source", metavar="SOURCE", help="csv or json of annotations, folder, or digits")
    add_source(parser)
    parser.add_argument("--split", default="val", metavar="NAME", help="which part of the data (%(default)s)")
    parser.add_argument("--clips", type=positive(int), metavar="N", help="at most (default: all)")
    parser.add_argument("--model", metavar="NAME", help="the tokenizer (default: the head's, or vidtok-t)")
    parser.add_argument("--recon", action="store_true", help="test a head of pixels on reconstructed clips")
    parser.add_argument("--no-shuffle", action="store_true", help="without the test on shuffled frames: half the work")
    parser.add_argument("--protocol", metavar="FxSxSxC", help="instead of the head's, such as 17x4x5x3")
    parser.add_argument("--batch-size", type=positive(int), default=8, help="videos at a time (%(default)s)")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode (%(default)s)")
    parser.add_argument("--device", default="auto", help="auto (cuda if there is one), cpu, cuda, cuda:1, ...")
    parser.add_argument("--json", metavar="OUT", help="write the whole result, clip by clip")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def run(args: argparse.Namespace) -> int:
    import time

    import numpy as np

    from vidtok.eval.recognition.clips import ClipSource, cut
    from vidtok.eval.recognition.finetuning import head_record
    from vidtok.eval.recognition.prediction import load_head, predict, trained_on, views_of_dataset
    from vidtok.eval.recognition.results import data_record, recognition_result, result_entry
    from vidtok.eval.report.table import format_table
    from vidtok.files import validate_output, write_json

    start = time.perf_counter()
    validate_output(args.json, args.force)
    head, encoder, protocol = load_head(args.head, args.model, args.device, args.recon, args.protocol)
    config = head.config
    columns = args.path_column, args.label_column, args.split_column
    source = ClipSource(args.source, args.root, *columns, classes=config.classes, checked=args.checked)

    def test(shuffle: bool = False):
        dataset = source.open(args.split, protocol)
        cut(dataset, slice(args.clips))
        views = views_of_dataset(dataset, args.batch_size, args.workers, shuffle, encoder.joined)
        return predict(head, views, encoder)

    predictions, shuffled = test(), None if args.no_shuffle else [test(shuffle=True)]
    facts = {"seed": None, "head": head_record(head)}
    result = recognition_result(
        "recognition",
        [result_entry(config.name, trained_on(config), [(facts, predictions)], encoder.kind, shuffled)],
        {config.name: [predictions]},
        data=data_record(source, {"train": None, "test": args.split}, config.classes),
        train_labels=np.repeat(np.arange(head.num_classes), config.class_counts or 0),
        protocol=protocol.record(),
        tokenizer=encoder.tokenizer,
        config=vars(args),
        wall_time_s=time.perf_counter() - start,
        device=str(head.device),
    )
    print(format_table(result))
    if args.json:
        write_json(args.json, result)
    return 1 if result["n_failed"] else 0
