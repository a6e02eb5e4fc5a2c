"""Versions of installed packages."""

from __future__ import annotations

from collections.abc import Iterable
from importlib.metadata import PackageNotFoundError, version

__all__ = ["versions"]


def versions(packages: Iterable[str]) -> dict[str, str]:
    """Return the installed version of each package, or "unknown" if it is not installed as a package."""
    found = {}
    for name in packages:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # such as this package, when it is run from a checkout
            found[name] = "unknown"
    return found
