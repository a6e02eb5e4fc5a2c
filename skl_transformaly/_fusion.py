"""From the scores of held-out normal images to a threshold and to p-values."""

from __future__ import annotations

import numpy as np

__all__ = ["held_out_threshold", "p_values"]

# A threshold keeps at least this share of the gap between two scores away from both, so that rounding moves no image
# across it.
_MARGIN = 0.05


def held_out_threshold(scores: np.ndarray, rate: float) -> float:
    """The threshold below which a share `rate` of new normal images is expected.

    A new score is equally likely to fall into any of the n + 1 gaps that n exchangeable ones leave, so a share of
    k / (n + 1) falls below the k-th lowest; between two of these the threshold is interpolated.

    Parameters
    ----------
    scores : ndarray of shape (n,)
        Of held-out normal images, in ascending order.
    rate : float
        In (0, 1). Below 1 / (n + 1) the threshold lies just below the lowest score, which keeps 1 / (n + 1).

    Returns
    -------
    threshold : float
    """
    n = len(scores)
    place = rate * (n + 1)
    k = int(np.floor(place + 1e-9))
    if k < 1:
        gap = scores[1] - scores[0] if n > 1 else 0.0
        return float(scores[0] - _MARGIN * (gap or abs(scores[0]) * 1e-6 or 1e-6))
    if k >= n:
        return float(scores[-1])
    share = np.clip(place - k, _MARGIN, 1 - _MARGIN)
    return float(scores[k - 1] + share * (scores[k] - scores[k - 1]))


def p_values(scores: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    """Share of held-out scores, and of the score itself among them, that are at most as high.

    Parameters
    ----------
    scores : ndarray of shape (m,)
    held_out : ndarray of shape (n,)
        Of normal images; NaN are left out.

    Returns
    -------
    p : ndarray of shape (m,)
        Multiples of 1 / (n + 1) in (0, 1]; NaN where the score is.
    """
    usable = np.sort(held_out[~np.isnan(held_out)])
    count = np.searchsorted(usable, scores, side="right")
    return np.where(np.isnan(scores), np.nan, (1.0 + count) / (len(usable) + 1))
