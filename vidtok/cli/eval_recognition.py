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

from vidtok.cli import options

RECONSTRUCTS = "vidtok-t"  # what clips go through for a head that was trained with no tokenizer


def configure(parser: argparse.ArgumentParser) -> None:
    positive = options.positive
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


def add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--root", metavar="DIR", help="of the videos (default: the folder of the annotations)")
    parser.add_argument("--path-column", metavar="NAME", help="of the csv, where it has no usual name")
    parser.add_argument("--label-column", metavar="NAME", help="likewise")
    parser.add_argument("--split-column", metavar="NAME", help="likewise")
    parser.add_argument("--checked", metavar="FILE", help="table of vidtok check: leave out what is not ok in it")


def run(args: argparse.Namespace) -> int:
    import time

    import numpy as np

    from vidtok.cli.jsonfile import refuse_existing, write_json
    from vidtok.eval.labelled_clips import ClipSource, cut
    from vidtok.eval.predict import predict, views_of_dataset
    from vidtok.eval.recognition import data_record, recognition_result, result_entry
    from vidtok.eval.table import format_table
    from vidtok.eval.task import head_record

    start = time.perf_counter()
    refuse_existing(args.json, args.force)
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


def load_head(name: str, model: str | None, device: str, recon: bool = False, protocol: str | None = None):
    """(head, the `InputEncoder` before it, `Protocol`). model: of the tokenizer; None, the one that the head names.
    recon: a head of pixels sees reconstructions. protocol: instead of the head's own.

    Raises ValueError for a head that doesn't say what its classes are or how it sees clips, or for a tokenizer that
    isn't its own."""
    from vidtok.eval.inputs import InputEncoder
    from vidtok.heads import Head
    from vidtok.tokenizer import VideoTokenizer

    head = Head.from_pretrained(name, options.pick_device(device))
    config, kind = head.config, trained_on(head.config)
    if config.classes is None:
        raise ValueError(f"head {config.name!r} doesn't say what its classes are")
    if recon and config.input["kind"] != "pixels":
        raise ValueError(f"--recon is for heads of pixels, and {config.name!r} reads {kind}")
    kind, tokenizer = "recon" if recon else kind, None
    found = find_protocol(config, protocol)
    if kind != "pixels":
        named = config.tokenizer["name"] if config.tokenizer else RECONSTRUCTS if recon else None
        if model is None and named is None:
            raise ValueError(f"head {config.name!r} names no tokenizer: give --model")
        tokenizer = VideoTokenizer.from_pretrained(model or named, head.device)
        head.check_tokenizer(tokenizer.config.name, tokenizer.weight_hash)
    cells, side = (config.protocol or {}).get("cells"), config.input.get("stride", [None])[-1]
    return head, InputEncoder(kind, tokenizer, found.at_once, cells, side), found


def trained_on(config) -> str:
    """Of `vidtok.eval.inputs.INPUTS`: pixels that come from a tokenizer are reconstructions."""
    kind = config.input["kind"]
    return "recon" if kind == "pixels" and config.tokenizer is not None else kind


def find_protocol(config, name: str | None):
    """The head's protocol, with other frames, stride, segments and crops where they are given."""
    from vidtok.eval.protocol import Protocol

    if config.protocol is None and name is None:
        raise ValueError(f"head {config.name!r} names no protocol: give --protocol")
    own = Protocol.of_head(config.protocol) if config.protocol else Protocol()
    if name is None:
        return own
    return Protocol.parse(name, own.size, None if "xu" in name else own.fps, own.resize, own.joined)
