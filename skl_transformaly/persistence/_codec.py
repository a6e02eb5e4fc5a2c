"""What a saved detector consists of: each class's attributes, of what kind and shape, to JSON and arrays and back.

The description lists objects; each names one of a fixed list of classes, its parameters and its fitted attributes, and
refers to earlier objects and to arrays. `PARTS` is that list. What it does not foresee is an error, at saving and at
loading.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field
from pathlib import PurePath
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from torch import nn

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._density import AutoDensity, GaussianDensity, KNNDensity
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._space import FeatureSpace
from skl_transformaly.images._sequence import DIGEST_SIZE
from skl_transformaly.model_selection import NormalOnly
from skl_transformaly.persistence._invariants import (
    Unfit,
    brief,
    check_auto,
    check_conformal,
    check_detector,
    check_gaussian,
    check_image_shape,
    check_mixture,
    check_neighbors,
    check_pca,
    check_residuals,
    check_ridge,
    check_space,
    count_discrepancies,
    unfit,
)
from skl_transformaly.students._block import BlockStudents
from skl_transformaly.students._residuals import ResidualStatistics
from skl_transformaly.students._ridge import Layout, RidgeStudents
from skl_transformaly.teacher import _architecture, _stored
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.teacher._features import SPACES
from skl_transformaly.utils._container import ArrayInfo, ModelFile, ModelFileError
from skl_transformaly.utils._torch import PRECISIONS, resolve_device

__all__ = ["DETECTORS", "PARTS", "Array", "Numbers", "Reader", "Writer", "encode_float"]

# Parameters that say where this machine keeps things, not what the detector is.
_LEFT_OUT = frozenset(("memory", "checkpoint"))
_MAX_OBJECTS = 10_000
# Random weights that are drawn for a file that does not hold them: its name alone would take any memory.
_MOST_DRAWN_BYTES = 100 * 10**6
# A file of weights has at least this part of their bytes in float32: 8 bits each, at the least.
_MOST_PACKED = 4
_MAX_JOBS = 1024


# ----- fitted attributes: what kinds there are


@dataclass(frozen=True)
class Array:
    """An array; its axes have the sizes that these letters stand for within one object, or these numbers.

    None is any shape.
    """

    axes: tuple[str | int, ...] | None
    dtypes: tuple[str, ...] = ("float64",)
    nan: bool = False

    def encode(self, value: Any, writer: Writer, name: str) -> Any:
        return writer.array(name, value)

    def decode(self, value: Any, reader: Reader, sizes: dict[str, int]) -> np.ndarray:
        shape = reader.shape(value)
        if self.axes is not None:
            if len(shape) != len(self.axes):
                unfit(f"is an array of shape {shape}; expected {len(self.axes)} axes")
            for axis, size in zip(self.axes, shape):
                _bind(sizes, axis, size)
        return reader.array(value, self.dtypes, nan=self.nan)


@dataclass(frozen=True)
class _Count:
    """A whole number from `low`, perhaps the size of an axis."""

    low: int = 0
    axis: str | None = None

    def encode(self, value: Any, writer: Writer, name: str) -> int:
        return int(value)

    def decode(self, value: Any, reader: Reader, sizes: dict[str, int]) -> int:
        if type(value) is not int or value < self.low or value >= 2**63:
            unfit(f"is {brief(value)}; expected a whole number from {self.low}")
        if self.axis is not None:
            _bind(sizes, self.axis, value)
        return value


@dataclass(frozen=True)
class _Number:
    """A float."""

    finite: bool = True

    def encode(self, value: Any, writer: Writer, name: str) -> Any:
        return encode_float(float(value))

    def decode(self, value: Any, reader: Reader, sizes: dict[str, int]) -> float:
        value = decode_float(value)
        if type(value) not in (int, float) or (self.finite and not math.isfinite(value)):
            unfit(f"is {brief(value)}; expected a number")
        return float(value)


@dataclass(frozen=True)
class _Flag:
    def encode(self, value: Any, writer: Writer, name: str) -> bool:
        return bool(value)

    def decode(self, value: Any, reader: Reader, sizes: dict[str, int]) -> bool:
        if type(value) is not bool:
            unfit(f"is {brief(value)}; expected true or false")
        return value


@dataclass(frozen=True)
class _Text:
    """One of some words, or a text of some length."""

    words: tuple[str, ...] = ()
    length: int | None = None

    def encode(self, value: Any, writer: Writer, name: str) -> str:
        return str(value)

    def decode(self, value: Any, reader: Reader, sizes: dict[str, int]) -> str:
        if type(value) is not str or (self.words and value not in self.words):
            unfit(f"is {brief(value)}; expected {' or '.join(self.words) or 'text'}")
        if self.length is not None and len(value) != self.length:
            unfit(f"is {brief(value)}; expected {self.length} characters")
        return value


@dataclass(frozen=True)
class Numbers:
    """A list of floats."""

    def encode(self, value: Any, writer: Writer, name: str) -> list:
        return [encode_float(float(number)) for number in value]

    def decode(self, value: Any, reader: Reader, sizes: dict[str, int]) -> list[float]:
        if not isinstance(value, list):
            unfit(f"is {brief(value)}; expected a list of numbers")
        return [_Number(finite=False).decode(number, reader, sizes) for number in value]


@dataclass(frozen=True)
class _Sizes:
    """A tuple of `length` positive whole numbers, or None where that is allowed."""

    length: int
    optional: bool = False
    high: int = 2**31

    def encode(self, value: Any, writer: Writer, name: str) -> list[int] | None:
        return None if value is None else [int(size) for size in value]

    def decode(self, value: Any, reader: Reader, sizes: dict[str, int]) -> tuple[int, ...] | None:
        if value is None and self.optional:
            return None
        if not isinstance(value, list) or len(value) != self.length:
            unfit(f"is {brief(value)}; expected {self.length} whole numbers")
        if not all(type(size) is int and 1 <= size <= self.high for size in value):
            unfit(f"is {brief(value)}; expected whole numbers from 1 to {self.high}")
        return tuple(value)


@dataclass(frozen=True)
class _Names:
    """Column names, an array of str."""

    axis: str

    def encode(self, value: Any, writer: Writer, name: str) -> list[str]:
        return [str(name) for name in value]

    def decode(self, value: Any, reader: Reader, sizes: dict[str, int]) -> np.ndarray:
        if not isinstance(value, list) or not all(type(name) is str for name in value):
            unfit(f"is {brief(value)}; expected a list of names")
        _bind(sizes, self.axis, len(value))
        return np.array(value, dtype=object)


@dataclass(frozen=True)
class _Part:
    """Another fitted object, of one of these classes; `axes` says which of its sizes are which of this object's."""

    classes: tuple[str, ...]
    axes: Mapping[str, str] = field(default_factory=dict)

    def encode(self, value: Any, writer: Writer, name: str) -> int:
        name = type(value).__name__
        if name not in self.classes or type(value) is not PARTS[name].cls:
            raise TypeError(
                f"A model file cannot hold a {type(value).__module__}.{name} here; it can hold "
                f"{', '.join(self.classes)}. joblib.dump can save any of them, as a pickle."
            )
        return writer.add(value)

    def decode(self, value: Any, reader: Reader, sizes: dict[str, int]) -> Any:
        part, inner = reader.fitted(value, self.classes)
        for theirs, ours in self.axes.items():
            if theirs in inner:
                _bind(sizes, ours, inner[theirs])
        return part


