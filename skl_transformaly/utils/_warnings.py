"""Warnings that point at the user's own line."""

from __future__ import annotations

import os
import sys
import warnings
from pathlib import Path

import sklearn

__all__ = ["warn_user"]

# The package itself, and what decorates its methods
_INSIDE = tuple(f"{Path(path).parent}{os.sep}" for path in (Path(__file__).parent, sklearn.__file__))


def warn_user(message: str) -> None:
    """Issue a UserWarning that points at the line by which this package was entered."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, UserWarning, stacklevel=level + 1)
