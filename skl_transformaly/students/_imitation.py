"""What all students share: run beside the teacher, and say how far each deviates, and where."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from numbers import Integral
from typing import Any

import numpy as np
import torch
from sklearn.base import ClassNamePrefixFeaturesOutMixin, TransformerMixin, clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn

from skl_transformaly.images._images import Images
from skl_transformaly.images._input import ImageInputMixin
from skl_transformaly.students._residuals import ResidualStatistics
from skl_transformaly.teacher._extractor import resolve_extractor
from skl_transformaly.teacher._network import BlockVisitor
from skl_transformaly.utils._chunks import Halving
from skl_transformaly.utils._torch import own_settings

__all__ = [
    "Collect",
    "ImitationMixin",
    "Part",
    "at_least_float32",
    "block_measures",
    "by_measure",
    "count_prefix_tokens",
    "find_places",
    "select_blocks",
]

# collect(positions) -> (visit, finish): watch the teacher's blocks while it runs on these images, and get their
# embeddings at the end.
Collect = Callable[[np.ndarray], tuple[BlockVisitor | None, Callable[[Tensor], None]]]


@dataclass
class Part:
    """Preprocessed images, and their positions among all that are looked at; can be taken in parts."""

    positions: np.ndarray
    batch: Tensor

    @classmethod
    def of(cls, batch: Tensor, positions: np.ndarray | None = None) -> Part:
        """Images of these positions; None numbers them from 0."""
        return cls(np.arange(len(batch)) if positions is None else positions, batch)

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, rows: slice) -> Part:
        return Part(self.positions[rows], self.batch[rows])


class ImitationMixin(ImageInputMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin):
    """For estimators with fitted `extractor_`, `block_indices_`, `students_` and `_residuals`.

    `students_` are modules that turn what a teacher's block gets into what they think it gives.
    """

    extractor: Any
    n_blocks: int | Sequence[int] | None
    extractor_: Any
    block_indices_: np.ndarray
    _residuals: list[ResidualStatistics | None]

    def _begin(self, X: Any, extractor: Any) -> tuple[Images, Any]:
        """Check the images, fit the teacher if none is handed over, and choose its blocks."""
        images = self._check_images(X, reset=True)
        if extractor is None:
            extractor = clone(resolve_extractor(self.extractor), safe=False).fit(images)
        self.extractor_ = extractor
        self.block_indices_ = select_blocks(self.n_blocks, len(extractor.blocks_))
        return images, extractor

    def transform(self, X: Any) -> np.ndarray:
        """Measure how far each student deviates from its teacher block.

        Parameters
        ----------
        X : images
            Any form that :class:`TransformalyDetector` takes.

        Returns
        -------
        Z : ndarray of shape (n_samples, m) or (n_samples, 2 * m), float64
            The discrepancies z_f: mean over tokens (or places) and channels of the squared difference between
            the outputs of teacher block and student, on the teacher block's own input. After them, if "update" is
            among `measures_`, the same mean of what each block adds to its input.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        ValueError
            `X` is not images, or an image cannot be read.
        """
        check_is_fitted(self)
        images = self._check_images(X, reset=False)
        Z = np.full((len(images), self._n_features_out), np.nan)
        for positions, pixels in images.batches(self.extractor_.batch_size):
            Z[positions] = self.measure(self.extractor_.preprocess(pixels))[1]
        return Z

    @own_settings()
    def measure(
        self, batch: Tensor, *, collect: Collect | None = None, positions: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embedding and discrepancies of preprocessed images, from one run of the teacher.

        Each student runs right after its teacher block, while that block's input is at hand, so a batch
        needs no more memory than the teacher alone.

        Parameters
        ----------
        batch : Tensor of shape (B, C, H, W)
            From ``extractor_.preprocess``.
        collect : callable, default=None
            ``collect(positions)`` is called for each part of the batch that runs at a time, and returns ``(visit,
            finish)``: a visitor of the teacher's blocks besides the students, and what is called with the embeddings.
        positions : ndarray of shape (B,), default=None
            What `collect` gets, in parts; None is 0, ..., B - 1.

        Returns
        -------
        z_p : ndarray of shape (B, D), float64
        z_f : ndarray of shape (B, k * m), float64
            For each of the k `measures_`, one column a block.
        """
        z_ps, z_fs = zip(*self._in_parts(partial(self._measure, collect=collect), Part.of(batch, positions)))
        return np.concatenate(z_ps), np.concatenate(z_fs)

    @own_settings()
    def examine(
        self, batch: Tensor, *, collect: Collect | None = None, positions: np.ndarray | None = None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """All of `measure`, and ``measure_maps(standardize=True)``, from one run of the teacher.

        Parameters
        ----------
        batch, collect, positions
            As in `measure`.

        Returns
        -------
        z_p : ndarray of shape (B, D), float64
        z_f : ndarray of shape (B, k * m), float64
        maps : ndarray of shape (B, m, h, w), float64

        Raises
        ------
        TypeError, ValueError
            As `measure_maps`.
        """
        run = partial(self._examine, standardize=True, collect=collect)
        z_ps, z_fs, maps = zip(*self._in_parts(run, Part.of(batch, positions)))
        return np.concatenate(z_ps), np.concatenate(z_fs), np.concatenate(maps)

    def _in_parts(self, function: Callable[[Any], Any], part: Part | Tensor) -> list[Any]:
        if getattr(self, "_halving", None) is None:  # read from a file
            self._halving = self._new_halving()
        return self._halving(function, part)

    def _new_halving(self) -> Halving:
        return Halving("scoring", getattr(self.extractor_, "chunk_size_", None))

    def _measure(self, part: Part, collect: Collect | None) -> tuple[np.ndarray, np.ndarray]:
        found: dict[int, Tensor] = {}

        def visit(index: int, x: Tensor, output: Tensor, residual: Tensor) -> None:
            found[index] = block_measures(self.measures_, x, output, residual)

        z_p = self._compare(part, visit, collect)
        return z_p.double().cpu().numpy(), by_measure(found).double().cpu().numpy()

    @own_settings()
    def measure_maps(self, batch: Tensor, *, standardize: bool = False) -> np.ndarray:
        """Where in the image each student deviates.

        Parameters
        ----------
        batch : Tensor of shape (B, C, H, W)
            From ``extractor_.preprocess``.
        standardize : bool, default=False
            Say how unusual that is: the log of the squared difference, with channels decorrelated and the mean
            difference at the place taken off, in standard deviations over training images there; 0 is their mean.

        Returns
        -------
        maps : ndarray of shape (B, m, h, w), float64
            Mean over channels of the squared difference at each token or place, or, with `standardize`, how unusual it
            is. Where blocks differ in resolution, all maps have that of the finest, larger places being repeated.

        Raises
        ------
        TypeError
            The extractor cannot say where tokens are: it has no ``to_maps``, or its ``places_known_`` is False.
        ValueError
            A block's tokens fill no grid; or ``standardize=True`` and the students were trained by a version that did
            not keep what that takes.
        """
        parts = self._in_parts(partial(self._examine, standardize=standardize, collect=None), Part.of(batch))
        return np.concatenate([maps for _, _, maps in parts])

    def _examine(
        self, part: Part, standardize: bool, collect: Collect | None
    ) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        to_maps = find_places(self.extractor_)
        if to_maps is None:
            if hasattr(self.extractor_, "to_maps"):
                raise TypeError(
                    "It is not known where in the image the outputs of this teacher's blocks belong: if a quarter of "
                    "an image changes, another part of the map does. There are no anomaly maps with this teacher; "
                    "scores do not depend on them."
                )
            raise TypeError(
                f"{type(self.extractor_).__name__} has no method to_maps, which gives a block's output its places in "
                "the image; see TimmExtractor.to_maps."
            )
        usual: dict[int, ResidualStatistics | None] = {}
        if standardize:
            usual = dict(zip(self.block_indices_.tolist(), getattr(self, "_residuals", [])))
        maps: dict[int, Tensor] = {}
        found: dict[int, Tensor] = {}

        def visit(index: int, x: Tensor, output: Tensor, residual: Tensor) -> None:
            found[index] = block_measures(self.measures_, x, output, residual)
            residual = to_maps(residual)
            statistics = usual.get(index)
            if not standardize:
                maps[index] = residual.square().double().mean(1, keepdim=True)
            elif statistics is not None:
                maps[index] = statistics.standardize(residual).double().unsqueeze(1)
            else:
                raise ValueError(
                    f"The student of block {index} has no residuals of normal images to compare with: fit again."
                )

        z_p = self._compare(part, visit, collect)
        size = max(tuple(single.shape[2:]) for single in maps.values())
        same = [nn.functional.interpolate(maps[index], size=size, mode="nearest") for index in sorted(maps)]
        return (
            z_p.double().cpu().numpy(),
            by_measure(found).double().cpu().numpy(),
            torch.cat(same, dim=1).cpu().numpy(),
        )

    @torch.no_grad()
    def _compare(
        self, part: Part, visit: Callable[[int, Tensor, Tensor, Tensor], None], collect: Collect | None
    ) -> Tensor:
        """Run teacher and students, and return the embedding.

        For each block with a student, ``visit(index, input, output, student less teacher)`` is called.
        """
        students = dict(zip(self.block_indices_.tolist(), self.students_))
        watch, finish = (None, None) if collect is None else collect(part.positions)

        def compare(index, block, args, kwargs, output):
            if watch is not None:
                watch(index, block, args, kwargs, output)
            student = students.get(index)
            if student is not None:
                residual = at_least_float32(student.to(output.device)(*args, **kwargs)) - at_least_float32(output)
                visit(index, args[0], output, residual)

        with self.extractor_.compute():
            z_p = self.extractor_.embed(part.batch, compare)
        if finish is not None:
            finish(z_p)
        return z_p

    @property
    def _n_features_out(self) -> int:
        return len(self.measures_) * len(self.block_indices_)

    @property
    def measures_(self) -> tuple[str, ...]:
        """What is measured at each block: "discrepancy", and of some students "update"."""
        return ("discrepancy",)


def block_measures(measures: Sequence[str], x: Tensor, output: Tensor, residual: Tensor) -> Tensor:
    """Measure one block, from its input and output, and the student's output less the block's.

    Parameters
    ----------
    measures : sequence of {"discrepancy", "update"}
    x, output, residual : Tensor of shape (B, ...)

    Returns
    -------
    found : Tensor of shape (B, k)
        Mean squares of what is measured.
    """
    found = [residual.square().flatten(1).mean(1)]
    if "update" in measures:
        update = at_least_float32(output)
        if x.shape == output.shape:
            update = update - at_least_float32(x)
        found.append(update.square().flatten(1).mean(1).to(found[0]))
    return torch.stack(found, dim=1)


def by_measure(found: dict[int, Tensor]) -> Tensor:
    """Put measures (B, k) of m blocks side by side, (B, k * m): one measure after another, each in order of depth."""
    return torch.stack([found[index] for index in sorted(found)], dim=2).flatten(1)


def select_blocks(n_blocks: int | Sequence[int] | None, total: int) -> np.ndarray:
    """Places of the chosen blocks among `total`, ascending: None all, an int the last n, a sequence itself.

    Raises
    ------
    ValueError
        A place is not there, is named twice, or none is named.
    """
    if n_blocks is None:
        return np.arange(total)
    if isinstance(n_blocks, Integral):
        return np.arange(max(0, total - int(n_blocks)), total)
    places = np.asarray(n_blocks)
    if places.ndim != 1 or not len(places) or places.dtype.kind not in "iu":
        raise ValueError(f"n_blocks={n_blocks!r} must be an int, None, or a sequence of ints with at least one.")
    if (places < -total).any() or (places >= total).any():
        raise ValueError(f"n_blocks={n_blocks!r} names a block that is not there: the teacher has {total} blocks.")
    unique = np.unique(places % total)
    if len(unique) < len(places):
        raise ValueError(f"n_blocks={n_blocks!r} names a block twice; the teacher has {total} blocks.")
    return unique


def find_places(extractor: Any) -> Callable[[Tensor], Tensor] | None:
    """The extractor's `to_maps`; None if it has none, or is known not to find the right places."""
    to_maps = getattr(extractor, "to_maps", None)
    return to_maps if to_maps is not None and getattr(extractor, "places_known_", True) else None


def count_prefix_tokens(tokens: Tensor, extractor: Any) -> int:
    """How many of the tokens (B, T, C) stand for no place; 0 where the extractor cannot tell, or they fill no grid."""
    to_maps = getattr(extractor, "to_maps", None)
    if to_maps is None:
        return 0
    try:
        maps = to_maps(tokens)
    except ValueError:
        return 0
    return tokens.shape[1] - maps.shape[2] * maps.shape[3]


def at_least_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor
