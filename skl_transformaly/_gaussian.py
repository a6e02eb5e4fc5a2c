"""GaussianDensity: one Gaussian in all dimensions, regularised for few samples."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from numbers import Real
from typing import Any

import numpy as np
from scipy.linalg import eigh
from sklearn.base import BaseEstimator, DensityMixin
from sklearn.utils import check_consistent_length, gen_batches
from sklearn.utils.extmath import row_norms
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted, validate_data

from skl_transformaly.utils._compat import Interval, StrOptions, fit_context
from skl_transformaly.utils._fitting import all_or_nothing
from skl_transformaly.utils._labels import folds, group_sizes

__all__ = ["FLOATS", "GaussianDensity", "LogDensity"]

# What densities take as it is; all else becomes the first.
FLOATS = (np.float64, np.float32)

# Directions whose variance is below this share of the largest are rounding, not variation.
_RANK_TOLERANCE = 1e-12
# Products of unit rows, off the diagonal, whose squares are less than rounding even when a thousand are added up.
_NEARLY_ORTHONORMAL = 1e-10
# With a diagonal target and so many features at most, each sample is left out by an eigendecomposition of its own.
_MOST_RESCALED = 64
# Of the variance; if a sample's absence leaves less of it, its held-out density comes from a fit without it.
_DECISIVE = 1e-8
# Elements of their matrices that are held at a time
_MATRICES = 2**14
# Rows that are scored at a time: a dozen arrays of their size are needed besides.
_ROWS = 256
# Rows that are centred at a time where samples outnumber features, so that no copy of all of them is needed
_CENTRED = 1024


class LogDensity(DensityMixin, BaseEstimator):
    """What the densities share: checked input, and `score` as the mean log-density, which is what a grid search wants.

    It means nothing where fits have origins or units of their own, so that such densities have no `score`.

    A density defines ``_fit(X)``, ``_log_density(X)`` and ``_held_out(X, groups, unseen)``, of checked arrays in
    float64 or float32. It computes in float64 either way, some rows at a time, so that float32 takes half the memory.
    """

    _fit: Callable[[np.ndarray], None]
    _log_density: Callable[[np.ndarray], np.ndarray]
    _held_out: Callable[[np.ndarray, Any, np.ndarray | None], np.ndarray]
    _comparable = True  # whether densities that were fitted with other settings, or to other samples, can be compared

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> Any:
        """Fit the density to samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least 2 samples.
        y : ignored

        Returns
        -------
        self : object
            Itself.

        Raises
        ------
        ValueError
            There are too few samples, or `X` contains NaN or infinity.
        """
        self._fit(validate_data(self, X, dtype=FLOATS, ensure_min_samples=2))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Compute the log-density of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        log_density : ndarray of shape (n_samples,), float64
            In nats; of :class:`AutoDensity` in standard deviations, where 0 is the mean of held-out training samples.
        """
        return self._log_density(self._checked(X))

    def held_out_scores(self, X: Any, *, groups: Any = None, unseen: Any = None) -> np.ndarray:
        """Compute the log-density of each training sample without itself and its duplicates.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            The samples that `fit` saw, in their order.
        groups : array-like of shape (n_samples,), default=None
            Samples of one group are duplicates, which are left out together. None takes each sample as its own group.
        unseen : array-like of shape (n_samples, n_features), default=None
            What to score instead of `X`: the same samples as measured by something that had not seen them.

        Returns
        -------
        log_density : ndarray of shape (n_samples,), float64
            As from `score_samples`.
        """
        X = self._checked(X)
        unseen = None if unseen is None else self._checked(unseen)
        check_consistent_length(X, unseen)
        return self._held_out(X, groups, unseen)

    @available_if(lambda self: self._comparable)
    def score(self, X: Any, y: Any = None) -> float:
        """Compute the mean log-density of `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        score : float
            As from `score_samples`.
        """
        return float(np.mean(self.score_samples(X)))

    def _checked(self, X: Any) -> np.ndarray:
        check_is_fitted(self)
        return validate_data(self, X, dtype=FLOATS, reset=False)


