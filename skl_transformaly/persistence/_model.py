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
from skl_transformaly.persistence._fields import Refused, refuse
from skl_transformaly.persistence._invariants import check_threshold
from skl_transformaly.persistence._probes import FORGED, DriftWarning, environment, read_probes, replay, score_probes
from skl_transformaly.persistence._reader import Reader
from skl_transformaly.persistence._schema import DETECTORS, PARTS
from skl_transformaly.persistence._writer import Writer
from skl_transformaly.students._regression import Layout
from skl_transformaly.students._residuals import ResidualStatistics
from skl_transformaly.utils._container import (
    DOCUMENT_KEYS,
    ModelFile,
    ModelFileError,
    read_header,
    write_model_file,
)
from skl_transformaly.utils._labels import LEARNED, TRIMMED
from skl_transformaly.utils._torch import own_settings

__all__ = ["SKOPS_TYPES", "DriftWarning", "ModelFileError", "load", "read_header", "save"]

_OWN = [spec.cls for spec in PARTS.values() if spec.cls.__module__.startswith("skl_transformaly")]
SKOPS_TYPES = (
    *(f"{cls.__module__}.{cls.__name__}" for cls in (*_OWN, Layout, ResidualStatistics)),
    "sklearn.metrics._dist_metrics.EuclideanDistance64",
    "sklearn.neighbors._kd_tree.KDTree",
)
"""The types that skops must be told to trust: ``skops.io.load(file, trusted=list(SKOPS_TYPES))``."""


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
        Fitted; wrappers must hold a :class:`TransformalyDetector`. Its extractor must be a :class:`TimmExtractor`, its
        students :class:`RidgeStudents` or :class:`BlockStudents`, and its densities :class:`AutoDensity`,
        :class:`GaussianDensity`, :class:`KNNDensity`, :class:`LocalKNNDensity` or scikit-learn's ``GaussianMixture``.
    path : str or path
        An existing file is replaced as soon as the new one is complete.
    teacher : bool, default=True
        Whether the file holds the teacher's weights. Then loading needs nothing else but timm, for the architecture.
        Otherwise the file holds their SHA-256, and `load` takes them from their source: timm's hub, the package, or a
        file of the same name beside the model file.
    probes : images, default=None
        1 to 64 images to store in the file, in any form that :class:`TransformalyDetector` takes. `load` scores them
        again, and warns if a score has drifted. None takes four synthetic images, of which only the scores are stored.
    metadata : dict, default=None
        Plain JSON that :func:`read_header` returns, such as what the images are and who made the model.

    Raises
    ------
    TypeError
        A part is of a class that a file cannot hold, or `metadata` is not plain JSON.
    ValueError
        A parameter has a value that a file cannot hold, a probe image cannot be read, or `metadata` is too large.
    NotFittedError
        `detector` is not fitted.
    OSError
        The file cannot be written: no such folder, no room, or no permission. Nothing is left behind.

    See Also
    --------
    load : Loads such a file.
    read_header : What a file holds, without loading it.

    Notes
    -----
    All parameters and fitted attributes are stored, except `memory`, `checkpoint`, the folder that the teacher's
    weights came from, and `calibration` of :class:`ConformalDetector` if it is images (after loading it is ``()``,
    which `fit` refuses). Other attributes are left out with a warning.

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
        swapped = " The detector comes first: save(detector, path)." if isinstance(detector, (str, os.PathLike)) else ""
        raise TypeError(f"save takes a fitted {', '.join(DETECTORS)}, got {type(detector).__module__}.{name}.{swapped}")
    check_is_fitted(detector)
    writer = Writer(with_teacher=teacher)
    writer.add(detector)
    _check_thresholds(detector)
    document = {
        "class": name,
        "made": _provenance(detector),
        "teachers": writer.teachers,
        "metadata": {} if metadata is None else dict(metadata),
        "probes": writer.encode(score_probes(detector, probes), "probes")["dict"],
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
        Whether to score the probe images again, and warn if a score has drifted.
    tolerance : float, default=1e-3
        How far a probe's score may be off, as a share of its distance from the threshold plus the standard deviation of
        the training scores.
    weights : str or path, default=None
        Where the teacher's weights are, if the file does not hold them: "hub", "bundled" or a path, as in
        :class:`TimmExtractor`. None is where they came from, or the file of the same name beside the model file.
    device : str or torch.device, default=None
        The device to compute on: "auto", "cpu", "cuda", ... None is that of the detector.

    Returns
    -------
    detector : estimator
        Of the class that was saved. On the same machine and with the same libraries, scores are equal bit for bit. If
        the file holds the teacher's weights, the parameter `weights` of the extractor is the path of the file, from
        which clones, copies and pickles of the detector load them again.

    Raises
    ------
    ModelFileError
        The file is not a model file, is cut off, was changed, is of another format, or has classes that are not allowed
        or shapes that do not fit together; or this version of timm does not have the teacher's architecture.
    OSError
        The file or the teacher's weights cannot be read.

    Warns
    -----
    DriftWarning
        The score of a probe has drifted by more than `tolerance`, because of another version of timm or torch, another
        processor or another precision.

    See Also
    --------
    save : Writes such a file.

    Notes
    -----
    The file is checked before it is used: its checksum, then limits of size, then each class against a fixed list, each
    attribute against those of its class, and each array's shape against the others and the teacher's architecture,
    before memory is taken for it. The file holds no code. A checksum is not a signature: whoever can write the file can
    make a detector that scores as they like.

    ``joblib.load`` runs any code that is in a pickle: load pickles only from people whom you trust. ``skops.io.load``
    runs no code, given the types that it may make, ``trusted=list(SKOPS_TYPES)`` of this module. Like a pickle, such a
    file does not hold the teacher's weights.
    """
    path = Path(path)
    try:
        with own_settings(), ModelFile(path) as file:
            document = file.document
            if set(document) != DOCUMENT_KEYS:
                refuse("does not describe a detector")
            reader = Reader(file, device=device, weights=weights)
            if weights is not None and all(entry["stored"] for entry in reader.teachers):
                raise ModelFileError(f"{os.fspath(path)!r} holds the teacher's weights itself: leave weights=None.")
            detector = reader.read()
            images, scores = read_probes(document["probes"], reader, detector)
            reader.finish()
        if verify:
            replay(detector, images, scores, tolerance, document["made"], path)
    except ModelFileError:
        raise
    except FORGED as error:
        what = str(error) if isinstance(error, Refused) else f"does not hold together ({type(error).__name__}: {error})"
        raise ModelFileError(f"{os.fspath(path)!r} {what[:1000]}.") from error
    return detector


def _provenance(detector: Any) -> dict[str, Any]:
    """When and with what a file is made, for readers of its header."""
    # known anomalies, and images that were taken back, have no scores either
    scores, labels = innermost(detector).training_scores_, innermost(detector).training_labels_
    return {
        "saved_at": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "environment": environment(),
        "n_images": int(np.isin(labels, (LEARNED, TRIMMED)).sum()),
        "n_unreadable": int(np.isnan(scores[labels == LEARNED]).sum()),
        "n_trimmed": int((labels == TRIMMED).sum()),
    }


def _check_thresholds(detector: Any) -> None:
    """Refuse to save a rate that was set after `fit`, since the threshold is that of another rate."""
    for part in nested(detector):
        if isinstance(part, (ConformalDetector, TransformalyDetector)):
            try:
                check_threshold(part)
            except Refused as error:
                raise ValueError(
                    f"The {type(part).__name__} {error}: a parameter was set after fit. Fit again, or set it back, "
                    "before saving."
                ) from None
