"""Pictures of a fitted detector, as displays in the manner of scikit-learn's.

Each display is made by `from_estimator`, or from numbers that are at hand already, keeps those numbers as attributes,
and draws them by `plot`::

    display = ScoreHistogramDisplay.from_estimator(detector, X, y)
    display.plot(ax=ax)  # once more, elsewhere

Needs matplotlib, the extra ``plot``, once something is drawn.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from sklearn import metrics
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import (
    auc,
    average_precision_score,
    precision_recall_curve,
    roc_curve,
)
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted, column_or_1d

from skl_transformaly.images._images import as_images, is_table
from skl_transformaly.images._samples import as_sequence, on_error_of, rows_as_images, take_samples
from skl_transformaly.utils._labels import check_labels

__all__ = [
    "AnomalyPrecisionRecallDisplay",
    "AnomalyRocCurveDisplay",
    "BlockDiscrepancyDisplay",
    "EmbeddingDisplay",
    "ExtremeImagesDisplay",
    "ScoreHistogramDisplay",
    "TrainingHistoryDisplay",
]

# One look for normal images, anomalies, and images of which it is not known.
_COLORS = {"normal": "tab:blue", "anomaly": "tab:orange", "all": "tab:blue", "training": "0.6"}

_MAX_BINS = 100


class ScoreHistogramDisplay:
    """Histogram of scores, with the threshold and, where the detector has them, p-values.

    It is recommended to use :meth:`from_estimator` or :meth:`from_predictions`. All parameters are stored as
    attributes.

    Parameters
    ----------
    bin_edges : ndarray of shape (n_bins + 1,)
        Edges of the bins, ascending.
    counts : dict of str to ndarray of shape (n_bins,), int
        Number of scores in each bin, of the images that are "normal" and "anomaly", or of "all" where labels are not
        known.
    threshold : float, default=None
        Scores below it are called anomalies.
    p_values : tuple of two ndarray, default=None
        Scores in ascending order, and their p-values.
    n_outside : tuple of (int, int), default=(0, 0)
        How many scores are below the first and above the last edge.
    score_name : str, default="score"
        What the scores are, for the axis.
    threshold_name : str, default="threshold"
        What the threshold is, for the legend.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    bars_ : dict of str to matplotlib StepPatch
        The histogram of each key of `counts`.
    threshold_line_ : matplotlib Line2D or None
    p_ax_ : matplotlib Axes or None
        The axes of the p-values, which shares the scores' axis.
    p_line_ : matplotlib Line2D or None

    See Also
    --------
    AnomalyRocCurveDisplay : What all thresholds would give.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from skl_transformaly import ConformalDetector
    >>> from skl_transformaly.plotting import ScoreHistogramDisplay
    >>> rng = np.random.default_rng(0)
    >>> detector = ConformalDetector(IsolationForest(random_state=0), random_state=0).fit(rng.normal(size=(300, 2)))
    >>> X, y = rng.normal(size=(40, 2)) * np.repeat([[1], [4]], 20, axis=0), np.repeat([1, -1], 20)
    >>> display = ScoreHistogramDisplay.from_estimator(detector, X, y)
    >>> int(display.counts["normal"].sum())
    20
    """

    def __init__(
        self,
        *,
        bin_edges: np.ndarray,
        counts: dict[str, np.ndarray],
        threshold: float | None = None,
        p_values: tuple[np.ndarray, np.ndarray] | None = None,
        n_outside: tuple[int, int] = (0, 0),
        score_name: str = "score",
        threshold_name: str = "threshold",
    ):
        self.bin_edges = bin_edges
        self.counts = counts
        self.threshold = threshold
        self.p_values = p_values
        self.n_outside = n_outside
        self.score_name = score_name
        self.threshold_name = threshold_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        response_method: str = "auto",
        bins: Any = "auto",
        ax: Any = None,
        **kwargs: Any,
    ) -> ScoreHistogramDisplay:
        """Score images and draw the histogram.

        Parameters
        ----------
        estimator : fitted outlier detector
            :class:`TransformalyDetector`, :class:`ConformalDetector`, which has p-values, or any of scikit-learn's, or
            a Pipeline or search that ends in one.
        X : samples
            As `estimator` takes them.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly; None, if that is not known.
        response_method : {"auto", "score_samples", "decision_function"}, default="auto"
            What to draw. "auto" is `score_samples` where the estimator has an `offset_` to be its threshold, else
            `decision_function`, whose threshold is 0.
        bins : int, str or array-like, default="auto"
            As for :func:`numpy.histogram_bin_edges`; a rule by name gives 100 bins at most.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.stairs``.

        Returns
        -------
        display : ScoreHistogramDisplay

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        ValueError
            `y` holds other labels than +1 and -1, no score is finite, or `response_method` is unknown.
        """
        check_is_fitted(estimator)
        if response_method == "auto":
            known = hasattr(estimator, "score_samples") and hasattr(estimator, "offset_")
            response_method = "score_samples" if known else "decision_function"
        if response_method not in ("score_samples", "decision_function"):
            raise ValueError(
                f"response_method must be 'auto', 'score_samples' or 'decision_function', got {response_method!r}."
            )
        threshold: float | None = 0.0
        if response_method == "score_samples":
            threshold = float(np.squeeze(estimator.offset_)) if hasattr(estimator, "offset_") else None
        p_values, threshold_name = None, "threshold"
        if hasattr(estimator, "score_table") and hasattr(estimator, "p_values"):
            table = estimator.score_table(X)  # scores and p-values from one scoring
            scores = table["score" if response_method == "score_samples" else "decision"]
            p_values, threshold_name = table["p_value"], f"threshold, alpha = {estimator.alpha:g}"
        else:
            scores = _scores(estimator, X, response_method)
        return cls._make(
            scores,
            y,
            threshold=threshold,
            p_values=p_values,
            bins=bins,
            score_name={"score_samples": "score", "decision_function": "decision"}[response_method],
            threshold_name=threshold_name,
        ).plot(ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        scores: Any,
        y: Any = None,
        *,
        threshold: float | None = None,
        p_values: Any = None,
        bins: Any = "auto",
        ax: Any = None,
        **kwargs: Any,
    ) -> ScoreHistogramDisplay:
        """Draw the histogram of scores that are at hand.

        Parameters
        ----------
        scores : array-like of shape (n_samples,)
            Higher is more normal; NaN, of unreadable images, is left out.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly; None, if that is not known.
        threshold : float, default=None
            Scores below it are called anomalies.
        p_values : array-like of shape (n_samples,), default=None
            In (0, 1], small for anomalies; drawn on an axis of their own.
        bins : int, str or array-like, default="auto"
            As for :func:`numpy.histogram_bin_edges`; a rule by name gives 100 bins at most.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.stairs``.

        Returns
        -------
        display : ScoreHistogramDisplay

        Raises
        ------
        ValueError
            `y` holds other labels than +1 and -1, lengths differ, or no score is finite.
        """
        return cls._make(scores, y, threshold=threshold, p_values=p_values, bins=bins).plot(ax=ax, **kwargs)

    @classmethod
    def _make(cls, scores: Any, y: Any, *, p_values: Any, bins: Any, **names: Any) -> ScoreHistogramDisplay:
        scores = column_or_1d(np.asarray(scores, dtype=np.float64))
        check_consistent_length(scores, y, p_values)
        finite = scores[np.isfinite(scores)]
        if not len(finite):
            raise ValueError(f"None of the {len(scores)} scores is a finite number, so there is nothing to draw.")
        edges = _bin_edges(finite, bins)
        counts = {name: np.histogram(scores[mask], edges)[0] for name, mask in _groups(y, len(scores)).items()}
        curve = None
        if p_values is not None:
            known = np.flatnonzero(np.isfinite(scores))
            order = known[np.argsort(scores[known], kind="stable")]
            curve = scores[order], np.asarray(p_values, dtype=np.float64)[order]
        n_outside = int((scores < edges[0]).sum()), int((scores > edges[-1]).sum())
        return cls(bin_edges=edges, counts=counts, p_values=curve, n_outside=n_outside, **names)

    def plot(self, ax: Any = None, **kwargs: Any) -> ScoreHistogramDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.stairs``.

        Returns
        -------
        display : ScoreHistogramDisplay
            Itself.
        """
        ax = self.ax_ = _axes(ax)
        self.figure_ = ax.figure
        self.bars_, self.threshold_line_, self.p_ax_, self.p_line_ = {}, None, None, None
        for name, counts in self.counts.items():
            style = {"fill": True, "alpha": 0.5, "color": _COLORS[name], "label": f"{name} ({counts.sum()})", **kwargs}
            self.bars_[name] = ax.stairs(counts, self.bin_edges, **style)
        if self.threshold is not None:
            self.threshold_line_ = ax.axvline(self.threshold, color="k", linestyle="--", label=self.threshold_name)
        if self.p_values is not None:
            self.p_ax_ = ax.twinx()
            scores, p = self.p_values
            (self.p_line_,) = self.p_ax_.plot(scores, p, color="tab:green", drawstyle="steps-post", label="p-value")
            self.p_ax_.set(ylabel="p-value", yscale="log")
        beyond = "".join(f"; {n} {side}" for n, side in zip(self.n_outside, ("below", "above")) if n)
        ax.set(xlabel=f"{self.score_name} (higher is more normal{beyond})", ylabel="images")
        handles = ax.get_legend_handles_labels()[0] + ([] if self.p_line_ is None else [self.p_line_])
        # on the uppermost axes, or lines of the p-values go through it
        (self.p_ax_ or ax).legend(handles=handles, loc="upper left")
        return self


