"""Probes: logistic regression and nearest neighbors on frozen features of a tokenizer or a reference network.

Legend: N clips, V views, F features, K classes, S strengths of regularization.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler

from vidtok.errors import nearest
from vidtok.eval.metrics.i3d import HOW_TO_GET
from vidtok.eval.metrics.intervals import paired_ratio
from vidtok.eval.recognition.clips import DIGITS, ClipSource, Indices, Protocol, folds, repeated_folds
from vidtok.eval.recognition.inputs import ORIGINAL, Predictions, same_task
from vidtok.eval.recognition.references import (
    BACKBONE,
    REFERENCES,
    ProbeClips,
    ReferenceEncoder,
    Row,
    check_pool,
    concatenate,
    features_of_clips,
    make_encoder,
    read_features,
)
from vidtok.eval.recognition.results import correct_of, data_record, recognition_result, result_entry
from vidtok.extraction.model import open_tokenizer
from vidtok.tokenizer import check_precision

CLASSIFIERS = {"logistic": "C", "knn": "k"}  # classifier -> its hyperparameter
STRENGTHS = [10.0**power for power in range(-5, 3)]  # C of the logistic regression
NEIGHBORS = [1, 3, 5, 10, 20]
FEW = 300  # number of test clips below which the 95 % interval of an accuracy is wider than +-5 points
FOLDS, REPEATS = 5, 3
MIN_GROUPS = 5  # smallest number of groups for a bootstrap over groups
LEFT_OUT = {
    "i3d": f"--i3d FILE adds it; to get the weights: {HOW_TO_GET}",
    "frames": f"--backbone {BACKBONE} adds it and lets timm download its weights, --backbone-weights FILE reads them",
}


def check_classifier(name: str) -> None:
    """Raise ValueError for a name that is not in `CLASSIFIERS`."""
    if name not in CLASSIFIERS:
        raise ValueError(f"unknown classifier {name!r}: {nearest(name, CLASSIFIERS)}")


@dataclass
class FittedPath:
    """Results of a classifier at every value of its hyperparameter, C or k, here called strength.

    Attributes:
        strengths: the S values.
        validation_FS: accuracy on the clips of each of F inner folds.
        by: description of these folds.
        chosen: index of the best mean over the folds; of equally good ones, the strongest regularization.
        probabilities: for each set of test clips [S,N,K], by the classifiers that were fitted on all training clips.
    """

    strengths: list[float]
    validation_FS: np.ndarray
    by: str
    chosen: int
    probabilities: list[np.ndarray]


def fit_path(
    classifier: str,
    x_NVF: np.ndarray,
    labels: np.ndarray,
    groups: Sequence[str] | None,
    tests: Sequence[np.ndarray],
    classes: int,
) -> FittedPath:
    """Fit a scikit-learn classifier on standardized features at every strength, and choose a strength.

    It is chosen by cross-validation on the training clips only, by group if there are groups. All views of a clip are
    in the same fold. Features are standardized with mean and standard deviation of all training clips.

    Args:
        classifier: "logistic" (regression, C of `STRENGTHS`) or "knn" (cosine distance, k of `NEIGHBORS`).
        x_NVF, labels, groups: features, classes and groups (or None) of the training clips.
        tests: sets of test clips, float32 [N,V,F].
        classes: number K of classes. Classes without a training clip have probability 0.

    Raises:
        ValueError: an unknown classifier, or too few training clips or classes.
    """
    check_classifier(classifier)
    views, width = x_NVF.shape[1:]
    # With more features than clips, the weights lie in the span of the clips, so PCA reduces the features without loss.
    few = [PCA()] if classifier == "logistic" and width > len(labels) * views else []
    scale = make_pipeline(StandardScaler(), *few, *([Normalizer()] if classifier == "knn" else []))

    def scaled(x_NVF: np.ndarray, transform: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
        return transform(x_NVF.reshape(-1, width).astype(np.float32)).reshape(len(x_NVF), views, -1)

    train = scaled(x_NVF, scale.fit_transform)
    strengths = STRENGTHS if classifier == "logistic" else [float(k) for k in NEIGHBORS]
    by, parts = folds(labels, groups)
    parts = [(fit, held) for fit, held in parts if len(held) and len(set(labels[fit].tolist())) > 1]
    if not parts:
        raise ValueError(f"{len(labels)} training clips are too few, or all of one class: give more")

    def fitted(clips: Indices, tests: Sequence[np.ndarray]) -> list[np.ndarray]:
        models = _models(classifier, strengths, train[clips], labels[clips])
        rows = [[_predict(model, test, classes) for test in tests] for model in models]
        return [np.stack(test) for test in zip(*rows, strict=True)]

    validation_FS = np.array([(fitted(fit, [train[held]])[0].argmax(2) == labels[held]).mean(1) for fit, held in parts])
    probabilities = fitted(np.arange(len(labels)), [scaled(test, scale.transform) for test in tests])
    best = validation_FS.mean(0)
    # A larger k regularizes more, a larger C less.
    chosen = int(best.argmax() if classifier == "logistic" else len(best) - 1 - best[::-1].argmax())
    return FittedPath(strengths, validation_FS, f"{by} of the training clips", chosen, probabilities)


def _models(classifier: str, strengths: Sequence[float], x_NVF: np.ndarray, labels: np.ndarray) -> Iterator[Any]:
    """Yield the classifier fitted at each strength. Each regression is initialized with the previous solution."""
    rows, targets = x_NVF.reshape(-1, x_NVF.shape[2]), np.repeat(labels, x_NVF.shape[1])
    model = LogisticRegression(max_iter=1000, warm_start=True)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # mostly at strengths that are not chosen
        for strength in strengths:
            if classifier == "knn":
                yield KNeighborsClassifier(min(int(strength), len(rows)), weights="distance").fit(rows, targets)
            else:
                yield model.set_params(C=strength).fit(rows, targets)


def _predict(model: Any, x_NVF: np.ndarray, classes: int) -> np.ndarray:
    """Predict probabilities, averaged over the views of a clip, float64 [N,K]."""
    probabilities = np.zeros((len(x_NVF), classes))
    rows = model.predict_proba(x_NVF.reshape(-1, x_NVF.shape[2])).reshape(*x_NVF.shape[:2], -1)
    probabilities[:, model.classes_] = rows.mean(1)
    return probabilities


def probe(
    source: str | None = None,
    *,
    root: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    task: str | None = None,
    checked: str | None = None,
    reader: str = "auto",
    frame_folders: float | None = None,
    group_column: str | None = None,
    test_source: str | None = None,
    features: str | None = None,
    test_features: str | None = None,
    train_split: str = "train",
    split: str | None = None,
    folds: int | None = None,
    repeats: int = REPEATS,
    train_clips: int | None = None,
    test_clips: int | None = None,
    input: str | Sequence[str] = "hidden",
    i3d: str | None = None,
    backbone: str | None = None,
    backbone_weights: str | None = None,
    recon: bool = False,
    head: str | None = None,
    pool: str | Sequence[str] = "grid4",
    classifier: str = "logistic",
    protocol: str = "17x4x1x1",
    size: int = 128,
    fps: float | None = None,
    workers: int = 0,
    model: str = "vidtok-t",
    device: str = "auto",
    precision: str = "fp32",
) -> dict:
    """Fit a classifier on frozen features of a tokenizer, and compare it with references under the same pooling.

    The references are `pixels` (mean colors of the same cells), I3D on its grid and pooled to one vector, a timm
    classifier on every frame, and the majority class. Every classifier is also tested on clips with their frames in
    random order, which shows how much it depends on the order. References without weights are listed in `left_out`.

    Args:
        source: "digits", a folder, or a csv or json file of annotations. With `features` only group_column is read.
        root, path_column, label_column, split_column, group_column, task, checked, reader, frame_folders:
            see `ClipSource`. With task "all", each motion task has a classifier of its own.
        test_source: annotations of the test split, if they are in another file.
        features: files of `vidtok extract` with features of the training clips, instead of videos.
        test_features: the same for the test clips; None, `features`.
        train_split: name of the training split. split: name of the test split; None, "val".
        folds: number of cross-validation folds over the clips of both splits, instead of one test split; groups of
            group_column stay whole. 0 or 1: no folds. None: 5 if the set has fewer than 300 test clips and none of
            split, test_source, test_features, train_clips and test_clips is given; otherwise no folds.
        repeats: number of different divisions into folds.
        train_clips, test_clips: largest number of clips of each split; None, all.
        input: one or more of hidden, latents, codes, pixels, recon, frame, i3d and frames, as a list or separated by
            commas. The others are compared with the first by a paired bootstrap over clips.
        i3d: I3D's weights, a file or URL; adds the input i3d.
        backbone, backbone_weights: image classifier of timm (default: tf_efficientnet_lite0) and a file of its weights
            (None, timm downloads them); either adds the input frames.
        recon: compute i3d and frames on reconstructed clips.
        head: name of a head or backbone, a video transformer; adds the input cells, the features of its cells.
        pool: one or more pools, as with input; see `vidtok.eval.recognition.references.pool_features`.
        classifier: one of `CLASSIFIERS`.
        protocol: frames x stride x segments x crops, see `Protocol`.
        size: side of the center crop in pixels. fps: frame rate in which the stride is counted; None, the video's rate.
        workers: number of decoding processes.
        model, device: name and device of the tokenizer.
        precision: precision of I3D and the timm classifier, "fp32" or "bf16"; tokenizer and head are in fp32.

    Returns:
        A result of schema "vidtok.recognition/1" and kind "probe".

    Raises:
        ValueError: an unknown name, a setting that would have no effect, or splits that share videos.
    """
    config = dict(locals())
    start = time.perf_counter()
    inputs, pools = (value.split(",") if isinstance(value, str) else list(value) for value in (input, pool))
    if source is None and features is None:
        raise ValueError("give either a source or features")
    if features and (source is None) != (group_column is None):
        raise ValueError("features take a source only together with group_column, a column of it")
    for name, given in (("input", inputs), ("pool", pools)):
        if len(set(given)) < len(given):
            raise ValueError(f"{name} {','.join(given)}: one of them is given twice")
    check_precision(precision)
    weights = {"i3d": i3d, "frames": backbone or backbone_weights, "cells": head}
    for name, idle, why in (
        ("test_source", features and test_source, "is for videos: give test_features"),
        ("label_column", features and label_column, "is for videos: extracted features have labels of their own"),
        ("recon", recon and not (i3d or weights["frames"]), "is for inputs i3d and frames: give their weights"),
        ("i3d", features and i3d, "is for videos"),
        ("head", features and head, "is for videos"),
        ("backbone", features and (backbone or backbone_weights), "is for videos"),
        ("precision", precision != "fp32" and not (i3d or weights["frames"]), "is for i3d and frames: give weights"),
        ("folds", folds and folds > 1 and (test_source or test_features), "take both splits from one source"),
    ):
        if idle:
            raise ValueError(f"{name} {why}")
    if (folds or 0) < 0 or repeats < 1:
        raise ValueError(f"want 2 or more folds (or 0: none) and 1 or more repeats, not {folds} and {repeats}")
    check_classifier(classifier)
    for each in pools:
        check_pool(each)
    tokenizer = open_tokenizer(model, device)
    clips = Protocol.parse(protocol, size, fps)
    columns = path_column, label_column, split_column, group_column
    reading: dict[str, Any] = {"checked": checked, "reader": reader, "frame_folders": frame_folders}
    reading |= {"task": task, "clips": train_clips}
    videos = ClipSource(str(source or features), root, *columns, **reading)
    names, limits = (train_split, split or "val"), (train_clips, test_clips)
    whole_set = not (split or test_source or test_features or train_clips or test_clips or source == DIGITS)

    def count_folds(test_clips: int) -> int:
        automatic = FOLDS if whole_set and test_clips < FEW else 0
        return automatic if folds is None else folds if folds > 1 else 0

    hashes: dict[str, str] = {}
    if features:
        left_out = dict.fromkeys(sorted({"pixels", *REFERENCES} - {*inputs}), "it needs videos")
        rows = [(name, each) for each in pools for name in inputs]
        paths, grouped = (features, test_features or features), videos.groups if group_column else None
        train, test, classes = read_features(paths, names, limits, inputs, tokenizer, clips, pools, grouped)
        count = count_folds(len(test.ids))
    else:
        inputs += [name for name in ("pixels", *weights) if weights.get(name, True) and name not in inputs]
        left_out = {name: why for name, why in LEFT_OUT.items() if name not in inputs}
        rows = [(name, each) for each in pools for name in inputs]
        if "i3d" in inputs and "mean" not in pools:
            rows.append(("i3d", "mean"))  # the usual pooling of I3D
        sources = videos, replace(videos, source=str(test_source or source), clips=test_clips)
        videos.validate_disjoint(train_split, sources[1], names[1])
        videos.groups(videos.open(train_split, clips).ids)  # fail early if the column is missing
        count = count_folds(len(sources[1].open(names[1], clips)))
        encoders = {
            name: make_encoder(name, tokenizer, i3d, backbone, backbone_weights, recon, head, precision)
            for name in inputs
        }
        hashes = {name: e.network.weight_hash for name, e in encoders.items() if isinstance(e, ReferenceEncoder)}
        train, classes = features_of_clips(videos, names[0], clips, encoders, rows, limits[0], workers, count > 0)
        sources = videos, replace(sources[1], classes=classes)
        test, _ = features_of_clips(sources[1], names[1], clips, encoders, rows, limits[1], workers, True)
        train.groups, test.groups = videos.groups(train.ids), sources[1].groups(test.ids) if count else None

    whole = concatenate(train, test)
    if count:
        by, splits = repeated_folds(whole.labels, whole.groups, count, repeats)
        known, failures = whole, whole.failures
    else:
        by, splits = None, [[(np.arange(len(train.ids)), np.arange(len(train.ids), len(whole.ids)))]]
        known, failures = train, test.failures
    number = len(set(whole.groups)) if count and whole.groups else None
    groups = whole.groups if number and number >= MIN_GROUPS else None  # with fewer, an interval would be too narrow
    if task is not None and not count:
        groups = videos.groups(test.ids)
    entries, predictions = [], {}
    first_of: dict[str, str] = {}  # by pool
    for row in rows:
        runs, found, shuffled = probe_runs(row, classifier, whole, splits, classes, failures)
        if row[0] in hashes:
            runs = [{**run, "reference": {"name": row[0], "weight_hash": hashes[row[0]]}} for run in runs]
        name = f"{row[0]}, {row[1]}, {classifier}"
        entries.append(result_entry(name, row[0], [*zip(runs, found, strict=True)], None, shuffled, groups))
        predictions[name] = found
        first_of.setdefault(row[1] if row[1] in pools else pools[0], name)
    comparisons = []
    for row, (name, found) in zip(rows, predictions.items(), strict=True):
        theirs = first_of.get(row[1], first_of[pools[0]])
        if theirs != name:
            pair = correct_of(found), correct_of(predictions[theirs])
            comparisons.append({"ours": name, "theirs": theirs, **paired_ratio(*pair, True, groups)})
    record = data_record(
        ClipSource(features) if features else videos,
        dict.fromkeys(("train", "test"), "+".join(names)) if count else {"train": names[0], "test": names[1]},
        classes,
        [] if count else train.failures,
    )
    return recognition_result(
        "probe",
        entries,
        predictions,
        data={**record, "folds": by, "groups": number},
        train_labels=known.labels,
        protocol=clips.record(),
        tokenizer=tokenizer if recon or {*inputs} - {*ORIGINAL, *REFERENCES} else None,
        config=config,
        wall_time_s=time.perf_counter() - start,
        device=str(tokenizer.device),
        comparisons=comparisons,
        left_out=left_out,
    )


def probe_runs(
    row: Row,
    classifier: str,
    clips: ProbeClips,
    splits: Sequence[Sequence[tuple[Indices, Indices]]],
    classes: Sequence[str],
    failures: list[dict],
) -> tuple[list[dict], list[Predictions], list[Predictions] | None]:
    """Fit and test a classifier in every division into folds; return (facts, predictions, those for shuffled frames).

    Of several motion tasks, each has a classifier of its own.

    splits: for each division the (training, test) clips of each fold, as indices; a single split is one division.
    classes: class names.
    """
    same_task_KK = same_task(classes)
    # The first class of a clip's task; without several tasks all clips belong to one.
    task_N = np.zeros_like(clips.labels) if same_task_KK is None else same_task_KK.int().argmax(1).numpy()[clips.labels]
    x_NVF, shuffled_NVF = clips.features[row], clips.shuffled.get(row)
    runs, plain, shuffled = [], [], []
    for seed, division in enumerate(splits):
        tested = np.sort(np.concatenate([held for _, held in division]))
        paths, places = [], []
        by_task = [
            (fit[task_N[fit] == task], held[task_N[held] == task])
            for fit, held in division
            for task in np.unique(task_N[held])
        ]
        for fit, held in by_task:
            groups = None if clips.groups is None else [clips.groups[i] for i in fit]
            if groups and len(division) > 1 and len(set(groups)) == 1:
                groups = None  # with two groups in total, C is chosen by clips within one
            tests = [x_NVF[held]]
            if shuffled_NVF is not None:  # in a single split, only the test clips are shuffled, which come last
                tests.append(shuffled_NVF[held - (len(x_NVF) - len(shuffled_NVF))])
            paths.append(fit_path(classifier, x_NVF[fit], clips.labels[fit], groups, tests, len(classes)))
            places.append(np.searchsorted(tested, held))
        labels, ids = clips.labels[tested], [clips.ids[i] for i in tested]
        chosen = np.zeros((len(tests), len(tested), len(classes)))
        right_SN = np.zeros((len(paths[0].strengths), len(tested)), dtype=bool)
        for path, here in zip(paths, places, strict=True):
            right_SN[:, here] = path.probabilities[0].argmax(2) == labels[here]
            for test, probabilities in enumerate(path.probabilities):
                chosen[test, here] = probabilities[path.chosen]
        plain.append(Predictions(chosen[0], labels, ids, failures))
        shuffled += [Predictions(found, labels, ids, failures) for found in chosen[1:]]
        runs.append(
            {
                "seed": seed if len(division) > 1 else None,
                "classifier": classifier,
                "pool": row[1],
                "features": int(x_NVF.shape[2]),
                **path_record(classifier, paths, right_SN.mean(1)),
            }
        )
    return runs, plain, shuffled or None


def path_record(classifier: str, paths: Sequence[FittedPath], top1_S: np.ndarray) -> dict:
    """Return the record of the choice of C or k over a run's divisions. top1_S: test accuracy at each strength.

    chosen: the strength of each fold and motion task, or a number for one. path: validation and test accuracy at each
    strength. best_by_fold: the best strength of each inner fold. within_one_se: strengths whose validation accuracy is
    at most one standard error (over the inner folds) below the best, and their lowest and highest test accuracy.
    """
    name, strengths = CLASSIFIERS[classifier], paths[0].strengths
    chosen = [strengths[path.chosen] for path in paths]
    validation_FS = np.concatenate([path.validation_FS for path in paths])
    mean_S, best = validation_FS.mean(0), validation_FS.mean(0).argmax()
    # Standard error of the mean over folds and tasks, whose accuracies differ.
    errors = [path.validation_FS[:, best].std() / np.sqrt(len(path.validation_FS)) for path in paths]
    near_S = mean_S >= mean_S[best] - np.linalg.norm(errors) / len(errors)
    near = np.flatnonzero(near_S)
    return {
        "chosen": {name: chosen[0] if len(chosen) == 1 else chosen},
        "by": paths[0].by,
        "top1_there": float(np.mean([path.validation_FS[:, path.chosen].mean() for path in paths])),
        "path": [
            {name: strength, "validation": float(there), "top1": float(top1)}
            for strength, there, top1 in zip(strengths, mean_S, top1_S, strict=True)
        ],
        "best_by_fold": [strengths[i] for i in validation_FS.argmax(1)],
        "within_one_se": {
            name: [strengths[near[0]], strengths[near[-1]]],
            "top1": [float(top1_S[near].min()), float(top1_S[near].max())],
        },
    }


def format_paths(result: Mapping) -> str:
    """Format the choice of C or k of each classifier with its validation and test accuracies, and the inputs that were
    left out."""
    lines = []
    for entry in result["results"]:
        run = entry["runs"][0]
        (name,) = run["chosen"]
        low, high = run["within_one_se"]["top1"]
        lines.append(
            f"{entry['name']}: {run['features']} features; {run['chosen']} by {run['by']} (top-1 "
            f"{run['top1_there']:.3f} there); {100 * low:.1f} to {100 * high:.1f} in the test within one standard error"
        )
        cells = (f"{row[name]:g}: {100 * row['validation']:.1f} > {100 * row['top1']:.1f}" for row in run["path"])
        lines.append(f"    {name}: validation > test   {'   '.join(cells)}")
    lines += [f"{name} is left out: {why}" for name, why in result["left_out"].items()]
    return "\n".join(lines)
