"""How much each feature space counts, learned from a few known anomalies."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from scipy.optimize import minimize
from scipy.special import expit
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import RepeatedKFold

from skl_transformaly.utils._warnings import warn_user

__all__ = ["LEAST_ANOMALIES", "default_weights", "space_weights"]

# Of the discrepancy; each of the other spaces counts 1 (benchmarks/accuracy/NOTES.md, "Fusion").
_DISCREPANCY = 0.5

# Fewer known anomalies say too little: weights stay as they are.
LEAST_ANOMALIES = 5
# Pulls towards equal weights, strongest first; the first of them is so strong that nothing changes.
_PULLS = (np.inf, 3.0, 1.0, 0.3, 0.1)
# Least weight of a space, since the next anomaly may be of a kind that only this space shows
_LEAST_WEIGHT = 0.25
# Standard deviations that stand for infinitely many, of anomalies where a density is zero
_FAR = 1e6
_FOLDS, _REPEATS = 5, 4


def default_weights(spaces: Sequence[str], standardize: bool) -> np.ndarray:
    """Return how much each of these spaces counts (S,) before any anomaly is known.

    Where log-densities are added as they are, each counts 1, as in the paper.

    >>> default_weights(["pretrained", "layers", "discrepancy"], True)
    array([1. , 1. , 0.5])
    """
    beside = standardize and len(spaces) > 1
    return np.array([_DISCREPANCY if beside and name == "discrepancy" else 1.0 for name in spaces])


def space_weights(normal: np.ndarray, anomalies: np.ndarray) -> np.ndarray:
    """Weigh the parts (n, S) of the score so that known anomalies stand out from normal images; weights have mean 1.

    Weights are those of a logistic regression on the parts, drawn towards equal ones. How strongly is decided by AUROC
    on anomalies and normal images that the weights were not fitted to (cross-fitting): they leave equality only if that
    AUROC is better by more than its standard error over folds. With fewer than 5 anomalies they are equal, with a
    warning.

    >>> rng = np.random.default_rng(0)
    >>> normal, anomalies = rng.normal(size=(100, 2)), rng.normal(size=(20, 2)) - [2, 0]
    >>> weights = space_weights(normal, anomalies)
    >>> bool(weights[0] > weights[1])
    True
    """
    n_spaces = normal.shape[1]
    if n_spaces == 1 or not len(anomalies):
        return np.ones(n_spaces)
    if len(anomalies) < LEAST_ANOMALIES:
        counted = "1 known anomaly changes" if len(anomalies) == 1 else f"{len(anomalies)} known anomalies change"
        warn_user(
            f"{counted} nothing: weights of the feature spaces are learned from {LEAST_ANOMALIES} or more.",
        )
        return np.ones(n_spaces)
    # on one scale, on which the parts are already unless log-densities are added as they are
    location, spread = normal.mean(axis=0), normal.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    normal, anomalies = (normal - location) / spread, (anomalies - location) / spread
    anomalies = np.maximum(anomalies, -_FAR)
    found = np.array([_cross_fitted(normal, anomalies, pull, spread) for pull in _PULLS])  # (pulls, folds)
    gains = found - found[0]
    error = gains.std(axis=1, ddof=1) / np.sqrt(_FOLDS)  # folds of one repeat are independent, repeats are not
    better = gains.mean(axis=1) - error
    best = int(better.argmax())
    return _fit(normal, anomalies, _PULLS[best], spread) if better[best] > 0 else np.ones(n_spaces)


def _cross_fitted(normal: np.ndarray, anomalies: np.ndarray, pull: float, spread: np.ndarray) -> np.ndarray:
    """AUROC on each fold of weights that were fitted to the others."""
    splitter = RepeatedKFold(n_splits=_FOLDS, n_repeats=_REPEATS, random_state=0)
    folds = zip(splitter.split(normal), splitter.split(anomalies)) if len(normal) >= _FOLDS else ()
    found = []
    for (train, test), (known, new) in folds:
        weights = _fit(normal[train], anomalies[known], pull, spread) * spread
        scores = np.concatenate([normal[test], anomalies[new]]) @ weights
        found.append(roc_auc_score([1] * len(test) + [0] * len(new), scores))
    return np.array(found or [0.0, 0.0])


def _fit(normal: np.ndarray, anomalies: np.ndarray, pull: float, spread: np.ndarray | float = 1.0) -> np.ndarray:
    """Weights of parts before they were divided by `spread`: of mean 1, none of a space below `_LEAST_WEIGHT` of it."""
    count = normal.shape[1]
    if np.isinf(pull):
        return np.ones(count)
    parts = np.concatenate([normal, anomalies])
    # beyond some deviations it is certain that images are anomalies
    parts = np.maximum(parts, -20)
    signs = np.repeat([1.0, -1.0], [len(normal), len(anomalies)])
    shares = np.repeat([0.5 / len(normal), 0.5 / len(anomalies)], [len(normal), len(anomalies)])

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        weights, shift = values[:-1], values[-1]
        margins = signs * (parts @ weights + shift)
        slope = -shares * signs * expit(-margins)
        apart = weights - weights.mean()
        gradient = np.append(slope @ parts + 2 * pull * apart, slope.sum())
        return float(shares @ np.logaddexp(0, -margins) + pull * apart @ apart), gradient

    start = np.append(np.full(count, 0.5), 1.0)
    bounds = [(1e-3, None)] * count + [(None, None)]
    weights = minimize(loss, start, jac=True, bounds=bounds, method="L-BFGS-B").x[:-1]
    weights = np.maximum(weights / weights.mean(), _LEAST_WEIGHT) / spread
    return weights / weights.mean()