class ExtremeImagesDisplay:
    """The most and the least normal images, with their anomaly maps.

    It is recommended to use :meth:`from_estimator` or :meth:`from_predictions`. All parameters are stored as
    attributes.

    Parameters
    ----------
    images : list of ndarray of shape (H, W, C)
        The images shown: the most normal ones, the most normal first, then the least normal ones, the least normal
        first.
    scores : ndarray of shape (n_shown,)
        Their scores.
    positions : ndarray of shape (n_shown,), int
        Their positions among all.
    y : ndarray of shape (n_shown,), int, default=None
        Their labels, +1 or -1.
    maps : list of ndarray of shape (H, W), default=None
        Their anomaly maps.

    Attributes
    ----------
    ax_ : matplotlib Axes
        What holds the grid; itself not shown.
    axes_ : ndarray of matplotlib Axes, of shape (2, n_shown // 2) or (4, n_shown // 2)
        The pictures; with `maps`, rows of images and of maps in turn.
    figure_ : matplotlib Figure
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

    def __init__(
        self,
        *,
        images: list[np.ndarray],
        scores: np.ndarray,
        positions: np.ndarray,
        y: np.ndarray | None = None,
        maps: list[np.ndarray] | None = None,
    ):
        self.images = images
        self.scores = scores
        self.positions = positions
        self.y = y
        self.maps = maps

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
        ax: Any = None,
        **kwargs: Any,
    ) -> ExtremeImagesDisplay:
        """Score images and show the extreme ones. Only those are decoded for display, and mapped.

        Parameters
        ----------
        estimator : fitted outlier detector
            :class:`TransformalyDetector`, :class:`ConformalDetector`, any of scikit-learn's, or a Pipeline or search
            that ends in one.
        X : images
            Any form that :class:`TransformalyDetector` takes and `estimator` too.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly. Images are then framed in the colours of normal ones and anomalies.
        n_images : int, default=6
            How many of the most, and of the least normal ones; at most half of all images.
        maps : bool or "auto", default="auto"
            Whether to show anomaly maps; "auto" is where the estimator can make them.
        block : int, default=None
            One block's map alone, as for :meth:`TransformalyDetector.anomaly_map`.
        image_shape : tuple of int, default=None
            (H, W) or (H, W, C) of images that come as rows; None is the estimator's own.
        ax : matplotlib Axes, default=None
            Its place is filled with the grid; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.imshow`` for the maps.

        Returns
        -------
        display : ExtremeImagesDisplay

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        TypeError
            ``maps=True`` and the estimator has no anomaly maps.
        ValueError
            `y` holds other labels than +1 and -1, or fewer than 2 images have a score.
        """
        check_is_fitted(estimator)
        detector = _detector(estimator)
        can = hasattr(estimator, "anomaly_map") and "discrepancy" in getattr(
            detector, "feature_spaces_", ["discrepancy"]
        )
        if maps is True and not hasattr(estimator, "anomaly_map"):
            raise TypeError(
                f"maps=True needs an estimator with anomaly_map; {type(estimator).__name__} has none: use maps='auto'."
            )
        samples = as_sequence(X)
        scores = _scores(estimator, samples)
        positions = _extremes(scores, n_images)
        chosen = take_samples(samples, positions, on_error=on_error_of(estimator))
        shown = estimator.anomaly_map(chosen, block=block) if maps is True or (maps == "auto" and can) else None
        shape = image_shape if image_shape is not None else getattr(detector, "image_shape", None)
        return cls._make(chosen, scores, positions, y, shown, shape).plot(ax=ax, **kwargs)

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
        ax: Any = None,
        **kwargs: Any,
    ) -> ExtremeImagesDisplay:
        """Show the extreme ones of images whose scores are at hand.

        Parameters
        ----------
        X : images
            Any form that :class:`TransformalyDetector` takes.
        scores : array-like of shape (n_samples,)
            Higher is more normal; images with NaN are not shown.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly.
        maps : ndarray of shape (n_samples, H, W) or sequence of ndarray of shape (H, W), default=None
            Anomaly maps of all images.
        n_images : int, default=6
            How many of the most, and of the least normal ones; at most half of all images.
        image_shape : tuple of int, default=None
            (H, W) or (H, W, C) of images that come as rows.
        ax : matplotlib Axes, default=None
            Its place is filled with the grid; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.imshow`` for the maps.

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
        chosen = take_samples(samples, positions)
        shown = None if maps is None else [maps[i] for i in positions]
        return cls._make(chosen, scores, positions, y, shown, image_shape).plot(ax=ax, **kwargs)

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

    def plot(self, ax: Any = None, **kwargs: Any) -> ExtremeImagesDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Its place is filled with the grid; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.imshow`` for the maps.

        Returns
        -------
        display : ExtremeImagesDisplay
            Itself.
        """
        columns, deep = len(self.images) // 2, 1 if self.maps is None else 2
        self.axes_, ax, side = _grid(ax, deep, columns)
        self.ax_, self.figure_, self.colorbar_ = ax, ax.figure, None
        pictures = _pictures(self.images)
        values = np.concatenate([single.ravel() for single in self.maps or [np.zeros(1)]])
        # one scale, so that maps compare; not up to the largest value, or the outlying tokens that transformers have,
        # whatever the image, leave all else dark
        limits = {"vmin": float(np.nanmin(values)), "vmax": float(np.nanquantile(values, 0.98))}
        for k, picture in enumerate(pictures):
            row, column = divmod(k, columns)
            place = self.axes_[row * deep, column]
            place.imshow(picture, cmap="gray", vmin=0, vmax=1)
            place.set_title(f"#{self.positions[k]}\n{self.scores[k]:.4g}", fontsize="small")
            if self.y is not None:
                color = _COLORS["normal" if self.y[k] == 1 else "anomaly"]
                for spine in place.spines.values():
                    spine.set(color=color, linewidth=3)
            if self.maps is not None:
                below = self.axes_[row * deep + 1, column]
                mappable = below.imshow(self.maps[k], **{"cmap": "magma", **limits, **kwargs})
        for row, label in zip((0, deep), ("most normal", "least normal")):
            self.axes_[row, 0].set_ylabel(label, fontsize="small")
            if deep == 2:
                self.axes_[row + 1, 0].set_ylabel("map", fontsize="small")
        if self.maps is not None:
            margin = ax.figure.add_subplot(side)
            margin.set_axis_off()
            bar = margin.inset_axes((0.0, 0.1, 0.2, 0.8))
            self.colorbar_ = ax.figure.colorbar(
                mappable, cax=bar, label="anomaly map, higher is less normal", extend="max"
            )
        if self.y is not None:
            frames = {"normal": 1, "anomaly": -1}
            names = [name for name, label in frames.items() if label in self.y]
            handles = [_pyplot().Line2D([], [], color=_COLORS[name], linewidth=3, label=name) for name in names]
            ax.legend(handles=handles, loc="upper center", bbox_to_anchor=(0.5, 0), ncols=2, frameon=False)
        return self


class BlockDiscrepancyDisplay:
    """How far the students deviate, block by block.

    It is recommended to use :meth:`from_estimator` or :meth:`from_predictions`. All parameters are stored as
    attributes.

    Parameters
    ----------
    block_indices : ndarray of shape (m,), int
        Places of the teacher's blocks, counted from 0.
    quantiles : dict of str to ndarray of shape (3, m)
        The 5 %, 50 % and 95 % quantiles of the discrepancies of the images that are "normal" and "anomaly", or of
        "all" where labels are not known; and of those in "training".
    relative : bool, default=False
        Whether each block's discrepancies are in units of their mean over the training images.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : dict of str to matplotlib Line2D
        The medians.
    bands_ : dict of str to matplotlib PolyCollection
        What is between the quantiles.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly.plotting import BlockDiscrepancyDisplay
    >>> discrepancies = np.random.default_rng(0).gamma(5, 0.2, size=(20, 3))
    >>> display = BlockDiscrepancyDisplay.from_predictions(discrepancies, block_indices=[9, 10, 11])
    >>> display.quantiles["all"].shape
    (3, 3)
    """

    def __init__(self, *, block_indices: np.ndarray, quantiles: dict[str, np.ndarray], relative: bool = False):
        self.block_indices = block_indices
        self.quantiles = quantiles
        self.relative = relative

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any = None, *, ax: Any = None, **kwargs: Any
    ) -> BlockDiscrepancyDisplay:
        """Measure the discrepancies of images, in units of what is usual for the training images, and draw them.

        Parameters
        ----------
        estimator : fitted TransformalyDetector or BlockStudents
            Or a Pipeline, search or wrapper that ends in one. BlockStudents have no units but their own.
        X : images
            Any form that :class:`TransformalyDetector` takes.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly; None, if that is not known.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.plot`` for the medians.

        Returns
        -------
        display : BlockDiscrepancyDisplay

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        TypeError
            It has no students.
        ValueError
            `y` holds other labels than +1 and -1.
        """
        check_is_fitted(estimator)
        detector = _detector(estimator)
        students = _students(estimator)
        z = np.asarray(estimator.transform(X), dtype=np.float64)
        z = _discrepancies(students, z)
        training: Any = getattr(detector, "training_discrepancies_", None)
        relative = training is not None
        if relative:
            training = _discrepancies(students, training)
            usual = np.nanmean(training, axis=0)
            z, training = z / usual, training / usual
        return cls._make(z, y, students.block_indices_, training, relative).plot(ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        discrepancies: Any,
        y: Any = None,
        *,
        block_indices: Sequence[int] | None = None,
        training: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> BlockDiscrepancyDisplay:
        """Draw discrepancies that are at hand.

        Parameters
        ----------
        discrepancies : array-like of shape (n_samples, m)
            Rows with NaN, of unreadable images, are left out.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly; None, if that is not known.
        block_indices : sequence of int of length m, default=None
            Places of the teacher's blocks; None counts from 0.
        training : array-like of shape (n_training, m), default=None
            Discrepancies of the training images, to be drawn as well.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.plot`` for the medians.

        Returns
        -------
        display : BlockDiscrepancyDisplay

        Raises
        ------
        ValueError
            `y` holds other labels than +1 and -1, or lengths differ.
        """
        return cls._make(discrepancies, y, block_indices, training, False).plot(ax=ax, **kwargs)

    @classmethod
    def _make(
        cls, discrepancies: Any, y: Any, block_indices: Any, training: Any, relative: bool
    ) -> BlockDiscrepancyDisplay:
        z = check_array(discrepancies, dtype=np.float64, ensure_all_finite="allow-nan")
        check_consistent_length(z, y)
        indices = np.arange(z.shape[1]) if block_indices is None else np.asarray(block_indices)
        if indices.shape != (z.shape[1],):
            raise ValueError(f"block_indices must name {z.shape[1]} blocks, one a column, got {block_indices!r}.")
        rows = {name: z[mask] for name, mask in _groups(y, len(z)).items()}
        if training is not None:
            rows = {"training": check_array(training, dtype=np.float64, ensure_all_finite="allow-nan"), **rows}
        quantiles = {name: np.nanquantile(values, (0.05, 0.5, 0.95), axis=0) for name, values in rows.items()}
        return cls(block_indices=indices, quantiles=quantiles, relative=relative)

    def plot(self, ax: Any = None, **kwargs: Any) -> BlockDiscrepancyDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.plot`` for the medians.

        Returns
        -------
        display : BlockDiscrepancyDisplay
            Itself.
        """
        ax = self.ax_ = _axes(ax)
        self.figure_ = ax.figure
        self.lines_, self.bands_ = {}, {}
        for name, (low, median, high) in self.quantiles.items():
            style = {"color": _COLORS[name], "marker": "o", "label": name, **kwargs}
            (self.lines_[name],) = ax.plot(self.block_indices, median, **style)
            color = self.lines_[name].get_color()
            self.bands_[name] = ax.fill_between(self.block_indices, low, high, color=color, alpha=0.2, linewidth=0)
        unit = "discrepancy, 1 is the training images' mean" if self.relative else "discrepancy"
        ax.set(xlabel="block of the teacher", ylabel=unit, xticks=self.block_indices)
        values = np.stack(list(self.quantiles.values()))
        if values.min() > 0 and values.max() > 10 * values.min():
            ax.set_yscale("log")
        ax.legend(title="median, 5 to 95 %")
        return self


