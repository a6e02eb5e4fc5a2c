"""Image files as they are sent, decoded by the same code as files on disk."""

from __future__ import annotations

import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from skl_transformaly.images._folders import has_image_suffix
from skl_transformaly.images._pixels import decode_bytes
from skl_transformaly.images._values import faint_text, faintness

__all__ = ["FORMATS", "decoder", "note_warnings"]

# Pillow's names; MPO comes with JPEG. Of the others some start programs (EPS), and nobody's camera writes the rest.
FORMATS = ("AVIF", "BMP", "GIF", "HEIF", "JPEG", "JPEG2000", "PNG", "PPM", "TIFF", "WEBP")

_caught = threading.local()


def decoder(
    prepare: Callable[[np.ndarray], np.ndarray], max_pixels: int, at_least: int | None = None
) -> Callable[[bytes], tuple[np.ndarray, list[str]]]:
    """A function that decodes the content of an image file of `FORMATS`, as far as this Pillow knows them.

    ``decode(content)`` returns what `prepare` makes of the pixels (H, W, C), and a list of what to note of them, such
    as that they are nearly black; it raises :class:`ImageError` for anything else. For `at_least` see
    :func:`decode_file`.
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
            notes.append(faint_text(faint[0], 1, 1, faint[1]))
        return image, notes

    return decode


def note_warnings() -> None:
    """Make warnings of a decoding thread notes of its image, and drop others: for the process of a server.

    Without it they go where all warnings go, once for each place in the code. ``warnings.catch_warnings`` would not do,
    since it is not for threads.
    """
    warnings.simplefilter("always", UserWarning)
    warnings.showwarning = _note


def _note(message: Warning | str, *args: Any, **kwargs: Any) -> None:
    notes = getattr(_caught, "notes", None)
    if notes is not None:
        notes.append(str(message))
