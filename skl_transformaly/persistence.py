"""Save a fitted detector in one file, and load it, without pickle: no code in the file, none run from it.

A file holds arrays and a description in JSON (:mod:`skl_transformaly._modelfile`). The description lists objects; each
names one of a fixed list of classes, its parameters and its fitted attributes, and refers to earlier objects and to
arrays. `_PARTS` says for each class which attributes it has, of what kind and shape: what it does not foresee is an error,
at saving and at loading.
"""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from typing import Any, NoReturn

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skl_transformaly import _teacher
from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._density import GaussianDensity, KNNDensity
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._extractor import TimmExtractor
from skl_transformaly._images import as_images
from skl_transformaly._modelfile import ModelFile, ModelFileError, read_header, write_model_file
from skl_transformaly._students import BlockStudents
from skl_transformaly._torch import PRECISIONS, resolve_device
from skl_transformaly.model_selection import NormalOnly

__all__ = ["DriftWarning", "ModelFileError", "load", "read_header", "save"]

_PACKAGES = ("skl-transformaly", "torch", "timm", "numpy", "scipy", "scikit-learn", "pillow", "safetensors")

# Parameters that say where this machine keeps things, not what the detector is.
_LEFT_OUT = {"memory": None, "checkpoint": None}
_MAX_PROBES = 64
_MAX_JOBS = 1024


class DriftWarning(UserWarning):
    """A loaded detector gives its probe images other scores than the detector that was saved."""


def save(
    detector: Any,
    path: str | os.PathLike,
    *,
    teacher: bool = True,
    probes: Any = None,
    metadata: Mapping[str, Any] | None = None,
) -> None:
    """Save a fitted detector in one file, by convention with the suffix ``.tfm``.

    Parameters
    ----------
    detector : TransformalyDetector, ConformalDetector, NormalOnly or FrozenEstimator
        Fitted; the wrappers around a :class:`TransformalyDetector` or one of the densities. Extractors must be
        :class:`TimmExtractor`, students :class:`BlockStudents`, densities :class:`GaussianDensity`,
        :class:`KNNDensity` or scikit-learn's ``GaussianMixture``.
    path : str or path
        A file that is there is replaced, once the new one is whole.
    teacher : bool, default=True
        Whether the teacher's weights go into the file: then it needs nothing but timm, for the architecture, where it is
        loaded. Otherwise the file holds their SHA-256, and `load` takes them from where they came: timm's hub, the
        package, or a file of the same name beside the model file.
    probes : images, default=None
        Up to 64 images to keep in the file, in any form that :class:`TransformalyDetector` takes; `load` scores them again
        and warns where a score has drifted. None takes four synthetic pictures, of which the file holds the scores alone.
    metadata : dict, default=None
        Anything that JSON can hold, kept as it is for :func:`read_header`: what the images were, who made the model.

    Raises
    ------
    TypeError
        A part is of a class that a file cannot hold, or `metadata` is not plain JSON.
    ValueError
        A parameter has a value that a file cannot hold, a probe image cannot be read, or `metadata` is too large.
    NotFittedError
        `detector` is not fitted.
    OSError
        The file cannot be written: no such folder, no room, no permission. Nothing is left behind then.

    See Also
    --------
    load : The way back.
    read_header : What a file holds, without loading it.

    Notes
    -----
    All parameters, fitted attributes and training embeddings are kept. Not kept: `memory`; the folder that the teacher's
    weights came from; `calibration` of :class:`ConformalDetector` where it is images or a splitter (it is ``()`` after
    loading: `fit` would ask for it); and attributes of your own, with a warning.

    Examples
    --------
    >>> import os, tempfile
    >>> import numpy as np
    >>> from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector, load, save
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> teacher = TimmExtractor("test_vit", weights=None, image_size=32)
    >>> students = BlockStudents(n_blocks=1, max_epochs=1)
    >>> detector = TransformalyDetector(teacher, students=students, random_state=0).fit(images)
    >>> path = os.path.join(tempfile.mkdtemp(), "parts.tfm")
    >>> save(detector, path, probes=images[:2], metadata={"camera": "left"})
    >>> bool((load(path).score_samples(images) == detector.score_samples(images)).all())
    True
    """
    _check_root(detector)
    check_is_fitted(detector)
    writer = _Writer(with_teacher=teacher)
    root = writer.add(detector)
    document = {
        "class": type(detector).__name__,
        "made": _provenance(detector),
        "teachers": writer.teachers,
        "metadata": {} if metadata is None else dict(metadata),
        "probes": _encode_probes(detector, probes, writer),
        "root": root,
        "objects": writer.objects,
    }
    write_model_file(path, document, writer.arrays)


