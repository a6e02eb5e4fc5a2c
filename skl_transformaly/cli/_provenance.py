"""How a model was made: its teacher and settings, the images of the fit, seed, versions and time."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path, PurePath
from typing import Any

import numpy as np

from skl_transformaly.cli._console import Output, counted
from skl_transformaly.cli._describe import describe, is_int, is_number
from skl_transformaly.images._folders import FoundFiles, walk
from skl_transformaly.images._images import Images, as_images
from skl_transformaly.images._thumbnails import has_colour
from skl_transformaly.images._values import SKIP_ADVICE, ImageError
from skl_transformaly.utils._container import DescriptionTooLarge
from skl_transformaly.utils._files import absolute_path, common_folder

__all__ = [
    "ImageFacts",
    "Provenance",
    "image_facts",
    "reason",
    "reasons",
    "save_with",
]


# Key of the metadata of a model file under which the command line keeps what it knows; all others are the user's
_KEY = "transformaly command line"


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
    coloured: bool = False  # or only tinted


def image_facts(path: str, pixels: np.ndarray) -> ImageFacts:
    """Return the facts on an image from its decoded pixels (H, W, C)."""
    height, width = pixels.shape[:2]
    images = Images(1, lambda i: pixels)
    next(images.batches(1))
    blank = bool((pixels == pixels[:1, :1]).all())
    return ImageFacts(path, "", height, width, images.digests[0].hex(), blank, has_colour(pixels))


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
    # those images, relative to `root`, also those that were not learned: known anomalies, and what `trim` left out
    files: list[str] = field(default_factory=list)
    # positions in `files` of the images that the detector was given, in its order; -1 for unreadable ones
    fitted: list[int] = field(default_factory=list)
    # each without its own part in the fit; None for those that were not learned
    scores: list[float | None] = field(default_factory=list)
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
        """Describe a fitted detector, whose images are at `paths`; those at the positions `kept` are named.

        None is named if they lie on several drives.
        """
        place = {i: k for k, i in enumerate(kept)}
        known = list(dict.fromkeys([*filter(None, paths), *unreadable]))
        root = common_folder(known)
        if known and not root:  # Windows has no folder above two drives
            return cls(**{"settings": describe(detector), **more})
        # with the same separator on all systems
        names = {path: Path(absolute_path(path)).relative_to(root).as_posix() for path in known}
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

    @classmethod
    def found_below(cls, detector: Any, folder: str | os.PathLike) -> Provenance:
        """Find the images of a detector whose file does not name them, such as one saved in Python, by their pixels."""
        root = absolute_path(folder)
        found = FoundFiles()
        walk(root, found, found.paths.append)
        size = getattr(detector.extractor_, "image_size_", None)
        places: dict[str, list[int]] = {}  # positions in the fit, by digest: copies have the same
        for position, digest in enumerate(detector.training_digests_):
            if digest.any():
                places.setdefault(bytes(digest).hex(), []).append(position)
        made = cls(root=root, fitted=[-1] * len(detector.training_digests_))
        for path in found.paths:
            try:
                digest = image_facts(path, as_images([path]).reduced(size)[0]).digest
            except ImageError:
                continue
            if not places.get(digest):
                continue
            position = places[digest].pop(0)
            made.fitted[position] = len(made.files)
            made.files.append(Path(path).relative_to(root).as_posix())
            score = detector.training_scores_[position]
            made.scores.append(None if np.isnan(score) else float(score))
            made.digests.append(digest)
        return made

    def places(self, folder: str | os.PathLike, i: int) -> list[str]:
        """Return where file `i` may be below `folder`, which is the root now, or one of the folders below the root."""
        parts = PurePath(self.files[i]).parts
        paths = [str(Path(folder, *parts[start:])) for start in range(len(parts))]
        return [path for path in paths if os.path.lexists(path)] or paths[:1]

    def to_json(self) -> dict[str, Any]:
        """Convert to metadata of a model file: numbers, strings, lists and dicts."""
        return {_KEY: {name: value for name, value in asdict(self).items() if name != "own"}}

    @classmethod
    def from_json(cls, content: Any) -> Provenance:
        """Convert from the metadata of a model file, perhaps a stranger's; empty if the command line did not make it.

        Raises ValueError if it is not valid.
        """
        own = content.get(_KEY, {}) if isinstance(content, dict) else content
        if not isinstance(own, dict):
            raise ValueError(f"The metadata of a model must be a dict, got {type(own).__name__}.")
        known = {item.name: own[item.name] for item in fields(cls) if item.name in own}
        made = cls(**{**known, "own": False})
        n = len(made.files) if isinstance(made.files, list) else -1
        checks = {
            "root": isinstance(made.root, str),
            "files": n >= 0 and all(isinstance(name, str) and _stays_below(name) for name in made.files),
            "fitted": _all(made.fitted, list, lambda i: is_int(i) and -1 <= i < n),
            "scores": _all(made.scores, list, lambda x: x is None or is_number(x)) and len(made.scores) in (0, n),
            "digests": _all(made.digests, list, lambda x: isinstance(x, str)) and len(made.digests) in (0, n),
            "unreadable": _is_text(made.unreadable),
            "hidden": is_int(made.hidden),
            "other": is_int(made.other),
            "seed": made.seed is None or is_int(made.seed),
            "seconds": is_number(made.seconds),
            "settings": _is_text(made.settings),
        }
        wrong = [name for name, right in checks.items() if not right]
        if wrong:
            raise ValueError(f"The metadata of the model are not valid: {', '.join(wrong)}.")
        return made


def save_with(
    made: Provenance,
    detector: Any,
    path: Path,
    metadata: Mapping[str, Any],
    out: Output,
    *,
    teacher: bool = True,
) -> None:
    """Save a detector, perhaps without its `teacher`, with how it was made besides `metadata`.

    Names of its images are left out if they are too long. The warnings say what a model without names cannot do.
    """
    from skl_transformaly.persistence import save

    without = "which names none: reports show no neighbours, and `update` leaves students as they are."
    if not made.fitted:  # which has one position for each image otherwise
        out.warn(f"the images lie on several drives, and a model file has room for one folder, {without}")
    try:
        save(detector, path, teacher=teacher, metadata={**metadata, **made.to_json()})
    except DescriptionTooLarge:
        if not made.files:
            raise
        out.warn(f"the names of {counted(len(made.files), 'image')} are too much for a model file, {without}")
        made.files, made.fitted, made.scores, made.digests = [], [], [], []
        save(detector, path, teacher=teacher, metadata={**metadata, **made.to_json()})


def _all(values: Any, kind: type, right: Callable[[Any], bool]) -> bool:
    return isinstance(values, kind) and all(right(value) for value in list(values))  # type: ignore[call-overload]


def _is_text(values: Any) -> bool:
    return isinstance(values, dict) and all(
        isinstance(key, str) and isinstance(value, str) for key, value in values.items()
    )


def _stays_below(name: str) -> bool:
    path = PurePath(name)
    return not path.anchor and ".." not in path.parts and "\0" not in name
