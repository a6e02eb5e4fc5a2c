"""What a user passes as images, made one thing: a lazily decoded sequence of arrays.

Every error about input images is raised here. Nothing in this module knows about models.
"""

from __future__ import annotations

import hashlib
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from sklearn.utils.validation import validate_data

from skl_transformaly.images._columns import is_missing, settled
from skl_transformaly.images._folders import FoundFiles, has_image_suffix, walk
from skl_transformaly.images._formats import expand_user, url_advice, what_else
from skl_transformaly.images._pixels import (
    SKIP_ADVICE,
    ImageError,
    check_layout,
    checked,
    decode_file,
    decode_pil,
    eight_bits,
    faint_text,
    faintness,
)

__all__ = ["ImageError", "ImageInputMixin", "Images", "as_images", "eight_bits", "list_images"]

# Bytes of the digest by which a picture is recognised.
DIGEST_SIZE = 16

_EXPECTED = (
    "Expected images as: an array (n, H, W) or (n, H, W, C) with C = 1, 3 or 4, uint8 0-255 or float "
    "0-1; rows (n, H*W*C) together with image_shape; a torch tensor (n, C, H, W); a sequence of paths, "
    "PIL images or arrays; the path of a folder; or a map-style torch Dataset."
)


class Images(Sequence):
    """Images of any origin as a sequence of ``(H, W, C)`` arrays, decoded when they are asked for.

    Parameters
    ----------
    length : int
        Number of images.
    decode : callable
        ``decode(i)`` gives image `i` as an array (H, W, C), C one of 1, 3, 4: uint8 or uint16 for
        integers over their full range, else floating point in 0-1.
    stack : ndarray of shape (n, H, W, C), default=None
        The pixels themselves, where the images are one array: batches are then slices of it.
    name : callable, default=None
        ``name(i)`` says which image `i` is, for messages.
    on_error : {"raise", "skip"}, default="raise"
        What to do with an image that cannot be decoded: raise :class:`ImageError`, or leave it out of
        the batches, warn, and remember it in `unreadable`.

    Attributes
    ----------
    unreadable : dict of int to str
        Position and message of each image that was left out so far.
    digests : dict of int to bytes
        Position and digest of the pixels of each image that was in a batch so far: the same picture has the same one in
        any container.
    """

    def __init__(
        self,
        length: int,
        decode: Callable[[int], np.ndarray],
        *,
        stack: np.ndarray | None = None,
        name: Callable[[int], str] | None = None,
        on_error: str = "raise",
    ):
        self._length = length
        self._decode = decode
        self._name = name or "image {}".format
        self.stack = stack
        self.on_error = on_error
        self.unreadable: dict[int, str] = {}
        self.digests: dict[int, bytes] = {}
        self._warned = 0
        # kinds of faint images by position, and which kinds were warned of, here or where these images came from
        self._faint: dict[int, tuple[str, float]] = {}
        self._told: set[str] = set()

    @property
    def image_shape(self) -> tuple[int, ...] | None:
        """(H, W, C) where all images are one array, else None."""
        return None if self.stack is None else self.stack.shape[1:]

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, i):
        if isinstance(i, slice):
            return [self[k] for k in range(*i.indices(len(self)))]
        if not -len(self) <= i < len(self):
            raise IndexError(f"image {i} of {len(self)}")
        i %= len(self)
        if self.stack is not None:
            return self.stack[i]
        try:
            return self._decode(i)
        except ImageError as error:
            raise ImageError(f"{self._name(i)}: {error}") from error
        except MemoryError as error:
            raise MemoryError(f"{self._name(i)}: there is not enough memory to decode it.") from error

    def take(self, positions: Sequence[int] | np.ndarray) -> Images:
        """Give the images at `positions` as images of their own, still decoded only when they are asked for."""
        positions = np.asarray(positions, dtype=np.intp)
        if positions.ndim != 1 or (positions < -len(self)).any() or (positions >= len(self)).any():
            raise IndexError(f"positions must be a sequence of places among {len(self)} images.")
        positions = positions % len(self) if len(self) else positions
        taken = Images(
            len(positions),
            partial(_elsewhere, self._decode, positions),
            stack=None if self.stack is None else self.stack[positions],
            name=partial(_elsewhere, self._name, positions),
            on_error=self.on_error,
        )
        taken._told = self._told
        return taken

    def batches(self, batch_size: int, *, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray | list[np.ndarray]]]:
        """Yield ``(positions, pixels)`` from position `start` on, at most `batch_size` images at a time.

        `pixels` is a slice of the stack, or a list of arrays whose sizes may differ. With
        ``on_error="skip"`` unreadable images are in neither, and the end of the first whole pass warns
        of them, and of images that use the lowest part of their range alone.
        """
        for first in range(start, len(self), batch_size):
            positions = np.arange(first, min(first + batch_size, len(self)))
            if self.stack is not None:
                self._digest(positions, self.stack[first : first + batch_size])
                yield positions, self.stack[first : first + batch_size]
                continue
            kept, pixels = [], []
            for i in positions:
                if int(i) in self.unreadable:
                    continue
                try:
                    pixels.append(self[int(i)])
                    kept.append(i)
                except ImageError as error:
                    if self.on_error != "skip":
                        raise
                    self.unreadable[int(i)] = str(error)
            if kept:
                self._digest(np.array(kept), pixels)
                yield np.array(kept), pixels
        if len(self.unreadable) > self._warned:
            messages = list(self.unreadable.values())[self._warned :]
            self._warned = len(self.unreadable)
            shown = [message.removesuffix(SKIP_ADVICE) for message in messages[:3]] + ["..."] * (len(messages) > 3)
            warnings.warn(
                f"{len(messages)} of {len(self)} images could not be read: they are left out, and scored NaN. "
                + "; ".join(shown),
                UserWarning,
                stacklevel=3,
            )
        self._warn_of_faint()

    def _digest(self, positions: np.ndarray, pixels: Any) -> None:
        for position, image in zip(positions.tolist(), pixels):
            if position not in self.digests:
                self.digests[position] = _digest(image)
                faint = faintness(image)
                if faint is not None:
                    self._faint[position] = faint

    def _warn_of_faint(self) -> None:
        for kind in sorted({kind for kind, _ in self._faint.values()} - self._told):
            self._told.add(kind)
            largest = [value for found, value in self._faint.values() if found == kind]
            warnings.warn(faint_text(kind, len(largest), len(self), max(largest)), UserWarning, stacklevel=4)

    def groups(self) -> np.ndarray:
        """Number images by their pixels: duplicates have the same number, unreadable images one each.

        Returns
        -------
        groups : ndarray of shape (n,), int
        """
        numbers: dict[Any, int] = {}
        return np.array([numbers.setdefault(self.digests.get(i, i), len(numbers)) for i in range(len(self))])


