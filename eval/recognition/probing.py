"""Probes: logistic regression and nearest neighbors on frozen features, of a tokenizer or of a reference network.

Legend: N clips, V views, C channels, t h w grid, F features.
"""

import tempfile
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from torch import Tensor

from vidtok.checks import pick_device
from vidtok.errors import nearest
from vidtok.eval.metrics.intervals import paired_ratio
from vidtok.eval.recognition.clips import ClipSource, Protocol, folds
from vidtok.eval.recognition.features import FeatureFiles
from vidtok.eval.recognition.inputs import InputEncoder, Predictions, views_of_dataset
from vidtok.eval.recognition.references import REFERENCES, ReferenceEncoder, make_encoder
from vidtok.eval.recognition.results import correct_of, data_record, recognition_result, result_entry
from vidtok.tokenizer import VideoTokenizer

# how the grid becomes one vector: the axes that are averaged
POOLS = {"mean": "time and space", "time": "space alone, the times side by side", "all": "nothing"}
CLASSIFIERS = ("logistic", "knn")
STRENGTHS = np.logspace(-5, 2, 8).tolist()  # C of the logistic regression
NEIGHBORS = [1, 3, 5, 10, 20]


def pool_features(x_NVCthw: Tensor, pool: str = "mean") -> np.ndarray:
    """Pool features [N,V,C,t,h,w] (or pooled before, [N,V,C]) to float32 [N,V,F]. Raises ValueError for a name that is
    not in `POOLS`."""
    if pool not in POOLS:
        raise ValueError(f"unknown pool {pool!r}: {nearest(pool, POOLS)}")
    x = x_NVCthw.float()
    if x.ndim > 3:
        x = x.mean(dim=(3, 4, 5)) if pool == "mean" else x.mean(dim=(4, 5)) if pool == "time" else x
    return x.flatten(2).numpy()


def signs(ids: Tensor, bits: int) -> Tensor:
    """Convert int64 ids [N,V,t,h,w] to their bits as -1 and +1, float32 [N,V,bits,t,h,w]."""
    shifts = torch.arange(bits).view(-1, 1, 1, 1)
    return (ids.long()[:, :, None] >> shifts & 1) * 2.0 - 1


def check_classifier(name: str) -> None:
    """Raise ValueError for a name that is not in `CLASSIFIERS`."""
    if name not in CLASSIFIERS:
        raise ValueError(f"unknown classifier {name!r}: {nearest(name, CLASSIFIERS)}")


