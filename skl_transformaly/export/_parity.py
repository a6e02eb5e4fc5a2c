"""Whether an exported graph scores as the detector does, on images of the user's or made-up ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from sklearn.metrics import roc_auc_score
from sklearn.utils.validation import check_consistent_length

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly.images._images import as_images
from skl_transformaly.images._pixels import eight_bits
from skl_transformaly.images._probes import smooth_images
from skl_transformaly.utils._labels import check_labels

if TYPE_CHECKING:
    import onnx

__all__ = ["ParityError", "Reference", "check_parity"]


class ParityError(RuntimeError):
    """An exported file scores images otherwise than the detector does."""


class Reference:
    """What torch in float32 makes of the images that a file is checked on.

    `conformal` has the threshold and the p-values of the file, if it is not None. `X` None takes made-up images; `y`
    None takes the half of the images with the highest scores as normal.
    """

    def __init__(self, core: TransformalyDetector, conformal: ConformalDetector | None, X: Any, y: Any):
        if X is None:
            X = _made_up_images(core)
        elif core.image_shape is not None and getattr(X, "ndim", 0) == 2:
            X = np.asarray(X).reshape(-1, *core.image_shape)
        images = as_images(X)
        self.images = [_byte_image(image, images.name(i)) for i, image in enumerate(images)]
        if len(self.images) < 2:
            raise ValueError(f"X must hold at least 2 images to compare scores on, got {len(self.images)}.")
        self._twin = twin = _in_float32(core)
        calibrated = twin if conformal is None else _twin(conformal, estimator_=twin)
        score = twin.score_as_new(self.images)
        self.expected: dict[str, np.ndarray] = calibrated.score_table(self.images, score)
        self.fitted = None if twin.extractor_ is core.extractor_ else core.score_as_new(self.images)
        self._is_normal = score >= np.median(score)
        if y is not None:
            labels = check_labels(y, "The comparison of AUROC", both=True)
            check_consistent_length(self.images, labels)
            self._is_normal = labels == 1

    def compare(self, model: onnx.ModelProto) -> dict[str, Any]:
        """Run `model` on the images; see ``report`` of `to_onnx`."""
        found = self._run(model)
        score = np.array(found["score"])
        # a score that is not a number is the worst of all
        ranks = np.nan_to_num(score, nan=-np.inf, posinf=np.inf, neginf=-np.inf).clip(-1e300, 1e300)
        aurocs = [float(roc_auc_score(self._is_normal, values)) for values in (self.expected["score"], ranks)]
        report = {
            "score_deviation": _deviation(score, self.expected["score"]),
            "auroc_torch": aurocs[0],
            "auroc_onnx": aurocs[1],
            "auroc_deviation": abs(aurocs[1] - aurocs[0]),
            "decisions_changed": float(((np.array(found["decision"]) < 0) != (self.expected["decision"] < 0)).mean()),
        }
        if "p_value" in found:
            report["p_value_deviation"] = float(np.abs(np.array(found["p_value"]) - self.expected["p_value"]).max())
        if "anomaly_map" in found:
            pairs = zip(found["anomaly_map"], self._twin.anomaly_map(self.images))
            report["anomaly_map_deviation"] = float(np.max([np.abs(a - b).max() for a, b in pairs]))
        if self.fitted is not None:
            report["fitted_deviation"] = _deviation(score, self.fitted)
        return {**report, "n_images": len(self.images)}

    def _run(self, model: onnx.ModelProto) -> dict[str, list]:
        """Outputs for each image."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        names = [output.name for output in session.get_outputs()]
        rows = [session.run(names, {"images": image[np.newaxis]}) for image in self.images]
        return {name: [row[i][0] for row in rows] for i, name in enumerate(names)}


def check_parity(report: dict[str, Any], tolerance: float, auroc_tolerance: float) -> None:
    """Raise :class:`ParityError` if scores or AUROC deviate by more than is tolerated."""
    if not report["score_deviation"] <= tolerance:
        raise ParityError(
            f"The exported graph's scores are up to {report['score_deviation']:.2g} of their size from the detector's, "
            f"on {report['n_images']} images; tolerance is {tolerance:.2g}. No file was written. Check with images X "
            "like those that the file will score; raise tolerance if such a difference does not matter to you."
        )
    if not report["auroc_deviation"] <= auroc_tolerance:
        raise ParityError(
            f"The exported graph's AUROC is {report['auroc_onnx']:.4f}, the detector's {report['auroc_torch']:.4f}, on "
            f"{report['n_images']} images; auroc_tolerance is {auroc_tolerance:.2g}. No file was written."
        )


def _byte_image(image: np.ndarray, name: str) -> np.ndarray:
    image = eight_bits(image)
    if image.dtype != np.uint8:
        raise ValueError(f"{name} has more than 8 bits a channel, and the file takes uint8: give other images.")
    return image


def _deviation(found: np.ndarray, expected: np.ndarray) -> float:
    """Largest difference, as a share of expected scores above 1; infinite if one is not a number."""
    with np.errstate(invalid="ignore"):
        deviation = np.max(np.abs(found - expected) / np.maximum(1, np.abs(expected)))
    return float(deviation) if np.isfinite(deviation) else np.inf


def _in_float32(detector: TransformalyDetector) -> TransformalyDetector:
    """The same detector, without a cache, for images of any size, and in float32 instead of 16 bits."""
    twin = _twin(detector, memory=None, image_shape_=None, on_error="raise")
    if detector.extractor_.precision_ in ("bfloat16", "float16"):
        twin.extractor_ = _twin(detector.extractor_, precision_="float32")
        if "discrepancy" in detector.feature_spaces_:
            twin.students_ = _twin(detector.students_, extractor_=twin.extractor_)
    return twin


def _twin(part: Any, **changes: Any) -> Any:
    """An object with the same attributes but `changes`; copy.copy would pickle it, and load the weights again."""
    twin = object.__new__(type(part))
    vars(twin).update(vars(part) | changes)
    return twin


def _made_up_images(core: TransformalyDetector) -> list[np.ndarray]:
    """Images of the sizes of fit's images, of the teacher's input, and of others."""
    height, width = core.extractor_.image_size_
    shapes: list[tuple[int, ...]] = [
        (height, width, 3),
        (2 * height // 3 + 1, height // 2 + 1, 3),
        (height + 31, 3 * width // 2, 4),
        (50, 40, 1),
    ]
    return smooth_images(shapes if core.image_shape_ is None else [*shapes, core.image_shape_])