def _bind(sizes: dict[str, int], axis: str | int, size: int) -> None:
    """Note that `axis` has this size; refuse where it has another already."""
    expected = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
    if expected != size:
        unfit(f"has size {size} where {expected} was expected")


# ----- what each class is made of


@dataclass(frozen=True)
class _Class:
    """A class that a file may name.

    Attributes
    ----------
    cls : type
    attributes : dict of str to a kind
        Those that its fit sets, in the order in which they are decoded.
    optional : set of str
        Those of them that may be absent.
    pack, unpack : callable
        For state that is no plain attribute: ``pack(part, writer)`` gives a dict for the file, of the keys `packed`;
        ``unpack(part, state, reader, sizes)`` sets it.
    check : callable
        ``check(part, sizes)`` refuses attributes that do not go together.
    """

    cls: Any
    attributes: Mapping[str, Any] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    packed: tuple[str, ...] = ()
    pack: Callable[[Any, Writer], dict[str, Any]] = lambda part, writer: {}
    unpack: Callable[[Any, dict[str, Any], Reader, dict[str, int]], None] = lambda part, state, reader, sizes: None
    check: Callable[[Any, dict[str, int]], None] = lambda part, sizes: None


def _stored_size(image_size: Any) -> int | list[int] | None:
    """What a model file says of `image_size`: one number for a square."""
    sides = _architecture.image_sides(image_size)
    if sides is None:
        return None
    return sides[0] if sides[0] == sides[1] else list(sides)


def _pack_teacher(extractor: TimmExtractor, writer: Writer) -> dict[str, Any]:
    return {"teacher": writer.teacher(extractor)}


def _unpack_teacher(extractor: TimmExtractor, state: dict, reader: Reader, sizes: dict[str, int]) -> None:
    place = _Count().decode(state["teacher"], reader, sizes)
    if place >= len(reader.teachers):
        unfit(f"names teacher {place}, and there are {len(reader.teachers)}")
    entry = reader.teachers[place]
    sides = _architecture.image_sides(entry["image_size"])
    if (entry["model_name"], sides, entry["sha256"], tuple(entry["data_config"]["input_size"][1:])) != (
        extractor.model_name,
        _architecture.image_sides(extractor.image_size),
        extractor.weights_sha256_,
        extractor.image_size_,
    ):
        unfit("does not go with its teacher")
    if entry["stored"]:
        reader.use_teacher(place)
    extractor.keep_settings()
    try:
        resolve_device(extractor.device)
    except ValueError as error:
        unfit(f"computes elsewhere: {error} Pass load(..., device='cpu')")
    try:
        # now, so that whatever is wrong with the weights is said by load
        if entry["stored"]:
            extractor.restore_teacher()
        else:
            _check_can_build(extractor, entry, reader)
            extractor.teacher_  # noqa: B018
        embedding_size = extractor._probe()[0]
    except ModelFileError:
        raise
    except ValueError as error:
        unfit(f"cannot have its weights: {error}")
    if embedding_size != extractor.embedding_size_:
        unfit(f"has embedding_size_ {extractor.embedding_size_}, and its teacher gives {embedding_size} values")
    if extractor.interpolation_ not in ("bilinear", "bicubic"):
        unfit(f"has interpolation {extractor.interpolation_!r}; expected 'bilinear' or 'bicubic'")