class EmbeddingDisplay:
    """Map of a feature space in two dimensions.

    It is recommended to use :meth:`from_estimator` or :meth:`from_predictions`. All parameters are stored as
    attributes.

    Parameters
    ----------
    coordinates : ndarray of shape (n_samples, 2)
        Where each image is.
    y : ndarray of shape (n_samples,), default=None
        Labels of any kind; +1 and -1 are called normal and anomaly.
    values : ndarray of shape (n_samples,), default=None
        Numbers to colour by, where there are no labels: scores.
    training : ndarray of shape (n_training, 2), default=None
        Where the training images are.
    axis_names : tuple of (str, str), default=("", "")
        Names of the two dimensions.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    scatters_ : dict of matplotlib PathCollection
        By label; "all" where there are none; and "training".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skl_transformaly.plotting import EmbeddingDisplay
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> EmbeddingDisplay.from_predictions(X, y).coordinates.shape
    (537, 2)
    """

    def __init__(
        self,
        *,
        coordinates: np.ndarray,
        y: np.ndarray | None = None,
        values: np.ndarray | None = None,
        training: np.ndarray | None = None,
        axis_names: tuple[str, str] = ("", ""),
    ):
        self.coordinates = coordinates
        self.y = y
        self.values = values
        self.training = training
        self.axis_names = axis_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        space: str = "pretrained",
        method: Any = "pca",
        random_state: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> EmbeddingDisplay:
        """Compute the features of images, and map them.

        Parameters
        ----------
        estimator : fitted outlier detector
            A :class:`TransformalyDetector`, or a Pipeline, search or wrapper that ends in one: what it makes of the
            images is mapped, together with its training images. Of any other, the rows that it gets.
        X : samples
            As `estimator` takes them.
        y : array-like of shape (n_samples,), default=None
            Labels to colour by, of any kind. Without them, images are coloured by their scores, for which they are
            scored.
        space : {"pretrained", "discrepancy"}, default="pretrained"
            Which of a TransformalyDetector's feature spaces: the principal components of the embedding that it keeps,
            as long as they are before whitening; or the logarithms of the discrepancies.
        method : {"pca", "tsne"} or transformer, default="pca"
            PCA; t-SNE, with a perplexity of 30 or a third of the images if that is less; or an object with
            `fit_transform` that gives 2 columns. It is fitted on training images and `X` together.
        random_state : int, RandomState or None, default=None
            Seeds t-SNE.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.scatter``.

        Returns
        -------
        display : EmbeddingDisplay

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        ValueError
            The estimator does not use `space`, or a parameter is unknown.
        """
        check_is_fitted(estimator)
        if space not in ("pretrained", "discrepancy"):
            raise ValueError(f"space must be 'pretrained' or 'discrepancy', got {space!r}.")
        detector = _detector(estimator)
        values = None if y is not None else _scores(estimator, X)
        if hasattr(detector, "feature_spaces_"):
            if space not in detector.feature_spaces_:
                raise ValueError(
                    f"space={space!r} is not in use: the detector was fitted with feature_spaces="
                    f"{tuple(detector.feature_spaces_)}."
                )
            features, training = _space(detector, np.asarray(estimator.transform(X)), space)
        else:
            features, training = X, None
            if isinstance(estimator, Pipeline):
                features = np.asarray(estimator[:-1].transform(X))
        return cls._make(features, y, values, training, method, random_state).plot(ax=ax, **kwargs)

    @classmethod
    def from_predictions(
        cls,
        features: Any,
        y: Any = None,
        *,
        values: Any = None,
        training: Any = None,
        method: Any = "pca",
        random_state: Any = None,
        ax: Any = None,
        **kwargs: Any,
    ) -> EmbeddingDisplay:
        """Map features that are at hand.

        Parameters
        ----------
        features : array-like of shape (n_samples, n_features)
            Rows with NaN, of unreadable images, are left out.
        y : array-like of shape (n_samples,), default=None
            Labels to colour by, of any kind.
        values : array-like of shape (n_samples,), default=None
            Numbers to colour by, where `y` is None: scores.
        training : array-like of shape (n_training, n_features), default=None
            Features of the training images, to be drawn as well.
        method : {"pca", "tsne"} or transformer, default="pca"
            As for :meth:`from_estimator`.
        random_state : int, RandomState or None, default=None
            Seeds t-SNE.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.scatter``.

        Returns
        -------
        display : EmbeddingDisplay

        Raises
        ------
        ValueError
            Lengths differ, or a parameter is unknown.
        """
        return cls._make(features, y, values, training, method, random_state).plot(ax=ax, **kwargs)

    @classmethod
    def _make(
        cls, features: Any, y: Any, values: Any, training: Any, method: Any, random_state: Any
    ) -> EmbeddingDisplay:
        rows = check_array(features, dtype=np.float64, ensure_all_finite="allow-nan")
        check_consistent_length(rows, y, values)
        background = rows[:0] if training is None else np.asarray(training, dtype=np.float64)
        kept, kept_background = (~np.isnan(part).any(axis=1) for part in (rows, background))
        together = np.vstack([background[kept_background], rows[kept]])
        if isinstance(method, str):
            if method not in ("pca", "tsne"):
                raise ValueError(f"method must be 'pca', 'tsne' or an object with fit_transform, got {method!r}.")
            perplexity = min(30.0, (len(together) - 1) / 3)
            method = PCA(2) if method == "pca" else TSNE(perplexity=perplexity, random_state=random_state)
        method = clone(method, safe=False)
        places = np.asarray(method.fit_transform(together))
        names = ("", "")
        if hasattr(method, "explained_variance_ratio_"):
            first, second = method.explained_variance_ratio_[:2]
            names = (f"component 1 ({first:.0%} of the variance)", f"component 2 ({second:.0%})")
        n = kept_background.sum()
        coordinates = np.full((len(rows), 2), np.nan)
        coordinates[kept] = places[n:, :2]
        return cls(
            coordinates=coordinates,
            y=None if y is None else column_or_1d(y),
            values=None if values is None or y is not None else column_or_1d(values),
            training=None if training is None else places[:n, :2],
            axis_names=names,
        )

    def plot(self, ax: Any = None, **kwargs: Any) -> EmbeddingDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.scatter``.

        Returns
        -------
        display : EmbeddingDisplay
            Itself.
        """
        ax = self.ax_ = _axes(ax)
        self.figure_ = ax.figure
        self.scatters_: dict[Any, Any] = {}
        style: dict[str, Any] = {"s": 18, "alpha": 0.8, "linewidths": 0, **kwargs}
        if self.training is not None:
            background = {**style, "color": _COLORS["training"], "marker": "x", "linewidths": 1, "label": "training"}
            self.scatters_["training"] = ax.scatter(*self.training.T, **background)
        if self.y is None:
            self.scatters_["all"] = ax.scatter(*self.coordinates.T, **{"c": self.values, **style})
            if self.values is not None:
                ax.figure.colorbar(self.scatters_["all"], ax=ax, label="score (higher is more normal)")
        else:
            labels = np.unique(self.y)
            detection = set(labels.tolist()) <= {-1, 1}
            for k, label in enumerate(labels[::-1] if detection else labels):
                name = {1: "normal", -1: "anomaly"}[int(label)] if detection else str(label)
                look = {"color": _COLORS.get(name, f"C{k}"), "label": name}
                at = self.coordinates[self.y == label]
                self.scatters_[name] = ax.scatter(*at.T, **look, **style)
        ax.set(xlabel=self.axis_names[0], ylabel=self.axis_names[1])
        if not self.axis_names[0]:  # of t-SNE, neither axis means anything
            ax.set(xticks=[], yticks=[])
        if ax.get_legend_handles_labels()[0]:
            beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if self.y is not None else {}
            ax.legend(**beside)
        return self


class TrainingHistoryDisplay:
    """Loss of each block's student, epoch by epoch.

    It is recommended to use :meth:`from_estimator` or :meth:`from_history`. All parameters are stored as attributes.

    Parameters
    ----------
    history : dict of int to dict of str to list of float
        Per block index: "loss" per epoch and, with early stopping, "validation_loss"; what
        :class:`BlockStudents` has as `history_`.

    Attributes
    ----------
    ax_ : matplotlib Axes
    figure_ : matplotlib Figure
    lines_ : dict of (int, str) to matplotlib Line2D
        By block and loss.

    Examples
    --------
    >>> from skl_transformaly.plotting import TrainingHistoryDisplay
    >>> display = TrainingHistoryDisplay.from_history({10: {"loss": [0.5, 0.2]}, 11: {"loss": [0.9, 0.4]}})
    >>> sorted(display.lines_)
    [(10, 'loss'), (11, 'loss')]
    """

    def __init__(self, *, history: Mapping[int, Mapping[str, Sequence[float]]]):
        self.history = history

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Any = None, **kwargs: Any) -> TrainingHistoryDisplay:
        """Draw the training of a detector's students.

        Parameters
        ----------
        estimator : fitted TransformalyDetector or BlockStudents
            Or a Pipeline, search or wrapper that ends in one.
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.plot``.

        Returns
        -------
        display : TrainingHistoryDisplay

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        TypeError
            It has no students.
        """
        check_is_fitted(estimator)
        students = _students(estimator)
        if not hasattr(students, "history_"):
            raise TypeError(
                f"{type(students).__name__} has no training history to draw: its students are not trained by gradient."
            )
        return cls.from_history(students.history_, ax=ax, **kwargs)

    @classmethod
    def from_history(
        cls, history: Mapping[int, Mapping[str, Sequence[float]]], *, ax: Any = None, **kwargs: Any
    ) -> TrainingHistoryDisplay:
        """Draw a history that is at hand.

        Parameters
        ----------
        history : dict of int to dict of str to list of float
            Per block index: "loss" per epoch and, with early stopping, "validation_loss".
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.plot``.

        Returns
        -------
        display : TrainingHistoryDisplay
        """
        return cls(history=history).plot(ax=ax, **kwargs)

    def plot(self, ax: Any = None, **kwargs: Any) -> TrainingHistoryDisplay:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to matplotlib's ``Axes.plot``.

        Returns
        -------
        display : TrainingHistoryDisplay
            Itself.
        """
        ax = self.ax_ = _axes(ax)
        self.figure_ = ax.figure
        self.lines_ = {}
        colors = _pyplot().get_cmap("viridis")(np.linspace(0, 0.9, len(self.history)))
        for color, (index, losses) in zip(colors, sorted(self.history.items())):
            for name, values in losses.items():
                validation = name == "validation_loss"
                style = {
                    "color": color,
                    "linestyle": "--" if validation else "-",
                    "marker": ".",
                    "label": f"{index}, held out" if validation else str(index),
                    **kwargs,
                }
                (self.lines_[index, name],) = ax.plot(np.arange(1, len(values) + 1), values, **style)
        ax.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(title="block", loc="center left", bbox_to_anchor=(1, 0.5))
        return self


