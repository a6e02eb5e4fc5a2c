"""How far a model can be trusted, in words: expected false alarms, and the least normal of its own images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
from scipy.stats import beta

from skl_transformaly._fusion import needed
from skl_transformaly._wrappers import innermost
from skl_transformaly.cli._console import counted
from skl_transformaly.images._folders import display_path
from skl_transformaly.utils._labels import TRIMMED

__all__ = ["FalseAlarms", "least_normal", "least_normal_text", "percent"]

# Number of normal images below which a threshold is not reliable
_FEW = 20
# Distance from the median, relative to that of the threshold, beyond which an image of the fit is hardly normal
_FAR = 3.0
# Number of images below which --trim 0.1 leaves out none
_LEAST_TRIMMED = 6


@dataclass(frozen=True)
class FalseAlarms:
    """Share of new normal images that a detector flags.

    With n held-out scores that are exchangeable with new ones, the share below the k-th lowest has the distribution
    Beta(k, n + 1 - k) [1]_.

    .. [1] V. Vovk, "Conditional validity of inductive conformal predictors", ACML 2012.
    """

    images: int  # number of normal images that set the threshold; copies of one count once
    asked: float  # share that the user asked for, in (0, 0.5], of a `ConformalDetector` in (0, 1)
    expected: float  # mean share over fits, at least 1 / (images + 1)
    low: float  # the share of a single fit is between these in 9 of 10 cases
    high: float
    left_out: int = 0  # images that `trim` took for anomalies, so that they did not set the threshold

    @classmethod
    def of(cls, detector: Any) -> FalseAlarms | None:
        """Compute those of a fitted detector; None if its threshold is not set by held-out scores."""
        inner = innermost(detector)
        if hasattr(detector, "calibration_scores_"):
            n = len(detector.calibration_scores_)
            # its p-values are multiples of 1 / (n + 1); counted as `conformal_threshold` does
            rate = np.count_nonzero(np.arange(1, n + 2) / (n + 1) <= detector.alpha) / (n + 1)
            images = _distinct(inner) if isinstance(getattr(detector, "calibration", None), str) else n
            return cls.promised(images, detector.alpha, rate=rate)
        if not inner.held_out_:
            return None
        return cls.promised(_distinct(inner), inner.contamination, int(np.sum(inner.training_labels_ == TRIMMED)))

    @classmethod
    def promised(cls, images: int, asked: float, left_out: int = 0, *, rate: float | None = None) -> FalseAlarms:
        """Compute those of a threshold that is set by the scores of a number of images.

        It is set for the share `rate`, by default `asked`.

        >>> print(FalseAlarms.promised(300, 0.05))
        About 5 % of new normal images will be flagged by mistake (nine of ten such fits flag between 3 and 7 %).
        """
        expected = max(asked if rate is None else rate, 1 / (images + 1))
        k = expected * (images + 1)
        low, high = beta.ppf([0.05, 0.95], k, images + 1 - k)
        return cls(images, asked, expected, float(low), float(high), left_out)

    @property
    def most(self) -> float:
        """The expected share if all images that were left out were normal: new ones like these are flagged as well."""
        return (self.left_out + self.expected * self.images) / (self.left_out + self.images)

    def __str__(self) -> str:
        span = f"{percent(self.low)} and {percent(self.high)} %"
        text = (
            f"About {percent(self.expected)} % of new normal images will be flagged by mistake "
            f"(nine of ten such fits flag between {span})."
        )
        if self.expected > self.asked:
            text += (
                f" {counted(self.images, 'image')} cannot promise {percent(self.asked)} %; "
                f"{needed(self.asked)} images can."
            )
        if self.left_out:
            text += (
                f" If the images that were left out are normal, it will be about {percent(self.most)} %: look at them."
            )
        if self.images < _FEW:
            text += f" Fewer than {_FEW} images show little of what is normal: add more before you rely on this."
        return text


def _distinct(detector: Any) -> int:
    """Return the number of images with held-out scores; copies, which are held out together, count once."""
    return len(np.unique(detector.training_groups_[np.isfinite(detector.training_scores_)]))


def percent(share: float) -> str:
    """Format a share in percent, with few digits.

    >>> percent(0.05), percent(0.173), percent(0.0026)
    ('5', '17', '0.3')
    """
    return f"{100 * share:.0f}" if share >= 0.0095 or share == 0 else f"{100 * share:.1g}"


def least_normal(detector: Any, paths: Sequence[str], most: int = 5) -> list[tuple[str, float]]:
    """Return the images of the fit with the lowest held-out scores, lowest first, and these scores.

    At most a fifth of the images, rounded up. `paths` are those of all images of the fit, including unreadable ones.
    """
    scores = detector.training_scores_
    order = [i for i in np.argsort(scores) if np.isfinite(scores[i])]
    return [(paths[i], float(scores[i])) for i in order[: min(most, ceil(len(order) / 5))]]


def least_normal_text(detector: Any, found: list[tuple[str, float]]) -> str:
    """Describe them: their number below the threshold, those far from the others, and what to do about them."""
    scores, threshold = detector.training_scores_, detector.offset_
    below = int(np.sum(scores < threshold))
    count = f"{below} of {np.sum(np.isfinite(scores))} {'is' if below == 1 else 'are'}"
    lines = [
        f"Least normal of these images, each judged by the others ({count} below the threshold of {threshold:.1f}):"
    ]
    lines += [f"  {score:8.1f}  {display_path(path)}" for path, score in found]
    median = float(np.nanmedian(scores))
    far = sum(median - score > _FAR * (median - threshold) for _, score in found)
    if far:
        those = "The first one is" if far == 1 else f"The first {far} are"
        lines.append(f"{those} far from the others.")
    if not below and not far:
        return "\n".join(lines)
    trim = innermost(detector).trim
    what = "If some of these are not normal, remove them"
    if trim or len(scores) >= _LEAST_TRIMMED:
        again = f"a higher --trim than {trim:g}" if trim else "--trim, such as --trim 0.1"
        what += f", or fit again with {again}: one and a half times the share of such images that you expect"
    lines.append(f"{what}. With each of them in the fit, more anomalies are missed.")
    return "\n".join(lines)
