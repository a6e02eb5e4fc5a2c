"""Uploaded image files, decoded by the same code as files on disk."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from skl_transformaly.images._folders import has_image_suffix
from skl_transformaly.images._pixels import decode_bytes
from skl_transformaly.images._values import faint_warning, faintness

__all__ = ["FORMATS", "decoder", "note_warnings"]

# Pillow's names; MPO comes with JPEG. Some of the other formats start programs (EPS), and cameras write none of them.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_caught = threading.local()


def decoder(
    prepare: Callable[[np.ndarray], np.ndarray], max_pixels: int, at_least: int | None = None
) -> Callable[[bytes], tuple[np.ndarray, list[str]]]:
    """Return a function that decodes the content of an image file of those `FORMATS` that this Pillow can decode.

    ``decode(content)`` returns the pixels (H, W, C) after `prepare`, and a list of notes on them, such as that they are
    nearly black; it raises :class:`ImageError` for anything else. For `at_least` see :func:`decode_file`.
    """
    has_image_suffix("photo.heic")  # makes Pillow load its plugins, and pillow-heif if it is installed
    formats = tuple(name for name in FORMATS if name in Image.OPEN)

    def decode(content: bytes) -> tuple[np.ndarray, list[str]]:
        _caught.notes = notes = []
        try:
            image = prepare(decode_bytes(content, at_least=at_least, formats=formats, max_pixels=max_pixels))
        finally:
            _caught.notes = None
        faint = faintness(image)
        if faint is not None:
            notes.append(str(faint_warning(faint[0], ["the image"], 1, faint[1])))
        return image, notes

    return decode


def note_warnings() -> None:
    """Turn warnings of a decoding thread into notes on its image, and drop others; for the process of a server.

    ``warnings.catch_warnings`` does not work with threads.
    """
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = _note


def _note(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    notes = getattr(_caught, "notes", None)
    if notes is not None:
        notes.append(str(message))
