"""Tests, at any time, whether a stream of images is still like the normal images that calibrated a detector."""

from __future__ import annotations

from bisect import bisect_left, bisect_right, insort
from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np
from scipy.stats import beta, binom, ks_2samp
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._wrappers import nested
from skl_transformaly.utils._compat import HasMethods, Interval, validate_params
from skl_transformaly.utils._warnings import warn_user

__all__ = ["DriftMonitor", "DriftReport", "unlike_calibration"]

# Bets on the rank of a score, as densities of Beta distributions on [0, 1]: Beta(1, b) pays for low ranks, Beta(b, 1)
# for high ones. They are steep, since flat ones, such as Beta(1, 1.1), would also pay for a few anomalies in 100.
_LOW, _HIGH = np.array([2.0, 4.0]), np.array([2.0, 4.0])
_SHARES = np.array([0.4, 0.4, 0.1, 0.1])
# Half of the capital is bet from the first image on; the rest is added step by step, ever more slowly
_AT_ONCE, _DELAY = 0.5, 10.0
# A batch is reported if so many of its images have low p-values that less than three in four can be normal
_LOW_P, _MOST_ANOMALIES, _LEVEL = 0.05, 0.25, 1e-6


@dataclass(frozen=True)
class DriftReport:
    """Result of a :class:`DriftMonitor` after the images so far.

    Attributes
    ----------
    n_images : int
        Number of images that were tested.
    n_unreadable : int
        Number of images whose score is NaN, which were left out.
    drifted : bool
        Whether `p_value` was at most `alpha` after any image.
    alarm : int or None
        Number of images after which that happened first.
    p_value : float
        In [0, 1], valid at any time: if nothing has changed, the probability that it is ever at most `p` is at most
        `p`.
    log_capital : float
        Natural logarithm of the capital, which was 1 at the start.
    window_p_value : float
        Of the Kolmogorov-Smirnov test of the last `window` scores against the reference; NaN until there are as many.
        It is valid for one look: repeated looks find small values by chance.
    """

    n_images: int
    n_unreadable: int
    drifted: bool
    alarm: int | None
    p_value: float
    log_capital: float
    window_p_value: float

    def __str__(self) -> str:
        images = f"{self.n_images} image{'s' * (self.n_images != 1)}"
        if not self.drifted:
            return f"no drift in {images} (p = {self.p_value:.2g})"
        return f"drift: noticed after {self.alarm} of {images} (p = {self.p_value:.2g})"


