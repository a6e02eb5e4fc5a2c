"""A detector as one torch module, which torch's exporter writes as ONNX: networks in float32, all else in float64.

Each part does what the detector does with numpy and scikit-learn, in operators that ONNX has.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from scipy.special import gammaln
from sklearn.mixture import GaussianMixture
from torch import Tensor, nn
from torch.nn import functional as F

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._density import SHARES, AutoDensity, GaussianDensity, KNNDensity, LocalKNNDensity
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._fusion import quantile_knots
from skl_transformaly._space import FeatureSpace
from skl_transformaly.students._imitation import block_measures, by_measure
from skl_transformaly.teacher._features import TeacherFeatures
from skl_transformaly.teacher._network import Teacher

__all__ = ["DetectorGraph", "ExportError", "Preprocess", "Share", "Space", "density_module", "enlarge"]


class ExportError(TypeError):
    """A part of a detector has no counterpart in ONNX operators."""


class _Constants(nn.Module):
    """A module that holds arrays and numbers as buffers; numbers of Python are float64."""

    def __init__(self, **values: Any):
        super().__init__()
        for name, value in values.items():
            self.register_buffer(name, torch.from_numpy(np.array(value)))

    def __getattr__(self, name: str) -> Any:  # buffers, to type checkers
        return super().__getattr__(name)


# ----- images


class Preprocess(_Constants):
    """Resizes and normalises images, to the bit as ``TimmExtractor.preprocess`` does.

    torch resizes bytes as Pillow does: one axis after the other, with weights rounded to 16-bit integers and the result
    of each axis rounded to bytes. float64 holds these sums of integers exactly, so each axis is one matrix product,
    whose matrix is computed from the size that the images have when the graph runs.
    """

    def __init__(self, size: Sequence[int], mode: str, mean: Sequence[float], std: Sequence[float]):
        centre, spread = (np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (mean, std))
        # by the number of channels, which of them are red, green and blue; 9 is out of bounds at run time
        colours = np.array([[9, 9, 9], [0, 0, 0], [9, 9, 9], [0, 1, 2], [0, 1, 2]])
        super().__init__(mean=centre, std=spread, colours=colours, powers=2.0 ** np.arange(23))
        self._size, self._mode = size, mode

    def forward(self, images: Tensor) -> Tensor:
        """Pixels (N, 3, height, width), float32, of images (N, H, W, C), uint8; C is 1, 3 or 4."""
        planes = images.permute(0, 3, 1, 2).float()
        channels = planes.shape[1]
        alpha = torch.where(torch.scalar_tensor(channels) == 4, planes[:, -1:], 255.0)
        colours = planes[:, : torch.sym_min(channels, 3)]
        # laid on white; float32 rounds these sums as float64 does
        planes = (colours * (alpha / 255) + (255 - alpha)).round().double()
        weights, unit = self._byte_weights(planes.shape[3], self._size[1])
        planes = _to_bytes(planes @ weights.T, unit)
        weights, unit = self._byte_weights(planes.shape[2], self._size[0])
        planes = _to_bytes(weights @ planes, unit).index_select(1, self.colours[channels])
        return (planes.float() / 255 - self.mean) / self.std

    def _byte_weights(self, size_in: int, size_out: int) -> tuple[Tensor, Tensor]:
        """Weights (out, in) as integers, and the integer that stands for 1: the largest with which they fit 16 bits."""
        weights = _weights(size_in, size_out, self._mode)
        fits = (weights.max() * self.powers[1:] + 0.5).floor() < 2**15
        unit = self.powers[fits.sum()]
        return weights.sign() * (weights.abs() * unit + 0.5).floor(), unit


def _to_bytes(sums: Tensor, unit: Tensor) -> Tensor:
    return ((sums + unit / 2) / unit).floor().clamp(0, 255)


def _weights(size_in: int, size_out: int, mode: str) -> Tensor:
    """What each pixel of a line (columns) adds to each of the resized line (rows): antialiased, edges renormalised."""
    scale = torch.scalar_tensor(size_in, dtype=torch.float64) / torch.scalar_tensor(size_out, dtype=torch.float64)
    stretch = scale.clamp(min=1)
    support = stretch * {"bilinear": 1, "bicubic": 2}[mode]
    centre = ((torch.arange(size_out, dtype=torch.float64) + 0.5) * scale).unsqueeze(1)
    place = torch.arange(size_in, dtype=torch.float64)
    inside = (place >= (centre - support + 0.5).floor()) & (place < (centre + support + 0.5).floor())
    x = ((place - centre + 0.5) * (1 / stretch)).abs()
    if mode == "bilinear":
        heights = (1 - x).clamp(min=0)
    else:  # Keys's cubic with a = -0.5
        far = torch.where(x < 2, ((-0.5 * x + 2.5) * x - 4) * x + 2, 0.0)
        heights = torch.where(x < 1, (1.5 * x - 2.5) * x * x + 1, far)
    heights = torch.where(inside, heights, 0.0)
    return heights / heights.sum(1, keepdim=True)


def enlarge(maps: Tensor, height: int, width: int) -> Tensor:
    """Maps (N, h, w), float32, as (N, height, width): bilinear, as Pillow resizes floats."""
    maps = (maps.double() @ _weights(maps.shape[2], width, "bilinear").T).float()
    return (_weights(maps.shape[1], height, "bilinear") @ maps.double()).float()


# ----- densities and p-values


class _Gaussian(_Constants):
    def __init__(self, density: GaussianDensity):
        super().__init__(
            mean=density.mean_,
            scale=density.scale_,
            components=density.components_,
            variances=(1 - density.shrinkage_) * density.variances_ + density.floor_,
            floor=density.floor_,
            peak=density.score_samples(density.mean_[np.newaxis]),
        )

    def forward(self, z: Tensor) -> Tensor:
        delta = (z - self.mean) / self.scale
        inside = delta @ self.components.T
        squares = (inside.square() / self.variances).sum(1)
        if len(self.components) < len(self.mean):
            outside = delta - inside @ self.components
            squares = squares + outside.square().sum(1) / self.floor
        return self.peak - squares / 2


class _Mixture(_Constants):
    def __init__(self, mixture: GaussianMixture):
        k, d = mixture.means_.shape
        factors = mixture.precisions_cholesky_
        if mixture.covariance_type == "spherical":
            factors = np.repeat(factors[:, np.newaxis], d, axis=1)
        if mixture.covariance_type in ("diag", "spherical"):
            factors = np.stack([np.diag(factor) for factor in factors])
        factors = np.broadcast_to(factors, (k, d, d))
        determinants = np.log(np.diagonal(factors, axis1=1, axis2=2)).sum(axis=1)
        constants = np.log(mixture.weights_) + determinants - d / 2 * np.log(2 * np.pi)
        super().__init__(means=mixture.means_[:, np.newaxis], factors=factors, constants=constants[:, np.newaxis])

    def forward(self, z: Tensor) -> Tensor:
        white = (z - self.means) @ self.factors  # (k, N, d)
        logs = self.constants - white.square().sum(2) / 2
        largest = logs.amax(0)
        return (logs - largest).exp().sum(0).log() + largest


class _Neighbors(_Constants):
    def __init__(self, density: KNNDensity):
        samples, count = density.samples_.astype(np.float64), density.neighbors_.n_neighbors
        n, d = samples.shape
        log_ball = d / 2 * np.log(np.pi) - gammaln(d / 2 + 1)
        super().__init__(
            samples=samples,
            squares=(samples**2).sum(axis=1),
            floor=density.floor_,
            constant=np.log(count) - np.log(n) - log_ball,
        )
        self._count, self._single = count, density.samples_.dtype == np.float32

    def forward(self, z: Tensor) -> Tensor:
        distance = self._nearest(z)[0].amax(1)
        return self.constant - self.samples.shape[1] * torch.maximum(distance, self.floor).log()

    def _nearest(self, z: Tensor) -> tuple[Tensor, Tensor]:
        if self._single:  # as the samples were
            z = z.float().double()
        # |t|^2 - 2 z t finds the neighbours t; cancellation spoils it as a distance, which is taken from differences
        near = self.squares - 2 * (z @ self.samples.T)
        found = near.topk(self._count, dim=1, largest=False).indices
        return (self.samples[found] - z.unsqueeze(1)).square().sum(2).sqrt(), found


class _LocalNeighbors(_Neighbors):
    def __init__(self, density: LocalKNNDensity):
        super().__init__(density)
        self.register_buffer("scales", torch.from_numpy(density.scaling_ * np.log(density.distances_)))

    def forward(self, z: Tensor) -> Tensor:
        distances, found = self._nearest(z)
        own = torch.maximum(distances.mean(1), self.floor).log()
        return -self.samples.shape[1] * (own - self.scales[found].mean(1))


class _Auto(_Constants):
    def __init__(self, density: AutoDensity):
        super().__init__(locations=density.location_, spreads=density.spread_, shares=SHARES)
        self._parts = nn.ModuleList([_Gaussian(density.gaussian_), _LocalNeighbors(density.neighbors_)])

    def forward(self, z: Tensor) -> Tensor:
        logs = torch.stack([part(z) for part in self._parts], dim=1)
        return ((logs - self.locations) / self.spreads) @ self.shares


_DENSITIES: dict[type, Callable[[Any], nn.Module]] = {
    AutoDensity: _Auto,
    GaussianDensity: _Gaussian,
    GaussianMixture: _Mixture,
    KNNDensity: _Neighbors,
    LocalKNNDensity: _LocalNeighbors,
}


def density_module(density: Any) -> nn.Module:
    """``density.score_samples`` as a module, float64 features (N, d) to (N,); ExportError if it cannot be exported."""
    if type(density) not in _DENSITIES:
        raise ExportError(
            f"A density of class {type(density).__name__} cannot be exported to ONNX; those that can are "
            f"{', '.join(kind.__name__ for kind in _DENSITIES)} (by name: 'auto', 'gaussian', 'gmm', 'knn')."
        )
    return _DENSITIES[type(density)](density)


class Space(_Constants):
    """``space.score_samples`` as a module: features (N, D) to float64 (N,)."""

    def __init__(self, space: FeatureSpace):
        whitening = {}
        if hasattr(space, "whitening_"):
            pca = space.whitening_
            scales = np.sqrt(np.maximum(pca.explained_variance_, np.finfo(np.float64).eps))
            whitening = {"mean": pca.mean_, "directions": pca.components_.T / scales}
        super().__init__(location=space.location_, spread=space.spread_, **whitening)
        self._groups = space.sizes_.tolist() if space.unit_length_ else None
        self._whitens = bool(whitening)
        self._density = density_module(space.density_)

    def forward(self, z: Tensor) -> Tensor:
        z = z.double()
        if self._groups is not None:
            # all zeros stay what they are
            z = torch.cat([F.normalize(group, eps=1e-300) for group in z.split(self._groups, dim=1)], dim=1)
        if self._whitens:
            z = (z - self.mean) @ self.directions
        return (self._density(z) - self.location) / self.spread


class Share(_Constants):
    """P-values, float64 (N,), among the scores of held-out normal images: as `p_values` has them, or interpolated."""

    def __init__(self, scores: np.ndarray, *, interpolated: bool):
        values = quantile_knots(np.sort(scores)) if interpolated else scores
        # by how many values are at most the score: the nearest of these, and how far the next value is
        left, width = np.concatenate([values[:1] - 1, values]), np.concatenate([[1.0], np.diff(values), [np.inf]])
        super().__init__(values=values, left=left, width=width)
        self._n, self._interpolated = len(scores), interpolated

    def forward(self, score: Tensor) -> Tensor:
        count = (self.values <= score.unsqueeze(1)).sum(1)
        if not self._interpolated:
            return (count.double() + 1) / (self._n + 1)
        within = (score - self.left[count]) / self.width[count]
        share = ((count.double() + within) / (self._n + 1)).clamp(min=1 / (self._n + 1))
        return torch.where(count == self._n, 1.0, share)


# ----- the whole


class _Network(nn.Module):
    """Teacher and students, in float32 on the CPU: pixels to features of each space, and maps of each block."""

    def __init__(self, teacher: Teacher, spaces: list[str], students: Any, *, with_map: bool):
        super().__init__()
        # a copy: exporting swaps parameters for stand-ins, and others may be scoring with this teacher
        self._model = copy.deepcopy(teacher.model).to("cpu", torch.float32)
        self._teacher = Teacher(self._model, teacher.data_config, teacher.weights_sha256)
        modules = [] if students is None else students.students_
        self._students = nn.ModuleList(copy.deepcopy(student).to("cpu", torch.float32) for student in modules)
        self._indices = [] if students is None else students.block_indices_.tolist()
        self._measures = () if students is None else students.measures_
        self._usual = dict(zip(self._indices, students.residuals_)) if with_map else {}
        self._spaces = spaces

    def forward(self, pixels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
        students = dict(zip(self._indices, self._students))
        measured: dict[int, Tensor] = {}
        maps: list[Tensor] = []
        teacher = self._teacher
        extractor: Any = SimpleNamespace(blocks_=teacher.blocks, to_maps=teacher.to_maps, classify=teacher.classify)
        watch, features_of = TeacherFeatures(extractor, self._spaces, 0).watch()

        def visit(index, block, args, kwargs, output):
            if watch is not None:
                watch(index, block, args, kwargs, output)
            if index in students:
                # not by residual_of, which moves modules: that cannot be traced
                residual = students[index](*args, **kwargs) - output
                measured[index] = block_measures(self._measures, args[0], output, residual)
                if self._usual:
                    maps.append(self._usual[index].standardize(teacher.to_maps(residual)).unsqueeze(1))

        z_p = teacher.embed(pixels, visit)
        features = {space: torch.cat(parts, dim=1) for space, parts in features_of(z_p).items()}
        if measured:
            features["discrepancy"] = by_measure(measured)
        return [features[space] for space in self._spaces], maps


class DetectorGraph(nn.Module):
    """A detector: images (N, H, W, C), uint8, to what `outputs` names.

    These are "score", "decision", "p_value" and "anomaly_map", or the first ones of them. Threshold and p-values of a
    `conformal` detector take the place of those of `core`, which is copied.
    """

    def __init__(self, core: TransformalyDetector, conformal: ConformalDetector | None, *, with_map: bool):
        super().__init__()
        spaces, extractor = list(core.feature_spaces_), core.extractor_
        self._spaces = nn.ModuleList(Space(core.spaces_[name]) for name in spaces)
        config = extractor.teacher_.data_config
        self._preprocess = Preprocess(extractor.image_size_, extractor.interpolation_, config["mean"], config["std"])
        students = core.students_ if "discrepancy" in spaces else None
        self._network = _Network(extractor.teacher_, spaces, students, with_map=with_map)
        self._offset = core.offset_ if conformal is None else conformal.offset_
        self._share: Share | None = None
        if conformal is not None:
            self._share = Share(conformal.calibration_scores_, interpolated=False)
        elif core.held_out_:
            self._share = Share(core.reference_scores_, interpolated=True)
        self.outputs = ["score", "decision"] + ["p_value"] * (self._share is not None) + ["anomaly_map"] * with_map

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        features, maps = self._network(self._preprocess(images))
        score = torch.stack([space(z) for space, z in zip(self._spaces, features)]).sum(0)
        found = [score, score - self._offset]
        if self._share is not None:
            found.append(self._share(score))
        if maps:
            size = max(tuple(single.shape[2:]) for single in maps)
            same = [
                single if tuple(single.shape[2:]) == size else F.interpolate(single, size, mode="nearest")
                for single in maps
            ]
            found.append(enlarge(torch.cat(same, dim=1).mean(1), images.shape[1], images.shape[2]))
        return tuple(found)