def fit_probe(
    classifier: str, x_NVF: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[object, dict]:
    """Fit a scikit-learn classifier on standardized features: (the classifier, what cross-validation chose).

    classifier: "logistic" (regression) or "knn" (cosine distance). C or k is chosen by cross-validation on these clips
    alone, by group where there are groups; the views of a clip stay together. Raises ValueError for an unknown
    classifier, or a single class.
    """
    check_classifier(classifier)
    if len(set(labels.tolist())) < 2:
        raise ValueError("all training clips are of one class")
    views = x_NVF.shape[1]
    name, parts = folds(labels, groups)
    parts = [(_rows(train, views), _rows(test, views)) for train, test in parts]
    if classifier == "logistic":
        # With more features than clips, the weights lie in the span of the clips: PCA keeps it with far fewer features.
        few = [PCA()] if x_NVF.shape[2] > x_NVF.shape[0] * views else []
        model = make_pipeline(StandardScaler(), *few, LogisticRegression(max_iter=1000))
        grid = {"logisticregression__C": STRENGTHS}
    else:
        smallest = min(len(train) for train, _ in parts)
        model = make_pipeline(StandardScaler(), Normalizer(), KNeighborsClassifier(weights="distance"))
        grid = {"kneighborsclassifier__n_neighbors": [k for k in NEIGHBORS if k <= smallest]}
    rows = x_NVF.reshape(-1, x_NVF.shape[2]).astype(np.float32)
    with warnings.catch_warnings(), tempfile.TemporaryDirectory() as cache:
        warnings.simplefilter("ignore", ConvergenceWarning)  # of strengths that are not chosen, mostly
        warnings.filterwarnings("ignore", "Persisting input arguments")  # joblib's, of a large cache
        if len(model) > 2:
            model.set_params(memory=cache)  # the axes are found once for each fold, not for each strength
        search = GridSearchCV(model, grid, cv=parts, error_score="raise").fit(rows, np.repeat(labels, views))
    chosen = {key.split("__")[1]: value for key, value in search.best_params_.items()}
    return search.best_estimator_, {
        "classifier": classifier,
        "chosen": chosen,
        "by": f"{name} of the training clips",
        "top1_there": float(search.best_score_),
        "features": int(x_NVF.shape[2]),
    }


def predict_probe(
    model, x_NVF: np.ndarray, labels: np.ndarray, ids: list[str], classes: int, failures: list[dict]
) -> Predictions:
    """Average probabilities over the views. Classes without a training clip have probability 0."""
    rows = model.predict_proba(x_NVF.reshape(-1, x_NVF.shape[2])).reshape(*x_NVF.shape[:2], -1).mean(1)
    probabilities = np.zeros((len(labels), classes))
    probabilities[:, model.classes_] = rows
    return Predictions(probabilities, labels, ids, failures)


def _rows(clips: np.ndarray, views: int) -> np.ndarray:
    return (clips[:, None] * views + np.arange(views)).ravel()


@dataclass
class ProbeSide:
    """Features of one split: x float32 [N,V,F], labels int [N], ids, groups (None: no groups), failures [{name,
    reason}]."""

    x_NVF: np.ndarray
    labels: np.ndarray
    ids: list[str]
    groups: list[str] | None = None
    failures: list[dict] = field(default_factory=list)


@dataclass
class ProbeData:
    """Features to train and test on; shuffled: of the test clips with their frames in random order, or None. classes:
    their names. encoder: what computed the features; None, they were read from files."""

    train: ProbeSide
    test: ProbeSide
    shuffled: ProbeSide | None
    classes: list[str]
    encoder: InputEncoder | ReferenceEncoder | None = None


def features_of_clips(
    source: ClipSource,
    split: str | None,
    protocol: Protocol,
    encoder: InputEncoder | ReferenceEncoder,
    pool: str,
    limit: int | None = None,
    workers: int = 0,
    shuffle: bool = False,
) -> tuple[ProbeSide, list[str]]:
    """Compute the features of videos: (features, class names).

    Videos are decoded one at a time, and only their features are kept. limit: largest number of videos. shuffle: put
    frames in random order. Raises ValueError where no video can be read.
    """
    dataset = source.open(split, protocol)
    dataset.keep(slice(limit))
    rows, labels, ids, failures = [], [], [], []
    for batch in views_of_dataset(dataset, 1, workers, shuffle):
        failures += batch.failures
        if batch.ids:
            x = encoder(batch.x[0])[None].cpu()
            rows.append(pool_features(_numbers(x, encoder.kind, encoder.tokenizer), pool))
            labels += batch.labels.tolist()
            ids += batch.ids
    if not ids:
        raise ValueError(f"no clip could be read: {failures[0]['name']}: {failures[0]['reason']}")
    return ProbeSide(np.concatenate(rows), np.array(labels), ids, None, failures), dataset.classes


def features_of_files(files: FeatureFiles, input: str, tokenizer: VideoTokenizer, pool: str) -> ProbeSide:
    """Read pooled features of files. Raises ValueError where the videos have different numbers of views."""
    counts = {len(rows) for rows in files.records}
    if len(counts) > 1:
        raise ValueError(f"videos of {min(counts)} to {max(counts)} records: extract the same number of clips of each")
    rows = [
        pool_features(_numbers(files.all_views(index)[None], input, tokenizer), pool) for index in range(len(files))
    ]
    return ProbeSide(np.concatenate(rows), np.array(files.labels), files.ids, failures=files.failures)


def _numbers(x_NV: Tensor, input: str, tokenizer: VideoTokenizer | None) -> Tensor:
    """Convert inputs to floats [N,V,C,...]; ids become signs."""
    return signs(x_NV, int(tokenizer.bits)) if input in ("tokens", "codes") and tokenizer is not None else x_NV


def probe(
    source: str | None = None,
    *,
    root: str | None = None,
    path_column: str | None = None,
    label_column: str | None = None,
    split_column: str | None = None,
    checked: str | None = None,
    reader: str = "auto",
    group_column: str | None = None,
    test_source: str | None = None,
    features: str | None = None,
    test_features: str | None = None,
    train_split: str = "train",
    split: str = "val",
    train_clips: int | None = None,
    test_clips: int | None = None,
    input: str | Sequence[str] = "hidden",
    i3d: str | None = None,
    backbone: str | None = None,
    backbone_weights: str | None = None,
    recon: bool = False,
    pool: str = "mean",
    classifier: str = "logistic",
    protocol: str = "17x4x1x1",
    size: int = 128,
    fps: float | None = None,
    workers: int = 0,
    model: str = "vidtok-t",
    device: str = "auto",
) -> dict:
    """Fit a classifier on frozen features of a tokenizer or a reference network, and test it.

    Args:
        source: "digits", a folder, or a csv or json file of annotations. With `features` it only holds group_column.
        root, path_column, label_column, split_column, group_column, checked, reader: see `ClipSource`.
        test_source: annotations of the test split, where they are in another file.
        features: files of `vidtok extract` with features of the training clips, instead of videos.
        test_features: the same for the test clips; None, `features`.
        train_split, split: names of the training and the test split.
        train_clips, test_clips: largest number of clips of each; None, all.
        input: one or more of hidden, latents, codes, pixels, recon, i3d, frames, as a list or separated by commas.
            The first is what the others are compared with, by a paired bootstrap over clips.
        i3d: I3D's weights, a file or URL, for the input i3d.
        backbone, backbone_weights: timm's image classifier for the input frames, and a file of its weights; None,
            timm downloads them.
        recon: compute i3d and frames on reconstructed clips.
        pool: one of `POOLS`. classifier: one of `CLASSIFIERS`.
        protocol: frames x stride x segments x crops, see `Protocol`.
        size: side of the center crop in pixels. fps: frame rate in which the stride is counted; None, the video's own.
        workers: number of decoding processes.
        model, device: name of the tokenizer, and where it runs.

    Returns:
        A result of schema "vidtok.recognition/1" and kind "probe".

    Raises:
        ValueError: for an unknown name, a setting that would have no effect, or splits that share videos.
    """
    config = dict(locals())
    start = time.perf_counter()
    inputs = input.split(",") if isinstance(input, str) else list(input)
    if source is None and features is None:
        raise ValueError("give either a source or features")
    if features and (source is None) != (group_column is None):
        raise ValueError("features take a source only together with group_column, a column of it")
    if len(set(inputs)) < len(inputs):
        raise ValueError(f"input {','.join(inputs)}: one of them is given twice")
    for name, idle, why in (
        ("test_source", features and test_source, "is for videos: give test_features"),
        ("label_column", features and label_column, "is for videos: extracted features have labels of their own"),
        ("recon", recon and not REFERENCES & set(inputs), f"is for inputs i3d and frames, not {','.join(inputs)}"),
        ("i3d", i3d and "i3d" not in inputs, f"is for input i3d, not {','.join(inputs)}"),
        ("backbone", backbone and "frames" not in inputs, f"is for input frames, not {','.join(inputs)}"),
        ("backbone_weights", backbone_weights and "frames" not in inputs, "is for input frames"),
    ):
        if idle:
            raise ValueError(f"{name} {why}")
    check_classifier(classifier)
    tokenizer = VideoTokenizer.from_pretrained(model, pick_device(device))
    clips = Protocol.parse(protocol, size, fps)
    columns = path_column, label_column, split_column, group_column
    videos = ClipSource(str(source or features), root, *columns, checked=checked, reader=reader)
    splits, limits = (train_split, split), (train_clips, test_clips)
    if features:
        paths = features, test_features or features
        grouped = videos.groups if group_column else None

        def read(input: str) -> ProbeData:
            return read_features(paths, splits, limits, input, tokenizer, clips, pool, grouped)
    else:
        test = replace(videos, source=str(test_source or source))
        videos.validate_disjoint(train_split, test, split)
        videos.groups(videos.open(train_split, clips).ids)  # a missing column is an error now, not after the work
        encoders = {name: make_encoder(name, tokenizer, i3d, backbone, backbone_weights, recon) for name in inputs}

        def read(input: str) -> ProbeData:
            return read_clips((videos, test), splits, limits, encoders[input], clips, pool, workers)

    entries, predictions = [], {}
    for each in inputs:
        found = read(each)
        entry, predicted = probe_entry(each, classifier, found)
        entries.append(entry)
        predictions[entry["name"]] = [predicted]
    first = entries[0]["name"]
    return recognition_result(
        "probe",
        entries,
        predictions,
        data=data_record(
            ClipSource(features) if features else videos,
            {"train": train_split, "test": split},
            found.classes,
            found.train.failures,
        ),
        train_labels=found.train.labels,
        protocol=clips.record(),
        tokenizer=tokenizer if recon or set(inputs) - {"pixels", *REFERENCES} else None,
        config=config,
        wall_time_s=time.perf_counter() - start,
        device=str(tokenizer.device),
        comparisons=[
            {"ours": name, "theirs": first, **paired_ratio(correct_of(seen), correct_of(predictions[first]))}
            for name, seen in predictions.items()
            if name != first
        ],
    )


def probe_entry(input: str, classifier: str, data: ProbeData) -> tuple[dict, Predictions]:
    """Fit and test a classifier: (its entry in the result, predictions for the test clips)."""
    train = data.train
    model, facts = fit_probe(classifier, train.x_NVF, train.labels, train.groups)
    if isinstance(data.encoder, ReferenceEncoder):
        facts["reference"] = {"name": input, "weight_hash": data.encoder.network.weight_hash}

    def predict(side: ProbeSide) -> Predictions:
        return predict_probe(model, side.x_NVF, side.labels, side.ids, len(data.classes), side.failures)

    predicted, shuffled = predict(data.test), None if data.shuffled is None else [predict(data.shuffled)]
    runs = [({"seed": None, **facts}, predicted)]
    return result_entry(f"{input}, {classifier}", input, runs, None, shuffled), predicted


def format_chosen(result: Mapping) -> str:
    """One line for each classifier of a result: its number of features, and what cross-validation chose."""
    runs = [(entry["name"], entry["runs"][0]) for entry in result["results"]]
    return "\n".join(
        f"{name}: {run['features']} features; {run['chosen']} by {run['by']} (top-1 {run['top1_there']:.3f} there)"
        for name, run in runs
    )


def read_clips(
    sources: tuple[ClipSource, ClipSource],
    splits: tuple[str, str],
    limits: tuple[int | None, int | None],
    encoder: InputEncoder | ReferenceEncoder,
    protocol: Protocol,
    pool: str,
    workers: int = 0,
) -> ProbeData:
    """Features of videos, decoded here. sources, splits, limits: of training and test."""
    train, classes = features_of_clips(sources[0], splits[0], protocol, encoder, pool, limits[0], workers)
    train.groups = sources[0].groups(train.ids)
    source = replace(sources[1], classes=classes)
    test, shuffled = (
        features_of_clips(source, splits[1], protocol, encoder, pool, limits[1], workers, shuffle)[0]
        for shuffle in (False, True)
    )
    return ProbeData(train, test, shuffled, classes, encoder)


def read_features(
    paths: tuple[str, str],
    splits: tuple[str, str],
    limits: tuple[int | None, int | None],
    input: str,
    tokenizer: VideoTokenizer,
    protocol: Protocol,
    pool: str,
    groups_of: Callable[[Sequence[str]], list[str] | None] | None = None,
) -> ProbeData:
    """Features from files of `vidtok extract`, whose frames can't be shuffled any more. paths, splits, limits: of
    training and test. groups_of: the group of each video; None, those that the files know."""
    train = FeatureFiles(paths[0], splits[0], input, tokenizer, protocol)
    test = FeatureFiles(paths[1], splits[1], input, tokenizer, protocol, train.classes)
    train.validate_disjoint(test)
    test.validate_views(protocol)
    for files, limit in zip((train, test), limits, strict=True):
        files.first(limit)
    side, test_side = (features_of_files(files, input, tokenizer, pool) for files in (train, test))
    side.groups = train.groups if groups_of is None else groups_of(train.ids)
    return ProbeData(side, test_side, None, train.classes)
