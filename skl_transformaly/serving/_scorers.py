"""Results for decoded images, by a model file or an ONNX file."""

from __future__ import annotations

import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from skl_transformaly._reasons import reason_column
from skl_transformaly.images._folders import display_path
from skl_transformaly.images._pixels import eight_bits, least_side
from skl_transformaly.images._thumbnails import has_colour
from skl_transformaly.images._values import ImageError, colour_warning
from skl_transformaly.serving._maps import paint
from skl_transformaly.utils._files import file_sha256
from skl_transformaly.utils._warnings import warn_user

__all__ = ["DetectorScorer", "OnnxScorer", "Result", "open_scorer"]

# Pixels that go through an ONNX graph at a time, since it resizes in float64
_RUN_PIXELS = 2**24
_METADATA_PREFIX = "transformaly."
_LOWEST = -sys.float_info.max


@dataclass
class Result:
    """Result of a model for one image."""

    score: float  # higher is more normal
    margin: float  # how far above the threshold; negative for anomalies
    p_value: float | None
    spaces: dict[str, float] = field(default_factory=dict)  # parts of the score; empty with an ONNX file
    reason: str = ""  # in which space an anomaly is unusual; "" with an ONNX file
    map: dict[str, Any] | None = None  # if asked for; see `paint`
    threshold: float | None = None  # of the model, if known

    def __post_init__(self) -> None:
        # where a density is zero: JSON has no infinity
        self.score, self.margin = max(self.score, _LOWEST), max(self.margin, _LOWEST)
        self.spaces = {name: max(part, _LOWEST) for name, part in self.spaces.items()}
        if not math.isfinite(self.score) or not math.isfinite(self.margin):
            raise FloatingPointError("The model returned a score that is not a finite number.")
        if self.p_value is not None and math.isnan(self.p_value):
            self.p_value = None


