"""A report: one HTML file that shows images from most to least anomalous.

The file needs no network and no other file. Its content security policy permits only its own script and style, by their
hashes, and images inside it. Names of files, which may come from anyone, are escaped text and never part of an address.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
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

from skl_transformaly._cleaning import COPY_LEVELS
from skl_transformaly._explanation import has_maps, nearest
from skl_transformaly._reasons import PLAINLY, reason_column, times_text
from skl_transformaly._wrappers import innermost
from skl_transformaly.cli._cards import (
    MAP_NOISE,
    N_NEIGHBORS,
    Card,
    look,
    paint,
    path_bytes,
    small_picture,
    strongest,
)
from skl_transformaly.cli._console import command_line, counted
from skl_transformaly.cli._describe import describe
from skl_transformaly.cli._histogram import histogram
from skl_transformaly.cli._provenance import ImageFacts, Provenance, image_facts, reason
from skl_transformaly.cli._trust import FalseAlarms, percent
from skl_transformaly.images._folders import display_path
from skl_transformaly.images._images import Images, as_images
from skl_transformaly.images._maps import MAP_FROM
from skl_transformaly.images._thumbnails import THUMBNAIL_SIZE, thumbnail_of
from skl_transformaly.images._values import ImageError
from skl_transformaly.utils._files import absolute_path, common_folder, replacing
from skl_transformaly.utils._labels import LEARNED

__all__ = ["Origin", "write_report"]

# Images, and pixels, that are decoded at a time
_CHUNK, _CHUNK_PIXELS = 16, 2**25
_N_SUSPICIOUS = 12
# An image is tiny if its shorter side must grow by more than this factor for the teacher
_TINY = 4
# Number of normal images from which the usual distance between normal images is estimated
_SAMPLED = 500


@dataclass(frozen=True)
class Origin:
    """What the command line knows about the model and the images.

    Attributes
    ----------
    made : Provenance
        How the model was made; without it, the nearest normal images have no names.
    saved : dict of str to str
        When and with what the model file was saved.
    model : str
        Path of the model file, for the command that learns from labels.
    passed_over : tuple of (int, int)
        Numbers of hidden files, and of files that are not images.
    """

    made: Provenance = field(default_factory=Provenance)
    saved: Mapping[str, str] = field(default_factory=dict)
    model: str = ""
    passed_over: tuple[int, int] = (0, 0)


def write_report(
    detector: Any,
    images: Sequence[str | os.PathLike],
    out: str | os.PathLike,
    *,
    origin: Origin | None = None,
    normal_dir: str | os.PathLike | None = None,
    limit: int = 1000,
    title: str = "Images, from most to least anomalous",
    advance: Callable[[float], None] | None = None,
) -> dict[str, Any]:
    """Write a report on images by a fitted detector.

    Parameters
    ----------
    detector : TransformalyDetector, or a ConformalDetector around one
        Fitted. With the latter there are p-values.
    images : sequence of str or path
        Files. Those that cannot be read are listed as unreadable.
    out : path
        The HTML file to write, whole or not at all.
    origin : Origin, default=None
        What the command line knows about the model and the images.
    normal_dir : path, default=None
        Folder of the normal images. None is the folder in `origin`, if this process made it; if it comes from a model
        file, no picture of a normal image is shown, since the file may be a stranger's and name any folder.
    limit : int, default=1000
        Number of images to show with picture, map and neighbours, the most anomalous first. All images count in the
        histogram.
    title : str
        Heading.
    advance : callable, default=None
        ``advance(n)`` is called as `n` images are done.

    Returns
    -------
    summary : dict
        ``images``, ``anomalies`` (with those that cannot be read), ``unreadable``, ``shown``, ``duplicates`` (groups),
        ``tiny``, ``blank``, ``known`` (those that are training images), ``normal_missing`` and ``normal_changed``
        (normal images that are not shown, since they cannot be read or are not those of the fit) and ``bytes``.

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
    page = _Page(detector, paths, title, origin or Origin(), normal_dir)
    cards, unreadable = _cards(detector, page.inner, paths, limit, advance or (lambda n: None))
    values = page.values(cards, unreadable, limit)
    with replacing(out) as file:
        for piece in page.template.generate(**values):
            file.write(piece.encode())
    absent = {"normal_missing": page.training.missing, "normal_changed": page.training.changed}
    return {**_summary(values), **absent, "bytes": Path(out).stat().st_size}


