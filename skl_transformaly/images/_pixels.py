"""One image as an array: from a file, its content or a PIL image."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from PIL import Image, ImageFile

from skl_transformaly.images._depth import decode_deep, deep_tiles, exif_orientation, upright
from skl_transformaly.images._formats import expand_user, missing_advice, register_formats, what_else
from skl_transformaly.images._values import SKIP_ADVICE, ImageError, check_layout, checked

__all__ = [
    "as_rgb",
    "decode_bytes",
    "decode_file",
    "decode_pil",
    "eight_bits",
    "file_shape",
    "least_side",
]

# A JPEG may be decoded at a part of its size that has at least this many times the pixels a side that it is resized to,
# and at least so many, since smaller images take little time anyway. benchmarks/speed/decoding.py measures the effect.
_TIMES = 3
_LEAST = 672

# Tags of the width and the height in the header of a TIFF.
_TIFF_SIDES = (256, 257)


def least_side(size: Sequence[int]) -> int:
    """Return the least side, in pixels, that an image must keep if it is resized to `size` (height, width) later."""
    return max(_LEAST, _TIMES * max(size))


def decode_file(path: str | os.PathLike, *, at_least: int | None = None) -> np.ndarray:
    """Decode an image file as an array (H, W, C); ImageError if it does not exist or cannot be decoded.

    With `at_least`, a JPEG may be decoded at a half, a quarter or an eighth of its size, several times as fast, but
    with no side shorter than this many pixels.
    """
    path = expand_user(path)
    register_formats()
    with _pillow_errors(path):
        _check_regular(path)
        return _decode(lambda: _drafted(Image.open(path), at_least), lambda: what_else(path))


def _drafted(image: Image.Image, at_least: int | None) -> Image.Image:
    if at_least is not None and image.format in ("JPEG", "MPO"):
        image.draft(None, (at_least, at_least))
    return image


def file_shape(path: str | os.PathLike) -> tuple[int, int]:
    """Return height and width in pixels of the upright image in a file; only its header is read."""
    path = expand_user(path)
    register_formats()
    with _pillow_errors(path):
        _check_regular(path)
        with Image.open(path) as image:
            height, width = image.height, image.width
            if image.format == "TIFF":  # which some versions of Pillow turn when they open it
                width, height = (image.tag_v2[tag] for tag in _TIFF_SIDES)
            return (width, height) if 5 <= exif_orientation(image) <= 8 else (height, width)


def _check_regular(path: str | os.PathLike) -> None:
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
        raise ImageError("is not a regular file.")


def decode_bytes(
    content: bytes,
    *,
    at_least: int | None = None,
    formats: Sequence[str] | None = None,
    max_pixels: int | None = None,
) -> np.ndarray:
    """Decode the content of an image file to what `decode_file` decodes the file to.

    `formats` are Pillow's names of those to try; None is all that it knows. An image that declares more than
    `max_pixels` is refused before memory is taken for them.
    """

    def opened() -> Image.Image:
        image = Image.open(io.BytesIO(content), formats=None if formats is None else list(formats))
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise ImageError(f"has {image.width} x {image.height} pixels, more than the limit of {max_pixels}.")
        return _drafted(image, at_least)

    register_formats()
    with _pillow_errors():
        try:
            return _decode(opened, lambda: what_else("", content))
        except Image.UnidentifiedImageError:
            known = "a format that Pillow can decode" if formats is None else "a format that is accepted here"
            raise ImageError(what_else("", content) or f"is not an image of {known}.") from None


def _decode(opened: Callable[[], Image.Image], other: Callable[[], str | None]) -> np.ndarray:
    with opened() as image:
        advice = other() if 0 in image.size else None
        if advice is not None:  # a format that Pillow only identifies
            raise ImageError(advice)
        if image.format != "PNG" or ImageFile.LOAD_TRUNCATED_IMAGES:
            return _from_pil(image)
        # only this checks the checksums of a PNG's pixels, and the image cannot be decoded after it
        image.verify()
    with opened() as image:
        return _from_pil(image)


def eight_bits(image: np.ndarray) -> np.ndarray:
    """Return an image of 8-bit values as uint8; other integers as floats, and other floats unchanged.

    The same pixels must have the same score in a file, an array or a tensor, and resizing rounds in 8 bits.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        image = image / 65535
    levels = np.rint(image * 255.0)
    if np.abs(image * 255.0 - levels).max() < 1e-3 and levels.min() >= 0 and levels.max() <= 255:
        return levels.astype(np.uint8)
    return image


