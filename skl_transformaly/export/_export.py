"""ONNX: a fitted detector as one file that scores images without torch, timm or scikit-learn."""

from __future__ import annotations

import copy
import os
import platform
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import check_consistent_length, check_is_fitted
from torch import Tensor, nn

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._wrappers import nested
from skl_transformaly.images._pixels import eight_bits
from skl_transformaly.images._probes import smooth_images
from skl_transformaly.model_selection import NormalOnly
from skl_transformaly.students._imitation import block_measures, by_measure
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.teacher._features import TeacherFeatures
from skl_transformaly.teacher._network import Teacher
from skl_transformaly.utils._files import replacing
from skl_transformaly.utils._labels import check_labels
from skl_transformaly.utils._torch import autocast, own_settings
from skl_transformaly.utils._versions import versions

if TYPE_CHECKING:
    import onnx

__all__ = ["ParityError", "to_onnx"]

# Protocol Buffers, in which an ONNX file is written, end at 2 GiB; some of it goes to the graph itself.
_MAX_BYTES = 2**31 - 2**24
# Share of decisions that 8-bit weights may change without a word
_DECISIONS_CHANGED = 0.05
_METADATA_PREFIX = "transformaly."


class ParityError(RuntimeError):
    """An exported file scores images otherwise than the detector does."""