def load(
    path: str | os.PathLike,
    *,
    verify: bool = True,
    tolerance: float = 1e-3,
    weights: str | os.PathLike | None = None,
    device: str | torch.device | None = None,
) -> Any:
    """Load a detector from a file that :func:`save` wrote.

    Parameters
    ----------
    path : str or path
    verify : bool, default=True
        Score the probe images again, and warn where a score has drifted.
    tolerance : float, default=1e-3
        How far a probe's score may be off, as a share of its distance from the threshold plus the standard deviation of the
        training scores.
    weights : str or path, default=None
        For a file without the teacher's weights: where they are now, "hub", "bundled" or a path, as in
        :class:`TimmExtractor`.
    device : str or torch.device, default=None
        Where to compute instead of where the detector did: "auto", "cpu", "cuda", ...

    Returns
    -------
    detector : estimator
        Of the class that was saved. On the machine and with the libraries that saved it, it gives the same scores bit for
        bit. The teacher's weights are in its extractor's `weights` parameter as the path of this file, from where copies
        and pickles of the detector load them again.

    Raises
    ------
    ModelFileError
        The file is not what :func:`save` writes: no model file, cut off, changed, of a newer format, of classes that are
        not in the list, of shapes that do not fit together; or this timm does not know the teacher's architecture.
    OSError
        The file cannot be read, or the teacher's weights cannot be had.

    Warns
    -----
    DriftWarning
        A probe's score is beyond `tolerance`: another version of timm or torch, another processor or precision.

    See Also
    --------
    save : Writes such a file.

    Notes
    -----
    The file is checked before it is believed: its checksum over all bytes, then limits of size, depth and numbers, then
    each class against a fixed list, each attribute against what its class has, and each array's shape against the others
    and against the teacher's architecture, before memory is taken for it. No code in it is run, since there is none.
    A checksum is no signature: whoever can write the file can make detectors that score as they like. Pickles run any code
    that is in them: load those only from people whom you would let log in.
    """
    path = Path(path)
    try:
        with ModelFile(path) as file:
            reader = _Reader(file, device=device, weights=weights)
            detector = reader.read()
            pictures, scores = _decode_probes(detector, file.document["probes"], reader)
            reader.finish()
        if verify:
            _replay(detector, pictures, scores, tolerance, file.document["made"], path)
    except _Unfit as error:
        raise ModelFileError(f"{os.fspath(path)!r} {error}") from error
    return detector


class _Unfit(ValueError):
    """What is wrong with a file's content; `load` adds which file."""


def _unfit(what: str) -> NoReturn:
    raise _Unfit(what)


# ----- fitted attributes: what kinds there are


@dataclass(frozen=True)
class _Array:
    """An array whose axes have the sizes that these letters stand for within one object, or these numbers; None is any."""

    axes: tuple[str | int, ...] | None
    dtypes: tuple[str, ...] = ("float64",)
    nan: bool = False

    def encode(self, value: Any, writer: _Writer, name: str) -> Any:
        return writer.array(name, value)

    def decode(self, value: Any, reader: _Reader, sizes: dict[str, int]) -> np.ndarray:
        shape = reader.shape(value)
        if self.axes is not None:
            if len(shape) != len(self.axes):
                _unfit(f"is an array of shape {shape}; expected {len(self.axes)} axes")
            for axis, size in zip(self.axes, shape):
                _bind(sizes, axis, size)
        return reader.array(value, self.dtypes, nan=self.nan)


@dataclass(frozen=True)
class _Count:
    """A whole number from `low`, perhaps the size of an axis."""

    low: int = 0
    axis: str | None = None

    def encode(self, value: Any, writer: _Writer, name: str) -> int:
        return int(value)

    def decode(self, value: Any, reader: _Reader, sizes: dict[str, int]) -> int:
        if type(value) is not int or value < self.low or value >= 2**63:
            _unfit(f"is {_brief(value)}; expected a whole number from {self.low}")
        if self.axis is not None:
            _bind(sizes, self.axis, value)
        return value


@dataclass(frozen=True)
class _Number:
    """A float."""

    finite: bool = True

    def encode(self, value: Any, writer: _Writer, name: str) -> Any:
        return _encode_float(float(value))

    def decode(self, value: Any, reader: _Reader, sizes: dict[str, int]) -> float:
        value = _decode_float(value)
        if type(value) not in (int, float) or (self.finite and not math.isfinite(value)):
            _unfit(f"is {_brief(value)}; expected a number")
        return float(value)


@dataclass(frozen=True)
class _Flag:
    def encode(self, value: Any, writer: _Writer, name: str) -> bool:
        return bool(value)

    def decode(self, value: Any, reader: _Reader, sizes: dict[str, int]) -> bool:
        if type(value) is not bool:
            _unfit(f"is {_brief(value)}; expected true or false")
        return value


@dataclass(frozen=True)
class _Text:
    """One of some words, or a text of some length."""

    words: tuple[str, ...] = ()
    length: int | None = None

    def encode(self, value: Any, writer: _Writer, name: str) -> str:
        return str(value)

    def decode(self, value: Any, reader: _Reader, sizes: dict[str, int]) -> str:
        if type(value) is not str or (self.words and value not in self.words):
            _unfit(f"is {_brief(value)}; expected {' or '.join(self.words) or 'text'}")
        if self.length is not None and len(value) != self.length:
            _unfit(f"is {_brief(value)}; expected {self.length} characters")
        return value


@dataclass(frozen=True)
class _Numbers:
    """A list of floats."""

    def encode(self, value: Any, writer: _Writer, name: str) -> list:
        return [_encode_float(float(number)) for number in value]

    def decode(self, value: Any, reader: _Reader, sizes: dict[str, int]) -> list[float]:
        if not isinstance(value, list):
            _unfit(f"is {_brief(value)}; expected a list of numbers")
        return [_Number(finite=False).decode(number, reader, sizes) for number in value]


