"""What a model is made of, as text: of a fitted detector, or of the header of a file, which may hold anything."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

__all__ = ["count_learned", "describe", "is_int", "is_number", "outline", "saved_with"]


def is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def is_number(value: Any) -> bool:
    """Whether it is a number that a float can hold: integers of JSON have no end."""
    return isinstance(value, float) or (is_int(value) and abs(value) < 2**63)


def count_learned(header: Mapping[str, Any]) -> int | None:
    """Return the number of images that a model has learned, from the header of its file; None if it does not say."""
    made = header.get("made")
    given = made if isinstance(made, dict) else {}
    numbers = [given.get("n_images"), given.get("n_unreadable", 0), given.get("n_trimmed", 0)]
    known = [number for number in numbers if isinstance(number, int)]
    return known[0] - known[1] - known[2] if len(known) == len(numbers) else None


def saved_with(header: Mapping[str, Any]) -> dict[str, str]:
    """Return when and with what a model file was saved, from its header, which may hold anything, as text."""
    made = header.get("made")
    made = made if isinstance(made, dict) else {}
    environment = made.get("environment")
    environment = environment if isinstance(environment, dict) else {}
    unreadable, trimmed = made.get("n_unreadable"), made.get("n_trimmed")
    words = {
        "saved": str(made.get("saved_at", "")),
        "images of the fit": f"{made.get('n_images', '')}"
        + (f", {unreadable} of them unreadable" if unreadable else "")
        + (f", {trimmed} of them left out by trim" if trimmed else ""),
        "saved with": ", ".join(f"{name} {value}" for name, value in environment.items()),
    }
    return {name: value for name, value in words.items() if value}


def outline(header: Mapping[str, Any]) -> dict[str, str]:
    """Return what the header of a model file, which may hold anything, says of the parts of a detector, as text.

    This is less than `describe` returns. It serves models without that description, such as those saved in Python.
    """
    teachers = [one for one in _items(header, "teachers") if isinstance(one, dict)]
    settings = {
        "teacher": ", ".join(str(one.get("model_name", "")) for one in teachers),
        "weights": ", ".join("in the file" if one.get("stored") is True else "not in the file" for one in teachers),
        "weights SHA-256": ", ".join(str(one.get("sha256", "")) for one in teachers),
    }
    for one in _items(header, "objects"):
        state = one.get("state") if isinstance(one, dict) else None
        if isinstance(state, dict) and "offset_" in state:
            params = one.get("params")
            params = params if isinstance(params, dict) else {}
            said = {
                "feature spaces": ", ".join(map(str, _items(state, "feature_spaces_"))),
                "contamination": str(params.get("contamination", "")),
                "promised false-positive rate": str(params.get("alpha", "")),
                "threshold": f"{state['offset_']:.6g}" if is_number(state["offset_"]) else "",
            }
            settings.update({name: value for name, value in said.items() if value})  # the outermost comes last
    return {name: value for name, value in settings.items() if value}


def _items(content: Mapping[str, Any], name: str) -> list:
    found = content.get(name)
    return found if isinstance(found, list) else []


def describe(detector: Any) -> dict[str, str]:
    """Return names and values, as text, of the parts of a fitted detector."""
    # whose libraries take long to import
    from skl_transformaly._wrappers import innermost
    from skl_transformaly.cli._trust import FalseAlarms
    from skl_transformaly.teacher._architecture import BUNDLED_MODEL

    inner = innermost(detector)
    extractor = inner.extractor_
    name = str(getattr(extractor, "model_name", type(extractor).__name__))
    bundled = name == "bundled"
    settings = {
        "teacher": f"bundled, {BUNDLED_MODEL}" if bundled else name,
        "weights": "" if bundled else str(getattr(extractor, "weights", "")),
        "weights SHA-256": str(getattr(extractor, "weights_sha256_", "")),
        "image size": " x ".join(str(side) for side in getattr(extractor, "image_size_", ())),
        "precision": str(getattr(extractor, "precision_", "")),
        "feature spaces": ", ".join(inner.feature_spaces_),
    }
    if "discrepancy" in inner.feature_spaces_:
        students = inner.students_
        settings["students"] = "solved" if hasattr(students, "measure_training") else "trained"
        settings["students of blocks"] = ", ".join(map(str, students.block_indices_.tolist()))
    for name, space in inner.spaces_.items():
        kept, size = space.n_features_out_, space.n_features_in_
        components = f"{kept} components of {size} features" if hasattr(space, "whitening_") else f"{size} features"
        settings[f"space {name}"] = f"{components}, {space.density_}"
    if hasattr(detector, "calibration_scores_"):
        settings["calibration"] = f"{len(detector.calibration_scores_)} normal images"
        settings["promised false-positive rate"] = f"{detector.alpha:.4g}"
    elif (alarms := FalseAlarms.of(inner)) is not None:
        n = int(np.isfinite(inner.training_scores_).sum())
        copies = f" and its copies: {alarms.images} different ones" if alarms.images < n else ""
        settings["calibration"] = f"{n} training images, each scored without itself{copies}"
        settings["expected false-positive rate"] = f"{alarms.expected:.2g}"
    else:
        settings["calibration"] = "none: the threshold is a quantile of the training scores"
    if hasattr(detector, "offset_"):
        settings["threshold"] = f"{detector.offset_:.6g}"
    return {name: value for name, value in settings.items() if value}