def _check_can_build(extractor: TimmExtractor, entry: dict, reader: Reader) -> None:
    """Refuse a teacher that the file does not hold before memory is taken for it, where its weights cannot be right."""
    try:
        needed = _architecture.count_bytes(extractor.model_name, extractor.image_size)
    except ValueError as error:
        unfit(f"needs an architecture that cannot be built here: {error}")
    source = extractor.weights
    if source is None:
        if needed > _MOST_DRAWN_BYTES + reader.file.size:
            unfit(
                f"asks for {needed} bytes of random weights that the file does not hold; at most {_MOST_DRAWN_BYTES} "
                "are drawn for a file. Save it with teacher=True"
            )
    elif source == "bundled":
        if extractor.model_name.partition(".")[0] != _architecture.BUNDLED_MODEL:
            unfit(f"names the bundled weights for {extractor.model_name!r}, whose they are not")
    elif source != "hub" and os.path.isfile(source) and os.path.getsize(source) < needed // _MOST_PACKED:
        unfit(
            f"needs {needed} bytes of weights, and {os.fspath(source)!r} has {os.path.getsize(source)}: it is the file "
            "of another network"
        )


def _check_small(extractor: TimmExtractor) -> None:
    needed = _architecture.count_bytes(extractor.model_name, extractor.image_size)
    if needed > _MOST_DRAWN_BYTES:
        raise ValueError(
            f"Random weights of {needed} bytes cannot be left out of a model file, since load draws at most "
            f"{_MOST_DRAWN_BYTES} bytes that a file does not hold: save with teacher=True."
        )


def _pack_students(students: BlockStudents, writer: Writer) -> dict[str, Any]:
    prefixes = []
    for index, student in zip(students.block_indices_.tolist(), students.students_):
        prefixes.append(writer.network(f"block{index}.", student))
    return {
        "students": prefixes,
        "history": [
            [index, {name: [encode_float(v) for v in values] for name, values in history.items()}]
            for index, history in students.history_.items()
        ],
        "residuals": _pack_residuals(students, writer),
    }


def _pack_residuals(students: Any, writer: Writer) -> list[dict[str, Any] | None]:
    return [
        None if statistics is None else {name: writer.array(name, getattr(statistics, name)) for name in _RESIDUALS}
        for statistics in students._residuals
    ]


def _unpack_students(students: BlockStudents, state: dict, reader: Reader, sizes: dict[str, int]) -> None:
    extractor = students.extractor_
    indices = students.block_indices_.tolist()
    outlines = reader.outline_blocks(extractor)
    places = range(len(outlines))
    if not indices or any(index not in places for index in indices) or sorted(set(indices)) != indices:
        unfit(f"has students of blocks {indices[:20]}, and the teacher has {len(outlines)} blocks")
    prefixes = state["students"]
    if not isinstance(prefixes, list) or len(prefixes) != len(indices) or not all(type(p) is str for p in prefixes):
        unfit("does not have one student for each of its blocks")
    dtype = PRECISIONS[_weight_dtype(extractor)]
    states = {index: reader.network(prefix, outlines[index], dtype) for index, prefix in zip(indices, prefixes)}
    device = next(extractor.teacher_.model.parameters()).device
    sixteen_bits = extractor._sixteen_bits(device)
    students.students_ = [student.to(device) for student in extractor.restore_blocks(states, sixteen_bits=sixteen_bits)]
    students.history_ = _decode_history(state["history"], indices, reader)
    students._residuals = _decode_residuals(state["residuals"], len(indices), reader)
    students.cache_keys_ = {}  # names in a cache that stayed where it was


# fields of ResidualStatistics, and their axes
_RESIDUALS = {"mean": ("C", "h", "w"), "whitening": ("C", "C"), "level": ("h", "w"), "spread": ("h", "w")}


def _decode_residuals(encoded: Any, number: int, reader: Reader) -> list[ResidualStatistics | None]:
    if not isinstance(encoded, list) or len(encoded) != number:
        unfit("does not say what is usual for each of its students")
    found: list[ResidualStatistics | None] = []
    for entry in encoded:
        if entry is None:
            found.append(None)
            continue
        if not isinstance(entry, dict) or set(entry) != set(_RESIDUALS):
            unfit("does not say what is usual for each of its students")
        sizes: dict[str, int] = {}
        arrays = {
            name: Array(axes, ("float32",)).decode(entry[name], reader, sizes) for name, axes in _RESIDUALS.items()
        }
        statistics = ResidualStatistics(**arrays)
        check_residuals(statistics)
        found.append(statistics)
    return found


def _decode_history(encoded: Any, indices: list[int], reader: Reader) -> dict[int, dict[str, list[float]]]:
    pairs: list[Any] = encoded if isinstance(encoded, list) else [None]
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict) for pair in pairs):
        unfit("has a history that is not a table of losses")
    if [index for index, _ in pairs] != indices:
        unfit("has a history of other blocks than those of its students")
    return {
        index: {str(name): Numbers().decode(values, reader, {}) for name, values in history.items()}
        for index, history in pairs
    }


def _pack_ridge(students: RidgeStudents, writer: Writer) -> dict[str, Any]:
    return {
        "layouts": [[int(value) for value in astuple(layout)] for layout in students._layouts],
        "sizes": [[int(side) for side in size] for size in students._sizes],
        "local": [writer.array("local", weights) for weights in students.local_weights_],
        "context": [writer.array("context", weights) for weights in students.context_weights_],
        "residuals": _pack_residuals(students, writer),
    }