@dataclass(frozen=True)
class _Sizes:
    """A tuple of `length` positive whole numbers, or None where that is allowed."""

    length: int
    optional: bool = False
    high: int = 2**31

    def encode(self, value: Any, writer: _Writer, name: str) -> list[int] | None:
        return None if value is None else [int(size) for size in value]

    def decode(self, value: Any, reader: _Reader, sizes: dict[str, int]) -> tuple[int, ...] | None:
        if value is None and self.optional:
            return None
        if not isinstance(value, list) or len(value) != self.length:
            _unfit(f"is {_brief(value)}; expected {self.length} whole numbers")
        if not all(type(size) is int and 1 <= size <= self.high for size in value):
            _unfit(f"is {_brief(value)}; expected whole numbers from 1 to {self.high}")
        return tuple(value)


@dataclass(frozen=True)
class _Names:
    """Column names, an array of str."""

    axis: str

    def encode(self, value: Any, writer: _Writer, name: str) -> list[str]:
        return [str(name) for name in value]

    def decode(self, value: Any, reader: _Reader, sizes: dict[str, int]) -> np.ndarray:
        if not isinstance(value, list) or not all(type(name) is str for name in value):
            _unfit(f"is {_brief(value)}; expected a list of names")
        _bind(sizes, self.axis, len(value))
        return np.array(value, dtype=object)


@dataclass(frozen=True)
class _Part:
    """Another fitted object, of one of these classes; `axes` says which of its sizes are which of this object's."""

    classes: tuple[str, ...]
    axes: Mapping[str, str] = field(default_factory=dict)

    def encode(self, value: Any, writer: _Writer, name: str) -> int:
        name = type(value).__name__
        if name not in self.classes or type(value) is not _PARTS[name].cls:
            raise TypeError(
                f"A model file cannot hold a {type(value).__module__}.{name} here; it can hold "
                f"{', '.join(self.classes)}. joblib.dump can save any of them, as a pickle."
            )
        return writer.add(value)

    def decode(self, value: Any, reader: _Reader, sizes: dict[str, int]) -> Any:
        part, inner = reader.fitted(value, self.classes)
        for theirs, ours in self.axes.items():
            if theirs in inner:
                _bind(sizes, ours, inner[theirs])
        return part


def _bind(sizes: dict[str, int], axis: str | int, size: int) -> None:
    """Note that `axis` has this size; refuse where it has another already."""
    expected = axis if isinstance(axis, int) else sizes.setdefault(axis, size)
    if expected != size:
        _unfit(f"has size {size} where {expected} was expected")


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

    cls: type
    attributes: Mapping[str, Any] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    packed: tuple[str, ...] = ()
    pack: Callable[[Any, _Writer], dict[str, Any]] = lambda part, writer: {}
    unpack: Callable[[Any, dict[str, Any], _Reader, dict[str, int]], None] = lambda part, state, reader, sizes: None
    check: Callable[[Any, dict[str, int]], None] = lambda part, sizes: None


def _pack_teacher(extractor: TimmExtractor, writer: _Writer) -> dict[str, Any]:
    return {"teacher": writer.teacher(extractor)}


def _unpack_teacher(extractor: TimmExtractor, state: dict, reader: _Reader, sizes: dict[str, int]) -> None:
    place = _Count().decode(state["teacher"], reader, sizes)
    if place >= len(reader.teachers):
        _unfit(f"names teacher {place}, and there are {len(reader.teachers)}")
    entry = reader.teachers[place]
    if (entry["model_name"], entry["image_size"], entry["sha256"], tuple(entry["data_config"]["input_size"][1:])) != (
        extractor.model_name,
        extractor.image_size,
        extractor.weights_sha256_,
        extractor.image_size_,
    ):
        _unfit("does not go with its teacher")
    if entry["stored"]:
        reader.use_prefix(f"teachers.{place}.")
        # loaded now, so that whatever is wrong with it is said by load
        extractor._teacher = extractor._load(reader.device(extractor), PRECISIONS[_weight_dtype(extractor)])


def _pack_students(students: BlockStudents, writer: _Writer) -> dict[str, Any]:
    prefixes = []
    for index, student in zip(students.block_indices_.tolist(), students.students_):
        prefixes.append(writer.network(f"block{index}.", student))
    return {
        "students": prefixes,
        "history": [
            [index, {name: [_encode_float(v) for v in values] for name, values in history.items()}]
            for index, history in students.history_.items()
        ],
    }


def _unpack_students(students: BlockStudents, state: dict, reader: _Reader, sizes: dict[str, int]) -> None:
    extractor = students.extractor_
    indices = students.block_indices_.tolist()
    outlines = reader.outline_blocks(extractor)
    if any(not 0 <= index < len(outlines) for index in indices) or sorted(set(indices)) != indices:
        _unfit(f"has students of blocks {indices[:20]}, and the teacher has {len(outlines)} blocks")
    prefixes = state["students"]
    if not isinstance(prefixes, list) or len(prefixes) != len(indices) or not all(type(p) is str for p in prefixes):
        _unfit("does not have one student for each of its blocks")
    dtype = PRECISIONS[_weight_dtype(extractor)]
    states = [reader.network(prefix, outlines[index], dtype) for index, prefix in zip(indices, prefixes)]
    device = reader.device(extractor)
    fresh = reader.fresh_blocks(extractor)
    students.students_ = []
    for index, tensors in zip(indices, states):
        student = deepcopy(fresh[index])
        student.to(dtype).load_state_dict(tensors)
        students.students_.append(student.to(device).eval().requires_grad_(False))
    students.history_ = _decode_history(state["history"], indices, reader)
    students._keys = {}  # names in a cache that stayed where it was