class _AnomalyCurve:
    """What the displays of ROC and precision-recall curves have in common: labels of outlier detectors.

    scikit-learn's own take classifiers only, and given labels +1 and -1 count +1 as the positive class. Scores are
    turned round to match `pos_label`. Comes before one of scikit-learn's displays among the bases.
    """

    # From labels and scores of each fold, and the positive label: arguments of the display
    _curves: Callable[[list[tuple[np.ndarray, np.ndarray]], int], dict[str, list]]

    @classmethod
    def from_estimator(cls, estimator: Any, X: Any, y: Any, *, pos_label: int = -1, name: str | None = None, **kwargs):
        """Score samples and draw the curve.

        Parameters
        ----------
        estimator : fitted outlier detector
            Any with `score_samples` or `decision_function`.
        X : samples
            As `estimator` takes them.
        y : array-like of shape (n_samples,)
            +1 normal, -1 anomaly.
        pos_label : {-1, 1}, default=-1
            Which class is positive.
        name : str, default=None
            For the legend; None is the name of the estimator's class.
        **kwargs
            Passed to ``from_predictions`` of scikit-learn's display: `ax`, `plot_chance_level`, ...

        Returns
        -------
        display : object of this class

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        ValueError
            `y` does not hold both +1 and -1, or other labels.
        """
        name = type(estimator).__name__ if name is None else name
        return cls.from_predictions(y, _scores(estimator, X), pos_label=pos_label, name=name, **kwargs)

    @classmethod
    def from_predictions(cls, y_true: Any, y_score: Any, *, pos_label: int = -1, name: str | None = None, **kwargs):
        """Draw the curve of scores that are at hand.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            +1 normal, -1 anomaly.
        y_score : array-like of shape (n_samples,)
            Higher is more normal, whatever `pos_label`. NaN counts as the least normal, as `predict` has it.
        pos_label : {-1, 1}, default=-1
            Which class is positive.
        name : str, default=None
            For the legend.
        **kwargs
            Passed to ``from_predictions`` of scikit-learn's display.

        Returns
        -------
        display : object of this class

        Raises
        ------
        ValueError
            `y_true` does not hold both +1 and -1, or other labels.
        """
        y, turned = _oriented(y_true, y_score, pos_label)
        base: Any = super()
        return base.from_predictions(y, turned, pos_label=pos_label, name=name or "detector", **kwargs)

    @classmethod
    def from_cv_results(cls, cv_results: Mapping, X: Any, y: Any, *, pos_label: int = -1, name: Any = None, **kwargs):
        """Draw a curve for each test fold; needs a scikit-learn whose display has `from_cv_results`.

        Parameters
        ----------
        cv_results : dict
            From ``sklearn.model_selection.cross_validate(detector, X, y, cv=OneClassSplit(), return_estimator=True,
            return_indices=True)``.
        X : samples
            Those given to it.
        y : array-like of shape (n_samples,)
            +1 normal, -1 anomaly.
        pos_label : {-1, 1}, default=-1
            Which class is positive.
        name : str or list of str, default=None
            For the legend.
        **kwargs
            Passed to `plot`: `ax`, `curve_kwargs`, `plot_chance_level`, ...

        Returns
        -------
        display : object of this class

        Raises
        ------
        ValueError
            `y` does not hold both +1 and -1 in each test fold, or other labels; or estimators or indices are missing.
        """
        folds = _folds(cv_results, X, y, pos_label)
        display: Any = cls
        return display(**cls._curves(folds, pos_label), name=name, pos_label=pos_label).plot(**kwargs)


