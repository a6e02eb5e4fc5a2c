"""Thresholds and p-values from the scores of held-out normal images, which agree with each other."""

from __future__ import annotations

import numpy as np

__all__ = [
    "can_promise",
    "conformal_threshold",
    "held_out_threshold",
    "interpolated_p_values",
    "needed",
    "p_values",
    "quantile_knots",
]

# A threshold is at least this share of the gap between two scores above the lower one, so that rounding does not move
# an image across it.
_MARGIN = 0.05


def quantile_knots(scores: np.ndarray) -> np.ndarray:
    """Return the quantiles 1 / (n + 1), ..., n / (n + 1) of new normal images' scores: just above each held-out score.

    A new score is equally likely to fall into any of the n + 1 gaps that n exchangeable ones leave, so a share of
    k / (n + 1) falls below the k-th lowest. Between these knots the share is interpolated.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Of held-out normal images, in ascending order.

    Returns
    -------
    knots : ndarray of shape (n,)
        In ascending order.
    """
    return scores + _MARGIN * np.diff(scores, append=scores[-1])


def can_promise(rate: float, n: int) -> bool:
    """Whether a threshold from `n` held-out scores can keep a false-positive rate, which takes ``rate >= 1 / (n + 1)``.

    >>> can_promise(0.05, 19), can_promise(0.05, 18)
    (True, False)
    """
    return rate * (n + 1) >= 1 - 1e-9


def needed(rate: float) -> int:
    """Return the smallest number of held-out scores that can keep a rate: n with ``1 / (n + 1) <= rate``.

    >>> needed(0.05), needed(0.001)
    (19, 999)
    """
    n = max(round(1 / rate), 1)
    return n - 1 if 1 / n <= rate else n


def held_out_threshold(scores: np.ndarray, rate: float) -> float:
    """Return the threshold below which a share `rate` of new normal images is expected.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Of held-out normal images, in ascending order.
    rate : float
        In (0, 1). Below 1 / (n + 1) the threshold lies just below the lowest score, which keeps 1 / (n + 1).

    Returns
    -------
    threshold : float
        Scores below it are those whose `interpolated_p_values` are below `rate`, or at their minimum of 1 / (n + 1).
    """
    n = len(scores)
    if not can_promise(rate, n):
        gap = scores[1] - scores[0] if n > 1 else 0.0
        return float(scores[0] - _MARGIN * (gap or abs(scores[0]) * 1e-6 or 1e-6))
    return float(np.interp(rate, np.arange(1, n + 1) / (n + 1), quantile_knots(scores)))


def p_values(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Compute the share of held-out scores, including the score itself, that are at most as high.

    Parameters
    ----------
    scores : ndarray of shape (m,)
    held_out : ndarray of shape (n,)
        Of normal images; NaN are left out.

    Returns
    -------
    p : ndarray of shape (m,)
        Multiples of 1 / (n + 1) in (0, 1]; NaN if the score is.
    """
    usable = np.sort(held_out[~np.isnan(held_out)])
    count = np.searchsorted(usable, scores, side="right")
    return np.where(np.isnan(scores), np.nan, (1.0 + count) / (len(usable) + 1))


def conformal_threshold(scores: np.ndarray, alpha: float) -> float:
    """Return the smallest score whose p-value by :func:`p_values` is above `alpha`.

    `scores` (n,) are those of calibration images, in ascending order; 1 / (n + 1) must not be above `alpha`.
    """
    n = len(scores)
    # counted with the very division that p_values makes, so that both agree on ties
    flagged = np.count_nonzero(np.arange(1, n + 2) / (n + 1) <= alpha)
    return float(scores[flagged - 1])


def interpolated_p_values(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Compute the expected share of new normal images that score as low: like :func:`p_values`, but interpolated.

    p-values are in [1 / (n + 1), 1], since n images do not determine smaller shares.
    """
    knots = quantile_knots(np.sort(held_out[~np.isnan(held_out)]))
    n = len(knots)
    p = np.where(scores >= knots[-1], 1.0, np.interp(scores, knots, np.arange(1, n + 1) / (n + 1)))
    return np.where(np.isnan(scores), np.nan, p)
