"""What all students share: running beside the teacher, and measuring how far and where each deviates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skl_transformaly.images._input import ImageInputMixin
from skl_transformaly.images._sequence import Images
from skl_transformaly.students._regression import RidgeStudent
from skl_transformaly.students._residuals import ResidualStatistics
from skl_transformaly.teacher._extractor import resolve_extractor
from skl_transformaly.teacher._network import BlockVisitor
from skl_transformaly.teacher._protocol import Extractor, chunk_size, find_places
from skl_transformaly.utils._chunks import Chunks
from skl_transformaly.utils._torch import at_least_float32, own_settings

__all__ = [
    "Collect",
    "Comparer",
    "Comparison",
    "ImitationMixin",
    "Part",
    "block_measures",
    "by_measure",
    "mean_square",
    "residual_of",
    "select_blocks",
]

# collect(positions) -> (visit, finish): `visit` watches the teacher's blocks while the teacher runs on these images;
# `finish` receives their embeddings at the end.
Collect = Callable[[np.ndarray], tuple[BlockVisitor | None, Callable[[Tensor], None]]]


class ImitationMixin(ImageInputMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """Mixin for students with fitted `extractor_`, `block_indices_`, `students_` and `residuals_`.

    `students_` are modules that predict a teacher block's output from its input.
    """

    extractor: str | Extractor | None
    n_blocks: int | Sequence[int] | None
    extractor_: Any  # an Extractor; persistence and export need more than its protocol
    block_indices_: np.ndarray
    students_: Any  # a property in RidgeStudents
    residuals_: list[ResidualStatistics | None]

    def _begin(self, X: Any, extractor: Extractor | None) -> tuple[Images, Extractor]:
        """Check the images, fit the teacher unless one is handed over, and choose its blocks."""
        images = self._check_images(X, reset=True)
        if extractor is None:
            extractor = clone(resolve_extractor(self.extractor), safe=False).fit(images)
        self.extractor_ = extractor
        self.block_indices_ = select_blocks(self.n_blocks, len(self.extractor_.blocks_))
        return images.reduced(getattr(extractor, "image_size_", None)), self.extractor_

    def transform(self, X: Any) -> np.ndarray:
        """Measure how far each student deviates from its teacher block.

        Parameters
        ----------
        X : images
            Any form that :class:`TransformalyDetector` takes.

        Returns
        -------
        Z : ndarray of shape (n_samples, m) or (n_samples, 2 * m), float64
            The discrepancies z_f: the mean, over tokens (or places) and channels, of the squared difference between the
            outputs of teacher block and student for the teacher block's input. If `measures_` contains "update", the
            mean squares of what each block adds to its input follow.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        ValueError
            `X` does not hold images, or an image cannot be read.
        """
        check_is_fitted(self)
        images = self._check_images(X, reset=False)
        Z = np.full((len(images), self._n_features_out), np.nan)
        compare = Comparer(self.extractor_, self)
        for positions, pixels in images.batches(self.extractor_.batch_size):
            Z[positions] = compare(self.extractor_.preprocess(pixels)).discrepancies
        return Z

    @property
    def _n_features_out(self) -> int:
        return len(self.measures_) * len(self.block_indices_)

    @property
    def measures_(self) -> tuple[str, ...]:
        """What is measured at each block: "discrepancy" and, with some students, "update"."""
        return ("discrepancy",)


@dataclass
class Part:
    """Preprocessed images and their positions among all images; can be sliced."""

    positions: np.ndarray
    batch: Tensor

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: slice) -> Part:
        return Part(self.positions[rows], self.batch[rows])


@dataclass
class Comparison:
    """Results of one run of the teacher and its students.

    Attributes
    ----------
    discrepancies : ndarray of shape (B, k * m), float64
        One column per block for each of the k `measures_` of the students.
    maps : ndarray of shape (B, m, h, w), float64
        See :class:`Comparer`; m is 0 without maps.
    """

    discrepancies: np.ndarray
    maps: np.ndarray


class Comparer:
    """Runs the teacher and its students on batches of images, and measures how far the students deviate.

    Each student runs right after its teacher block, while that block's input is still in memory, so a batch needs no
    more memory than with the teacher alone.

    Parameters
    ----------
    extractor : fitted extractor
    students : fitted students or None
        None runs the teacher alone.
    maps : bool, default=False
        Whether to map where in the image each student deviates unusually: the log of the squared difference, with
        channels decorrelated and the mean difference at the place subtracted, in standard deviations from its mean over
        training images there. If blocks differ in resolution, all maps have the finest one, and values at larger places
        are repeated.
    collect : callable, default=None
        ``collect(positions)`` is called for each part of a batch and returns ``(visit, finish)``: an additional visitor
        of the teacher's blocks, and a callable that receives the embeddings.

    Raises
    ------
    TypeError
        `maps` are asked for, and the extractor has no ``to_maps`` or its ``places_known_`` is False.
    """

    def __init__(
        self,
        extractor: Extractor,
        students: ImitationMixin | None,
        *,
        maps: bool = False,
        collect: Collect | None = None,
    ):
        self._extractor = extractor
        indices = [] if students is None else students.block_indices_.tolist()
        self._students = {} if students is None else dict(zip(indices, students.students_))
        self._usual = {} if students is None or not maps else dict(zip(indices, students.residuals_))
        self._measures = () if students is None else students.measures_
        self._to_maps = _require_places(extractor) if maps else None
        self._collect = collect
        self._chunks = Chunks("scoring", chunk_size(extractor))

    @own_settings()
    def __call__(self, batch: Tensor, positions: np.ndarray | None = None) -> Comparison:
        """Compare students and teacher on preprocessed images.

        Parameters
        ----------
        batch : Tensor of shape (B, C, H, W)
            From ``extractor_.preprocess``.
        positions : ndarray of shape (B,), default=None
            What `collect` receives, in parts; None means 0, ..., B - 1.

        Raises
        ------
        ValueError
            Maps are requested, and a block's tokens do not fill a grid or the students have no residuals to compare
            with.
        """
        positions = np.arange(len(batch)) if positions is None else positions
        discrepancies, maps = zip(*self._chunks(self._run, Part(positions, batch)))
        return Comparison(np.concatenate(discrepancies), np.concatenate(maps))

    @torch.no_grad()
    def _run(self, part: Part) -> tuple[np.ndarray, np.ndarray]:
        watch, finish = (None, None) if self._collect is None else self._collect(part.positions)
        measures: dict[int, Tensor] = {}
        maps: dict[int, Tensor] = {}

        def visit(index, block, args, kwargs, output):
            if watch is not None:
                watch(index, block, args, kwargs, output)
            if index in self._students:
                residual = residual_of(self._students[index], args, kwargs, output)
                measures[index] = block_measures(self._measures, args[0], output, residual)
                if self._to_maps is not None:
                    maps[index] = self._map(index, self._to_maps(residual))

        with self._extractor.compute():
            z_p = self._extractor.embed(part.batch, visit)
        if finish is not None:
            finish(z_p)
        z_f = by_measure(measures) if measures else z_p.new_zeros(len(z_p), 0)
        drawn = _side_by_side(maps) if maps else np.zeros((len(z_p), 0, 1, 1))
        return z_f.cpu().double().numpy(), drawn

    def _map(self, index: int, residual: Tensor) -> Tensor:
        """Return one block's map (B, 1, h, w) from residuals (B, C, h, w)."""
        statistics = self._usual[index]
        if statistics is None:
            raise ValueError(
                f"The student of block {index} has no residuals of normal images to compare with: fit again."
            )
        return statistics.standardize(residual).cpu().double().unsqueeze(1)  # accelerators may lack float64


