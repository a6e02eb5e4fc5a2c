"""Densities of a feature space.

A density computes the log-density of new samples (``score_samples``), and *held-out* log-densities of the samples of
its fit (``held_out_scores``): those of a fit without the sample and its duplicates.
"""

from __future__ import annotations

from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.utils.validation import has_fit_parameter, validate_data

from skl_transformaly._gaussian import FLOATS, GaussianDensity, LogDensity
from skl_transformaly._neighbors import KNNDensity, LocalKNNDensity
from skl_transformaly.utils._compat import Interval, fit_context
from skl_transformaly.utils._fitting import all_or_nothing, refuse_class
from skl_transformaly.utils._labels import folds
from skl_transformaly.utils._warnings import warn_user

__all__ = [
    "SHARES",
    "AutoDensity",
    "GaussianDensity",
    "KNNDensity",
    "LocalKNNDensity",
    "LogDensity",
    "fit_density",
    "held_out_scores",
    "location_and_spread",
    "log_densities",
    "on_scale",
    "resolve_density",
    "rounding",
    "usual",
]

# AutoDensity seeks neighbours among at most this many samples, so that the time of a fit stays linear in their number
# and model files stay small.
_MOST_NEIGHBORS = 5000
# Features in float32 of one image differ by so much with its place in a batch, and log-densities with them.
_ROUNDING = 1e-5
# Held-out log-densities so many times as far from their median as the nearest or farthest tenth are outliers.
_OUTLYING = 10
# Of the Gaussian and the neighbours in AutoDensity.
SHARES = np.array([0.2, 0.8])


class AutoDensity(LogDensity):
    """A Gaussian and nearest neighbours together, for one or many kinds of normal samples.

    A Gaussian describes one kind of normal samples best, neighbours describe several. The log-densities of
    :class:`GaussianDensity` and :class:`LocalKNNDensity` are each standardised over held-out training samples. Their
    mean, in which the neighbours count four times, is the log of a weighted geometric mean of the two densities, up to
    a constant. Neighbours are sought among at most 5,000 training samples.

    Parameters
    ----------
    n_neighbors : int or None, default=None
        Number of neighbours. None is the square root of the number of samples, at most 20, so that a kind of which
        there are few samples has neighbours of its own. Of n samples it is at most n - 2, and at least 1.

    Attributes
    ----------
    gaussian_ : GaussianDensity
    neighbors_ : LocalKNNDensity
    location_, spread_ : ndarray of shape (2,)
        Means and standard deviations of the held-out log-densities of both, without those that are far outliers.
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

    _parameter_constraints: dict = {"n_neighbors": [Interval(Integral, 1, None, closed="left"), None]}
    _comparable = False  # in standard deviations of its own samples

    def __init__(self, *, n_neighbors: int | None = None):
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
        X = self._fit_parts(X, groups)
        held_out = [part.held_out_scores(X, groups=groups) for part in (self.gaussian_, self.neighbors_)]
        scales = [location_and_spread(scores, groups) for scores in held_out]
        self.location_, self.spread_ = np.array(scales).T
        self.held_out_scores_ = self._together(held_out)
        return self

    def refitted(self, X: Any, groups: Any = None) -> AutoDensity:
        """Return a copy that is fitted to other samples and stays on the scale of this one, to be compared with it."""
        other = clone(self)
        other._fit_parts(X, groups)
        other.location_, other.spread_ = self.location_, self.spread_
        return other

    def _fit_parts(self, X: Any, groups: Any) -> np.ndarray:
        X = validate_data(self, X, dtype=FLOATS, ensure_min_samples=2)
        count = min(20, round(len(X) ** 0.5)) if self.n_neighbors is None else self.n_neighbors
        # so that as many are left if a sample and one of its neighbours are held out
        count = max(1, min(count, len(X) - 2))
        self.gaussian_ = GaussianDensity().fit(X)
        self.neighbors_ = LocalKNNDensity(n_neighbors=count, max_samples=_MOST_NEIGHBORS).fit(X, groups=groups)
        return X

    def _log_density(self, X: np.ndarray) -> np.ndarray:
        return self._together([self.gaussian_.score_samples(X), self.neighbors_.score_samples(X)])

    def _held_out(self, X: np.ndarray, groups: Any, unseen: np.ndarray | None) -> np.ndarray:
        parts = (self.gaussian_, self.neighbors_)
        return self._together([part.held_out_scores(X, groups=groups, unseen=unseen) for part in parts])

    def _together(self, scores: list[np.ndarray]) -> np.ndarray:
        return ((np.array(scores).T - self.location_) / self.spread_) @ SHARES


def usual(scores: np.ndarray, groups: Any = None) -> np.ndarray:
    """Tell which held-out log-densities (n,) determine the scale of all: at least eight tenths, without `groups`.

    A log-density falls with the square of a distance, so that of a single odd sample can be a thousand times as far
    from the others' as these differ, and in units of a standard deviation with it, nothing would be unusual any more.

    >>> usual(np.append(np.arange(20.0), [-15.0, -1000.0]))[-3:]
    array([ True,  True, False])
    """
    # copies of an image say once how much images differ
    distinct = scores if groups is None else scores[np.unique(groups, return_index=True)[1]]
    low, middle, high = np.quantile(distinct, [0.1, 0.5, 0.9])
    reach = max(middle - low, high - middle)
    kept = np.abs(scores - middle) <= _OUTLYING * reach
    # where nearly all are alike, the others are no outliers
    return kept if reach > rounding(scores[kept]) else np.ones(len(scores), dtype=bool)


def location_and_spread(scores: np.ndarray, groups: Any = None) -> tuple[float, float]:
    """Return mean and standard deviation of those of these held-out log-densities that are :func:`usual`.

    The latter is 1 if they differ by rounding alone, as those of two samples.
    """
    scores = scores[usual(scores, groups)]
    deviation = float(np.std(scores))
    return float(np.mean(scores)), deviation if deviation > rounding(scores) else 1.0


def rounding(scores: Any) -> float:
    """Return the difference below which log-densities of this size are the same."""
    return _ROUNDING * max(float(np.abs(scores).max()), 1.0)


def held_out_scores(density: Any, X: np.ndarray, *, groups: Any = None, unseen: np.ndarray | None = None) -> np.ndarray:
    """Compute held-out log-densities of the samples that `density` was fitted on, in closed form or by folds.

    Parameters
    ----------
    density : fitted estimator with ``score_samples``
        Its own ``held_out_scores`` are used if it has them; else clones of it are fitted on the samples outside each of
        20 folds, whose scores are put on its scale (:func:`on_scale`).
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
    own = log_densities(density, X)
    if unseen is None and len(X) < X.shape[1] and _can_be_turned(density):
        # Turned into the samples' own span, mixtures differ by a constant, and are fitted a hundred times as fast.
        X = X @ np.linalg.qr(X.T)[0]
    scored = X if unseen is None else unseen
    scores = np.empty(len(X))
    for train, test in folds(groups, len(X)):
        rest = X[train] if len(train) > 1 else np.repeat(X[train], 2, axis=0)  # which any density can be fitted on
        part = fit_density(density, rest, fold=True)
        scores[test] = on_scale(log_densities(part, scored[test]), own[train], log_densities(part, X[train]))
    return scores


