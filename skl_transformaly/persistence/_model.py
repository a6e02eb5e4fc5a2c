"""Save a fitted detector in one file, and load it, without pickle: no code in the file, none run from it.

A file is a container of arrays and a JSON document (:mod:`skl_transformaly.utils._container`); what the document says
of each class is in :mod:`skl_transformaly.persistence._codec`.
"""

from __future__ import annotations

import math
import os
import platform
import warnings
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._fusion import p_values
from skl_transformaly.images._images import as_images
from skl_transformaly.persistence._codec import DETECTORS, PARTS, Array, Numbers, Reader, Writer, encode_float
from skl_transformaly.persistence._invariants import Unfit, brief, check_threshold, unfit
from skl_transformaly.utils._container import ModelFile, ModelFileError, read_header, write_model_file

__all__ = ["SKOPS_TYPES", "DriftWarning", "ModelFileError", "load", "read_header", "save"]

SKOPS_TYPES = (
    "skl_transformaly._calibration.ConformalDetector",
    "skl_transformaly._density.AutoDensity",
    "skl_transformaly._density.GaussianDensity",
    "skl_transformaly._density.KNNDensity",
    "skl_transformaly._detector.TransformalyDetector",
    "skl_transformaly.teacher._extractor.TimmExtractor",
    "skl_transformaly.students._residuals.ResidualStatistics",
    "skl_transformaly.students._ridge.Layout",
    "skl_transformaly.students._ridge.RidgeStudents",
    "skl_transformaly._space.FeatureSpace",
    "skl_transformaly.students._block.BlockStudents",
    "skl_transformaly.model_selection.NormalOnly",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._kd_tree.KDTree",
)
"""The types beyond skops' own that a detector is made of: ``skops.io.load(file, trusted=list(SKOPS_TYPES))``."""

_PACKAGES = ("skl-transformaly", "torch", "timm", "numpy", "scipy", "scikit-learn", "pillow", "safetensors")

_MAX_PROBES = 64
_DOCUMENT = {"class", "made", "teachers", "metadata", "probes", "objects"}