class _Page:
    """The template of a page, and the values that it is filled with."""

    def __init__(
        self, detector: Any, paths: list[str], title: str, origin: Origin, normal_dir: str | os.PathLike | None
    ):
        if not paths:
            raise ValueError("There are no images to report on.")
        self.detector, self.inner = detector, innermost(detector)
        # paths are shown relative to it
        self.root = common_folder(paths)
        self.template = _template(self.root)
        self.title, self.origin = title, origin
        self.training = _Training(origin.made, normal_dir, self.inner)

    def values(self, cards: list[Card], unreadable: list[ImageFacts], limit: int) -> dict[str, Any]:
        """Return the variables of the template."""
        top = cards[:limit]
        paint(top)
        suspicious = self.training.suspicious()
        near = [i for card in top for i, _ in card.neighbors] + [item.position for item in suspicious]
        style, script = (_source(name) for name in ("report.css", "report.js"))
        return {
            "title": self.title,
            "style": style,
            "script": script,
            "policy": _policy(style, script),
            "root": self.root,
            "n": len(cards) + len(unreadable),
            "anomalies": sum(card.prediction < 0 for card in cards),
            "cards": top,
            "left_out": len(cards) - len(top),
            "folders": _folders(cards, self.root),
            **_wrong(cards, unreadable, self.inner, self.training),
            **_figures(self.detector, self.inner, cards),
            **_maps(top),
            "pool": self.training.pictures(near),
            "training": self.training,
            "suspicious": suspicious,
            "model": self.origin.model,
            "passed_over": self.origin.passed_over,
            "settings": self.origin.made.settings or describe(self.detector),
            "saved": self.origin.saved,
            "now": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        }


def _template(root: str) -> Any:
    """Return the page's template, which shows paths relative to the folder `root`."""
    try:
        import jinja2
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError("A report needs jinja2: pip install 'skl-transformaly[cli]'.") from error
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    environment.globals.update(plainly=PLAINLY, inf=math.inf, counted=counted, percent=percent)
    environment.filters.update(
        path=display_path,
        short=partial(_below, root),
        number=_number,
        fixed=_fixed,
        percent="{:.3f}%".format,  # for attributes, in which a minus must be the sign that programs know
        times=times_text,
        bytes=path_bytes,
        quoted=lambda word: command_line([word]),
    )
    return environment.from_string(_source("report.html"))


def _summary(values: dict[str, Any]) -> dict[str, int]:
    """Return the numbers of images on a page, by kind."""
    return {
        "images": values["n"],
        "anomalies": values["anomalies"] + len(values["unreadable"]),
        "unreadable": len(values["unreadable"]),
        "shown": len(values["cards"]),
        "duplicates": len(values["groups"]),
        **{kind: len(values[kind]) for kind in ("tiny", "blank", "coloured", "known")},
    }


def _cards(
    detector: Any, inner: Any, paths: list[str], limit: int, advance: Callable[[float], None]
) -> tuple[list[Card], list[ImageFacts]]:
    """Return cards of all images, from low to high scores, the first `limit` with pictures; and unreadable images."""
    shown = min(limit, len(paths))
    # if all are shown, one run of the teacher is enough; otherwise the first ones are known only after it
    at_once = shown == len(paths)
    step = len(paths) / (len(paths) + (0 if at_once else shown))
    cards: list[Card] = []
    unreadable: list[ImageFacts] = []
    for facts, pixels in _decoded(paths, inner, unreadable):
        images = _named(facts, pixels)
        explained = _explain(detector, inner, images) if at_once else None
        table = detector.score_table(images, None if explained is None else explained["score"])
        for i, fact in enumerate(facts):
            values = {name: column[i].item() for name, column in table.items()}
            cards.append(Card(fact, **values))
        if explained is not None:
            look(cards[-len(facts) :], pixels, explained, inner.feature_spaces_)
        advance(step * len(facts))
    advance(step * len(unreadable))
    cards.sort(key=lambda card: (card.score, card.path))
    if not at_once:
        by_path = {card.path: card for card in cards[:limit]}
        for facts, pixels in _decoded([card.path for card in cards[:limit]], inner, []):
            explained = _explain(detector, inner, _named(facts, pixels))
            look([by_path[fact.path] for fact in facts], pixels, explained, inner.feature_spaces_)
            advance((1 - step) * len(paths) * len(facts) / shown)
    return cards, unreadable


@dataclass
class _Folder:
    """A folder of images, relative to the common root."""

    name: str
    images: int = 0
    flagged: int = 0


def _folders(cards: list[Card], root: str) -> list[_Folder]:
    """Return the folders of the images, sorted by name, and set the position of each card's folder."""
    names = [_below(root, os.path.dirname(absolute_path(card.path))) for card in cards]
    folders = {name: _Folder("(top)" if name == root else name) for name in sorted(set(names))}
    places = {name: i for i, name in enumerate(folders)}
    for card, name in zip(cards, names):
        card.folder = places[name]
        folders[name].images += 1
        folders[name].flagged += card.prediction < 0
    return list(folders.values())


def _wrong(cards: list[Card], unreadable: list[ImageFacts], inner: Any, training: _Training) -> dict[str, Any]:
    """Return images that may be wrong, by the kind of problem."""
    sides = [int(side) for side in getattr(inner.extractor_, "image_size_", ())]
    return {
        "unreadable": unreadable,
        "known": [card.facts for card in cards if card.facts.digest in training.known],
        "groups": _duplicates([card.facts for card in cards]),
        "tiny": [
            card.facts for card in cards if sides and min(card.facts.height, card.facts.width) * _TINY < min(sides)
        ],
        "blank": [card.facts for card in cards if card.facts.blank],
        "coloured": [card.facts for card in cards if inner.grey_ and card.facts.coloured],
        "side": min(sides, default=0),
    }


def _figures(detector: Any, inner: Any, cards: list[Card]) -> dict[str, Any]:
    """Return the histogram, and the numbers of decimals of figures, the same for all images."""
    reference = np.asarray(getattr(detector, "calibration_scores_", inner.training_scores_), dtype=np.float64)
    reference = reference[np.isfinite(reference)]
    scores = np.array([card.score for card in cards], dtype=np.float64)
    flagged = np.array([card.prediction < 0 for card in cards], dtype=bool)
    p_values = [card.p_value for card in cards if not math.isnan(card.p_value)]
    least = min(p_values, default=1.0)
    spread = float(np.std(reference)) or 1.0
    return {
        "histogram": histogram(scores, flagged, reference, getattr(detector, "offset_", None)),
        "whose_scores": _origin(detector, inner),
        "alarms": FalseAlarms.of(detector),
        "score_decimals": min(max(2 - math.floor(math.log10(spread)), 0), 6),
        "has_p": bool(p_values),
        "least_p": least,
        "p_decimals": min(max(math.ceil(-math.log10(max(least, 1e-6))), 3), 6),
        "usual_distance": _usual_distance(inner),
        "spaces": list(inner.feature_spaces_),
    }


