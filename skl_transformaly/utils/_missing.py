"""Missing values, of whatever library."""

from __future__ import annotations

from numbers import Number
from typing import Any

import numpy as np

__all__ = ["is_missing"]


def is_missing(item: Any) -> bool:
    """Return whether an item is a missing value: None, NaN or NaT of any kind of number or time, or NA of pandas."""
    return (
        item is None
        or (isinstance(item, (Number, np.generic)) and bool(item != item))
        or type(item).__name__ in ("NAType", "NaTType")
    )