class GaussianDensity(LogDensity):
    """Log-density of one Gaussian in all dimensions, regularised by shrinkage.

    The covariance is ``(1 - s) S + (s + ridge) T``: the empirical one, ``S``, drawn towards a diagonal target ``T`` by
    a share ``s``. It has full rank however few the samples, so that 20 samples in 1,000 dimensions are scored by all of
    them. Only the directions that the samples span are stored; the rest has one variance.

    Parameters
    ----------
    shrinkage : float or "ledoit-wolf", default="ledoit-wolf"
        s, in [0, 1]. "ledoit-wolf" is the share that minimises the expected squared error of the covariance [2]_, and
        1 for two samples. 0 leaves the empirical covariance as it is, as in the paper [1]_.
    target : {"identity", "diagonal"}, default="identity"
        T: the mean variance in all directions, or each feature's own variance. The latter is for features of different
        units: neither the fit nor its regularisation depends on these.
    ridge : float, default=1e-6
        Added to the shrinkage in any case, as a share of the target. Directions without any variance get this one.

    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
    scale_ : ndarray of shape (n_features,)
        Standard deviations of the features with ``target="diagonal"`` (of a constant one, its absolute value, or 1 for
        zero), else ones.
    components_ : ndarray of shape (k, n_features)
        Orthonormal directions that the scaled samples span, k <= min(n_samples - 1, n_features).
    variances_ : ndarray of shape (k,)
        Empirical variances in these directions, with denominator n, before shrinkage.
    floor_ : float
        Variance that shrinkage and ridge add in every direction.
    shrinkage_ : float
        The shrinkage in use.
    n_samples_ : int
    n_features_in_ : int

    See Also
    --------
    KNNDensity : Makes no assumption about the shape of the distribution.

    Notes
    -----
    `held_out_scores` are computed in closed form, with the shrinkage of all samples and the target of the others: in
    units of a variance that a sample is part of, it could not be far away. With a diagonal target and more than 64
    features, such scores come from 20 folds. Where all other samples are the same, the target stays that of all.

    References
    ----------
    .. [1] M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR
       Workshops 2022, Section 3.3.
    .. [2] O. Ledoit and M. Wolf, "A Well-Conditioned Estimator for Large-Dimensional Covariance Matrices",
       Journal of Multivariate Analysis 88(2), 2004.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly import GaussianDensity
    >>> X = np.random.default_rng(0).normal(size=(20, 100))
    >>> density = GaussianDensity().fit(X)
    >>> bool(density.score_samples(np.zeros((1, 100)))[0] > density.score_samples(np.full((1, 100), 3.0))[0])
    True
    """

    _parameter_constraints: dict = {
        "shrinkage": [StrOptions({"ledoit-wolf"}), Interval(Real, 0, 1, closed="both")],
        "target": [StrOptions({"identity", "diagonal"})],
        "ridge": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, *, shrinkage: float | str = "ledoit-wolf", target: str = "identity", ridge: float = 1e-6):
        self.shrinkage = shrinkage
        self.target = target
        self.ridge = ridge

    def _fit(self, X: np.ndarray) -> None:
        n, d = X.shape
        mean = X.mean(axis=0, dtype=np.float64)
        # of the mean of n equal values: a feature that varies less is constant
        rounding = n * np.finfo(np.float64).eps * np.abs(mean)
        scale = np.ones(d)
        if self.target == "diagonal":
            deviation = np.sqrt(sum(row_norms(R.T, squared=True) for R in _centred(X, mean, scale)) / n)
            # a constant feature is in units of itself
            scale = np.where(deviation > rounding, deviation, np.abs(mean))
            scale[scale == 0] = 1.0
        variances, components = _principal_directions(X, mean, scale)
        mean_variance = float(variances.sum()) / d
        if mean_variance <= (rounding / scale).max() ** 2:
            mean_variance = 0.0
        shrinkage = self.shrinkage
        if shrinkage == "ledoit-wolf":
            norms = np.concatenate([row_norms(R, squared=True) for R in _centred(X, mean, scale)])
            shrinkage = _ledoit_wolf(norms, d, variances) if mean_variance else 0.0
        self.mean_, self.scale_ = mean, scale
        self.variances_, self.components_ = variances, components
        self.shrinkage_ = float(shrinkage)
        self.floor_ = (self.shrinkage_ + self.ridge) * (mean_variance or 1.0)
        self.n_samples_ = n

    @property
    def covariance_(self) -> np.ndarray:
        """Covariance of the features, of shape (n_features, n_features), shrinkage and ridge included."""
        check_is_fitted(self)
        empirical = (self.components_.T * ((1 - self.shrinkage_) * self.variances_)) @ self.components_
        empirical[np.diag_indices_from(empirical)] += self.floor_
        return empirical * np.outer(self.scale_, self.scale_)

    def _log_density(self, X: np.ndarray) -> np.ndarray:
        variances = self._variances()
        squares = np.empty(len(X))
        for rows in gen_batches(len(X), _ROWS):
            inside, outside = self._split(self._centred(X[rows]))
            squares[rows] = (inside**2 / variances).sum(axis=1)
            if outside is not None:
                squares[rows] += (outside**2).sum(axis=1) / self.floor_
        return self._constant(np.log(variances).sum(), self.floor_) - 0.5 * squares

    def terms(self, X: Any) -> np.ndarray:
        """Take the log-density apart by features.

        Feature j contributes ``-(x - mean)_j (Sigma^-1 (x - mean))_j / 2``, and an equal share of the constant.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        terms : ndarray of shape (n_samples, n_features), float64
            In nats; rows sum to the log-density. A feature that makes up for others can have a positive term.
        """
        delta = self._centred(self._checked(X))
        variances = self._variances()
        constant = self._constant(np.log(variances).sum(), self.floor_) / delta.shape[1]
        return constant - 0.5 * delta * self._solve(delta, variances, self.floor_)

    def held_out_terms(self, X: Any, *, groups: Any = None, unseen: Any = None) -> np.ndarray:
        """Take the held-out log-density apart by features, as `terms` does.

        Parameters
        ----------
        X, groups, unseen
            As in `held_out_scores`.

        Returns
        -------
        terms : ndarray of shape (n_samples, n_features), float64
            Rows sum to the held-out log-density.
        """
        X = self._checked(X)
        unseen = None if unseen is None else self._checked(unseen)
        if self._needs_folds():
            return self._by_folds(X, groups, unseen, GaussianDensity.terms)
        terms = []
        for scores, delta, solved in self._without_each(X, groups, unseen):
            quadratic = -0.5 * delta * solved
            terms.append(quadratic + ((scores - quadratic.sum(axis=1)) / delta.shape[1])[:, np.newaxis])
        return np.concatenate(terms)

    def _held_out(self, X: np.ndarray, groups: Any, unseen: np.ndarray | None) -> np.ndarray:
        if self._needs_folds():
            return self._by_folds(X, groups, unseen, GaussianDensity.score_samples)
        return np.concatenate([scores for scores, _, _ in self._without_each(X, groups, unseen)])

    def _needs_folds(self) -> bool:
        return self.target == "diagonal" and len(self.mean_) > _MOST_RESCALED

    def _by_folds(
        self, X: np.ndarray, groups: Any, unseen: np.ndarray | None, measure: Callable[[Any, np.ndarray], np.ndarray]
    ) -> np.ndarray:
        """Measure samples by densities of the other folds, with the shrinkage of all samples."""
        self._check_samples(X)
        scored = X if unseen is None else unseen
        found: np.ndarray | None = None
        for train, test in folds(groups, len(X)):
            rest = X[train] if len(train) > 1 else np.repeat(X[train], 2, axis=0)
            values = measure(self._refitted(rest), scored[test])
            found = np.empty((len(X), *values.shape[1:])) if found is None else found
            found[test] = values
        assert found is not None  # there are folds
        return found

    def _refitted(self, X: np.ndarray) -> GaussianDensity:
        """Return a density of other samples, with the shrinkage of these."""
        return GaussianDensity(shrinkage=self.shrinkage_, target=self.target, ridge=self.ridge).fit(X)

    def _check_samples(self, X: np.ndarray) -> None:
        if len(X) != self.n_samples_:
            raise ValueError(f"X must be the {self.n_samples_} samples that fit saw, got {len(X)}.")

    def _without_each(
        self, X: np.ndarray, groups: Any, unseen: np.ndarray | None
    ) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """Yield held-out log-densities, scaled deviations from held-out means, and held-out inverses times these.

        Some rows at a time: singles as if all were, then those of groups in their places.
        """
        n = self.n_samples_
        self._check_samples(X)
        several = group_sizes(groups, n) > 1
        named = np.arange(n) if groups is None else np.asarray(groups)
        variances = self.variances_ @ self.components_**2
        for rows in gen_batches(n, _ROWS):
            r = self._centred(X[rows])
            scored = r if unseen is None else self._centred(unseen[rows])
            left = self._left_variances(variances, r**2, r, 1)
            found = self._without_one(r, scored, self._floors(left, variances))
            decisive = self._is_decisive(left, variances) & ~several[rows]
            for label in np.unique(named[rows][several[rows]]):
                members = np.flatnonzero(named[rows] == label)
                group = self._centred(X[named == label])
                left = self._left_variances(variances, (group**2).sum(axis=0), group.sum(axis=0), len(group))
                floor = self._floors(left, variances)[0]
                _put(found, members, self._without_group(group, scored[members], floor))
                decisive[members] = self._is_decisive(left, variances)
            for label in np.unique(named[rows][decisive]):
                members = np.flatnonzero(named[rows] == label)
                others = X[named != label]
                if len(others) > 1 and np.ptp(others, axis=0).any():
                    _put(found, members, self._without(others, (X if unseen is None else unseen)[rows][members]))
            yield found

    def _left_variances(self, variances: np.ndarray, squares: np.ndarray, sums: np.ndarray, count: int) -> np.ndarray:
        """Variances of the scaled features (B, d) without `count` samples, given sums of these and of their squares."""
        rest = max(self.n_samples_ - count, 1)
        return np.atleast_2d(self.n_samples_ / rest * variances - squares / rest - (sums / rest) ** 2)

    def _floors(self, left: np.ndarray, variances: np.ndarray) -> np.ndarray:
        """What shrinkage and ridge add in every direction where these variances (B, d) are left; `floor_` of none."""
        some = left.sum(axis=1) > _DECISIVE * variances.sum()
        return np.where(some, (self.shrinkage_ + self.ridge) * left.mean(axis=1), self.floor_)

    def _is_decisive(self, left: np.ndarray, variances: np.ndarray) -> np.ndarray:
        """Whether nearly all variance is gone without a sample: what is left (B, d) is a difference of like numbers."""
        if self.target == "diagonal":
            return np.any((left <= _DECISIVE * variances) & (variances > _RANK_TOLERANCE), axis=1)
        total = variances.sum()
        return (left.sum(axis=1) <= _DECISIVE * total) & (total > 0)

    def _without(self, others: np.ndarray, scored: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_without_one`, by a fit to the others."""
        part = self._refitted(others)
        delta, variances = part._centred(scored), part._variances()
        solved = part._solve(delta, variances, part.floor_)
        constant = part._constant(np.log(variances).sum(), part.floor_)
        return constant - 0.5 * (delta * solved).sum(axis=1), delta, solved

    def _without_one(
        self, r: np.ndarray, scored: np.ndarray, floors: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Leave each row `r` out alone, which takes a rank-one term from the covariance and moves the mean.

        `floors` (B,) are what is added to all variances without each.
        """
        n, rest = self.n_samples_, max(self.n_samples_ - 1, 1)
        delta = scored + r / rest
        if self.target == "diagonal":
            empirical, found = n / rest * self._empirical(), []
            for rows in gen_batches(len(r), max(1, _MATRICES // r.shape[1] ** 2)):
                outer = r[rows, :, np.newaxis] * r[rows, np.newaxis, :]
                found.append(self._rescaled(empirical - n / rest**2 * outer, delta[rows]))
            scores, delta, solved = map(np.concatenate, zip(*found))
            return scores, delta, solved
        # S without the sample is n / (n - 1) S - n / (n - 1)^2 r r'
        removed = (1 - self.shrinkage_) * n / rest**2
        variances = (1 - self.shrinkage_) * n / rest * self.variances_ + floors[:, np.newaxis]
        inside = r @ self.components_.T  # all of `r`: what would be outside is rounding
        solved_r = (inside / variances) @ self.components_
        own = scored is r  # then `delta` is a multiple of it
        solved = (1 + 1 / rest) * solved_r if own else self._solve(delta, variances, floors[:, np.newaxis])
        leverage = np.minimum(removed * (inside**2 / variances).sum(axis=1), 1 - 1e-12)
        along = (solved * r).sum(axis=1)
        solved = solved + (removed * along / (1 - leverage))[:, np.newaxis] * solved_r
        log_determinant = np.log(variances).sum(axis=1) + np.log1p(-leverage)
        return self._constant(log_determinant, floors) - 0.5 * (delta * solved).sum(axis=1), delta, solved

    def _without_group(
        self, group: np.ndarray, scored: np.ndarray, floor: float
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Leave all rows of `group` out together, of which copies may differ a little.

        S without the group is n / (n - g) S - R'R / (n - g) - m m', where m is the sum of its rows R over n - g.
        `floor` is what is added to all variances then.
        """
        n, shrunk = self.n_samples_, 1 - self.shrinkage_
        rest = max(n - len(group), 1)  # of samples that are all alike nothing would be left
        mean = group.sum(axis=0) / rest
        if self.target == "diagonal":
            left_over = n / rest * self._empirical() - group.T @ group / rest - np.outer(mean, mean)
            return self._rescaled(left_over[np.newaxis], scored + mean)
        group, counts = np.unique(group, axis=0, return_counts=True)
        removed = np.sqrt(shrunk) * np.vstack([group * np.sqrt(counts / rest)[:, np.newaxis], mean])
        if len(removed) > removed.shape[1]:
            removed = np.linalg.qr(removed, mode="r")  # which has the same product with itself
        variances = shrunk * n / rest * self.variances_ + floor
        delta = scored + mean
        inside = removed @ self.components_.T  # all of them, as in `_without_one`
        solved_removed, solved = (inside / variances) @ self.components_, self._solve(delta, variances, floor)
        left = np.eye(len(removed)) - (inside / variances) @ inside.T
        values, vectors = np.linalg.eigh(left)
        values = np.maximum(values, 1e-12)
        along = delta @ solved_removed.T @ vectors
        solved = solved + (along / values) @ (vectors.T @ solved_removed)
        log_determinant = np.log(variances).sum() + np.log(values).sum()
        return self._constant(log_determinant, floor) - 0.5 * (delta * solved).sum(axis=1), delta, solved

    def _empirical(self) -> np.ndarray:
        """Covariance of the scaled features, (d, d), without shrinkage."""
        return (self.components_.T * self.variances_) @ self.components_

    def _rescaled(self, covariances: np.ndarray, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """As `_without_one`, given what is left of the covariance, for each sample or for all of them, (B or 1, d, d).

        The target is the variances that are left. A feature without any keeps its scale.
        """
        d = delta.shape[1]
        variances = np.diagonal(covariances, axis1=1, axis2=2)
        varied = variances > _RANK_TOLERANCE
        mean_variance = varied.mean(axis=1, keepdims=True)
        floor = (self.shrinkage_ + self.ridge) * np.where(mean_variance > 0, mean_variance, 1.0)
        shrunk = (1 - self.shrinkage_) * covariances
        shrunk[:, np.arange(d), np.arange(d)] += floor * np.where(varied, variances, 1.0)
        values, vectors = np.linalg.eigh(shrunk)
        values = np.maximum(values, 1e-12 * floor)
        # sums in the same order for each row, so that copies have the same scores to the bit
        along = np.einsum("bij,bi->bj", np.broadcast_to(vectors, (len(delta), d, d)), delta)
        solved = np.einsum("bij,bj->bi", np.broadcast_to(vectors, (len(delta), d, d)), along / values)
        log_determinant = np.log(values).sum(axis=1)
        constant = -0.5 * (d * np.log(2 * np.pi) + log_determinant) - np.log(self.scale_).sum()
        return constant - 0.5 * (delta * solved).sum(axis=1), delta, solved

    def _centred(self, X: np.ndarray) -> np.ndarray:
        return (X - self.mean_) / self.scale_

    def _split(self, delta: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Coordinates within the directions that the training samples span, and what is outside of these."""
        inside = delta @ self.components_.T
        if len(self.components_) == delta.shape[1]:
            return inside, None
        return inside, delta - inside @ self.components_

    def _variances(self) -> np.ndarray:
        return (1 - self.shrinkage_) * self.variances_ + self.floor_

    def _solve(self, delta: np.ndarray, variances: np.ndarray, floor: Any) -> np.ndarray:
        """Covariance^-1 `delta`, with these variances, (k,) or (n, k), within the span, and `floor` outside of it."""
        inside, outside = self._split(delta)
        solved = (inside / variances) @ self.components_
        return solved if outside is None else solved + outside / floor

    def _constant(self, log_determinant: Any, floor: Any) -> Any:
        """The log-density at the mean; `log_determinant` is that of the scaled covariance within the span."""
        d = len(self.mean_)
        outside = (d - len(self.components_)) * np.log(floor)
        return -0.5 * (d * np.log(2 * np.pi) + log_determinant + outside) - np.log(self.scale_).sum()


def _put(arrays: tuple[np.ndarray, ...], rows: np.ndarray, values: tuple[np.ndarray, ...]) -> None:
    for array, part in zip(arrays, values):
        array[rows] = part


def _centred(X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the rows of (X - mean) / scale, some at a time."""
    for rows in gen_batches(len(X), _CENTRED):
        yield (X[rows] - mean) / scale


def _ledoit_wolf(norms: np.ndarray, d: int, variances: np.ndarray) -> float:
    """The shrinkage of Ledoit and Wolf, Lemma 3.2 to 3.5, of centred rows with these squared norms and variances.

    scikit-learn's function takes the product of all pairs of features; norms of rows and the variances are enough.
    """
    unit = variances.mean() if len(variances) else 1.0  # or squares would overflow or underflow
    norms, variances = norms / unit, variances / unit
    total, squares = variances.sum(), (variances**2).sum()
    if not squares > 0 or (d == 1 and len(norms) > 2):  # nothing to shrink, or the target is what is shrunk
        return 0.0
    error = ((norms**2).sum() / len(norms) - squares) / len(norms)
    if not error > 1e-12 * squares:  # of two samples, which say nothing of how far off their covariance is
        return 1.0
    spread = squares - total**2 / d  # d times the squared distance of S from a multiple of the identity
    return float(min(error / max(spread, 1e-12 * squares), 1.0))  # where S is such a multiple, all is error


def _principal_directions(X: np.ndarray, mean: np.ndarray, scale: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Variances (denominator n) and orthonormal directions of centred rows, by the smaller of their two products."""
    n, d = X.shape
    with np.errstate(over="ignore", invalid="ignore"):
        if d <= n:
            products = sum(R.T @ R for R in _centred(X, mean, scale)) / n
        else:
            R = (X - mean) / scale
            products = R @ R.T / n
    if not np.isfinite(products).all():
        raise ValueError(
            f"The squares of the samples are beyond float64; the largest is {np.abs(X).max():.3g}. Scale them."
        )
    values, vectors = eigh(products.T, overwrite_a=True, check_finite=False, driver="evd")
    kept = values > _RANK_TOLERANCE * max(values.max(), 0.0)
    values = values[kept]
    if d <= n:
        return values, np.ascontiguousarray(vectors.T[kept])
    directions = vectors[:, kept].T @ R
    if not len(directions):
        return values, directions
    lengths = np.linalg.norm(directions, axis=1)
    directions /= lengths[:, np.newaxis]
    excess = directions @ directions.T
    np.fill_diagonal(excess, excess.diagonal() - 1)
    if np.abs(excess).max() < _NEARLY_ORTHONORMAL:
        # the first term of the series for (I + excess)^-1/2, in a fraction of the time of what follows
        return lengths**2 / n, directions - 0.5 * excess @ directions
    # orthonormal to rounding even where variances span many orders
    directions = np.linalg.qr(directions.T)[0].T
    return (directions @ R.T).var(axis=1), directions
