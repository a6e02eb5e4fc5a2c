"""One HTML file that shows what a detector says of a folder of images, for people to look at.

The file needs no network and no other file. It allows itself nothing else either: its content security policy permits
no script and no style but its own, known by their hashes, and no image but those inside it; names of files, which may
be anybody's, are escaped text and never part of an address.
"""

from __future__ import annotations

import base64
import hashlib
import io
import math
import os
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timezone
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from skl_transformaly._wrappers import innermost
from skl_transformaly.cli._provenance import (
    ImageFacts,
    Provenance,
    describe,
    image_facts,
    reason,
)
from skl_transformaly.cli._scores import score_table
from skl_transformaly.images._folders import display_path
from skl_transformaly.images._images import as_images
from skl_transformaly.images._pixels import as_rgb
from skl_transformaly.images._values import ImageError
from skl_transformaly.teacher._protocol import find_places
from skl_transformaly.utils._files import replacing

__all__ = ["write_report"]

# Images, and pixels, that are decoded at a time
_CHUNK, _CHUNK_PIXELS = 16, 2**25
# Longest sides in pixels, and most bytes, of the pictures in the file: 1,000 images, three neighbours each, all
# different and as hard to compress as noise, stay below 20 MB (base64 makes 4 bytes of 3).
_THUMB, _THUMB_BYTES = 192, 8_000
_MAP, _MAP_BYTES = 48, 1_200
_NEAR, _NEAR_BYTES = 80, 1_400
_N_NEIGHBORS = 3
_N_SUSPICIOUS = 12
# An image is tiny where its shorter side would have to grow by more than this for the teacher
_TINY = 4
_BINS = 48
# Map values are standard deviations over normal images. What is less than the first is not painted.
_MAP_FROM, _MAP_TO_LEAST = 2.0, 8.0


@dataclass
class _Card:
    """One image as the page shows it."""

    facts: ImageFacts
    score: float
    decision: float
    p_value: float
    prediction: int
    picture: str = ""
    map: np.ndarray | None = None
    overlay: str = ""
    parts: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    neighbors: list[tuple[int, float]] = field(default_factory=list)

    @property
    def path(self) -> str:
        return self.facts.path


# What the page calls feature spaces.
_SPACE_NAMES = {"pretrained": "embedding", "classes": "classes", "layers": "layers", "discrepancy": "students"}