# What a forged description can make the parts stumble on, where nothing above foresaw it.
_FORGED = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


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
        Whether the teacher's weights go into the file: then it needs nothing but timm, for the architecture, where it
        is loaded. Otherwise the file holds their SHA-256, and `load` takes them from where they came: timm's hub, the
        package, or a file of the same name beside the model file.
    probes : images, default=None
        Up to 64 images to keep in the file, in any form that :class:`TransformalyDetector` takes; `load` scores them
        again and warns where a score has drifted. None takes four synthetic pictures, of which the file holds the
        scores alone.
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
    All parameters, fitted attributes, training embeddings and discrepancies are kept. Not kept: `memory`; the folder
    that the teacher's weights came from; `calibration` of :class:`ConformalDetector` where it is images or a splitter
    (it is ``()`` after loading: `fit` would ask for it); and attributes of your own, with a warning.

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
    writer = Writer(with_teacher=teacher)
    writer.add(detector)
    _check_thresholds(detector)
    document = {
        "class": type(detector).__name__,
        "made": _provenance(detector),
        "teachers": writer.teachers,
        "metadata": {} if metadata is None else dict(metadata),
        "probes": _encode_probes(detector, probes, writer),
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
        How far a probe's score may be off, as a share of its distance from the threshold plus the standard deviation of
        the training scores.
    weights : str or path, default=None
        For a file without the teacher's weights: where they are now, "hub", "bundled" or a path, as in
        :class:`TimmExtractor`. None is where they came from, or the file of that name beside the model file.
    device : str or torch.device, default=None
        Where to compute instead of where the detector did: "auto", "cpu", "cuda", ...

    Returns
    -------
    detector : estimator
        Of the class that was saved. On the machine and with the libraries that saved it, it gives the same scores bit
        for bit. Where the file holds the teacher's weights, the parameter `weights` of its extractor is the path of the
        file, from where clones, copies and pickles of the detector load them again.

    Raises
    ------
    ModelFileError
        The file is not what :func:`save` writes: no model file, cut off, changed, of a newer format, of classes that
        are not in the list, of shapes that do not fit together; or this timm does not know the teacher's architecture.
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
    each class against a fixed list, each attribute against what its class has, and each array's shape against the
    others and against the teacher's architecture, before memory is taken for it. No code in it is run, since there is
    none. A checksum is no signature: whoever can write the file can make a detector that scores as they like.

    Pickles, which ``joblib.load`` reads as well, run any code that is in them: load those only from people whom you
    would let log in. ``skops.io.load`` runs none, given the types that it may make: ``trusted=list(SKOPS_TYPES)``, of
    this module. Like a pickle, such a file does not hold the teacher's weights.
    """
    path = Path(path)
    try:
        with ModelFile(path) as file:
            document = file.document
            if set(document) != _DOCUMENT:
                unfit("does not describe a detector")
            reader = Reader(file, device=device, weights=weights)
            if weights is not None and all(entry["stored"] for entry in reader.teachers):
                raise ModelFileError(f"{os.fspath(path)!r} holds the teacher's weights itself: leave weights=None.")
            detector = reader.read()
            pictures, scores = _decode_probes(document["probes"], reader, detector)
            reader.finish()
        if verify:
            _replay(detector, pictures, scores, tolerance, document["made"], path)
    except ModelFileError:
        raise
    except _FORGED as error:
        what = str(error) if isinstance(error, Unfit) else f"does not hold together ({type(error).__name__}: {error})"
        raise ModelFileError(f"{os.fspath(path)!r} {what[:1000]}.") from error
    return detector


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
    return {name: (brief(then[name]), now) for name, now in _environment().items() if then.get(name, now) != now}


def _provenance(detector: Any) -> dict[str, Any]:
    """When and with what a file is made, for people who read its header."""
    scores = _scorer(detector).training_scores_
    return {
        "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": _environment(),
        "n_images": len(scores),
        "n_unreadable": int(np.isnan(scores).sum()),
    }


def _check_root(detector: Any) -> None:
    name = type(detector).__name__
    if name not in DETECTORS or type(detector) is not PARTS[name].cls:
        raise TypeError(f"save takes a fitted {', '.join(DETECTORS)}, got {type(detector).__module__}.{name}.")


def _check_thresholds(detector: Any) -> None:
    """Refuse to save a rate that was set after `fit`, and so is not the one that the threshold keeps."""
    while not isinstance(detector, TransformalyDetector):
        if isinstance(detector, ConformalDetector):
            _check_threshold_of(detector)
        detector = detector.estimator if isinstance(detector, FrozenEstimator) else detector.estimator_
    _check_threshold_of(detector)


def _check_threshold_of(detector: Any) -> None:
    try:
        check_threshold(detector)
    except Unfit as error:
        raise ValueError(
            f"The {type(detector).__name__} {error}: a parameter was set after fit. Fit again, or set it back, "
            "before you save."
        ) from None


# ----- probes


def _scorer(detector: Any) -> TransformalyDetector:
    """The fitted detector of images within."""
    while not isinstance(detector, TransformalyDetector):
        detector = detector.estimator if isinstance(detector, FrozenEstimator) else detector.estimator_
    return detector


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
    return [float(detector.score_as_new([picture])[0]) for picture in pictures]


def _encode_probes(detector: Any, probes: Any, writer: Writer) -> dict[str, Any]:
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
    scores = _probe_scores(_scorer(detector), pictures)
    encoded: dict[str, Any] = {"images": images, "scores": [encode_float(score) for score in scores]}
    conformal = _conformal(detector)
    if conformal is not None:
        encoded["p_values"] = [encode_float(p) for p in p_values(np.array(scores), conformal.calibration_scores_)]
    return encoded


def _conformal(detector: Any) -> ConformalDetector | None:
    """The outermost detector within that gives p-values by calibration scores."""
    while not isinstance(detector, (ConformalDetector, TransformalyDetector)):
        detector = detector.estimator if isinstance(detector, FrozenEstimator) else detector.estimator_
    return detector if isinstance(detector, ConformalDetector) else None


def _decode_probes(encoded: Any, reader: Reader, detector: Any) -> tuple[list[np.ndarray], list[float]]:
    """The probe images, and their scores, whose p-values must be those that were saved."""
    if not isinstance(encoded, dict) or set(encoded) - {"p_values"} != {"images", "scores"}:
        unfit("has no probes")
    images, scores = encoded["images"], encoded["scores"]
    pictures = _synthetic_probes()
    if images is not None:
        if not isinstance(images, list) or not 1 <= len(images) <= _MAX_PROBES:
            unfit("has probe images that are no list of images")
        pictures = [
            Array(("H", "W", "C"), ("uint8", "float32", "float64")).decode(image, reader, {}) for image in images
        ]
        if any(picture.shape[2] not in (1, 3, 4) or 0 in picture.shape for picture in pictures):
            unfit("has probe images that are none")
    before = Numbers().decode(scores, reader, {})
    if len(before) != len(pictures):
        unfit(f"does not have a score for each of its {len(pictures)} probes")
    conformal = _conformal(detector)
    if "p_values" in encoded:  # older files lack them
        p = Numbers().decode(encoded["p_values"], reader, {})
        now = None if conformal is None else p_values(np.array(before), conformal.calibration_scores_)
        if now is None or not np.array_equal(p, now, equal_nan=True):
            unfit("has calibration_scores_ that give its probes other p-values than those that were saved")
    return pictures, before


def _replay(
    detector: Any, pictures: list[np.ndarray], before: list[float], tolerance: float, made: Any, path: Path
) -> None:
    """Score the probes again, and warn where a score is not what it was.

    Raises
    ------
    Unfit
        The detector cannot score them.
    """
    worst, line = 0.0, ""
    scorer = _scorer(detector)
    try:
        after = _probe_scores(scorer, pictures)
    except _FORGED as error:
        unfit(f"holds a detector that cannot score its probes ({type(error).__name__}: {str(error)[:300]})")
    unit = np.nanstd(scorer.training_scores_)
    for k, (old, new) in enumerate(zip(before, after)):
        if old == new or (math.isnan(old) and math.isnan(new)):
            continue
        drift = abs(new - old) / (abs(old - scorer.offset_) + unit)
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