def _decode_history(encoded: Any, indices: list[int], reader: _Reader) -> dict[int, dict[str, list[float]]]:
    pairs = encoded if isinstance(encoded, list) else [None]
    if not all(isinstance(pair, list) and len(pair) == 2 and isinstance(pair[1], dict) for pair in pairs):
        _unfit("has a history that is no table of losses")
    if [index for index, _ in pairs] != indices:
        _unfit("has a history of other blocks than those of its students")
    return {
        index: {str(name): _Numbers().decode(values, reader, {}) for name, values in history.items()}
        for index, history in pairs
    }


def _pack_neighbors(density: KNNDensity, writer: _Writer) -> dict[str, Any]:
    return {"samples": writer.array("samples", density.neighbors_._fit_X)}


def _unpack_neighbors(density: KNNDensity, state: dict, reader: _Reader, sizes: dict[str, int]) -> None:
    samples = _Array(("n", "d")).decode(state["samples"], reader, sizes)
    if not density.n_neighbors <= len(samples):
        _unfit(f"has n_neighbors={density.n_neighbors} of {len(samples)} samples")
    # the tree is built anew from the samples, as fit built it
    density.neighbors_ = NearestNeighbors(n_neighbors=density.n_neighbors, n_jobs=density.n_jobs).fit(samples)


def _pack_folds(detector: ConformalDetector, writer: _Writer) -> dict[str, Any]:
    part = _Part(_DETECTORS)
    return {
        "folds": [
            [part.encode(fitted, writer, "fold"), writer.array(f"fold{k}", scores)]
            for k, (fitted, scores) in enumerate(detector._scored_folds)
        ],
        "crossed": hasattr(detector, "estimators_"),
    }


def _unpack_folds(detector: ConformalDetector, state: dict, reader: _Reader, sizes: dict[str, int]) -> None:
    folds = state["folds"]
    if not isinstance(folds, list) or not folds or not all(isinstance(f, list) and len(f) == 2 for f in folds):
        _unfit("has no list of folds")
    detector._scored_folds = [
        (
            _Part(_DETECTORS).decode(fitted, reader, {}),
            _Array(("fold",), nan=True).decode(scores, reader, {}),
        )
        for fitted, scores in folds
    ]
    together = np.concatenate([scores for _, scores in detector._scored_folds])
    if not np.array_equal(np.sort(together), detector.calibration_scores_):
        _unfit("has calibration scores that are not those of its folds")
    if _Flag().decode(state["crossed"], reader, {}):
        detector.estimators_ = [fitted for fitted, _ in detector._scored_folds]
    elif len(folds) != 1 or not hasattr(detector, "offset_"):
        _unfit("has neither folds nor an offset")


def _check_gaussian(density: GaussianDensity, sizes: dict[str, int]) -> None:
    if not (np.diag(density._cholesky) > 0).all():
        _unfit("has a covariance that is not positive definite")


def _check_scaler(scaler: StandardScaler, sizes: dict[str, int]) -> None:
    if not (scaler.scale_ > 0).all():
        _unfit("has scales that are not positive")


def _check_mixture(mixture: GaussianMixture, sizes: dict[str, int]) -> None:
    k, d = sizes["k"], sizes["d"]
    shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[mixture.covariance_type]
    for name in ("covariances_", "precisions_", "precisions_cholesky_"):
        if getattr(mixture, name).shape != shape:
            _unfit(f"has {name} of shape {getattr(mixture, name).shape}; expected {shape}")
    if mixture.n_components != k:
        _unfit(f"has {k} components, and n_components={mixture.n_components}")


def _check_detector(detector: TransformalyDetector, sizes: dict[str, int]) -> None:
    expected = {"pretrained": {"whitening_", "density_"}, "discrepancy": {"students_", "discrepancy_density_"}}
    spaces = list(detector.feature_spaces)
    if not spaces or len(set(spaces)) < len(spaces) or not set(spaces) <= set(expected):
        _unfit(f"has feature_spaces {_brief(spaces)}")
    for space, names in expected.items():
        for name in names:
            if hasattr(detector, name) != (space in spaces):
                _unfit(f"has feature_spaces {spaces}, which do not go with {name}")
    if "discrepancy" in spaces and detector.students_.extractor_ is not detector.extractor_:
        _unfit("has students of another teacher")
    if detector._training_discrepancies.shape[1] != (sizes["m"] if "discrepancy" in spaces else 0):
        _unfit("has training discrepancies of other blocks than its students'")
    _check_image_shape(detector, sizes)


def _check_image_shape(part: Any, sizes: dict[str, int]) -> None:
    shape = getattr(part, "image_shape_", None)
    if shape is not None and hasattr(part, "n_features_in_") and math.prod(shape) != part.n_features_in_:
        _unfit(f"has image_shape_ {shape}, and n_features_in_ {part.n_features_in_}")


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

_DENSITIES = ("GaussianDensity", "KNNDensity", "GaussianMixture")
_DETECTORS = ("TransformalyDetector", "ConformalDetector", "NormalOnly", "FrozenEstimator")
_REAL = ("float64", "float32")

