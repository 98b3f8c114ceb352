"""Probes: what a linear classifier, or the nearest neighbours, find in features that are not trained for it.

Legend: N clips, V views, C channels, t h w grid, F features.
"""

import tempfile
import warnings
from collections.abc import Sequence

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

from vidtok.hints import nearest

from .folds import folds
from .predict import Predictions

# how the grid becomes one vector: over what is averaged
POOLS = {"mean": "time and space", "time": "space alone, the times side by side", "all": "nothing"}
CLASSIFIERS = ("logistic", "knn")
STRENGTHS = np.logspace(-5, 2, 8).tolist()  # C of the logistic regression
NEIGHBOURS = [1, 3, 5, 10, 20]


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
        grid = {"kneighborsclassifier__n_neighbors": [k for k in NEIGHBOURS if k <= smallest]}
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
