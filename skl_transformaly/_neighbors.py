"""Densities by nearest neighbours."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.special import gammaln
from sklearn.neighbors import NearestNeighbors
from sklearn.utils import gen_batches
from sklearn.utils.validation import validate_data

from skl_transformaly._gaussian import FLOATS, LogDensity
from skl_transformaly.utils._compat import Interval, fit_context
from skl_transformaly.utils._fitting import all_or_nothing
from skl_transformaly.utils._labels import group_sizes

__all__ = ["KNNDensity", "LocalKNNDensity"]

# Distances that are held at a time where neighbours of neighbours are looked up.
_MOST_DISTANCES = 2**16
# Rows are moved if they are so many times as far from zero as they differ: distances are computed from their products.
_FAR_OFF = 1e3


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
    `n_neighbors` other samples are left there, the farthest of these is taken. So with as many neighbours as samples,
    held-out scores are higher than those of new samples, and more of these are flagged than was promised.

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
                f"max_samples={self.max_samples}: give more, or {type(self).__name__}(n_neighbors=...) with fewer."
            )
        mean = X.mean(axis=0, dtype=np.float64)
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
        mean = samples.mean(axis=0, dtype=np.float64)
        far_off = np.linalg.norm(mean) > _FAR_OFF * 1e12 * floor
        self._origin = mean.astype(samples.dtype) if far_off else None
        self.neighbors_ = NearestNeighbors(n_neighbors=self.n_neighbors, n_jobs=self.n_jobs).fit(self._moved(samples))

    def _moved(self, X: np.ndarray) -> np.ndarray:
        return X if self._origin is None else X - self._origin

    def _log_density(self, X: np.ndarray) -> np.ndarray:
        distances = self._nearest(X)[0]
        return self._by_distance(distances[:, -1], len(self.samples_), distances.shape[1])

    def _held_out(self, X: np.ndarray, groups: Any, unseen: np.ndarray | None) -> np.ndarray:
        X = X if unseen is None else unseen
        labels, sizes = self._groups(X, groups)
        n = len(self.samples_)
        left = np.maximum(n - sizes[labels], 1)
        wanted = np.minimum(self.neighbors_.n_neighbors, left)
        kept, reach = labels[self.positions_], int((wanted + sizes[labels]).max())
        nearest = np.empty(len(X))
        for rows in gen_batches(len(X), max(1, _MOST_DISTANCES // reach)):
            distances, _ = self._others(X[rows], labels[rows], kept, reach)
            nearest[rows] = np.take_along_axis(distances, wanted[rows, np.newaxis] - 1, axis=1)[:, 0]
        nearest = np.where(np.isfinite(nearest), nearest, 0.0)  # all samples are alike
        return self._by_distance(nearest, left, wanted)

    def _nearest(self, X: np.ndarray, count: int | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Distances to the nearest kept samples, and which these are."""
        # rounded as the samples are, so that a sample of the fit is where it was then
        return self.neighbors_.kneighbors(self._moved(X.astype(self.samples_.dtype, copy=False)), n_neighbors=count)

    def _groups(self, X: np.ndarray, groups: Any) -> tuple[np.ndarray, np.ndarray]:
        """Groups of the fitted samples, numbered, and how many kept samples each has."""
        if len(X) != self.n_samples_fit_:
            raise ValueError(f"X must be the {self.n_samples_fit_} samples that fit saw, got {len(X)}.")
        group_sizes(groups, len(X))  # refuses other lengths
        labels = np.arange(len(X)) if groups is None else np.unique(groups, return_inverse=True)[1]
        return labels, np.bincount(labels[self.positions_], minlength=labels.max() + 1)

    def _others(self, X: np.ndarray, labels: np.ndarray, kept: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the nearest kept samples of other groups: distances in ascending order, and which samples they are.

        Of `reach` neighbours (or as many as there are), those of the same group come last, infinitely far.
        """
        distances, found = self._nearest(X, min(len(kept), reach))
        distances = np.where(kept[found] == labels[:, np.newaxis], np.inf, distances)
        order = np.argsort(distances, axis=1, kind="stable")
        return np.take_along_axis(distances, order, axis=1), np.take_along_axis(found, order, axis=1)

    def _by_distance(self, distance: np.ndarray, n: Any, k: Any) -> np.ndarray:
        d = self.samples_.shape[1]
        log_ball = d / 2 * np.log(np.pi) - gammaln(d / 2 + 1)
        return np.log(k) - np.log(n) - log_ball - d * np.log(np.maximum(distance, self.floor_))


class LocalKNNDensity(KNNDensity):
    """Log-density by nearest neighbours, relative to how far apart these neighbours lie from their own.

    ``log p(x) = -d (log r(x) - s mean_j log r(x_j))`` up to a constant. ``r(x)`` is the mean distance of ``x`` to its k
    nearest training samples ``x_j``, ``r(x_j)`` the mean distance of each of these to its own k, d the number of
    features and s the `scaling`. With 0, the same distance counts the same everywhere. With 1, it counts relative to
    what is usual around the neighbours, as in the local outlier factor [1]_; then samples in sparse places are no less
    normal than others. In between, a kind of samples that differ much from each other and one whose samples are alike
    can both be normal.

    Parameters
    ----------
    n_neighbors : int, default=20
        k; at most the number of training samples.
    scaling : float, default=0.5
        s, in [0, 1].
    max_samples : int or None, default=None
        Seek neighbours among at most so many training samples, taken at even steps; None is all.
    n_jobs : int, default=None
        As in :class:`sklearn.neighbors.NearestNeighbors`.

    Attributes
    ----------
    neighbors_, samples_, positions_, n_samples_fit_, floor_, n_features_in_
        As of :class:`KNNDensity`.
    distances_ : ndarray of shape (n_kept,)
        Mean distance of each kept sample to its nearest ones, without itself and its duplicates: r(x_j).
    scaling_ : float
        The `scaling` of the fit.

    Notes
    -----
    `held_out_scores` leaves a sample and its duplicates out of its neighbours' distances, too. If fewer than
    `n_neighbors` others are left, the mean is over these.

    References
    ----------
    .. [1] M. M. Breunig, H.-P. Kriegel, R. T. Ng and J. Sander, "LOF: Identifying Density-Based Local Outliers", SIGMOD
       2000.

    Examples
    --------
    The same distance is far from samples that lie close together, and near to samples that do not:

    >>> from skl_transformaly import LocalKNNDensity
    >>> close, apart = [[0.0], [0.1], [0.2]], [[9.0], [12.0], [15.0]]
    >>> density = LocalKNNDensity(n_neighbors=2).fit(close + apart)
    >>> scores = density.score_samples([[-3.0], [18.0]])
    >>> bool(scores[0] < scores[1])
    True
    """

    _parameter_constraints: dict = {
        **KNNDensity._parameter_constraints,
        "scaling": [Interval(Real, 0, 1, closed="both")],
    }
    _comparable = False  # the constant depends on the scaling, and on the unit of the features

    def __init__(
        self,
        *,
        n_neighbors: int = 20,
        scaling: float = 0.5,
        max_samples: int | None = None,
        n_jobs: int | None = None,
    ):
        super().__init__(n_neighbors=n_neighbors, max_samples=max_samples, n_jobs=n_jobs)
        self.scaling = scaling

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None, *, groups: Any = None) -> LocalKNNDensity:
        """Fit the density to samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least 2 samples.
        y : ignored
        groups : array-like of shape (n_samples,), default=None
            Samples of one group are duplicates: none counts among the neighbours of another.

        Returns
        -------
        self : LocalKNNDensity

        Raises
        ------
        ValueError
            Fewer than 2 samples or than `n_neighbors`, or NaN or infinity in `X`.
        """
        X = validate_data(self, X, dtype=FLOATS, ensure_min_samples=2)
        self._fit(X)
        labels, sizes = self._groups(X, groups)
        kept = labels[self.positions_]
        self.distances_ = np.empty(len(kept))
        reach = self.neighbors_.n_neighbors + int(sizes.max())
        for rows in gen_batches(len(kept), max(1, _MOST_DISTANCES // reach)):
            distances, _ = self._others(self.samples_[rows], kept[rows], kept, reach)
            self.distances_[rows] = self._mean(distances, np.isfinite(distances))
        self.scaling_ = float(self.scaling)
        return self

    def _surroundings(self, kept: np.ndarray, reach: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the neighbours of each kept sample that any held-out score needs: distances and positions (n_kept, m).

        These are the nearest k of other groups, and those without any one of these groups. So m is a few k, however
        large a group is. Distances ascend; where there are fewer, the last ones are infinite.
        """
        k, tables = self.neighbors_.n_neighbors, []
        for rows in gen_batches(len(kept), max(1, _MOST_DISTANCES // reach)):
            distances, found = self._others(self.samples_[rows], kept[rows], kept, reach)
            rank = _rank_in_group(kept[found])
            most = np.maximum.accumulate(rank + 1, axis=1)  # of one group, up to each neighbour
            earlier = np.pad(most, ((0, 0), (1, 0)))[:, :-1]
            needed = np.isfinite(distances) & (rank < k) & (np.arange(distances.shape[1]) - earlier < k)
            order = np.argsort(~needed, axis=1, kind="stable")[:, : max(1, int(needed.sum(axis=1).max()))]
            tables.append(
                [np.take_along_axis(part, order, axis=1) for part in (np.where(needed, distances, np.inf), found)]
            )
        width = max(distances.shape[1] for distances, _ in tables)
        distances, found = (
            np.concatenate([np.pad(part, ((0, 0), (0, width - part.shape[1])), constant_values=fill) for part in parts])
            for parts, fill in zip(zip(*tables), (np.inf, 0))
        )
        return distances, found

    def _mean(self, distances: np.ndarray, usable: np.ndarray) -> np.ndarray:
        """Mean of the first `n_neighbors` usable distances of each row, which ascend; the least one without any."""
        first = usable & (np.cumsum(usable, axis=-1) <= self.neighbors_.n_neighbors)
        sums = np.where(first, distances, 0.0).sum(axis=-1)
        return np.maximum(sums / np.maximum(first.sum(axis=-1), 1), self.floor_)

    def _log_density(self, X: np.ndarray) -> np.ndarray:
        distances, found = self._nearest(X)
        own = np.maximum(distances.mean(axis=1), self.floor_)
        return self._relative(own, np.log(self.distances_)[found].mean(axis=1))

    def _held_out(self, X: np.ndarray, groups: Any, unseen: np.ndarray | None) -> np.ndarray:
        scored = X if unseen is None else unseen
        labels, sizes = self._groups(scored, groups)
        kept, k, largest = labels[self.positions_], self.neighbors_.n_neighbors, int(sizes.max())
        # enough that k are left without their own group and the one that is held out
        around, whose = self._surroundings(kept, k + 2 * largest)
        known = unseen is None and len(kept) == len(X)  # all samples are kept: they have been looked up already
        scores = np.empty(len(X))
        held = k * around.shape[1] if known else max(k * around.shape[1], k + largest)
        for rows in gen_batches(len(X), max(1, _MOST_DISTANCES // held)):
            if known:
                distances, near = around[rows], whose[rows]
            else:
                distances, near = self._others(scored[rows], labels[rows], kept, k + largest)
            distances, near = distances[:, :k], near[:, :k]
            usable = np.isfinite(distances)
            own = self._mean(distances, usable)
            of_near = around[near]
            others = np.isfinite(of_near) & (kept[whose[near]] != labels[rows, np.newaxis, np.newaxis])
            # a neighbour that nothing else is left around: how far it is from the sample itself
            lonely = usable & ~others.any(axis=2)
            scale = np.log(np.where(lonely, np.maximum(distances, self.floor_), self._mean(of_near, others)))
            count = np.maximum(usable.sum(axis=1), 1)
            scores[rows] = self._relative(own, np.where(usable, scale, 0.0).sum(axis=1) / count)
        return scores

    def _relative(self, own: np.ndarray, of_neighbors: np.ndarray) -> np.ndarray:
        return -self.samples_.shape[1] * (np.log(own) - self.scaling_ * of_neighbors)


def _rank_in_group(groups: np.ndarray) -> np.ndarray:
    """Count for each place of each row (n, m) how many before it are of the same group.

    >>> _rank_in_group(np.array([[7, 3, 7, 7, 3]]))
    array([[0, 0, 1, 2, 1]])
    """
    order = np.argsort(groups, axis=1, kind="stable")
    ordered = np.take_along_axis(groups, order, axis=1)
    places = np.arange(groups.shape[1])
    starts = np.where(np.diff(ordered, axis=1, prepend=ordered[:, :1] - 1) != 0, places, 0)
    rank = np.empty_like(order)
    np.put_along_axis(rank, order, places - np.maximum.accumulate(starts, axis=1), axis=1)
    return rank