def _digest(image: np.ndarray) -> bytes:
    image = eight_bits(image)
    digest = hashlib.blake2b(f"{image.shape} {image.dtype.str}".encode(), digest_size=DIGEST_SIZE)
    digest.update(np.ascontiguousarray(image).reshape(-1).view(np.uint8).data)
    return digest.digest()


class ImageInputMixin:
    """For estimators whose ``X`` is images: validates ``X`` and keeps scikit-learn's ``n_features_in_``."""

    image_shape_: tuple[int, ...] | None

    def _check_images(
        self, X, *, reset: bool, image_shape: tuple[int, ...] | None = None, on_error: str = "raise"
    ) -> Images:
        """Give `X` as :class:`Images`; 2-D rows pass scikit-learn's own validation first.

        With ``reset=False`` a stack of images must have the shape that `fit` saw, where `fit` saw a
        stack: a changed array shape is far more often a slip than a wish.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}.")
        X = settled(X)
        if not hasattr(X, "shape") and not isinstance(X, Image.Image) and hasattr(X, "__array__"):
            X = np.asarray(X)  # an array by protocol alone
        if isinstance(X, Images):  # checked by the estimator that holds this one
            images = X
        elif _is_table(X):
            X = _without_mask(X)
            if not reset and image_shape is None and self.image_shape_ is None and np.ndim(X) == 2:
                raise ValueError(
                    f"Got a 2-D array, but {type(self).__name__} was fitted on images that are not rows. For one image "
                    "pass image[np.newaxis]; for images as rows, X.reshape(n, H, W[, C])."
                )
            fitted = None if reset or image_shape is not None or np.ndim(X) != 2 else self.image_shape_
            if fitted is not None and np.shape(X) == fitted[:2] and np.shape(X)[1] != np.prod(fitted):
                raise ValueError(
                    f"Got one image of shape {np.shape(X)}, where {type(self).__name__} takes many: pass "
                    "image[np.newaxis]."
                )
            rows = validate_data(self, X, reset=reset, dtype="numeric", ensure_min_samples=2 if reset else 1)
            images = _from_rows(rows, image_shape, warn=reset)
        else:
            images = as_images(X, on_error=on_error)
            if reset:
                _forget_features(self)
        if len(images) == 0:
            raise ValueError(
                f"Found array with 0 sample(s), while a minimum of 1 is required: no image in X. {_EXPECTED}"
            )
        shape = images.image_shape
        if reset:
            if len(images) < 2:
                raise ValueError("fit needs at least 2 images, got n_samples = 1: give more normal images.")
            self.image_shape_ = shape
            if shape is not None:
                self.n_features_in_ = int(np.prod(shape))
        elif shape is not None and self.image_shape_ is not None and shape != self.image_shape_:
            rows = shape[0] == shape[2] == 1 and shape[1] == self.n_features_in_
            raise ValueError(
                f"X holds images of shape {shape}, but {type(self).__name__} was fitted on images of "
                f"shape {self.image_shape_} (H, W, C). "
                + (
                    f"If they are rows of values, give the shape: X.reshape(-1, *{self.image_shape_})."
                    if rows
                    else "Resize them, or pass a list of arrays where sizes are meant to differ."
                )
            )
        return images

    def fit_transform(self, X, y=None, **fit_params):
        """Fit to images, and give their features.

        Parameters
        ----------
        X : images
            In any form that `fit` takes.
        y : ignored
        **fit_params
            Passed on to `fit`.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_features)
        """
        # an iterator would be at its end after `fit`
        return super().fit_transform(settled(X), y, **fit_params)  # type: ignore[misc]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        return tags


def as_images(X: Any, *, on_error: str = "raise") -> Images:
    """Give whatever a user may pass as images as :class:`Images`; 2-D rows excepted.

    Parameters
    ----------
    X : array, tensor, sequence, path or Dataset
        - array (n, H, W) or (n, H, W, C): uint8 0-255, uint16 0-65535, bool, other integers 0-255, or
          float 0-1; C = 1 grey, 3 RGB, 4 RGBA;
        - torch tensor (n, C, H, W), with the same value ranges;
        - sequence or iterator of paths, PIL images, arrays (H, W[, C]) or tensors (C, H, W), of any sizes; in paths ~
          is the home folder;
        - data frame of one column of such, or data set of Hugging Face with one column of images;
        - str or path of a folder: the images below it, sorted by path;
        - map-style torch Dataset whose items are images, or tuples that begin with one.
    on_error : {"raise", "skip"}, default="raise"
        See :class:`Images`.

    Returns
    -------
    Images

    Raises
    ------
    TypeError
        `X` is none of these.
    ValueError
        `X` has a wrong shape, pixels that are masked, not finite or out of the range of their dtype, several columns,
        or is an empty or missing folder.
    """
    X = settled(X)
    if isinstance(X, Images):
        return X
    if isinstance(X, (str, os.PathLike)):
        return _from_files(list_images(X), on_error)
    if _is_torch(X, "Tensor"):
        X = _from_tensor(X)
        if X.ndim == 4:  # torch's (n, C, H, W)
            _refuse_channels_last(X.shape[1:], "permute(0, 3, 1, 2)")
            X = np.moveaxis(X, 1, -1)
        elif X.ndim == 3 and X.shape[0] in (3, 4):
            _warn_one_image(X.shape, X.shape[0], X.shape[1:], "image.unsqueeze(0)")
        elif X.ndim == 3 and X.shape[2] in (3, 4) and min(X.shape[:2]) > 4:
            _warn_one_image(X.shape, X.shape[0], X.shape[1:], "image.permute(2, 0, 1).unsqueeze(0)")
    elif isinstance(X, np.ndarray) and X.ndim == 3 and X.shape[2] in (3, 4) and min(X.shape[:2]) > 4:
        _warn_one_image(X.shape, X.shape[0], X.shape[1:], "image[np.newaxis]")
    if isinstance(X, np.ndarray) and X.dtype.kind not in "OUST":
        return _from_array(X)
    if _is_torch(X, "utils.data.Dataset"):
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
                raise ValueError(f"An array of paths or images must be 1-D, got shape {X.shape}. {_EXPECTED}")
            X = X.tolist()
        if all(isinstance(item, (str, os.PathLike)) for item in X):
            return _from_files(X, on_error)
        return _from_items(X, on_error)
    raise TypeError(f"Cannot read images from {type(X).__name__}. {_advice(X)}{_EXPECTED}")


def list_images(folder: str | os.PathLike) -> list[Path]:
    """List the image files below `folder`, sorted by path, hidden files left out.

    Files count as images by the suffixes of formats that Pillow can decode, in any case, or, without a suffix, by
    their content; what they really hold is seen when they are decoded. A warning counts the files passed over.

    Raises
    ------
    ValueError
        `folder` does not exist, is a file, cannot be listed, or holds no image.
    """
    given, folder = str(folder), Path(expand_user(folder))
    if folder.is_file():
        other = what_else(folder)
        if other is not None and not has_image_suffix(given):
            raise ValueError(f"{str(folder)!r} {other}")
        raise ValueError(f"{str(folder)!r} is one file; expected a folder. For single files pass a list: [path].")
    if not folder.is_dir():
        hint = " For a pattern pass a list: sorted(glob.glob(pattern))." if set("*?[") & set(str(folder)) else ""
        hint = url_advice(given) or hint
        raise ValueError(f"The folder {str(folder)!r} does not exist; expected a folder of images.{hint}")
    found = FoundFiles()
    walk(folder, found, found.paths.append)
    others = ", ".join(found.reasons())
    if not found.paths:
        raise ValueError(
            f"Found no image below {str(folder)!r}: no file there is one that Pillow can decode (.png, .jpg, .tif, ...)"
            + (f"; passed over {others}." if others else ".")
            + "".join(f" A {suffix} file {text}" for suffix, text in _known_others(found))
        )
    if others:
        warnings.warn(f"Passed over files below {str(folder)!r}: {others}.", stacklevel=2)
    return [Path(path) for path in found.paths]


def _known_others(found: FoundFiles) -> list[tuple[str, str]]:
    """Suffixes of files that were passed over, and what such files are."""
    advice = [(suffix, what_else(f"file{suffix}")) for suffix in found.others]
    return [(suffix, text) for suffix, text in advice if text is not None][:2]


def _advice(item: Any) -> str:
    """What to do with an object of a kind that is often passed by mistake; "" of others."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return "Pass the content of an image file as PIL.Image.open(io.BytesIO(content)), a path as str. "
    if isinstance(item, dict):
        keys = ", ".join(repr(key) for key in list(item)[:5])
        return f"It has the keys {keys}: pass the images alone, such as [item[key] for item in X]. " if item else ""
    if hasattr(item, "read"):
        return "Pass an open file as PIL.Image.open(file). "
    if _is_torch(item, "utils.data.DataLoader"):
        return "Pass the Dataset behind it, loader.dataset. "
    return ""


