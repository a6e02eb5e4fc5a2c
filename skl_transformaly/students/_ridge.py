"""RidgeStudents: students solved in closed form, from one pass over the normal images."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from torch import Tensor

from skl_transformaly.images._images import Images
from skl_transformaly.students._activations import inspect_blocks
from skl_transformaly.students._imitation import Collect, ImitationMixin, Part
from skl_transformaly.students._leaving_out import Measured, TrainingMeasures, folds_of_copies, map_positions
from skl_transformaly.students._regression import Layout, RidgeStudent, Sums
from skl_transformaly.teacher._kernels import releasing
from skl_transformaly.teacher._network import BlockVisitor
from skl_transformaly.teacher._protocol import Extractor, chunk_size, find_places
from skl_transformaly.teacher._recording import Recording
from skl_transformaly.utils._cache import Cache, fingerprint, identity
from skl_transformaly.utils._chunks import Chunks
from skl_transformaly.utils._compat import Interval, fit_context
from skl_transformaly.utils._fitting import all_or_nothing
from skl_transformaly.utils._labels import group_sizes
from skl_transformaly.utils._progress import Progress
from skl_transformaly.utils._torch import limited_threads, own_settings, single_threaded_blas

__all__ = ["RidgeStudents"]

# Inputs and outputs of the teacher's blocks are recorded on disk up to this size; beyond it, the teacher runs twice.
_RECORDED_BYTES = 2**30
# At most so many blocks are solved at a time: each takes some matrices of all its features in float64.
_SOLVED_AT_ONCE = 4
# Of so few tokens or places, 83 images of a ViT at 224 pixels, the inverse is kept in float64: with 6 photographs,
# leverages are so close to 1 that held-out discrepancies from one in float32 were up to twice as large.
_FEW_ROWS = 2**14


class RidgeStudents(ImitationMixin, BaseEstimator):
    """Ridge regressions that imitate the teacher's last blocks, solved from one pass over the images.

    For each chosen teacher block, a linear regression on normal images predicts what the block adds to its input (or
    its output, if the two differ in shape). The features of a token are the block's input there, the class token and
    the mean patch token. For models in stages, those of a place are its 3 x 3 neighbourhood, pooled to the output's
    resolution, and the mean over places. The teacher's deviation from the prediction is the discrepancy, as with
    :class:`BlockStudents`.

    Nothing is trained: only sums of products are kept of the images, so memory does not depend on their number, and
    each training image can be left out in closed form: exactly, but that the penalty stays that of all images, in size
    and in units of the features. Of five images, discrepancies differ by some per cent from those of a fit without the
    image, of twelve by less than one.

    Parameters
    ----------
    n_blocks : int, sequence of int or None, default=10
        Which teacher blocks get a student: an int selects the last n (all, if there are fewer), a sequence selects
        blocks by index (negative ones count from the end), and None selects all.
    ridge : float, default=1e-2
        Penalty on squared coefficients of standardised features, greater than 0, as a share of the number of tokens.
        Features that hardly vary are taken to have a hundredth of the median variance.
        The default was chosen from 1e-3 to 100 on the even-numbered classes of View (``benchmarks/accuracy/NOTES.md``).
    updates : bool, default=True
        Whether to measure each block's update besides its student's discrepancy: the mean square of what the block adds
        to its input (of its output, if the two differ in shape).
    extractor : str, extractor or None, default=None
        The teacher, for use outside a :class:`TransformalyDetector`: the name of a timm model, "bundled", or an
        extractor; None means ``TimmExtractor()``. It must be None inside a detector, which passes its own extractor.
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    measures_ : tuple of str
        What is measured at each block: "discrepancy" and, with `updates`, "update".
    block_indices_ : ndarray of shape (m,), int
        Indices of the imitated teacher blocks, counted from 0, ascending.
    local_weights_ : list of ndarray of shape (C_out, F), float32 or float64
        Coefficients of a token, or of a place and its neighbourhood, for each block.
    context_weights_ : list of ndarray of shape (C_out, Q), float32 or float64
        Coefficients of the class token, the mean and the constant, for each block.
    training_discrepancies_ : ndarray of shape (n_samples, k * m), float64
        Output of `transform` for the training images; NaN for unreadable ones.
    held_out_discrepancies_ : ndarray of shape (n_samples, k * m), float64
        The same, but from students solved without the image and its duplicates.
    residuals_ : list of ResidualStatistics or None
        Statistics of each held-out student's errors on training images, for anomaly maps; None if it is not known where
        in the image the outputs of the teacher's blocks belong.
    cache_keys_ : dict
        Key under which a cache stores the students; empty without a cache.
    extractor_ : extractor
        The fitted teacher.
    n_features_in_ : int
        H * W * C, if `X` was one array in `fit`.

    See Also
    --------
    BlockStudents : The paper's students, trained by gradient descent.

    Notes
    -----
    The squared error is that of M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One",
    CVPR Workshops 2022, Eq. 1; here, its minimiser is exact, for a simpler student. The residuals of an image that is
    left out are ``(I - H M H')^-1 E``, where H are its features, E its residuals, and M is the inverse of the
    regularised products: the blockwise form of the leave-one-out residual of linear regression.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly import RidgeStudents, TimmExtractor
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> teacher = TimmExtractor("vit_tiny_patch16_224", weights=None, image_size=32)
    >>> students = RidgeStudents(n_blocks=2, extractor=teacher)
    >>> students.fit_transform(images).shape
    (8, 4)
    """

    # for partial_fit, outside a detector only: the sums, and how often each image came, by its digest
    _sums: dict[int, Sums]
    _times: dict[bytes, int]

    _parameter_constraints: dict = {
        "n_blocks": [Interval(Integral, 1, None, closed="left"), "array-like", None],
        "ridge": [Interval(Real, 0, None, closed="neither")],
        "updates": ["boolean"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        n_blocks: int | Sequence[int] | None = 10,
        ridge: float = 1e-2,
        updates: bool = True,
        extractor: Any = None,
        verbose: int = 0,
    ):
        self.n_blocks = n_blocks
        self.ridge = ridge
        self.updates = updates
        self.extractor = extractor
        self.verbose = verbose

    def fit(self, X: Any, y: Any = None, *, extractor: Extractor | None = None) -> RidgeStudents:
        """Solve a student for each chosen block, and measure the training images.

        Parameters
        ----------
        X : images
            Normal images only, in any form that :class:`TransformalyDetector` takes.
        y : ignored
        extractor : fitted extractor, default=None
            The teacher to use instead of fitting a new one. The training images are then measured only by a call of
            `measure_training`.

        Returns
        -------
        self : RidgeStudents
            Outside a detector, it keeps the sums that `partial_fit` adds to.

        Raises
        ------
        ValueError
            `X` does not hold images, or `n_blocks` names a block that does not exist.
        TypeError
            The teacher's blocks cannot be imitated one by one.
        FloatingPointError
            The teacher returned a value that is not finite.
        """
        return self._fit(X, extractor, Cache(None))

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=False)
    @own_settings()
    def _fit(self, X: Any, extractor: Extractor | None, cache: Cache) -> RidgeStudents:
        """Fit, with students stored in `cache`; a detector passes its teacher and its `memory`."""
        for name in ("local_weights_", "training_discrepancies_", "held_out_discrepancies_"):
            self.__dict__.pop(name, None)  # of an earlier fit
        alone = extractor is None
        images, extractor = self._begin(X, extractor)
        self.updates_ = self.updates
        self._take_recording()
        key: dict[str, Any] = {}
        if cache.active:
            key = {
                "images": fingerprint(images),
                "teacher": identity(extractor),
                "blocks": self.block_indices_.tolist(),
                "ridge": float(self.ridge),
                "updates": self.updates_,
            }
        sums: dict[int, Sums] = {}

        def solve() -> tuple[list, list, list, list, list]:
            self._add(images, sums, record=True)
            return self._solution(dict(sums) if alone else sums)

        solved = cache("ridge students", key, solve)
        self.cache_keys_ = key
        self._set_solution(solved)
        if alone:
            self._sums, self._times = sums, dict(Counter(images.digests.values()))
            self.measure_training(images)
        return self

    @all_or_nothing
    @own_settings()
    def partial_fit(self, X: Any, y: Any = None) -> RidgeStudents:
        """Update with more images; up to rounding, the students are those of a fit on the images of all calls.

        Parameters
        ----------
        X : images
            More normal images; at least 2 in the first call.
        y : ignored

        Returns
        -------
        self : RidgeStudents
            `training_discrepancies_` and `held_out_discrepancies_` are those of this call's images.

        Raises
        ------
        ValueError
            `X` does not hold images, a parameter is out of its range, or the students are those of a detector, which
            keep no sums to add to.

        Examples
        --------
        >>> import numpy as np
        >>> from skl_transformaly import RidgeStudents, TimmExtractor
        >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
        >>> teacher = TimmExtractor("vit_tiny_patch16_224", weights=None, image_size=32, precision="float32")
        >>> parts = RidgeStudents(n_blocks=2, extractor=teacher).partial_fit(images[:3]).partial_fit(images[3:])
        >>> whole = RidgeStudents(n_blocks=2, extractor=teacher).fit(images)
        >>> bool(np.allclose(parts.transform(images), whole.transform(images), rtol=1e-3))
        True
        """
        self._validate_params()
        sums: dict[int, Sums] = {}
        times: Counter[bytes] = Counter()
        if self.__sklearn_is_fitted__():
            if not self._sums:
                raise ValueError(
                    "These students are of a detector or a file, and keep no sums to add to: pass more images to "
                    "partial_fit of the detector, or all images to fit of a new RidgeStudents."
                )
            images = self._check_images(X, reset=False)
            sums = {index: kept.copy() for index, kept in self._sums.items()}
            times.update(self._times)
            self._take_recording()
        else:
            images, _ = self._begin(X, None)
            self.updates_ = self.updates
        self._add(images, sums, record=True)
        self.cache_keys_ = {}
        self._set_solution(self._solution(dict(sums)))
        times.update(images.digests.values())
        self._sums, self._times = sums, dict(times)
        # copies are left out together, those of earlier calls as well
        duplicates = np.array([times[images.digests[i]] if i in images.digests else 0 for i in range(len(images))])
        measured = self.measure_part(images, duplicates, map_positions(len(images)))
        measured.share(images.groups())
        self.set_training_measures(measured)
        return self

    def _set_solution(self, solved: tuple[list, list, list, list, list]) -> None:
        self._layouts, self._sizes, self.local_weights_, self.context_weights_, self._inverses = solved
        self.residuals_ = [None] * len(self.block_indices_)
        self._sums, self._times = {}, {}
        self._build()

    def begin_sums(self, X: Any, extractor: Extractor | None = None) -> dict[int, Sums]:
        """Begin a fit on several parts of the images: check the first part and choose the blocks.

        Parameters
        ----------
        X : images
            Images of the first part, of which at least 2 can be read.
        extractor : fitted extractor, default=None
            As in `fit`.

        Returns
        -------
        start : dict of int to Sums
            Empty sums by block, for `add_sums`; features are centred on those of the first batch of `X`, as in `fit`.
        """
        images, extractor = self._begin(X, extractor)
        self.updates_, self.cache_keys_ = self.updates, {}
        sums: dict[int, Sums] = {}
        with own_settings():
            # if no image can be read, `_add` raises the error
            first, _ = next(images.batches(extractor.batch_size), (range(len(images)), None))
            self._add(images.take(first), sums, record=False)
        return {index: block.emptied() for index, block in sums.items()}

    @own_settings()
    def add_sums(self, images: Images, start: dict[int, Sums]) -> dict[int, Sums]:
        """Return the sums of some images by block; changes neither `start` nor the students."""
        sums = {index: block.copy() for index, block in start.items()}
        self._add(images, sums, record=False)
        return sums

    def solve_sums(self, sums: dict[int, Sums]) -> None:
        """Solve the students from the sums of all images, without measuring any image."""
        self._set_solution(self._solution(dict(sums)))
        self.training_discrepancies_ = self.held_out_discrepancies_ = np.empty((0, self._n_features_out))

    def _add(self, images: Images, sums: dict[int, Sums], *, record: bool) -> None:
        """Run the teacher and add to the sums of its blocks, which are created if `sums` is empty."""
        extractor = self.extractor_
        if not sums:
            inspect_blocks(images, extractor)
        wanted = set(self.block_indices_.tolist())
        recording = Recording(_RECORDED_BYTES if record else 0)
        if record:
            self._recording = recording

        def run(part: Part) -> dict[int, list[Tensor]]:
            found = {}

            def visit(index, block, args, kwargs, output):
                if index in wanted:
                    if index not in sums:
                        layout = Layout.of(args[0], output, extractor)
                        sums[index] = Sums(layout, _map_size(layout, output))
                    with torch.autocast(output.device.type, enabled=False):
                        found[index] = sums[index].products(args[0], output)

            with torch.no_grad(), extractor.compute():
                recording.embed(extractor, part.batch, part.positions, visit)
            return found

        chunks = Chunks("scoring", chunk_size(extractor))
        with Progress("Solving students", len(images), show=self.verbose) as progress:
            for positions, pixels in releasing(images.batches(extractor.batch_size)):
                # added after all parts have run, since parts run again if memory runs out
                for found in chunks(run, Part(positions, extractor.preprocess(pixels))):
                    for index, products in found.items():
                        sums[index].add(products)
                progress.update(len(positions))

    def _solution(self, sums: dict[int, Sums]) -> tuple[list, list, list, list, list]:
        """Layouts, sizes, coefficients and inverses by block; `sums` is emptied, so that each is freed early.

        On a CPU, several blocks are solved at a time, each by one thread, for the reason given in `_solve_each`.
        """
        indices = self.block_indices_.tolist()
        dtype = torch.float64 if getattr(self.extractor_, "precision_", None) == "float64" else torch.float32

        def solve(index: int) -> tuple:
            block = sums.pop(index)
            if not all(part.isfinite().all() for part in block.parts):
                raise FloatingPointError(
                    f"Block {index} of the teacher returned a value that is not finite. Give the extractor "
                    "precision='float32'."
                )
            assert block.origin is not None  # set when the block runs
            split = len(block.parts[0])
            exact = torch.float64 if block.rows <= _FEW_ROWS else dtype
            coefficients, inverse = block.solve(self.ridge)
            # first to the other device: an accelerator may lack float64
            origin = [part.to(inverse.device).to(inverse) for part in block.origin]
            coefficients[-1] -= torch.cat(origin) @ coefficients
            weights = coefficients.T.to(dtype).cpu()
            kept = tuple(part.to(exact).cpu().numpy() for part in (inverse, *origin))
            local, context = (part.contiguous().numpy() for part in (weights[:, :split], weights[:, split:]))
            return block.layout, block.size, local, context, kept

        on_cpu = all(block.parts[0].device.type == "cpu" for block in sums.values())
        at_once = min(_SOLVED_AT_ONCE, torch.get_num_threads()) if on_cpu else 1
        with limited_threads(1), single_threaded_blas(), ThreadPoolExecutor(at_once) as pool:
            layouts, sizes, local, context, inverses = map(list, zip(*pool.map(solve, indices)))
        return layouts, sizes, local, context, inverses

    @property
    def measures_(self) -> tuple[str, ...]:
        return ("discrepancy", "update") if self.updates_ else ("discrepancy",)

    @property
    def students_(self) -> list[RidgeStudent]:
        """The students as modules, in order of depth."""
        return self._modules

    def restore(self, layouts: list[Layout], sizes: list[tuple[int, int]]) -> None:
        """Set the fitted state that is not arrays, when a model file is loaded."""
        self._layouts, self._sizes = layouts, sizes
        self._inverses, self.cache_keys_, self._sums, self._times = [], {}, {}, {}
        self._build()

    def _build(self) -> None:
        """Build modules from the coefficients."""
        columns = zip(self._layouts, self.local_weights_, self.context_weights_, self._sizes)
        self._modules = [RidgeStudent(*column).eval() for column in columns]

    @own_settings()
    def measure_training(
        self, images: Images, collect: Collect | None = None, groups: np.ndarray | None = None
    ) -> None:
        """Measure each training image by the students, and by students solved without it.

        This uses what `fit` recorded of the teacher, and runs the teacher on images of which nothing was recorded. It
        sets `training_discrepancies_`, `held_out_discrepancies_` and the statistics for anomaly maps.

        Parameters
        ----------
        images : Images
            The training images, as passed to `fit`.
        collect : callable, default=None
            As in ``Comparer``; lets a detector watch the same pass.
        groups : ndarray of shape (n,), default=None
            Group of each image; a group is left out together. None groups images with equal pixels. Those of other
            groups are left out in folds, by students solved anew for each.

        Raises
        ------
        ValueError
            The images have been measured, after which nothing is kept that leaves them out; or the students are from a
            file.
        """
        if not self._inverses:
            raise ValueError(
                "These students are from a file, or have measured their training images, after which they keep no "
                "inverses to leave them out by: fit anew."
            )
        same = images.groups()
        in_maps = map_positions(len(images))
        measured = self.measure_part(images, group_sizes(same, len(images)), in_maps, collect)
        for fold in () if groups is None else folds_of_copies(same, groups):
            left_out = images.take(fold)
            students = self.without(self.add_sums(left_out, self.empty_sums()))
            measured.replace(fold, students.measure_left_out(left_out, np.flatnonzero(np.isin(fold, in_maps))))
        measured.share(same)
        self.set_training_measures(measured)

    def empty_sums(self) -> dict[int, Sums]:
        """Return empty sums by block, around the origin of those that the students were solved from."""
        columns = zip(self.block_indices_.tolist(), self._layouts, self._sizes, self._inverses)
        return {
            index: Sums(layout, size, (torch.from_numpy(origin[0]), torch.from_numpy(origin[1])))
            for index, layout, size, (_, *origin) in columns
        }

    def without(self, sums: dict[int, Sums]) -> RidgeStudents:
        """Return the students as they would be without the images of these sums."""
        students = copy.copy(self)
        students.local_weights_, students.context_weights_ = [], []
        columns = zip(self.block_indices_.tolist(), self.local_weights_, self.context_weights_, self._inverses)
        for index, *weights, inverse in columns:
            local, context = sums[index].taken_from(*weights, *inverse)
            students.local_weights_.append(local)
            students.context_weights_.append(context)
        students._build()
        return students

    def measure_left_out(self, images: Images, in_maps: np.ndarray) -> Measured:
        """Measure images that the students were solved without, as `measure_part` does."""
        return self.measure_part(images, np.zeros(len(images), dtype=int), in_maps)

    @own_settings()
    def measure_part(
        self, images: Images, duplicates: np.ndarray, in_maps: np.ndarray, collect: Collect | None = None
    ) -> Measured:
        """Measure some of the training images as in `measure_training`, but set no attributes.

        Parameters
        ----------
        images : Images
        duplicates : ndarray of shape (n,), int
            How often each image occurs, to the pixel, among all training images.
        in_maps : ndarray of int
            Positions of the images whose residuals anomaly maps compare with.
        collect : callable, default=None
            As in `measure_training`.

        Returns
        -------
        measured : Measured
        """
        measures = TrainingMeasures(self, duplicates, in_maps)

        def run(positions: np.ndarray, embed: Callable[[BlockVisitor], Tensor]) -> None:
            visit_also, finish = collect(positions) if collect is not None else (None, None)
            with torch.no_grad(), self.extractor_.compute(), measures.of(positions, visit_also) as visit:
                z_p = embed(visit)
            if finish is not None:
                finish(z_p)

        def run_live(part: Part) -> None:
            run(part.positions, partial(self.extractor_.embed, part.batch))

        recording = self._take_recording()
        chunks = Chunks("scoring", chunk_size(self.extractor_))
        with Progress("Measuring", len(images), show=self.verbose) as progress:
            seen_until = 0
            if recording is not None:
                for recorded in releasing(recording.runs()):
                    run(recorded.positions, partial(recording.play, recorded))
                    progress.update(len(recorded.positions))
                    seen_until = int(recorded.positions[-1]) + 1
            for positions, pixels in releasing(images.batches(self.extractor_.batch_size, start=seen_until)):
                chunks(run_live, Part(positions, self.extractor_.preprocess(pixels)))
                progress.update(len(positions))
        return measures.found

    def set_training_measures(self, measured: Measured) -> None:
        """Set the attributes that `measure_training` sets, from the measures of all training images."""
        statistics = measured.map_statistics(find_places(self.extractor_))
        self.set_training_state((measured.fitted, measured.held_out, statistics))

    def training_state(self) -> tuple:
        """Return the attributes that `measure_training` sets, for a cache."""
        return self.training_discrepancies_, self.held_out_discrepancies_, self.residuals_

    def set_training_state(self, state: tuple) -> None:
        """Set the attributes that `measure_training` sets, from a cache."""
        self.training_discrepancies_, self.held_out_discrepancies_, self.residuals_ = state
        self._inverses = []  # no longer needed
        self._take_recording()

    def _take_recording(self) -> Recording | None:
        """Return what the last `fit` recorded, and drop it."""
        return self.__dict__.pop("_recording", None)

    def __getstate__(self) -> dict:
        state = dict(super().__getstate__())  # from Python 3.11 on, the object's own
        for name in ("_modules", "_recording"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self.__sklearn_is_fitted__():
            self._build()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "local_weights_")


def _map_size(layout: Layout, output: Tensor) -> tuple[int, int]:
    if layout.tokens:
        return (0, 0)
    height, width = output.shape[1:3] if layout.channels_last else output.shape[2:]
    return int(height), int(width)
