"""Save a fitted detector in one file and load it, without pickle: the file holds no code, and none is run.

A file is a container of arrays and a JSON document (:mod:`skl_transformaly.utils._container`). What the document holds
of each class is listed in :mod:`skl_transformaly.persistence._schema`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._wrappers import innermost, nested
from skl_transformaly.persistence._codec import encode
from skl_transformaly.persistence._fields import Refused, refuse
from skl_transformaly.persistence._invariants import check_threshold
from skl_transformaly.persistence._probes import FORGED, DriftWarning, Probes, environment
from skl_transformaly.persistence._reader import Reader
from skl_transformaly.persistence._schema import DETECTORS, PARTS
from skl_transformaly.persistence._writer import Writer
from skl_transformaly.utils._container import ModelFile, ModelFileError, read_header, write_model_file

__all__ = ["SKOPS_TYPES", "DriftWarning", "ModelFileError", "load", "read_header", "save"]

SKOPS_TYPES = (
    "skl_transformaly._calibration.ConformalDetector",
    "skl_transformaly._density.AutoDensity",
    "skl_transformaly._gaussian.GaussianDensity",
    "skl_transformaly._density.KNNDensity",
    "skl_transformaly._detector.TransformalyDetector",
    "skl_transformaly.teacher._extractor.TimmExtractor",
    "skl_transformaly.students._residuals.ResidualStatistics",
    "skl_transformaly.students._regression.Layout",
    "skl_transformaly.students._ridge.RidgeStudents",
    "skl_transformaly._space.FeatureSpace",
    "skl_transformaly.students._block.BlockStudents",
    "skl_transformaly.model_selection.NormalOnly",
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._kd_tree.KDTree",
)
"""The types beyond skops' own that a detector is made of: ``skops.io.load(file, trusted=list(SKOPS_TYPES))``."""


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
    name = type(detector).__name__
    if name not in DETECTORS or type(detector) is not PARTS[name].cls:
        raise TypeError(f"save takes a fitted {', '.join(DETECTORS)}, got {type(detector).__module__}.{name}.")
    check_is_fitted(detector)
    writer = Writer(with_teacher=teacher)
    writer.add(detector)
    _check_thresholds(detector)
    document = {
        "class": name,
        "made": _provenance(detector),
        "teachers": writer.teachers,
        "metadata": {} if metadata is None else dict(metadata),
        "probes": encode(vars(Probes.of(detector, probes)), "probes", writer)["dict"],
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
            if set(document) != {"class", "made", "teachers", "metadata", "probes", "objects"}:
                refuse("does not describe a detector")
            reader = Reader(file, device=device, weights=weights)
            if weights is not None and all(entry["stored"] for entry in reader.teachers):
                raise ModelFileError(f"{os.fspath(path)!r} holds the teacher's weights itself: leave weights=None.")
            detector = reader.read()
            replayed = Probes.read(document["probes"], reader, detector)
            reader.finish()
        if verify:
            replayed.replay(detector, tolerance, document["made"], path)
    except ModelFileError:
        raise
    except FORGED as error:
        what = str(error) if isinstance(error, Refused) else f"does not hold together ({type(error).__name__}: {error})"
        raise ModelFileError(f"{os.fspath(path)!r} {what[:1000]}.") from error
    return detector


def _provenance(detector: Any) -> dict[str, Any]:
    """When and with what a file is made, for people who read its header."""
    scores = innermost(detector).training_scores_
    return {
        "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        "n_images": len(scores),
        "n_unreadable": int(np.isnan(scores).sum()),
    }


def _check_thresholds(detector: Any) -> None:
    """Refuse to save a rate that was set after `fit`, which the threshold does not have."""
    for part in nested(detector):
        if isinstance(part, (ConformalDetector, TransformalyDetector)):
            try:
                check_threshold(part)
            except Refused as error:
                raise ValueError(
                    f"The {type(part).__name__} {error}: a parameter was set after fit. Fit again, or set it back, "
                    "before you save."
                ) from None