def residual_of(student: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> Tensor:
    """Student's output minus its teacher block's for the same input; all measures are computed from this residual."""
    if isinstance(student, RidgeStudent):
        return student.to(output.device).residual(args[0], output)
    return at_least_float32(student.to(output.device)(*args, **kwargs)) - at_least_float32(output)


def _require_places(extractor: Extractor) -> Callable[[Tensor], Tensor]:
    to_maps = find_places(extractor)
    if to_maps is None and hasattr(extractor, "to_maps"):
        raise TypeError(
            "It is not known where in the image the outputs of this teacher's blocks belong: changing a quarter of an "
            "image changes another part of the map. Anomaly maps are not available with this teacher; scores do not "
            "depend on them."
        )
    if to_maps is None:
        raise TypeError(
            f"{type(extractor).__name__} has no method to_maps, which arranges a block's output as a map of the image; "
            "see TimmExtractor.to_maps."
        )
    return to_maps


def _side_by_side(maps: dict[int, Tensor]) -> np.ndarray:
    """Stack maps (B, 1, h, w) of m blocks as (B, m, H, W), at the finest resolution."""
    size = max(tuple(single.shape[2:]) for single in maps.values())
    same = [nn.functional.interpolate(maps[index], size=size, mode="nearest") for index in sorted(maps)]
    return torch.cat(same, dim=1).cpu().numpy()


def block_measures(measures: Sequence[str], x: Tensor, output: Tensor, residual: Tensor) -> Tensor:
    """Measure one block from its input, its output and the student's residual.

    Parameters
    ----------
    measures : sequence of {"discrepancy", "update"}
    x, output, residual : Tensor of shape (B, ...)

    Returns
    -------
    found : Tensor of shape (B, k)
        Mean squares, one column for each measure.
    """
    found = [mean_square(residual)]
    if "update" in measures:
        update = at_least_float32(output)
        if x.shape == output.shape:
            update = update - at_least_float32(x)
        found.append(mean_square(update).to(found[0]))
    return torch.stack(found, dim=1)


def mean_square(tensor: Tensor) -> Tensor:
    """Mean square over all but the first dimension."""
    return tensor.square().mean(tuple(range(1, tensor.ndim)))


def by_measure(found: dict[int, Tensor]) -> Tensor:
    """Put measures (B, k) of m blocks side by side, (B, k * m): one measure after another, each in order of depth."""
    return torch.stack([found[index] for index in sorted(found)], dim=2).flatten(1)


def select_blocks(n_blocks: int | Sequence[int] | None, total: int) -> np.ndarray:
    """Return ascending indices of the chosen blocks: all for None, the last n for an int, or those of a sequence.

    Raises
    ------
    ValueError
        An index is out of range or named twice, or no index is named.
    """
    if n_blocks is None:
        return np.arange(total)
    if isinstance(n_blocks, Integral):
        return np.arange(max(0, total - int(n_blocks)), total)
    places = np.asarray(n_blocks)
    if places.ndim != 1 or not len(places) or places.dtype.kind not in "iu":
        raise ValueError(f"n_blocks must be an int, None or a non-empty sequence of ints, got {n_blocks!r}.")
    if (places < -total).any() or (places >= total).any():
        raise ValueError(f"n_blocks={n_blocks!r} has an index that is not in {-total}, ..., {total - 1}.")
    unique = np.unique(places % total)
    if len(unique) < len(places):
        raise ValueError(f"n_blocks={n_blocks!r} names a block twice; index -1 is the same as {total - 1}.")
    return unique