class AnomalyRocCurveDisplay(_AnomalyCurve, metrics.RocCurveDisplay):
    """scikit-learn's :class:`~sklearn.metrics.RocCurveDisplay` for outlier detectors.

    Anomalies are positive unless `pos_label` says otherwise: the false-positive rate is the share of normal images that
    are flagged. The AUROC is the same for both classes.

    Parameters
    ----------
    **kwargs
        Those of :class:`~sklearn.metrics.RocCurveDisplay`; it is recommended to use :meth:`from_estimator`,
        :meth:`from_predictions` or :meth:`from_cv_results`.

    Examples
    --------
    >>> from skl_transformaly.plotting import AnomalyRocCurveDisplay
    >>> display = AnomalyRocCurveDisplay.from_predictions([1, 1, -1, -1], [0.9, 0.8, 0.3, 0.1])
    >>> float(display.roc_auc)
    1.0
    """

    @staticmethod
    def _curves(folds: list[tuple[np.ndarray, np.ndarray]], pos_label: int) -> dict[str, list]:
        curves = [roc_curve(*fold, pos_label=pos_label)[:2] for fold in folds]
        fprs, tprs = (list(parts) for parts in zip(*curves))
        return {"fpr": fprs, "tpr": tprs, "roc_auc": [auc(fpr, tpr) for fpr, tpr in curves]}


