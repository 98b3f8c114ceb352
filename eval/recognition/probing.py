"""Probes: what a linear classifier, or the nearest neighbours, find in features that are not trained for it.

Legend: N clips, V views, C channels, t h w grid, F features.

Features for a probe: computed from clips, or read from files.

Frozen networks that others trained with labels: what a probe on a tokenizer's features is held against.
"""

import argparse
import tempfile
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import timm
import torch
import torch.nn.functional as F
from sklearn.decomposition import PCA
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from timm.data import resolve_model_data_config
from torch import Tensor, nn

from vidtok.errors import nearest
from vidtok.eval.metrics.i3d import I3D
from vidtok.eval.recognition.clips import ClipSource, cut, folds
from vidtok.eval.recognition.inputs import InputEncoder
from vidtok.eval.recognition.prediction import Predictions, views_of_dataset
from vidtok.eval.recognition.protocol import Protocol
from vidtok.eval.recognition.store import FeatureFiles
from vidtok.hub import hash_weights
from vidtok.tokenizer import VideoTokenizer

# how the grid becomes one vector: over what is averaged
POOLS = {"mean": "time and space", "time": "space alone, the times side by side", "all": "nothing"}
CLASSIFIERS = ("logistic", "knn")
STRENGTHS = np.logspace(-5, 2, 8).tolist()  # C of the logistic regression
NEIGHBORS = [1, 3, 5, 10, 20]


def pool_features(x_NVCthw: Tensor, pool: str = "mean") -> np.ndarray:
    """[N,V,C,t,h,w] (or pooled before, [N,V,C]) -> float32 [N,V,F]; see `POOLS`. Raises ValueError for another name."""
    if pool not in POOLS:
        raise ValueError(f"unknown pool {pool!r}: {nearest(pool, POOLS)}")
    x = x_NVCthw.float()
    if x.ndim > 3:
        x = x.mean(dim=(3, 4, 5)) if pool == "mean" else x.mean(dim=(4, 5)) if pool == "time" else x
    return x.flatten(2).numpy()


def signs(ids: Tensor, bits: int) -> Tensor:
    """int64 ids [N,V,t,h,w] -> their bits, -1 and +1, float32 [N,V,bits,t,h,w]."""
    shifts = torch.arange(bits).view(-1, 1, 1, 1)
    return (ids.long()[:, :, None] >> shifts & 1) * 2.0 - 1


def check_classifier(name: str) -> None:
    """Raises ValueError for a name that is none of `CLASSIFIERS`."""
    if name not in CLASSIFIERS:
        raise ValueError(f"unknown classifier {name!r}: {nearest(name, CLASSIFIERS)}")


def fit_probe(
    classifier: str, x_NVF: np.ndarray, labels: np.ndarray, groups: Sequence[str] | None = None
) -> tuple[object, dict]:
    """A scikit-learn classifier of standardised features, and what was chosen.

    classifier: "logistic" (regression; its C) or "knn" (cosine distance; its k), chosen by cross-validation on these
    clips alone, by group where there are groups; the views of a clip are never parted. Raises ValueError for another
    name, or a single class.
    """
    check_classifier(classifier)
    if len(set(labels.tolist())) < 2:
        raise ValueError("all training clips are of one class")
    views = x_NVF.shape[1]
    name, parts = folds(labels, groups)
    parts = [(_rows(train, views), _rows(test, views)) for train, test in parts]
    if classifier == "logistic":
        # With more features than clips all weights lie in the span of the clips: its axes are as good, and far fewer.
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
    """Probabilities averaged over the views; a class that training never showed has probability 0."""
    rows = model.predict_proba(x_NVF.reshape(-1, x_NVF.shape[2])).reshape(*x_NVF.shape[:2], -1).mean(1)
    probabilities = np.zeros((len(labels), classes))
    probabilities[:, model.classes_] = rows
    return Predictions(probabilities, labels, ids, failures)


def _rows(clips: np.ndarray, views: int) -> np.ndarray:
    return (clips[:, None] * views + np.arange(views)).ravel()


