"""What is in a tokenizer's features, by classifiers that are cheap to train.

    vidtok eval probe grid.csv --label-column command                    # logistic regression on hidden features
    vidtok eval probe droid.csv --group-column lab --input codes --pool time --classifier knn
    vidtok eval probe digits --size 64 --protocol 17x1x1x1 --train-clips 900 --test-clips 450
    vidtok eval probe droid.csv --input i3d --i3d FILE --recon           # what I3D finds in the decoded clips
    vidtok eval probe droid.csv --input hidden,i3d,frames --i3d FILE --backbone NAME      # beside frozen references
    vidtok eval probe --features train.parquet --test-features val.parquet
    vidtok eval probe droid.csv --group-column lab --features droid.parquet    # the csv says the groups alone
    vidtok eval probe grid.csv --label-column command --classifier attentive --steps 500

Features are computed on the fly, or read from the files of `vidtok extract`. The tokenizer stays as it is. Logistic
regression and kNN take them pooled and standardised; C and k come from cross-validation on the training clips alone, by
group where --group-column says what belongs together. Of several inputs, each is compared with the first by a paired
bootstrap over clips. The attentive probe trains one layer of attention on the whole grid, as `vidtok eval finetune
head=attentive` does; its run folder is --run.
"""

import argparse

from vidtok.cli import common
from vidtok.cli.common import add_source

COPIED = ("root", "path_column", "label_column", "split_column", "group_column", "checked")  # by the same name in data


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="csv or json of annotations, folder, or digits")
    add_source(parser)
    parser.add_argument("--group-column", metavar="NAME", help="of the csv: what cross-validation must not part")
    parser.add_argument("--test-source", metavar="SOURCE", help="where the test has annotations of its own")
    parser.add_argument("--features", metavar="PATH", help="of the training clips; SOURCE then says the groups alone")
    parser.add_argument("--test-features", metavar="PATH", help="of the test clips (default: the same file)")
    parser.add_argument("--train-split", default="train", metavar="NAME", help="(%(default)s)")
    parser.add_argument("--split", default="val", metavar="NAME", help="that is tested (%(default)s)")
    parser.add_argument("--train-clips", type=positive(int), metavar="N", help="at most")
    parser.add_argument("--test-clips", type=positive(int), metavar="N", help="at most")
    inputs = "one or more of hidden (default), latents, codes, pixels, recon, i3d, frames, separated by commas"
    parser.add_argument("--input", default="hidden", metavar="NAMES", help=inputs)
    parser.add_argument(
        "--i3d", metavar="WEIGHTS", help="I3D's weights, file or URL, for --input i3d: a frozen reference"
    )
    parser.add_argument("--backbone", metavar="NAME", help="timm's image classifier, for --input frames: likewise")
    parser.add_argument("--backbone-weights", metavar="FILE", help="its weights (default: timm downloads them)")
    parser.add_argument("--recon", action="store_true", help="--input i3d, frames: of the reconstructed clips")
    parser.add_argument("--pool", default="mean", help="mean, over time and space; time, over space; all, nothing")
    parser.add_argument("--classifier", default="logistic", help="logistic (default), knn or attentive")
    parser.add_argument("--protocol", default="17x4x1x1", metavar="FxSxSxC", help="(%(default)s)")
    parser.add_argument("--size", type=positive(int), default=128, metavar="PIXELS", help="of the crop (%(default)s)")
    parser.add_argument("--fps", type=positive(float), help="what the stride is counted in (default: native)")
    parser.add_argument("--steps", type=positive(int), help="of the attentive probe (500)")
    parser.add_argument("--run", metavar="DIR", help="of the attentive probe (runs/probe)")
    parser.add_argument("--workers", type=int, default=0, help="processes that decode (%(default)s)")
    common.add_model(parser)
    parser.add_argument("--json", metavar="OUT", help="write the whole result, clip by clip")
    parser.add_argument("--force", action="store_true", help="overwrite what exists")


