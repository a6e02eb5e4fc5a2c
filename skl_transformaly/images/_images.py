"""Images in any form, as one lazily decoded sequence."""

from __future__ import annotations

import os
from collections.abc import Sequence
from functools import partial
from numbers import Number
from typing import Any

import numpy as np
from PIL import Image

from skl_transformaly.images._columns import has_frames, settled
from skl_transformaly.images._folders import has_image_suffix, list_images
from skl_transformaly.images._formats import absolute
from skl_transformaly.images._items import (
    EXPECTED,
    advice,
    decode_item,
    from_tensor,
    is_torch,
    refuse_channels_last,
    without_mask,
)
from skl_transformaly.images._pixels import decode_file, file_shape
from skl_transformaly.images._sequence import Images
from skl_transformaly.images._values import SKIP_ADVICE, ImageError, check_layout, checked
from skl_transformaly.utils._missing import is_missing

__all__ = ["Images", "as_images", "from_array", "is_table"]


def as_images(X: Any, *, on_error: str = "raise") -> Images:
    """Return images in any form, except 2-D rows, as :class:`Images`.

    - array (n, H, W) or (n, H, W, C): uint8 0-255, uint16 0-65535, bool, other integers 0-255, or float 0-1; C = 1
      grey, 3 RGB, 4 RGBA;
    - torch tensor (n, C, H, W), with the same value ranges;
    - sequence or iterator of paths, PIL images, arrays (H, W[, C]) or tensors (C, H, W), of any sizes; ~ in a path is
      the home folder;
    - data frame of one such column, or data set of Hugging Face with one column of images;
    - str or path of a folder: the images below it, sorted by path;
    - map-style torch Dataset whose items are images, or tuples that begin with one.

    Raises TypeError for anything else, and ValueError for a wrong shape, for pixels that are masked, not finite or out
    of the range of their dtype, for several columns, and for an empty or missing folder.
    """
    X = settled(X)
    if isinstance(X, Images):
        return X
    if isinstance(X, (str, os.PathLike)):
        return _from_files(list_images(X), on_error)
    if is_torch(X, "Tensor"):
        X = from_tensor(X)
        if X.ndim == 4:  # torch's (n, C, H, W)
            refuse_channels_last(X.shape[1:], "permute(0, 3, 1, 2)")
            X = np.moveaxis(X, 1, -1)
        elif X.ndim == 3 and X.shape[0] in (3, 4):
            _refuse_one_image(X.shape, "image.unsqueeze(0)", "images.unsqueeze(1)")
        elif X.ndim == 3 and X.shape[2] in (3, 4) and min(X.shape[:2]) > 4:
            _refuse_one_image(X.shape, "image.permute(2, 0, 1).unsqueeze(0)", "images.unsqueeze(1)")
    elif isinstance(X, np.ndarray) and X.ndim == 3 and X.shape[2] in (3, 4) and min(X.shape[:2]) > 4:
        _refuse_one_image(X.shape, "image[np.newaxis]", "images[..., np.newaxis]")
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OUST":
        if X.dtype.kind == "f" and X.ndim in (3, 4) and (broken := _not_finite(X)):
            if on_error == "skip":
                return as_images(list(X), on_error=on_error)
            raise ImageError(
                f"NaN or infinity was found in {len(broken)} of {len(X)} images, the first at position "
                f"{broken[0]}. Replace these values, leave the images out, or give the detector on_error='skip'."
            )
        return from_array(X)
    if is_torch(X, "utils.data.Dataset"):
        if not hasattr(X, "__len__"):
            raise TypeError(
                "A torch Dataset must have a length and be indexed by position (map-style); an "
                "IterableDataset has neither. Score a stream batch by batch instead."
            )
        return _from_items(X, on_error)
    if hasattr(X, "__len__") and hasattr(X, "__getitem__") and not isinstance(X, (dict, bytes, bytearray, memoryview)):
        X = getattr(X, "to_numpy", lambda: X)()  # a pandas or polars Series of paths
        if isinstance(X, np.ndarray):
            if X.ndim != 1:
                raise ValueError(f"An array of paths or images must be 1-D, got shape {X.shape}. {EXPECTED}")
            X = X.tolist()
        paths = _as_paths(X)
        if paths is not None:
            return _from_files(paths, on_error)
        _refuse_frames(X)
        return _from_items(X, on_error)
    raise TypeError(f"Cannot read images from {type(X).__name__}. {advice(X)}{EXPECTED}")


