"""Synthetic images to check a detector with, the same on every machine and with every version of numpy."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from PIL import Image

__all__ = ["smooth_images", "squares"]


def squares() -> list[np.ndarray]:
    """Return 4 images (64, 64, 3), uint8, of random squares whose sides are 1, 4, 16 and 32 pixels."""
    rng = np.random.RandomState(0)  # the old generator, whose stream is frozen
    images = []
    for side in (1, 4, 16, 32):
        small = rng.randint(0, 256, (64 // side, 64 // side, 3)).astype(np.uint8)
        images.append(small.repeat(side, axis=0).repeat(side, axis=1))
    return images


def smooth_images(shapes: Iterable[tuple[int, ...]]) -> list[np.ndarray]:
    """Return 4 uint8 images, from smooth to noisy, of each of the shapes (H, W, C)."""
    rng = np.random.default_rng(0)
    images = []
    for *size, channels in shapes:
        for grain in (2, 5, 20, min(size)):
            coarse = rng.integers(0, 256, (grain, grain, channels), dtype=np.uint8)
            planes = [
                Image.fromarray(plane).resize(size[::-1], Image.Resampling.BICUBIC)
                for plane in coarse.transpose(2, 0, 1)
            ]
            images.append(np.stack([np.asarray(plane) for plane in planes], axis=-1))
    return images
