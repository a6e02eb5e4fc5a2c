"""Measures of solved students on their own training images, with each image included and left out."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skl_transformaly.students._imitation import block_measures, by_measure, mean_square, residual_of
from skl_transformaly.students._regression import leave_out
from skl_transformaly.students._residuals import MAP_IMAGES, ResidualStatistics, evenly, most_in_maps
from skl_transformaly.teacher._network import BlockVisitor
from skl_transformaly.teacher._protocol import find_places

__all__ = ["Measured", "TrainingMeasures", "folds_of_copies", "map_positions"]

# Copies that are not equal to the pixel are left out in at most this many folds, each of which solves all students.
_COPY_FOLDS = 20


def map_positions(n: int) -> np.ndarray:
    """Return the positions, ascending, of those of `n` training images that maps compare with."""
    return evenly(n, MAP_IMAGES)


def folds_of_copies(same: np.ndarray, groups: np.ndarray) -> list[np.ndarray]:
    """Return positions of images whose group has others than those of the same pixels, by folds of whole groups.

    To leave an image out as often as its group has members is right if they are all the same. Others would be left out
    as something that was never there, and the rest of the sums be no sums of images.

    >>> [fold.tolist() for fold in folds_of_copies(np.array([0, 0, 1, 2, 3]), np.array([5, 5, 6, 7, 6]))]
    [[2, 4]]
    """
    _, groups = np.unique(groups, return_inverse=True)
    different = np.unique(np.stack([groups, same]), axis=1)[0]  # as often as a group has different members
    several = np.flatnonzero(np.bincount(different) > 1)
    parts = np.array_split(several, min(_COPY_FOLDS, len(several))) if len(several) else []
    return [np.flatnonzero(np.isin(groups, part)) for part in parts]


@dataclass
class Measured:
    """Measures of training images.

    Attributes
    ----------
    fitted : ndarray of shape (n, k * m), float64
        Measured by the students; NaN for unreadable images.
    held_out : ndarray of shape (n, k * m), float64
        Measured by students solved without the image.
    residuals : list of dict of int to Tensor
        For each block, residuals of students solved without the image, by position, for images that maps compare with.
    """

    fitted: np.ndarray
    held_out: np.ndarray
    residuals: list[dict[int, Tensor]]

    def replace(self, positions: np.ndarray, left_out: Measured) -> None:
        """Take what was measured of the images at these positions by students solved without them."""
        self.held_out[positions] = left_out.held_out
        for residuals, found in zip(self.residuals, left_out.residuals):
            for position in positions.tolist():
                residuals.pop(position, None)
            residuals.update({int(positions[i]): residual for i, residual in found.items()})

    def share(self, same: np.ndarray) -> None:
        """Give copies of an image, those of one number in `same`, the measures of the first of them.

        Each depends on the rounding of its batch, which shows in per cents where few images are left besides copies.
        """
        _, first, places = np.unique(same, return_index=True, return_inverse=True)
        for measures in (self.fitted, self.held_out):
            measures[:] = measures[first[places]]

    @classmethod
    def joined(cls, parts: Sequence[Measured]) -> Measured:
        """Concatenate the measures of several parts of the images."""
        starts = np.cumsum([0, *(len(part.fitted) for part in parts)]).tolist()
        residuals: list[dict[int, Tensor]] = [
            {start + i: found for start, by_position in zip(starts, blocks) for i, found in by_position.items()}
            for blocks in zip(*(part.residuals for part in parts))
        ]
        fitted, held_out = (np.concatenate(arrays) for arrays in zip(*((p.fitted, p.held_out) for p in parts)))
        return cls(fitted, held_out, residuals)

    def map_statistics(self, to_maps: Callable[[Tensor], Tensor] | None) -> list[ResidualStatistics | None]:
        """Statistics that anomaly maps compare residuals with, one per block."""
        return [_map_statistics([found[i] for i in sorted(found)], to_maps) for found in self.residuals]


class TrainingMeasures:
    """Measures training images while the teacher runs.

    Parameters
    ----------
    students : RidgeStudents
        Solved on the training images.
    duplicates : ndarray of shape (n,), int
        How often each image occurs, to the pixel, among all training images; 0 if the students have not seen it.
    in_maps : ndarray of int
        Positions of the images whose residuals are kept.
    """

    def __init__(self, students: Any, duplicates: np.ndarray, in_maps: np.ndarray):
        self.students = students
        self.duplicates = duplicates
        n, m, columns = len(duplicates), len(students.block_indices_), len(students.get_feature_names_out())
        # residuals by position, since a part may run again
        self.found = Measured(np.full((n, columns), np.nan), np.full((n, columns), np.nan), [{} for _ in range(m)])
        self._places = {index: j for j, index in enumerate(students.block_indices_.tolist())}
        self._solutions = [tuple(map(torch.from_numpy, arrays)) for arrays in students._inverses]
        self._in_maps = in_maps if find_places(students.extractor_) is not None else in_maps[:0]

    @contextmanager
    def of(self, positions: np.ndarray, visit_also: BlockVisitor | None) -> Iterator[BlockVisitor]:
        """Yield a visitor of the teacher's blocks for a run on these images; it calls `visit_also` first."""
        seen: dict[int, Tensor] = {}
        unseen: dict[int, Tensor] = {}

        def visit(index, block, args, kwargs, output):
            if visit_also is not None:
                visit_also(index, block, args, kwargs, output)
            if index in self._places:
                with torch.autocast(output.device.type, enabled=False):
                    seen[index], unseen[index] = self._at(self._places[index], positions, args, output)

        yield visit
        self.found.fitted[positions] = by_measure(seen).cpu().double().numpy()
        self.found.held_out[positions] = by_measure(unseen).cpu().double().numpy()

    def _at(self, j: int, positions: np.ndarray, args: tuple, output: Tensor) -> tuple[Tensor, Tensor]:
        """Measures (B, k) at the j-th block, with each image included and left out; residuals are kept for maps."""
        student = self.students.students_[j]
        residual = residual_of(student, args, {}, output)
        # on an accelerator they stay there, instead of being copied for each batch
        dtype = self._solutions[j][0].dtype if residual.device.type in ("cpu", "cuda") else residual.dtype
        self._solutions[j] = tuple(part.to(residual.device, dtype) for part in self._solutions[j])
        left_out = leave_out(student, args[0], output, residual, self._solutions[j], self.duplicates[positions])
        seen = block_measures(self.students.measures_, args[0], output, residual)
        unseen = seen.to(left_out, copy=True)  # updates do not depend on students
        unseen[:, 0] = mean_square(left_out)
        in_maps = self._in_maps[evenly(len(self._in_maps), most_in_maps(left_out[0]))]
        for i in np.flatnonzero(np.isin(positions, in_maps)).tolist():
            # a copy, since a view would keep the whole batch in memory
            self.found.residuals[j][int(positions[i])] = left_out[i].to("cpu", torch.float32, copy=True).contiguous()
        return seen, unseen


def _map_statistics(residuals: list[Tensor], to_maps: Callable[[Tensor], Tensor] | None) -> ResidualStatistics | None:
    """Statistics of a student's residuals on normal images; None if outputs cannot be arranged as maps."""
    if not residuals or to_maps is None:
        return None
    try:
        return ResidualStatistics.fit(to_maps(torch.stack(residuals)))
    except ValueError:  # tokens do not fill a grid; a request for a map raises the error
        return None
