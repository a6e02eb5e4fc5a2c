"""What torch's exporter does not write: resizing, densities, p-values and maps, in ONNX operators."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from scipy.special import gammaln
from sklearn.mixture import GaussianMixture

from skl_transformaly._density import AutoDensity, GaussianDensity, KNNDensity
from skl_transformaly._fusion import quantile_knots
from skl_transformaly._space import FeatureSpace

__all__ = [
    "DENSITIES",
    "OPSET",
    "Operators",
    "enlarge",
    "interpolated_share",
    "log_density",
    "preprocess",
    "share_at_most",
    "space_score",
]

# The last before operators came that onnxruntime 1.20 does not have for all types used here.
OPSET = 18

# Name of a value in the graph, or the value itself where it is known.
Value = Any


class Operators:
    """Nodes of a graph in the making: ``ops.Add(a, b)`` appends a node and gives the name of what it computes.

    Parameters
    ----------
    prefix : str
        What all names begin with: unique in the graph.

    Attributes
    ----------
    nodes : list of onnx.NodeProto
        In the order in which they are to run.
    initializers : list of onnx.TensorProto
        Arrays and numbers that were inputs.

    Examples
    --------
    >>> ops = Operators("example")
    >>> ops.Add("x", np.float64(1))
    'example/Add_0'
    >>> [node.op_type for node in ops.nodes]
    ['Add']
    """

    def __init__(self, prefix: str):
        self.prefix = prefix
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def __getattr__(self, op_type: str) -> Callable[..., Any]:
        if not op_type[0].isupper():
            raise AttributeError(op_type)

        def append(*inputs: Value, outputs: int = 1, **attributes: Any) -> Any:
            name = f"{self.prefix}/{op_type}_{len(self.nodes)}"
            names = [name] if outputs == 1 else [f"{name}:{i}" for i in range(outputs)]
            self.nodes.append(helper.make_node(op_type, [self.name(x) for x in inputs], names, name, **attributes))
            return name if outputs == 1 else tuple(names)

        return append

    def name(self, value: Value) -> str:
        """Name of `value`, which becomes an initializer where it is an array or a number."""
        if isinstance(value, str):
            return value
        name = f"{self.prefix}/constant_{len(self.initializers)}"
        self.initializers.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def double(self, value: Value) -> str:
        """`value` in float64."""
        return self.Cast(value, to=TensorProto.DOUBLE)

    def single(self, value: Value) -> str:
        """`value` in float32."""
        return self.Cast(value, to=TensorProto.FLOAT)

    def length(self, value: Value, axis: int) -> str:
        """Length of an axis, an int64 scalar."""
        return self.Gather(self.Shape(value), np.int64(axis))

    def total(self, value: Value) -> str:
        """Sum over the last axis, which goes."""
        return self.ReduceSum(value, np.array([-1]), keepdims=0)


def preprocess(ops: Operators, images: str, size: Sequence[int], mode: str, mean: Any, std: Any) -> str:
    """Resize and normalise, to the bit as ``TimmExtractor.preprocess`` does.

    torch resizes bytes as Pillow does: one axis after the other, with weights rounded to 16-bit integers and the result
    of each axis rounded to bytes. Those sums are integers that float64 holds exactly, so each axis is one matrix
    product, whose matrix is computed from the size of the images as they come.

    Parameters
    ----------
    images : str
        uint8 (N, H, W, C); C = 1, 3 or 4, the fourth laid on white.
    size : (int, int)
        Height and width to resize to.
    mode : {"bilinear", "bicubic"}
    mean, std : sequence of float
        Per channel, of pixels in 0-1.

    Returns
    -------
    pixels : str
        float32 (N, 3, *size).
    """
    planes = ops.Transpose(images, perm=[0, 3, 1, 2])
    channels = ops.length(planes, 1)
    # of 2 channels none are colours, and of 5 the table knows nothing: the runtime refuses them
    colours = ops.Gather(np.array([0, 1, 0, 3, 3]), channels)
    colours, channels = (ops.Unsqueeze(count, np.array([0])) for count in (colours, channels))
    axis = np.array([1])
    colour = ops.Slice(planes, np.array([0]), colours, axis)
    has_alpha = ops.Squeeze(ops.Equal(channels, np.array([4])), np.array([0]))

    laid = Operators(ops.prefix + "/alpha")
    alpha = laid.Div(laid.double(laid.Slice(planes, colours, channels, axis)), np.float64(255))
    white = laid.Mul(laid.Sub(np.float64(1), alpha), np.float64(255))
    flat = laid.Round(laid.Add(laid.Mul(laid.double(colour), alpha), white))
    opaque = Operators(ops.prefix + "/opaque")
    planes = ops.If(has_alpha, then_branch=_branch(laid, flat), else_branch=_branch(opaque, opaque.double(colour)))

    across, unit = _byte_weights(ops, ops.double(ops.length(planes, 3)), np.float64(size[1]), mode)
    planes = _to_bytes(ops, ops.MatMul(planes, ops.Transpose(across, perm=[1, 0])), unit)
    down, unit = _byte_weights(ops, ops.double(ops.length(planes, 2)), np.float64(size[0]), mode)
    planes = _to_bytes(ops, ops.MatMul(down, planes), unit)
    mean, std = (np.array(values, dtype=np.float32).reshape(-1, 1, 1) for values in (mean, std))
    return ops.Div(ops.Sub(ops.Div(ops.single(planes), np.float32(255)), mean), std)


def _branch(ops: Operators, result: str) -> onnx.GraphProto:
    output = helper.make_tensor_value_info(result, TensorProto.DOUBLE, [None] * 4)
    return helper.make_graph(ops.nodes, ops.prefix, [], [output], ops.initializers)


def _byte_weights(ops: Operators, size_in: Value, size_out: Value, mode: str) -> tuple[str, str]:
    """Weights (out, in) as integers, and the integer that stands for 1: the largest with which they fit 16 bits."""
    weights = _weights(ops, size_in, size_out, mode)
    largest = ops.ReduceMax(weights, keepdims=0)
    powers = 2.0 ** np.arange(23)
    fits = ops.Less(ops.Floor(ops.Add(ops.Mul(largest, powers[1:]), np.float64(0.5))), np.float64(2**15))
    unit = ops.Gather(powers, ops.total(ops.Cast(fits, to=TensorProto.INT64)))
    rounded = ops.Floor(ops.Add(ops.Mul(ops.Abs(weights), unit), np.float64(0.5)))
    return ops.Mul(ops.Sign(weights), rounded), unit


def _to_bytes(ops: Operators, sums: str, unit: str) -> str:
    rounded = ops.Floor(ops.Div(ops.Add(sums, ops.Div(unit, np.float64(2))), unit))
    return ops.Clip(rounded, np.float64(0), np.float64(255))


def _weights(ops: Operators, size_in: Value, size_out: Value, mode: str) -> str:
    """What each pixel of a line (columns) adds to each of the resized line (rows): antialiased, edges renormalised."""
    one, half = np.float64(1), np.float64(0.5)
    scale = ops.Div(size_in, size_out)
    stretch = ops.Max(scale, one)
    support = ops.Mul(stretch, np.float64({"bilinear": 1, "bicubic": 2}[mode]))
    centre = ops.Mul(ops.Add(ops.Range(np.float64(0), size_out, one), half), scale)
    centre = ops.Unsqueeze(centre, np.array([1]))
    place = ops.Range(np.float64(0), size_in, one)
    first = ops.Floor(ops.Add(ops.Sub(centre, support), half))
    end = ops.Floor(ops.Add(ops.Add(centre, support), half))
    x = ops.Abs(ops.Mul(ops.Add(ops.Sub(place, centre), half), ops.Reciprocal(stretch)))
    heights = (_triangle if mode == "bilinear" else _cubic)(ops, x)
    inside = ops.And(ops.GreaterOrEqual(place, first), ops.Less(place, end))
    heights = ops.Where(inside, heights, np.float64(0))
    return ops.Div(heights, ops.ReduceSum(heights, np.array([1]), keepdims=1))


def _triangle(ops: Operators, x: str) -> str:
    return ops.Max(ops.Sub(np.float64(1), x), np.float64(0))


def _cubic(ops: Operators, x: str) -> str:
    """Keys's cubic with a = -0.5, by Horner's scheme."""

    def polynomial(*coefficients: float) -> str:
        value: Value = np.float64(coefficients[0])
        for coefficient in coefficients[1:]:
            value = ops.Add(ops.Mul(value, x), np.float64(coefficient))
        return value

    near, far = polynomial(1.5, -2.5, 0, 1), polynomial(-0.5, 2.5, -4, 2)
    far = ops.Where(ops.Less(x, np.float64(2)), far, np.float64(0))
    return ops.Where(ops.Less(x, np.float64(1)), near, far)


def enlarge(ops: Operators, maps: str, images: str) -> str:
    """Maps (N, h, w), float32, at the size of `images` (N, H, W, C): bilinear, as Pillow resizes floats."""
    for axis, perm in ((2, None), (1, [1, 0])):
        size_in, size_out = (ops.double(ops.length(value, axis)) for value in (maps, images))
        weights = _weights(ops, size_in, size_out, "bilinear")
        if perm is None:
            product = ops.MatMul(ops.double(maps), ops.Transpose(weights, perm=[1, 0]))
        else:
            product = ops.MatMul(weights, ops.double(maps))
        maps = ops.single(product)
    return maps


def space_score(ops: Operators, z: str, space: FeatureSpace) -> str:
    """``space.score_samples(z)`` of float64 features (N, D): float64 (N,)."""
    if space.normalize and not space.discrepancy:
        ends = np.cumsum(space.sizes_)
        groups = [
            ops.Slice(z, np.array([start]), np.array([end]), np.array([1]))
            for start, end in zip(ends - space.sizes_, ends)
        ]
        z = ops.Concat(*[_unit_length(ops, group) for group in groups], axis=1)
    if hasattr(space, "whitening_"):
        pca = space.whitening_
        scales = np.sqrt(np.maximum(pca.explained_variance_, np.finfo(np.float64).eps))
        z = ops.MatMul(ops.Sub(z, pca.mean_), pca.components_.T / scales)
    log_likelihood = log_density(ops, z, space.density_)
    return ops.Div(ops.Sub(log_likelihood, np.float64(space.location_)), np.float64(space.spread_))


def _unit_length(ops: Operators, z: str) -> str:
    norm = ops.Sqrt(ops.ReduceSum(ops.Mul(z, z), np.array([1]), keepdims=1))
    return ops.Div(z, ops.Where(ops.Equal(norm, np.float64(0)), np.float64(1), norm))


def log_density(ops: Operators, z: str, density: Any) -> str:
    """``density.score_samples(z)`` of float64 features (N, d): float64 (N,).

    Raises
    ------
    TypeError
        A density of which there is no version in ONNX operators.
    """
    write = DENSITIES.get(type(density))
    if write is None:
        raise TypeError(
            f"A density of class {type(density).__name__} cannot be exported to ONNX; those that can are "
            f"{', '.join(kind.__name__ for kind in DENSITIES)} (by name: 'auto', 'gaussian', 'gmm', 'knn')."
        )
    return write(ops, z, density)


def _gaussian(ops: Operators, z: str, density: GaussianDensity) -> str:
    delta = ops.Div(ops.Sub(z, density.mean_), density.scale_)
    inside = ops.MatMul(delta, np.ascontiguousarray(density.components_.T))
    variances = (1 - density.shrinkage_) * density.variances_ + density.floor_
    squares = ops.total(ops.Div(ops.Mul(inside, inside), variances))
    d, rank = len(density.mean_), len(variances)
    if rank < d:
        outside = ops.Sub(delta, ops.MatMul(inside, density.components_))
        squares = ops.Add(squares, ops.Div(ops.total(ops.Mul(outside, outside)), np.float64(density.floor_)))
    log_determinant = np.log(variances).sum() + (d - rank) * np.log(density.floor_)
    constant = 0.5 * (d * np.log(2 * np.pi) + log_determinant) + np.log(density.scale_).sum()
    return ops.Sub(ops.Mul(squares, np.float64(-0.5)), np.float64(constant))


def _auto(ops: Operators, z: str, density: AutoDensity) -> str:
    parts = []
    for part, location, spread in zip((density.gaussian_, density.neighbors_), density.location_, density.spread_):
        parts.append(ops.Div(ops.Sub(log_density(ops, z, part), np.float64(location)), np.float64(2 * spread)))
    return ops.Add(*parts)


def _mixture(ops: Operators, z: str, mixture: GaussianMixture) -> str:
    parts = []
    for k, (mean, weight) in enumerate(zip(mixture.means_, mixture.weights_)):
        factor = mixture.precisions_cholesky_ if mixture.covariance_type == "tied" else mixture.precisions_cholesky_[k]
        if mixture.covariance_type in ("diag", "spherical"):
            factor = np.diag(np.broadcast_to(factor, len(mean)))
        white = ops.MatMul(ops.Sub(z, mean), factor)
        constant = np.log(weight) + np.log(np.diag(factor)).sum() - len(mean) / 2 * np.log(2 * np.pi)
        squares = ops.ReduceSum(ops.Mul(white, white), np.array([1]), keepdims=1)
        parts.append(ops.Add(ops.Mul(squares, np.float64(-0.5)), np.float64(constant)))
    logs = ops.Concat(*parts, axis=1)
    largest = ops.ReduceMax(logs, np.array([1]), keepdims=1)
    rest = ops.Log(ops.total(ops.Exp(ops.Sub(logs, largest))))
    return ops.Add(rest, ops.Squeeze(largest, np.array([1])))


def _neighbors(ops: Operators, z: str, density: KNNDensity) -> str:
    training = density.samples_
    n, d = training.shape
    k = density.n_neighbors
    # |z - t|^2 less |z|^2 finds the neighbours; cancellation spoils it as a distance, which is taken from differences
    near = ops.Add(ops.Mul(ops.MatMul(z, training.T.copy()), np.float64(-2)), (training**2).sum(axis=1))
    _, found = ops.TopK(near, np.array([k]), axis=1, largest=0, sorted=1, outputs=2)
    difference = ops.Sub(ops.Gather(training, found), ops.Unsqueeze(z, np.array([1])))
    squares = ops.total(ops.Mul(difference, difference))
    distance = ops.Sqrt(ops.ReduceMax(squares, np.array([1]), keepdims=0))
    logs = ops.Log(ops.Max(distance, np.float64(density.floor_)))
    log_ball = d / 2 * np.log(np.pi) - gammaln(d / 2 + 1)
    return ops.Sub(np.float64(np.log(k) - np.log(n) - log_ball), ops.Mul(logs, np.float64(d)))


DENSITIES: dict[type, Callable[[Operators, str, Any], str]] = {
    AutoDensity: _auto,
    GaussianDensity: _gaussian,
    GaussianMixture: _mixture,
    KNNDensity: _neighbors,
}


def share_at_most(ops: Operators, score: str, calibration: np.ndarray) -> str:
    """P-values: the share of calibration scores, and one more, that are at most the score, float64 (N,)."""
    return ops.Div(ops.Add(_count_at_most(ops, score, calibration), np.float64(1)), np.float64(len(calibration) + 1))


def interpolated_share(ops: Operators, score: str, held_out: np.ndarray) -> str:
    """P-values as `interpolated_p_values` has them, float64 (N,)."""
    knots = quantile_knots(np.sort(held_out))
    n = len(knots)
    # the knots left and right of a score, of which `count` are at most as high; right of all is infinitely far
    left = np.concatenate([knots[:1] - 1, knots])
    width = np.concatenate([[1.0], np.diff(knots), [np.inf]])
    count = _count_at_most(ops, score, knots)
    place = ops.Cast(count, to=TensorProto.INT64)
    within = ops.Div(ops.Sub(score, ops.Gather(left, place)), ops.Gather(width, place))
    share = ops.Div(ops.Add(count, within), np.float64(n + 1))
    share = ops.Max(share, np.float64(1 / (n + 1)))
    return ops.Where(ops.Equal(place, np.int64(n)), np.float64(1), share)


def _count_at_most(ops: Operators, score: str, values: np.ndarray) -> str:
    """How many of the values are at most the score, float64 (N,)."""
    return ops.total(ops.double(ops.LessOrEqual(values, ops.Unsqueeze(score, np.array([1])))))