@own_settings()
def to_onnx(
    detector: Any,
    path: str | os.PathLike,
    X: Any = None,
    y: Any = None,
    *,
    anomaly_map: bool = True,
    quantize: str | None = None,
    tolerance: float = 1e-3,
    auroc_tolerance: float | None = None,
    verbose: int = 0,
) -> dict[str, Any]:
    """Write a fitted detector as an ONNX file, and check that it scores as the detector does.

    Preprocessing, teacher, students and densities are one graph, which onnxruntime runs without torch, timm
    or scikit-learn. Networks compute in float32, densities in float64.

    Parameters
    ----------
    detector : TransformalyDetector or ConformalDetector
        Fitted, with a :class:`TimmExtractor` and densities of class :class:`AutoDensity`,
        :class:`GaussianDensity`, :class:`KNNDensity` or scikit-learn's ``GaussianMixture``. A
        :class:`ConformalDetector` around it sets decisions and p-values; ``NormalOnly`` and ``FrozenEstimator`` are
        looked through.
    path : str or path
        File to write, replaced if it is there. It is written under a temporary name, and moved when all is well.
    X : images, default=None
        Images to check the file on, 8 bits a channel, in any form that `detector` takes; best those that it will see,
        normal and anomalous. None takes a few made-up ones of several sizes.
    y : array-like of shape (n_samples,), default=None
        +1 for the normal ones of `X`, -1 for anomalies, for their AUROC. None takes as normal the half of `X` that the
        detector scores highest: its own AUROC is then 1, and that of the file says how many pairs of the two halves
        it ranks the same way.
    anomaly_map : bool, default=True
        Whether the file computes maps, where the detector has students.
    quantize : {"int8"} or None, default=None
        "int8" stores the weights of matrix products in 8 bits and computes them so (onnxruntime's dynamic
        quantisation): a smaller file, and other scores. It takes `X`, on which the cost is measured.
    tolerance : float, default=1e-3
        How far scores of the float32 graph may be from those of torch in float32: as a share of the score, or in nats
        where that is below 1.
    auroc_tolerance : float, default=None
        How far the AUROC may be from torch's; None is 0.005, and 0.05 with `quantize`.
    verbose : int, default=0
        1 prints what was measured.

    Returns
    -------
    report : dict
        What was measured, which the file's metadata hold as well, as text, under names that begin with
        ``transformaly.``:

        - ``score_deviation``: largest difference of a score, in the terms of `tolerance`;
        - ``auroc_torch``, ``auroc_onnx``, ``auroc_deviation``;
        - ``decisions_changed``: share of the images on one side of the threshold in torch, on the other in the file;
        - ``p_value_deviation``, ``anomaly_map_deviation``: largest differences, where the file has those outputs;
        - ``fitted_deviation``: like ``score_deviation``, against the detector as it was fitted, where that was in
          bfloat16 or float16;
        - ``n_images`` on which, ``bytes`` of the file, ``quantize``, and teacher, its weights, and versions.

    Raises
    ------
    NotFittedError
        `detector` was not fitted.
    TypeError
        A part of `detector` has no counterpart in ONNX operators.
    ParityError
        Scores or AUROC are beyond tolerance. No file is written.
    ValueError
        `X` or `y` is not as described, or the file would be larger than 2 GiB.
    ModuleNotFoundError
        The extra ``onnx`` is not installed.
    OSError
        The file cannot be written. What was there is still there.

    Warns
    -----
    UserWarning
        The detector computes in bfloat16 or float16, and the file's scores, in float32, are beyond `tolerance` of its.
        With `quantize`, more than a twentieth of the decisions differ from the detector's.

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

    Quantised discrepancies are larger than those that the density was fitted on, so scores fall and ``decision`` flags
    more: with ``quantize`` choose a threshold of your own on images that the file has scored.

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
    _import_onnx()
    core, conformal = _unwrap(detector)
    if quantize not in (None, "int8"):
        raise ValueError(f"quantize must be None or 'int8', got {quantize!r}.")
    if quantize and X is None:
        raise ValueError("quantize='int8' changes scores: give images X, normal and anomalous, to measure how much.")
    probes = _probe_images(core) if X is None else X
    reference = _Reference(core, conformal, probes, y)

    with_map = anomaly_map and "discrepancy" in core.feature_spaces_
    model = _build(core, conformal, with_map)
    report = reference.compare(model)
    limit = auroc_tolerance if auroc_tolerance is not None else 0.05 if quantize else 0.005
    _check(report, tolerance, limit if not quantize else np.inf)
    if quantize:
        model = _quantize(model)
        report = reference.compare(model)
        _check(report, np.inf, limit)
        if report["decisions_changed"] > _DECISIONS_CHANGED:
            warnings.warn(
                f"With 8-bit weights {report['decisions_changed']:.0%} of {report['n_images']} decisions differ from "
                "the detector's: its threshold does not fit the file. Choose one of your own on scores of the file.",
                UserWarning,
                stacklevel=3,
            )
    elif report.get("fitted_deviation", 0) > tolerance:
        warnings.warn(
            f"The detector computes in {core.extractor_.precision_}, the file in float32: scores differ by up to "
            f"{report['fitted_deviation']:.2g} of their size. Threshold and p-values were set with the former; for "
            "ones that fit the file, fit with precision='float32'.",
            UserWarning,
            stacklevel=3,
        )
    report = {**report, "quantize": quantize or "none", **_provenance(core)}
    _annotate(model, report)
    data = model.SerializeToString()
    with replacing(path) as file:
        file.write(data)
    report["bytes"] = len(data)
    if verbose:
        print(_summary(report, path))
    return report


def _import_onnx() -> None:
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
            raise TypeError(
                "Only a TransformalyDetector can be exported to ONNX, by itself or in a ConformalDetector, NormalOnly "
                f"or FrozenEstimator; got {type(inner).__name__}. Of a search pass best_estimator_, of a pipeline its "
                "detector."
            )
        if not isinstance(inner, FrozenEstimator):
            check_is_fitted(inner)
        if isinstance(inner, ConformalDetector) and conformal is None:
            conformal = inner
    if not isinstance(inner.extractor_, TimmExtractor):
        raise TypeError(
            f"The teacher is a {type(inner.extractor_).__name__}; what can be exported to ONNX is a TimmExtractor."
        )
    return inner, conformal


# ----- what is exported


class _Network(nn.Module):
    """Teacher and students as one module, in float32 on the CPU: pixels to features of each space, and a map.

    Parameters
    ----------
    teacher : Teacher
        Not changed, but copied.
    spaces : list of str
        In the order of the outputs.
    students : RidgeStudents, BlockStudents or None
    with_map : bool
    """

    def __init__(self, teacher: Teacher, spaces: list[str], students: Any, *, with_map: bool):
        super().__init__()
        # a copy: exporting swaps parameters for stand-ins, and others may be scoring with this teacher
        self.model = copy.deepcopy(teacher.model).to("cpu", torch.float32)
        self._teacher = [Teacher(self.model, teacher.data_config, teacher.weights_sha256)]
        modules = [] if students is None else students.students_
        self.students = nn.ModuleList(copy.deepcopy(student).to("cpu", torch.float32) for student in modules)
        self._indices = [] if students is None else students.block_indices_.tolist()
        self._measures = () if students is None else students.measures_
        self._usual = dict(zip(self._indices, students.residuals_)) if with_map else {}
        self._spaces = spaces

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        students = dict(zip(self._indices, self.students))
        measured: dict[int, Tensor] = {}
        maps: list[Tensor] = []
        teacher = self._teacher[0]
        as_extractor = SimpleNamespace(blocks_=teacher.blocks, to_maps=teacher.to_maps, classify=teacher.classify)
        watch, features_of = TeacherFeatures(as_extractor, self._spaces, 0).watch()

        def visit(index, block, args, kwargs, output):
            if watch is not None:
                watch(index, block, args, kwargs, output)
            if index in students:
                residual = students[index](*args, **kwargs) - output
                measured[index] = block_measures(self._measures, args[0], output, residual)
                if self._usual:
                    maps.append(self._usual[index].standardize(teacher.to_maps(residual)).unsqueeze(1))

        z_p = teacher.embed(pixels, visit)
        features = {space: torch.cat(parts, dim=1) for space, parts in features_of(z_p).items()}
        if measured:
            features["discrepancy"] = by_measure(measured)
        outputs = [features[space] for space in self._spaces]
        if maps:
            size = max(tuple(single.shape[2:]) for single in maps)
            same = [
                single if tuple(single.shape[2:]) == size else nn.functional.interpolate(single, size, mode="nearest")
                for single in maps
            ]
            outputs.append(torch.cat(same, dim=1).mean(1))
        return tuple(outputs)


def _build(core: TransformalyDetector, conformal: ConformalDetector | None, with_map: bool) -> onnx.ModelProto:
    """The whole graph."""
    from onnx import TensorProto, helper

    from skl_transformaly.export._graph import (
        Operators,
        enlarge,
        interpolated_share,
        preprocess,
        share_at_most,
        space_score,
    )

    spaces = list(core.feature_spaces_)
    students = core.students_ if "discrepancy" in spaces else None
    if students is not None and with_map and any(statistics is None for statistics in students.residuals_):
        raise ValueError("These students were fitted without what maps take: fit again, or set anomaly_map=False.")
    heads = Operators("heads")  # before the network is: what cannot be written is told at once
    names = [f"features_{space}" for space in spaces]
    parts = [space_score(heads, heads.double(name), core.spaces_[space]) for space, name in zip(spaces, names)]
    score = heads.Sum(*parts)
    offset = core.offset_
    calibration = core.training_scores_[~np.isnan(core.training_scores_)] if core.held_out_ else None
    if conformal is not None:
        offset, calibration = conformal.offset_, conformal.calibration_scores_
    outputs = {"score": score, "decision": heads.Sub(score, np.float64(offset))}
    if calibration is not None:
        share = interpolated_share if conformal is None else share_at_most
        outputs["p_value"] = share(heads, score, calibration)
    if with_map:
        names.append("coarse_map")
        outputs["anomaly_map"] = enlarge(heads, "coarse_map", "images")
    final = Operators("outputs")
    for name, value in outputs.items():
        final.Identity(value)
        final.nodes[-1].output[0] = name

    extractor = core.extractor_
    config = extractor.teacher_.data_config
    before = Operators("preprocess")
    size, mode = extractor.image_size_, extractor.interpolation_
    pixels = preprocess(before, "images", size, mode, config["mean"], config["std"])
    before.Identity(pixels)
    before.nodes[-1].output[0] = "pixels"

    network = _Network(extractor.teacher_, spaces, students, with_map=with_map)
    model = _trace(network, extractor.image_size_, names)
    graph = model.graph
    nodes = [*before.nodes, *graph.node, *heads.nodes, *final.nodes]
    del graph.node[:], graph.input[:], graph.output[:], graph.value_info[:]
    graph.node.extend(nodes)
    graph.initializer.extend([*before.initializers, *heads.initializers])
    graph.input.append(helper.make_tensor_value_info("images", TensorProto.UINT8, ["N", "H", "W", "C"]))
    for name in outputs:
        kind, shape = (TensorProto.FLOAT, ["N", "H", "W"]) if name == "anomaly_map" else (TensorProto.DOUBLE, ["N"])
        graph.output.append(helper.make_tensor_value_info(name, kind, shape))
    graph.name = "transformaly"
    return model


def _trace(network: _Network, size: tuple[int, ...], names: list[str]) -> onnx.ModelProto:
    """Teacher and students as a graph from ``pixels`` to `names`, for batches of any length."""
    from skl_transformaly.export._graph import OPSET

    tensors = [*network.parameters(), *network.buffers()]
    size_bytes = sum(tensor.numel() * tensor.element_size() for tensor in {id(t): t for t in tensors}.values())
    if size_bytes > _MAX_BYTES:
        raise ValueError(
            f"Teacher and students take {size_bytes / 2**30:.1f} GiB in float32, and an ONNX file holds less than 2 "
            "GiB. Choose a smaller teacher, or fewer students (n_blocks)."
        )
    network.eval()
    with warnings.catch_warnings(), autocast(torch.device("cpu"), "float32"):
        warnings.simplefilter("ignore")  # the exporter's own, on its ways and the library's
        program = torch.onnx.export(
            network,
            (torch.zeros(2, 3, *size),),
            dynamo=True,
            verbose=False,
            opset_version=OPSET,
            input_names=["pixels"],
            output_names=names,
            dynamic_shapes={"pixels": {0: torch.export.Dim("N", min=1)}},
        )
    assert program is not None  # which it is only where the exporter writes a file itself
    model = program.model_proto
    model.producer_name, model.producer_version = "skl-transformaly", versions(["skl-transformaly"])["skl-transformaly"]
    return model


def _quantize(model: onnx.ModelProto) -> onnx.ModelProto:
    """Matrix products of the network in 8 bits; preprocessing and densities stay as they are."""
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    ours = [node.name for node in model.graph.node if node.name.startswith(("preprocess/", "heads/", "outputs/"))]
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder, "int8.onnx")
        quantize_dynamic(
            model,
            target,
            op_types_to_quantize=["MatMul", "Gemm", "Conv"],
            per_channel=True,
            weight_type=QuantType.QInt8,
            nodes_to_exclude=ours,
        )
        return onnx.load(target)


# ----- whether it scores the same


class _Reference:
    """What torch in float32 makes of the images that a file is checked on.

    Parameters
    ----------
    core, conformal
        See `_unwrap`.
    X : images
    y : array-like or None
        See `to_onnx`.
    """

    def __init__(self, core: TransformalyDetector, conformal: ConformalDetector | None, X: Any, y: Any):
        images = core._check_images(X, reset=False, image_shape=core.image_shape)
        self.images = [_byte_image(image, i) for i, image in enumerate(images)]
        if len(self.images) < 2:
            raise ValueError(f"X must hold at least 2 images to compare scores on, got {len(self.images)}.")
        twin = _in_float32(core)
        score = twin.score_as_new(self.images)
        calibrated = twin
        if conformal is not None:
            calibrated = _twin(conformal)
            calibrated.estimator_ = twin
        self.expected: dict[str, np.ndarray] = calibrated.score_table(self.images, score)
        self.fitted = None if twin.extractor_ is core.extractor_ else core.score_as_new(self.images)
        self._twin = twin
        self._is_normal = self._labels(y)

    def _labels(self, y: Any) -> np.ndarray:
        score = self.expected["score"]
        if y is None:
            return score >= np.median(score)
        labels = check_labels(y, "The comparison of AUROC", both=True)
        check_consistent_length(self.images, labels)
        return labels == 1

    def compare(self, model: onnx.ModelProto) -> dict[str, Any]:
        """Run `model` on the images; see ``report`` of `to_onnx`."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        found = _run(session, self.images)
        score = np.asarray(found["score"])
        report: dict[str, Any] = {"score_deviation": _deviation(score, self.expected["score"])}
        # a score that is no number is the worst there is
        ranks = np.nan_to_num(score, nan=-np.inf, posinf=np.inf, neginf=-np.inf).clip(-1e300, 1e300)
        report["auroc_torch"] = float(roc_auc_score(self._is_normal, self.expected["score"]))
        report["auroc_onnx"] = float(roc_auc_score(self._is_normal, ranks))
        report["auroc_deviation"] = abs(report["auroc_onnx"] - report["auroc_torch"])
        changed = (np.asarray(found["decision"]) < 0) != (self.expected["decision"] < 0)
        report["decisions_changed"] = float(changed.mean())
        if "p_value" in found:
            report["p_value_deviation"] = float(np.abs(np.asarray(found["p_value"]) - self.expected["p_value"]).max())
        if "anomaly_map" in found:
            expected = self._twin.anomaly_map(self.images)
            differences = [np.abs(a - b).max() for a, b in zip(found["anomaly_map"], expected)]
            report["anomaly_map_deviation"] = float(np.max(differences))
        if self.fitted is not None:
            report["fitted_deviation"] = _deviation(score, self.fitted)
        report["n_images"] = len(self.images)
        return report


