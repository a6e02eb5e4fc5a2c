"""Images with extreme scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted, column_or_1d

from skl_transformaly._wrappers import innermost
from skl_transformaly.images._images import as_images, is_table
from skl_transformaly.images._samples import as_sequence, on_error_of, rows_as_images, take_samples
from skl_transformaly.plotting._base import COLORS, Display, pyplot, scores_of
from skl_transformaly.utils._labels import check_labels

__all__ = ["ExtremeImagesDisplay"]


@dataclass(kw_only=True, eq=False, repr=False)
class ExtremeImagesDisplay(Display):
    """The most and the least normal images, with their anomaly maps, drawn by ``Axes.imshow``.

    Parameters
    ----------
    images : list of ndarray of shape (H, W, C)
        The images shown: the most normal ones, the most normal first, then the least normal ones, the least normal
        first.
    scores : ndarray of shape (n_shown,)
        Their scores.
    positions : ndarray of shape (n_shown,), int
        Their positions among all images.
    y : ndarray of shape (n_shown,), int, default=None
        Their labels, +1 or -1.
    maps : list of ndarray of shape (H, W), default=None
        Their anomaly maps.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes, of shape (2, n_shown // 2) or (4, n_shown // 2)
        The pictures; with `maps`, rows of images and of maps in turn.
    colorbar_ : matplotlib Colorbar or None
        Of the maps.

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.ensemble import IsolationForest
    >>> from skl_transformaly.plotting import ExtremeImagesDisplay
    >>> X = load_digits().data[:100]
    >>> detector = IsolationForest(random_state=0).fit(X)
    >>> display = ExtremeImagesDisplay.from_estimator(detector, X, n_images=3, image_shape=(8, 8))
    >>> display.axes_.shape
    (2, 3)
    """

    images: list[np.ndarray]
    scores: np.ndarray
    positions: np.ndarray
    y: np.ndarray | None = None
    maps: list[np.ndarray] | None = None

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        n_images: int = 6,
        maps: bool | str = "auto",
        block: int | None = None,
        image_shape: tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> ExtremeImagesDisplay:
        """Score images and show the extreme ones, of which alone maps are computed.

        Parameters
        ----------
        estimator : fitted outlier detector
            :class:`TransformalyDetector`, :class:`ConformalDetector`, any of scikit-learn's, or a Pipeline or search
            that ends in one.
        X : images
            In a form that both :class:`TransformalyDetector` and `estimator` take.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly. The images then have frames in the colours of normal images and anomalies.
        n_images : int, default=6
            Number of images of either kind; at most half of all images.
        maps : bool or "auto", default="auto"
            Whether to show anomaly maps; "auto" shows them if the estimator can make them.
        block : int, default=None
            Map of this block alone, as for :meth:`TransformalyDetector.anomaly_map`.
        image_shape : tuple of int, default=None
            (H, W) or (H, W, C) of images that come as rows; None is the estimator's own.
        **kwargs
            `ax` and others, passed to :meth:`plot`.

        Returns
        -------
        display : ExtremeImagesDisplay

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        TypeError
            ``maps=True`` and the estimator does not have `anomaly_map`.
        ValueError
            `y` holds other labels than +1 and -1, or fewer than 2 images have a score.
        """
        check_is_fitted(estimator)
        detector = innermost(estimator)
        if maps is True and not hasattr(estimator, "anomaly_map"):
            raise TypeError(
                f"maps=True needs an estimator with anomaly_map, but got {type(estimator).__name__}: use maps='auto'."
            )
        if maps == "auto":
            maps = hasattr(estimator, "anomaly_map")
            if maps and hasattr(detector, "feature_spaces_"):
                from skl_transformaly._explanation import has_maps  # which imports torch

                maps = has_maps(detector)
        samples = as_sequence(X)
        scores = scores_of(estimator, samples)
        positions = _extremes(scores, n_images)
        chosen = take_samples(samples, positions, on_error=on_error_of(estimator))
        shown = estimator.anomaly_map(chosen, block=block) if maps else None
        shape = image_shape if image_shape is not None else getattr(detector, "image_shape", None)
        return cls._make(chosen, scores, positions, y, shown, shape).plot(**kwargs)

    @classmethod
    def from_predictions(
        cls,
        X: Any,
        scores: Any,
        y: Any = None,
        *,
        maps: Any = None,
        n_images: int = 6,
        image_shape: tuple[int, ...] | None = None,
        **kwargs: Any,
    ) -> ExtremeImagesDisplay:
        """Show those of some images that have extreme scores.

        Parameters
        ----------
        X : images
            In any form that :class:`TransformalyDetector` takes.
        scores : array-like of shape (n_samples,)
            Higher is more normal; images with NaN are not shown.
        maps : ndarray of shape (n_samples, H, W) or sequence of ndarray of shape (H, W), default=None
            Anomaly maps of all images.
        y, n_images, image_shape, **kwargs
            As for :meth:`from_estimator`.

        Returns
        -------
        display : ExtremeImagesDisplay

        Raises
        ------
        ValueError
            `y` holds other labels than +1 and -1, lengths differ, or fewer than 2 images have a score.
        """
        samples = as_sequence(X)
        scores = column_or_1d(np.asarray(scores, dtype=np.float64))
        check_consistent_length(samples, scores, maps)
        positions = _extremes(scores, n_images)
        shown = None if maps is None else [maps[i] for i in positions]
        return cls._make(take_samples(samples, positions), scores, positions, y, shown, image_shape).plot(**kwargs)

    @classmethod
    def _make(
        cls, chosen: Any, scores: np.ndarray, positions: np.ndarray, y: Any, maps: Any, shape: tuple[int, ...] | None
    ) -> ExtremeImagesDisplay:
        check_consistent_length(scores, y)
        images = rows_as_images(chosen, shape) if is_table(chosen) else as_images(chosen)
        return cls(
            images=[images[i] for i in range(len(images))],
            scores=scores[positions],
            positions=positions,
            y=None if y is None else check_labels(y, "A display")[positions],
            maps=None if maps is None else list(maps),
        )

    @property
    def _deep(self) -> int:
        """Rows of axes for a row of images."""
        return 1 if self.maps is None else 2

    def _new_axes(self) -> Any:
        size = 1.2 * (len(self.images) // 2) + 1.2, 2.4 * self._deep + 1.2
        return pyplot().subplots(figsize=size)[1]

    def _draw(self, ax: Any, style: dict[str, Any]) -> None:
        deep, columns = self._deep, len(self.images) // 2
        self.axes_, side = _grid(ax, deep, columns)
        self.colorbar_ = None
        for row, label in zip((0, deep), ("most normal", "least normal")):
            self.axes_[row, 0].set_ylabel(label, fontsize="small")
        places = self.axes_[::deep].ravel()
        for place, picture, position, score in zip(places, _pictures(self.images), self.positions, self.scores):
            place.imshow(picture, cmap="gray", vmin=0, vmax=1)
            place.set_title(f"#{position}\n{score:.4g}", fontsize="small")
        if self.y is not None:
            names = {1: "normal", -1: "anomaly"}
            for place, label in zip(places, self.y):
                place.spines[:].set(color=COLORS[names[label]], linewidth=3)
            line = pyplot().Line2D
            handles = [
                line([], [], color=COLORS[name], linewidth=3, label=name)
                for label, name in names.items()
                if label in self.y
            ]
            ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False)
        if self.maps is not None:
            self._draw_maps(self.maps, ax.figure, side, style)

    def _draw_maps(self, maps: list[np.ndarray], figure: Any, side: Any, style: dict[str, Any]) -> None:
        values = np.concatenate([single.ravel() for single in maps])
        # One scale for all maps. It ends below the largest value, since outlying tokens, which transformers have in any
        # image, would leave the rest dark.
        look = {"cmap": "magma", "vmin": np.nanmin(values), "vmax": np.nanquantile(values, 0.98), **style}
        for place, single in zip(self.axes_[1::2].ravel(), maps):
            mappable = place.imshow(single, **look)
        for first in self.axes_[1::2, 0]:
            first.set_ylabel("map", fontsize="small")
        margin = figure.add_subplot(side)
        margin.set_axis_off()
        bar = margin.inset_axes((0.0, 0.1, 0.2, 0.8))
        self.colorbar_ = figure.colorbar(mappable, cax=bar, label="anomaly map, higher is less normal", extend="max")


def _grid(ax: Any, deep: int, columns: int) -> tuple[np.ndarray, Any]:
    """Fill the place of `ax` with two groups of `deep` rows of axes without ticks.

    Returns these axes, and the place to the right of them. `ax` itself only shows the legend.
    """
    # lazily, as matplotlib itself
    from matplotlib.gridspec import GridSpec, GridSpecFromSubplotSpec

    ax.set_axis_off()
    look: dict[str, Any] = {"width_ratios": [columns, 0.7], "hspace": 0.3, "wspace": 0.08}
    place = ax.get_subplotspec()
    if place is None:  # axes that were placed by hand
        (left, bottom), (right, top) = ax.get_position().get_points()
        halves: Any = GridSpec(2, 2, ax.figure, left=left, bottom=bottom, right=right, top=top, **look)
    else:
        halves = GridSpecFromSubplotSpec(2, 2, subplot_spec=place, **look)
    groups = [
        GridSpecFromSubplotSpec(deep, columns, subplot_spec=halves[half, 0], hspace=0.06, wspace=0.08)
        for half in (0, 1)
    ]
    places = [[group[i, j] for j in range(columns)] for group in groups for i in range(deep)]
    axes = np.array([[ax.figure.add_subplot(place) for place in row] for row in places])
    for single in axes.flat:
        single.set(xticks=[], yticks=[])
    return axes, halves[:, 1]


def _extremes(scores: np.ndarray, n_images: int) -> np.ndarray:
    """Positions of the highest scores, highest first, then of the lowest, lowest first."""
    order = np.argsort(scores, kind="stable")[: int((~np.isnan(scores)).sum())]
    if len(order) < 2:
        raise ValueError(f"Expected at least 2 images with a score, got {len(order)} of {len(scores)}.")
    if n_images < 1:
        raise ValueError(f"n_images must be 1 or more, got {n_images!r}.")
    k = min(int(n_images), len(order) // 2)
    return np.concatenate([order[::-1][:k], order[:k]])


def _pictures(images: list[np.ndarray]) -> list[np.ndarray]:
    """Images as floats in 0-1 for drawing, grey ones without channels; values of unusual range by that range."""
    scaled = [image / np.iinfo(image.dtype).max if image.dtype.kind == "u" else image for image in images]
    low, high = min(0.0, *(float(i.min()) for i in scaled)), max(1.0, *(float(i.max()) for i in scaled))
    scaled = [(image - low) / (high - low) for image in scaled]
    return [image[..., 0] if image.shape[-1] == 1 else image for image in scaled]
