"""The pixels of one image: decoded to their full depth, checked, and in one of few dtypes."""

from __future__ import annotations

import contextlib
import io
import os
import re
import stat
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
from PIL import Image, ImageFile, ImageOps

from skl_transformaly.images._formats import expand_user, url_advice, what_else

__all__ = [
    "SKIP_ADVICE",
    "ImageError",
    "check_layout",
    "checked",
    "decode_bytes",
    "decode_file",
    "decode_pil",
    "eight_bits",
    "faint_text",
    "faintness",
]

# How the error about a broken image ends; whoever skips these leaves it away.
SKIP_ADVICE = " Remove or repair it, or pass on_error='skip'."

# A pixel array is looked through in pieces of this many bytes, so that a memory-mapped array larger
# than memory can be checked.
_CHECK_BYTES = 2**26

# Beyond this many times the full range of their dtype, pixels follow no convention at all: float32 loses the rest of
# the image beside them, or overflows.
_TOO_LARGE = 2**16

# How far floats may lie outside 0-1 by rounding; they are clipped.
_ROUNDING = 2e-3

# Farther outside 0-1 than this, floats are not the overshoot of a cubic or Lanczos resampling.
_OVERSHOOT = 0.5

# Normalised pixels, (X - mean) / std, hardly reach this; values of 0-255 do.
_NORMALISED = 16

# Pixels of fewer than 16 bits, as cameras and scanners give them, come in arrays and files of 16 bits.
_DEPTHS = (8, 10, 12, 14)

# Up to here pixels are most likely on another scale than that of their dtype.
_FAINT = {"uint16": 2 ** _DEPTHS[-1] - 1, "uint8": 1, "float": 1.001 / 255}


class ImageError(ValueError):
    """An image that cannot be read or does not hold what an image should.

    Its message names the image (its path, or its position in the sequence), says what was found, and
    what to do.
    """


# Values


def check_layout(shape: tuple[int, ...], *, advice: str = "") -> None:
    """Refuse what is not (H, W, C) with 1, 3 or 4 channels; `advice` is for whoever has channels elsewhere."""
    height, width, channels = shape
    if channels not in (1, 3, 4):
        hint = ""
        if height in (1, 3, 4):
            hint = " Channels come last here; channels-first arrays: np.moveaxis(X, -3, -1)."
        raise ImageError(
            f"an image of shape {shape} has {channels} channels; expected 1 (grey), 3 (RGB) or 4 (RGBA)."
            f"{advice or hint}"
        )
    if 0 in (height, width):
        raise ImageError(f"an image of shape {shape} has no pixels.")


def checked(X: np.ndarray, *, lenient: bool = False) -> np.ndarray:
    """`X` as uint8, uint16 or floats in 0-1, once its values are found to be within the range of their dtype.

    Parameters
    ----------
    X : ndarray
        Pixels of one image or of several.
    lenient : bool, default=False
        Only warn of another range, and leave values as they are: for rows of numbers that may be no pixels.

    Returns
    -------
    X : ndarray
        Itself, wherever that is possible.

    Raises
    ------
    ImageError
        Pixels are not real numbers, not finite, or (unless `lenient`) not in the range of their dtype.
    """
    if X.dtype.kind not in "buif":
        raise ImageError(f"pixels of dtype {X.dtype} are not real numbers; expected uint8, or float 0-1.")
    if X.dtype in (np.uint8, np.bool_):
        return _known_dtype(X)
    low, high = _extremes(X)
    full = 1 if X.dtype.kind == "f" else 255
    if X.dtype.type != np.uint16 and max(-low, high) > _TOO_LARGE * full:
        raise ImageError(
            f"{X.dtype} pixels span {low:.3g} to {high:.3g}, too large for pixels: expected 0-{full}. Rescale them."
        )
    if X.dtype.type == np.uint16 or (low >= 0 and high <= full):
        return _known_dtype(X)
    if not lenient and X.dtype.kind == "f" and low >= -_ROUNDING and high <= 1 + _ROUNDING:
        return _known_dtype(np.clip(X, 0, 1))
    found = f"{X.dtype} pixels are expected in 0-255 but span {low:.0f} to {high:.0f}"
    advice = _integer_advice(low, high)
    if X.dtype.kind == "f":
        found, advice = f"float pixels are expected in 0-1 but span {low:.3g} to {high:.3g}", _float_advice(low, high)
    if not lenient:
        raise ImageError(f"{found}: {advice}.")
    warnings.warn(f"{found}: {advice}. They are used as they are.", UserWarning, stacklevel=2)
    return _known_dtype(X)


