"""Small versions of images: by these, copies are found, and colour is told from grey."""

from __future__ import annotations

import numpy as np
from PIL import Image

from skl_transformaly.images._pixels import eight_bits

__all__ = ["THUMBNAIL_SIZE", "all_grey", "has_colour", "thumbnail_of"]

# Width and height at which images are compared with each other.
_THUMBNAIL = (16, 16)
THUMBNAIL_SIZE = 3 * 16 * 16
# Channels of grey images differ by so many levels of 255 at most, after compression in colour.
_GREY_LEVELS = 1


def thumbnail_of(image: np.ndarray) -> np.ndarray:
    """Small version of an image, (THUMBNAIL_SIZE,), uint8; zeros of rows of numbers that may be no pixels."""
    colours = eight_bits(image)
    if colours.dtype != np.uint8:  # Pillow has no floats in colour, and cuts grey ones off to integers
        if colours.min() < 0 or colours.max() > 1:  # rows of numbers that may be no pixels
            return np.zeros(THUMBNAIL_SIZE, np.uint8)
        colours = np.rint(colours * 255).astype(np.uint8)
    colours = colours[..., :3] if colours.shape[2] > 2 else colours[..., 0]  # without opacity; grey
    small = Image.fromarray(np.ascontiguousarray(colours)).resize(_THUMBNAIL, Image.Resampling.BOX)
    return np.asarray(small.convert("RGB")).reshape(-1)


def has_colour(image: np.ndarray) -> bool:
    """Return whether channels of an image (H, W, C) differ on average over some part of it.

    >>> bool(has_colour(np.full((8, 8, 3), 7, np.uint8))), bool(has_colour(np.full((8, 8, 3), [9, 7, 5], np.uint8)))
    (False, True)
    """
    return image.shape[2] > 2 and not _is_grey(thumbnail_of(image)[np.newaxis])[0]


def all_grey(thumbnails: np.ndarray) -> bool:
    """Return whether no thumbnail (n, THUMBNAIL_SIZE) has colour; False if there is none but blank ones."""
    thumbnails = thumbnails[thumbnails.any(axis=1)]
    # the first one tells in most cases
    return len(thumbnails) > 0 and all(_is_grey(part).all() for part in (thumbnails[:1], thumbnails))


def _is_grey(thumbnails: np.ndarray) -> np.ndarray:
    colours = thumbnails.reshape(len(thumbnails), -1, 3)
    return (np.ptp(colours, axis=2) <= _GREY_LEVELS).all(axis=1)
