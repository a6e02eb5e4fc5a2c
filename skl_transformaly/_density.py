"""Densities of a feature space: a Gaussian, and k nearest neighbours as a log-density."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.linalg import cho_factor, solve_triangular
from scipy.special import gammaln
from sklearn.base import BaseEstimator, DensityMixin, _fit_context
from sklearn.covariance import ledoit_wolf_shrinkage, shrunk_covariance
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils._param_validation import Interval, StrOptions
from sklearn.utils.validation import check_is_fitted, validate_data

__all__ = ["GaussianDensity", "KNNDensity", "resolve_density"]


class _LogDensity(DensityMixin, BaseEstimator):
    """What the densities share: ``score`` as the mean log-density, which is what a grid search wants."""

    def score(self, X: Any, y: Any = None) -> float:
        """Mean log-density of `X`.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
        y : ignored

        Returns
        -------
        score : float
            In nats per sample.
        """
        return float(np.mean(self.score_samples(X)))


class GaussianDensity(_LogDensity):
    """Log-density of one Gaussian with full covariance.

    Features are standardised before their covariance is estimated, so that neither the fit nor its
    regularisation depends on their units; the log-density is that of the features as they came.

    Parameters
    ----------
    shrinkage : float or "ledoit-wolf", default=0.3
        How far correlations are drawn towards none, in [0, 1]. With 0, as in the paper, the density turns on
        the differences between strongly correlated features, which is where estimates are worst: for the
        discrepancies of students, a step away from that is better. "ledoit-wolf" is the share that minimises
        the expected squared error of the covariance [2]_.
    ridge : float, default=1e-6
        Added to the diagonal of the standardised covariance, as a share of a feature's variance. Directions
        without any variance get this one.


    Attributes
    ----------
    mean_ : ndarray of shape (n_features,)
    covariance_ : ndarray of shape (n_features, n_features)
        Of the features as they came, with denominator n - 1, shrinkage and ridge included.
    shrinkage_ : float
        The shrinkage in use.
    n_features_in_ : int

    See Also
    --------
    KNNDensity : Makes no assumption about the shape of the distribution.

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
    >>> X = np.random.default_rng(0).normal(size=(1000, 2))
    >>> density = GaussianDensity().fit(X)
    >>> bool(density.score_samples([[0, 0]]) > density.score_samples([[3, 3]]))
    True
    """

    _parameter_constraints: dict = {
        "shrinkage": [StrOptions({"ledoit-wolf"}), Interval(Real, 0, 1, closed="both")],
        "ridge": [Interval(Real, 0, None, closed="neither")],
    }

    def __init__(self, *, shrinkage: float | str = 0.3, ridge: float = 1e-6):
        self.shrinkage = shrinkage
        self.ridge = ridge

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> GaussianDensity:
        """Estimate mean and covariance.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least 2 samples.
        y : ignored

        Returns
        -------
        self : GaussianDensity

        Raises
        ------
        ValueError
            Fewer than 2 samples, or NaN or infinity in `X`.
        """
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        self._scaler = StandardScaler().fit(X)
        Z = self._scaler.transform(X)
        if self.shrinkage == "ledoit-wolf":
            self.shrinkage_ = float(ledoit_wolf_shrinkage(Z, assume_centered=True)) if Z.any() else 0.0
        else:
            self.shrinkage_ = float(self.shrinkage)
        correlation = shrunk_covariance(Z.T @ Z / (len(Z) - 1), self.shrinkage_) + self.ridge * np.eye(Z.shape[1])
        self._cholesky = cho_factor(correlation, lower=True)[0]
        self.mean_ = self._scaler.mean_
        self.covariance_ = correlation * np.outer(self._scaler.scale_, self._scaler.scale_)
        # half of log|Sigma| of the features as they came: Cholesky factor and scales together
        self._log_scales = np.log(np.diag(self._cholesky)) + np.log(self._scaler.scale_)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        log_density : ndarray of shape (n_samples,), float64
            In nats.
        """
        return self.conditional_terms(X).sum(axis=1)

    def conditional_terms(self, X: Any) -> np.ndarray:
        """Take the log-density apart by the chain rule: each feature given those before it.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        terms : ndarray of shape (n_samples, n_features), float64
            ``terms[:, j] = log p(x_j | x_0, ..., x_{j-1})`` in nats; rows sum to the log-density.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        Z = self._scaler.transform(X)
        # log N(x | mu, Sigma) with Sigma = S L L' S: the squares of L^-1 S^-1 (x - mu), and log|Sigma| by its diagonal
        white = solve_triangular(self._cholesky, Z.T, lower=True).T
        return -0.5 * (white**2 + np.log(2 * np.pi)) - self._log_scales


class KNNDensity(_LogDensity):
    """Log-density by k nearest neighbours: k samples in a ball that just holds them.

    ``log p(x) = log k - log n - log V_d - d log r_k(x)``, with ``r_k`` the Euclidean distance to the k-th
    nearest training sample and ``V_d`` the volume of the unit ball: its ranking is that of the distance.

    Parameters
    ----------
    n_neighbors : int, default=5
        k; at most the number of training samples.
    n_jobs : int, default=None
        As in :class:`sklearn.neighbors.NearestNeighbors`.

    Attributes
    ----------
    neighbors_ : NearestNeighbors
    n_features_in_ : int

    Notes
    -----
    A training sample is its own first neighbour. Distances below 1e-12 of the training data's spread count
    as that much, so that duplicates get a finite density.

    References
    ----------
    .. [1] D. O. Loftsgaarden and C. P. Quesenberry, "A Nonparametric Estimate of a Multivariate Density
       Function", Annals of Mathematical Statistics 36(3), 1965.

    Examples
    --------
    >>> from skl_transformaly import KNNDensity
    >>> KNNDensity(n_neighbors=1).fit([[0.0], [1.0]]).score_samples([[0.5]]).round(3)
    array([-0.693])
    """

    _parameter_constraints: dict = {
        "n_neighbors": [Interval(Integral, 1, None, closed="left")],
        "n_jobs": [Integral, None],
    }

    def __init__(self, *, n_neighbors: int = 5, n_jobs: int | None = None):
        self.n_neighbors = n_neighbors
        self.n_jobs = n_jobs

    @_fit_context(prefer_skip_nested_validation=True)
    def fit(self, X: Any, y: Any = None) -> KNNDensity:
        """Keep the training samples.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)
            At least 2 and at least `n_neighbors` samples.
        y : ignored

        Returns
        -------
        self : KNNDensity

        Raises
        ------
        ValueError
            Fewer samples than `n_neighbors`, or NaN or infinity in `X`.
        """
        X = validate_data(self, X, dtype=np.float64, ensure_min_samples=2)
        if len(X) < self.n_neighbors:
            raise ValueError(
                f"n_neighbors={self.n_neighbors} needs as many samples, got n_samples={len(X)}: lower it, or give more."
            )
        self.neighbors_ = NearestNeighbors(n_neighbors=self.n_neighbors, n_jobs=self.n_jobs).fit(X)
        spread = float(np.sqrt(X.var(axis=0).sum()))
        self._floor = 1e-12 * (spread or 1.0)
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-density of each sample.

        Parameters
        ----------
        X : array-like of shape (n_samples, n_features)

        Returns
        -------
        log_density : ndarray of shape (n_samples,), float64
            In nats.
        """
        check_is_fitted(self)
        X = validate_data(self, X, dtype=np.float64, reset=False)
        distance = np.maximum(self.neighbors_.kneighbors(X)[0][:, -1], self._floor)
        n, d = self.neighbors_.n_samples_fit_, X.shape[1]
        log_ball = d / 2 * np.log(np.pi) - gammaln(d / 2 + 1)
        return np.log(self.n_neighbors) - np.log(n) - log_ball - d * np.log(distance)


def resolve_density(density: Any) -> Any:
    """Turn "gaussian", "gmm" or "knn" into an estimator; refuse what cannot score samples.

    Raises
    ------
    ValueError
        An unknown name.
    TypeError
        An object without ``fit`` and ``score_samples``.
    """
    if isinstance(density, str):
        named = {
            "gaussian": GaussianDensity,
            "gmm": lambda: GaussianMixture(n_components=5),
            "knn": KNNDensity,
        }
        if density not in named:
            raise ValueError(f"A density by name is one of {sorted(named)}, got {density!r}.")
        return named[density]()
    if not (hasattr(density, "fit") and hasattr(density, "score_samples")):
        raise TypeError(f"A density needs fit and score_samples; {type(density).__name__} lacks them.")
    return density
