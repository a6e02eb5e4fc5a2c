"""A fit in parts: what is done with each part of the images, wherever it is, and how the parts become one fit.

`distributed` imports it. All functions here can be sent to other processes, and change none of their arguments.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.base import clone

from skl_transformaly._measuring import TrainingFeatures
from skl_transformaly.images._images import Images, as_images
from skl_transformaly.students._leaving_out import Measured
from skl_transformaly.students._regression import Sums

__all__ = [
    "PartMeasures",
    "PartSums",
    "Seen",
    "begin",
    "joined",
    "measure_left_out",
    "measure_part",
    "seen_images",
    "sum_chosen",
    "sum_part",
    "total",
]


class Seen(NamedTuple):
    """What is kept of images that were in batches; see :class:`Images`."""

    length: int
    digests: dict[int, bytes]
    thumbnails: dict[int, np.ndarray]
    unreadable: dict[int, str]

    @classmethod
    def of(cls, images: Images) -> Seen:
        """What `images` has kept."""
        return cls(len(images), images.digests, images.thumbnails or {}, images.unreadable)


_NOTHING = Seen(0, {}, {}, {})


class PartSums(NamedTuple):
    """Sums of students over the images of a part, or of several, by block; `seen` is empty if only students are fitted.

    The images themselves stay where they are.
    """

    seen: list[Seen]
    sums: dict[int, Sums]


class PartMeasures(NamedTuple):
    """What is measured of a part: `features` are None if no image could be read, `measured` without students."""

    seen: Seen
    features: dict[str, np.ndarray] | None
    sizes: dict[str, list[int]]
    measured: Measured | None


def begin(estimator: Any, parts: Sequence[Any], last: bool) -> tuple[Any, dict[int, Sums]] | None:
    """A clone of a detector or of students that has seen the first images, and what sums start from.

    None if fewer than 2 images of these parts can be read, unless they are all that there are (`last`).
    """
    X = _concatenated(parts)
    if not last and not _begin_with(X, getattr(estimator, "on_error", "raise")):
        return None
    begun = clone(estimator)
    return begun, (begun.begin_parts(X) if hasattr(begun, "begin_parts") else begun.begin_sums(X))


def sum_part(estimator: Any, part: Any, start: dict[int, Sums]) -> PartSums:
    """Sums over the images of one part."""
    part = _images_of(part)
    alone = not hasattr(estimator, "students_")
    if not len(part):  # a filter has emptied it
        return PartSums([] if alone else [_NOTHING], start)
    images = _checked(estimator, part)
    students = estimator if alone else estimator.students_
    sums = students.add_sums(images, start)
    return PartSums([] if alone else [Seen.of(images)], sums)


def total(several: Sequence[PartSums]) -> PartSums:
    """Sums over the images of all these parts."""
    sums = {index: Sums.total([part.sums[index] for part in several]) for index in several[0].sums}
    return PartSums([seen for part in several for seen in part.seen], sums)


def measure_part(detector: Any, part: Any, duplicates: np.ndarray, in_maps: np.ndarray) -> PartMeasures:
    """Measure the images of one part by a detector whose students are solved."""
    part = _images_of(part)
    if not len(part):
        return PartMeasures(_NOTHING, None, {}, None)
    images = _checked(detector, part)
    features, sizes, measured = detector._measurer().measure_part(images, duplicates, in_maps)
    seen = Seen.of(images)
    return PartMeasures(seen, features if len(seen.unreadable) < len(images) else None, sizes, measured)


def sum_chosen(detector: Any, part: Any, positions: np.ndarray, start: dict[int, Sums]) -> PartSums:
    """Sums over the images of one part at these positions."""
    images = _checked(detector, _images_of(part)).take(positions)
    return PartSums([], detector.students_.add_sums(images, start))


def measure_left_out(detector: Any, part: Any, students: Any, positions: np.ndarray, in_maps: np.ndarray) -> Measured:
    """Measure the images of one part at these positions, by students that were solved without them."""
    return students.measure_left_out(_checked(detector, _images_of(part)).take(positions), in_maps)


def seen_images(several: Sequence[Seen]) -> Images:
    """Images that were seen elsewhere, as a sequence that knows what they looked like and cannot decode them."""
    starts = np.cumsum([0, *(seen.length for seen in several)]).tolist()
    images = Images(starts[-1], _elsewhere)
    images.thumbnails = {}
    for start, seen in zip(starts, several):
        images.digests.update({start + i: digest for i, digest in seen.digests.items()})
        images.thumbnails.update({start + i: thumbnail for i, thumbnail in seen.thumbnails.items()})
        images.unreadable.update({start + i: message for i, message in seen.unreadable.items()})
    return images


def joined(parts: Sequence[PartMeasures], groups: np.ndarray) -> tuple[TrainingFeatures, Measured | None]:
    """What was measured of the images of all parts."""
    read = [part for part in parts if part.features is not None]
    if not read:
        first = next((m for part in parts for m in part.seen.unreadable.values()), "there are none")
        raise ValueError(f"No image could be read; first: {first}")
    widths = {name: (z.shape[1], z.dtype) for name, z in (read[0].features or {}).items()}
    features = {
        name: np.concatenate(
            [np.full((p.seen.length, k), np.nan, dtype) if p.features is None else p.features[name] for p in parts]
        )
        for name, (k, dtype) in widths.items()
    }
    several = [part.measured for part in parts if part.measured is not None]
    measured = Measured.joined(several) if several else None
    unseen = None if measured is None else measured.held_out
    return TrainingFeatures(features, read[0].sizes, unseen, groups), measured


def _images_of(part: Any) -> Any:
    """A partition as estimators take images: an array, or a list of what a bag or series holds."""
    if isinstance(part, np.ndarray):
        return part
    return part.tolist() if hasattr(part, "tolist") else list(part)


def _concatenated(parts: Sequence[Any]) -> Any:
    parts = [_images_of(part) for part in parts]
    if all(isinstance(part, np.ndarray) for part in parts):
        return np.concatenate(parts)
    return [image for part in parts for image in part]


def _begin_with(X: Any, on_error: str) -> bool:
    """Whether 2 of the images can be read, or raise an error when they are."""
    if len(X) < 2 or on_error == "raise" or np.ndim(X[0]) == 1:  # rows
        return len(X) >= 2
    found = 0
    for positions, _ in as_images(X, on_error=on_error).batches(2):
        found += len(positions)
        if found >= 2:
            return True
    return False


def _checked(estimator: Any, part: Any) -> Images:
    if not hasattr(estimator, "begin_parts"):
        return estimator._check_images(part, reset=False)
    images = estimator._images(part, reset=False)
    images.thumbnails = {}
    return images


def _elsewhere(i: int) -> np.ndarray:
    raise RuntimeError(f"Image {i} was read on another machine, and is not at hand here.")