def _origin(detector: Any, inner: Any) -> str:
    """Say of which normal images the scores of the histogram are."""
    calibrated = hasattr(detector, "calibration_scores_")
    if calibrated and not isinstance(detector.calibration, str):
        return "that calibrate the threshold"
    held_out = calibrated or inner.held_out_
    return "of the fit, each judged by the others" if held_out else "of the fit"


def _usual_distance(inner: Any) -> float:
    """Return the median distance of normal images from their nearest other one, as in `explain`; NaN without any."""
    known = {"pretrained": inner.training_embeddings_, "discrepancy": inner.training_discrepancies_}
    training = {name: z for name, z in known.items() if z.shape[1]}
    learned = np.flatnonzero(~np.isnan(next(iter(training.values()), np.empty((0, 1)))).any(axis=1))
    if len(learned) < 2:
        return math.nan
    chosen = learned[np.linspace(0, len(learned) - 1, min(len(learned), _SAMPLED)).astype(int)]
    found = nearest({name: z[chosen] for name, z in training.items()}, training, 2)
    return float(np.median(found["distance1"])) if "distance1" in found else math.nan


def _maps(cards: list[Card]) -> dict[str, Any]:
    return {
        "has_maps": any(card.map is not None for card in cards),
        "map_from": MAP_FROM,
        "map_noise": MAP_NOISE,
        "map_to": strongest(cards),
    }


def _decoded(
    paths: list[str], inner: Any, unreadable: list[ImageFacts]
) -> Iterator[tuple[list[ImageFacts], list[np.ndarray]]]:
    """Decode a few images at a time, like the detector `inner`, and add unreadable ones to `unreadable`."""
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


def _named(facts: list[ImageFacts], pixels: list[np.ndarray]) -> Images:
    """Return decoded images under the names of their files, which warnings tell."""
    return Images(len(pixels), pixels.__getitem__, name=lambda i: repr(facts[i].path))


def _explain(detector: Any, inner: Any, images: Images) -> dict[str, np.ndarray]:
    """Return scores, their parts, neighbours, by their positions in the fit of `inner`, and, if possible, maps."""
    table = inner.explain(images, n_neighbors=N_NEIGHBORS, maps=has_maps(inner))
    if detector is not inner and hasattr(detector, "offset_"):
        table["reason"] = reason_column(table, np.asarray(table["score"]) - detector.offset_)
    return table


@dataclass
class _TrainingImage:
    """A training image on the page."""

    position: int
    name: str
    path: str
    score: float