def on_scale(scores: np.ndarray, own: np.ndarray, part: np.ndarray) -> np.ndarray:
    """Put scores by a density of a part of the samples on the scale of the density of all.

    The scores of many estimators have a level that depends on the number of samples: a one-class SVM's are sums over
    them, a whitening PCA keeps fewer components of fewer samples. Without correction, none or all new images would be
    flagged (``benchmarks/selection/own_densities.py``).

    Parameters
    ----------
    scores : ndarray of shape (n,)
        By the density of a part.
    own, part : ndarray of shape (m,)
        Scores of that part of the samples, by both densities.
    """
    return scores + np.median(own - part)


def log_densities(density: Any, X: np.ndarray) -> np.ndarray:
    """Return ``density.score_samples(X)``, (n,), in float64.

    Raises
    ------
    ValueError
        It does not return one number for each sample.
    """
    scores = np.asarray(density.score_samples(X), dtype=np.float64)
    if scores.shape != (len(X),):
        raise ValueError(
            f"{type(density).__name__}.score_samples returned an array of shape {scores.shape} for {len(X)} samples; "
            f"expected ({len(X)},), one log-density for each."
        )
    return scores


def fit_density(density: Any, X: np.ndarray, groups: Any = None, *, fold: bool = False) -> Any:
    """Fit a copy of `density`, to groups of duplicates if it takes them.

    If a `fold` has fewer samples than components of a mixture or neighbours, their number is reduced.
    """
    part = clone(density)
    if isinstance(part, (GaussianMixture, BayesianGaussianMixture)) and part.n_components > len(X):
        if not fold:
            raise ValueError(
                f"A mixture of {part.n_components} components needs as many images at least, got {len(X)}: give more "
                "normal images, or a density that needs fewer, such as "
                f"{type(part).__name__}(n_components={len(X) // 2}) or 'gaussian'."
            )
        part.set_params(n_components=len(X))
    if not fold and _is_hardly_determined(part, X):
        warn_user(
            f"{len(X)} images hardly determine a mixture of {part.n_components} components with full covariances in "
            f"{X.shape[1]} features: single fits may flag far fewer or far more new normal images than was asked for. "
            "Take covariance_type='diag' or 'tied', fewer components, or density='auto'."
        )
    if fold and isinstance(part, KNNDensity):
        part.set_params(n_neighbors=min(part.n_neighbors, len(X)))
    return part.fit(X, groups=groups) if has_fit_parameter(part, "groups") else part.fit(X)


def _can_be_turned(density: Any) -> bool:
    """Whether a fit to turned features is the same but for a constant: no axis is special, and no start is given."""
    return (
        isinstance(density, GaussianMixture)
        and density.covariance_type in ("full", "tied")
        and density.means_init is None
        and density.precisions_init is None
    )


def _is_hardly_determined(density: Any, X: np.ndarray) -> bool:
    """Whether a component has fewer than twice as many samples as features, where each fold finds another mixture.

    Where samples are fewer than features, all components are alike: the regularisation decides.
    """
    if not isinstance(density, GaussianMixture) or density.covariance_type != "full" or density.n_components == 1:
        return False
    return X.shape[1] < len(X) < 2 * density.n_components * X.shape[1]


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
        A class, or an object without ``fit`` and ``score_samples``.
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
    refuse_class(density, "density")
    if not (hasattr(density, "fit") and hasattr(density, "score_samples")):
        raise TypeError(f"A density needs fit and score_samples; {type(density).__name__} lacks them.")
    return density