class DetectorScorer:
    """Scores by a fitted detector; `about` describes the model."""

    def __init__(self, detector: Any, about: dict[str, str] | None = None):
        from skl_transformaly._explanation import has_maps
        from skl_transformaly._wrappers import decider, innermost

        self._decider = decider(detector)
        self._core = detector = innermost(detector)
        self.about = about or {}
        size = getattr(detector.extractor_, "image_size_", None)
        self.at_least = None if size is None else least_side(size)
        self.has_maps = has_maps(detector)

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return a decoded image as `score` takes it."""
        if self._core.grey_ and has_colour(image):
            warn_user(colour_warning(["the image"], 1))  # becomes a note on the image
        return image

    def score(self, images: list[np.ndarray], maps: Sequence[bool]) -> list[Result]:
        """Return results of images (H, W, C) of any sizes, in their order."""
        results: list[Result] = [None] * len(images)  # type: ignore[list-item]
        for wanted in (False, True):
            places = [i for i, with_map in enumerate(maps) if (with_map and self.has_maps) is wanted]
            if places:
                for i, result in zip(places, self._score([images[i] for i in places], wanted)):
                    results[i] = result
        return results

    def _score(self, images: list[np.ndarray], with_map: bool) -> list[Result]:
        table = self._core.explain(images, n_neighbors=0, maps=with_map)
        columns = self._decider.score_table(images, table["score"])
        reasons = reason_column(table, columns["decision"])
        return [
            Result(
                score=float(columns["score"][i]),
                margin=float(columns["decision"][i]),
                p_value=float(columns["p_value"][i]),
                spaces={name: float(table[name][i]) for name in self._core.feature_spaces_},
                reason=str(reasons[i]),
                map=paint(table["map"][i]) if with_map else None,
                threshold=float(self._decider.offset_),
            )
            for i in range(len(images))
        ]


class OnnxScorer:
    """Scores by a file that `to_onnx` wrote, on `threads` threads; imports no torch."""

    def __init__(self, path: str | os.PathLike, about: dict[str, str] | None = None, *, threads: int | None = None):
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Serving an ONNX file needs onnxruntime, which is not installed: pip install onnxruntime."
            ) from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads or 0
        options.log_severity_level = 4  # errors are raised anyway
        try:
            session = onnxruntime.InferenceSession(os.fspath(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # the runtime's errors have no common class
            raise ValueError(f"{os.fspath(path)!r} cannot be read as an ONNX file: {str(error)[:300]}") from error
        self._session = session
        outputs = [output.name for output in session.get_outputs()]
        if [value.name for value in session.get_inputs()] != ["images"] or not {"score", "decision"} <= set(outputs):
            raise ValueError(
                f"{os.fspath(path)!r} is an ONNX file of another kind; expected one that `transformaly export` or "
                "skl_transformaly.export.to_onnx wrote."
            )
        self.has_maps = "anomaly_map" in outputs
        self._outputs = [name for name in outputs if name != "anomaly_map"]
        metadata = session.get_modelmeta().custom_metadata_map
        wanted = {name: metadata.get(_METADATA_PREFIX + name, "") for name in ("teacher", "versions")}
        self.about = {**wanted, **(about or {})}
        threshold = metadata.get(_METADATA_PREFIX + "threshold", "")
        self._threshold = float(threshold) if threshold else None
        size = metadata.get(_METADATA_PREFIX + "image_size", "")
        self.at_least = least_side([int(side) for side in size.split("x")]) if size else None

    def prepare(self, image: np.ndarray) -> np.ndarray:
        """Return a decoded image in 8 bits. Raises ImageError if it has more."""
        image = eight_bits(image)
        if image.dtype != np.uint8:
            raise ImageError("has more than 8 bits per channel, but an ONNX file takes 8: send it in 8 bits.")
        return image

    def score(self, images: list[np.ndarray], maps: Sequence[bool]) -> list[Result]:
        """Return results of images (H, W, C), uint8, of any sizes, in their order."""
        runs: dict[tuple, list[int]] = {}
        for i, (image, with_map) in enumerate(zip(images, maps)):
            runs.setdefault((image.shape, with_map and self.has_maps), []).append(i)
        results: list[Result] = [None] * len(images)  # type: ignore[list-item]
        for (shape, with_map), places in runs.items():
            step = max(1, _RUN_PIXELS // (shape[0] * shape[1]))
            for start in range(0, len(places), step):
                part = places[start : start + step]
                for i, result in zip(part, self._run(np.stack([images[i] for i in part]), with_map)):
                    results[i] = result
        return results

    def _run(self, batch: np.ndarray, with_map: bool) -> list[Result]:
        names = [*self._outputs, "anomaly_map"] if with_map else self._outputs
        found = dict(zip(names, self._session.run(names, {"images": batch})))
        return [
            Result(
                score=float(found["score"][i]),
                margin=float(found["decision"][i]),
                p_value=float(found["p_value"][i]) if "p_value" in found else None,
                map=paint(found["anomaly_map"][i]) if with_map else None,
                threshold=self._threshold,
            )
            for i in range(len(batch))
        ]


def open_scorer(
    path: str | os.PathLike,
    *,
    weights: str | os.PathLike | None = None,
    device: str | None = None,
    threads: int | None = None,
) -> DetectorScorer | OnnxScorer:
    """Open a model file, or an ONNX file, by its suffix; `weights` and `device` are those of `load`."""
    path = Path(path)
    if path.suffix.lower() == ".onnx":
        if weights is not None or device is not None:
            raise ValueError("weights and device are for model files; an ONNX file holds its weights and runs on CPUs.")
        about = {"file": display_path(path.name), "kind": "ONNX", "sha256": file_sha256(path)}
        onnx_scorer = OnnxScorer(path, about, threads=threads)
        # the runtime allocates its memory on the first run
        onnx_scorer.score([np.zeros((32, 32, 3), dtype=np.uint8)], [False])
        return onnx_scorer

    from skl_transformaly.persistence import load, read_header

    if threads is not None:
        import torch

        torch.set_num_threads(threads)
    header = read_header(path)
    scorer = DetectorScorer(load(path, weights=weights, device=device))
    if read_header(path)["sha256"] != header["sha256"]:
        raise ValueError(f"{os.fspath(path)!r} was replaced while it was loaded; try again.")
    scorer.about = {
        "file": display_path(path.name),
        "kind": header["class"],
        "sha256": header["sha256"],
        "teacher": str(scorer._core.extractor_.model_name),
        "saved": str(header["made"].get("saved_at", "")) if isinstance(header["made"], dict) else "",
    }
    return scorer
