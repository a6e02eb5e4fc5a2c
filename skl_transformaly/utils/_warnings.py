"""Warnings that point at the user's own line."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence

__all__ = ["SomeImagesWarning", "warn_user"]

# The package itself, and what decorates its methods
_INSIDE = ("skl_transformaly", "sklearn", "contextlib")


class SomeImagesWarning(UserWarning):
    """Warns of the images of these `names`, of which `what` says in a few words what is wrong.

    So a program that scores in parts can add up its warnings.
    """

    def __init__(self, text: str, names: Sequence[str] = (), what: str = ""):  # defaults: to be unpickled
        super().__init__(text)
        self.names = list(names)
        self.what = what


def warn_user(message: str | Warning, category: type[Warning] = UserWarning) -> None:
    """Issue a warning that points at the line by which this package was entered."""
    level, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_globals.get("__name__", "").partition(".")[0] in _INSIDE:
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level + 1)