class FrameBackbone(nn.Module):
    """An image classifier of timm on every frame alone; time is for the probe.

    Args:
        name: of timm, with or without the tag of its weights ("vit_small_patch14_dinov2.lvd142m").
        weights: file of its weights (safetensors or torch); None, timm downloads them.
        pretrained: False, no weights: for tests.

    Raises:
        ValueError: for a name that timm doesn't know, or weights of another network.
        FileNotFoundError: where there is no such file, or timm can't download the weights.
    """

    def __init__(self, name: str, weights: str | Path | None = None, pretrained: bool = True):
        super().__init__()
        if not timm.is_model(name):
            raise ValueError(f"timm has no model {name!r}: {nearest(name, timm.list_models())}")
        overlay = None
        if weights is not None:
            if not Path(weights).is_file():
                raise FileNotFoundError(f"no weights at {weights}")
            overlay = {"file": str(weights)}
        try:
            # With the classifier, without which timm would take any file of weights.
            network = timm.create_model(name, pretrained=pretrained, pretrained_cfg_overlay=overlay)
        except RuntimeError as error:
            raise ValueError(f"{weights} does not hold the weights of {name}: {str(error).splitlines()[0]}") from error
        except OSError as error:
            message = f"timm can't download the weights of {name}: give a file of them ({error})"
            raise FileNotFoundError(message) from error
        network.reset_classifier(0)
        data = resolve_model_data_config(network)
        self.network, self.size = network.eval().requires_grad_(False), tuple(data["input_size"][1:])
        self.weight_hash = hash_weights(network)
        self.register_buffer("mean", torch.tensor(data["mean"]).view(1, 3, 1, 1))
        self.register_buffer("std", torch.tensor(data["std"]).view(1, 3, 1, 1))

    @torch.no_grad()
    def forward(self, video_B3THW: Tensor) -> Tensor:
        """float [B,3,T,H,W] in [-1,1] -> float32 [B,C,T,1,1]. Frames are resized to the size that it was trained on."""
        B = len(video_B3THW)
        frames = video_B3THW.float().transpose(1, 2).flatten(0, 1)
        frames = F.interpolate(frames, self.size, mode="bicubic", antialias=True).clamp(-1, 1)
        features_NC = self.network((frames / 2 + 0.5 - self.mean) / self.std)
        return features_NC.unflatten(0, (B, -1)).transpose(1, 2)[..., None, None]


class ReferenceEncoder:
    """A frozen network in the place of an `InputEncoder`: clips to its features.

    network: an `I3D`, of which it takes what comes before the classifier, float32 [B,1024,t,1,1], or a `FrameBackbone`.
    tokenizer: where it is given, the network sees what its tokens keep of the clips.
    """

    def __init__(self, network: I3D | FrameBackbone, tokenizer: VideoTokenizer | None = None):
        self.network, self.tokenizer = network, tokenizer
        self.kind = "i3d" if isinstance(network, I3D) else "frames"
        self.features = network.forward_features if isinstance(network, I3D) else network
        self.prepare = InputEncoder("pixels" if tokenizer is None else "recon", tokenizer)

    def __call__(self, video_B3THW: Tensor) -> Tensor:
        return self.features(self.prepare(video_B3THW).to(next(self.network.parameters()).device))


@dataclass
class ProbeSide:
    """x float32 [N,V,F], labels int [N], ids, groups (None, there are none), failures [{name, reason}]."""

    x_NVF: np.ndarray
    labels: np.ndarray
    ids: list[str]
    groups: list[str] | None = None
    failures: list[dict] = field(default_factory=list)


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
    """(features, names of the classes). Videos are decoded one at a time and only their features are kept; shuffle:
    with their frames in random order. Raises ValueError where none can be read."""
    dataset = source.open(split, protocol)
    cut(dataset, slice(limit))
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
    """Raises ValueError where the videos have different numbers of views."""
    counts = {len(rows) for rows in files.records}
    if len(counts) > 1:
        raise ValueError(f"videos of {min(counts)} to {max(counts)} records: extract the same number of clips of each")
    rows = [
        pool_features(_numbers(files.all_views(index)[None], input, tokenizer), pool) for index in range(len(files))
    ]
    return ProbeSide(np.concatenate(rows), np.array(files.labels), files.ids, failures=files.failures)


