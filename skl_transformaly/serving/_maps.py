"""Anomaly maps as small pictures to lay over images."""

from __future__ import annotations

import base64
import io

import numpy as np

from skl_transformaly.images._maps import MAP_FROM, map_colours, map_to, shrunk

__all__ = ["MAP_SIDE", "paint"]

# Longest side in pixels
MAP_SIDE = 256


def paint(values: np.ndarray) -> dict[str, float | str]:
    """Draw a map (H, W), in standard deviations of normal images, from yellow to red where an image is unusual.

    Returns ``png``, base64 of an RGBA picture of at most ``MAP_SIDE`` pixels a side, to be stretched over the image;
    ``from`` and ``to``, the values of the faintest and the strongest colour; ``peak``, the largest value.
    """
    small = shrunk(values, min(1.0, MAP_SIDE / max(values.shape)))
    to = map_to(small)
    file = io.BytesIO()
    map_colours(small, MAP_FROM, to).save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    return {"png": png, "from": MAP_FROM, "to": to, "peak": float(values.max())}