def _unpack_ridge(students: RidgeStudents, state: dict, reader: Reader, sizes: dict[str, int]) -> None:
    extractor = students.extractor_
    indices = students.block_indices_.tolist()
    places = range(len(reader.outline_blocks(extractor)))
    if not indices or any(index not in places for index in indices) or sorted(set(indices)) != indices:
        unfit(f"has students of blocks {indices[:20]}, and the teacher has {len(places)} blocks")
    columns = [state[name] for name in ("layouts", "sizes", "local", "context")]
    if not all(isinstance(column, list) and len(column) == len(indices) for column in columns):
        unfit("does not have one student for each of its blocks")
    layouts: list[Layout] = []
    shapes: list[tuple[int, int]] = []
    students.local_weights_, students.context_weights_ = [], []
    dtypes = (_weight_dtype(extractor),)
    for layout, size, local, context in zip(*columns):
        if not _is_list_of(layout, 5, 10_000) or not _is_list_of(size, 2, 10_000) or layout[4] not in (1, 3):
            unfit("describes a student in an unknown way")
        layouts.append(Layout(bool(layout[0]), layout[1], bool(layout[2]), bool(layout[3]), layout[4]))
        shapes.append((size[0], size[1]))
        own: dict[str, int] = {}
        students.local_weights_.append(Array(("C", "F"), dtypes).decode(local, reader, own))
        students.context_weights_.append(Array(("C", "Q"), dtypes).decode(context, reader, own))
    students._residuals = _decode_residuals(state["residuals"], len(indices), reader)
    students.restore(layouts, shapes)


def _is_list_of(value: Any, length: int, high: int) -> bool:
    return isinstance(value, list) and len(value) == length and all(type(v) is int and 0 <= v <= high for v in value)


def _pack_neighbors(density: KNNDensity, writer: Writer) -> dict[str, Any]:
    return {"samples": writer.array("samples", density.samples_)}


def _unpack_neighbors(density: KNNDensity, state: dict, reader: Reader, sizes: dict[str, int]) -> None:
    samples = Array(("n", "d")).decode(state["samples"], reader, sizes)
    density.samples_ = samples
    check_neighbors(density)
    density.restore(samples, density.floor_)


def _pack_auto(density: AutoDensity, writer: Writer) -> dict[str, Any]:
    return {"neighbors": _Part(("KNNDensity",)).encode(density.neighbors_, writer, "neighbors")}


def _unpack_auto(density: AutoDensity, state: dict, reader: Reader, sizes: dict[str, int]) -> None:
    density.neighbors_ = _Part(("KNNDensity",), {"d": "d"}).decode(state["neighbors"], reader, sizes)
    check_auto(density)


def _pack_spaces(detector: TransformalyDetector, writer: Writer) -> dict[str, Any]:
    part = _Part(("FeatureSpace",))
    return {"spaces": [[name, part.encode(space, writer, name)] for name, space in detector.spaces_.items()]}


def _unpack_spaces(detector: TransformalyDetector, state: dict, reader: Reader, sizes: dict[str, int]) -> None:
    spaces = state["spaces"]
    if not isinstance(spaces, list) or not all(isinstance(s, list) and len(s) == 2 for s in spaces):
        unfit("has no list of feature spaces")
    detector.spaces_ = {}
    for name, place in spaces:
        space, own = reader.fitted(place, ("FeatureSpace",))
        if name not in SPACES or name in detector.spaces_:
            unfit(f"has a feature space {brief(name)}")
        expected = {"pretrained": sizes.get("D"), "discrepancy": count_discrepancies(detector, sizes)}.get(name)
        if expected is not None and own["z"] != expected:
            unfit(f"has a feature space {name!r} of {own['z']} features; expected {expected}")
        detector.spaces_[name] = space
    detector.feature_spaces_ = list(detector.spaces_)


def _unpack_positions(detector: Any, state: dict, reader: Reader, sizes: dict[str, int]) -> None:
    detector.fitted_positions_ = getattr(detector, "fitted_positions_", None)


def _check_frozen(frozen: FrozenEstimator, sizes: dict[str, int]) -> None:
    if type(frozen.estimator).__name__ not in DETECTORS or not frozen.__sklearn_is_fitted__():
        unfit("holds no fitted detector")


# what ImageInputMixin sets
_IMAGES = {
    "image_shape_": _Sizes(3, optional=True),
    "n_features_in_": _Count(1, "features"),
    "feature_names_in_": _Names("features"),
}
_IMAGES_OPTIONAL = frozenset(_IMAGES)
# what scikit-learn's validate_data sets
_ROWS = {"n_features_in_": _Count(1, "d"), "feature_names_in_": _Names("d")}
_ROWS_OPTIONAL = frozenset({"feature_names_in_"})

_DENSITIES = ("AutoDensity", "GaussianDensity", "KNNDensity", "GaussianMixture")
DETECTORS = ("TransformalyDetector", "ConformalDetector", "NormalOnly", "FrozenEstimator")
_REAL = ("float64", "float32")