_PARTS: dict[str, _Class] = {
    "TimmExtractor": _Class(
        TimmExtractor,
        {
            **_IMAGES,
            "embedding_size_": _Count(1, "D"),
            "image_size_": _Sizes(2, high=_teacher.MAX_IMAGE_SIZE),
            "precision_": _Text(tuple(PRECISIONS)),
            "weights_sha256_": _Text(length=64),
        },
        _IMAGES_OPTIONAL,
        ("teacher",),
        _pack_teacher,
        _unpack_teacher,
        _check_image_shape,
    ),
    "BlockStudents": _Class(
        BlockStudents,
        {
            **_IMAGES,
            "extractor_": _Part(("TimmExtractor",)),
            "block_indices_": _Array(("m",), ("int64",)),
        },
        _IMAGES_OPTIONAL,
        ("students", "history"),
        _pack_students,
        _unpack_students,
        _check_image_shape,
    ),
    "StandardScaler": _Class(
        StandardScaler,
        {
            **_ROWS,
            "mean_": _Array(("d",)),
            "var_": _Array(("d",)),
            "scale_": _Array(("d",)),
            "n_samples_seen_": _Count(1),
        },
        _ROWS_OPTIONAL,
        check=_check_scaler,
    ),
    "GaussianDensity": _Class(
        GaussianDensity,
        {
            **_ROWS,
            "_scaler": _Part(("StandardScaler",), {"d": "d"}),
            "mean_": _Array(("d",)),
            "covariance_": _Array(("d", "d")),
            "_cholesky": _Array(("d", "d")),
            "_log_scales": _Array(("d",)),
            "shrinkage_": _Number(),
        },
        _ROWS_OPTIONAL,
        check=_check_gaussian,
    ),
    "KNNDensity": _Class(
        KNNDensity,
        {**_ROWS, "_floor": _Number()},
        _ROWS_OPTIONAL,
        ("samples",),
        _pack_neighbors,
        _unpack_neighbors,
    ),
    "GaussianMixture": _Class(
        GaussianMixture,
        {
            **_ROWS,
            "weights_": _Array(("k",)),
            "means_": _Array(("k", "d")),
            "covariances_": _Array(None),
            "precisions_": _Array(None),
            "precisions_cholesky_": _Array(None),
            "converged_": _Flag(),
            "n_iter_": _Count(),
            "lower_bound_": _Number(finite=False),
            "lower_bounds_": _Numbers(),
        },
        _ROWS_OPTIONAL | {"lower_bounds_"},  # scikit-learn 1.7
        check=_check_mixture,
    ),
    "PCA": _Class(
        PCA,
        {
            **_ROWS,
            "n_components_": _Count(1, "k"),
            "n_samples_": _Count(1),
            "mean_": _Array(("d",)),
            "components_": _Array(("k", "d")),
            "explained_variance_": _Array(("k",)),
            "explained_variance_ratio_": _Array(("k",)),
            "singular_values_": _Array(("k",)),
            "noise_variance_": _Number(),
            "_fit_svd_solver": _Text(("full",)),
        },
        _ROWS_OPTIONAL,
    ),
    "TransformalyDetector": _Class(
        TransformalyDetector,
        {
            **_IMAGES,
            "extractor_": _Part(("TimmExtractor",), {"D": "D"}),
            "students_": _Part(("BlockStudents",), {"m": "m"}),
            "whitening_": _Part(("PCA",), {"d": "D", "k": "k"}),
            "density_": _Part(_DENSITIES, {"d": "k"}),
            "discrepancy_density_": _Part(_DENSITIES, {"d": "m"}),
            "offset_": _Number(finite=False),
            "_training_embeddings": _Array(("n", "D"), _REAL, nan=True),
            "_training_discrepancies": _Array(("n", "columns"), nan=True),
            "_training_decisions": _Array(("n",), nan=True),
        },
        _IMAGES_OPTIONAL | {"students_", "whitening_", "density_", "discrepancy_density_"},
        check=_check_detector,
    ),
    "ConformalDetector": _Class(
        ConformalDetector,
        {
            "estimator_": _Part(_DETECTORS),
            "calibration_scores_": _Array(("n",), nan=True),
            "_first_normal": _Number(),
            "offset_": _Number(finite=False),
        },
        frozenset({"offset_"}),
        ("folds", "crossed"),
        _pack_folds,
        _unpack_folds,
    ),
    "NormalOnly": _Class(NormalOnly, {"estimator_": _Part(_DETECTORS)}),
    "FrozenEstimator": _Class(FrozenEstimator),
}


# ----- writing


