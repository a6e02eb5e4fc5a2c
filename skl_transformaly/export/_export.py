"""ONNX: a fitted detector as one file that scores images without torch, timm or scikit-learn."""

from __future__ import annotations

import os
import platform
import warnings
from typing import TYPE_CHECKING, Any

import torch
from sklearn.frozen import FrozenEstimator
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._wrappers import nested
from skl_transformaly.export._graph import DetectorGraph, ExportError
from skl_transformaly.export._parity import ParityError, Reference, check_parity
from skl_transformaly.model_selection import NormalOnly
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.utils._files import replacing
from skl_transformaly.utils._torch import autocast, own_settings
from skl_transformaly.utils._versions import versions
from skl_transformaly.utils._warnings import warn_user

if TYPE_CHECKING:
    import onnx

__all__ = ["ExportError", "ParityError", "import_onnx", "to_onnx"]

# The last one before operators that onnxruntime 1.20 does not have for all types used here.
OPSET = 18
# Protocol Buffers, in which an ONNX file is written, end at 2 GiB; some of it goes to the graph itself.
_MAX_BYTES = 2**31 - 2**24
_METADATA_PREFIX = "transformaly."


@own_settings()
def to_onnx(
    detector: Any,
    path: str | os.PathLike,
    X: Any = None,
    y: Any = None,
    *,
    anomaly_map: bool = True,
    tolerance: float = 1e-3,
    auroc_tolerance: float = 0.005,
) -> dict[str, Any]:
    """Write a fitted detector as an ONNX file, and check that it scores as the detector does.

    The graph holds preprocessing, teacher, students and densities, and onnxruntime runs it without torch, timm or
    scikit-learn. Networks compute in float32, all else in float64.

    Parameters
    ----------
    detector : TransformalyDetector or ConformalDetector
        Fitted, with a :class:`TimmExtractor` and densities of class :class:`AutoDensity`,
        :class:`GaussianDensity`, :class:`KNNDensity`, :class:`LocalKNNDensity` or scikit-learn's ``GaussianMixture``. A
        :class:`ConformalDetector` around it sets decisions and p-values; ``NormalOnly`` and ``FrozenEstimator`` are
        looked through.
    path : str or path
        File to write. An existing one is replaced as soon as the new one is complete.
    X : images, default=None
        Images of 8 bits a channel to check the file on, in any form that `detector` takes; best are normal and
        anomalous ones like those that it will score. None takes a few synthetic ones of several sizes.
    y : array-like of shape (n_samples,), default=None
        +1 for the normal images of `X`, -1 for anomalies, for their AUROC. None takes the half of `X` with the highest
        scores as normal: the AUROC of the detector is then 1, and that of the file is the share of pairs from the two
        halves that it ranks the same way.
    anomaly_map : bool, default=True
        Whether the file computes maps, if the detector has students; False is for teachers of which it is not known
        where in the image the outputs of their blocks belong.
    tolerance : float, default=1e-3
        How far scores may be from those of torch in float32, as a share of the score; of scores below 1, as they are.
    auroc_tolerance : float, default=0.005
        How far the AUROC may be from torch's.

    Returns
    -------
    report : dict
        What was measured. The file's metadata hold all but its size as text, under names that begin with
        ``transformaly.``:

        - ``score_deviation``: largest difference of a score, in the terms of `tolerance`;
        - ``auroc_torch``, ``auroc_onnx``, ``auroc_deviation``;
        - ``decisions_changed``: share of the images on one side of the threshold in torch, on the other in the file;
        - ``p_value_deviation``, ``anomaly_map_deviation``: largest differences, where the file has those outputs;
        - ``fitted_deviation``: like ``score_deviation``, against the detector as it was fitted, where that was in
          bfloat16 or float16;
        - ``n_images`` on which, ``bytes`` of the file, its ``threshold``, and teacher, its weights, and versions.

    Raises
    ------
    NotFittedError
        `detector` was not fitted.
    TypeError
        A part of `detector` has no counterpart in ONNX operators.
    ParityError
        Scores or AUROC are beyond tolerance. No file is written.
    ValueError
        `X` or `y` is not as described, maps are asked for where places are not known, or the file would be larger than
        2 GiB.
    ModuleNotFoundError
        The extra ``onnx`` is not installed.
    OSError
        The file cannot be written. What was there is still there.

    Warns
    -----
    UserWarning
        The detector computes in bfloat16 or float16, and the file's scores, in float32, are beyond `tolerance` of its.

    Notes
    -----
    Input of the graph is ``images``, uint8 (N, H, W, C): one batch of images of one size, any N, H and W; C = 1 grey, 3
    RGB, or 4 RGBA, which is laid on white. Images are resized inside, to the bit as the detector does. Outputs are

    - ``score``, float64 (N,): as `score_samples` for new images; those that `fit` has seen are not recognised, and
      score as new ones (`score_as_new`);
    - ``decision``, float64 (N,): as `decision_function`; negative for anomalies;
    - ``p_value``, float64 (N,): as `p_values`, those of the :class:`ConformalDetector` if there is one; not of a
      detector with ``threshold="training"``;
    - ``anomaly_map``, float32 (N, H, W): as `anomaly_map`.

    Decoding is left to the caller: for the same scores, apply the EXIF orientation, and make palettes and other colour
    spaces RGB, as ``ImageOps.exif_transpose(image).convert("RGB")`` of Pillow does.

    Examples
    --------
    >>> import numpy as np, onnxruntime, tempfile
    >>> from skl_transformaly import TimmExtractor, TransformalyDetector
    >>> from skl_transformaly.export import to_onnx
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> teacher = TimmExtractor("test_vit", weights=None, image_size=32, precision="float32")
    >>> detector = TransformalyDetector(teacher, feature_spaces=["pretrained"]).fit(images)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     report = to_onnx(detector, f"{folder}/detector.onnx")
    ...     session = onnxruntime.InferenceSession(f"{folder}/detector.onnx")
    >>> scores, decisions = session.run(["score", "decision"], {"images": images})
    >>> bool(np.allclose(scores, detector.score_as_new(images), rtol=1e-3, atol=1e-3))
    True
    """
    import_onnx()
    core, conformal = _unwrap(detector)
    with_map = anomaly_map and "discrepancy" in core.feature_spaces_
    if with_map and any(usual is None for usual in core.students_.residuals_):
        raise ValueError("These students have no residuals of normal images to compare with: set anomaly_map=False.")
    graph = DetectorGraph(core, conformal, with_map=with_map)  # first: it tells at once what cannot be exported
    reference = Reference(core, conformal, X, y)
    model = _trace(graph, core.extractor_.image_size_)
    report = reference.compare(model)
    check_parity(report, tolerance, auroc_tolerance)
    if report.get("fitted_deviation", 0) > tolerance:
        warn_user(
            f"The detector computes in {core.extractor_.precision_}, the file in float32: scores differ by up to "
            f"{report['fitted_deviation']:.2g} of their size. Threshold and p-values were set with the former; for "
            "ones that fit the file, fit with precision='float32'."
        )
    threshold = float((core if conformal is None else conformal).offset_)
    report = {**report, "threshold": threshold, **_provenance(core)}
    _annotate(model, report)
    data = model.SerializeToString()
    with replacing(path) as file:
        file.write(data)
    report["bytes"] = len(data)
    return report