PARTS: dict[str, _Class] = {
    "TimmExtractor": _Class(
        TimmExtractor,
        {
            **_IMAGES,
            "embedding_size_": _Count(1, "D"),
            "image_size_": _Sizes(2, high=_stored.MAX_IMAGE_SIZE),
            "precision_": _Text(tuple(PRECISIONS)),
            "weights_sha256_": _Text(length=64),
        },
        _IMAGES_OPTIONAL,
        ("teacher",),
        _pack_teacher,
        _unpack_teacher,
        check_image_shape,
    ),
    "BlockStudents": _Class(
        BlockStudents,
        {
            **_IMAGES,
            "extractor_": _Part(("TimmExtractor",)),
            "block_indices_": Array(("m",), ("int64",)),
        },
        _IMAGES_OPTIONAL,
        ("students", "history", "residuals"),
        _pack_students,
        _unpack_students,
        check_image_shape,
    ),
    "RidgeStudents": _Class(
        RidgeStudents,
        {
            **_IMAGES,
            "extractor_": _Part(("TimmExtractor",)),
            "block_indices_": Array(("m",), ("int64",)),
            "updates_": _Flag(),
            "training_discrepancies_": Array(("n", "columns"), nan=True),
            "held_out_discrepancies_": Array(("n", "columns"), nan=True),
        },
        _IMAGES_OPTIONAL,
        ("layouts", "sizes", "local", "context", "residuals"),
        _pack_ridge,
        _unpack_ridge,
        check_ridge,
    ),
    "GaussianDensity": _Class(
        GaussianDensity,
        {
            **_ROWS,
            "mean_": Array(("d",)),
            "scale_": Array(("d",)),
            "variances_": Array(("k",)),
            "components_": Array(("k", "d")),
            "floor_": _Number(),
            "shrinkage_": _Number(),
            "n_samples_": _Count(2),
        },
        _ROWS_OPTIONAL,
        check=check_gaussian,
    ),
    "KNNDensity": _Class(
        KNNDensity,
        {**_ROWS, "floor_": _Number(), "n_samples_fit_": _Count(2), "positions_": Array(("n",), ("int64",))},
        _ROWS_OPTIONAL,
        ("samples",),
        _pack_neighbors,
        _unpack_neighbors,
    ),
    "AutoDensity": _Class(
        AutoDensity,
        {
            **_ROWS,
            "gaussian_": _Part(("GaussianDensity",), {"d": "d"}),
            "location_": Array((2,)),
            "spread_": Array((2,)),
            "held_out_scores_": Array(("n",)),
        },
        _ROWS_OPTIONAL,
        ("neighbors",),
        _pack_auto,
        _unpack_auto,
    ),
    "GaussianMixture": _Class(
        GaussianMixture,
        {
            **_ROWS,
            "weights_": Array(("k",)),
            "means_": Array(("k", "d")),
            "covariances_": Array(None),
            "precisions_": Array(None),
            "precisions_cholesky_": Array(None),
            "converged_": _Flag(),
            "n_iter_": _Count(),
            "lower_bound_": _Number(finite=False),
            "lower_bounds_": Numbers(),
        },
        _ROWS_OPTIONAL | {"lower_bounds_"},  # scikit-learn 1.7
        check=check_mixture,
    ),
    "PCA": _Class(
        PCA,
        {
            **_ROWS,
            "n_components_": _Count(1, "k"),
            "n_samples_": _Count(1),
            "mean_": Array(("d",)),
            "components_": Array(("k", "d")),
            "explained_variance_": Array(("k",)),
            "explained_variance_ratio_": Array(("k",)),
            "singular_values_": Array(("k",)),
            "noise_variance_": _Number(),
            "_fit_svd_solver": _Text(("full",)),
        },
        _ROWS_OPTIONAL,
        check=check_pca,
    ),
    "FeatureSpace": _Class(
        FeatureSpace,
        {
            "n_features_in_": _Count(1, "z"),
            "sizes_": Array(("groups",), ("int64",)),
            "whitening_": _Part(("PCA",), {"d": "z", "k": "k"}),
            "density_": _Part(_DENSITIES, {"d": "features"}),
            "location_": _Number(),
            "spread_": _Number(),
            "usual_": _Number(),
            "lowest_": _Number(),
            "term_locations_": Array(("features",)),
        },
        frozenset({"whitening_", "term_locations_"}),
        check=check_space,
    ),
    "TransformalyDetector": _Class(
        TransformalyDetector,
        {
            **_IMAGES,
            "extractor_": _Part(("TimmExtractor",), {"D": "D"}),
            "students_": _Part(("RidgeStudents", "BlockStudents"), {"m": "m"}),
            "offset_": _Number(),
            "held_out_": _Flag(),
            "training_scores_": Array(("n",), nan=True),
            "training_parts_": Array(("n", "S"), nan=True),
            "training_terms_": Array(("n", "terms"), nan=True),
            "training_embeddings_": Array(("n", "columns"), _REAL, nan=True),
            "training_discrepancies_": Array(("n", "blocks"), nan=True),
            "training_digests_": Array(("n", DIGEST_SIZE), ("uint8",)),
        },
        _IMAGES_OPTIONAL | {"students_"},
        ("spaces",),
        _pack_spaces,
        _unpack_spaces,
        check_detector,
    ),
    "ConformalDetector": _Class(
        ConformalDetector,
        {
            "estimator_": _Part(DETECTORS),
            "calibration_scores_": Array(("n",)),
            "offset_": _Number(),
            "fitted_positions_": Array(("fitted",), ("int64",)),
        },
        frozenset({"fitted_positions_"}),
        unpack=_unpack_positions,
        check=check_conformal,
    ),
    "NormalOnly": _Class(
        NormalOnly,
        {"estimator_": _Part(DETECTORS), "fitted_positions_": Array(("fitted",), ("int64",))},
        frozenset({"fitted_positions_"}),
        unpack=_unpack_positions,
    ),
    "FrozenEstimator": _Class(FrozenEstimator, check=_check_frozen),
}


# ----- writing