def run(args: argparse.Namespace) -> int | None:
    import time

    from vidtok.checks import pick_device
    from vidtok.errors import UserError
    from vidtok.eval.metrics.intervals import paired_ratio
    from vidtok.eval.recognition.probing import (
        ReferenceEncoder,
        check_classifier,
        fit_probe,
        of_clips,
        of_files,
        predict_probe,
    )
    from vidtok.eval.recognition.protocol import Protocol
    from vidtok.eval.recognition.results import correct_of, recognition_result, result_entry
    from vidtok.eval.report.table import format_table
    from vidtok.files import validate_output, write_json
    from vidtok.tokenizer import VideoTokenizer

    if args.source is None and args.features is None:
        raise UserError("give either SOURCE or --features")
    if args.features and (args.source is None) != (args.group_column is None):
        raise UserError("--features takes SOURCE where --group-column is a column of it, and not else")
    if args.features and args.test_source:
        raise UserError("--test-source is of clips: of features there is --test-features")
    validate_output(args.json, args.force)
    if args.classifier == "attentive":
        validate_flags(args)
        return attentive(args)
    start = time.perf_counter()
    tokenizer = VideoTokenizer.from_pretrained(args.model, pick_device(args.device))
    protocol = Protocol.parse(args.protocol, args.size, args.fps)
    read = (of_files if args.features else of_clips)(args, tokenizer, protocol)
    inputs = args.input.split(",")
    if args.recon and not {"i3d", "frames"} & set(inputs):
        raise UserError(f"--recon is for --input i3d and frames, not {args.input}: there is --input recon")
    if len(set(inputs)) < len(inputs):
        raise UserError(f"--input {args.input}: one of them is given twice")
    only = "is for --input {}, not " + args.input
    common.validate_flags((
        ("--i3d", args.i3d and "i3d" not in inputs, only.format("i3d")),
        ("--backbone", args.backbone and "frames" not in inputs, only.format("frames")),
        ("--backbone-weights", args.backbone_weights and "frames" not in inputs, only.format("frames")),
        ("--label-column", args.features and args.label_column, "is of videos: features have labels of their own"),
        ("--steps", args.steps is not None, "is of --classifier attentive"),
        ("--run", args.run is not None, "is of --classifier attentive"),
    ))  # fmt: skip
    check_classifier(args.classifier)
    entries, predictions, chosen = [], {}, []
    for input in inputs:
        sides, data, encoder = read(input)
        train, name = sides.pop("train"), f"{input}, {args.classifier}"
        model, facts = fit_probe(args.classifier, train.x_NVF, train.labels, train.groups)
        if isinstance(encoder, ReferenceEncoder):
            facts["reference"] = {"name": input, "weight_hash": encoder.network.weight_hash}
        found = {
            key: predict_probe(model, side.x_NVF, side.labels, side.ids, len(data["classes"]), side.failures)
            for key, side in sides.items()
        }
        shuffled = [found["shuffled"]] if "shuffled" in found else None
        entries.append(result_entry(name, input, [({"seed": None, **facts}, found["test"])], None, shuffled))
        predictions[name] = [found["test"]]
        chosen.append(
            f"{name}: {facts['features']} features; {facts['chosen']} by {facts['by']} "
            f"(top-1 {facts['top1_there']:.3f} there)"
        )
    first = entries[0]["name"]
    result = recognition_result(
        "probe",
        entries,
        predictions,
        data=data,
        train_labels=train.labels,
        protocol=protocol.record(),
        tokenizer=tokenizer if args.recon or set(inputs) - {"pixels", "i3d", "frames"} else None,
        config=vars(args),
        wall_time_s=time.perf_counter() - start,
        device=str(tokenizer.device),
        comparisons=[
            {"ours": name, "theirs": first, **paired_ratio(correct_of(found), correct_of(predictions[first]))}
            for name, found in predictions.items()
            if name != first
        ],
    )
    print(format_table(result), *chosen, sep="\n")
    if args.json:
        write_json(args.json, result)
    return 1 if result["n_failed"] else 0


def validate_flags(args: argparse.Namespace) -> None:
    """Flags that the attentive probe has no use for. Raises UserError."""
    inputs = args.input.split(",")
    flags = (
        ("--pool", args.pool != "mean", "pools nothing: it attends to the whole grid"),
        ("--recon", args.recon, "reads a tokenizer's features, or --input recon"),
        ("--device", args.device != "auto", "runs where accelerate picks, as fine-tuning does"),
        ("--input", {"i3d", "frames"} & set(inputs), "reads no reference: logistic and knn do"),
        ("--input", len(inputs) > 1, "reads one input at a time"),
    )
    common.validate_flags(
        (flag, idle, f"goes without --classifier attentive, which {why}") for flag, idle, why in flags
    )


def attentive(args: argparse.Namespace) -> int | None:
    """The same clips and splits as a fine-tuning of an attentive head."""
    import json
    from pathlib import Path

    from vidtok.cli.eval import finetune
    from vidtok.files import write_json

    values = {
        "head": "attentive",
        "input": args.input,
        "tokenizer": args.model,
        "run": args.run or "runs/probe",
        "trainer.max_steps": args.steps or 500,
        "data.source": args.source or args.features,
        "data.val_source": args.test_source,
        "data.features": args.features,
        "data.val_features": args.test_features,
        "data.train_split": args.train_split,
        "data.val_split": args.split,
        "data.train_clips": args.train_clips,
        "data.val_clips": args.test_clips,
        "data.protocol": args.protocol,
        "data.size": args.size,
        "data.fps": args.fps,
        "data.workers": args.workers,
        "data.in_memory": args.features is None,
        **{f"data.{name}": getattr(args, name) for name in COPIED},
    }
    overrides = [f"{key}={quoted(value)}" for key, value in values.items() if value is not None]
    status = finetune.run(argparse.Namespace(overrides=overrides, config=False))
    if args.json and (result := Path(values["run"], "result.json")).exists():
        write_json(args.json, json.loads(result.read_text()))
    return status


def quoted(value: object) -> str:
    """A value in hydra's grammar."""
    return f"'{value}'" if isinstance(value, str) else str(value)
