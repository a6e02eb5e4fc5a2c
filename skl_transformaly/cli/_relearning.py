"""The input of ``transformaly update``: a file of labels, and the images that a model was fitted on."""

from __future__ import annotations

import csv
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np

from skl_transformaly._detector import TransformalyDetector
from skl_transformaly.cli._app import Mistake
from skl_transformaly.cli._console import counted
from skl_transformaly.cli._describe import describe
from skl_transformaly.cli._provenance import Provenance, image_facts, reason
from skl_transformaly.images._folders import FoundFiles
from skl_transformaly.images._images import as_images
from skl_transformaly.images._values import ImageError
from skl_transformaly.utils._files import absolute_path
from skl_transformaly.utils._labels import FORGOTTEN, KNOWN_ANOMALY, TRIMMED

__all__ = ["Earlier", "Lessons", "read_labels"]


def read_labels(path: Path) -> dict[str, int]:
    """Read labels, 1 or -1, by absolute path, from the columns ``path`` and ``label`` that a report saved."""
    labels: dict[str, int] = {}
    with open(path, encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        rows = csv.DictReader(file)
        try:
            if not {"path", "label"} <= set(rows.fieldnames or ()):
                raise Mistake(f"{str(path)!r} must have the columns path and label, separated by a comma.")
            for row in rows:
                label = {"1": 1, "+1": 1, "-1": -1}.get((row["label"] or "").strip())
                line = f"{str(path)!r}, line {rows.line_num}"
                if label is None or not row["path"]:
                    raise Mistake(f"{line}: expected path,1 or path,-1, got {_line(row)!r}.")
                if labels.setdefault(absolute_path(row["path"]), label) != label:
                    raise Mistake(f"{str(path)!r} labels {row['path']!r} as normal and as an anomaly: keep one line.")
        except csv.Error as error:  # such as a quote that is never closed
            raise Mistake(f"{str(path)!r}, line {rows.line_num + 1}: expected path,1 or path,-1 ({error}).") from error
    if not labels:
        raise Mistake(f"{str(path)!r} holds no labels.")
    return labels


def _line(row: Mapping[Any, Any]) -> str:
    """Return a row of `csv.DictReader`, in which extra fields are a list and missing ones None, as a line."""
    fields = [field for value in row.values() for field in (value if isinstance(value, list) else [value])]
    return ",".join(field for field in fields if field is not None)


@dataclass
class Earlier:
    """The images that a detector was fitted on, by position in the fit."""

    detector: Any
    made: Provenance
    root: str  # folder of the images now, "" if unknown
    paths: list[str]  # "" if unknown
    digests: list[str]  # of the pixels

    @classmethod
    def of(cls, detector: Any, metadata: Any, normal: Path | None) -> Earlier:
        """Find the images of a detector whose file has `metadata`; `normal` is their folder, if it was moved."""
        if not isinstance(detector, TransformalyDetector):
            raise Mistake(f"update takes a model that `transformaly fit` made, got a {type(detector).__name__}.")
        made = Provenance.from_json(metadata)
        if normal is not None and not made.files:
            made = Provenance.found_below(detector, normal)
        n = len(detector.training_labels_)
        fitted = made.fitted if len(made.fitted) == n else [-1] * n
        root = made.root if normal is None else absolute_path(normal)
        digests = [bytes(row).hex() if row.any() else "" for row in detector.training_digests_]
        paths = [_place(detector, made, root, i, digest) if i >= 0 else "" for i, digest in zip(fitted, digests)]
        return cls(detector, made, root, paths, digests)

    @property
    def labels(self) -> np.ndarray:
        """Labels of the images; see `TransformalyDetector.training_labels_`."""
        return self.detector.training_labels_

    @property
    def learned(self) -> int:
        """Number of images that count as normal."""
        return int(np.isfinite(self.detector.training_scores_).sum())

    @property
    def solved(self) -> bool:
        """Whether the detector has students that are to be solved again."""
        return hasattr(getattr(self.detector, "students_", None), "measure_training")

    def why_not_again(self, lessons: Lessons, advance: Callable[[float], None]) -> str:
        """Return why the images cannot be learned again; "" if all are where they were and unchanged."""
        needed = self.labels != FORGOTTEN
        needed[lessons.taken_back] = False
        needed &= np.array([bool(digest) for digest in self.digests])  # what could not be read was never learned
        unnamed = [i for i in np.flatnonzero(needed) if not self.paths[i]]
        if unnamed:
            if self.root:
                return f"{counted(len(unnamed), 'image')} of the fit cannot be found below {self.root!r}"
            return f"The model file does not name {counted(len(unnamed), 'image')} that it was fitted on"
        gone, changed = [], []
        for i, path in enumerate(self.paths):
            advance(1)
            if not needed[i]:
                continue
            digest = _digest(path, self.detector)
            if digest is None:
                gone.append(path)
            elif digest != self.digests[i]:
                changed.append(path)
        found = [
            f"{counted(len(paths), 'image')} of the fit {what}, such as {paths[0]!r}"
            for paths, what in ((gone, "cannot be found or read"), (changed, "changed since"))
            if paths
        ]
        return " and ".join(found)

    def hand_over(self) -> None:
        """Pass the earlier images, which are not in its file, to the detector."""
        # the path of a folder for images that could not be read
        paths = [path if path and digest else os.curdir for path, digest in zip(self.paths, self.digests)]
        self.detector.set_training_images(as_images(paths, on_error="skip"))

    def provenance_after(self, lessons: Lessons, exact: bool, seconds: float, new: FoundFiles | None) -> Provenance:
        """Return how the model is made after the detector has learned the lessons."""
        detector, made = self.detector, self.made
        paths = [*self.paths, *lessons.normal, *lessons.anomalies]
        kept = [i for i, path in enumerate(paths) if path and detector.training_labels_[i] != FORGOTTEN]
        kept = [i for i in kept if detector.training_digests_[i].any()]
        earlier = {str(Path(self.root, name)): why for name, why in made.unreadable.items()}
        learned = {*lessons.normal, *lessons.anomalies}  # some of them by now, if they were repaired
        update = f"{lessons.kept_by(detector)} learned, {lessons.unlearned} taken back, " + (
            f"{counted(len(lessons.anomalies), 'known anomaly')}, "
            f"students {'learned anew' if self.solved and exact else 'as they were'}"
        )
        settings = describe(detector)
        history = [made.settings.get("updates", ""), f"{datetime.now(timezone.utc):%Y-%m-%d}: {update}"]
        settings["updates"] = "; ".join(text for text in history if text)
        after = Provenance.of(
            detector,
            paths,
            kept,
            {**lessons.unreadable, **{path: why for path, why in earlier.items() if path not in learned}},
            hidden=made.hidden + (new.hidden if new else 0),
            other=made.other + (new.other if new else 0),
            seed=made.seed,
            seconds=round(seconds, 1),
            settings=settings,
        )
        after.root = after.root or self.root
        return after


@dataclass
class Lessons:
    """Images and labels that the model does not know yet."""

    normal: list[str] = field(default_factory=list)  # absolute paths of images to learn as normal
    anomalies: list[str] = field(default_factory=list)  # and as known anomalies
    # positions in the fit of images whose label has changed
    taken_back: list[int] = field(default_factory=list)
    unlearned: int = 0  # number of these that had been learned as normal
    known: int = 0  # number of images that the model knows with the same label
    copies: int = 0  # number of images that are copies of others that were given
    left_out: list[str] = field(default_factory=list)  # paths of images to learn as normal that `trim` left out
    unreadable: dict[str, str] = field(default_factory=dict)  # absolute paths, and why

    def __bool__(self) -> bool:
        return bool(self.normal or self.anomalies or self.taken_back)

    @classmethod
    def of(cls, given: Mapping[str, int], earlier: Earlier, advance: Callable[[float], None]) -> Lessons:
        """Compare labels, by absolute path, with those that a detector has learned; copies of an image count once."""
        lessons = cls()
        positions = _positions(earlier)
        by_path = {absolute_path(path): i for i, path in enumerate(earlier.paths) if path}
        seen: dict[str, tuple[str, int]] = {}
        for path, label in given.items():
            advance(1)
            try:
                digest = _read_digest(path, earlier.detector)
            except ImageError as error:
                lessons._without_pixels(path, label, by_path.get(path), error, earlier)
                continue
            other = seen.setdefault(digest, (path, label))
            if other[1] != label:
                raise Mistake(f"{other[0]!r} and {path!r} are copies of one image with different labels.")
            if other[0] != path:
                lessons.copies += 1
                continue
            lessons._add(path, label, positions.get(digest, []), earlier)
        return lessons

    def kept_by(self, detector: Any) -> int:
        """Return how many of the normal images `detector` learned: `trim` may leave some of them out."""
        labels = detector.training_labels_
        end = len(labels) - len(self.anomalies)
        return int(np.sum(labels[end - len(self.normal) : end] != TRIMMED))

    def _add(self, path: str, label: int, places: list[int], earlier: Earlier) -> None:
        """Add an image that is at `places` in the fit."""
        wrong = [i for i in places if (earlier.labels[i] == KNOWN_ANOMALY) == (label == 1)]
        self._take_back(wrong, earlier)
        if label == 1 and places and all(earlier.labels[i] == TRIMMED for i in places):
            self.left_out.append(path)
        elif len(wrong) < len(places):
            self.known += 1
        else:
            (self.normal if label == 1 else self.anomalies).append(path)

    def _take_back(self, places: list[int], earlier: Earlier) -> None:
        self.taken_back += places
        self.unlearned += int(np.isfinite(earlier.detector.training_scores_[places]).sum())

    def _without_pixels(self, path: str, label: int, place: int | None, error: ImageError, earlier: Earlier) -> None:
        """Add an image that cannot be read; an image of the fit can be taken back all the same."""
        if place is not None and label == -1 and earlier.labels[place] >= 0:
            self._take_back([place], earlier)
        elif not os.path.lexists(path):
            raise Mistake(
                f"{path!r} does not exist: labels have the paths of images at the time of the report. Put it back, or "
                "correct its path in the file of labels."
            )
        else:
            self.unreadable[path] = reason(path, error)


def _place(detector: Any, made: Provenance, root: str, i: int, digest: str) -> str:
    """Where file `i` is below `root` or, if it is not there, was at the time of the fit."""
    places = made.places(root, i)
    if root != made.root:
        places += [path for path in made.places(made.root, i) if os.path.lexists(path)]
    if len(places) == 1:
        return places[0]
    return next((path for path in places if _digest(path, detector) == digest), places[0])


def _positions(earlier: Earlier) -> dict[str, list[int]]:
    """Return positions in the fit by digest, without those of images that were taken back."""
    found: dict[str, list[int]] = {}
    for i, digest in enumerate(earlier.digests):
        if digest and earlier.labels[i] != FORGOTTEN:
            found.setdefault(digest, []).append(i)
    return found


def _read_digest(path: str, detector: Any) -> str:
    """Digest of the pixels as the detector decodes them."""
    pixels = as_images([path]).reduced(getattr(detector.extractor_, "image_size_", None))[0]
    return image_facts(path, pixels).digest


def _digest(path: str, detector: Any) -> str | None:
    try:
        return _read_digest(path, detector)
    except ImageError:
        return None
