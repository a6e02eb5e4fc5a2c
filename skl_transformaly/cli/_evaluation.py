"""How well scores tell anomalies from normal images, with intervals."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.special import expit, logit
from scipy.stats import binom, binomtest, bootstrap, t
from sklearn.metrics import average_precision_score, roc_auc_score, roc_curve

from skl_transformaly.utils._labels import check_labels

__all__ = ["METRICS", "Interval", "class_folders", "evaluate_scores", "fpr_at_tpr", "normal_classes"]

# usual names of a folder of normal images
_NORMAL_NAMES = ("good", "normal", "ok")
# Smaller standard errors are rounding
_ROUNDING = 1e-9


class Interval(NamedTuple):
    """A figure and its confidence interval, whose ends are NaN if it cannot be estimated."""

    value: float
    low: float
    high: float


def fpr_at_tpr(y_anomaly: np.ndarray, anomaly_score: np.ndarray, tpr: float = 0.95) -> float:
    """Return the share of normal images flagged at the strictest threshold that finds a share `tpr` of the anomalies.

    `y_anomaly` is True for anomalies; a higher `anomaly_score` is more anomalous.

    >>> fpr_at_tpr(np.array([True, True, False, False]), np.array([3.0, 1.0, 2.0, 0.0]))
    0.5
    """
    fprs, tprs, _ = roc_curve(y_anomaly, anomaly_score, drop_intermediate=False)
    return float(fprs[np.argmax(tprs >= tpr)])


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "auroc": roc_auc_score,
    "aupr": average_precision_score,
    "fpr95": fpr_at_tpr,
}
"""Of labels (True for anomalies) and anomaly scores (higher is more anomalous)."""


def evaluate_scores(
    scores: np.ndarray,
    y: np.ndarray,
    *,
    confidence: float = 0.95,
    n_resamples: int = 1000,
    random_state: int = 0,
) -> dict[str, Interval]:
    """Compute AUROC, AUPR and FPR at 95 % TPR of scores (higher is more normal), with anomalies as positive class.

    Intervals of ``auroc`` and ``aupr`` are symmetric on the scale of their logits, as wide as the bootstrap's standard
    error [1]_ and Student's t distribution with the number of images of the smaller kind make them. Normal images and
    anomalies are drawn separately, so that each resample holds as many of both as `y`. If all resamples agree, as when
    no anomaly scores as high as a normal image, there are too few mistakes to estimate the uncertainty, and the ends
    are NaN. The interval of ``fpr95`` always has ends, and holds at least as often as it says: the threshold that finds
    95 % of all anomalies is between two of those at hand, and the share of normal images beyond these is within Clopper
    and Pearson's limits [2]_. With fewer than 86 anomalies it ends at 1.

    ``aupr`` is the average precision with anomalies as the positive class, whose value for random scores is their
    share; for ``fpr95`` see :func:`fpr_at_tpr`.

    .. [1] B. Efron and R. J. Tibshirani, "An Introduction to the Bootstrap", Chapman & Hall, 1993, Chapter 12.
    .. [2] C. J. Clopper and E. S. Pearson, "The use of confidence or fiducial limits illustrated in the case of the
       binomial", Biometrika 26, 1934.
    """
    scores, y = np.asarray(scores, dtype=np.float64), check_labels(y, "evaluate_scores", both=True)
    if scores.shape != y.shape or scores.ndim != 1:
        raise ValueError(f"scores and y must be of one length, got shapes {scores.shape} and {y.shape}.")
    if np.isnan(scores).any():
        raise ValueError(f"{np.isnan(scores).sum()} of {len(scores)} scores are NaN; leave those images out.")
    anomaly_scores = _anomaly_scores(scores)
    normal, anomalous = anomaly_scores[y == 1], anomaly_scores[y == -1]
    figures = {}
    for name, metric in METRICS.items():

        def statistic(normal, anomalous, metric=metric):
            labels = np.repeat([False, True], [len(normal), len(anomalous)])
            return metric(labels, np.concatenate([normal, anomalous]))

        value = float(statistic(normal, anomalous))
        if min(len(normal), len(anomalous)) < 2:  # nothing to resample
            figures[name] = Interval(value, float("nan"), float("nan"))
            continue
        if name == "fpr95":
            figures[name] = Interval(value, *_fpr_limits(normal, anomalous, confidence))
            continue
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*degenerate.*")
            error = bootstrap(
                (normal, anomalous),
                statistic,
                vectorized=False,
                n_resamples=n_resamples,
                method="percentile",  # of which the standard error alone is used
                random_state=np.random.default_rng(random_state),
            ).standard_error
        figures[name] = Interval(value, *_logit_limits(value, error, min(len(normal), len(anomalous)), confidence))
    return figures


def _logit_limits(value: float, error: float, images: int, confidence: float) -> tuple[float, float]:
    """Limits of a figure between 0 and 1 with a standard error; NaN if it has none."""
    if error < _ROUNDING or not 0 < value < 1:
        return float("nan"), float("nan")
    away = t.ppf((1 + confidence) / 2, images - 1) * error / (value * (1 - value))
    low, high = expit(logit(value) + np.array([-away, away]))
    return float(low), float(high)


def _fpr_limits(normal: np.ndarray, anomalous: np.ndarray, confidence: float) -> tuple[float, float]:
    """Limits of the share of normal images beyond the threshold that finds 95 % of anomalies, from anomaly scores."""
    half = (1 - confidence) / 2  # of the risk is for the threshold, the other half for the share
    anomalous = np.concatenate([[-np.inf], np.sort(anomalous), [np.inf]])
    # of so many anomalies at hand, this many score below the threshold
    least, most = binom.ppf([half / 2, 1 - half / 2], len(anomalous) - 2, 0.05).astype(int)
    few, many = (int(np.sum(normal >= anomalous[place])) for place in (most + 1, least))
    low, high = (binomtest(count, len(normal)).proportion_ci(1 - half, method="exact") for count in (few, many))
    return float(low.low), float(high.high)


def class_folders(root: str | os.PathLike) -> list[str]:
    """Return the names of the folders in `root`, sorted, without hidden ones. Raises ValueError without any."""
    root = Path(root)
    if not root.is_dir():
        raise ValueError(f"The folder {str(root)!r} does not exist; expected one with a folder for each class.")
    names = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not names:
        raise ValueError(f"{str(root)!r} holds no folders; expected one for each class, one of them of normal images.")
    return names


def normal_classes(classes: Sequence[str], good: Sequence[str] = ()) -> list[str]:
    """Return which of `classes` are normal: those in `good`, else the one with a usual name.

    Nothing is guessed from order or number, since a wrong guess would invert every figure.

    >>> normal_classes(["crack", "good", "scratch"]), normal_classes(["cat", "dog"], ["cat"])
    (['good'], ['cat'])
    """
    listed = ", ".join(repr(name) for name in classes)
    if good:
        for name in good:
            if name not in classes:
                close = get_close_matches(name, classes, n=1)
                hint = f" Did you mean {close[0]!r}?" if close else ""
                raise ValueError(f"The normal class {name!r} does not exist; the classes are {listed}.{hint}")
        found = [name for name in classes if name in good]
    else:
        found = [name for name in classes if name.lower() in _NORMAL_NAMES]
        if len(found) != 1:
            raise ValueError(
                f"Which class is normal? {'None' if not found else 'More than one'} of {listed} is called "
                f"{', '.join(repr(name) for name in _NORMAL_NAMES)}. Pass --good NAME."
            )
    if len(found) == len(classes):
        raise ValueError(f"All classes ({listed}) are normal, so there is nothing to find.")
    return found


def _anomaly_scores(scores: np.ndarray) -> np.ndarray:
    """Scores that are higher for anomalies, finite, as scikit-learn's metrics want them."""
    most = np.finfo(np.float64).max
    return np.clip(-np.asarray(scores, dtype=np.float64), -most, most)


def per_class(scores: np.ndarray, labels: np.ndarray, classes: Sequence[str], normal: Sequence[str]) -> dict[str, Any]:
    """Compute the AUROC of each anomalous class against all normal images; None without readable images."""
    is_normal = np.isin(labels, list(normal))
    result: dict[str, Any] = {}
    for name in classes:
        if name in normal:
            continue
        kept = is_normal | (labels == name)
        found = int(np.sum(labels == name))
        known = found and is_normal.any()
        auroc = float(roc_auc_score(labels[kept] == name, _anomaly_scores(scores[kept]))) if known else None
        result[name] = {"n": found, "auroc": auroc}
    return result
