"""Fit a classifier on a tokenizer's frozen features.

    vidtok eval probe grid.csv --label-column command                    # logistic regression on hidden features
    vidtok eval probe droid.csv --group-column lab --input codes,hidden --pool grid4,mean --classifier knn
    vidtok eval probe droid.csv --i3d FILE --backbone-weights FILE       # also I3D and tf_efficientnet_lite0
    vidtok eval probe droid.csv --i3d FILE --recon                       # I3D features of reconstructions
    vidtok eval probe droid.csv --head runs/backbone/model               # also the cells of a backbone
    vidtok eval probe rt1.csv --group-column scene --folds 5 --repeats 3 # folds over train and val
    vidtok eval probe rt1.csv --test-source rt1-test.csv --split test    # a held-out test split
    vidtok eval probe videos --task all --size 64 --protocol 17x1x1x1    # motion tasks, a classifier for each
    vidtok eval probe digits --size 64 --protocol 17x1x1x1 --train-clips 900 --test-clips 450
    vidtok eval probe --features train.parquet --test-features val.parquet
    vidtok eval probe droid.csv --group-column lab --features droid.parquet    # the csv only provides groups

Features are computed on the fly or read from files of `vidtok extract`. They are pooled and standardized. The
hyperparameters, C of logistic regression and k of kNN, are selected by cross-validation on the training clips alone,
with whole groups if --group-column is given. The accuracies at all values are printed. For comparison the table has
pixels and frozen reference networks under the same pooling, the majority class, and shuffled frames. A set with fewer
than 300 test clips is tested by 5-fold cross-validation, 3 times. For an attentive probe on the whole grid, train a
head: `vidtok eval finetune head=attentive`.
"""

import argparse

from vidtok.cli import common
from vidtok.cli.common import add_source
from vidtok.cli.eval import add_result, arguments, write_result


def configure(parser: argparse.ArgumentParser) -> None:
    positive = common.positive
    parser.add_argument("source", nargs="?", metavar="SOURCE", help="csv or json of annotations, folder or digits")
    add_source(parser)
    parser.add_argument("--group-column", metavar="NAME", help="csv column of groups that folds don't split")
    parser.add_argument("--test-source", metavar="SOURCE", help="annotations of the test split, if in another file")
    parser.add_argument(
        "--features", metavar="PATH", help="extracted features of the training clips; SOURCE then only provides groups"
    )
    parser.add_argument("--test-features", metavar="PATH", help="extracted features of the test clips (default: same)")
    parser.add_argument("--train-split", default="train", metavar="NAME", help="name of the training split (train)")
    parser.add_argument("--split", metavar="NAME", help="name of the test split (val)")
    parser.add_argument("--folds", type=int, metavar="K", help="folds over both splits; 0, use the test split")
    parser.add_argument(
        "--repeats", type=int, default=3, metavar="R", help="number of divisions into folds (%(default)s)"
    )
    parser.add_argument("--train-clips", type=positive(int), metavar="N", help="maximum number of training clips")
    parser.add_argument("--test-clips", type=positive(int), metavar="N", help="maximum number of test clips")
    inputs = "inputs, separated by commas: hidden (default), latents, codes, pixels, recon, frame, i3d, frames, cells"
    parser.add_argument("--input", default="hidden", metavar="NAMES", help=inputs)
    parser.add_argument("--i3d", metavar="WEIGHTS", help="I3D weights, file or URL; adds the input i3d")
    parser.add_argument("--backbone", metavar="NAME", help="image classifier of timm; adds the input frames")
    parser.add_argument(
        "--backbone-weights",
        metavar="FILE",
        help="weights of --backbone (default: timm's download); also adds the input frames",
    )
    parser.add_argument("--recon", action="store_true", help="compute i3d and frames on reconstructed clips")
    parser.add_argument("--head", metavar="NAME", help="head or backbone, a transformer; adds the input cells")
    pools = (
        "poolings, separated by commas: mean, time (mean over space), grid2, grid4 (default; 4x4 cells x 4 times), all"
    )
    parser.add_argument("--pool", default="grid4", metavar="NAMES", help=pools)
    parser.add_argument("--classifier", default="logistic", help="classifier: logistic (default) or knn")
    parser.add_argument(
        "--protocol",
        default="17x4x1x1",
        metavar="FxSxSxC",
        help="sampling of clips, frames x stride x segments x crops (%(default)s)",
    )
    parser.add_argument(
        "--size", type=positive(int), default=128, metavar="PIXELS", help="center-crop size in pixels (%(default)s)"
    )
    parser.add_argument(
        "--fps", type=positive(float), help="frame rate in which the stride is counted (default: native)"
    )
    parser.add_argument("--workers", type=int, default=0, help="number of decoding processes (%(default)s)")
    common.add_model(parser, custom=True)
    parser.add_argument("--precision", default="fp32", help="precision of I3D and --backbone: fp32 (default) or bf16")
    add_result(parser)


def run(args: argparse.Namespace) -> int:
    from vidtok.errors import UserError
    from vidtok.eval.recognition import probe
    from vidtok.eval.recognition.probing import format_paths
    from vidtok.eval.report import format_table
    from vidtok.files import validate_output

    if args.classifier == "attentive":
        raise UserError("an attentive probe is a head: vidtok eval finetune head=attentive data.source=SOURCE ...")
    validate_output(args.json, args.force)
    result = probe(**arguments(args))
    print(format_table(result), format_paths(result), sep="\n")
    return write_result(result, args)