def write_report(
    detector: Any,
    images: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    provenance: Provenance | None = None,
    saved: Mapping[str, str] | None = None,
    normal_dir: str | os.PathLike | None = None,
    limit: int = 1000,
    title: str = "Images, from most to least anomalous",
    passed_over: tuple[int, int] = (0, 0),
    advance: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Write what a fitted detector says of images as one HTML file.

    Parameters
    ----------
    detector : TransformalyDetector, or a ConformalDetector around one
        Fitted. With the latter there are p-values.
    images : sequence of str or path
        Files. Those that cannot be read are listed as such.
    out : path
        The file to write. It appears whole or not at all.
    provenance : Provenance, default=None
        How the model was made, as the command line keeps it in a model file; without it, the nearest normal images have
        no names.
    saved : dict of str to str, default=None
        When and with what the model file was saved, to be shown beside the rest.
    normal_dir : path, default=None
        Folder of the normal images. None is where `provenance` says, if this process made it; if it comes from a model
        file, no picture of a normal image is shown, since the file may be a stranger's and name any folder.
    limit : int, default=1000
        Most images to show with picture, map and neighbours: the most anomalous. All count in the histogram.
    title : str
        Heading.
    passed_over : tuple of (int, int), default=(0, 0)
        Files that were not looked at: hidden ones, and others than images.
    advance : callable, default=None
        ``advance(n)`` is called as images are done; in all with as many as there are.

    Returns
    -------
    summary : dict
        ``images``, ``anomalies`` (with those that cannot be read), ``unreadable``, ``shown``, ``duplicates`` (groups),
        ``tiny``, ``blank``, ``known`` (those that are training images) and ``bytes``.

    Raises
    ------
    ValueError
        `images` is empty.
    ModuleNotFoundError
        jinja2 is missing (extra ``cli``).
    OSError
        `out` cannot be written.
    """
    paths = [str(path) for path in images]
    if not paths:
        raise ValueError("There are no images to report on.")
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("A report needs jinja2: pip install 'skl-transformaly[cli]'.") from error
    provenance = provenance or Provenance()
    advance = advance or (lambda n: None)
    inner = innermost(detector)
    shown = min(limit, len(paths))
    # Where all are shown, one run of the teacher does; else who comes to the top is known only after one.
    at_once = shown == len(paths)
    step = len(paths) / (len(paths) + (0 if at_once else shown))

    cards: list[_Card] = []
    unreadable: list[ImageFacts] = []
    for facts, pixels in _decoded(paths, inner, unreadable):
        explained = _explain(inner, pixels) if at_once else None
        table = score_table(detector, pixels, None if explained is None else explained["score"])
        for i, fact in enumerate(facts):
            values = {name: column[i].item() for name, column in table.items()}
            cards.append(_Card(fact, **values))
        if explained is not None:
            _look(cards[-len(facts) :], pixels, explained)
        advance(step * len(facts))
    advance(step * len(unreadable))
    cards.sort(key=lambda card: (card.score, card.path))
    top = cards[:limit]
    if not at_once:
        by_path = {card.path: card for card in top}
        for facts, pixels in _decoded([card.path for card in top], inner, []):
            _look([by_path[fact.path] for fact in facts], pixels, _explain(inner, pixels))
            advance((1 - step) * len(paths) * len(facts) / shown)
    _paint(top)

    training = _Training(provenance, normal_dir, getattr(inner.extractor_, "image_size_", None))
    suspicious = training.suspicious()
    known = [card for card in cards if card.facts.digest in training.known]
    groups = _duplicates([card.facts for card in cards])
    sides = [int(side) for side in getattr(inner.extractor_, "image_size_", ())]
    tiny = [card for card in cards if sides and min(card.facts.height, card.facts.width) * _TINY < min(sides)]
    blank = [card for card in cards if card.facts.blank]
    anomalies = sum(card.prediction < 0 for card in cards)
    wanted = [i for card in top for i, _ in card.neighbors] + [item.position for item in suspicious]
    pool = training.pictures(wanted)

    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    # what all have in common is said once
    folder = os.path.commonpath([os.path.dirname(os.path.abspath(path)) for path in paths])
    environment.globals.update(space_names=_SPACE_NAMES)
    environment.filters.update(path=display_path, short=partial(_below, folder), number=_number, p=_p_value)
    style, script = (_source(name) for name in ("report.css", "report.js"))
    page = environment.from_string(_source("report.html")).generate(
        inf=math.inf,
        title=title,
        style=style,
        script=script,
        policy=_policy(style, script),
        folder=folder,
        n=len(paths),
        anomalies=anomalies,
        unreadable=unreadable,
        cards=top,
        left_out=len(cards) - len(top),
        has_p=any(not math.isnan(card.p_value) for card in cards),
        least_p=min((card.p_value for card in cards if not math.isnan(card.p_value)), default=1.0),
        alpha=getattr(detector, "alpha", None),
        has_maps=any(card.overlay for card in top),
        map_from=_MAP_FROM,
        map_to=_map_to(top),
        histogram=_histogram(detector, inner, cards),
        pool=pool,
        training=training,
        suspicious=suspicious,
        known=known,
        groups=groups,
        tiny=tiny,
        blank=blank,
        side=min(sides, default=0),
        passed_over=passed_over,
        settings=provenance.settings or describe(detector),
        saved=saved or {},
        now=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )
    with replacing(out) as file:
        for piece in page:
            file.write(piece.encode())
    return {
        "images": len(paths),
        "anomalies": anomalies + len(unreadable),
        "unreadable": len(unreadable),
        "shown": len(top),
        "duplicates": len(groups),
        "tiny": len(tiny),
        "blank": len(blank),
        "known": len(known),
        "bytes": Path(out).stat().st_size,
    }


def _decoded(
    paths: list[str], inner: Any, unreadable: list[ImageFacts]
) -> Iterator[tuple[list[ImageFacts], list[np.ndarray]]]:
    """Decode a few images at a time, as the detector `inner` would; those that cannot be read go to `unreadable`."""
    images = as_images(paths).reduced(getattr(inner.extractor_, "image_size_", None))
    facts: list[ImageFacts] = []
    pixels: list[np.ndarray] = []
    for i, path in enumerate(paths):
        try:
            decoded = images[i]
        except ImageError as error:
            unreadable.append(ImageFacts(path, reason(path, error)))
            continue
        fact = image_facts(path, decoded)
        fact.height, fact.width = images.size(i, decoded)
        facts.append(fact)
        pixels.append(decoded)
        if len(facts) == _CHUNK or sum(image.shape[0] * image.shape[1] for image in pixels) > _CHUNK_PIXELS:
            yield facts, pixels
            facts, pixels = [], []
    if facts:
        yield facts, pixels


def _explain(inner: Any, pixels: list[np.ndarray]) -> dict[str, np.ndarray]:
    """Scores, their parts, neighbours and, where there can be, maps."""
    has_maps = "discrepancy" in inner.feature_spaces_ and find_places(inner.extractor_) is not None
    return inner.explain(pixels, n_neighbors=_N_NEIGHBORS, maps=has_maps)


def _look(cards: list[_Card], pixels: list[np.ndarray], explained: dict[str, np.ndarray]) -> None:
    """Give cards their pictures, maps, parts of the score, and neighbours."""
    spaces = [name for name in _SPACE_NAMES if name in explained]
    nearest = sum(name.startswith("neighbor") for name in explained)
    maps = explained.get("map", [None] * len(cards))
    for i, (card, image, values) in enumerate(zip(cards, pixels, maps)):
        card.picture = _picture(Image.fromarray(as_rgb(image)), _THUMB, _THUMB_BYTES)
        card.parts = {name: float(explained[name][i]) for name in spaces}
        card.reason = str(explained["reason"][i])
        card.neighbors = [
            (int(explained[f"neighbor{k}"][i]), float(explained[f"distance{k}"][i]))
            for k in range(nearest)
            if explained[f"neighbor{k}"][i] >= 0
        ]
        if values is not None:
            height, width = image.shape[:2]
            scale = _MAP / max(height, width)
            size = (max(1, round(width * scale)), max(1, round(height * scale)))
            small = Image.fromarray(values).resize(size, Image.Resampling.BILINEAR)
            card.map = np.minimum(np.asarray(small), np.finfo(np.float16).max).astype(np.float16)


def _map_to(cards: list[_Card]) -> float:
    """The map value that is painted in the strongest colour, one for all images, so that they can be compared."""
    values = [card.map.ravel() for card in cards if card.map is not None]
    if not values:
        return _MAP_TO_LEAST
    peaks = np.percentile(np.concatenate(values).astype(np.float32), 99.5)
    return max(_MAP_TO_LEAST, float(peaks))


def _paint(cards: list[_Card]) -> None:
    """Make overlays of maps: nothing where all is as usual, yellow to red where it is not."""
    to = _map_to(cards)
    for card in cards:
        if card.map is None:
            continue
        strength = np.clip((card.map.astype(np.float32) - _MAP_FROM) / (to - _MAP_FROM), 0, 1)
        colour = np.empty((*strength.shape, 4), dtype=np.uint8)
        colour[..., 0] = 255
        colour[..., 1] = np.rint(220 * (1 - strength))
        colour[..., 2] = np.rint(40 * (1 - strength))
        colour[..., 3] = np.rint(200 * np.sqrt(strength))
        card.overlay = _picture(Image.fromarray(colour), _MAP, _MAP_BYTES)


def _picture(image: Image.Image, side: int, most: int) -> str:
    """A small WebP of at most `most` bytes, as an address that holds the picture itself."""
    while True:
        small = image.copy()
        small.thumbnail((side, side), Image.Resampling.LANCZOS)
        for quality in (75, 55, 35, 15):
            file = io.BytesIO()
            small.save(file, "WEBP", quality=quality, alpha_quality=quality)
            if file.tell() <= most:
                return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()
        side = side * 2 // 3


@dataclass
class _TrainingImage:
    """A training image as the page shows it."""

    position: int
    name: str
    score: float


class _Training:
    """The images that a model was fitted on, as far as the model file knows them and they are still there."""

    def __init__(self, provenance: Provenance, normal_dir: str | os.PathLike | None, size: Sequence[int] | None):
        self.made = provenance
        self.root = None if normal_dir is None else Path(normal_dir)
        if normal_dir is None and provenance.own:
            self.root = Path(provenance.root)
        self.known = {digest for digest in provenance.digests if digest}
        self.fitted = provenance.fitted
        self.size = size  # to which the teacher resizes images
        self.missing = 0
        self.changed = 0

    def name(self, position: int) -> str:
        """Relative path of the training image at `position` in the fit; empty where nobody knows."""
        return self.made.files[self.fitted[position]] if 0 <= position < len(self.fitted) else ""

    def suspicious(self) -> list[_TrainingImage]:
        """The images with the lowest scores, each without its own part in the fit."""
        made = self.made
        place = {i: position for position, i in enumerate(self.fitted)}
        scored = sorted((score, i) for i, score in enumerate(made.scores) if score is not None)
        number = min(_N_SUSPICIOUS, math.ceil(len(scored) / 5))
        found = [_TrainingImage(place.get(i, -1 - i), made.files[i], score) for score, i in scored[:number]]
        return found

    def pictures(self, positions: Sequence[int]) -> dict[int, str]:
        """Pictures of training images, each once; those that cannot be read any more are left out and counted."""
        pictures: dict[int, str] = {}
        if self.root is None:
            return pictures
        for position in sorted(set(positions)):
            index = -1 - position if position < 0 else self.fitted[position] if position < len(self.fitted) else -1
            if index < 0:
                continue
            path = str(self.root / self.made.files[index])
            try:
                pixels = as_images([path]).reduced(self.size)[0]
            except ImageError:
                self.missing += 1
                continue
            if self.made.digests and image_facts(path, pixels).digest != self.made.digests[index]:
                self.changed += 1
            pictures[position] = _picture(Image.fromarray(as_rgb(pixels)), _NEAR, _NEAR_BYTES)
        return pictures


def _duplicates(facts: list[ImageFacts]) -> list[list[ImageFacts]]:
    """Groups of images with the same pixels, the largest first."""
    groups = defaultdict(list)
    for fact in facts:
        groups[fact.digest].append(fact)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def _histogram(detector: Any, inner: Any, cards: list[_Card]) -> dict[str, Any]:
    """Bars of the scores, those of normal images that the threshold comes from behind them, and the threshold.

    Scores of anomalies may lie arbitrarily low. The axis covers the normal images and twice as much again below them;
    the first bar holds all that is lower.
    """
    reference = getattr(detector, "calibration_scores_", inner.training_scores_)
    reference = np.asarray(reference, dtype=np.float64)
    reference = reference[np.isfinite(reference)]
    threshold = getattr(detector, "offset_", None)
    scores = np.array([card.score for card in cards], dtype=np.float64)
    flagged = np.array([card.prediction < 0 for card in cards], dtype=bool)
    both = np.concatenate([reference, scores[np.isfinite(scores)]])
    high = float(both.max())
    middle = float(np.median(reference))
    spread = max(high - middle, middle - float(reference.min()), 1e-9 * max(1.0, abs(middle)))
    low = max(float(both.min()), middle - 3 * spread)
    edges = np.linspace(low, high if high > low else low + 1, _BINS + 1)
    clipped = np.clip(scores, edges[0], edges[-1])  # -inf too
    counts, _ = np.histogram(clipped, edges)
    low_counts, _ = np.histogram(clipped[flagged], edges)
    normal, _ = np.histogram(np.clip(reference, edges[0], edges[-1]), edges)
    top = max(int(counts.max(initial=0)), 1)
    top_normal = max(int(normal.max(initial=0)), 1)
    bars = [
        {
            "x": 100 * i / _BINS,
            # the flagged part, the rest on top of it, and both
            "flagged": 100 * low_count / top,
            "rest": 100 * (count - low_count) / top,
            "height": 100 * count / top,
            "normal": 100 * other / top_normal,
            "count": int(count),
            "other": int(other),
            # what is lower than the axis belongs to the first bar
            "low": -math.inf if i == 0 else float(edges[i]),
            "high": math.inf if i == _BINS - 1 else float(edges[i + 1]),
        }
        for i, (count, low_count, other) in enumerate(zip(counts, low_counts, normal))
    ]
    at = None if threshold is None else 100 * (threshold - edges[0]) / (edges[-1] - edges[0])
    ticks = [(100 * k / 4, float(edges[0] + k / 4 * (edges[-1] - edges[0]))) for k in range(5)]
    return {
        "bars": bars,
        "width": 100 / _BINS,
        "threshold": threshold,
        "at": at if at is not None and 0 <= at <= 100 else None,
        "ticks": ticks,
        "below": int(np.sum(scores < edges[0])),
        "held_out": hasattr(detector, "calibration_scores_") or inner.held_out_,
        "n_normal": len(reference),
    }


def _number(value: float) -> str:
    """Four digits are enough to read; the table of scores has them all."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    return f"{value:.4g}".replace("-", "−") if abs(value) < 1e4 else f"{value:.3g}".replace("-", "−")


def _p_value(value: float) -> str:
    return "–" if math.isnan(value) else f"{value:.3f}" if value >= 0.001 else f"{value:.1g}"


def _below(folder: str, path: str) -> str:
    """`path` as it is from `folder`, where it is in it."""
    whole = os.path.abspath(path)
    return os.path.relpath(whole, folder) if whole.startswith(folder + os.sep) else path


def _source(name: str) -> str:
    return (files("skl_transformaly.cli") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Content security policy: nothing from anywhere, and inside only what this module put there."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        "default-src 'none'; img-src data:; "
        f"style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )
