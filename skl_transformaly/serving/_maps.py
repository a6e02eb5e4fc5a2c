"""Anomaly maps as small pictures to lay over images."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

__all__ = ["MAP_FROM", "MAP_SIDE", "paint"]

# In standard deviations of normal images: what is less is not painted, and the strongest colour is for at least so much
MAP_FROM, _MAP_TO = 2.0, 8.0
# Longest side in pixels
MAP_SIDE = 256


def paint(values: np.ndarray) -> dict[str, float | str]:
    """Draw a map (H, W), in standard deviations of normal images: yellow to red where an image is not as usual.

    Returns ``png``, base64 of an RGBA picture of at most 256 pixels a side, to be stretched over the image; ``from``
    and ``to``, the values of the faintest and of the strongest colour; ``peak``, the largest value.
    """
    height, width = values.shape
    scale = min(1.0, MAP_SIDE / max(height, width))
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))
    to = max(_MAP_TO, float(np.percentile(small, 99.5)))
    strength = np.clip((small - MAP_FROM) / (to - MAP_FROM), 0, 1)
    colour = np.empty((*strength.shape, 4), dtype=np.uint8)
    colour[..., 0] = 255
    colour[..., 1] = np.rint(220 * (1 - strength))
    colour[..., 2] = np.rint(40 * (1 - strength))
    colour[..., 3] = np.rint(200 * np.sqrt(strength))
    file = io.BytesIO()
    Image.fromarray(colour).save(file, "PNG")
    png = base64.b64encode(file.getvalue()).decode()
    return {"png": png, "from": MAP_FROM, "to": to, "peak": float(values.max())}