class _Writer:
    """Gathers objects, arrays and teachers of a detector, each once."""

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
        key = (id(part), fitted)
        if key not in self._places:
            name = type(part).__name__
            spec = _PARTS.get(name)
            if spec is None or type(part) is not spec.cls:
                raise TypeError(
                    f"A model file cannot hold a {type(part).__module__}.{type(part).__qualname__}; it can hold "
                    f"{', '.join(_PARTS)}. joblib.dump can save any of them, as a pickle."
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
            if max(extractor.image_size_) > _teacher.MAX_IMAGE_SIZE:
                raise ValueError(f"A model file holds teachers of up to {_teacher.MAX_IMAGE_SIZE} pixels a side.")
            self._kept.append(teacher)
            config = teacher.data_config
            self.teachers.append(
                {
                    "model_name": extractor.model_name,
                    "image_size": None if extractor.image_size is None else int(extractor.image_size),
                    "sha256": teacher.weights_sha256,
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
            if spec.cls is ConformalDetector and name == "calibration" and not isinstance(value, (int, float)):
                value = ()
            try:
                params[name] = self._encode(name, value, fitted=spec.cls is FrozenEstimator)
            except _Unfit as error:
                raise ValueError(f"A model file cannot hold {spec.cls.__name__}({name}={value!r}): {error}.") from None
        return params

    def _encode_state(self, part: Any, spec: _Class) -> dict[str, Any]:
        state: dict[str, Any] = {}
        for name, kind in spec.attributes.items():
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
                _unfit("it is beyond 64 bits")
            return value
        if isinstance(value, float):
            return _encode_float(value)
        if isinstance(value, (list, tuple)):
            return {type(value).__name__: [self._encode(name, item, fitted=fitted) for item in value]}
        if isinstance(value, np.ndarray) and value.dtype.kind in "UO" and all(isinstance(v, str) for v in value.flat):
            return {"strings": [str(item) for item in value.reshape(-1)]}
        if isinstance(value, np.ndarray):
            return self.array(name, value)
        if isinstance(value, np.random.RandomState):
            return {"random_state": self._encode_random_state(value)}
        if isinstance(value, BaseEstimator):
            return {"object": self.add(value, fitted=fitted)}
        _unfit(f"a {type(value).__name__} is no number, text, array or one of {', '.join(_PARTS)}")

    def _encode_random_state(self, random_state: np.random.RandomState) -> dict[str, Any]:
        state: Any = random_state.get_state(legacy=False)
        if state["bit_generator"] != "MT19937":
            _unfit(f"its bit generator {state['bit_generator']} is not MT19937")
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
        "students_",
        "history_",
        "_keys",
        "neighbors_",
        "_scored_folds",
        "estimators_",
        "_sklearn_output_config",
    )
)


def _source(weights: Any) -> Any:
    """Where weights came from, without the folder: "hub", "bundled", None, or the name of a file."""
    if weights in ("hub", "bundled", None):
        return weights
    return PurePath(os.fspath(weights)).name


def _encode_float(value: float) -> Any:
    return value if math.isfinite(value) else {"float": repr(value)}


def _decode_float(value: Any) -> Any:
    if isinstance(value, dict) and set(value) == {"float"} and value["float"] in ("nan", "inf", "-inf"):
        return float(value["float"])
    return value


def _brief(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _check_root(detector: Any) -> None:
    name = type(detector).__name__
    if name not in _DETECTORS or type(detector) is not _PARTS[name].cls:
        raise TypeError(f"save takes a fitted {', '.join(_DETECTORS)}, got {type(detector).__module__}.{name}.")


def _weight_dtype(extractor: TimmExtractor) -> str:
    return "float64" if extractor.precision_ == "float64" else "float32"


def _environment() -> dict[str, str]:
    """What scores may depend on beside the file."""
    found = {"python": platform.python_version()}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout
            found[name] = "unknown"
    found["system"] = f"{platform.system()} {platform.machine()}"
    found["processor"] = torch.backends.cpu.get_cpu_capability()
    return found


def _changes(made: Any) -> dict[str, tuple[str, str]]:
    """What differs between the environment that saved a file and this one."""
    then = made.get("environment") if isinstance(made, dict) else None
    then = then if isinstance(then, dict) else {}
    return {name: (_brief(then[name]), now) for name, now in _environment().items() if then.get(name, now) != now}


def _provenance(detector: Any) -> dict[str, Any]:
    """When and with what a file is made, for people who read its header."""
    decisions = _scorers(detector)[0]._training_decisions
    return {
        "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": _environment(),
        "n_images": len(decisions),
        "n_unreadable": int(np.isnan(decisions).sum()),
    }


# ----- reading


class _Reader:
    """Makes objects from a checked file's description."""

    def __init__(self, file: ModelFile, *, device: Any, weights: Any):
        self.file = file
        self.teachers = _teacher.stored_teachers(file)
        self._device = device
        self._weights = weights
        self._made: list[tuple[Any, dict[str, int], bool]] = []
        self._used: set[str] = set()
        self._blocks: dict[tuple[str, int | None, bool], list[nn.Module]] = {}

    def read(self) -> Any:
        document = self.file.document
        expected = {"class", "made", "teachers", "metadata", "probes", "root", "objects"}
        if set(document) != expected or not isinstance(document["objects"], list):
            _unfit("does not describe a detector")
        for place, entry in enumerate(document["objects"]):
            if not isinstance(entry, dict) or set(entry) != {"class", "params", "state"}:
                _unfit(f"has an object {place} that is none")
            name = entry["class"]
            if not isinstance(name, str) or name not in _PARTS:
                _unfit(f"names the class {_brief(name)}; allowed are {', '.join(_PARTS)}")
            try:
                self._made.append(self._make(_PARTS[name], entry))
            except _Unfit as error:
                _unfit(f"holds a {name} that {error}")
        detector, _ = self.fitted(document["root"], _DETECTORS)
        if type(detector).__name__ != document["class"]:
            _unfit(f"says to hold a {_brief(document['class'])}, and holds a {type(detector).__name__}")
        return detector

    def finish(self) -> None:
        """Refuse arrays that nothing has asked for."""
        unused = sorted(set(self.file.arrays) - self._used)
        if unused:
            _unfit(f"holds arrays that belong to nothing: {_brief(unused)}")

    def fitted(self, place: Any, classes: Sequence[str]) -> tuple[Any, dict[str, int]]:
        """Give an object that was made before, with its sizes."""
        if type(place) is not int or not 0 <= place < len(self._made):
            _unfit(f"names an object {_brief(place)} that does not come before it")
        part, sizes, is_fitted = self._made[place]
        if type(part).__name__ not in classes or not is_fitted:
            _unfit(
                f"holds {'a' if is_fitted else 'an unfitted'} {type(part).__name__}; expected {' or '.join(classes)}"
            )
        return part, sizes

    def info(self, value: Any) -> Any:
        """What the header says of an array, its axes in the order in which they will be given."""
        if not isinstance(value, dict) or set(value) != {"array", "order"} or value["order"] not in ("C", "F"):
            _unfit(f"is {_brief(value)}; expected an array")
        if not isinstance(value["array"], str) or value["array"] not in self.file.arrays:
            _unfit(f"is an array {_brief(value['array'])} that is not there")
        return self.file.arrays[value["array"]]

    def shape(self, value: Any) -> tuple[int, ...]:
        shape = self.info(value).shape
        return shape[::-1] if value["order"] == "F" else shape

    def array(self, value: Any, dtypes: Sequence[str] | None = None, *, nan: bool = False) -> np.ndarray:
        info = self.info(value)
        if dtypes is not None and info.dtype.name not in dtypes:
            _unfit(f"is an array of {info.dtype.name}; expected {' or '.join(dtypes)}")
        self._used.add(value["array"])
        array = self.file.array(value["array"])
        if array.dtype.kind == "f" and not nan and not np.isfinite(array).all():
            _unfit("is an array with NaN or infinity")
        return array.T if value["order"] == "F" else array

    def use_prefix(self, prefix: str) -> None:
        self._used.update(name for name in self.file.arrays if name.startswith(prefix))

    def network(self, prefix: str, outline: nn.Module, dtype: torch.dtype) -> dict[str, torch.Tensor]:
        if not prefix.startswith("arrays."):
            _unfit(f"has weights under {_brief(prefix)}")
        self.use_prefix(prefix)
        return _teacher.read_state(self.file, prefix, outline, dtype)

    def outline_blocks(self, extractor: TimmExtractor) -> list[nn.Module]:
        return self._build(extractor, real=False)

    def fresh_blocks(self, extractor: TimmExtractor) -> list[nn.Module]:
        return self._build(extractor, real=True)

    def _build(self, extractor: TimmExtractor, *, real: bool) -> list[nn.Module]:
        key = (extractor.model_name, extractor.image_size, real)
        if key not in self._blocks:
            build = _teacher.empty_model if real else _teacher.outline
            try:
                self._blocks[key] = _teacher.find_blocks(build(extractor.model_name, extractor.image_size))
            except ValueError as error:
                _unfit(f"needs an architecture that cannot be built here: {error}")
        return self._blocks[key]

    def device(self, extractor: TimmExtractor) -> torch.device:
        try:
            return resolve_device(extractor.device)
        except ValueError as error:
            _unfit(f"computes elsewhere: {error} Pass load(..., device='cpu')")

    def _make(self, spec: _Class, entry: dict[str, Any]) -> tuple[Any, dict[str, int], bool]:
        part = self._construct(spec, entry["params"])
        state = entry["state"]
        sizes: dict[str, int] = {}
        if state is None:
            return part, sizes, False
        required = {*spec.attributes, *spec.packed} - spec.optional
        if not isinstance(state, dict) or not required <= set(state) <= {*spec.attributes, *spec.packed, "output"}:
            _unfit("does not have the attributes of its class")
        for name, kind in spec.attributes.items():
            if name in state:
                try:
                    setattr(part, name, kind.decode(state[name], self, sizes))
                except _Unfit as error:
                    _unfit(f"has {name}, which {error}")
        spec.unpack(part, state, self, sizes)
        spec.check(part, sizes)
        if "output" in state:
            part._sklearn_output_config = {
                "transform": _Text(("default", "pandas", "polars")).decode(state["output"], self, {})
            }
        return part, sizes, True

    def _construct(self, spec: _Class, params: Any) -> Any:
        """Make the unfitted object, by its own rules for parameters."""
        if not isinstance(params, dict) or not set(params) <= set(spec.cls._get_param_names()):
            _unfit(f"has parameters that its class does not have here: {_brief(params)}")
        try:
            values = {name: self._decode(value) for name, value in params.items()}
            part = spec.cls(**values)
            if spec.cls is TimmExtractor:
                self._localise(part)
            if hasattr(part, "_parameter_constraints"):
                part._validate_params()
        except (TypeError, ValueError) as error:
            _unfit(f"cannot have its parameters: {str(error)[:300]}")
        jobs = values.get("n_jobs")
        if jobs is not None and abs(jobs) > _MAX_JOBS:
            _unfit(f"has n_jobs={jobs}")
        return part

    def _localise(self, extractor: TimmExtractor) -> None:
        """Point the extractor to this machine's weights and device."""
        if self._device is not None:
            extractor.device = self._device
        if any(
            entry["stored"]
            and (entry["model_name"], entry["image_size"]) == (extractor.model_name, extractor.image_size)
            for entry in self.teachers
        ):
            extractor.weights = os.path.abspath(self.file.path)
        elif self._weights is not None:
            extractor.weights = self._weights
        elif extractor.weights not in ("hub", "bundled", None):
            name = extractor.weights
            if name in ("", ".", "..") or name != PurePath(name).name or any(mark in name for mark in "/\\:\0"):
                _unfit(f"names weights {_brief(name)}, which is not the plain name of a file beside it")
            extractor.weights = str(self.file.path.absolute().with_name(name))

    def _decode(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        if not isinstance(value, dict):
            _unfit(f"has a parameter {_brief(value)}")
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
                _unfit(f"names an object {_brief(content)} that does not come before it")
            if kind == "random_state":
                return self._decode_random_state(content)
            if kind == "float":
                return _Number(finite=False).decode(value, self, {})
        _unfit(f"has a parameter {_brief(value)}")

    def _decode_random_state(self, content: Any) -> np.random.RandomState:
        if not isinstance(content, dict) or set(content) != {"key", "pos", "has_gauss", "gauss"}:
            _unfit("has a random state that is none")
        key = _Array((624,), ("int64",)).decode(content["key"], self, {})
        pos, has_gauss = (_Count().decode(content[name], self, {}) for name in ("pos", "has_gauss"))
        if key.min() < 0 or key.max() >= 2**32 or pos > 624 or has_gauss > 1:
            _unfit("has a random state that is none")
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


# ----- probes


def _scorers(detector: Any) -> list[TransformalyDetector]:
    """The fitted detectors of images within, each once, first the one whose scores are the whole's."""
    found: list[TransformalyDetector] = []

    def visit(part: Any) -> None:
        if isinstance(part, TransformalyDetector):
            found.extend([part] * all(part is not other for other in found))
        elif isinstance(part, FrozenEstimator):
            visit(part.estimator)
        else:
            visit(part.estimator_)
            for fold, _ in getattr(part, "_scored_folds", ()):
                visit(fold)

    visit(detector)
    return found


def _synthetic_probes() -> list[np.ndarray]:
    """Four pictures of random squares, from single pixels to quarters: the same ones with every version of numpy."""
    rng = np.random.RandomState(0)  # the old generator, whose stream is frozen
    pictures = []
    for side in (1, 4, 16, 32):
        squares = rng.randint(0, 256, (64 // side, 64 // side, 3)).astype(np.uint8)
        pictures.append(squares.repeat(side, axis=0).repeat(side, axis=1))
    return pictures


def _probe_scores(detector: TransformalyDetector, pictures: Sequence[np.ndarray]) -> list[float]:
    # one by one: what a batch holds beside an image may change the last digits, and its size the memory
    return [float(detector.score_samples([picture])[0]) for picture in pictures]


def _encode_probes(detector: Any, probes: Any, writer: _Writer) -> dict[str, Any]:
    images = None
    pictures = _synthetic_probes()
    if probes is not None:
        kept = as_images(probes)
        if not 1 <= len(kept) <= _MAX_PROBES:
            raise ValueError(f"probes must be 1 to {_MAX_PROBES} images, got {len(kept)}.")
        pictures = list(kept)
        images = []
        for i, picture in enumerate(pictures):
            if picture.dtype == np.uint16 or picture.dtype == np.float16:
                picture = picture.astype(np.float64) / (65535 if picture.dtype == np.uint16 else 1)
                pictures[i] = picture
            images.append(writer.array(f"probe{i}", picture))
    scores = [[_encode_float(score) for score in _probe_scores(part, pictures)] for part in _scorers(detector)]
    return {"images": images, "scores": scores}


def _decode_probes(detector: Any, encoded: Any, reader: _Reader) -> tuple[list[np.ndarray], list[list[float]]]:
    """The probe images, and their scores by each detector within."""
    if not isinstance(encoded, dict) or set(encoded) != {"images", "scores"}:
        _unfit("has no probes")
    images, scores = encoded["images"], encoded["scores"]
    pictures = _synthetic_probes()
    if images is not None:
        if not isinstance(images, list) or not 1 <= len(images) <= _MAX_PROBES:
            _unfit("has probe images that are no list of images")
        pictures = [_Array(("H", "W", "C"), ("uint8", *_REAL)).decode(image, reader, {}) for image in images]
        if any(picture.shape[2] not in (1, 3, 4) or 0 in picture.shape for picture in pictures):
            _unfit("has probe images that are none")
    number = len(_scorers(detector))
    if not isinstance(scores, list) or len(scores) != number or not all(isinstance(row, list) for row in scores):
        _unfit(f"has scores of probes that are not those of {number} detectors")
    rows = [_Numbers().decode(row, reader, {}) for row in scores]
    if any(len(row) != len(pictures) for row in rows):
        _unfit(f"does not have a score for each of its {len(pictures)} probes")
    return pictures, rows


def _replay(
    detector: Any, pictures: list[np.ndarray], scores: list[list[float]], tolerance: float, made: Any, path: Path
) -> None:
    """Score the probes again, and warn where a score is not what it was.

    Raises
    ------
    _Unfit
        The detector cannot score them.
    """
    worst, line = 0.0, ""
    for part, before in zip(_scorers(detector), scores):
        try:
            after = _probe_scores(part, pictures)
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            _unfit(f"holds a detector that cannot score its probes ({type(error).__name__}: {str(error)[:300]})")
        unit = np.nanstd(part._training_decisions)
        for k, (old, new) in enumerate(zip(before, after)):
            if old == new or (math.isnan(old) and math.isnan(new)):
                continue
            drift = abs(new - old) / (abs(old - part.offset_) + unit)
            if not drift <= worst:
                worst = drift
                line = f"probe {k} scored {old:.9g} when it was saved and scores {new:.9g} now"
    if not worst <= tolerance:
        changed = [f"{name} {then} -> {now}" for name, (then, now) in _changes(made).items()]
        warnings.warn(
            f"{os.fspath(path)!r}: scores have drifted by up to {worst:.2g} of a score's distance from the threshold; "
            f"tolerance is {tolerance:g}. {line}. Changed since it was saved: {', '.join(changed) or 'nothing known'}. "
            "Thresholds and p-values may not hold here: fit again, or use the libraries, processor and precision that "
            "saved it.",
            DriftWarning,
            stacklevel=3,
        )