class Writer:
    """Gathers objects, arrays and teachers of a detector, each once.

    Parameters
    ----------
    with_teacher : bool
        Whether the teachers' weights are among the arrays.

    Attributes
    ----------
    objects, teachers : list of dict
        For the document.
    arrays : dict of str to ndarray
    """

    def __init__(self, *, with_teacher: bool):
        self.with_teacher = with_teacher
        self.objects: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.teachers: list[dict[str, Any]] = []
        self._places: dict[tuple[int, bool], int] = {}
        self._networks: dict[int, int] = {}
        self._kept: list[Any] = []  # so that no id is given twice

    def add(self, part: Any, *, fitted: bool = True) -> int:
        """Give the place of `part` among the objects; parameters are added as `clone` would take them, not fitted."""
        fitted = fitted or isinstance(part, FrozenEstimator)  # which clone takes as it is
        key = (id(part), fitted)
        if key not in self._places:
            name = type(part).__name__
            spec = PARTS.get(name)
            if spec is None or type(part) is not spec.cls:
                raise TypeError(
                    f"A model file cannot hold a {type(part).__module__}.{type(part).__qualname__}; it can hold "
                    f"{', '.join(PARTS)}. joblib.dump can save any of them, as a pickle."
                )
            self._kept.append(part)
            params = self._encode_params(part, spec)
            state = self._encode_state(part, spec) if fitted else None
            self.objects.append({"class": name, "params": params, "state": state})
            self._places[key] = len(self.objects) - 1
        return self._places[key]

    def array(self, name: str, value: np.ndarray) -> dict[str, str]:
        """Keep an array under a name of its own; whether its first axis is the fast one, which decides on rounding."""
        value = np.asarray(value)
        name = f"arrays.{len(self.arrays)}.{name}"
        if value.ndim > 1 and abs(value.strides[0]) < abs(value.strides[-1]):
            self.arrays[name] = np.ascontiguousarray(value.T)
            return {"array": name, "order": "F"}
        self.arrays[name] = np.ascontiguousarray(value).reshape(value.shape)
        return {"array": name, "order": "C"}

    def network(self, name: str, module: nn.Module) -> str:
        """Keep parameters and buffers; give what their names begin with."""
        prefix = f"arrays.{len(self.arrays)}.{name}"
        self._keep(prefix, module)
        return prefix

    def teacher(self, extractor: TimmExtractor) -> int:
        """Keep the teacher, once for all extractors that share it; give its place."""
        if any(mark in extractor.model_name for mark in ":/"):
            raise ValueError(
                f"A model file cannot hold a teacher from {extractor.model_name!r}, whose architecture is described "
                "elsewhere; give TimmExtractor the name of a timm model, and the weights as a file."
            )
        teacher = extractor.teacher_
        place = self._networks.setdefault(id(teacher), len(self.teachers))
        if place == len(self.teachers):
            if max(extractor.image_size_) > _stored.MAX_IMAGE_SIZE:
                raise ValueError(f"A model file holds teachers of up to {_stored.MAX_IMAGE_SIZE} pixels a side.")
            if extractor.weights is None and not self.with_teacher:
                _check_small(extractor)
            self._kept.append(teacher)
            config = teacher.data_config
            self.teachers.append(
                {
                    "model_name": extractor.model_name,
                    "image_size": _stored_size(extractor.image_size),
                    "sha256": teacher.weights_sha256,
                    "content_sha256": teacher.content_sha256,
                    "stored": self.with_teacher,
                    "weights": _source(extractor.weights),
                    "data_config": {
                        "input_size": [int(size) for size in config["input_size"]],
                        "mean": [float(value) for value in config["mean"]],
                        "std": [float(value) for value in config["std"]],
                        "interpolation": str(config["interpolation"]),
                    },
                }
            )
            if self.with_teacher:
                self._keep(f"teachers.{place}.", teacher.model, torch.float32)
        return place

    def _keep(self, prefix: str, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        for name, tensor in module.state_dict().items():
            tensor = tensor.detach().cpu()
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            self.arrays[prefix + name] = tensor.contiguous().numpy()

    def _encode_params(self, part: Any, spec: _Class) -> dict[str, Any]:
        params = {}
        for name, value in part.get_params(deep=False).items():
            if name in _LEFT_OUT:
                continue
            if spec.cls is TimmExtractor and name in ("weights", "device"):
                value = _source(value) if name == "weights" else str(value)
            if spec.cls is ConformalDetector and name == "calibration" and isinstance(value, tuple):
                value = ()  # images, which scoring does not need
            try:
                params[name] = self._encode(name, value, fitted=spec.cls is FrozenEstimator)
            except Unfit as error:
                raise ValueError(f"A model file cannot hold {spec.cls.__name__}({name}={value!r}): {error}.") from None
        return params

    def _encode_state(self, part: Any, spec: _Class) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for name, kind in spec.attributes.items():
            if name in spec.optional and isinstance(kind, Array) and vars(part).get(name) is None:
                continue
            if name in vars(part) or name not in spec.optional:
                state[name] = kind.encode(getattr(part, name), self, name)
        state.update(spec.pack(part, self))
        if "_sklearn_output_config" in vars(part):
            state["output"] = part._sklearn_output_config.get("transform")
        known = {*spec.attributes, *part.get_params(deep=False), *_DERIVED}
        unknown = sorted(set(vars(part)) - known)
        if unknown:
            warnings.warn(
                f"Attributes of {spec.cls.__name__} that are none of its own are not saved: {', '.join(unknown)}.",
                UserWarning,
                stacklevel=5,
            )
        return state

    def _encode(self, name: str, value: Any, *, fitted: bool) -> Any:
        if isinstance(value, np.generic):
            value = value.item()
        if value is None or isinstance(value, (bool, int, str)):
            if isinstance(value, int) and abs(value) >= 2**63:
                unfit("it is beyond 64 bits")
            return value
        if isinstance(value, float):
            return encode_float(value)
        if isinstance(value, (list, tuple)):
            kind = "tuple" if isinstance(value, tuple) else "list"
            return {kind: [self._encode(name, item, fitted=fitted) for item in value]}
        if isinstance(value, np.ndarray) and value.dtype.kind in "UO" and all(isinstance(v, str) for v in value.flat):
            return {"strings": [str(item) for item in value.reshape(-1)]}
        if isinstance(value, np.ndarray):
            return self.array(name, value)
        if isinstance(value, np.random.RandomState):
            return {"random_state": self._encode_random_state(value)}
        if isinstance(value, BaseEstimator):
            return {"object": self.add(value, fitted=fitted)}
        unfit(f"a {type(value).__name__} is not a number, text, array or one of {', '.join(PARTS)}")

    def _encode_random_state(self, random_state: np.random.RandomState) -> dict[str, Any]:
        state: Any = random_state.get_state(legacy=False)
        if state["bit_generator"] != "MT19937":
            unfit(f"its bit generator {state['bit_generator']} is not MT19937")
        return {
            "key": self.array("random_state", state["state"]["key"].astype(np.int64)),
            "pos": int(state["state"]["pos"]),
            "has_gauss": int(state["has_gauss"]),
            "gauss": float(state["gauss"]),
        }


# Attributes that are packed by functions above, made again, or belong to this process alone.
_DERIVED = frozenset(
    (
        "_teacher",
        "settings_",
        "students_",
        "history_",
        "_residuals",
        "_halving",
        "_inverses",
        "feature_spaces_",
        "samples_",
        "_layouts",
        "_modules",
        "_sizes",
        "cache_keys_",
        "context_weights_",
        "local_weights_",
        "neighbors_",
        "spaces_",
        "_sklearn_output_config",
    )
)


def _source(weights: Any) -> Any:
    """Where weights came from, without the folder: "hub", "bundled", None, or the name of a file."""
    if weights in ("hub", "bundled", None):
        return weights
    return PurePath(os.fspath(weights)).name


def encode_float(value: float) -> Any:
    return value if math.isfinite(value) else {"float": repr(value)}


def decode_float(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"float"} and value["float"] in ("nan", "inf", "-inf"):
        return float(value["float"])
    return value


def _weight_dtype(extractor: TimmExtractor) -> str:
    return "float64" if extractor.precision_ == "float64" else "float32"


# ----- reading


class Reader:
    """Makes objects from a checked file's description.

    Parameters
    ----------
    file : ModelFile
        Opened.
    device, weights : as in `load`

    Raises
    ------
    Unfit
        By all methods: what is wrong with the file.
    """

    def __init__(self, file: ModelFile, *, device: Any, weights: Any):
        self.file = file
        self.teachers = _stored.stored_teachers(file)
        self._device = device
        self._weights = weights
        self._made: list[tuple[Any, dict[str, int], bool]] = []
        self._used: set[str] = set()

    def read(self) -> Any:
        """Make all objects in their order; give the last, the detector."""
        document = self.file.document
        if not isinstance(objects := document.get("objects"), list) or len(objects) > _MAX_OBJECTS:
            unfit(f"has no list of up to {_MAX_OBJECTS} objects")
        for place, entry in enumerate(objects):
            if not isinstance(entry, dict) or set(entry) != {"class", "params", "state"}:
                unfit(f"has an object {place} that is none")
            name = entry["class"]
            if not isinstance(name, str) or name not in PARTS:
                unfit(f"names the class {brief(name)}; allowed are {', '.join(PARTS)}")
            try:
                self._made.append(self._make(PARTS[name], entry))
            except Unfit as error:
                unfit(f"holds a {name} that {error}")
        detector, _ = self.fitted(len(objects) - 1, DETECTORS)
        if type(detector).__name__ != document.get("class"):
            unfit(f"says that it holds a {brief(document.get('class'))}, and holds a {type(detector).__name__}")
        return detector

    def finish(self) -> None:
        """Refuse arrays that nothing has asked for."""
        unused = sorted(set(self.file.arrays) - self._used)
        if unused:
            unfit(f"holds arrays that belong to nothing: {brief(unused)}")

    def fitted(self, place: Any, classes: Sequence[str]) -> tuple[Any, dict[str, int]]:
        """Give an object that was made before, with its sizes."""
        if type(place) is not int or not 0 <= place < len(self._made):
            unfit(f"names an object {brief(place)} that does not come before it")
        part, sizes, is_fitted = self._made[place]
        if type(part).__name__ not in classes or not is_fitted:
            unfit(f"holds {'a' if is_fitted else 'an unfitted'} {type(part).__name__}; expected {' or '.join(classes)}")
        return part, sizes

    def info(self, value: Any) -> ArrayInfo:
        """What the header says of an array."""
        if not isinstance(value, dict) or set(value) != {"array", "order"} or value["order"] not in ("C", "F"):
            unfit(f"is {brief(value)}; expected an array")
        if not isinstance(value["array"], str) or value["array"] not in self.file.arrays:
            unfit(f"is an array {brief(value['array'])} that is not there")
        return self.file.arrays[value["array"]]

    def shape(self, value: Any) -> tuple[int, ...]:
        """The shape that an array will have, known before it is read."""
        shape = self.info(value).shape
        return shape[::-1] if value["order"] == "F" else shape

    def array(self, value: Any, dtypes: Sequence[str] | None = None, *, nan: bool = False) -> np.ndarray:
        """Read an array, in the order of axes in memory that it had."""
        info = self.info(value)
        if dtypes is not None and info.dtype.name not in dtypes:
            unfit(f"is an array of {info.dtype.name}; expected {' or '.join(dtypes)}")
        self._use([value["array"]])
        array = self.file.array(value["array"])
        if array.dtype.kind == "f" and not nan and not np.isfinite(array).all():
            unfit("is an array with NaN or infinity")
        return array.T if value["order"] == "F" else array

    def use_teacher(self, place: int) -> None:
        """Note that a teacher's weights, which all extractors share, are asked for."""
        self._used.update(name for name in self.file.arrays if name.startswith(f"teachers.{place}."))

    def network(self, prefix: str, outline: nn.Module, dtype: torch.dtype) -> dict[str, np.ndarray]:
        """Read parameters and buffers, once their shapes are those of `outline`."""
        if not prefix.startswith("arrays."):
            unfit(f"has weights under {brief(prefix)}")
        self._use([name for name in self.file.arrays if name.startswith(prefix)])
        return _stored.read_state(self.file, prefix, outline, dtype)

    def _use(self, names: list[str]) -> None:
        """Note that arrays are read; each once, so that no more memory is taken than the file has bytes."""
        if not self._used.isdisjoint(names):
            unfit(f"asks for arrays that belong to something else: {brief(sorted(self._used.intersection(names)))}")
        self._used.update(names)

    def outline_blocks(self, extractor: TimmExtractor) -> list[nn.Module]:
        """The blocks of the teacher's architecture, without memory for weights."""
        try:
            sides = _architecture.image_sides(extractor.image_size)
            return _architecture.find_blocks(_architecture.outline(extractor.model_name, sides))
        except ValueError as error:
            unfit(f"needs an architecture that cannot be built here: {error}")

    def _make(self, spec: _Class, entry: dict[str, Any]) -> tuple[Any, dict[str, int], bool]:
        part = self._construct(spec, entry["params"])
        state = entry["state"]
        sizes: dict[str, int] = {}
        if state is None:
            return part, sizes, False
        required = {*spec.attributes, *spec.packed} - spec.optional
        if not isinstance(state, dict) or not required <= set(state) <= {*spec.attributes, *spec.packed, "output"}:
            unfit("does not have the attributes of its class")
        for name, kind in spec.attributes.items():
            if name in state:
                try:
                    setattr(part, name, kind.decode(state[name], self, sizes))
                except Unfit as error:
                    unfit(f"has {name}, which {error}")
        spec.unpack(part, state, self, sizes)
        spec.check(part, sizes)
        if "output" in state:
            part._sklearn_output_config = {
                "transform": _Text(("default", "pandas", "polars")).decode(state["output"], self, {})
            }
        return part, sizes, True

    def _construct(self, spec: _Class, params: Any) -> Any:
        """Make the unfitted object, by its own rules for parameters."""
        # a cache folder above all: what is in it would be unpickled
        if not isinstance(params, dict) or not set(params) <= set(spec.cls._get_param_names()) - _LEFT_OUT:
            unfit(f"has parameters that its class does not have here: {brief(params)}")
        values = {name: self._decode(value) for name, value in params.items()}
        try:
            part = spec.cls(**values)
            if spec.cls is TimmExtractor:
                self._localise(part)
            if hasattr(part, "_parameter_constraints"):
                part._validate_params()
        except Unfit:
            raise
        except (TypeError, ValueError) as error:
            unfit(f"cannot have its parameters: {str(error)[:300]}")
        jobs = values.get("n_jobs")
        if jobs is not None and abs(jobs) > _MAX_JOBS:
            unfit(f"has n_jobs={jobs}")
        return part

    def _localise(self, extractor: TimmExtractor) -> None:
        """Point the extractor to this machine's weights and device."""
        if not isinstance(extractor.model_name, str) or any(mark in extractor.model_name for mark in ":/"):
            unfit(f"names the model {brief(extractor.model_name)}, which is none of timm's own")
        if self._device is not None:
            extractor.device = self._device
        if any(
            entry["stored"]
            and (entry["model_name"], _architecture.image_sides(entry["image_size"]))
            == (extractor.model_name, _architecture.image_sides(extractor.image_size))
            for entry in self.teachers
        ):
            extractor.weights = os.path.abspath(self.file.path)
        elif self._weights is not None:
            extractor.weights = self._weights
        elif extractor.weights not in ("hub", "bundled", None):
            name = extractor.weights
            if name in ("", ".", "..") or name != PurePath(name).name or any(mark in name for mark in "/\\:\0"):
                unfit(f"names weights {brief(name)}, which is not the plain name of a file beside it")
            extractor.weights = str(self.file.path.absolute().with_name(name))

    def _decode(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if not isinstance(value, dict):
            unfit(f"has a parameter {brief(value)}")
        if "array" in value:
            return self.array(value, nan=True)
        if len(value) == 1:
            ((kind, content),) = value.items()
            if kind in ("list", "tuple") and isinstance(content, list):
                return {"list": list, "tuple": tuple}[kind](self._decode(item) for item in content)
            if kind == "strings" and isinstance(content, list) and all(type(item) is str for item in content):
                return np.array(content, dtype=object)
            if kind == "object":
                if type(content) is int and 0 <= content < len(self._made):
                    return self._made[content][0]
                unfit(f"names an object {brief(content)} that does not come before it")
            if kind == "random_state":
                return self._decode_random_state(content)
            if kind == "float":
                return _Number(finite=False).decode(value, self, {})
        unfit(f"has a parameter {brief(value)}")

    def _decode_random_state(self, content: Any) -> np.random.RandomState:
        if not isinstance(content, dict) or set(content) != {"key", "pos", "has_gauss", "gauss"}:
            unfit("has a random state that is none")
        key = Array((624,), ("int64",)).decode(content["key"], self, {})
        pos, has_gauss = (_Count().decode(content[name], self, {}) for name in ("pos", "has_gauss"))
        if key.min() < 0 or key.max() >= 2**32 or pos > 624 or has_gauss > 1:
            unfit("has a random state that is none")
        random_state = np.random.RandomState()
        random_state.set_state(
            {
                "bit_generator": "MT19937",
                "state": {"key": key.astype(np.uint32), "pos": pos},
                "has_gauss": has_gauss,
                "gauss": _Number().decode(content["gauss"], self, {}),
            }
        )
        return random_state
