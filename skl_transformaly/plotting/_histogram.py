"""Histogram of scores."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils import check_consistent_length
from sklearn.utils.validation import check_is_fitted, column_or_1d

from skl_transformaly.plotting._base import COLORS, Display, scores_of
from skl_transformaly.utils._labels import check_labels

__all__ = ["ScoreHistogramDisplay"]

_MAX_BINS = 100


@dataclass(kw_only=True, eq=False, repr=False)
class ScoreHistogramDisplay(Display):
    """Histogram of scores, with the threshold and, if the detector has them, p-values; drawn by ``Axes.stairs``.

    Parameters
    ----------
    bin_edges : ndarray of shape (n_bins + 1,)
        Edges of the bins, ascending.
    counts : dict of str to ndarray of shape (n_bins,), int
        Number of scores in each bin, of the "normal" images and of the "anomaly" ones, or of "all" without labels.
    threshold : float, default=None
        Scores below it are called anomalies.
    p_values : tuple of two ndarray, default=None
        Scores in ascending order, and their p-values.
    n_outside : tuple of (int, int), default=(0, 0)
        Numbers of scores below the first and above the last edge.
    score_name : str, default="score"
        Label of the axis.
    threshold_name : str, default="threshold"
        Name of the threshold in the legend.

    Attributes
    ----------
    bars_ : dict of str to matplotlib StepPatch
        The histogram of each key of `counts`.
    threshold_line_ : matplotlib Line2D or None
    p_ax_ : matplotlib Axes or None
        The axes of the p-values, which share the scores' axis.
    p_line_ : matplotlib Line2D or None

    See Also
    --------
    AnomalyRocCurveDisplay : The rates of all thresholds.

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

    bin_edges: np.ndarray
    counts: dict[str, np.ndarray]
    threshold: float | None = None
    p_values: tuple[np.ndarray, np.ndarray] | None = None
    n_outside: tuple[int, int] = (0, 0)
    score_name: str = "score"
    threshold_name: str = "threshold"

    @classmethod
    def from_estimator(
        cls, estimator: Any, X: Any, y: Any = None, *, bins: Any = "auto", **kwargs: Any
    ) -> ScoreHistogramDisplay:
        """Score images and draw the histogram.

        Parameters
        ----------
        estimator : fitted outlier detector
            :class:`TransformalyDetector` or :class:`ConformalDetector`, which have p-values, or any of scikit-learn's,
            or a Pipeline or search that ends in one.
        X : samples
            As `estimator` takes them.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly; None if that is not known.
        bins : int, str or array-like, default="auto"
            As for :func:`numpy.histogram_bin_edges`; a rule makes at most 100 bins.
        **kwargs
            `ax` and others, passed to :meth:`plot`.

        Returns
        -------
        display : ScoreHistogramDisplay

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        ValueError
            `y` holds other labels than +1 and -1, or no score is finite.

        Notes
        -----
        The scores are those of `score_samples` if the estimator has `offset_`, its threshold; else those of
        `decision_function`, whose threshold is 0.
        """
        check_is_fitted(estimator)
        settings: dict[str, Any] = {"score_name": "decision", "threshold": 0.0}
        method, p_values = "decision_function", None
        if hasattr(estimator, "score_samples") and hasattr(estimator, "offset_"):
            settings = {"score_name": "score", "threshold": float(np.squeeze(estimator.offset_))}
            method = "score_samples"
        if hasattr(estimator, "score_table"):
            table = estimator.score_table(X)  # scores and p-values from one scoring
            scores = table["score"]
            if not np.isnan(table["p_value"]).all():
                p_values = table["p_value"]
            if hasattr(estimator, "alpha"):
                settings["threshold_name"] = f"threshold, alpha = {estimator.alpha:g}"
        else:
            scores = scores_of(estimator, X, method)
        return cls._make(scores, y, p_values, bins, **settings).plot(**kwargs)

    @classmethod
    def from_predictions(
        cls,
        scores: Any,
        y: Any = None,
        *,
        threshold: float | None = None,
        p_values: Any = None,
        bins: Any = "auto",
        **kwargs: Any,
    ) -> ScoreHistogramDisplay:
        """Draw the histogram of given scores.

        Parameters
        ----------
        scores : array-like of shape (n_samples,)
            Higher is more normal; NaN, of unreadable images, is left out.
        threshold : float, default=None
            Scores below it are called anomalies.
        p_values : array-like of shape (n_samples,), default=None
            In (0, 1], small for anomalies; drawn on an axis of their own.
        y, bins, **kwargs
            As for :meth:`from_estimator`.

        Returns
        -------
        display : ScoreHistogramDisplay

        Raises
        ------
        ValueError
            `y` holds other labels than +1 and -1, lengths differ, or no score is finite.
        """
        return cls._make(scores, y, p_values, bins, threshold=threshold).plot(**kwargs)

    @classmethod
    def _make(cls, scores: Any, y: Any, p_values: Any, bins: Any, **settings: Any) -> ScoreHistogramDisplay:
        scores = column_or_1d(np.asarray(scores, dtype=np.float64))
        check_consistent_length(scores, y, p_values)
        finite = np.isfinite(scores)
        if not finite.any():
            raise ValueError(f"None of the {len(scores)} scores is a finite number, so there is nothing to draw.")
        edges = _bin_edges(scores[finite], bins)
        groups = {"all": scores}
        if y is not None:
            labels = check_labels(y, "A display")
            groups = {name: scores[labels == label] for name, label in (("normal", 1), ("anomaly", -1))}
        if p_values is not None:
            order = np.argsort(scores, kind="stable")
            order = order[finite[order]]
            settings["p_values"] = scores[order], np.asarray(p_values, dtype=np.float64)[order]
        return cls(
            bin_edges=edges,
            counts={name: np.histogram(group, edges)[0] for name, group in groups.items() if len(group)},
            n_outside=(int((scores < edges[0]).sum()), int((scores > edges[-1]).sum())),
            **settings,
        )

    def _draw(self, ax: Any, style: dict[str, Any]) -> None:
        self.bars_, self.threshold_line_, self.p_ax_, self.p_line_ = {}, None, None, None
        for name, counts in self.counts.items():
            look = {"fill": True, "alpha": 0.5, "color": COLORS[name], "label": f"{name} ({counts.sum()})", **style}
            self.bars_[name] = ax.stairs(counts, self.bin_edges, **look)
        if self.threshold is not None:
            self.threshold_line_ = ax.axvline(self.threshold, color="k", linestyle="--", label=self.threshold_name)
        handles = ax.get_legend_handles_labels()[0]
        if self.p_values is not None:
            self.p_ax_ = ax.twinx()
            (self.p_line_,) = self.p_ax_.plot(
                *self.p_values, color="tab:green", drawstyle="steps-post", label="p-value"
            )
            self.p_ax_.set(ylabel="p-value", yscale="log")
            handles.append(self.p_line_)
        beyond = "".join(f"; {n} {side}" for n, side in zip(self.n_outside, ("below", "above")) if n)
        ax.set(xlabel=f"{self.score_name} (higher is more normal{beyond})", ylabel="images")
        # on the uppermost axes, or lines of the p-values go through it
        (self.p_ax_ or ax).legend(handles=handles, loc="upper left")


def _bin_edges(scores: np.ndarray, bins: Any) -> np.ndarray:
    """Return numpy's edges; at most 100 bins if `bins` is a rule."""
    if not isinstance(bins, str):
        return np.histogram_bin_edges(scores, bins)
    # A rule sets the width of bins, and with an outlier there may be more bins than fit into memory: clip it first.
    low, median, high = np.quantile(scores, (0.25, 0.5, 0.75))
    near = np.clip(scores, median - 50 * (high - low), median + 50 * (high - low))
    edges = np.histogram_bin_edges(near, bins)
    if len(edges) <= _MAX_BINS + 1 and np.array_equal(near, scores):
        return edges
    n_bins = min(float(_MAX_BINS), np.ceil(np.ptp(scores) / (edges[1] - edges[0])))
    return np.histogram_bin_edges(scores, int(n_bins))
