"""ConformalDetector: thresholds that keep a promised false-positive rate, around any outlier detector."""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy
from numbers import Real
from typing import Any

import numpy as np
from scipy.stats import false_discovery_control
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import train_test_split
from sklearn.utils import get_tags
from sklearn.utils.validation import _num_samples, check_is_fitted

from skl_transformaly._decisions import DecisionMixin
from skl_transformaly._drift import DriftMonitor, DriftReport
from skl_transformaly._fusion import conformal_threshold, needed, p_values
from skl_transformaly._wrappers import DelegatingMixin, innermost
from skl_transformaly.images._samples import as_sequence, on_error_of, take_samples
from skl_transformaly.utils._compat import HasMethods, Interval, RealNotInt, StrOptions, fit_context
from skl_transformaly.utils._fitting import all_or_nothing, refuse_class
from skl_transformaly.utils._labels import normal_samples
from skl_transformaly.utils._warnings import warn_user

__all__ = ["ConformalDetector"]

# Shares of whole numbers that are equal may differ by rounding.
_ROUNDING = 1 + 1e-12


class ConformalDetector(DelegatingMixin, DecisionMixin, BaseEstimator):
    """Turns the scores of any outlier detector into p-values, and keeps a promised false-positive rate.

    The p-value of an image is the share of normal calibration images, itself counted among them, that score as low
    as it does [1]_ [2]_: ``p(x) = (1 + #{i : s(x_i) <= s(x)}) / (n + 1)``. The calibration images have no part in the
    detector's fit.

    Parameters
    ----------
    estimator : outlier detector
        With `fit` and `score_samples`, higher is more normal: :class:`TransformalyDetector`, or scikit-learn's
        ``IsolationForest``, ``OneClassSVM``, ``LocalOutlierFactor(novelty=True)``, ...
    alpha : float, default=0.05
        The false-positive rate to keep, in (0, 1): `predict` returns -1 if the p-value is at most this. It needs at
        least ``1 / alpha - 1`` calibration images, since no p-value is below ``1 / (n + 1)``: 19 for 0.05.
    calibration : float, "held-out" or tuple, default=0.2
        Where the calibration images come from.

        - A float in (0, 1): this share of `X` is set aside at random, and the detector is fitted on the rest. Of a
          detector in ``sklearn.frozen.FrozenEstimator``, which has seen none of `X`, all of it calibrates.
        - "held-out": the held-out scores of its training images that a :class:`TransformalyDetector` has,
          ``reference_scores_``. All images calibrate, and nothing is fitted twice.
        - A tuple ``(X_cal,)``: your own normal images; the detector is fitted on all of `X`. A detector that is fitted
          already is passed in ``sklearn.frozen.FrozenEstimator``.
    random_state : int, RandomState or None, default=None
        Shuffles `X` before it is split by a float. The detector has its own random state.

    Attributes
    ----------
    estimator_ : outlier detector
        The fitted detector.
    calibration_scores_ : ndarray of shape (n_calibration,), float64
        Scores of the calibration images, in ascending order, without NaN.
    offset_ : float
        The threshold: ``decision_function = score_samples - offset_``. It is the smallest score that is not flagged.
    fitted_positions_ : ndarray of shape (n_fitted,), int, or None
        Positions in the `X` of `fit` of the samples that the detector was fitted on; None is all of them.
    n_features_in_ : int
        That of `estimator_`, if it has one.
    feature_names_in_ : ndarray of str
        Those of `estimator_`, if it has any.

    See Also
    --------
    TransformalyDetector : Its `contamination` sets a threshold by held-out scores, without a proof.

    Notes
    -----
    *Why not a quantile of the training scores?* A detector has adapted to the images it was fitted on, which score
    higher than new ones. A threshold below which 5 % of them fall flags more than 5 % of new normal images, by an
    unknown amount. Images kept out of the fit score as new ones do.

    *What is promised.* If a new normal image and the calibration images are exchangeable (drawn independently from
    one source, say), it is flagged with a probability of at most `alpha`, for any detector, any distribution and any
    number of images. The promise is marginal: an average over calibration sets and images. With one calibration set
    the rate varies around `alpha` (about a Beta distribution, with a standard deviation of ``sqrt(alpha (1 - alpha) /
    n)``), and it may differ between kinds of normal images. It does not hold if new images come from another camera,
    site or season, nor if a group of images, such as several of one patient, is split: then set whole groups aside
    yourself, ``calibration=(X_cal,)``. It does not concern the number of anomalies that are found.

    *Held-out scores.* Each calibration image is scored by a detector that lacks it (or a fold of images), but new
    images by one that was fitted on all of them. Then nothing is proven, unless scores hardly depend on a few images
    [4]_, as leave-one-out scores of many images do. The rate is usually near `alpha`
    (``benchmarks/selection/thresholds.md``). For the proven promise, keep images out of the fit.

    *Training images.* `fit_predict`, and p-values of images in `X`, promise nothing, since the detector has seen most
    of them. A :class:`TransformalyDetector` returns held-out scores of those that it has seen.

    References
    ----------
    .. [1] V. Vovk, A. Gammerman and G. Shafer, "Algorithmic Learning in a Random World", Springer, 2005.
    .. [2] R. Laxhammar and G. Falkman, "Inductive Conformal Anomaly Detection for Sequential Detection of Anomalous
       Sub-Trajectories", Annals of Mathematics and Artificial Intelligence 74, 2015.
    .. [3] S. Bates, E. Candes, L. Lei, Y. Romano and M. Sesia, "Testing for Outliers with Conformal p-Values",
       Annals of Statistics 51(1), 2023.
    .. [4] R. F. Barber, E. J. Candes, A. Ramdas and R. J. Tibshirani, "Predictive Inference with the Jackknife+",
       Annals of Statistics 49(1), 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from skl_transformaly import ConformalDetector
    >>> X = np.random.default_rng(0).normal(size=(500, 2))
    >>> detector = ConformalDetector(IsolationForest(random_state=0), alpha=0.05, random_state=0).fit(X)
    >>> detector.predict([[0, 0], [6, 6]])
    array([ 1, -1])
    >>> detector.p_values([[6, 6]]).round(4)  # 100 calibration samples, all more normal
    array([0.0099])
    """

    _parameter_constraints: dict = {
        "estimator": [HasMethods(["fit", "score_samples"])],
        "alpha": [Interval(Real, 0, 1, closed="neither")],
        "calibration": [
            Interval(RealNotInt, 0, 1, closed="neither"),
            StrOptions({"held-out"}),
            tuple,
            np.ndarray,  # by mistake; refused with a way out
        ],
        "random_state": ["random_state"],
    }

    def __init__(self, estimator: Any, *, alpha: float = 0.05, calibration: Any = 0.2, random_state: Any = None):
        self.estimator = estimator
        self.alpha = alpha
        self.calibration = calibration
        self.random_state = random_state

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None) -> ConformalDetector:
        """Fit the detector and calibrate it on images that it has not seen.

        Parameters
        ----------
        X : samples
            Normal ones only, as `estimator` takes them: rows, or images in any form that
            :class:`TransformalyDetector` takes.
        y : array-like of shape (n_samples,), default=None
            Samples labelled -1 are left out; other numbers are ignored.

        Returns
        -------
        self : ConformalDetector

        Raises
        ------
        ValueError
            There are too few calibration images for `alpha`, the detector has no held-out scores or leaves some images
            out (`trim`), or a parameter is out of its range.

        Warns
        -----
        UserWarning
            Calibration images scored NaN and were left out.
        """
        normal = None
        self._check_calibration(X)
        if y is not None:
            X = as_sequence(X)
            normal = normal_samples(y, _num_samples(X))
            X = X if normal is None else take_samples(X, np.flatnonzero(normal), on_error=on_error_of(self.estimator))
        refuse_class(self.estimator, "estimator")
        for name in ("estimator_", "calibration_scores_", "offset_", "fitted_positions_"):
            self.__dict__.pop(name, None)  # of an earlier fit, perhaps with another calibration
        if isinstance(self.calibration, str):
            detector, scores, fitted_on = *self._own_scores(X), None
        else:
            detector, scores, fitted_on = self._split_scores(X)
        missing = int(np.isnan(scores).sum())
        if missing:
            warn_user(f"{missing} of {len(scores)} calibration images scored NaN and are left out.")
        scores = np.sort(scores[~np.isnan(scores)])
        self._check_enough(len(scores))
        self.estimator_ = detector
        frozen = isinstance(self.estimator, FrozenEstimator)  # whose own images are elsewhere
        if normal is not None and not frozen:  # positions are those in what the user gave
            fitted_on = np.flatnonzero(normal)[slice(None) if fitted_on is None else fitted_on]
        self.fitted_positions_ = fitted_on
        self.calibration_scores_ = scores
        self.offset_ = conformal_threshold(scores, self.alpha)
        return self

    def _own_scores(self, X: Any) -> tuple[Any, np.ndarray]:
        """Return the detector fitted on all of `X`, and its held-out scores."""
        _refuse_trim(innermost(self.estimator))
        detector = clone(self.estimator).fit(X, None)
        inner = innermost(detector)  # such as the last step of a pipeline, or what a search found
        _refuse_trim(inner)
        scores = getattr(inner, "reference_scores_", getattr(inner, "training_scores_", None))
        if scores is None or not getattr(inner, "held_out_", True):
            raise ValueError(
                f"calibration='held-out' needs a detector with held-out training_scores_, such as a "
                f"TransformalyDetector with threshold='held-out', got {type(detector).__name__}. Pass a share of the "
                "images to keep out of the fit."
            )
        return detector, np.asarray(scores, dtype=np.float64)

    def _split_scores(self, X: Any) -> tuple[Any, np.ndarray, np.ndarray | None]:
        """Return the fitted detector, scores of the other samples, and the positions in `X` that it was fitted on."""
        training, calibration, fitted_on = self._split(X)
        detector = clone(self.estimator).fit(training, None)  # FrozenEstimator wants a y
        return detector, np.asarray(detector.score_samples(calibration), dtype=np.float64), fitted_on

    def p_values(self, X: Any) -> np.ndarray:
        """Compute how rare a score as low as each image's is among normal images.

        Parameters
        ----------
        X : samples
            As `estimator` takes them.

        Returns
        -------
        p : ndarray of shape (n_samples,), float64
            Multiples of ``1 / (n + 1)`` in (0, 1], n the number of calibration images; small for anomalies. NaN for
            unreadable images with ``on_error="skip"``.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        """
        check_is_fitted(self)
        return self._p_values_of(np.asarray(self.score_samples(X), dtype=np.float64))

    def select(self, X: Any, *, fdr: float = 0.1) -> np.ndarray:
        """Choose the images of a batch to declare anomalies, so that few of those declared are false.

        This is the procedure of Benjamini and Hochberg on the p-values of the batch. `predict` limits the share of
        normal images that are flagged, but in a batch with few anomalies most of the flagged images may be normal. Of
        the images declared here, at most a share `fdr` is normal, in expectation. This is proven for conformal p-values
        although they share one calibration set (Bates et al., in the References of the class); for held-out scores it
        is not.

        Parameters
        ----------
        X : samples
            The batch, as `estimator` takes it; the choice depends on all of it.
        fdr : float, default=0.1
            False discovery rate, in (0, 1).

        Returns
        -------
        selected : ndarray of shape (n_samples,), bool
            True for images declared anomalies. It is also True for unreadable images, which do not count among the
            discoveries.

        Raises
        ------
        ValueError
            `fdr` is out of its range, or below ``1 / (n + 1)``, so that nothing could be declared.

        Warns
        -----
        UserWarning
            Nothing is declared although some images score below all calibration images, which are too few.
        """
        if not 0 < fdr < 1:
            raise ValueError(f"fdr must be in (0, 1), got {fdr!r}.")
        p = self.p_values(X)
        n = len(self.calibration_scores_)
        smallest = 1 / (n + 1)
        # at best all m p-values are the smallest one, and the m-th is compared to fdr * m / m
        if smallest > fdr:
            raise ValueError(
                f"fdr={fdr} needs at least {needed(fdr)} calibration images, this detector has {n}: no p-value is "
                f"below 1 / {n + 1}, so nothing could be declared. Fit with more calibration images, or raise fdr."
            )
        selected = np.isnan(p)
        tested = p[~selected]
        m, lowest = len(tested), int(np.sum(tested == smallest))
        if m:
            declared = false_discovery_control(tested, method="bh") <= fdr * _ROUNDING  # equality counts
            selected[~selected] = declared
            if lowest and not declared.any():
                limit = fdr * _ROUNDING
                warn_user(
                    f"{lowest} of {m} images score below all {n} calibration images, and yet none can be declared at "
                    f"fdr={fdr}: in a batch of {m} it takes {int(np.ceil(m * smallest / limit))} such images, or about "
                    f"{int(np.ceil(m / (lowest * limit))) - 1} calibration images."
                )
        return selected

    def drift(self, X: Any, *, alpha: float = 0.01) -> DriftReport:
        """Test whether images, in their order, are still like those that calibrated the detector.

        Parameters
        ----------
        X : samples
            As `estimator` takes them.
        alpha : float, default=0.01
            Probability of a false alarm, in (0, 1).

        Returns
        -------
        report : DriftReport

        See Also
        --------
        DriftMonitor : The same for a stream in batches.
        """
        return DriftMonitor(self, alpha=alpha).update(X)

    def _p_values_of(self, scores: np.ndarray) -> np.ndarray:
        return p_values(scores, self.calibration_scores_)

    def _check_calibration(self, X: Any) -> None:
        """Refuse calibration images that are not given as a tuple of one item, that are `X`, or that come only once."""
        if isinstance(self.calibration, np.ndarray):
            raise ValueError(
                f"calibration is an array of shape {self.calibration.shape}: pass calibration images as "
                "calibration=(X_cal,)."
            )
        if not isinstance(self.calibration, tuple):
            return
        if len(self.calibration) != 1 or self.calibration[0] is X:
            raise ValueError(
                "calibration as a tuple must have one item, normal images that are not in X: (X_cal,). "
                f"Got {'X itself' if len(self.calibration) == 1 else f'{len(self.calibration)} items'}."
            )
        if isinstance(self.calibration[0], Iterator):
            raise ValueError(
                "calibration holds an iterator, which can be read only once: pass a list, calibration=(list(X_cal),)."
            )

    def _split(self, X: Any) -> tuple[Any, Any, np.ndarray | None]:
        """Return the samples to fit on, those to calibrate on, and the positions of the former in `X` (None: all)."""
        if isinstance(self.calibration, tuple):
            self._check_enough(_num_samples(as_sequence(self.calibration[0])))
            return X, self.calibration[0], None
        samples = as_sequence(X)
        n = _num_samples(samples)
        if isinstance(self.estimator, FrozenEstimator):
            self._check_enough(n)
            return samples, samples, None
        train, test = train_test_split(np.arange(n), test_size=self.calibration, random_state=self.random_state)
        self._check_enough(len(test), of=n)
        on_error = on_error_of(self.estimator)
        training, calibration = (take_samples(samples, place, on_error=on_error) for place in (train, test))
        return training, calibration, np.asarray(train, dtype=np.int64)

    def _check_enough(self, n: int, *, of: int | None = None) -> None:
        """Refuse `n` calibration images, a part of `of`, if no p-value can be as small as `alpha`."""
        if 1 / (n + 1) > self.alpha:
            ways = ["give more images", "raise alpha"]
            if isinstance(self.calibration, Real) and of is not None and of >= needed(self.alpha):
                ways.append(
                    f"with a TransformalyDetector pass calibration='held-out', by which all {of} images calibrate"
                )
            raise ValueError(
                f"alpha={self.alpha} needs at least {needed(self.alpha)} calibration images, got {n}: no p-value is "
                f"below 1 / (n + 1), so nothing could ever be flagged. Either {', or '.join(ways)}."
            )

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        inner = deepcopy(get_tags(getattr(self, "estimator_", self.estimator)))
        tags.input_tags = inner.input_tags
        tags.transformer_tags = inner.transformer_tags
        return tags


def _refuse_trim(detector: Any) -> None:
    if trim := getattr(detector, "trim", 0):
        raise ValueError(
            f"calibration='held-out' with trim={trim:g} would leave the least normal images out of the calibration, so "
            "that alpha would not hold. Set trim=0, or pass a share of the images to keep out of the fit, or images of "
            "your own."
        )