class DriftMonitor:
    """Tests whether a stream of images is still like the normal images that calibrated a detector.

    If a camera is moved, a lamp ages or parts come from another supplier, scores and p-values lose their meaning, and
    most of the flagged images are not anomalous. The monitor bets against the hypothesis that nothing has changed. Its
    capital starts at 1, and the bets are fair: if nothing has changed, the capital ever reaches ``1 / alpha`` with a
    probability of at most `alpha`, however long the stream is and however often one looks [1]_ [2]_.

    Parameters
    ----------
    reference : fitted detector or array-like of shape (n_reference,)
        A :class:`ConformalDetector`, of which ``calibration_scores_`` are the reference; a
        :class:`TransformalyDetector`, of which held-out ``reference_scores_`` are; or such scores of normal images, for
        `update_scores`.
    alpha : float, default=0.01
        Probability of ever raising a false alarm, in (0, 1).
    window : int, default=100
        Number of last scores that the Kolmogorov-Smirnov test compares, at least 2.
    random_state : int, RandomState or None, default=0
        Orders equal scores at random. Without equal scores nothing is random.

    Attributes
    ----------
    n_images_ : int
        Number of images that were tested.
    scores_ : ndarray of shape (n_reference + n_images,), float64
        The reference and all scores so far, in ascending order: 8 bytes per image.

    See Also
    --------
    ConformalDetector.drift : One batch, tested on its own.

    Notes
    -----
    *The bets.* Each score is ranked among the reference and the stream so far, equal ones in random order. If all these
    are exchangeable, every rank is equally likely and independent of the earlier ranks, unlike p-values that share one
    calibration set. A bet pays the mean of a density over the cell of the rank, which is 1 on average. Four densities
    share the capital; two pay for low ranks and two for high ones. Half of the capital is bet from the first image on,
    the other half is added little by little, so that a clear change, by two standard deviations, is noticed only five
    to twenty images later after 10,000 images than at the start, and a small one later still.

    *What it does not notice.* A few anomalies among normal images: the densities are steep, so that a few in a hundred
    pay less than the other images cost. The promise does not cover streams with anomalies, however;
    ``benchmarks/drift.md`` shows how often they raise an alarm. It does not notice a very slow change either, for which
    the stream's own past becomes the reference, nor a camera that repeats the same picture.

    *False alarms.* The promise is for images that are drawn independently or come in random order. It does not hold for
    images in groups, such as frames of one video, or for images that the detector was fitted on. It is exact for a
    :class:`ConformalDetector` that sets images aside, and approximate for a :class:`TransformalyDetector`, better for
    many images than for few, since each training image was scored without itself, but new images with all of them.

    References
    ----------
    .. [1] V. Vovk, I. Nouretdinov and A. Gammerman, "Testing Exchangeability On-Line", ICML 2003.
    .. [2] V. Vovk, I. Petej, I. Nouretdinov, E. Ahlberg, L. Carlsson and A. Gammerman, "Retrain or Not Retrain:
       Conformal Test Martingales for Change-Point Detection", COPA 2021.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from skl_transformaly import ConformalDetector, DriftMonitor
    >>> rng = np.random.default_rng(0)
    >>> detector = ConformalDetector(IsolationForest(random_state=0), random_state=0).fit(rng.normal(size=(500, 2)))
    >>> monitor = DriftMonitor(detector)
    >>> print(monitor.update(rng.normal(size=(200, 2))))
    no drift in 200 images (p = 0.41)
    >>> print(monitor.update(rng.normal(size=(200, 2)) + 2))
    drift: noticed after 209 of 400 images (p = 2.5e-58)
    """

    @validate_params(
        {
            "reference": ["array-like", HasMethods(["score_samples"])],
            "alpha": [Interval(Real, 0, 1, closed="neither")],
            "window": [Interval(Integral, 2, None, closed="left")],
            "random_state": ["random_state"],
        },
        prefer_skip_nested_validation=True,
    )
    def __init__(self, reference: Any, *, alpha: float = 0.01, window: int = 100, random_state: Any = 0):
        self.alpha = alpha
        self.window = window
        self.random_state = random_state
        self._given = reference
        self.reset()

    def reset(self) -> DriftMonitor:
        """Forget the stream and start again with the reference, of a detector as it is now.

        Returns
        -------
        self : DriftMonitor
        """
        self._rng = check_random_state(self.random_state)
        self._reference = reference_scores(self._given)
        self.scores_ = self._reference
        self.n_images_ = 0
        self._n_unreadable = 0
        self._last = np.empty(0)
        self._log_bets = np.log(_AT_ONCE * _SHARES)
        self._log_capital = self._log_highest = 0.0
        self._alarm: int | None = None
        return self

    def update(self, X: Any) -> DriftReport:
        """Test the next images of the stream.

        Parameters
        ----------
        X : samples
            As the detector takes them, in their order.

        Returns
        -------
        report : DriftReport
            On the whole stream so far.

        Raises
        ------
        TypeError
            `reference` was not a detector.
        """
        if not hasattr(self._given, "score_samples"):
            raise TypeError(
                "update needs a detector as reference, got an array of scores: pass scores to update_scores."
            )
        if not np.array_equal(self._reference, reference_scores(self._given)):
            warn_user(
                "The detector has learned since the monitor began, so that scores cannot be compared: call reset()."
            )
        return self.update_scores(self._given.score_samples(X))

    def update_scores(self, scores: Any) -> DriftReport:
        """Test the next images of the stream by their scores.

        Parameters
        ----------
        scores : array-like of shape (n_samples,)
            Scores by the detector's ``score_samples``, in the order of the images. NaN, for unreadable images, is
            counted and left out.

        Returns
        -------
        report : DriftReport
            As from `update`.

        Raises
        ------
        ValueError
            `scores` does not have one dimension.
        """
        scores = np.asarray(scores, dtype=np.float64)
        if scores.ndim != 1:
            raise ValueError(f"scores must have one dimension, got shape {scores.shape}.")
        readable = scores[~np.isnan(scores)]
        self._n_unreadable += len(scores) - len(readable)
        if len(readable):
            ranks, sizes = self._ranks(readable)
            self._bet(ranks, sizes)
            self.scores_ = np.sort(np.concatenate([self.scores_, readable]), kind="stable")
            self._last = np.concatenate([self._last, readable])[-self.window :]
            self.n_images_ += len(readable)
        return self.report()

    def report(self) -> DriftReport:
        """Return what is known after the images so far.

        Returns
        -------
        report : DriftReport
        """
        window_p = np.nan
        if len(self._last) == self.window:
            window_p = float(ks_2samp(self._last, self._reference, method="asymp").pvalue)
        return DriftReport(
            n_images=self.n_images_,
            n_unreadable=self._n_unreadable,
            drifted=self._alarm is not None,
            alarm=self._alarm,
            p_value=float(np.exp(-self._log_highest)),
            log_capital=self._log_capital,
            window_p_value=window_p,
        )

    def _ranks(self, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return the rank of each score, from 1, among itself and those before it, and the number of these."""
        lower = np.searchsorted(self.scores_, scores, side="left")
        equal = np.searchsorted(self.scores_, scores, side="right") - lower
        batch: list[float] = []
        for i, score in enumerate(scores.tolist()):
            start = bisect_left(batch, score)
            lower[i] += start
            equal[i] += bisect_right(batch, score) - start
            insort(batch, score)
        ranks = lower + 1
        tied = np.flatnonzero(equal)
        ranks[tied] += self._rng.randint(0, equal[tied] + 1)
        return ranks, len(self.scores_) + 1 + np.arange(len(scores))

    def _bet(self, ranks: np.ndarray, sizes: np.ndarray) -> None:
        """Update the capital by the bets on `ranks`, each one of 1, ..., size."""
        times = self.n_images_ + np.arange(len(ranks) + 1)
        reserve = (1 - _AT_ONCE) * np.log(_DELAY) / np.log(times + _DELAY)
        put_in = np.log(-np.diff(reserve))[:, None] + np.log(_SHARES)
        paid = _log_payoffs(ranks, sizes)
        growth = np.cumsum(paid, axis=0)
        # v[t] = (v[t - 1] + put_in[t]) * paid[t], for all t at once
        begun = np.logaddexp.accumulate(np.vstack([self._log_bets, put_in - (growth - paid)]), axis=0)[1:]
        bets = begun + growth
        capital = np.logaddexp(np.logaddexp.reduce(bets, axis=1), np.log(reserve[1:]))
        over = np.flatnonzero(capital >= -np.log(self.alpha))
        if self._alarm is None and len(over):
            self._alarm = self.n_images_ + int(over[0]) + 1
        self._log_bets = bets[-1]
        self._log_capital = float(capital[-1])
        self._log_highest = max(self._log_highest, float(capital.max()))


def _log_payoffs(ranks: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the logarithm of the payoff of each bet, (n, 4): the mean of its density over the cell of the rank."""
    upper, lower = (ranks / sizes)[:, None], ((ranks - 1) / sizes)[:, None]
    cells = np.hstack([(1 - lower) ** _LOW - (1 - upper) ** _LOW, upper**_HIGH - lower**_HIGH])
    return np.log(cells * sizes[:, None])


def reference_scores(reference: Any) -> np.ndarray:
    """Return the calibration scores of a detector, or a given array, in ascending order and without NaN."""
    scores = reference
    if hasattr(reference, "score_samples"):
        own = (_own_scores(part) for part in nested(reference))
        scores = next((found for found in own if found is not None), None)
        if scores is None:
            check_is_fitted(reference)
            raise ValueError(
                f"{type(reference).__name__} has no scores of normal images that it was not fitted on: pass such "
                "scores, or wrap it in a ConformalDetector."
            )
    scores = np.asarray(scores, dtype=np.float64)
    if scores.ndim != 1:
        raise ValueError(f"reference must have one dimension, got shape {scores.shape}.")
    scores = np.sort(scores[~np.isnan(scores)])
    if not len(scores):
        raise ValueError("reference holds no scores.")
    return scores


def _own_scores(detector: Any) -> Any:
    scores = getattr(detector, "calibration_scores_", None)
    if scores is None and getattr(detector, "held_out_", False):
        scores = getattr(detector, "reference_scores_", detector.training_scores_)
    return scores


def unlike_calibration(p_values: Any, n: int) -> str | None:
    """Return a warning about a batch with too many low p-values to be mostly normal, or None.

    If three in four images were normal, as many low p-values would occur once in a million batches, whichever `n`
    images the p-values were computed from: all of a batch share these, so that with few of them the share of normal
    images with low p-values differs from fit to fit, by a Beta distribution.

    >>> unlike_calibration([0.01] * 63 + [0.5] * 37, 300)
    '63 % of these images have p <= 0.05: that many anomalies, another camera, or another model?'
    >>> unlike_calibration([0.01] * 63 + [0.5] * 37, 10)
    """
    p = np.asarray(p_values, dtype=np.float64)
    p = p[~np.isnan(p)]
    low = int(np.count_nonzero(p <= _LOW_P))
    if low == 0 or _rarity(low, len(p), n) > _LEVEL:
        return None
    share = f"{100 * low / len(p):.0f} % of these images have p <= {_LOW_P:g}"
    return f"{share}: that many anomalies, another camera, or another model?"


def _rarity(low: int, images: int, n: int) -> float:
    """Return at most how often so many `images` have low p-values if three in four are normal, given `n` others."""
    lowest = max(1, int(_LOW_P * (n + 1) * (1 + 1e-12)))  # this one of the n scores is the limit of low p-values
    tails = np.logspace(-12, 0, 500)
    rates = beta.isf(tails[:-1], lowest, n + 1 - lowest)  # of normal images; at least those within each step
    chances = binom.sf(low - 1, images, _MOST_ANOMALIES + (1 - _MOST_ANOMALIES) * rates)
    return float(tails[0] + np.diff(tails) @ chances)
