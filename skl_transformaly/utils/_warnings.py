"""Warnings that point at the user's own line."""

from __future__ import annotations

import contextlib
import os
import sys
import warnings
from pathlib import Path

import sklearn

__all__ = ["warn_user"]

# The package itself, and what decorates its methods
_INSIDE = (f"{Path(__file__).parent.parent}{os.sep}", f"{Path(sklearn.__file__).parent}{os.sep}", contextlib.__file__)


def warn_user(message: str, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points at the line by which this package was entered."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_INSIDE):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)