def as_rgb(image: np.ndarray) -> np.ndarray:
    """Return an image (H, W, C) as people should see it: uint8 RGB, transparency laid on white.

    Floats beyond 0-1 are scaled by their own range.
    """
    if image.dtype == np.uint16:
        image = image / 65535
    if image.dtype != np.uint8:
        low, high = min(0.0, float(image.min())), max(1.0, float(image.max()))
        image = np.rint((image - low) / (high - low) * 255).astype(np.uint8)
    if image.shape[2] == 4:
        laid = Image.fromarray(image)
        return np.asarray(Image.alpha_composite(Image.new("RGBA", laid.size, "white"), laid).convert("RGB"))
    return np.broadcast_to(image, (*image.shape[:2], 3))


def decode_pil(image: Image.Image) -> np.ndarray:
    """Return a PIL image, of several frames the current one, upright, as (H, W, C); other colour spaces as RGB(A)."""
    if _is_closed(image):
        raise ImageError(
            "the PIL image was closed before its pixels were read: call image.load() before it is closed, or pass its "
            "path."
        )
    with _pillow_errors():  # the file behind it may not have been read yet
        return _from_pil(image)


def _is_closed(image: Image.Image) -> bool:
    if getattr(image, "tile", None):  # pixels that are still to be read from the file
        file = getattr(image, "fp", None)
        return file is None or getattr(file, "closed", False)
    try:
        return type(image.im).__name__ == "DeferredError"
    except AssertionError:  # plugins without tiles, such as those of WebP and HEIC, have no pixels before they load
        return False
    except ValueError:  # what the pixels of a closed image raise in later versions
        return True


@contextlib.contextmanager
def _pillow_errors(path: str | os.PathLike | None = None) -> Iterator[None]:
    """Turn the errors that Pillow raises on broken images into :class:`ImageError`."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageError(f"the file does not exist.{'' if path is None else missing_advice(path)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"the image is larger than Pillow's limit PIL.Image.MAX_IMAGE_PIXELS ({error}): make it smaller "
            "or, if the file is trusted, raise that limit in Python."
        ) from error
    except Exception as error:  # Pillow's plugins raise nearly anything on broken files
        limit = re.search("MAX_TEXT_CHUNK|MAX_TEXT_MEMORY", str(error))
        if limit:
            raise ImageError(
                f"a text in the file is larger than Pillow's limit PIL.PngImagePlugin.{limit[0]}; if the file is "
                f"trusted, raise that limit, such as PIL.PngImagePlugin.{limit[0]} *= 100."
            ) from error
        other = None if path is None else what_else(path)
        raise ImageError(
            other or f"cannot be decoded as an image ({type(error).__name__}: {error}).{SKIP_ADVICE}"
        ) from error


def _from_pil(image: Image.Image) -> np.ndarray:
    check_layout((image.height, image.width, 3))
    deep = deep_tiles(image)
    if deep is not None:
        return decode_deep(image, *deep)
    image.load()
    image = upright(image)
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise ImageError(
                f"32-bit integer pixels span {array.min()} to {array.max()}; expected 0-65535. Rescale it."
            )
        array = array.astype(np.uint16)
        hole = image.info.get("transparency")
        if isinstance(hole, int):  # the value that is transparent
            array = np.stack([array] * 3 + [np.where(array == hole, 0, 65535).astype(np.uint16)], axis=-1)
    elif mode == "F":
        array = checked(np.asarray(image))
    elif image.has_transparency_data:
        array = np.asarray((image.convert("LA") if mode == "La" else image).convert("RGBA"))
    elif mode in ("1", "L"):
        array = np.asarray(image.convert("L"))
    else:
        array = np.asarray(image.convert("RGB"))
    return array[..., np.newaxis] if array.ndim == 2 else array