def _is_table(X) -> bool:
    """Whether `X` is rows of numbers (or should be refused in scikit-learn's own words)."""
    if isinstance(X, (str, os.PathLike, Images, Image.Image)) or _is_torch(X, "utils.data.Dataset"):
        return False
    if isinstance(X, np.ndarray) or _is_torch(X, "Tensor"):
        # 1-D objects or strings may be images or paths; 1-D numbers are scikit-learn's to refuse
        return X.ndim == 2 or (X.ndim < 2 and (_is_torch(X, "Tensor") or X.dtype.kind not in "OUST"))
    if hasattr(X, "shape"):  # data frames, series, sparse matrices
        return len(X.shape) == 2
    if isinstance(X, (list, tuple)):
        # a missing path at the beginning is a NaN, too, but says nothing
        first = next((item for item in X if not is_missing(item)), X[0] if X else None)
        if first is None or isinstance(first, (str, os.PathLike, Image.Image, memoryview)):
            return False
        if isinstance(first, (tuple, list)):  # numbers, or (image, label)
            return not first or isinstance(first[0], Number)
        return isinstance(first, Number) or getattr(first, "ndim", 2) < 2
    return False


def _is_torch(X, name: str) -> bool:
    """isinstance(X, torch.<name>), without importing torch where nobody has."""
    kind: Any = sys.modules.get("torch")
    for part in name.split("."):
        kind = getattr(kind, part, None)
    return kind is not None and isinstance(X, kind)


