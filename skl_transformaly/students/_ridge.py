"""RidgeStudents: students that are solved, not trained, from one pass over the normal images."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from scipy.linalg import cho_factor, cho_solve, lapack
from sklearn.base import BaseEstimator
from torch import Tensor, nn
from torch.nn import functional as F

from skl_transformaly._density import group_sizes
from skl_transformaly.images._images import Images
from skl_transformaly.students._activations import inspect_blocks
from skl_transformaly.students._imitation import (
    Collect,
    ImitationMixin,
    Part,
    block_measures,
    by_measure,
)
from skl_transformaly.students._residuals import ResidualStatistics
from skl_transformaly.teacher._network import BlockVisitor
from skl_transformaly.teacher._protocol import Extractor, chunk_size, count_prefix_tokens, find_places
from skl_transformaly.teacher._recording import Recording
from skl_transformaly.utils._cache import Cache, fingerprint, identity
from skl_transformaly.utils._chunks import Chunks
from skl_transformaly.utils._compat import Interval, fit_context
from skl_transformaly.utils._fitting import all_or_nothing
from skl_transformaly.utils._progress import Progress
from skl_transformaly.utils._torch import at_least_float32, own_settings, single_threaded_blas

__all__ = ["RidgeStudents"]

# Of a map, at most about so many places of an image enter the sums; neighbouring ones say nearly the same.
_PLACES = 100
# What the teacher's blocks got and gave is kept on disk up to this size, so that it runs once; of more, it runs twice.
_RECORDED_BYTES = 2**30
# The neighbourhood of a place is looked at where it has at most so many channels in all.
_NEIGHBOURHOOD = 1200
# Systems with smaller pivots are solved in float64.
_LEAST_PIVOT = 1e-2
# Maps compare residuals with those of at most so many training images.
_MAP_IMAGES = 32


@dataclass(frozen=True)
class Layout:
    """How a block's input and output are laid out.

    Attributes
    ----------
    tokens : bool
        Tokens (B, T, C), or maps.
    prefix : int
        How many tokens stand for no place; the first of them is the class token.
    channels_last : bool
        Maps are (B, H, W, C) instead of (B, C, H, W).
    residual : bool
        The block adds to its input, so that the student predicts what it adds.
    kernel : int
        3 to look at a place's neighbourhood in a map, else 1.
    """

    tokens: bool
    prefix: int
    channels_last: bool
    residual: bool
    kernel: int

    @classmethod
    def of(cls, x: Tensor, output: Tensor, extractor: Any) -> Layout:
        """Look at one block's input and output."""
        residual = x.shape == output.shape
        if x.ndim == 3:
            return cls(True, count_prefix_tokens(x, extractor), False, residual, 1)
        to_maps = getattr(extractor, "to_maps", None)
        last = to_maps is not None and to_maps(x).stride() != x.stride()
        channels = x.shape[3 if last else 1]
        return cls(False, 0, last, residual, 3 if 9 * channels <= _NEIGHBOURHOOD else 1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Input as tokens (B, T, C) or maps (B, C, H, W), and its context (B, Q): class token, mean, and 1."""
        x = at_least_float32(x)
        if self.tokens:
            parts = [x[:, 0]] if self.prefix else []
            parts.append(x[:, self.prefix :].mean(1))
        else:
            x = x.permute(0, 3, 1, 2) if self.channels_last else x
            parts = [x.mean((2, 3))]
        return x, torch.cat([*parts, torch.ones_like(parts[0][:, :1])], dim=1)

    def rows(self, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """What the regression sees: local features (B, R, F), context (B, Q), targets (B, R, C_out).

        Maps give a regular grid of their places.
        """
        x, context = self.split(x)
        output = at_least_float32(output)
        if self.tokens:
            return x, context, output - x if self.residual else output
        output = output.permute(0, 3, 1, 2) if self.channels_last else output
        height, width = output.shape[2:]
        pooled = _pooled(x, (height, width))
        target = output - pooled if self.residual else output
        step = max(1, int(np.ceil(np.sqrt(height * width / _PLACES))))
        margin = self.kernel // 2
        padded = F.pad(pooled, (margin,) * 4)
        shifted = [
            padded[:, :, dy : dy + height : step, dx : dx + width : step]
            for dy in range(self.kernel)
            for dx in range(self.kernel)
        ]
        # channel by channel, as convolutions order their weights
        local = torch.stack(shifted, dim=2).flatten(1, 2)
        return local.flatten(2).transpose(1, 2), context, target[:, :, ::step, ::step].flatten(2).transpose(1, 2)


def _pooled(x: Tensor, size: tuple[int, int]) -> Tensor:
    return x if tuple(x.shape[2:]) == tuple(size) else F.adaptive_avg_pool2d(x, size)


class RidgeStudent(nn.Module):
    """One solved student: a block's input to what it thinks the block's output is.

    Parameters
    ----------
    layout : Layout
    local : ndarray of shape (C_out, F)
    context : ndarray of shape (C_out, Q)
    size : tuple of (int, int)
        Height and width of the output, of maps.
    """

    local: Tensor
    context: Tensor

    def __init__(self, layout: Layout, local: np.ndarray, context: np.ndarray, size: tuple[int, int]):
        super().__init__()
        self.layout = layout
        self.size = size
        self.register_buffer("local", torch.from_numpy(np.array(local)))
        self.register_buffer("context", torch.from_numpy(np.array(context)))

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Predict the block's output."""
        if torch.is_autocast_enabled(x.device.type):
            # what a student misses is small beside what it predicts: 16 bits would not tell
            with torch.autocast(x.device.type, enabled=False):
                return self._predict(x)
        return self._predict(x)

    def spread(self, x: Tensor, local: Tensor, constant: Tensor) -> Tensor:
        """Apply coefficients of each image's own, (B, C_out, F), and constants, (B, C_out), at all places of maps."""
        layout = self.layout
        pooled = _pooled(layout.split(x)[0], self.size)
        count, channels = pooled.shape[:2]
        weight = local.reshape(-1, channels, layout.kernel, layout.kernel)
        # a convolution each: images as groups
        found = F.conv2d(pooled.reshape(1, -1, *self.size), weight, padding=layout.kernel // 2, groups=count)
        found = found.view(count, -1, *self.size) + constant[:, :, None, None]
        return found.permute(0, 2, 3, 1) if layout.channels_last else found

    def _predict(self, x: Tensor) -> Tensor:
        layout = self.layout
        x, context = layout.split(x)
        shift = F.linear(context, self.context.to(x.dtype))
        local = self.local.to(x.dtype)
        if layout.tokens:
            predicted = F.linear(x, local) + shift.unsqueeze(1)
            return x + predicted if layout.residual else predicted
        pooled = _pooled(x, self.size)
        kernel = layout.kernel
        weight = local.view(len(local), -1, kernel, kernel)
        predicted = F.conv2d(pooled, weight, padding=kernel // 2) + shift[:, :, None, None]
        if layout.residual:
            predicted = predicted + pooled
        return predicted.permute(0, 2, 3, 1) if layout.channels_last else predicted


class _Sums:
    """Products of features and targets of one block, added up over images, in float64."""

    def __init__(self, layout: Layout):
        self.layout = layout
        self.parts: list[np.ndarray] = []
        self.origin: tuple[Tensor, Tensor] | None = None

    def products(self, x: Tensor, output: Tensor) -> list[np.ndarray]:
        """Those of the images of a batch, to be added."""
        local, context, target = self.layout.rows(x, output)
        if self.origin is None:
            # where features are large and vary little, their products would drown the variation
            centre = context.mean(0)
            centre[-1] = 0
            self.origin = local.mean((0, 1)), centre
        local, context = local - self.origin[0], context - self.origin[1]
        count = local.shape[1]
        flat = local.reshape(-1, local.shape[2])
        found = [
            flat.T @ flat,
            local.sum(1).T @ context,
            count * (context.T @ context),
            flat.T @ target.reshape(-1, target.shape[2]),
            context.T @ target.sum(1),
        ]
        return [product.double().cpu().numpy() for product in found]

    def add(self, products: list[np.ndarray]) -> None:
        """Add what `products` has given."""
        self.parts = [a + b for a, b in zip(self.parts, products)] if self.parts else products

    def solve(self, ridge: float) -> tuple[np.ndarray, np.ndarray]:
        """Coefficients (F + Q, C_out), and the inverse of the regularised products (F + Q, F + Q).

        Each feature is penalised in units of its variance, the constant not at all.
        """
        ll, lc, cc, ly, cy = self.parts
        products = np.block([[ll, lc], [lc.T, cc]])
        targets = np.vstack([ly, cy])
        count = products[-1, -1]
        variance = np.diag(products) / count - (products[-1] / count) ** 2
        usable = variance > 1e-12 * np.maximum(np.diag(products) / count, np.finfo(float).tiny)
        scale = np.where(usable, np.sqrt(np.maximum(variance, 0)), 1.0)
        scaled = products / np.outer(scale, scale)
        penalty = np.full(len(scaled), ridge * count)
        penalty[-1] = 1e-12 * count
        scaled[np.diag_indices_from(scaled)] += penalty
        inverse = cho_solve(cho_factor(scaled, lower=True), np.eye(len(scaled))) / np.outer(scale, scale)
        return inverse @ targets, inverse


class RidgeStudents(ImitationMixin, BaseEstimator):
    """Students of the teacher's last blocks in closed form: ridge regressions, solved from one pass over the images.

    For each chosen teacher block, what it adds to its input (or, where input and output differ in shape, its output)
    is regressed linearly, on normal images only, on the block's own input: each token, the class token, and the mean
    patch token. For models in stages: each place with its 3 x 3 neighbourhood, pooled to the output's places, and the
    mean over places. How far the teacher deviates from the prediction is the discrepancy, as with
    :class:`BlockStudents`.

    Nothing is trained: sums of products are all that is kept of the images, so that memory does not depend on their
    number, and each training image can be left out exactly, in closed form.

    Parameters
    ----------
    n_blocks : int, sequence of int or None, default=10
        Which teacher blocks get a student: an int takes the last n (all, where there are fewer), a
        sequence their places (negative ones count from the end), None all.
    ridge : float, default=1e-2
        Penalty on squared coefficients of standardised features, as a share of the number of tokens. Of 1e-3 to 100, on
        the classes with even numbers of View (``benchmarks/accuracy/NOTES.md``).
    extractor : str, extractor or None, default=None
        The teacher, for use outside a :class:`TransformalyDetector`: a timm name, "bundled", or an
        extractor; None is ``TimmExtractor()``. Inside a detector it must be None: the detector's is used.
    updates : bool, default=True
        Whether to measure, besides each student's discrepancy, how large the block's update is: the mean square of what
        the block adds to its input (of its output, if the two differ in shape).
    verbose : int, default=0
        1 shows a progress bar.

    Attributes
    ----------
    measures_ : tuple of str
        What is measured at each block: "discrepancy" and, with `updates`, "update".
    block_indices_ : ndarray of shape (m,), int
        Places of their teacher blocks, counted from 0.
    local_weights_ : list of ndarray of shape (C_out, F), float32 or float64
        Coefficients of a token, or of a place and its neighbourhood, per block.
    context_weights_ : list of ndarray of shape (C_out, Q), float32 or float64
        Coefficients of the class token, the mean and the constant, per block.
    training_discrepancies_ : ndarray of shape (n_samples, k * m), float64
        What `transform` gives for the training images; NaN for unreadable ones.
    held_out_discrepancies_ : ndarray of shape (n_samples, k * m), float64
        The same, each by students that have not seen the image nor its duplicates.
    cache_keys_ : dict
        Under which a cache has them; empty without one.
    extractor_ : extractor
        The fitted teacher.
    n_features_in_ : int
        H * W * C, where `fit` saw one array.

    See Also
    --------
    BlockStudents : The paper's students, trained by gradient.

    Notes
    -----
    The squared error is that of M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One",
    CVPR Workshops 2022, Eq. 1; its minimiser is exact here, for a simpler student. Left out, an image's residuals are
    ``(I - H M H')^-1 E``, with its features H, its residuals E, and M the inverse of the regularised products: the
    blockwise form of the leave-one-out residual of linear regression.

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
            The teacher to use instead of a fresh one; how a detector hands over its own. It then measures the training
            images itself, by `measure_training`.

        Returns
        -------
        self : RidgeStudents

        Raises
        ------
        ValueError
            `X` is not images, or `n_blocks` names a block that is not there.
        TypeError
            The teacher's blocks cannot be imitated one by one.
        FloatingPointError
            The teacher gave a value that is not finite.
        """
        return self._fit(X, extractor, Cache(None))

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=False)
    @own_settings()
    def _fit(self, X: Any, extractor: Extractor | None, cache: Cache) -> RidgeStudents:
        """Fit, with students kept in `cache`: how a detector hands over its teacher and its `memory`."""
        self.__dict__.pop("local_weights_", None)
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
        solved = cache("ridge students", key, lambda: self._solve(images))
        self._layouts, self._sizes, local, context, self._inverses = solved
        self.cache_keys_ = key
        self.residuals_ = [None] * len(self.block_indices_)
        self.context_weights_ = context
        self.local_weights_ = local
        self._build()
        if alone:
            self.measure_training(images)
        return self

    def _solve(self, images: Images) -> tuple[list, list, list, list, list]:
        """One pass of the teacher, and a solution for each block."""
        extractor = self.extractor_
        inspect_blocks(images, extractor)
        wanted = set(self.block_indices_.tolist())
        sums: dict[int, _Sums] = {}
        sizes: dict[int, tuple[int, int]] = {}
        recording = self._recording = Recording(_RECORDED_BYTES)

        def run(part: Part) -> dict[int, list[np.ndarray]]:
            found = {}

            def visit(index, block, args, kwargs, output):
                if index in wanted:
                    if index not in sums:
                        sums[index] = _Sums(Layout.of(args[0], output, extractor))
                        sizes[index] = _map_size(sums[index].layout, output)
                    with torch.autocast(output.device.type, enabled=False):
                        found[index] = sums[index].products(args[0], output)

            with torch.no_grad(), extractor.compute():
                recording.embed(extractor, part.batch, part.positions, visit)
            return found

        chunks = Chunks("scoring", chunk_size(extractor))
        with Progress("Solving students", len(images), show=self.verbose) as progress:
            for positions, pixels in images.batches(extractor.batch_size):
                # added once all parts are through: where memory runs out, they are taken again
                for found in chunks(run, Part(positions, extractor.preprocess(pixels))):
                    for index, products in found.items():
                        sums[index].add(products)
                progress.update(len(positions))
        indices = self.block_indices_.tolist()
        dtype = np.float64 if getattr(extractor, "precision_", None) == "float64" else np.float32
        layouts, local, context, inverses = [], [], [], []
        for index in indices:
            block = sums.pop(index)  # its sums are freed before the next block's solution is made
            if not all(np.isfinite(part).all() for part in block.parts):
                raise FloatingPointError(
                    f"Block {index} of the teacher gave a value that is not finite. Give the extractor "
                    "precision='float32'."
                )
            assert block.origin is not None  # of blocks that have run
            split = len(block.parts[0])
            with single_threaded_blas():
                coefficients, inverse = block.solve(self.ridge)
            layouts.append(block.layout)
            origin = [part.double().cpu().numpy() for part in block.origin]
            coefficients[-1] -= np.concatenate(origin) @ coefficients
            local.append(np.ascontiguousarray(coefficients[:split].T, dtype=dtype))
            context.append(np.ascontiguousarray(coefficients[split:].T, dtype=dtype))
            inverses.append((inverse.astype(dtype), *(part.astype(dtype) for part in origin)))
        return layouts, [sizes[index] for index in indices], local, context, inverses

    @property
    def measures_(self) -> tuple[str, ...]:
        return ("discrepancy", "update") if self.updates_ else ("discrepancy",)

    @property
    def students_(self) -> list[RidgeStudent]:
        """The students as modules, in order of depth."""
        return self._modules

    def restore(self, layouts: list[Layout], sizes: list[tuple[int, int]]) -> None:
        """Set what is not an array of the fitted state, as a model file does."""
        self._layouts, self._sizes = layouts, sizes
        self._inverses, self.cache_keys_ = [], {}
        self._build()

    def _build(self) -> None:
        """Make modules of the coefficients."""
        columns = zip(self._layouts, self.local_weights_, self.context_weights_, self._sizes)
        self._modules = [RidgeStudent(*column).eval() for column in columns]

    @own_settings()
    def measure_training(
        self, images: Images, collect: Collect | None = None, groups: np.ndarray | None = None
    ) -> None:
        """Measure each training image with and without its part in the students.

        From what `fit` recorded of the teacher, and by running the teacher again where it recorded nothing. Sets
        `training_discrepancies_`, `held_out_discrepancies_` and what anomaly maps compare with.

        Parameters
        ----------
        images : Images
            What `fit` saw.
        collect : callable, default=None
            As in `measure`: how a detector sees the same pass.
        groups : ndarray of shape (n,), default=None
            The same number for images that are left out together; None takes those of the same pixels.
        """
        n, m = len(images), len(self.block_indices_)
        fitted, held_out = (np.full((n, self._n_features_out), np.nan) for _ in range(2))
        duplicates = group_sizes(images.groups() if groups is None else groups, n)
        chosen = set(np.unique(np.linspace(0, n - 1, min(n, _MAP_IMAGES)).round().astype(int)).tolist())
        maps: list[dict[int, Tensor]] = [{} for _ in range(m)]  # by position: a part may be taken again
        to_maps = find_places(self.extractor_)
        solutions = [tuple(map(torch.from_numpy, arrays)) for arrays in self._inverses]

        def run(positions: np.ndarray, embed: Callable[[BlockVisitor], Tensor]) -> None:
            visit_also, finish = collect(positions) if collect is not None else (None, None)
            seen: dict[int, Tensor] = {}
            unseen: dict[int, Tensor] = {}

            def visit(index, block, args, kwargs, output):
                if visit_also is not None:
                    visit_also(index, block, args, kwargs, output)
                j = places.get(index)
                if j is None:
                    return
                with torch.autocast(output.device.type, enabled=False):
                    student = students[j].to(output.device)
                    residual = student(*args) - at_least_float32(output)
                    left_out = _leave_out(student, args[0], output, residual, solutions[j], duplicates[positions])
                    seen[index] = block_measures(self.measures_, args[0], output, residual)
                    # updates do not depend on students
                    unseen[index] = seen[index].to(left_out, copy=True)
                    unseen[index][:, 0] = left_out.square().flatten(1).mean(1)
                    if to_maps is not None:
                        for i, position in enumerate(positions.tolist()):
                            if position in chosen:
                                maps[j][position] = left_out[i].float().cpu()

            with torch.no_grad(), self.extractor_.compute():
                z_p = embed(visit)
            fitted[positions] = by_measure(seen).double().cpu().numpy()
            held_out[positions] = by_measure(unseen).double().cpu().numpy()
            if finish is not None:
                finish(z_p)

        places = {index: j for j, index in enumerate(self.block_indices_.tolist())}
        students = self._modules

        def run_live(part: Part) -> None:
            run(part.positions, partial(self.extractor_.embed, part.batch))

        recording = self._take_recording()
        chunks = Chunks("scoring", chunk_size(self.extractor_))
        with Progress("Measuring", n, show=self.verbose) as progress:
            seen_until = 0
            if recording is not None:
                for recorded in recording.runs():
                    run(recorded.positions, partial(recording.play, recorded))
                    progress.update(len(recorded.positions))
                    seen_until = int(recorded.positions[-1]) + 1
            for positions, pixels in images.batches(self.extractor_.batch_size, start=seen_until):
                chunks(run_live, Part(positions, self.extractor_.preprocess(pixels)))
                progress.update(len(positions))
        self.training_discrepancies_, self.held_out_discrepancies_ = fitted, held_out
        self.residuals_ = [_map_statistics([found[i] for i in sorted(found)], to_maps) for found in maps]
        self._inverses = []  # they have done what they were for

    def training_state(self) -> tuple:
        """What `measure_training` has set, for a cache."""
        return self.training_discrepancies_, self.held_out_discrepancies_, self.residuals_

    def set_training_state(self, state: tuple) -> None:
        """Set what `measure_training` would, from a cache."""
        self.training_discrepancies_, self.held_out_discrepancies_, self.residuals_ = state
        self._inverses = []
        self._take_recording()

    def _take_recording(self) -> Recording | None:
        """What the last `fit` recorded; it is let go of."""
        return self.__dict__.pop("_recording", None)

    def __getstate__(self) -> dict:
        state = dict(super().__getstate__())  # which from Python 3.11 on is the object's own
        for name in ("_modules", "_recording"):
            state.pop(name, None)
        return state

    def __setstate__(self, state: dict) -> None:
        super().__setstate__(state)
        if self.__sklearn_is_fitted__():
            self._build()

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "local_weights_")


def _leave_out(
    student: RidgeStudent, x: Tensor, output: Tensor, residual: Tensor, solution: tuple, duplicates: np.ndarray
) -> Tensor:
    """Residuals of students that have not seen the image, of the shape of `residual`, which are of one that has.

    H are the features that the image has in the sums, g times, E its residuals there, and M the inverse. Without the
    image the residuals there are S = (I - g H M H')^-1 E. The coefficients change by g M H' S, which tells the
    residuals at all other places.
    """
    local, context, target = student.layout.rows(x, output)
    inverse, *origin = (part.to(local) for part in solution)
    size = local.shape[2]
    shift = F.linear(context, student.context.to(local.dtype)).unsqueeze(1)
    seen = residual if student.layout.tokens else F.linear(local, student.local.to(local.dtype)) + shift - target
    local, context = local - origin[0], context - origin[1]
    # H M H' taken apart: features of a place, and those that all places of an image share
    mixed = local @ inverse[:size, :size]
    cross = local @ (context @ inverse[:size, size:].T).unsqueeze(2)
    shared = (context @ inverse[size:, size:] * context).sum(1)
    leverage = mixed @ local.transpose(1, 2) + cross + cross.transpose(1, 2) + shared[:, None, None]
    weight = duplicates[:, None, None].astype(np.float32)
    system = (1 + 1e-6) * torch.eye(local.shape[1], dtype=leverage.dtype) - torch.from_numpy(weight) * leverage.cpu()
    left_out = torch.from_numpy(_solve_each(system.numpy(), seen.cpu().numpy()))
    if student.layout.tokens:
        return left_out
    scaled = (torch.from_numpy(weight) * left_out).to(local)
    sums = torch.cat([local.transpose(1, 2) @ scaled, context.unsqueeze(2) @ scaled.sum(1, keepdim=True)], dim=1)
    change = inverse @ sums  # of coefficients, (B, F + Q, C_out)
    constant = (context.unsqueeze(1) @ change[:, size:]).squeeze(1) - origin[0] @ change[:, :size]
    return residual + student.spread(x, change[:, :size].transpose(1, 2), constant)


def _solve_each(systems: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Solve symmetric systems (B, R, R) for targets (B, R, C), several at a time.

    By LAPACK: torch's solver now and then found pivots of 0 where other threads were at work. BLAS gets one thread: its
    own wait for each other on matrices as small as these, the longer the busier the machine is.
    """
    with single_threaded_blas(), ThreadPoolExecutor(torch.get_num_threads()) as pool:
        return np.stack(list(pool.map(_solve_one, systems, targets)))


def _solve_one(system: np.ndarray, target: np.ndarray) -> np.ndarray:
    if system.dtype == np.float32:
        factor, solution, failed = lapack.sposv(system, target, lower=1)
        if not failed and factor.diagonal().min() ** 2 > _LEAST_PIVOT:
            return solution
    # an image that alone decides some coefficients: float32 would not tell what others would make of it
    factor, solution, failed = lapack.dposv(system, target, lower=1)
    if failed:  # rounding has made it indefinite
        solution = np.linalg.solve(system.astype(np.float64), target)
    return solution.astype(system.dtype)


def _map_size(layout: Layout, output: Tensor) -> tuple[int, int]:
    if layout.tokens:
        return (0, 0)
    height, width = output.shape[1:3] if layout.channels_last else output.shape[2:]
    return int(height), int(width)


def _map_statistics(residuals: list[Tensor], to_maps: Any) -> ResidualStatistics | None:
    """How a student errs on normal images; None where outputs have no places in the image."""
    if not residuals or to_maps is None:
        return None
    try:
        return ResidualStatistics.fit(to_maps(torch.stack(residuals)))
    except ValueError:  # tokens that fill no grid: who asks for a map is told
        return None
