"""One image in a report: its picture and map, the parts of its score, and the nearest normal images."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from urllib.parse import quote

import numpy as np
from PIL import Image

from skl_transformaly.cli._provenance import ImageFacts
from skl_transformaly.images._maps import MAP_FROM, map_colours, map_to, shrunk
from skl_transformaly.images._pixels import as_rgb
from skl_transformaly.utils._files import absolute_path

__all__ = [
    "MAP_NOISE",
    "N_NEIGHBORS",
    "Card",
    "look",
    "paint",
    "path_bytes",
    "picture",
    "small_picture",
    "strongest",
]

# Longest sides in pixels, and most bytes, of the pictures in the file: 1,000 images, three neighbours each, all
# different and as hard to compress as noise, stay below 20 MB (base64 makes 4 bytes of 3).
_THUMB, THUMB_BYTES = 192, 8_000
_MAP, MAP_BYTES = 48, 1_200
_NEAR, NEAR_BYTES = 80, 1_400
N_NEIGHBORS = 3
# A map that nowhere reaches so many standard deviations is taken as noise, as the maps of most normal images.
MAP_NOISE = 3.0


@dataclass
class Card:
    """One image as the page shows it."""

    facts: ImageFacts
    score: float
    decision: float
    p_value: float
    prediction: int  # -1 if it is flagged
    picture: str = ""  # an address that holds the picture itself
    map: np.ndarray | None = None  # (h, w), float16
    overlay: str = ""  # as `picture`; empty if no place stands out
    parts: dict[str, float] = field(default_factory=dict)  # what each feature space adds to the score
    times: dict[str, float] = field(default_factory=dict)  # ``times_*`` of `explain`, by feature space
    block: int | None = None  # the one that adds the least to the part of "discrepancy"
    reason: str = ""  # in words, by `explain`
    neighbors: list[tuple[int, float]] = field(default_factory=list)  # positions in the fit, and distances
    folder: int = 0  # position in the page's list of folders

    @property
    def path(self) -> str:
        return self.facts.path

    @property
    def space(self) -> str:
        """The feature space in which the image is the most unusual."""
        return max(self.times, key=lambda name: self.times[name]) if self.times else ""


def look(cards: list[Card], pixels: list[np.ndarray], explained: dict[str, np.ndarray], spaces: Sequence[str]) -> None:
    """Set pictures, maps, parts of the score and neighbours of cards, from the table of `explain`."""
    nearest = sum(name.startswith("neighbor") for name in explained)
    blocks = {int(name[5:]): column for name, column in explained.items() if name.startswith("block")}
    maps = explained.get("map", [None] * len(cards))
    for i, (card, image, values) in enumerate(zip(cards, pixels, maps)):
        card.picture = picture(Image.fromarray(as_rgb(image)), _THUMB, THUMB_BYTES)
        card.parts = {name: float(explained[name][i]) for name in spaces}
        card.times = {name: float(explained[f"times_{name}"][i]) for name in spaces}
        card.block = min(blocks, key=lambda block: blocks[block][i], default=None)
        card.reason = str(explained["reason"][i])
        card.neighbors = [
            (int(explained[f"neighbor{k}"][i]), float(explained[f"distance{k}"][i]))
            for k in range(nearest)
            if explained[f"neighbor{k}"][i] >= 0
        ]
        if values is not None:  # as large as the image
            small = shrunk(values, _MAP / max(values.shape))
            card.map = np.minimum(small, np.finfo(np.float16).max).astype(np.float16)


def strongest(cards: list[Card]) -> float:
    """Return the map value of the strongest colour, the same for all images, so that they can be compared."""
    values = [card.map.ravel() for card in cards if card.map is not None]
    return map_to(np.concatenate(values or [np.empty(0)], dtype=np.float32))


def paint(cards: list[Card]) -> None:
    """Make overlays of maps that are more than noise: transparent where normal, yellow to red where not."""
    to = strongest(cards)
    for card in cards:
        if card.map is None or float(card.map.max()) < MAP_NOISE:
            continue
        card.overlay = picture(map_colours(card.map.astype(np.float32), MAP_FROM, to), _MAP, MAP_BYTES)


def picture(image: Image.Image, side: int, most: int) -> str:
    """Return a small WebP of at most `most` bytes, as a data URL."""
    while True:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in (75, 55, 35, 15):
            file = io.BytesIO()
            small.save(file, "WEBP", quality=quality, alpha_quality=quality)
            if file.tell() <= most:
                return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
        side = side * 2 // 3


def small_picture(pixels: np.ndarray) -> str:
    """The picture of a normal image (H, W, C)."""
    return picture(Image.fromarray(as_rgb(pixels)), _NEAR, NEAR_BYTES)


def path_bytes(path: str) -> str:
    """Quote the bytes of the absolute path as text that is safe anywhere in a page, for tables of the script.

    >>> path_bytes("/tmp/a b.png")
    '/tmp/a%20b.png'
    """
    return quote(os.fsencode(absolute_path(path)))
