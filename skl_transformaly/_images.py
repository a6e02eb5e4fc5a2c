"""What a user passes as images, made one thing: a lazily decoded sequence of arrays.

Every error about input images is raised here. Nothing in this module knows about models.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import stat
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Number
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps
from sklearn.utils.validation import validate_data

from skl_transformaly._folders import FoundFiles, walk

__all__ = ["ImageError", "Images", "ImageInputMixin", "as_images", "eight_bits", "list_images"]

# Bytes of the digest by which a picture is recognised.
DIGEST_SIZE = 16

# A pixel array is looked through in pieces of this many bytes, so that a memory-mapped array larger
# than memory can be checked.
_CHECK_BYTES = 2**26

# Beyond this many times the full range of their dtype, pixels follow no convention at all: float32 loses the rest of
# the image beside them, or overflows.
_TOO_LARGE = 2**16

# How the error about a broken image ends; whoever skips these leaves it away.
SKIP_ADVICE = " Remove or repair it, or pass on_error='skip'."

_EXPECTED = (
    "Expected images as: an array (n, H, W) or (n, H, W, C) with C = 1, 3 or 4, uint8 0-255 or float "
    "0-1; rows (n, H*W*C) together with image_shape; a torch tensor (n, C, H, W); a sequence of paths, "
    "PIL images or arrays; the path of a folder; or a map-style torch Dataset."
)


class ImageError(ValueError):
    """An image that cannot be read or does not hold what an image should.

    Its message names the image (its path, or its position in the sequence), says what was found, and
    what to do.
    """


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
        return Images(
            len(positions),
            partial(_elsewhere, self._decode, positions),
            stack=None if self.stack is None else self.stack[positions],
            name=partial(_elsewhere, self._name, positions),
            on_error=self.on_error,
        )

    def batches(self, batch_size: int, *, start: int = 0) -> Iterator[tuple[np.ndarray, np.ndarray | list[np.ndarray]]]:
        """Yield ``(positions, pixels)`` from position `start` on, at most `batch_size` images at a time.

        `pixels` is a slice of the stack, or a list of arrays whose sizes may differ. With
        ``on_error="skip"`` unreadable images are in neither, and the end of the first whole pass warns
        of them.
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

    def _digest(self, positions: np.ndarray, pixels: Any) -> None:
        for position, image in zip(positions.tolist(), pixels):
            if position not in self.digests:
                self.digests[position] = _digest(image)

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


def eight_bits(image: np.ndarray) -> np.ndarray:
    """Give an 8-bit image that comes as another dtype as uint8; others as they are, integers as floats.

    The same pixels must give the same score as file, array or tensor, and resizing rounds in 8 bits.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        image = image / 65535
    levels = np.rint(image * 255.0)
    if np.abs(image * 255.0 - levels).max() < 1e-3 and levels.min() >= 0 and levels.max() <= 255:
        return levels.astype(np.uint8)
    return image


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
        - sequence of paths, PIL images, arrays (H, W[, C]) or tensors (C, H, W), of any sizes;
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
        `X` has a wrong shape, masked, NaN, infinite or absurdly large pixels, or is an empty or missing folder.
    """
    if isinstance(X, Images):
        return X
    if isinstance(X, (str, os.PathLike)):
        return _from_files(list_images(X), on_error)
    if _is_torch(X, "Tensor"):
        X = _from_tensor(X)
        if X.ndim == 4:  # torch's (n, C, H, W)
            X = np.moveaxis(X, 1, -1)
        elif X.ndim == 3 and X.shape[0] in (3, 4):
            _warn_one_image(X.shape, X.shape[0], X.shape[1:], "image.unsqueeze(0)")
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
    raise TypeError(f"Cannot read images from {type(X).__name__}. {_EXPECTED}")


def list_images(folder: str | os.PathLike) -> list[Path]:
    """List the image files below `folder`, sorted by path, hidden files left out.

    Files count as images by the suffixes of formats that Pillow can decode, in any case, or, without a suffix, by
    their content; what they really hold is seen when they are decoded. A warning counts the files passed over.

    Raises
    ------
    ValueError
        `folder` does not exist, is a file, cannot be listed, or holds no image.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{str(folder)!r} is one file; expected a folder. For single files pass a list: [path].")
    if not folder.is_dir():
        hint = " For a pattern pass a list: sorted(glob.glob(pattern))." if set("*?[") & set(str(folder)) else ""
        raise ValueError(f"There is no folder {str(folder)!r}; expected a folder of images.{hint}")
    found = FoundFiles()
    walk(folder, found, found.paths.append)
    others = ", ".join(found.reasons())
    if not found.paths:
        raise ValueError(
            f"Found no image below {str(folder)!r}: no file there is one that Pillow can decode (.png, .jpg, .tif, ...)"
            + (f"; passed over {others}." if others else ".")
        )
    if others:
        warnings.warn(f"Passed over files below {str(folder)!r}: {others}.", stacklevel=2)
    return [Path(path) for path in found.paths]


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
        if not X or isinstance(X[0], (str, os.PathLike, Image.Image)):
            return False
        if isinstance(X[0], (tuple, list)):  # numbers, or (image, label)
            return not X[0] or isinstance(X[0][0], Number)
        return isinstance(X[0], Number) or getattr(X[0], "ndim", 2) < 2
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
    return _from_array(rows.reshape(len(rows), *shape))


def _from_array(X: np.ndarray) -> Images:
    if X.ndim not in (3, 4):
        raise ValueError(f"Got an array of shape {X.shape}. {_EXPECTED}")
    if X.ndim == 3:
        X = X[..., np.newaxis]
    X = _without_mask(X)
    _check_layout(X.shape[1:])
    _check_values(X)
    return Images(len(X), partial(np.ndarray.__getitem__, X), stack=_full_range(X))


# What decodes and what names are functions of modules, so that images go through pickle to other processes.


def _elsewhere(of: Callable[[int], Any], positions: np.ndarray, i: int) -> Any:
    return of(int(positions[i]))


def _from_files(paths: Sequence, on_error: str) -> Images:
    return Images(len(paths), partial(_decode_file, paths), name=partial(_file_name, paths), on_error=on_error)


def _file_name(paths: Sequence, i: int) -> str:
    return f"{str(paths[i])!r}"


def _decode_file(paths: Sequence, i: int) -> np.ndarray:
    with _pillow_errors():
        if not stat.S_ISREG(os.stat(paths[i]).st_mode):  # opening a pipe would wait for its writer
            raise ImageError("is not a regular file.")
        with Image.open(paths[i]) as image:
            if image.format != "PNG" or ImageFile.LOAD_TRUNCATED_IMAGES:
                return _from_pil(image)
            # The checksums of a PNG's pixels: Pillow looks at them here alone, and cannot decode after.
            image.verify()
        with Image.open(paths[i]) as image:
            return _from_pil(image)


@contextlib.contextmanager
def _pillow_errors() -> Iterator[None]:
    """What Pillow raises on a broken image, as :class:`ImageError`."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageError("there is no such file.") from error
    except Image.DecompressionBombError as error:
        raise ImageError(f"{error} If the file is trusted, raise PIL.Image.MAX_IMAGE_PIXELS.") from error
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        raise ImageError(f"cannot be decoded as an image ({type(error).__name__}: {error}).{SKIP_ADVICE}") from error


def _from_items(items: Any, on_error: str) -> Images:
    return Images(len(items), partial(_decode_of, items), on_error=on_error)


def _decode_of(items: Any, i: int) -> np.ndarray:
    item = items[i]
    if isinstance(item, (tuple, list)) and len(item):
        item = item[0]  # Dataset of (image, label)
    try:
        return _decode_item(item)
    except TypeError as error:
        raise TypeError(f"image {i}: {error}") from error


def _decode_item(item) -> np.ndarray:
    """One image of any kind as an array (H, W, C)."""
    if isinstance(item, (str, os.PathLike)):
        return _from_files([item], "raise")[0]
    if isinstance(item, Image.Image):
        with _pillow_errors():  # the file behind it may not have been read yet
            return _from_pil(item)
    if _is_torch(item, "Tensor"):
        item = _from_tensor(item)
        if item.ndim == 3:  # torch's (C, H, W)
            item = np.moveaxis(item, 0, -1)
    elif not isinstance(item, np.ndarray) and hasattr(item, "__array__"):
        item = np.asarray(item)  # an array by protocol alone
    if not isinstance(item, np.ndarray):
        raise TypeError(f"an item of X is a {type(item).__name__}, not an image. {_EXPECTED}")
    item = _without_mask(item)
    if item.ndim == 2:
        item = item[..., np.newaxis]
    if item.ndim != 3:
        raise ImageError(f"has shape {item.shape}; expected (H, W) or (H, W, C).")
    _check_layout(item.shape)
    _check_values(item)
    return _full_range(item)


