"""Samples in any form, for tools around a detector: folds, subsets, rows of pixels."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
from sklearn.utils import _safe_indexing, indexable

from skl_transformaly.images._columns import settled
from skl_transformaly.images._folders import list_images
from skl_transformaly.images._images import Images, as_images

__all__ = ["as_sequence", "on_error_of", "rows_as_images", "shaped", "take_samples"]


def as_sequence(X: Any) -> Any:
    """Return `X` in a form that has a length and can be indexed: a folder becomes its paths, an iterator a list."""
    return list_images(X) if isinstance(X, (str, os.PathLike)) else indexable(settled(X))[0]


def take_samples(X: Any, positions: np.ndarray, *, on_error: str = "raise") -> Any:
    """Return the samples of a sequence at `positions`, without decoding those of a Dataset."""
    if isinstance(X, (list, tuple)) or hasattr(X, "shape"):
        return _safe_indexing(X, positions)
    return as_images(X, on_error=on_error).take(positions)


def on_error_of(estimator: Any) -> str:
    """Return `on_error` of a detector, perhaps inside other estimators: "raise" or "skip"."""
    params = estimator.get_params() if hasattr(estimator, "get_params") else {}
    skips = any(name.split("__")[-1] == "on_error" and value == "skip" for name, value in params.items())
    return "skip" if skips else "raise"


def rows_as_images(X: Any, image_shape: tuple[int, ...] | None) -> Images:
    """Return rows of numbers as images, whatever the range of their values."""
    rows = np.asarray(X)
    if image_shape is None:
        raise ValueError(
            f"X is rows, an array of shape {rows.shape}, but images are needed. Pass image_shape=(H, W) or (H, W, C), "
            "or X of shape (n, H, W[, C])."
        )
    # not as_images, which refuses values that are not pixels
    stack = shaped(rows, image_shape)
    return Images(len(stack), stack.__getitem__, stack=stack)


def shaped(rows: np.ndarray, image_shape: tuple[int, ...]) -> np.ndarray:
    """Return rows of values as an array (n, H, W, C) of images of `image_shape`, (H, W) or (H, W, C)."""
    shape = tuple(image_shape)
    if rows.ndim != 2 or len(shape) not in (2, 3) or np.prod(shape) != rows.shape[1]:
        raise ValueError(
            f"image_shape={image_shape!r} must be (H, W) or (H, W, C), and its product the number of values in a row "
            f"of X, whose shape is {rows.shape}."
        )
    return rows.reshape(len(rows), *shape, *([1] if len(shape) == 2 else []))