def _extremes(X: np.ndarray) -> tuple[float, float]:
    low, high = np.inf, -np.inf
    step = max(1, _CHECK_BYTES // max(1, X[:1].nbytes))
    for start in range(0, len(X), step):
        piece = X[start : start + step]
        # NaN comes through min and max, so two reductions find all that is not finite
        least, most = piece.min(), piece.max()
        if not (np.isfinite(least) and np.isfinite(most)):
            raise ImageError("pixels contain NaN or infinity; replace them (numpy.nan_to_num) or drop the image.")
        low, high = min(low, float(least)), max(high, float(most))
    return low, high


def _float_advice(low: float, high: float) -> str:
    clip = "clip what resampling overshoots (numpy.clip(X, 0, 1))"
    denormalise = "undo the normalisation (X * std + mean)"
    if low < -_ROUNDING and high < _NORMALISED:
        slight = low >= -_OVERSHOOT and high <= 1 + _OVERSHOOT
        return f"{denormalise}, or {clip}" if slight else f"{denormalise}, or pass the images as they were before it"
    if high <= 1 + _OVERSHOOT:
        return clip
    return "divide by 255, or pass uint8, if they are 8-bit values; else divide by the largest value that they can have"


def _integer_advice(low: float, high: float) -> str:
    if low >= 0 and high <= 65535:
        return "pass 16-bit values as uint16 (X.astype(numpy.uint16)), or rescale them"
    return "rescale them, such as to float 0-1"


def _known_dtype(X: np.ndarray) -> np.ndarray:
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


def faintness(image: np.ndarray) -> tuple[str, float] | None:
    """Whether an image uses the lowest part of its range alone, and so scores as nearly black.

    Parameters
    ----------
    image : ndarray of shape (H, W, C)
        From `checked`.

    Returns
    -------
    kind : {"uint8", "uint16", "float"}
    largest : float
        The largest value. None instead of both for an image that uses more of its range, or is black.
    """
    largest = float(image[..., :3].max(initial=0))  # opacity is at its full range in any case
    kind = "float" if image.dtype.kind == "f" else image.dtype.name
    return (kind, largest) if 0 < largest <= _FAINT.get(kind, 0) else None


def faint_text(kind: str, count: int, length: int, largest: float) -> str:
    """What to say of images of one kind of `faintness`."""
    start = f"Pixels of {count} of {length} images are"
    if kind == "float":
        return (
            f"{start} float of at most {largest:.3g}, but 0-1 is expected, so that they score as nearly black: if "
            "they were divided by 255 twice, multiply by 255."
        )
    if kind == "uint8":
        return (
            f"{start} uint8 of 0 and 1 alone, but 0-255 is expected, so that they score as nearly black: if 1 is "
            "white, pass X.astype(bool)."
        )
    bits = next(bits for bits in _DEPTHS if largest < 2**bits)
    advice = f"scale {bits}-bit values, X * {2 ** (16 - bits)} or X.astype(float) / {2**bits - 1}"
    if bits == 8:
        advice = "cast 8-bit values to uint8, X.astype(numpy.uint8)"
    return (
        f"{start} uint16 of at most {largest:.0f}, but 0-65535 is expected, so that they score as nearly black: if "
        f"they have fewer than 16 bits, {advice}."
    )


# Files and PIL images


def decode_file(path: str | os.PathLike) -> np.ndarray:
    """Decode an image file, as (H, W, C).

    Raises
    ------
    ImageError
        It is not there, or cannot be decoded.
    """
    path = expand_user(path)
    with _pillow_errors(path):
        if not stat.S_ISREG(os.stat(path).st_mode):  # opening a pipe would wait for its writer
            raise ImageError("is not a regular file.")
        return _decode(lambda: Image.open(path), lambda: what_else(path))


def decode_bytes(content: bytes, *, formats: Sequence[str] | None = None, max_pixels: int | None = None) -> np.ndarray:
    """Decode the content of an image file to what `decode_file` decodes the file to.

    Parameters
    ----------
    content : bytes
    formats : sequence of str, default=None
        Pillow's names of the formats to try; None is all that it knows.
    max_pixels : int, default=None
        Most pixels that the image may declare. It is looked at before memory is taken for them.

    Returns
    -------
    image : ndarray of shape (H, W, C)

    Raises
    ------
    ImageError
        It is too large, or cannot be decoded.
    """

    def opened() -> Image.Image:
        image = Image.open(io.BytesIO(content), formats=formats)
        if max_pixels is not None and image.width * image.height > max_pixels:
            raise ImageError(f"has {image.width} x {image.height} pixels, more than the limit of {max_pixels}.")
        return image

    with _pillow_errors():
        try:
            return _decode(opened, lambda: what_else("", content))
        except Image.UnidentifiedImageError:
            known = "a format that Pillow can decode" if formats is None else "a format that is accepted here"
            raise ImageError(what_else("", content) or f"is not an image of {known}.") from None


def _decode(opened: Callable[[], Image.Image], other: Callable[[], str | None]) -> np.ndarray:
    with opened() as image:
        advice = other() if 0 in image.size else None
        if advice is not None:  # a format that Pillow knows by name alone
            raise ImageError(advice)
        if image.format != "PNG" or ImageFile.LOAD_TRUNCATED_IMAGES:
            return _from_pil(image)
        # The checksums of a PNG's pixels: Pillow looks at them here alone, and cannot decode after.
        image.verify()
    with opened() as image:
        return _from_pil(image)


def eight_bits(image: np.ndarray) -> np.ndarray:
    """Return an 8-bit image that comes as another dtype as uint8; others as they are, integers as floats.

    The same pixels must have the same score as file, array or tensor, and resizing rounds in 8 bits.
    """
    if image.dtype == np.uint8:
        return image
    if image.dtype == np.uint16:
        image = image / 65535
    levels = np.rint(image * 255.0)
    if np.abs(image * 255.0 - levels).max() < 1e-3 and levels.min() >= 0 and levels.max() <= 255:
        return levels.astype(np.uint8)
    return image


def decode_pil(image: Image.Image) -> np.ndarray:
    """First frame of a PIL image, upright, as (H, W, C); palettes and exotic colour spaces become RGB or RGBA.

    Raises
    ------
    ImageError
        It is closed, or the file behind it cannot be decoded.
    """
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
    except ValueError:  # what the pixels of a closed image raise in later versions
        return True


@contextlib.contextmanager
def _pillow_errors(path: str | os.PathLike | None = None) -> Iterator[None]:
    """What Pillow raises on a broken image, as :class:`ImageError`."""
    try:
        yield
    except (ImageError, MemoryError):
        raise
    except FileNotFoundError as error:
        raise ImageError(f"the file does not exist.{'' if path is None else url_advice(path)}") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise ImageError(
            f"the image is larger than Pillow's limit PIL.Image.MAX_IMAGE_PIXELS ({error}); if the file is trusted, "
            "raise that limit."
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
    deep = _deep_tiles(image)
    if deep is not None:
        return _decode_deep(image, *deep)
    image.load()
    image = _upright(image)
    mode = image.mode
    if mode == "I" or mode.startswith("I;16"):
        array = np.asarray(image)
        if array.min() < 0 or array.max() > 65535:
            raise ImageError(
                f"32-bit integer pixels span {array.min()} to {array.max()}; expected 0-65535. Rescale it."
            )
        array = array.astype(np.uint16)
        hole = image.info.get("transparency")
        if isinstance(hole, int):  # one value stands for nothing
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


def _upright(image: Image.Image) -> Image.Image:
    try:
        return ImageOps.exif_transpose(image)
    except Exception as error:  # of any kind, as the parser stumbles on it
        warnings.warn(
            f"The EXIF data of an image cannot be read ({type(error).__name__}: {error}): it is taken as upright.",
            UserWarning,
            stacklevel=2,
        )
        return image


# Pillow has no mode for colour of 16 bits a channel, and decodes it by the high byte of each value. Decoded once more
# by the raw mode of the other byte order, the same file gives the low bytes.

_DEEP = re.compile(r"(RGB|RGBA|RGBa|RGBX|CMYK);16([BLN])")
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}
# Formats of which Pillow cannot be made to show the low bytes, by the name of the decoder.
_CUT = ("SGI16", "ppm_plain")


def _deep_tiles(image: Image.Image) -> tuple[list, list, int] | None:
    """Tiles that decode to high and to low bytes, and the largest value; None for an image of other depths."""
    tiles = [tuple(tile) for tile in getattr(image, "tile", None) or []]
    if not tiles or getattr(image, "fp", None) is None:
        return None
    codec, extents, offset, args = tiles[0]
    raw = args if isinstance(args, str) else args[0] if args else None
    if image.format == "TIFF" and raw in ("R", "G", "B", "A") and 16 in image.tag_v2.get(258, ()):  # type: ignore[attr-defined]
        raise ImageError("is a TIFF of 16-bit planes, which Pillow cannot decode: save it with interleaved channels.")
    if codec == "ppm" and image.mode == "RGB" and args[1] > 255:
        high, low = ([("raw", extents, offset, (f"RGB;16{order}", 0, 1))] for order in "BL")
        return high, low, args[1]
    if codec in _CUT and image.mode != "I" and (codec == "SGI16" or args[-1] > 255):
        _warn_cut(image)
        return None
    if raw == "LA;16B":  # which Pillow shows as RGBA
        return tiles, [_with_raw_mode(tile, "RGBA") for tile in tiles], 65535
    found = _DEEP.fullmatch(raw) if isinstance(raw, str) else None
    if found is None:
        return None
    # premultiplied colours are divided by their opacity below, in 16 bits
    channels, order = found[1].replace("a", "A"), found[2]
    high, low = (
        [_with_raw_mode(tile, f"{channels};16{each}") for tile in tiles] for each in (order, _OTHER_ORDER[order])
    )
    return high, low, 65535


def _with_raw_mode(tile: tuple, raw: str) -> tuple:
    codec, extents, offset, args = tile
    return codec, extents, offset, raw if isinstance(args, str) else (raw, *args[1:])


def _warn_cut(image: Image.Image) -> None:
    warnings.warn(
        f"Pillow cuts a {image.format} image of 16 bits a channel to 8 bits: save it as PNG or TIFF to keep its depth.",
        UserWarning,
        stacklevel=2,
    )


def _decode_deep(image: Any, high_tiles: list, low_tiles: list, largest: int) -> np.ndarray:
    """An image of 16 bits a channel as uint16."""
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    halves = []
    for tiles in (high_tiles, low_tiles):
        with Image.open(io.BytesIO(content)) as half:
            half.tile = [ImageFile._Tile(*tile) if hasattr(ImageFile, "_Tile") else tile for tile in tiles]
            half.load()
            half.info.pop("transparency", None)
            halves.append(np.asarray(_upright(half)).astype(np.uint16))
    high, low = halves
    if image.mode == "RGBA" and tuple(high_tiles[0])[3] == "LA;16B":
        # bytes of the low half are grey high, grey low, alpha high, alpha low
        grey, alpha = (low[..., place] << 8 | low[..., place + 1] for place in (0, 2))
        return np.stack([grey, grey, grey, alpha], axis=-1)
    array = high << 8 | low
    if largest < 65535:
        array = np.rint(array * (65535 / largest)).clip(max=65535).astype(np.uint16)
    hole = image.info.get("transparency")
    if array.shape[-1] == 3 and isinstance(hole, tuple):  # one colour stands for nothing
        seen = (array != np.array(hole)).any(axis=-1, keepdims=True)
        array = np.concatenate([array, seen.astype(np.uint16) * 65535], axis=-1)
    if image.mode == "CMYK":
        return _cmyk_to_rgb(array)
    if "RGBa" in str(image.tile[0]):
        return _divided_by_opacity(array)
    return array


def _divided_by_opacity(array: np.ndarray) -> np.ndarray:
    alpha = np.maximum(array[..., 3:], 1) / 65535
    colours = np.rint(array[..., :3] / alpha).clip(max=65535).astype(np.uint16)
    return np.concatenate([colours, array[..., 3:]], axis=-1)


def _cmyk_to_rgb(array: np.ndarray) -> np.ndarray:
    inks = array / 65535
    return np.rint((1 - inks[..., :3]) * (1 - inks[..., 3:]) * 65535).astype(np.uint16)