class AnomalyPrecisionRecallDisplay(_AnomalyCurve, metrics.PrecisionRecallDisplay):
    """scikit-learn's :class:`~sklearn.metrics.PrecisionRecallDisplay` for outlier detectors.

    Anomalies are positive unless `pos_label` says otherwise: the recall is the share of anomalies that are flagged,
    the precision the share of anomalies among what is flagged, which depends on how many there are in `X`.

    Parameters
    ----------
    **kwargs
        Those of :class:`~sklearn.metrics.PrecisionRecallDisplay`; it is recommended to use :meth:`from_estimator`,
        :meth:`from_predictions` or :meth:`from_cv_results`.

    Examples
    --------
    >>> from skl_transformaly.plotting import AnomalyPrecisionRecallDisplay
    >>> display = AnomalyPrecisionRecallDisplay.from_predictions([1, 1, 1, -1], [0.9, 0.8, 0.1, 0.3])
    >>> float(display.average_precision)
    0.5
    """

    @staticmethod
    def _curves(folds: list[tuple[np.ndarray, np.ndarray]], pos_label: int) -> dict[str, list]:
        curves = [precision_recall_curve(*fold, pos_label=pos_label)[:2] for fold in folds]
        precisions, recalls = (list(parts) for parts in zip(*curves))
        return {
            "precision": precisions,
            "recall": recalls,
            "average_precision": [average_precision_score(*fold, pos_label=pos_label) for fold in folds],
            "prevalence_pos_label": [float(np.mean(labels == pos_label)) for labels, _ in folds],
        }


