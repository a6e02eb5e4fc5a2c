"""Anomaly maps as pictures to lay over images, on one scale wherever they are shown."""

from __future__ import annotations

import numpy as np
from PIL import Image

__all__ = ["MAP_FROM", "map_colours", "map_to", "shrunk"]

# Values are standard deviations over normal images. Up to the first they are not painted; the strongest colour is for
# the second at least, so that noise is faint.
MAP_FROM, _MAP_TO_LEAST = 2.0, 6.0


def map_to(values: np.ndarray) -> float:
    """Return the value of the strongest colour for maps of these values: half a per cent of them are above."""
    return max(_MAP_TO_LEAST, float(np.percentile(values, 99.5))) if values.size else _MAP_TO_LEAST


def shrunk(values: np.ndarray, scale: float) -> np.ndarray:
    """Return a map (H, W) of floats resized by the factor `scale`."""
    size = [max(1, round(side * scale)) for side in values.shape[::-1]]
    return np.asarray(Image.fromarray(values).resize(size, Image.Resampling.BILINEAR))


def map_colours(values: np.ndarray, low: float, high: float) -> Image.Image:
    """Return a picture of a map, to lay over an image: transparent up to `low`, then yellow, and red from `high` on."""
    strength = np.clip((values - low) / (high - low), 0, 1)
    colour = np.empty((*strength.shape, 4), dtype=np.uint8)
    colour[..., 0] = 255
    colour[..., 1] = np.rint(220 * (1 - strength))
    colour[..., 2] = np.rint(40 * (1 - strength))
    colour[..., 3] = np.rint(200 * np.sqrt(strength))
    return Image.fromarray(colour)