def is_table(X) -> bool:
    """Return whether `X` is rows of numbers, or should be refused in scikit-learn's own words."""
    if isinstance(X, (str, os.PathLike, Images, Image.Image)) or is_torch(X, "utils.data.Dataset"):
        return False
    if isinstance(X, np.ndarray) or is_torch(X, "Tensor"):
        # 1-D objects or strings may be images or paths; 1-D numbers are scikit-learn's to refuse
        return X.ndim == 2 or (X.ndim < 2 and (is_torch(X, "Tensor") or X.dtype.kind not in "OUST"))
    if hasattr(X, "shape"):  # data frames, series, sparse matrices
        return len(X.shape) == 2
    if isinstance(X, (list, tuple)):
        # a missing path at the beginning may be NaN, which does not mean that X holds numbers
        first = next((item for item in X if not is_missing(item)), X[0] if X else None)
        if first is None or isinstance(first, (str, os.PathLike, Image.Image, memoryview)):
            return False
        if isinstance(first, (tuple, list)):  # numbers, or (image, label)
            return not first or isinstance(first[0], Number)
        return isinstance(first, Number) or getattr(first, "ndim", 2) < 2
    return False


def _refuse_one_image(shape: tuple[int, ...], one: str, grey: str) -> None:
    raise ValueError(
        f"X of shape {tuple(shape)} may be one image in colour or {shape[0]} grey images of {shape[1]} x {shape[2]} "
        f"pixels. For the one, pass {one}; for the others, {grey}."
    )


def _not_finite(X: np.ndarray) -> list[int]:
    """Positions of images with NaN or infinity."""
    return [i for i, image in enumerate(X) if not np.isfinite(image).all()]


def from_array(X: np.ndarray, *, lenient: bool = False) -> Images:
    if X.ndim not in (3, 4):
        raise ValueError(f"Got an array of shape {X.shape}. {EXPECTED}")
    if X.ndim == 3:
        X = X[..., np.newaxis]
    X = without_mask(X)
    check_layout(X.shape[1:])
    X = checked(X, lenient=lenient)
    return Images(len(X), partial(np.ndarray.__getitem__, X), stack=X)


# Functions of modules, not closures, so that images can be pickled for other processes.


def _as_paths(items: Any) -> list[Any] | None:
    """Paths of image files, some of which may be missing or come with a label; None if `items` holds anything else."""
    paths = []
    for item in items if isinstance(items, (list, tuple)) else ():
        if isinstance(item, tuple) and item and not any(_is_image(other) for other in item[1:]):
            item = item[0]  # (image, label)
        if not (isinstance(item, (str, os.PathLike)) or is_missing(item)):
            return None
        paths.append(item)
    return paths if any(not is_missing(path) for path in paths) else None


def _refuse_frames(items: Any) -> None:
    """Refuse a list that holds one object for several frames, all of which would be the frame last sought."""
    if not isinstance(items, (list, tuple)):  # which may decode an image each time that it is asked for one
        return
    several = [id(item) for item in items if isinstance(item, Image.Image)]
    if len(set(several)) < len(several):
        several = [id(item) for item in items if has_frames(item)]
    if len(set(several)) < len(several):
        raise ValueError(
            "X holds the same PIL image of several frames more than once, and it shows one frame at a time: pass "
            "copies, [frame.copy() for frame in PIL.ImageSequence.Iterator(image)]."
        )


def _from_files(paths: Sequence, on_error: str) -> Images:
    # absolute, since the images may be read again later, from another folder
    places = [None if is_missing(path) else absolute(path) for path in paths]
    name, shape = partial(_file_name, paths), partial(_file_shape, places)
    return Images(len(paths), partial(_decode_file, places), name=name, shape=shape, on_error=on_error)


def _file_name(paths: Sequence, i: int) -> str:
    return f"image {i}" if is_missing(paths[i]) else f"{str(paths[i])!r}"


def _file_shape(places: Sequence, i: int) -> tuple[int, int]:
    return file_shape(places[i])


def _decode_file(places: Sequence, i: int, at_least: int | None = None) -> np.ndarray:
    if places[i] is None:
        raise _missing(None)
    return decode_file(places[i], at_least=at_least)


def _missing(item: Any) -> ImageError:
    return ImageError(f"is missing: got {type(item).__name__} instead of an image.{SKIP_ADVICE}")


def _from_items(items: Any, on_error: str) -> Images:
    return Images(len(items), partial(_decode_of, items), on_error=on_error)


def _is_image(item: Any) -> bool:
    """Whether what comes with an image is another image, and not its label, such as the name of its class."""
    return isinstance(item, (os.PathLike, Image.Image)) or (isinstance(item, str) and has_image_suffix(item))


def _decode_of(items: Any, i: int) -> np.ndarray:
    try:
        item = items[i]
    except OSError as error:  # a data set that reads files; also what Pillow raises for files that are no images
        raise ImageError(f"cannot be read ({type(error).__name__}: {error}).{SKIP_ADVICE}") from error
    if isinstance(item, (tuple, list)) and len(item):
        if any(_is_image(other) for other in item[1:]):
            raise TypeError(
                f"image {i}: an item of X is a {type(item).__name__} of {len(item)} images; expected one image, or a "
                "pair of an image and its label. Pass the images one after another, in one list."
            )
        item = item[0]  # Dataset of (image, label)
    if is_missing(item):
        raise _missing(item)
    try:
        return decode_item(item)
    except TypeError as error:
        raise TypeError(f"image {i}: {error}") from error