def _pyplot() -> Any:
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays are drawn with matplotlib, which is not installed: pip install 'skl-transformaly[plot]'."
        ) from error
    return plt


def _axes(ax: Any) -> Any:
    return _pyplot().subplots(layout="constrained")[1] if ax is None else ax


def _grid(ax: Any, deep: int, columns: int) -> tuple[np.ndarray, Any, Any]:
    """Fill the place of `ax` with two groups of `deep` rows of axes without ticks.

    Gives those axes, `ax`, hidden but for what is said of the whole, and the place to the right of them.
    """
    plt = _pyplot()
    # lazily, as matplotlib itself
    from matplotlib.gridspec import GridSpecFromSubplotSpec

    if ax is None:
        _, ax = plt.subplots(figsize=(1.2 * columns + 1.2, 2.4 * deep + 1.2))
    ax.set_axis_off()
    halves = GridSpecFromSubplotSpec(
        2, 2, subplot_spec=ax.get_subplotspec(), width_ratios=[columns, 0.7], hspace=0.3, wspace=0.08
    )
    rows = [
        GridSpecFromSubplotSpec(deep, columns, subplot_spec=halves[half, 0], hspace=0.06, wspace=0.08)
        for half in (0, 1)
    ]
    places = [[spec[i, j] for j in range(columns)] for spec in rows for i in range(deep)]
    axes = np.array([[ax.figure.add_subplot(place) for place in row] for row in places])
    for single in axes.flat:
        single.set(xticks=[], yticks=[])
    return axes, ax, halves[:, 1]


