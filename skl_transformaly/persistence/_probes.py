"""Images that a saved detector scored, and that a loaded one scores again: the same scores, or a warning."""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._fusion import p_values
from skl_transformaly._wrappers import innermost, nested
from skl_transformaly.images._images import as_images
from skl_transformaly.images._probes import squares
from skl_transformaly.persistence._fields import Scope, array, brief, each, fields, number, optional, refuse
from skl_transformaly.persistence._reader import Reader
from skl_transformaly.utils._versions import versions

__all__ = ["FORGED", "DriftWarning", "Probes", "environment"]

# What a forged description can make the parts raise, if nothing in the schema foresaw it.
FORGED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

_PACKAGES = ("skl-transformaly", "torch", "timm", "numpy", "scipy", "scikit-learn", "pillow", "safetensors")
_MAX_PROBES = 64
_FIELDS = fields(
    images=optional(each(array("H", "W", "C", dtypes=("uint8", "float32", "float64")))),
    scores=each(number(finite=False)),
    p_values=optional(each(number(finite=False))),
)


class DriftWarning(UserWarning):
    """A loaded detector gives its probe images other scores than the detector that was saved."""


@dataclass
class Probes:
    """Images and their scores.

    Attributes
    ----------
    images : list of ndarray or None
        None stands for four synthetic images, which no file needs to hold.
    scores : list of float
    p_values : list of float or None
        Of these scores, if there is a :class:`ConformalDetector`.
    """

    images: list[np.ndarray] | None
    scores: list[float]
    p_values: list[float] | None

    @classmethod
    def of(cls, detector: Any, images: Any) -> Probes:
        """Score images, or the synthetic ones.

        Raises
        ------
        ValueError
            `images` are none, or too many.
        """
        kept = None
        if images is not None:
            images = as_images(images)
            if not 1 <= len(images) <= _MAX_PROBES:
                raise ValueError(f"probes must be 1 to {_MAX_PROBES} images, got {len(images)}.")
            kept = [_storable(image) for image in images]
        scores = _score_each(innermost(detector), squares() if kept is None else kept)
        return cls(kept, scores, _p_values(detector, scores))

    @classmethod
    def read(cls, value: Any, reader: Reader, detector: Any) -> Probes:
        """Read from a file, and compare p-values, which depend on nothing but the file.

        Raises
        ------
        Refused
            The file holds something else, or its calibration scores give other p-values.
        """
        found = reader.decode({"dict": value})
        try:
            _FIELDS(found, Scope({}))
        except ValueError as error:
            refuse(f"has no probes: what stands for them {error}")
        probes = cls(**found)
        if probes.images is not None:
            if not 1 <= len(probes.images) <= _MAX_PROBES:
                refuse(f"has {len(probes.images)} probe images; expected 1 to {_MAX_PROBES}")
            if any(image.shape[2] not in (1, 3, 4) or 0 in image.shape for image in probes.images):
                refuse("has probes that are not images")
        expected = len(squares() if probes.images is None else probes.images)
        if len(probes.scores) != expected:
            refuse(f"does not have a score for each of its {expected} probes")
        now = _p_values(detector, probes.scores)
        if (now is None) != (probes.p_values is None) or not np.array_equal(
            np.array(now or []), np.array(probes.p_values or []), equal_nan=True
        ):
            refuse("has calibration_scores_ that give its probes other p-values than those that were saved")
        return probes

    def replay(self, detector: Any, tolerance: float, made: Any, path: Path) -> None:
        """Score the images again, and warn if a score has changed.

        Raises
        ------
        Refused
            The detector cannot score them.
        """
        scorer = innermost(detector)
        try:
            after = _score_each(scorer, squares() if self.images is None else self.images)
        except FORGED as error:
            refuse(f"holds a detector that cannot score its probes ({type(error).__name__}: {str(error)[:300]})")
        worst, line = 0.0, ""
        unit = np.nanstd(scorer.training_scores_)
        for k, (old, new) in enumerate(zip(self.scores, after)):
            if old == new or (math.isnan(old) and math.isnan(new)):
                continue
            drift = abs(new - old) / (abs(old - scorer.offset_) + unit)
            if not drift <= worst:
                worst = drift
                line = f"probe {k} scored {old:.9g} when it was saved and scores {new:.9g} now"
        if not worst <= tolerance:
            changed = ", ".join(f"{name} {then} -> {now}" for name, (then, now) in _changes(made).items())
            warnings.warn(
                f"{os.fspath(path)!r}: scores have drifted by up to {worst:.2g} of a score's distance from the "
                f"threshold; tolerance is {tolerance:g}. {line}. Changed since it was saved: "
                f"{changed or 'nothing known'}. Thresholds and p-values may not hold here: fit again, or use the "
                "libraries, processor and precision that saved it.",
                DriftWarning,
                stacklevel=3,
            )


def environment() -> dict[str, str]:
    """What scores may depend on besides the file."""
    return {
        "python": platform.python_version(),
        **versions(_PACKAGES),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def _changes(made: Any) -> dict[str, tuple[str, str]]:
    """How this environment differs from the one that saved a file."""
    then = made.get("environment") if isinstance(made, dict) else None
    then = then if isinstance(then, dict) else {}
    return {name: (brief(then[name]), now) for name, now in environment().items() if then.get(name, now) != now}


def _storable(image: np.ndarray) -> np.ndarray:
    """An image in a dtype that a file can hold."""
    if image.dtype in (np.uint16, np.float16):
        return image.astype(np.float64) / (65535 if image.dtype == np.uint16 else 1)
    return image


def _score_each(detector: TransformalyDetector, images: Sequence[np.ndarray]) -> list[float]:
    # one by one, because the other images of a batch may change the last digits
    return [float(detector.score_as_new([image])[0]) for image in images]


def _p_values(detector: Any, scores: list[float]) -> list[float] | None:
    """P-values by the outermost conformal detector, if there is one."""
    for each_detector in nested(detector):
        if isinstance(each_detector, ConformalDetector):
            return p_values(np.array(scores), each_detector.calibration_scores_).tolist()
    return None
