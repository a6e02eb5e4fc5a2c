"""Values of pixels: the ranges and dtypes of images, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from skl_transformaly.utils._warnings import SomeImagesWarning, warn_user

__all__ = ["SKIP_ADVICE", "ImageError", "check_layout", "checked", "colour_warning", "faint_warning", "faintness"]

# So many images are named in a warning about some of them.
_SHOWN = 5

# The end of an error about a broken image; removed from messages if broken images are skipped.
SKIP_ADVICE = " Remove or repair it, or skip it with the detector's set_params(on_error='skip')."

# A pixel array is checked in pieces of this many bytes, so that a memory-mapped one may be larger than memory.
_CHECK_BYTES = 2**26

# Pixels beyond this many times the full range of their dtype follow no convention: float32 loses the rest of the image
# beside them, or overflows.
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
    """An image that cannot be read, or does not hold what an image should.

    The message names the image (its path, or its position in the sequence), what was found, and what to do.
    """


def check_layout(shape: tuple[int, ...], *, advice: str = "") -> None:
    """Refuse a shape that is not (H, W, C) with 1, 3 or 4 channels; `advice` is added to the message."""
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
    """Return `X` as uint8, uint16 or floats in 0-1, after a check that its values are in the range of their dtype.

    `X` are the pixels of one image or of several, and are returned without a copy if possible. If `lenient`, for rows
    of numbers that may not be pixels, values out of range stay as they are, with a warning.
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
    warn_user(f"{found}: {advice}. They are used as they are.")
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
    return "divide by 255, or pass uint8, if they are 8-bit values; else divide by the largest value that is possible"


def _integer_advice(low: float, high: float) -> str:
    if low >= 0 and high <= 65535:
        return "pass 16-bit values as uint16 (X.astype(numpy.uint16)), or rescale them"
    return "rescale them, such as to float 0-1"


def _known_dtype(X: np.ndarray) -> np.ndarray:
    """Convert dtypes that torch does not have, or whose values do not use their full range."""
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
    """Return whether an image only uses the lowest part of its range, and so scores as nearly black.

    Its kind, "uint8", "uint16" or "float", and its largest value; None if it uses more of its range, or is black.
    """
    largest = float(image[..., :3].max(initial=0))  # opacity is at its full range in any case
    kind = "float" if image.dtype.kind == "f" else image.dtype.name
    return (kind, largest) if 0 < largest <= _FAINT.get(kind, 0) else None


def colour_warning(names: Sequence[str], length: int) -> SomeImagesWarning:
    """Return the warning about images in colour, of `length` in all, where all training images are grey."""
    shown = ", ".join(names[:_SHOWN]) + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")
    start = "The image has" if length == 1 else f"{len(names)} of {length} images have"
    them, what = ("it", "it an anomaly") if length == 1 else ("them", "them anomalies")
    text = (
        f"{start} colour, perhaps a tint that nobody sees, while all training images are grey: that alone can make "
        f"{what}. If colour means nothing here, convert {them} to grey first (image.convert('L') in Pillow)."
    )
    if length > 1:
        text += f" They are: {shown}."
    return SomeImagesWarning(text, names, "have colour, while all training images are grey")


def faint_warning(kind: str, names: Sequence[str], length: int, largest: float) -> SomeImagesWarning:
    """Return the warning about images of one kind of `faintness`, of `length` in all."""
    what = f"use only the lowest part of their range ({kind}), and score as nearly black"
    return SomeImagesWarning(_faint_text(kind, len(names), length, largest), names, what)


def _faint_text(kind: str, count: int, length: int, largest: float) -> str:
    start = "Pixels of the image are" if length == 1 else f"Pixels of {count} of {length} images are"
    if kind == "float":
        return (
            f"{start} float of at most {largest:.3g}, but 0-1 is expected, so that they score as nearly black: if "
            "they were divided by 255 twice, multiply by 255."
        )
    if kind == "uint8":
        return (
            f"{start} uint8 of 0 and 1 only, but 0-255 is expected, so that they score as nearly black: if 1 is "
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