def _check_layout(shape: tuple[int, ...]) -> None:
    height, width, channels = shape
    if channels not in (1, 3, 4):
        hint = ""
        if height in (1, 3, 4):
            hint = " Channels come last here; channels-first arrays: np.moveaxis(X, -3, -1)."
        raise ImageError(
            f"an image of shape {shape} has {channels} channels; expected 1 (grey), 3 (RGB) or 4 (RGBA).{hint}"
        )
    if 0 in (height, width):
        raise ImageError(f"an image of shape {shape} has no pixels.")


def _check_values(X: np.ndarray) -> None:
    """Refuse what is not numbers; warn where the range is not that of the dtype's convention."""
    if X.dtype.kind not in "buif":
        raise ImageError(f"pixels of dtype {X.dtype} are not real numbers; expected uint8, or float 0-1.")
    if X.dtype in (np.uint8, np.bool_):
        return
    low, high = np.inf, -np.inf
    step = max(1, _CHECK_BYTES // max(1, X[:1].nbytes))
    for start in range(0, len(X), step):
        piece = X[start : start + step]
        # NaN comes through min and max, so two reductions find all that is not finite
        low, high = min(low, piece.min()), max(high, piece.max())
        if not (np.isfinite(piece.min()) and np.isfinite(piece.max())):
            raise ImageError("pixels contain NaN or infinity; replace them (numpy.nan_to_num) or drop the image.")
    full = 1 if X.dtype.kind == "f" else 255
    if X.dtype.type != np.uint16 and max(-float(low), float(high)) > _TOO_LARGE * full:
        raise ImageError(
            f"{X.dtype} pixels span {float(low):.3g} to {float(high):.3g}, too large for pixels: expected 0-{full}. "
            "Rescale them."
        )
    if X.dtype.type == np.uint16:
        if high <= 255:
            _warn_range(f"uint16 pixels are expected in 0-65535 but reach only {high}", "cast 8-bit values to uint8")
    elif X.dtype.kind in "ui":
        if low < 0 or high > 255:
            _warn_range(f"{X.dtype} pixels are expected in 0-255 but span {low} to {high}", "rescale them")
    elif low < 0 or high > 1:
        _warn_range(
            f"float pixels are expected in 0-1 but span {low:.3g} to {high:.3g}",
            "divide by 255, or pass uint8, if they are 0-255",
        )


def _warn_range(found: str, advice: str) -> None:
    warnings.warn(f"{found}: {advice}. They are used as they are.", UserWarning, stacklevel=2)


def _full_range(X: np.ndarray) -> np.ndarray:
    """Bring dtypes whose convention is not their full range, or that torch lacks, to others; uint8 stays as it is."""
    if X.dtype.kind == "b":
        return X.astype(np.float32)
    if X.dtype == np.longdouble or not X.dtype.isnative:
        X = X.astype(np.float64 if X.dtype == np.longdouble else X.dtype.newbyteorder("="))
    if X.dtype.kind in "ui" and X.dtype not in (np.uint8, np.uint16):
        if X.size and X.min() >= 0 and X.max() <= 255:
            return X.astype(np.uint8)
        return X.astype(np.float64) / 255
    return X


def _from_pil(image: Image.Image) -> np.ndarray:
    """First frame, upright, as (H, W, C); palettes and exotic colour spaces become RGB or RGBA."""
    _check_layout((image.height, image.width, 3))
    image.load()
    try:
        image = ImageOps.exif_transpose(image)
    except Exception as error:  # of any kind, as the parser stumbles on it
        warnings.warn(
            f"The EXIF data of an image cannot be read ({type(error).__name__}: {error}): it is taken as upright.",
            UserWarning,
            stacklevel=2,
        )
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise ImageError(
                f"32-bit integer pixels span {array.min()} to {array.max()}; expected 0-65535. Rescale it."
            )
        array = array.astype(np.uint16)
        _check_values(array)
        hole = image.info.get("transparency")
        if isinstance(hole, int):  # one value stands for nothing
            array = np.stack([array] * 3 + [np.where(array == hole, 0, 65535).astype(np.uint16)], axis=-1)
    elif mode == "F":
        array = np.asarray(image)
        _check_values(array)
    elif image.has_transparency_data:
        array = np.asarray((image.convert("LA") if mode == "La" else image).convert("RGBA"))
    elif mode in ("1", "L"):
        array = np.asarray(image.convert("L"))
    else:
        array = np.asarray(image.convert("RGB"))
    return array[..., np.newaxis] if array.ndim == 2 else array
