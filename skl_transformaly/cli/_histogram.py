"""The histogram of a report: its bars, its axis with round numbers, and the threshold."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

__all__ = ["histogram", "round_step"]

# About how many bars, and numbers on the axis
_BARS, _TICKS = 40, 6
# Least height of a bar that holds an image, in percent, so that a single one of thousands is visible
_LEAST = 1.5


def round_step(span: float, most: int) -> float:
    """Return the least of 1, 2 and 5 times a power of ten that fits into `span` at most `most` times.

    >>> round_step(100, 6), round_step(0.9, 10)
    (20.0, 0.1)
    """
    least = span / most
    power = 10.0 ** math.floor(math.log10(least))
    return next(float(f"{k * power:.12g}") for k in (1, 2, 5, 10) if k * power >= least * (1 - 1e-9))


def histogram(
    scores: np.ndarray, flagged: np.ndarray, reference: np.ndarray, threshold: float | None
) -> dict[str, Any]:
    """Compute bars of scores, with those of normal images (`reference`, finite) behind them, for the page's template.

    Scores of anomalies may lie arbitrarily low. The axis covers the normal images, twice as much below them, and the
    threshold; the first bar holds all lower scores.

    Heights are in percent of the highest bar of all, which stands for the share ``top``: shares of the images
    (``flagged``, ``rest`` on top of it, ``height`` of both) and shares of the normal images (``normal``) are on one
    scale. ``count`` and ``other`` are their numbers, ``low`` and ``high`` the edges, infinite at the ends.
    """
    edges, tick = _axis(scores[np.isfinite(scores)], reference, threshold)
    bins = len(edges) - 1
    clipped = np.clip(scores, edges[0], edges[-1])  # -inf too
    counts, _ = np.histogram(clipped, edges)
    low_counts, _ = np.histogram(clipped[flagged], edges)
    normal, _ = np.histogram(np.clip(reference, edges[0], edges[-1]), edges)
    share, normal_share = counts / max(len(scores), 1), normal / max(len(reference), 1)
    top = max(float(share.max()), float(normal_share.max()), 1e-9)
    bars = []
    for i, (count, low_count, other) in enumerate(zip(counts.tolist(), low_counts.tolist(), normal.tolist())):
        height = max(100 * share[i] / top, _LEAST) if count else 0.0
        red = height * (low_count / count) if count else 0.0  # never higher than the whole bar
        bars.append(
            {
                "x": 100 * i / bins,
                "flagged": red,
                "rest": height - red,
                "height": height,
                "normal": max(100 * normal_share[i] / top, _LEAST) if other else 0.0,
                "count": count,
                "other": other,
                # lower scores than the axis belong to the first bar
                "low": -math.inf if i == 0 else float(edges[i]),
                "high": math.inf if i == bins - 1 else float(edges[i + 1]),
            }
        )
    span = edges[-1] - edges[0]
    first, last = math.ceil(edges[0] / tick - 1e-6), math.floor(edges[-1] / tick + 1e-6)
    numbers = np.arange(first, last + 1) * tick
    places = np.clip(100 * (numbers - edges[0]) / span, 0, 100)  # rounding may put the outermost beyond the axis
    return {
        "bars": bars,
        "width": 100 / bins,
        "threshold": threshold,
        "at": None if threshold is None else 100 * (threshold - edges[0]) / span,
        "ticks": list(zip(places.tolist(), numbers.tolist())),
        "decimals": max(0, -math.floor(math.log10(tick) + 1e-9)),
        "below": int(np.sum(scores < edges[0])),
        "top": top,
        "n_normal": len(reference),
    }


def _axis(scores: np.ndarray, reference: np.ndarray, threshold: float | None) -> tuple[np.ndarray, float]:
    """Return the edges of the bars, multiples of a round step, and the round distance between ticks."""
    places = np.concatenate([reference, scores, [] if threshold is None else [threshold]])
    middle = float(np.median(reference)) if len(reference) else float(np.median(places))
    lowest = float(reference.min()) if len(reference) else float(places.min())
    high = float(places.max())
    spread = max(high - middle, middle - lowest, 1e-9 * max(1.0, abs(middle)))
    low = max(float(places.min()), middle - 3 * spread)
    if threshold is not None:
        low = min(low, threshold - 0.05 * spread)
        high = max(high, threshold + 0.05 * spread)
    step = round_step(max(high - low, spread), _BARS)
    first, last = math.floor(low / step), math.ceil(high / step)
    edges = np.array([float(f"{k * step:.12g}") for k in range(first, max(last, first + 1) + 1)])
    return edges, round_step(float(edges[-1] - edges[0]), _TICKS)