class _Training:
    """The images that a model was fitted on, if the model file names them and they still exist."""

    def __init__(self, provenance: Provenance, normal_dir: str | os.PathLike | None, detector: Any):
        self.made = provenance
        self.root = None if normal_dir is None else Path(normal_dir)
        if normal_dir is None and provenance.own:
            self.root = Path(provenance.root)
        # known anomalies and what was left out, which are not part of the fit, have no score
        scores = provenance.scores or [0.0] * len(provenance.files)
        self.learned = sum(score is not None for score in scores)
        learned = detector.training_digests_[detector.training_labels_ == LEARNED]
        self.known = {bytes(digest).hex() for digest in learned if digest.any()}
        self.fitted = provenance.fitted
        self.positions = {index: position for position, index in enumerate(self.fitted)}
        self.thumbnails = getattr(detector, "training_thumbnails_", np.empty((0, THUMBNAIL_SIZE)))
        self.size = getattr(detector.extractor_, "image_size_", None)  # to which the teacher resizes images
        self.missing = 0
        self.changed = 0  # or of another folder with the same names

    def name(self, position: int) -> str:
        """Return the relative path of the training image at `position` in the fit; "" if unknown."""
        index = self.fitted[position] if 0 <= position < len(self.fitted) else -1
        return self.made.files[index] if index >= 0 else ""

    def suspicious(self) -> list[_TrainingImage]:
        """Return the images with the lowest held-out scores."""
        made = self.made
        scored = sorted((score, i) for i, score in enumerate(made.scores) if score is not None)
        number = min(_N_SUSPICIOUS, math.ceil(len(scored) / 5))
        return [
            _TrainingImage(self.positions.get(i, -1 - i), made.files[i], str(self._folder_of(i) / made.files[i]), score)
            for score, i in scored[:number]
        ]

    def _folder_of(self, index: int) -> Path:
        """Return the folder that labels are to name a training image in: the given one, if it holds that image."""
        if self.root is not None:
            with contextlib.suppress(ImageError):
                if self._pixels(self.root, index) is not None:
                    return self.root
        return Path(self.made.root)

    def _pixels(self, root: Path, index: int) -> np.ndarray | None:
        """Return the pixels of a training image, or None if it is another image than in the fit."""
        for path in self.made.places(root, index):
            pixels = self._pixels_at(path, index)
            if pixels is not None:
                return pixels
        if not os.path.lexists(root / self.made.files[index]):
            raise ImageError("it is not there, but another of the same name")
        return None

    def _pixels_at(self, path: str, index: int) -> np.ndarray | None:
        pixels = as_images([path]).reduced(self.size)[0]
        if not self.made.digests or image_facts(path, pixels).digest == self.made.digests[index]:
            return pixels
        # another decoder gives slightly other pixels
        position = self.positions.get(index, len(self.thumbnails))
        if position >= len(self.thumbnails) or not self.thumbnails[position].any():
            return None
        difference = thumbnail_of(pixels).astype(np.float64) - self.thumbnails[position]
        return pixels if np.sqrt(np.mean(difference**2)) <= COPY_LEVELS else None

    def pictures(self, positions: Sequence[int]) -> dict[int, str]:
        """Return pictures of training images; count those that cannot be read, and those that are not of the fit."""
        pictures: dict[int, str] = {}
        if self.root is None:
            return pictures
        for position in sorted(set(positions)):
            index = -1 - position if position < 0 else self.fitted[position] if position < len(self.fitted) else -1
            if index < 0:
                continue
            try:
                pixels = self._pixels(self.root, index)
            except ImageError:
                self.missing += 1
                continue
            if pixels is None:
                self.changed += 1
            else:
                pictures[position] = small_picture(pixels)
        return pictures


def _duplicates(facts: list[ImageFacts]) -> list[list[ImageFacts]]:
    """Return groups of images with the same pixels, the largest first."""
    groups = defaultdict(list)
    for fact in facts:
        groups[fact.digest].append(fact)
    return sorted((group for group in groups.values() if len(group) > 1), key=len, reverse=True)


def _number(value: float, digits: int = 4) -> str:
    """Format a number with few digits."""
    if math.isnan(value):
        return "–"
    if math.isinf(value):
        return "−∞" if value < 0 else "∞"
    return f"{value:.{digits if abs(value) < 1e4 else 3}g}".replace("-", "−")


def _fixed(value: float, decimals: int) -> str:
    """Format a number with a fixed number of decimals, so that numbers align."""
    if not math.isfinite(value) or abs(value) >= 1e6:
        return _number(value)
    return f"{round(value, decimals) + 0.0:.{decimals}f}".replace("-", "−")  # no minus before a zero


def _below(folder: str, path: str) -> str:
    """Return `path` relative to `folder` if it is in it."""
    whole = absolute_path(path)
    return os.path.relpath(whole, folder) if folder and whole.startswith(folder + os.sep) else path


def _source(name: str) -> str:
    return (files("skl_transformaly.cli") / "templates" / name).read_text(encoding="utf-8")


def _policy(style: str, script: str) -> str:
    """Return the content security policy, which permits only the script, style and images inside the page."""

    def digest(text: str) -> str:
        return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()

    return (
        "default-src 'none'; img-src data:; "
        f"style-src 'sha256-{digest(style)}'; script-src 'sha256-{digest(script)}'; base-uri 'none'; form-action 'none'"
    )