def _byte_image(image: np.ndarray, i: int) -> np.ndarray:
    image = eight_bits(image)
    if image.dtype != np.uint8:
        raise ValueError(f"Image {i} of X has more than 8 bits a channel, and the file takes uint8: give other images.")
    return image


def _run(session: Any, images: Sequence[np.ndarray], batch_size: int = 16) -> dict[str, list]:
    """Outputs for images of different sizes, in their order."""
    names = [output.name for output in session.get_outputs()]
    found: dict[str, list] = {name: [None] * len(images) for name in names}
    shapes: dict[tuple, list[int]] = {}
    for i, image in enumerate(images):
        shapes.setdefault(image.shape, []).append(i)
    for places in shapes.values():
        for start in range(0, len(places), batch_size):
            batch = places[start : start + batch_size]
            outputs = session.run(names, {"images": np.stack([images[i] for i in batch])})
            for name, output in zip(names, outputs):
                for i, value in zip(batch, output):
                    found[name][i] = value
    return found


def _deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of the expected score where that is above 1; infinite where one is no number."""
    with np.errstate(invalid="ignore"):
        deviation = np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected)))
    return float(deviation) if np.isfinite(deviation) else np.inf


def _check(report: dict[str, Any], tolerance: float, auroc_tolerance: float) -> None:
    if not report["score_deviation"] <= tolerance:
        raise ParityError(
            f"The exported graph's scores are up to {report['score_deviation']:.2g} of their size from the detector's, "
            f"on {report['n_images']} images; tolerance is {tolerance:.2g}. No file was written. Check with "
            "images X like those that it will see; raise tolerance if so much does not matter to you."
        )
    if not report["auroc_deviation"] <= auroc_tolerance:
        raise ParityError(
            f"The exported graph's AUROC is {report['auroc_onnx']:.4f}, the detector's {report['auroc_torch']:.4f}, on "
            f"{report['n_images']} images; auroc_tolerance is {auroc_tolerance:.2g}. No file was written."
        )


def _in_float32(detector: TransformalyDetector) -> TransformalyDetector:
    """The same detector, computing in float32 where it does in 16 bits, and keeping nothing in a cache."""
    twin = _twin(detector)
    twin.memory = None
    twin.image_shape_ = None  # as it does for a folder, it takes images of any size
    twin.on_error = "raise"
    if detector.extractor_.precision_ in ("bfloat16", "float16"):
        twin.extractor_ = _twin(detector.extractor_)
        twin.extractor_.precision_ = "float32"
        if "discrepancy" in detector.feature_spaces:
            twin.students_ = _twin(detector.students_)
            twin.students_.extractor_ = twin.extractor_
    return twin


def _twin(part: Any) -> Any:
    """An object with the same attributes; copy.copy would go through what pickling does, and load the weights again."""
    twin = object.__new__(type(part))
    twin.__dict__.update(part.__dict__)
    return twin


def _probe_images(core: TransformalyDetector) -> list[np.ndarray]:
    """Made-up images of the sizes of fit's images, of the teacher's input, and two others."""
    height, width = core.extractor_.image_size_
    shapes: list[tuple[int, ...]] = [
        (height, width, 3),
        (2 * height // 3 + 1, height // 2 + 1, 3),
        (height + 31, 3 * width // 2, 4),
        (50, 40, 1),
    ]
    return smooth_images(shapes if core.image_shape_ is None else [*shapes, core.image_shape_])


# ----- what the file says of itself


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


def _summary(report: dict[str, Any], path: str | os.PathLike) -> str:
    lines = [
        f"{os.fspath(path)}: {report['bytes'] / 1e6:.1f} MB, checked on {report['n_images']} images "
        "against torch in float32",
        f"  score: off by at most {report['score_deviation']:.1e} of its size",
        f"  AUROC: {report['auroc_onnx']:.4f}, torch {report['auroc_torch']:.4f}",
        f"  decisions: {report['decisions_changed']:.1%} differ",
    ]
    for name, unit in (("p_value", ""), ("anomaly_map", " standard deviations")):
        if f"{name}_deviation" in report:
            lines.append(f"  {name}: off by at most {report[f'{name}_deviation']:.1e}{unit}")
    if "fitted_deviation" in report:
        lines.append(f"  score as fitted, in 16 bits: off by at most {report['fitted_deviation']:.1e} of its size")
    return "\n".join(lines)