def _numbers(x_NV: Tensor, input: str, tokenizer: VideoTokenizer) -> Tensor:
    """Floats [N,V,C,...]: ids become signs, pixels a channel each."""
    return signs(x_NV, int(tokenizer.bits)) if input in ("tokens", "codes") else x_NV


def of_clips(args: argparse.Namespace, tokenizer, protocol):
    """input -> ({"train", "test", "shuffled": `ProbeSide`}, data of the result, what encoded it), decoded then."""
    from vidtok.eval.recognition.results import data_record

    columns = args.path_column, args.label_column, args.split_column, args.group_column
    source = ClipSource(args.source, args.root, *columns, checked=args.checked)
    test_source = replace(source, source=args.test_source or args.source)
    source.validate_disjoint(args.train_split, test_source, args.split)
    training = source.open(args.train_split, protocol)
    source.groups(training.ids)  # where there is no such column, now
    test_source = replace(test_source, classes=training.classes)
    parts = {
        "train": (source, args.train_split, args.train_clips, False),
        "test": (test_source, args.split, args.test_clips, False),
        "shuffled": (test_source, args.split, args.test_clips, True),
    }

    # Not when their turn comes, after the work on others.
    encoders = {input: find_encoder(args, input, tokenizer) for input in args.input.split(",")}

    def read(input: str) -> tuple[dict, dict, InputEncoder | ReferenceEncoder]:
        encoder, sides = encoders[input], {}
        for name, (where, split, limit, shuffle) in parts.items():
            sides[name], classes = features_of_clips(
                where, split, protocol, encoder, args.pool, limit, args.workers, shuffle
            )
        failures, sides["train"].groups = sides["train"].failures, source.groups(sides["train"].ids)
        return sides, data_record(source, {"train": args.train_split, "test": args.split}, classes, failures), encoder

    return read


def find_encoder(args: argparse.Namespace, input: str, tokenizer):
    """What makes the features of that name: an `InputEncoder` or a `ReferenceEncoder`."""
    from vidtok.eval import I3D

    if input not in ("i3d", "frames"):
        return InputEncoder(input, tokenizer)
    if input == "frames" and args.backbone is None:
        raise ValueError("--input frames needs --backbone NAME")
    if input == "i3d" and args.i3d is None:
        raise ValueError("--input i3d needs --i3d FILE")
    network = I3D(args.i3d) if input == "i3d" else FrameBackbone(args.backbone, args.backbone_weights)
    return ReferenceEncoder(network.to(tokenizer.device), tokenizer if args.recon else None)


def of_files(args: argparse.Namespace, tokenizer, protocol):
    """The same of the files of `vidtok extract`; frames can't be shuffled any more."""
    from vidtok.eval.recognition.results import data_record

    def read(input: str) -> tuple[dict, dict, None]:
        train = FeatureFiles(args.features, args.train_split, input, tokenizer, protocol)
        path = args.test_features or args.features
        test = FeatureFiles(path, args.split, input, tokenizer, protocol, train.classes)
        train.validate_disjoint(test)
        test.validate_views(protocol)
        for files, limit in ((train, args.train_clips), (test, args.test_clips)):
            files.first(limit)
        sides = {
            name: features_of_files(files, input, tokenizer, args.pool)
            for name, files in (("train", train), ("test", test))
        }
        sides["train"].groups = train.groups
        if args.group_column:
            columns = args.path_column, args.label_column, args.split_column, args.group_column
            sides["train"].groups = ClipSource(args.source, None, *columns).groups(train.ids)
        splits = {"train": args.train_split, "test": args.split}
        return sides, data_record(ClipSource(args.features), splits, train.classes, train.failures), None

    return read
