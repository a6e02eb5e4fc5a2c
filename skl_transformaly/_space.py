"""One feature space: its scaling, its density, and the scale of its part in the score."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import KW_ONLY, dataclass
from numbers import Real
from typing import Any, ClassVar

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from sklearn.utils import gen_batches
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._density import (
    AutoDensity,
    GaussianDensity,
    LogDensity,
    fit_density,
    held_out_scores,
    location_and_spread,
    log_densities,
    on_scale,
    resolve_density,
    rounding,
    usual,
)
from skl_transformaly.utils._compat import HasMethods, Interval, StrOptions, fit_context
from skl_transformaly.utils._fitting import all_or_nothing
from skl_transformaly.utils._labels import first_copies, folds
from skl_transformaly.utils._torch import single_threaded_blas
from skl_transformaly.utils._warnings import warn_user

__all__ = ["FeatureSpace"]

# Rows that are scaled at a time, in float64.
_ROWS = 1024
# With fewer samples or features, threads of BLAS wait for each other, and for those of torch, longer than they compute.
_FEW = 1000
# With more components, as a share of the images that determine them, folds flag twice as many as they promise.
_MOST_COMPONENTS = 0.9
_TOO_MANY = "About twice as many false alarms as promised are to be expected: give more images, or a lower value."


@dataclass(eq=False, repr=False)
class FeatureSpace(BaseEstimator):
    """The density of one representation of images, on the scale of images that it has not seen.

    Log-densities of 10 and of 2,000 features differ by orders of magnitude in their values and their spread. To make
    them comparable, a space's part in the score is ``(log p(z) - location) / spread``, with mean and standard deviation
    over the training images, each held out, without far outliers. So 0 is usual in any space, and -5 equally unusual in
    all.

    Parameters
    ----------
    density : str or estimator, default="gaussian"
        As :class:`TransformalyDetector` takes it.
    discrepancy : bool, default=False
        Whether the features are discrepancies: they are neither normalised nor whitened.
    normalize : bool, default=True
        Scale each group of features to unit length.
    explained_variance : float or None, default=None
        Whiten by the fewest principal components that explain this share of the variance; None does not whiten. With
        `held_out` at most as many as the images outside a fold determine.
    standardize : bool, default=True
        False takes the log-density as it is, as the paper does.
    held_out : bool, default=True
        Whether to score each training sample without itself; True with `standardize`.

    Attributes
    ----------
    sizes_ : ndarray of int
        Number of features in each group.
    unit_length_ : bool
        Whether each group is scaled to unit length.
    whitening_ : PCA
        Only with `explained_variance`.
    density_ : estimator
    location_, spread_ : float
        Mean and standard deviation of held-out log-densities, without those that are ten times as far from the median
        as a tenth of them; 0 and 1 without `standardize`.
    usual_, lowest_ : float
        Median and 1 % quantile of the held-out training images' parts.
    held_out_parts_ : ndarray of shape (n_samples,)
        Parts of the training images, each without itself (without `held_out`: with it).
    held_out_terms_ : ndarray of shape (n_samples, n_features) or None
        Contributions of the features to these; see `terms`.
    term_locations_ : ndarray of shape (n_features,)
        Means of the held-out terms of :meth:`GaussianDensity.terms` over the same images; only for a Gaussian without
        whitening.
    """

    _parameter_constraints: ClassVar[dict] = {
        "density": [StrOptions({"auto", "gaussian", "gmm", "knn"}), HasMethods(["fit", "score_samples"])],
        "discrepancy": ["boolean"],
        "normalize": ["boolean"],
        "explained_variance": [Interval(Real, 0, 1, closed="neither"), None],
        "standardize": ["boolean"],
        "held_out": ["boolean"],
    }

    density: Any = "gaussian"
    _: KW_ONLY
    discrepancy: bool = False
    normalize: bool = True
    explained_variance: float | None = None
    standardize: bool = True
    held_out: bool = True

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=False)
    def fit(
        self,
        Z: np.ndarray,
        y: Any = None,
        *,
        sizes: Sequence[int] | None = None,
        groups: np.ndarray | None = None,
        unseen: np.ndarray | None = None,
    ) -> FeatureSpace:
        """Fit the density, and score each training sample without itself.

        Parameters
        ----------
        Z : ndarray of shape (n_samples, n_features)
        y : ignored
        sizes : sequence of int, default=None
            Number of features in each group; None is one group.
        groups : ndarray of shape (n_samples,), default=None
            Samples of one group are duplicates, which are held out together.
        unseen : ndarray of shape (n_samples, n_features), default=None
            The same samples, measured by students that have not seen them; None is `Z`.

        Returns
        -------
        self : FeatureSpace

        Raises
        ------
        ValueError
            All samples are the same, or there are fewer than 3 with `explained_variance` and `held_out`.
        FloatingPointError
            A sample's log-density is not finite.
        """
        self.sizes_ = np.array([Z.shape[1]] if sizes is None else sizes, dtype=np.int64)
        self.unit_length_ = self.normalize and not self.discrepancy
        density = resolve_density(self.density, discrepancy=self.discrepancy)
        whitened = self.explained_variance is not None and not self.discrepancy
        # our own densities compute in float64 by themselves, and need no copy of all features in it
        own = isinstance(density, LogDensity) and not whitened
        features = self._scaled(Z, Z.dtype if own and Z.dtype == np.float32 else np.float64)
        if not np.ptp(features, axis=0).max() > 1e-12 * max(features.max(), -features.min()):
            raise ValueError(
                f"All {len(Z)} training images look the same to the teacher, so the variation of normal images cannot "
                "be learned. Pass images that differ."
            )
        self.n_features_in_ = Z.shape[1]
        self.location_, self.spread_ = 0.0, 1.0
        with single_threaded_blas() if min(features.shape) < _FEW else contextlib.nullcontext():
            self._fit_density(density, features, groups)
            if self.held_out:
                scores, terms = self._held_out(features, groups, None if unseen is None else self._scaled(unseen))
            else:
                scores = log_densities(self.density_, self._whiten(features))
                terms = self.density_.terms(features) if self._has_terms() else None
        if groups is not None:
            # Kernels of BLAS may round the last of several equal rows otherwise, and a threshold between copies of one
            # image would flag some of them.
            first = first_copies(Z, groups)
            scores, terms = scores[first], None if terms is None else terms[first]
        if not np.isfinite(scores).all():
            raise FloatingPointError(
                f"{int((~np.isfinite(scores)).sum())} of {len(scores)} training images have a log-density that is not "
                f"finite under {type(self.density_).__name__}: their features differ by too many orders of magnitude, "
                "or the density cannot score what it has not seen. Give another density, or check the images."
            )
        if self.standardize:
            self.location_, self.spread_ = location_and_spread(scores, groups)
        if terms is not None:
            self.term_locations_ = (
                terms[usual(scores, groups)].mean(axis=0) if self.standardize else np.zeros(terms.shape[1])
            )
            terms = (terms - self.term_locations_) / self.spread_
        self.held_out_parts_, self.held_out_terms_ = (scores - self.location_) / self.spread_, terms
        self.lowest_, self.usual_ = (float(np.quantile(self.held_out_parts_, q)) for q in (0.01, 0.5))
        return self

    def transform(self, Z: np.ndarray) -> np.ndarray:
        """Return the features (n, k) as the density takes them: scaled, and whitened if that was asked for."""
        check_is_fitted(self)
        return self._whiten(self._scaled(Z))

    def score_samples(self, Z: np.ndarray) -> np.ndarray:
        """Return the space's part in each score, (n,), in standard deviations of held-out normal images."""
        scores = log_densities(self.density_, self.transform(Z))
        return (scores - self.location_) / self.spread_

    def terms(self, Z: np.ndarray) -> np.ndarray | None:
        """Take the parts apart by features, (n, n_features); None if the density cannot."""
        if not hasattr(self, "term_locations_"):
            return None
        return (self.density_.terms(self.transform(Z)) - self.term_locations_) / self.spread_

    def times_usual(self, parts: np.ndarray) -> np.ndarray:
        """Return how far parts lie below the usual, in units of how far the lowest 1 % of normal images do."""
        below = self.usual_ - self.lowest_
        # two images have equal held-out scores but for rounding
        return (self.usual_ - parts) / (below if below > rounding(self.usual_) else 1.0)

    def scale(self, weight: float) -> None:
        """Multiply the space's part by `weight`, which is above 0."""
        self.spread_ /= weight
        self.usual_ *= weight
        self.lowest_ *= weight

    @property
    def n_features_out_(self) -> int:
        """Number of features that `transform` returns."""
        return int(self.whitening_.n_components_) if hasattr(self, "whitening_") else self.n_features_in_

    def _scaled(self, Z: np.ndarray, dtype: Any = np.float64) -> np.ndarray:
        if not self.unit_length_:
            return np.asarray(Z, dtype=dtype)
        scaled = np.empty(Z.shape, dtype=dtype)
        for rows in gen_batches(len(Z), _ROWS):
            part = np.array(Z[rows], dtype=np.float64)
            for group in np.split(part, np.cumsum(self.sizes_)[:-1], axis=1):
                normalize(group, copy=False)
            scaled[rows] = part
        return scaled

    def _fit_whitening(self, features: np.ndarray, n_components: float) -> PCA:
        return PCA(n_components, whiten=True, svd_solver="full").fit(features)

    def _whiten(self, features: np.ndarray) -> np.ndarray:
        return _whitened_by(self.whitening_, features) if hasattr(self, "whitening_") else features

    def _has_terms(self) -> bool:
        return self.discrepancy and isinstance(self.density_, GaussianDensity)

    def _fit_density(self, density: Any, features: np.ndarray, groups: np.ndarray | None) -> None:
        self.__dict__.pop("whitening_", None)
        self.__dict__.pop("term_locations_", None)
        if self.explained_variance is not None and not self.discrepancy:
            self.whitening_ = self._fit_whitening(features, self.explained_variance)
            if self.held_out:
                self._limit_components(features, groups)
            features = _whitened_by(self.whitening_, features)
        self.density_ = fit_density(density, features, groups)

    def _held_out(
        self, features: np.ndarray, groups: np.ndarray | None, unseen: np.ndarray | None
    ) -> tuple[np.ndarray, np.ndarray | None]:
        """Return held-out log-densities of the training samples, and their terms."""
        if not hasattr(self, "whitening_"):
            if self._has_terms():
                terms = self.density_.held_out_terms(features, groups=groups, unseen=unseen)
                return terms.sum(axis=1), terms
            return held_out_scores(self.density_, features, groups=groups, unseen=unseen), None
        # whitening must not have seen the held-out samples either
        ours = isinstance(self.density_, LogDensity)  # whose level does not depend on the number of samples
        own = None if ours else log_densities(self.density_, self._whiten(features))
        if len(features) < features.shape[1]:
            # Turned into the samples' own span, which changes no principal component's share and no distance, each
            # decomposition costs less.
            features = features @ np.linalg.qr(features.T)[0]
        scores = np.empty(len(features))
        for train, test in folds(groups, len(features)):
            # as many as in the end: in spaces of other dimensions log-densities could not be compared
            pca = self._fit_whitening(features[train], int(self.whitening_.n_components_))
            whitened, rest = _whitened_by(pca, features[train]), None if groups is None else groups[train]
            if isinstance(self.density_, AutoDensity):  # whose scale depends on how many samples a component has
                density = self.density_.refitted(whitened, rest)
            else:
                density = fit_density(resolve_density(self.density), whitened, rest, fold=True)
            scores[test] = log_densities(density, _whitened_by(pca, features[test]))
            if own is not None:
                scores[test] = on_scale(scores[test], own[train], log_densities(density, whitened))
        return scores, None

    def _limit_components(self, features: np.ndarray, groups: np.ndarray | None) -> None:
        """Keep no more components than the images outside a fold determine, so that held-out scores are comparable."""
        groups = np.arange(len(features)) if groups is None else groups
        distinct = len(np.unique(groups))
        if distinct < 3:
            raise ValueError(
                f"explained_variance={self.explained_variance} needs at least 3 images that differ, got {distinct}: "
                "give more, or leave it None."
            )
        splits = folds(groups, len(features))
        rest = min(len(np.unique(groups[train])) for train, _ in splits)
        most = max(1, rest - 2)  # one more, and whitening would put all images of the fit at the same distances
        wanted = int(self.whitening_.n_components_)
        if wanted > most:
            self.whitening_ = self._fit_whitening(features, most)
            warn_user(
                f"explained_variance={self.explained_variance} of {len(features)} images takes {wanted} components, of "
                f"which images that are left out determine {most}: {most} are kept. {_TOO_MANY}"
            )
        elif wanted > max(2, _MOST_COMPONENTS * rest):
            warn_user(
                f"explained_variance={self.explained_variance} keeps {wanted} components of {len(features)} images. "
                f"{_TOO_MANY}"
            )


def _whitened_by(pca: PCA, features: np.ndarray) -> np.ndarray:
    # sklearn.set_config(transform_output=) makes data frames even inside this package
    return np.asarray(pca.transform(features))
