"""From images to the features of each space, by the teacher, its students, and students that have not seen them."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from skl_transformaly._cleaning import near_duplicates
from skl_transformaly.images._sequence import Images
from skl_transformaly.students._imitation import Comparer
from skl_transformaly.students._leaving_out import Measured
from skl_transformaly.teacher._features import TeacherFeatures
from skl_transformaly.teacher._kernels import releasing
from skl_transformaly.utils._cache import Cache, fingerprint, identity
from skl_transformaly.utils._labels import folds

__all__ = ["NOT_FINITE", "Measurer", "TrainingFeatures", "copies", "enlarge", "release_checkpoint"]

# Number of folds for trained students: as many more sets of students are trained, each on the other folds.
_TRAINED_FOLDS = 3

NOT_FINITE = "The teacher or a student gave a value that is not finite. Give the extractor precision='float32'."


class TrainingFeatures(NamedTuple):
    """What is measured of training images.

    Attributes
    ----------
    features : dict of str to ndarray of shape (n, D_space)
        By space; NaN for unreadable images.
    sizes : dict of str to list of int
        By space, sizes of the groups of its features.
    unseen : ndarray of shape (n, k * m) or None
        Discrepancies by students that did not see the image; None without students, or if nobody asked for them.
    groups : ndarray of shape (n,), int
        Which images are copies of each other; see `copies`.
    """

    features: dict[str, np.ndarray]
    sizes: dict[str, list[int]]
    unseen: np.ndarray | None
    groups: np.ndarray


class Measurer:
    """Measures images by a fitted teacher and, if "discrepancy" is among the spaces, its fitted students.

    Parameters
    ----------
    extractor : fitted extractor
    students : fitted students or None
    spaces : sequence of str
        Names of the feature spaces, in their usual order.
    cache : Cache
        Where features are stored.
    widths : dict of str to int, default=None
        Number of features of each space, in case no image can be read; None if it is not known yet.
    drawn : bool, default=False
        Whether each fit draws new seeds for the students, so that caching more of them is useless.

    Attributes
    ----------
    fold_students : list
        Students that were trained to measure training images which they have not seen.
    """

    def __init__(
        self,
        extractor: Any,
        students: Any,
        spaces: Sequence[str],
        cache: Cache,
        *,
        widths: dict[str, int] | None = None,
        drawn: bool = False,
    ):
        self.extractor = extractor
        self.students = students
        self.spaces = list(spaces)
        self.cache = cache
        self.widths = widths or {}
        self.drawn = drawn
        self.fold_students: list[Any] = []

    def measure(self, images: Images) -> dict[str, np.ndarray]:
        """Compute features of each space, (n, D_space), NaN for unreadable images, unless the cache has them."""
        key = self._key(images)
        return self.run(images)[0] if key is None else self.cache("features", key, lambda: self.run(images)[0])

    def run(
        self, images: Images, maps: list[np.ndarray | None] | None = None
    ) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
        """Compute features by the teacher and all students, and sizes of their groups; fill `maps` if it is given."""
        collected = TeacherFeatures(self.extractor, self.spaces, len(images))
        z_fs = np.full((len(images), self._n_discrepancies), np.nan)
        compare = Comparer(self.extractor, self.students, maps=maps is not None, collect=collected.collect)
        for positions, pixels in releasing(images.batches(self.extractor.batch_size)):
            found = compare(self.extractor.preprocess(pixels), positions)
            z_fs[positions] = found.discrepancies
            if maps is not None:
                for position, image, single in zip(positions, pixels, found.maps):
                    maps[position] = enlarge(single.mean(axis=0), images.size(position, image))
        return self._collected(collected, z_fs, images), collected.sizes

    def measure_training(self, images: Images, held_out: bool) -> TrainingFeatures:
        """Measure the training images, each by students that did not see it as well if `held_out`."""
        key = self._key(images)
        run = partial(self._run_training, images, held_out)
        found = run() if key is None else self.cache("features of training images", {**key, "held out": held_out}, run)
        features, sizes, unseen, groups, state = found
        if state is not None:
            self.students.set_training_state(state)
        return TrainingFeatures(features, sizes, unseen, groups)

    def measure_part(
        self, images: Images, duplicates: np.ndarray, in_maps: np.ndarray
    ) -> tuple[dict[str, np.ndarray], dict[str, list[int]], Measured | None]:
        """Measure some of the training images of students that were solved; see :meth:`RidgeStudents.measure_part`.

        Returns
        -------
        features : dict of str to ndarray of shape (n, D_space)
        sizes : dict of str to list of int
        measured : Measured or None
            None without students.
        """
        if self.students is None:
            return *self.run(images), None
        collected = TeacherFeatures(self.extractor, self.spaces, len(images))
        measured = self.students.measure_part(images, duplicates, in_maps, collected.collect)
        return self._collected(collected, measured.fitted, images), collected.sizes, measured

    @property
    def _n_discrepancies(self) -> int:
        return 0 if self.students is None else len(self.students.get_feature_names_out())

    def _key(self, images: Images) -> dict[str, Any] | None:
        """What the features of the images depend on; None without a cache, or if students are not in it."""
        if not self.cache.active:
            return None
        students = None if self.students is None else self.students.cache_keys_
        if students is not None and not students:  # fitted without a cache
            return None
        return {
            "images": fingerprint(images),
            "teacher": identity(self.extractor),
            "spaces": self.spaces,
            "students": students,
        }

    def _run_training(self, images: Images, held_out: bool) -> tuple[dict, dict, np.ndarray | None, np.ndarray, Any]:
        if not hasattr(self.students, "measure_training"):
            features, sizes = self.run(images)
            groups = copies(images)
            unseen = self._cross_fit(images, groups) if self.students is not None and held_out else None
            return features, sizes, unseen, groups, None
        collected = TeacherFeatures(self.extractor, self.spaces, len(images))
        groups = copies(images)
        self.students.measure_training(images, collected.collect, groups)
        features = self._collected(collected, self.students.training_discrepancies_, images)
        unseen = self.students.held_out_discrepancies_
        return features, collected.sizes, unseen, groups, self.students.training_state()

    def _cross_fit(self, images: Images, groups: np.ndarray) -> np.ndarray:
        """Compute discrepancies of the training images by students that were trained on the other folds."""
        readable = np.array([i for i in range(len(images)) if i not in images.unreadable])
        unseen = np.full((len(images), self._n_discrepancies), np.nan)
        splits = folds(groups[readable], len(readable), count=_TRAINED_FOLDS) if len(readable) > 1 else []
        if any(len(train) < 2 for train, _ in splits):
            raise ValueError(
                f"Students that are trained need at least 3 images that differ, so that some can be held out, got "
                f"{len(np.unique(groups[readable]))}: give more, or take RidgeStudents()."
            )
        for train, test in splits:
            students = self.students.for_fold(len(readable), len(train))
            self.fold_students.append(students)
            cache = Cache(None) if self.drawn else self.cache
            students._fit(images.take(readable[train]), self.extractor, cache)
            unseen[readable[test]] = students.transform(images.take(readable[test]))
        return unseen

    def _collected(self, collected: TeacherFeatures, z_fs: np.ndarray, images: Images) -> dict[str, np.ndarray]:
        features = {}
        for space in self.spaces:
            if space == "discrepancy":
                features[space] = z_fs
            else:  # absent if no image could be read
                features[space] = collected.features.get(
                    space, np.full((len(images), self.widths.get(space, 1)), np.nan)
                )
        readable = np.array([i not in images.unreadable for i in range(len(images))])
        if not all(np.isfinite(z[readable]).all() for z in features.values()):
            raise FloatingPointError(NOT_FINITE)
        return features


def release_checkpoint(students: Any) -> None:
    """Have students delete what they kept in case their fit, and what follows it, is killed."""
    if hasattr(students, "release_checkpoint"):
        students.release_checkpoint()


def copies(images: Images) -> np.ndarray:
    """Number the images, after all were in a batch, so that copies have the same number."""
    groups = images.groups()
    if images.thumbnails:
        readable = np.array(sorted(images.thumbnails))
        thumbnails = np.stack([images.thumbnails[i] for i in readable.tolist()])
        groups = groups + len(images)  # unlike the numbers that follow
        groups[readable] = near_duplicates(thumbnails, groups[readable])
    return groups


def enlarge(coarse: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """Resize a map to (H, W), bilinear."""
    image = Image.fromarray(coarse.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))
