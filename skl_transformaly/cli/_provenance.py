"""How a model was made: its teacher and settings, the images of the fit, seed, versions and time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from skl_transformaly._wrappers import innermost
from skl_transformaly.images._images import Images, as_images
from skl_transformaly.images._values import SKIP_ADVICE, ImageError
from skl_transformaly.teacher._architecture import BUNDLED_MODEL

__all__ = [
    "ImageFacts",
    "Provenance",
    "describe",
    "image_facts",
    "reason",
    "reasons",
    "relative_to_root",
    "saved_with",
]


@dataclass
class ImageFacts:
    """Facts on an image that need no model.

    The digest is that of the decoded pixels, as in `training_digests_` of a detector: the same for the same image in
    files of any format.
    """

    path: str
    error: str = ""  # why it cannot be read; empty if it can
    height: int = 0  # in pixels
    width: int = 0
    digest: str = ""
    blank: bool = False  # all pixels are the same


def image_facts(path: str, pixels: np.ndarray) -> ImageFacts:
    """Return the facts on an image from its decoded pixels (H, W, C)."""
    height, width = pixels.shape[:2]
    images = Images(1, lambda i: pixels)
    next(images.batches(1))
    blank = bool((pixels == pixels[:1, :1]).all())
    return ImageFacts(path, "", height, width, images.digests[0].hex(), blank)


def reasons(paths: Sequence[str], positions: Iterable[int]) -> dict[str, str]:
    """Return why the images at `positions` cannot be read, by path."""
    images = as_images(list(paths))
    found = {}
    for i in positions:
        try:
            images[i]
            found[paths[i]] = "it could not be read before, but can be read now"
        except ImageError as error:
            found[paths[i]] = reason(paths[i], error)
    return found


def reason(path: str, error: object) -> str:
    """Return the message of an :class:`ImageError` without the path at its beginning and the advice to programmers."""
    text = str(error).removeprefix(f"{path!r}: ").replace(f" file {path!r}", "")
    return text.removesuffix(SKIP_ADVICE)


@dataclass
class Provenance:
    """How a model was made, as the command line stores it in a model file."""

    root: str = ""  # folder of the images that the model was fitted on
    files: list[str] = field(default_factory=list)  # those images, relative to `root`
    # positions in `files` of the images that the detector was given, in its order; -1 for unreadable ones
    fitted: list[int] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)  # each without its own part in the fit
    digests: list[str] = field(default_factory=list)  # see `ImageFacts`
    unreadable: dict[str, str] = field(default_factory=dict)  # images relative to `root`, and why
    hidden: int = 0  # files that were passed over
    other: int = 0  # files that are not images
    seed: int | None = None
    seconds: float = 0.0  # that the fit took
    settings: dict[str, str] = field(default_factory=dict)  # see `describe`
    # whether this process made it: no folder that a file names is opened, since anyone may have written the file
    own: bool = field(default=True, compare=False)

    @classmethod
    def of(
        cls, detector: Any, paths: Sequence[str], kept: Sequence[int], unreadable: Mapping[str, str], **more: Any
    ) -> Provenance:
        """Describe a fitted detector, whose images are at `paths`; those at the positions `kept` are named."""
        place = {i: k for k, i in enumerate(kept)}
        known = list(dict.fromkeys([*filter(None, paths), *unreadable]))
        root, relative = relative_to_root(known)
        names = dict(zip(known, relative))
        scores = detector.training_scores_
        return cls(
            root=root,
            files=[names[paths[i]] for i in kept],
            fitted=[place.get(i, -1) for i in range(len(paths))],
            scores=[None if np.isnan(scores[i]) else float(scores[i]) for i in kept],
            digests=[bytes(detector.training_digests_[i]).hex() for i in kept],
            unreadable={names[path]: why for path, why in unreadable.items()},
            **{"settings": describe(detector), **more},
        )

    def to_json(self) -> dict[str, Any]:
        """Convert to numbers, strings, lists and dicts."""
        return {name: value for name, value in asdict(self).items() if name != "own"}

    @classmethod
    def from_json(cls, content: Any) -> Provenance:
        """Convert from JSON, perhaps of a file that a stranger wrote. Raises ValueError if it is not valid."""
        if not isinstance(content, dict):
            raise ValueError(f"The metadata of a model must be a dict, got {type(content).__name__}.")
        known = {item.name: content[item.name] for item in fields(cls) if item.name in content}
        made = cls(**{**known, "own": False})
        n = len(made.files) if isinstance(made.files, list) else -1
        checks = {
            "root": isinstance(made.root, str),
            "files": n >= 0 and all(isinstance(name, str) and _stays_below(name) for name in made.files),
            "fitted": _all(made.fitted, list, lambda i: _is_int(i) and -1 <= i < n),
            "scores": _all(made.scores, list, lambda x: x is None or isinstance(x, (int, float)))
            and len(made.scores) in (0, n),
            "digests": _all(made.digests, list, lambda x: isinstance(x, str)) and len(made.digests) in (0, n),
            "unreadable": _is_text(made.unreadable),
            "hidden": _is_int(made.hidden),
            "other": _is_int(made.other),
            "seed": made.seed is None or _is_int(made.seed),
            "seconds": isinstance(made.seconds, (int, float)),
            "settings": _is_text(made.settings),
        }
        wrong = [name for name, right in checks.items() if not right]
        if wrong:
            raise ValueError(f"The metadata of the model are not valid: {', '.join(wrong)}.")
        return made


def _all(values: Any, kind: type, right: Callable[[Any], bool]) -> bool:
    return isinstance(values, kind) and all(right(value) for value in list(values))  # type: ignore[call-overload]


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_text(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(key, str) and isinstance(value, str) for key, value in values.items()
    )


def _stays_below(name: str) -> bool:
    path = PurePath(name)
    return not path.anchor and ".." not in path.parts and "\0" not in name


def relative_to_root(paths: Sequence[str]) -> tuple[str, list[str]]:
    """Return the deepest folder that holds all `paths`, absolute ("" without paths), and the paths relative to it."""
    whole = [os.path.abspath(path) for path in paths]
    root = os.path.commonpath([os.path.dirname(path) for path in whole]) if whole else ""
    return root, [str(Path(path).relative_to(root)) for path in whole]


def saved_with(header: Mapping[str, Any]) -> dict[str, str]:
    """Return when and with what a model file was saved, from its header, which may hold anything, as text."""
    made = header.get("made")
    made = made if isinstance(made, dict) else {}
    environment = made.get("environment")
    environment = environment if isinstance(environment, dict) else {}
    left_out = made.get("n_unreadable")
    words = {
        "saved": str(made.get("saved_at", "")),
        "images of the fit": f"{made.get('n_images', '')}" + (f", {left_out} of them unreadable" if left_out else ""),
        "saved with": ", ".join(f"{name} {value}" for name, value in environment.items()),
    }
    return {name: value for name, value in words.items() if value}


def describe(detector: Any) -> dict[str, str]:
    """Return names and values, as text, of the parts of a fitted detector."""
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
    elif inner.held_out_:
        n = int(np.isfinite(inner.training_scores_).sum())
        settings["calibration"] = f"{n} training images, each scored without itself"
        settings["expected false-positive rate"] = f"{max(inner.contamination, 1 / (n + 1)):.2g}"
    else:
        settings["calibration"] = "none: the threshold is a quantile of the training scores"
    if hasattr(detector, "offset_"):
        settings["threshold"] = f"{detector.offset_:.6g}"
    return {name: value for name, value in settings.items() if value}