def _from_tensor(tensor) -> np.ndarray:
    """A torch tensor's values, in a dtype that numpy has."""
    dense = tensor.detach()
    try:
        if dense.is_floating_point() and dense.dtype.itemsize < 4 and str(dense.dtype) != "torch.float16":
            dense = dense.float()  # bfloat16 and float8
        return dense.cpu().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"A tensor of layout {tensor.layout} and dtype {tensor.dtype} on device {tensor.device} cannot be read "
            f"({error}). Expected a dense tensor of uint8 0-255, or float 0-1."
        ) from error


def _without_mask(X):
    """`X`, or the data of a masked array that hides none of its values."""
    if not isinstance(X, np.ma.MaskedArray):
        return X
    if np.ma.is_masked(X):
        raise ImageError("holds pixels hidden by a mask; give them a value (X.filled(value)), or drop the image.")
    return X.data


def _refuse_channels_last(shape: tuple[int, ...], advice: str) -> None:
    if shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4):
        raise ImageError(
            f"a tensor of an image has shape {shape}, with channels last; torch's order is (C, H, W): tensor.{advice}."
        )


def _warn_one_image(shape: tuple[int, ...], count: int, size: tuple[int, ...], advice: str) -> None:
    warnings.warn(
        f"X of shape {shape} is taken as {count} grey images of {size[0]} x {size[1]} pixels. If it is one image in "
        f"colour, pass {advice}.",
        UserWarning,
        stacklevel=4,
    )


