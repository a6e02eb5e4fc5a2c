"""The regression behind a solved student: its features, sums of products and solution, and leaving images out."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor, nn
from torch.nn import functional as F

from skl_transformaly.teacher._protocol import count_prefix_tokens
from skl_transformaly.utils._torch import at_least_float32, limited_threads, single_threaded_blas

__all__ = ["Layout", "RidgeStudent", "Sums", "leave_out"]

# At most about this many places of an image's map enter the sums; neighbouring places are nearly redundant.
_PLACES = 100
# The neighbourhood of a place is used if it has at most this many channels in total.
_NEIGHBOURHOOD = 1200
# Share of the median variance of features that each of them has at least, for its penalty. All features of a ViT-Tiny
# have more. Of EfficientNet-lite0 some of the first stage have less, behind ReLUs and of colours. With this share AUROC
# on even classes is the same to the second digit; with a tenth it differs by up to 0.03.
_LEAST_VARIANCE = 0.01
# Products of fewer columns are not split, which would take longer.
_LEAST_BLOCK = 96
# Systems of fewer operations altogether are solved by one thread, in less time than others would need to begin.
_LEAST_SHARED = 3e7
# Systems in float32 with smaller pivots are solved in float64.
_LEAST_PIVOT = 1e-2


@dataclass(frozen=True)
class Layout:
    """How a block's input and output are laid out.

    Attributes
    ----------
    tokens : bool
        Whether they are tokens (B, T, C), not maps.
    prefix : int
        Number of leading tokens without a place in the image; the first of them is the class token.
    channels_last : bool
        Whether maps are (B, H, W, C) instead of (B, C, H, W).
    residual : bool
        Whether the block adds to its input, so that the student predicts what it adds.
    kernel : int
        3 if the neighbourhood of a place in a map is used, else 1.
    """

    tokens: bool
    prefix: int
    channels_last: bool
    residual: bool
    kernel: int

    @classmethod
    def of(cls, x: Tensor, output: Tensor, extractor: Any) -> Layout:
        """Determine the layout from one block's input and output; TypeError if it changes the number of tokens."""
        residual = x.shape == output.shape
        if x.ndim == 3:
            if x.shape[:2] != output.shape[:2]:
                raise TypeError(
                    f"A block of the teacher turns {x.shape[1]} tokens into {output.shape[1]}; RidgeStudents imitate "
                    'blocks that keep their number. Give students=BlockStudents(), feature_spaces="teacher", an '
                    "n_blocks without that block, or another teacher."
                )
            return cls(True, count_prefix_tokens(x, extractor), False, residual, 1)
        to_maps = getattr(extractor, "to_maps", None)
        last = to_maps is not None and to_maps(x).stride() != x.stride()
        channels = x.shape[3 if last else 1]
        return cls(False, 0, last, residual, 3 if 9 * channels <= _NEIGHBOURHOOD else 1)

    def split(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return input tokens (B, T, C) or maps (B, C, H, W), and their context (B, Q): class token, mean, and 1."""
        x = at_least_float32(x)
        if self.tokens:
            parts = [x[:, 0]] if self.prefix else []
            parts.append(x[:, self.prefix :].mean(1))
        else:
            x = x.permute(0, 3, 1, 2) if self.channels_last else x
            parts = [x.mean((2, 3))]
        return x, torch.cat([*parts, torch.ones_like(parts[0][:, :1])], dim=1)

    def rows(self, x: Tensor, output: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return the data of the regression: local features (B, R, F), context (B, Q), targets (B, R, C_out).

        The rows of a map are a regular grid of its places.
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
    """A solved student, which predicts a block's output from its input.

    Parameters
    ----------
    layout : Layout
    local : ndarray of shape (C_out, F)
        Coefficients of local features.
    context : ndarray of shape (C_out, Q)
        Coefficients of the context.
    size : tuple of (int, int)
        Height and width of output maps; unused for tokens.
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
            # residuals are small compared with predictions: 16 bits would not resolve them
            with torch.autocast(x.device.type, enabled=False):
                return self._predict(x)
        return self._predict(x)

    def residual(self, x: Tensor, output: Tensor) -> Tensor:
        """Return `forward`'s prediction minus the block's output, with fewer passes through memory."""
        with torch.autocast(x.device.type, enabled=False):
            output = at_least_float32(output)
            if not self.layout.tokens:
                predicted = self._predict(x)
                predicted -= output
                return predicted
            x, context = self.layout.split(x)
            found = x - output if self.layout.residual else -output
            found.flatten(0, 1).addmm_(x.flatten(0, 1), self.local.to(x.dtype).T)
            found += F.linear(context, self.context.to(x.dtype)).unsqueeze(1)
            return found

    def spread(self, x: Tensor, local: Tensor, constant: Tensor) -> Tensor:
        """Apply each image's own coefficients (B, C_out, F) and constants (B, C_out) at all places of its map."""
        layout = self.layout
        pooled = _pooled(layout.split(x)[0], self.size)
        count, channels = pooled.shape[:2]
        weight = local.reshape(-1, channels, layout.kernel, layout.kernel)
        # one convolution with a group for each image
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


class Sums:
    """Products of features and targets of one block, added up over images, in float64.

    They stay on CUDA devices, which add and solve them in a small part of the time of their way to the CPU; other
    accelerators may lack float64. Pickled ones hold NumPy arrays, which load wherever they are needed.
    """

    def __init__(self, layout: Layout, size: tuple[int, int], origin: tuple[Tensor, Tensor] | None = None):
        self.layout = layout
        self.size = size
        self.parts: list[Tensor] = []
        self.origin = origin

    def __getstate__(self) -> dict[str, Any]:
        arrays = {"parts": [part.cpu().numpy() for part in self.parts]}
        if self.origin is not None:
            arrays["origin"] = [part.cpu().numpy() for part in self.origin]
        return {**self.__dict__, **arrays}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, parts=[torch.from_numpy(part) for part in state["parts"]])
        if self.origin is not None:
            self.origin = torch.from_numpy(state["origin"][0]), torch.from_numpy(state["origin"][1])

    def products(self, x: Tensor, output: Tensor) -> list[Tensor]:
        """Return the products of a batch of images, for `add`."""
        local, context, target = self.layout.rows(x, output)
        if self.origin is None:
            # if features are large and vary little, their products would lose the variation to rounding
            centre = context.mean(0)
            centre[-1] = 0
            self.origin = local.mean((0, 1)), centre
        local, context = local - self.origin[0].to(local), context - self.origin[1].to(context)
        count = local.shape[1]
        flat = local.reshape(-1, local.shape[2])
        found = [
            _gram(flat),
            local.sum(1).T @ context,
            count * (context.T @ context),
            flat.T @ target.reshape(-1, target.shape[2]),
            context.T @ target.sum(1),
        ]
        return [(product if product.device.type == "cuda" else product.cpu()).double() for product in found]

    def add(self, products: list[Tensor]) -> None:
        """Add what `products` returned, which belongs to the sums from then on."""
        if not self.parts:
            self.parts = products
            return
        for part, product in zip(self.parts, products):
            part += product.to(part.device)

    @property
    def rows(self) -> int:
        """Number of tokens, or of places, that were added: the constant's product with itself."""
        return round(float(self.parts[2][-1, -1]))

    def copy(self) -> Sums:
        """Return a copy that can be added to without changing these sums."""
        copied = Sums(self.layout, self.size, self.origin)
        copied.parts = [part.clone() for part in self.parts]
        return copied

    def emptied(self) -> Sums:
        """Return empty sums of the same block around the same origin."""
        origin = None if self.origin is None else (self.origin[0].cpu(), self.origin[1].cpu())
        return Sums(self.layout, self.size, origin)

    @classmethod
    def total(cls, several: Sequence[Sums]) -> Sums:
        """Add sums with a common origin, as those of :meth:`emptied` have; none of them changes."""
        total = several[0].emptied()
        for sums in several:
            if sums.parts:
                total.add(sums.copy().parts)
        return total

    def solve(self, ridge: float) -> tuple[Tensor, Tensor]:
        """Return the coefficients (F + Q, C_out) and the inverse of the regularised products (F + Q, F + Q).

        The penalty of each feature is in units of its variance, or of a hundredth of the median variance if that is
        more; the constant is not penalised.
        """
        products, targets = self._products()
        count = products[-1, -1].clone()
        squares = products.diagonal() / count
        variance = squares - (products[-1] / count).square()
        local = len(self.parts[0])
        scale = torch.cat(
            [_penalty_scale(v, s) for v, s in zip(*(t[:-1].tensor_split([local]) for t in (variance, squares)))]
            + [torch.ones_like(count)[None]]
        )
        products *= scale
        products *= scale[:, None]
        penalty = (count * ridge).repeat(len(scale))
        penalty[-1] = 1e-12 * count
        products.diagonal().add_(penalty)
        inverse = _inverted(products)
        inverse *= scale
        inverse *= scale[:, None]
        return inverse @ targets, inverse

    def taken_from(
        self, local: np.ndarray, context: np.ndarray, inverse: np.ndarray, *origin: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return a student's coefficients (C_out, F) and (C_out, Q) as they would be without the images of these sums.

        `inverse` is P^-1 of the sums P b = Y that it was solved from, `origin` what their features are centred on.
        Without the products G and T of some images, the solution is b + (P - G)^-1 (G b - T).
        """
        products, targets = (found.cpu().numpy() for found in self._products())
        weights = np.vstack([local.T, context.T]).astype(np.float64)
        shift = np.concatenate(origin).astype(np.float64)
        weights[-1] += shift @ weights
        rounding = _rounding(inverse.dtype == np.float64)
        inverse = inverse.astype(np.float64)
        rest = np.eye(len(products)) - products @ inverse
        rest[np.diag_indices_from(rest)] += rounding
        with single_threaded_blas():
            weights = weights + inverse @ np.linalg.solve(rest, products @ weights - targets)
        weights[-1] -= shift @ weights
        weights = weights.astype(local.dtype)
        return np.ascontiguousarray(weights[: local.shape[1]].T), np.ascontiguousarray(weights[local.shape[1] :].T)

    def _products(self) -> tuple[Tensor, Tensor]:
        """Products of all features with each other, (F + Q, F + Q), and with the targets, (F + Q, C_out)."""
        ll, lc, cc, ly, cy = self.parts
        return torch.cat([torch.cat([ll, lc], dim=1), torch.cat([lc.T, cc], dim=1)]), torch.cat([ly, cy])


def _penalty_scale(variance: Tensor, squares: Tensor) -> Tensor:
    """Return what features (F,) are multiplied by so that one penalty suits all of them.

    A feature that only a few images activate, as behind a ReLU, hardly varies. In units of that variance its
    coefficient would hardly be penalised and follow these images alone, and without one of them it would be another.
    """
    varies = variance > 1e-12 * squares.clamp(min=np.finfo(float).tiny)  # but for rounding
    if not varies.any():
        return torch.ones_like(variance)
    return variance.clamp(min=_LEAST_VARIANCE * variance[varies].quantile(0.5)).rsqrt()


def _gram(rows: Tensor) -> Tensor:
    """Return ``rows.T @ rows``, computed by blocks, without computing mirrored ones."""
    half = rows.shape[1] // 2
    if half < _LEAST_BLOCK:
        return rows.T @ rows
    left, right = rows[:, :half], rows[:, half:]
    corner = left.T @ right
    return torch.cat([torch.cat([_gram(left), corner], dim=1), torch.cat([corner.T, _gram(right)], dim=1)])


def _inverted(matrix: Tensor) -> Tensor:
    """Inverse of a symmetric positive definite matrix in float64, which is overwritten."""
    if matrix.device.type != "cpu":
        return _inverted_by_torch(matrix)
    factor, failed = lapack.dpotrf(matrix.numpy().T, lower=1, clean=0, overwrite_a=1)
    _require_definite(failed)
    inverse = torch.from_numpy(lapack.dpotri(factor, lower=1, overwrite_c=1)[0].T)
    for start in range(0, len(inverse), _LEAST_BLOCK):  # of which only the upper triangle is the inverse so far
        rows = slice(start, start + _LEAST_BLOCK)
        inverse[rows, :start] = inverse[:start, rows].T
        corner = inverse[rows, rows].triu()
        inverse[rows, rows] = corner + corner.triu(1).T
    return inverse


def _inverted_by_torch(matrix: Tensor) -> Tensor:
    """As `_inverted`, on an accelerator."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    _require_definite(int(failed))
    return torch.cholesky_inverse(factor)


def _require_definite(failed: int) -> None:
    if failed:
        raise np.linalg.LinAlgError(
            f"The products of a block's features are not positive definite in column {failed}. Give students a larger "
            "ridge."
        )


def leave_out(
    student: RidgeStudent, x: Tensor, output: Tensor, residual: Tensor, solution: tuple, duplicates: np.ndarray
) -> Tensor:
    """Return the residuals of each image from a student solved without it, in the shape and dtype of `residual`.

    H are the features by which the image enters the sums, g times, E its residuals at their places, and M the inverse.
    Without the image, the residuals at these places are S = (I - g H M H')^-1 E. The coefficients change by g M H' S,
    from which the residuals at all other places follow.
    """
    layout = student.layout
    inverse, *origin = solution
    wanted = residual.dtype
    x, output, residual = (part.to(inverse.dtype) for part in (x, output, residual))
    if layout.tokens:
        local, context = layout.split(x)
        seen = residual
    else:
        local, context, target = layout.rows(x, output)
        shift = F.linear(context, student.context.to(local.dtype)).unsqueeze(1)
        seen = F.linear(local, student.local.to(local.dtype)) + shift - target
    size = local.shape[2]
    local, context = local - origin[0], context - origin[1]
    weight = torch.from_numpy(duplicates).to(local)[:, None, None]
    # H M H' is split into features of a place and features that all places of an image share
    across = context @ inverse[size:, :size]
    shared = (context @ inverse[size:, size:] * context).sum(1)
    mixed = local @ inverse[:size, :size]
    mixed += across.unsqueeze(1)
    mixed *= weight
    rest = weight * (local @ across.unsqueeze(2) + shared[:, None, None])
    leverage = torch.baddbmm(rest.expand(-1, -1, local.shape[1]), mixed, local.transpose(1, 2))
    system = leverage.neg_()
    system.diagonal(dim1=1, dim2=2).add_(1 + _rounding(inverse.dtype == torch.float64))
    left_out = _solve_systems(system, seen)
    if layout.tokens:
        return left_out.to(wanted)
    scaled = weight * left_out.to(local)
    sums = torch.cat([local.transpose(1, 2) @ scaled, context.unsqueeze(2) @ scaled.sum(1, keepdim=True)], dim=1)
    change = inverse @ sums  # of coefficients, (B, F + Q, C_out)
    constant = (context.unsqueeze(1) @ change[:, size:]).squeeze(1) - origin[0] @ change[:, :size]
    return (residual + student.spread(x, change[:, :size].transpose(1, 2), constant)).to(wanted)


def _rounding(double: bool) -> float:
    """What keeps a system of leverages, which may be 1 but for rounding, positive definite."""
    return 1e-9 if double else 1e-6


def _solve_systems(systems: Tensor, targets: Tensor) -> Tensor:
    """Solve symmetric systems (B, R, R), which may be overwritten, for targets (B, R, C).

    Those on CUDA devices are solved there; not all versions of torch can do so on other accelerators.
    """
    if systems.device.type == "cuda":
        return _solve_together(systems, targets)
    return _solve_each(systems.cpu(), targets.cpu()).to(targets.device)


def _solve_together(systems: Tensor, targets: Tensor) -> Tensor:
    """Solve symmetric systems (B, R, R) for targets (B, R, C) on an accelerator, and ill-conditioned ones by LAPACK."""
    factors, failed = torch.linalg.cholesky_ex(systems)
    safe = (failed == 0) & (factors.diagonal(dim1=1, dim2=2).amin(1).square() > _LEAST_PIVOT)
    solutions = torch.cholesky_solve(targets, factors)
    if not safe.all():
        solutions[~safe] = _solve_each(systems[~safe].cpu(), targets[~safe].cpu()).to(solutions)
    return solutions


def _solve_each(systems: Tensor, targets: Tensor) -> Tensor:
    """Solve symmetric systems (B, R, R), which are overwritten, for targets (B, R, C), several at a time on a CPU.

    Each is solved by one thread: on matrices this small, several would wait for each other, the longer the busier the
    machine is.
    """
    count, size, columns = targets.shape
    threads = torch.get_num_threads()
    with limited_threads(1), single_threaded_blas():
        if threads == 1 or count * size**2 * (size / 3 + 2 * columns) < _LEAST_SHARED:
            return _solve_part(systems, targets)
        with ThreadPoolExecutor(threads) as pool:
            return torch.cat(list(pool.map(_solve_part, systems.tensor_split(threads), targets.tensor_split(threads))))


def _solve_part(systems: Tensor, targets: Tensor) -> Tensor:
    """Solve systems (B, R, R), which are overwritten, for targets (B, R, C).

    LAPACK factors them, since torch's solver sometimes found pivots of 0 while other threads were running. torch's BLAS
    substitutes: in the wheels of scipy, OpenBLAS takes two to three times as long where it uses AVX-512.
    """
    diagonals = systems.diagonal(dim1=1, dim2=2).clone()
    # if one image alone determines some coefficients, pivots are small, and float32 is too coarse to leave it out
    least = _LEAST_PIVOT if systems.dtype == torch.float32 else 0
    failed = [i for i, system in enumerate(systems.numpy()) if not _factor(system) > least]
    solutions = _substitute(systems, targets)
    for i in failed:
        half = systems[i].tril(-1).double()  # the strict lower triangle was not overwritten
        solutions[i] = _solve_exactly(half + half.T + diagonals[i].double().diag(), targets[i].double())
    return solutions


def _factor(system: np.ndarray) -> float:
    """Overwrite the upper triangle of a symmetric system with its Cholesky factor; return the least pivot, or 0."""
    potrf = lapack.spotrf if system.dtype == np.float32 else lapack.dpotrf
    # the transpose is in LAPACK's memory order, which avoids copies
    factor, failed = potrf(system.T, lower=1, clean=0, overwrite_a=1)
    return 0.0 if failed else float(factor.diagonal().min() ** 2)


def _substitute(factors: Tensor, targets: Tensor) -> Tensor:
    """Solve systems (..., R, R) for targets (..., R, C), given their upper factors."""
    halfway = torch.linalg.solve_triangular(factors.mT, targets, upper=False)
    return torch.linalg.solve_triangular(factors, halfway, upper=True)


def _solve_exactly(system: Tensor, target: Tensor) -> Tensor:
    """Solve a symmetric system (R, R) in float64 for a target (R, C)."""
    factor = system.clone()
    if _factor(factor.numpy()) > 0:
        return _substitute(factor, target)
    return torch.from_numpy(np.linalg.solve(system.numpy(), target.numpy()))  # indefinite because of rounding
