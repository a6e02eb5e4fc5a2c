"""Probe images, which a detector scores when it is saved and again when it is loaded, with a warning if they differ."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Sequence
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
from skl_transformaly.persistence import _fields as f
from skl_transformaly.persistence._fields import Scope, brief, naming, refuse
from skl_transformaly.persistence._reader import Reader
from skl_transformaly.utils._versions import versions
from skl_transformaly.utils._warnings import warn_user

__all__ = ["FORGED", "DriftWarning", "environment", "read_probes", "replay", "score_probes"]

# Errors that parts may raise on a forged description that the schema does not catch.
FORGED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)

_PACKAGES = ("skl-transformaly", "torch", "timm", "numpy", "scipy", "scikit-learn", "pillow", "safetensors")
_MAX_PROBES = 64
_FIELDS = f.fields(
    images=f.optional(f.each(f.array("H", "W", "C", dtypes=("uint8", "float32", "float64")))),
    scores=f.each(f.number(finite=False)),
    p_values=f.optional(f.each(f.number(finite=False))),
)


class DriftWarning(UserWarning):
    """A loaded detector scores its probe images differently from the detector that was saved."""


def score_probes(detector: Any, images: Any) -> dict[str, Any]:
    """Score images for a file; None takes synthetic ones, which are not stored."""
    kept = None
    if images is not None:
        inner = innermost(detector)
        rows = getattr(images, "ndim", 0) == 2 and getattr(inner, "image_shape", None) is not None
        images = inner._images(images, reset=False) if rows else as_images(images)
        if not 1 <= len(images) <= _MAX_PROBES:
            raise ValueError(f"probes must be 1 to {_MAX_PROBES} images, got {len(images)}.")
        kept = [_storable(image) for image in images]
    scores = _score_each(innermost(detector), squares() if kept is None else kept)
    return {"images": kept, "scores": scores, "p_values": _p_values(detector, scores)}


def read_probes(value: Any, reader: Reader, detector: Any) -> tuple[list[np.ndarray], list[float]]:
    """Read images and scores from a file, and compare the p-values, which depend on nothing but the file."""
    with naming("probes"):
        probes = reader.decode({"dict": value})
        _FIELDS(probes, Scope({}))
    images, scores = squares() if probes["images"] is None else probes["images"], probes["scores"]
    if not 1 <= len(images) <= _MAX_PROBES:
        refuse(f"has {len(images)} probe images; expected 1 to {_MAX_PROBES}")
    if any(image.shape[2] not in (1, 3, 4) or 0 in image.shape for image in images):
        refuse("has probes that are not images")
    if len(scores) != len(images):
        refuse(f"does not have a score for each of its {len(images)} probes")
    before, now = probes["p_values"], _p_values(detector, scores)
    if (before is None) != (now is None) or not np.array_equal(before or [], now or [], equal_nan=True):
        refuse("has calibration_scores_ that give its probes other p-values than those that were saved")
    return images, scores


def replay(
    detector: Any, images: Sequence[np.ndarray], scores: list[float], tolerance: float, made: Any, path: Path
) -> None:
    """Score the images again, and warn if a score has changed."""
    scorer = innermost(detector)
    try:
        after = _score_each(scorer, images)
    except FORGED as error:
        refuse(f"holds a detector that cannot score its probes ({type(error).__name__}: {str(error)[:300]})")
    worst, line = 0.0, ""
    unit = np.nanstd(scorer.training_scores_)
    for k, (old, new) in enumerate(zip(scores, after)):
        if old == new or (math.isnan(old) and math.isnan(new)):
            continue
        drift = abs(new - old) / (abs(old - scorer.offset_) + unit)
        if not drift <= worst:
            worst = drift
            line = f"probe {k} scored {old:.9g} when it was saved and scores {new:.9g} now"
    if not worst <= tolerance:
        warn_user(
            f"{os.fspath(path)!r}: scores have drifted by up to {worst:.2g} of a score's distance from the threshold; "
            f"the tolerance is {tolerance:g}. {line}. Changed since it was saved: {_changes(made) or 'nothing known'}. "
            "Thresholds and p-values may not hold here: fit again, or use the same libraries, processor and precision.",
            DriftWarning,
        )


def environment() -> dict[str, str]:
    """What scores may depend on besides the file."""
    return {
        "python": platform.python_version(),
        **versions(_PACKAGES),
        "system": f"{platform.system()} {platform.machine()}",
        "processor": torch.backends.cpu.get_cpu_capability(),
    }


def _changes(made: Any) -> str:
    """How this environment differs from the one that saved a file."""
    then = made.get("environment") if isinstance(made, dict) else None
    then = then if isinstance(then, dict) else {}
    changed = [(name, now) for name, now in environment().items() if then.get(name, now) != now]
    return ", ".join(f"{name} {brief(then[name])} -> {now}" for name, now in changed)


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
    for part in nested(detector):
        if isinstance(part, ConformalDetector):
            return p_values(np.array(scores), part.calibration_scores_).tolist()
    return None