def _forget_features(estimator) -> None:
    # a fit on a folder after a fit on an array must not keep the array's features
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(estimator, name):
            delattr(estimator, name)


def _from_rows(rows: np.ndarray, image_shape: tuple[int, ...] | None, *, warn: bool) -> Images:
    if image_shape is None:
        shape: tuple[int, ...] = (1, rows.shape[1], 1)
        if warn:
            warnings.warn(
                f"X is rows of {rows.shape[1]} values and image_shape is None: each row is taken as a grey "
                f"image of 1 x {rows.shape[1]} pixels. Pass image_shape=(H, W) or (H, W, C), or X of shape "
                "(n, H, W[, C]).",
                UserWarning,
                stacklevel=4,
            )
    else:
        shape = tuple(image_shape)
        if len(shape) not in (2, 3) or np.prod(shape) != rows.shape[1]:
            raise ValueError(
                f"image_shape={image_shape!r} must be (H, W) or (H, W, C) with a product of "
                f"{rows.shape[1]}, the number of values in a row of X."
            )
    # rows without a shape may be any numbers, as those of scikit-learn's own checks
    return _from_array(rows.reshape(len(rows), *shape), lenient=image_shape is None)


def _from_array(X: np.ndarray, *, lenient: bool = False) -> Images:
    if X.ndim not in (3, 4):
        raise ValueError(f"Got an array of shape {X.shape}. {_EXPECTED}")
    if X.ndim == 3:
        X = X[..., np.newaxis]
    X = _without_mask(X)
    check_layout(X.shape[1:])
    X = checked(X, lenient=lenient)
    return Images(len(X), partial(np.ndarray.__getitem__, X), stack=X)


# What decodes and what names are functions of modules, so that images go through pickle to other processes.


def _elsewhere(of: Callable[[int], Any], positions: np.ndarray, i: int) -> Any:
    return of(int(positions[i]))


def _from_files(paths: Sequence, on_error: str) -> Images:
    return Images(len(paths), partial(_decode_file, paths), name=partial(_file_name, paths), on_error=on_error)


def _file_name(paths: Sequence, i: int) -> str:
    return f"{str(paths[i])!r}"


def _decode_file(paths: Sequence, i: int) -> np.ndarray:
    return decode_file(paths[i])


def _from_items(items: Any, on_error: str) -> Images:
    return Images(len(items), partial(_decode_of, items), on_error=on_error)


def _decode_of(items: Any, i: int) -> np.ndarray:
    item = items[i]
    if isinstance(item, (tuple, list)) and len(item):
        item = item[0]  # Dataset of (image, label)
    if is_missing(item):
        raise ImageError(f"is missing: got {type(item).__name__} instead of an image.{SKIP_ADVICE}")
    try:
        return _decode_item(item)
    except TypeError as error:
        raise TypeError(f"image {i}: {error}") from error


def _decode_item(item) -> np.ndarray:
    """One image of any kind as an array (H, W, C)."""
    if isinstance(item, (str, os.PathLike)):
        return _from_files([item], "raise")[0]
    if isinstance(item, Image.Image):
        return decode_pil(item)
    if _is_torch(item, "Tensor"):
        item = _from_tensor(item)
        if item.ndim == 3:  # torch's (C, H, W)
            _refuse_channels_last(item.shape, "permute(2, 0, 1)")
            item = np.moveaxis(item, 0, -1)
    elif not isinstance(item, np.ndarray) and hasattr(item, "__array__"):
        item = np.asarray(item)  # an array by protocol alone
    if not isinstance(item, np.ndarray):
        raise TypeError(f"an item of X is a {type(item).__name__}, not an image. {_advice(item)}{_EXPECTED}")
    item = _without_mask(item)
    if item.ndim == 2:
        item = item[..., np.newaxis]
    if item.ndim != 3:
        raise ImageError(f"has shape {item.shape}; expected (H, W) or (H, W, C).")
    check_layout(item.shape)
    return checked(item)