def import_onnx() -> None:
    """Import what an export needs. Raises ModuleNotFoundError, which says how to install it."""
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"ONNX export needs {error.name}, which is not installed: pip install 'skl-transformaly[onnx]'."
        ) from error


def _unwrap(detector: Any) -> tuple[TransformalyDetector, ConformalDetector | None]:
    """The detector within `detector`, and the one that calibrates it, if any."""
    conformal = None
    for inner in nested(detector):
        if not isinstance(inner, (TransformalyDetector, ConformalDetector, NormalOnly, FrozenEstimator)):
            raise ExportError(
                "Only a TransformalyDetector can be exported to ONNX, by itself or in a ConformalDetector, NormalOnly "
                f"or FrozenEstimator; got {type(inner).__name__}. Of a search pass best_estimator_, of a pipeline its "
                "detector."
            )
        if not isinstance(inner, FrozenEstimator):
            check_is_fitted(inner)
        if isinstance(inner, ConformalDetector) and conformal is None:
            conformal = inner
    if not isinstance(inner.extractor_, TimmExtractor):
        raise ExportError(
            f"The teacher is a {type(inner.extractor_).__name__}; what can be exported to ONNX is a TimmExtractor."
        )
    return inner, conformal


def _trace(graph: DetectorGraph, size: tuple[int, ...]) -> onnx.ModelProto:
    """The graph in ONNX, for images of any number, size and channels; `size` is that of the teacher's."""
    tensors = [*graph.parameters(), *graph.buffers()]
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in tensors}.values())
    if size_bytes > _MAX_BYTES:
        raise ValueError(
            f"The detector takes {size_bytes / 2**30:.1f} GiB in float32, and an ONNX file holds less than 2 GiB. "
            "Choose a smaller teacher, or fewer students (n_blocks)."
        )
    graph.eval()
    example = torch.zeros(2, size[0] + 5, size[1] + 3, 3, dtype=torch.uint8)
    axes = {i: torch.export.Dim(name, min=1) for i, name in enumerate("NHW")}
    with warnings.catch_warnings(), autocast(torch.device("cpu"), "float32"):
        warnings.simplefilter("ignore")  # the exporter's own, on its ways and the library's
        program = torch.onnx.export(
            graph,
            (example,),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["images"],
            output_names=graph.outputs,
            dynamic_shapes={"images": {**axes, 3: torch.export.Dim("C", min=1, max=4)}},
        )
    assert program is not None  # it is None only if the exporter writes a file itself
    model = program.model_proto
    model.graph.name = "transformaly"
    model.producer_name, model.producer_version = next(iter(versions(["skl-transformaly"]).items()))
    return model


def _provenance(core: TransformalyDetector) -> dict[str, Any]:
    extractor = core.extractor_
    packages = ("skl-transformaly", "torch", "timm", "onnx", "onnxruntime")
    return {
        "teacher": extractor.model_name,
        "weights_sha256": extractor.weights_sha256_,
        "image_size": "x".join(map(str, extractor.image_size_)),
        "feature_spaces": ",".join(core.feature_spaces_),
        "versions": ", ".join(
            [f"Python {platform.python_version()}", *(f"{name} {found}" for name, found in versions(packages).items())]
        ),
    }


def _annotate(model: onnx.ModelProto, report: dict[str, Any]) -> None:
    from onnx import helper

    helper.set_model_props(model, {_METADATA_PREFIX + name: str(value) for name, value in report.items()})
