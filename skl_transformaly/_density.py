"""Densities of a feature space.

A density computes the log-density of new samples (``score_samples``), and *held-out* log-densities of the samples of
its fit (``held_out_scores``): those of a fit without the sample and its duplicates.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from scipy.special import gammaln
from sklearn.base import clone
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GroupKFold
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import gen_batches
from sklearn.utils.validation import has_fit_parameter, validate_data

from skl_transformaly._gaussian import GaussianDensity, LogDensity
from skl_transformaly.utils._compat import Interval, fit_context
from skl_transformaly.utils._fitting import all_or_nothing

__all__ = [
    "AutoDensity",
    "GaussianDensity",
    "KNNDensity",
    "fit_density",
    "folds",
    "held_out_scores",
    "resolve_density",
]

# Number of folds for densities that have no closed form.
_FOLDS = 5
# AutoDensity seeks neighbours among at most this many samples, so that the time of a fit stays linear in their number
# and model files stay small.
_MOST_NEIGHBORS = 5000


class KNNDensity(LogDensity):
    """Log-density by k nearest neighbours: k samples in a ball that just holds them.

    ``log p(x) = log k - log n - log V_d - d log r_k(x)``, with ``r_k`` the Euclidean distance to the k-th
    nearest training sample and ``V_d`` the volume of the unit ball: its ranking is that of the distance.

    Parameters
    ----------
    n_neighbors : int, default=5
        k; at most the number of training samples.
    max_samples : int or None, default=None
        Seek neighbours among at most so many training samples, taken at even steps; None is all.
    n_jobs : int, default=None
        As in :class:`sklearn.neighbors.NearestNeighbors`.

    Attributes
    ----------
    neighbors_ : NearestNeighbors
    samples_ : ndarray of shape (n_kept, n_features)
        The samples that neighbours are sought among.
    positions_ : ndarray of shape (n_kept,)
        Their positions among the samples that `fit` saw, in ascending order.
    n_samples_fit_ : int
        Number of samples that `fit` saw.
    floor_ : float
        Lower limit of distances, 1e-12 of the training data's spread, so that duplicates have a finite density.
    n_features_in_ : int

    Notes
    -----
    In `score_samples` a training sample is its own first neighbour; in `held_out_scores` it is not: if fewer than
    `n_neighbors` other samples are left there, the farthest of these is taken.

    References
    ----------
    .. [1] D. O. Loftsgaarden and C. P. Quesenberry, "A Nonparametric Estimate of a Multivariate Density
       Function", Annals of Mathematical Statistics 36(3), 1965.

    Examples
    --------
    >>> from skl_transformaly import KNNDensity
    >>> density = KNNDensity(n_neighbors=1).fit([[0.0], [1.0]])
    >>> density.score_samples([[0.5]]).round(3)
    array([-0.693])
    >>> density.held_out_scores([[0.0], [1.0]]).round(3)
    array([-0.693, -0.693])
    """

    _parameter_constraints: dict = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "max_samples": [Interval(Integral, 2, None, closed="left"), None],
        "n_jobs": [Integral, None],
    }

    def __init__(self, *, n_neighbors: int = 5, max_samples: int | None = None, n_jobs: int | None = None):
        self.n_neighbors = n_neighbors
        self.max_samples = max_samples
        self.n_jobs = n_jobs

    def _fit(self, X: np.ndarray) -> None:
        count = len(X) if self.max_samples is None else min(len(X), self.max_samples)
        if count < self.n_neighbors:
            raise ValueError(
                f"n_neighbors={self.n_neighbors} needs as many samples, got n_samples={len(X)} and "
                f"max_samples={self.max_samples}: lower n_neighbors, or give more."
            )
        mean = X.mean(axis=0)
        squares = sum(float(((X[rows] - mean) ** 2).sum()) for rows in gen_batches(len(X), 1024))
        positions = np.linspace(0, len(X) - 1, count).round().astype(int)
        self.restore(X[positions], 1e-12 * (np.sqrt(squares / len(X)) or 1.0))
        self.positions_, self.n_samples_fit_ = positions, len(X)

    def restore(self, samples: np.ndarray, floor: float) -> None:
        """Set the samples, as a model file does; a search structure is built anew.

        Parameters
        ----------
        samples : ndarray of shape (n_kept, n_features)
        floor : float
        """
        self.samples_ = samples
        self.floor_ = floor
        self.neighbors_ = NearestNeighbors(n_neighbors=self.n_neighbors, n_jobs=self.n_jobs).fit(samples)

    def _log_density(self, X: np.ndarray) -> np.ndarray:
        distances = self.neighbors_.kneighbors(X)[0]
        return self._by_distance(distances[:, -1], len(self.samples_), distances.shape[1])

    def _held_out(self, X: np.ndarray, groups: Any, unseen: np.ndarray | None) -> np.ndarray:
        X = X if unseen is None else unseen
        if len(X) != self.n_samples_fit_:
            raise ValueError(f"X must be the {self.n_samples_fit_} samples that fit saw, got {len(X)}.")
        labels = np.arange(len(X)) if groups is None else np.unique(groups, return_inverse=True)[1]
        kept = labels[self.positions_]
        n = len(kept)
        sizes = np.bincount(kept, minlength=labels.max() + 1)[labels]  # of what is left out with each sample
        wanted = np.minimum(self.neighbors_.n_neighbors, np.maximum(n - sizes, 1))
        reach = min(n, int((wanted + sizes).max()))
        distances, found = self.neighbors_.kneighbors(X, n_neighbors=reach)
        distances = np.where(kept[found] == labels[:, np.newaxis], np.inf, distances)
        distances.sort(axis=1)
        nearest = distances[np.arange(len(X)), wanted - 1]
        nearest = np.where(np.isfinite(nearest), nearest, 0.0)  # all samples are alike
        return self._by_distance(nearest, np.maximum(n - sizes, 1), wanted)

    def _by_distance(self, distance: np.ndarray, n: Any, k: Any) -> np.ndarray:
        d = self.samples_.shape[1]
        log_ball = d / 2 * np.log(np.pi) - gammaln(d / 2 + 1)
        return np.log(k) - np.log(n) - log_ball - d * np.log(np.maximum(distance, self.floor_))


class AutoDensity(LogDensity):
    """A Gaussian and nearest neighbours together, for one or many kinds of normal samples.

    A Gaussian describes one kind of normal samples best, neighbours describe several. The log-densities of
    :class:`GaussianDensity` and :class:`KNNDensity` are each standardised over held-out training samples, and averaged:
    up to a constant, this is the log of a weighted geometric mean of the two densities. Neighbours are sought among at
    most 5,000 training samples.

    Parameters
    ----------
    n_neighbors : int, default=3
        Number of neighbours; at most the number of other samples.

    Attributes
    ----------
    gaussian_ : GaussianDensity
    neighbors_ : KNNDensity
    location_, spread_ : ndarray of shape (2,)
        Means and standard deviations of the held-out log-densities of both.
    held_out_scores_ : ndarray of shape (n_samples,)
        Scores of the training samples, each without itself and its duplicates.
    n_features_in_ : int

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly import AutoDensity
    >>> rng = np.random.default_rng(0)
    >>> two_kinds = np.vstack([rng.normal(-9, 1, (50, 2)), rng.normal(9, 1, (50, 2))])
    >>> scores = AutoDensity().fit(two_kinds).score_samples([[9, 9], [0, 0]])
    >>> bool(scores[0] > scores[1])
    True
    """

    _parameter_constraints: dict = {"n_neighbors": [Interval(Integral, 1, None, closed="left")]}

    def __init__(self, *, n_neighbors: int = 3):
        self.n_neighbors = n_neighbors

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> AutoDensity:
        """Fit both densities, and standardise them on held-out samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least 2 samples.
        y : ignored
        groups : array-like of shape (n_samples,), default=None
            Samples of one group are duplicates, which are held out together.

        Returns
        -------
        self : AutoDensity

        Raises
        ------
        ValueError
            Fewer than 2 samples, or NaN or infinity in `X`.
        """
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        gaussian = GaussianDensity().fit(X)
        neighbors = KNNDensity(n_neighbors=min(self.n_neighbors, len(X) - 1), max_samples=_MOST_NEIGHBORS).fit(X)
        held_out = [part.held_out_scores(X, groups=groups) for part in (gaussian, neighbors)]
        self.gaussian_, self.neighbors_ = gaussian, neighbors
        self.location_ = np.mean(held_out, axis=1)
        spread = np.std(held_out, axis=1)
        self.spread_ = np.where(spread > 0, spread, 1.0)
        self.held_out_scores_ = self._together(held_out)
        return self

    def _log_density(self, X: np.ndarray) -> np.ndarray:
        return self._together([self.gaussian_.score_samples(X), self.neighbors_.score_samples(X)])

    def _held_out(self, X: np.ndarray, groups: Any, unseen: np.ndarray | None) -> np.ndarray:
        parts = (self.gaussian_, self.neighbors_)
        return self._together([part.held_out_scores(X, groups=groups, unseen=unseen) for part in parts])

    def _together(self, scores: list[np.ndarray]) -> np.ndarray:
        return ((np.array(scores).T - self.location_) / self.spread_).mean(axis=1)


def held_out_scores(density: Any, X: np.ndarray, *, groups: Any = None, unseen: np.ndarray | None = None) -> np.ndarray:
    """Compute held-out log-densities of the samples that `density` was fitted on, in closed form or by folds.

    Parameters
    ----------
    density : fitted estimator with ``score_samples``
        Its own ``held_out_scores`` are used if it has them; else clones of it are fitted on the samples outside each of
        5 folds.
    X : ndarray of shape (n_samples, n_features)
        What it was fitted on.
    groups, unseen
        As in :meth:`GaussianDensity.held_out_scores`.

    Returns
    -------
    log_density : ndarray of shape (n_samples,), float64

    Raises
    ------
    ValueError
        The samples are all duplicates of one.
    """
    if unseen is None and hasattr(density, "held_out_scores_"):  # known from the fit
        return density.held_out_scores_
    if hasattr(density, "held_out_scores"):
        return np.asarray(density.held_out_scores(X, groups=groups, unseen=unseen), dtype=np.float64)
    scored = X if unseen is None else unseen
    scores = np.empty(len(X))
    for train, test in folds(groups, len(X)):
        rest = X[train] if len(train) > 1 else np.repeat(X[train], 2, axis=0)  # which any density can be fitted on
        scores[test] = fit_density(density, rest, fold=True).score_samples(scored[test])
    return scores


def fit_density(density: Any, X: np.ndarray, groups: Any = None, *, fold: bool = False) -> Any:
    """Fit a copy of `density`, to groups of duplicates if it takes them.

    If a `fold` has fewer samples than components of a mixture or neighbours, their number is reduced.
    """
    part = clone(density)
    if fold and isinstance(part, GaussianMixture):
        part.set_params(n_components=min(part.n_components, len(X)))
    if fold and isinstance(part, KNNDensity):
        part.set_params(n_neighbors=min(part.n_neighbors, len(X)))
    return part.fit(X, groups=groups) if has_fit_parameter(part, "groups") else part.fit(X)


def folds(groups: Any, n: int, count: int = _FOLDS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return at most `count` splits of `n` samples that hold each out once, and keep groups together.

    Raises
    ------
    ValueError
        There is one group only.
    """
    groups = np.arange(n) if groups is None else np.asarray(groups)
    distinct = len(np.unique(groups))
    if distinct < 2:
        raise ValueError(f"All {n} samples are duplicates of one: give samples that differ.")
    splitter = GroupKFold(min(count, distinct), shuffle=True, random_state=0)
    return list(splitter.split(groups, groups=groups))


def resolve_density(density: Any, *, discrepancy: bool = False) -> Any:
    """Turn "auto", "gaussian", "gmm" or "knn" into an estimator; refuse what cannot score samples.

    Parameters
    ----------
    density : str or estimator
    discrepancy : bool, default=False
        Whether it is for discrepancies, whose scales differ from block to block.

    Raises
    ------
    ValueError
        An unknown name.
    TypeError
        An object without ``fit`` and ``score_samples``.
    """
    if isinstance(density, str):
        named = {
            "auto": AutoDensity,
            "gaussian": lambda: GaussianDensity(target="diagonal" if discrepancy else "identity"),
            "gmm": lambda: GaussianMixture(n_components=5, reg_covar=1e-6),
            "knn": KNNDensity,
        }
        if density not in named:
            raise ValueError(f"A density by name is one of {sorted(named)}, got {density!r}.")
        return named[density]()
    if not (hasattr(density, "fit") and hasattr(density, "score_samples")):
        raise TypeError(f"A density needs fit and score_samples; {type(density).__name__} lacks them.")
    return density