def _detector(estimator: Any) -> Any:
    """What does the work within searches, wrappers and pipelines."""
    while True:
        if isinstance(estimator, Pipeline):
            estimator = estimator[-1]
            continue
        inner = getattr(estimator, "best_estimator_", getattr(estimator, "estimator_", None))
        # IsolationForest has an estimator_ too, which is one of its trees
        if inner is None or not hasattr(inner, "score_samples"):
            return estimator
        estimator = inner


def _students(estimator: Any) -> Any:
    detector = _detector(estimator)
    students = getattr(detector, "students_", None)
    if hasattr(detector, "block_indices_"):  # BlockStudents
        return detector
    if not hasattr(students, "block_indices_"):
        raise TypeError(
            f"There are no students in {type(detector).__name__}: expected a BlockStudents, or a TransformalyDetector "
            "fitted with 'discrepancy' among feature_spaces."
        )
    return students


def _discrepancies(students: Any, z: np.ndarray) -> np.ndarray:
    """Discrepancies alone, of what students or a detector gives: there they come last, before other measures."""
    m, k = len(students.block_indices_), len(students.measures_)
    return z[:, -k * m :][:, :m]


def _scores(estimator: Any, X: Any, method: str | None = None) -> np.ndarray:
    """One score a sample, higher is more normal."""
    check_is_fitted(estimator)
    if method is None:
        method = "score_samples" if hasattr(estimator, "score_samples") else "decision_function"
    if not hasattr(estimator, method):
        raise TypeError(f"Expected an outlier detector, with {method}; {type(estimator).__name__} has none.")
    return column_or_1d(np.asarray(getattr(estimator, method)(X), dtype=np.float64))


def _space(detector: Any, z: np.ndarray, space: str) -> tuple[np.ndarray, np.ndarray]:
    """Features of images, from what `transform` gave, and of the training images, in one of a detector's spaces."""
    if space == "discrepancy":
        students = detector.students_
        return tuple(np.log(_discrepancies(students, part)) for part in (z, detector.training_discrepancies_))
    fitted = detector.spaces_["pretrained"]
    training = np.full((len(detector.training_embeddings_), fitted.n_features_out_), np.nan)
    readable = ~np.isnan(detector.training_embeddings_).any(axis=1)
    training[readable] = fitted.transform(detector.training_embeddings_[readable])
    # whitened, all components are equally long: a map of them would show noise as large as what matters
    lengths = np.sqrt(fitted.whitening_.explained_variance_) if hasattr(fitted, "whitening_") else 1.0
    return z[:, : fitted.n_features_out_] * lengths, training * lengths


def _groups(y: Any, n: int) -> dict[str, np.ndarray]:
    """Who is normal and who is not, as masks by name."""
    if y is None:
        return {"all": np.ones(n, dtype=bool)}
    labels = check_labels(y, "A display")
    groups = {"normal": labels == 1, "anomaly": labels == -1}
    return {name: mask for name, mask in groups.items() if mask.any()}


def _bin_edges(scores: np.ndarray, bins: Any) -> np.ndarray:
    """Those of numpy; of a rule by name, 100 bins at most."""
    if not isinstance(bins, str):
        return np.histogram_bin_edges(scores, bins)
    # a rule sets the width of bins: with one score far out there may be more of them than memory holds, so the width is
    # found without it
    low, median, high = np.quantile(scores, (0.25, 0.5, 0.75))
    near = np.clip(scores, median - 50 * (high - low), median + 50 * (high - low))
    edges = np.histogram_bin_edges(near, bins)
    if len(edges) <= _MAX_BINS + 1 and np.array_equal(near, scores):
        return edges
    n_bins = min(float(_MAX_BINS), np.ceil(np.ptp(scores) / (edges[1] - edges[0])))
    return np.histogram_bin_edges(scores, int(n_bins))


def _oriented(y: Any, scores: Any, pos_label: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores that are higher for the positive class."""
    if pos_label not in (-1, 1):
        raise ValueError(f"pos_label must be -1 (anomalies are positive) or 1, got {pos_label!r}.")
    labels = check_labels(y, "A curve")
    if len(np.unique(labels)) < 2:
        raise ValueError(f"A curve needs both labels, +1 and -1; all {len(labels)} in y are {labels[0]}.")
    scores = column_or_1d(np.asarray(scores, dtype=np.float64))
    lowest = np.finfo(np.float64).min
    return labels, pos_label * np.nan_to_num(scores, nan=lowest, neginf=lowest)


def _folds(cv_results: Mapping, X: Any, y: Any, pos_label: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Labels and scores of each test fold, as `_oriented` gives them."""
    if not {"estimator", "indices"} <= set(cv_results):
        raise ValueError(
            "cv_results holds no estimators or no indices: call cross_validate with return_estimator=True and "
            "return_indices=True."
        )
    samples, y = as_sequence(X), check_labels(y, "A curve")
    folds = []
    for estimator, test in zip(cv_results["estimator"], cv_results["indices"]["test"]):
        scores = _scores(estimator, take_samples(samples, test, on_error=on_error_of(estimator)))
        folds.append(_oriented(y[test], scores, pos_label))
    return folds


def _extremes(scores: np.ndarray, n_images: int) -> np.ndarray:
    """Positions of the highest scores, highest first, then of the lowest, lowest first."""
    order = np.argsort(scores, kind="stable")[: int((~np.isnan(scores)).sum())]
    if len(order) < 2:
        raise ValueError(f"The most and least normal images need 2 with a score, got {len(order)} of {len(scores)}.")
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
