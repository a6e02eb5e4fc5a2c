"""Curves over all thresholds: scikit-learn's displays for outlier detectors."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn import metrics
from sklearn.utils.validation import column_or_1d

from skl_transformaly.plotting._base import scores_of
from skl_transformaly.utils._labels import check_labels

__all__ = ["AnomalyPrecisionRecallDisplay", "AnomalyRocCurveDisplay"]


class _AnomalyCurve:
    """Base of the displays of ROC and precision-recall curves: labels of outlier detectors.

    scikit-learn's displays take only classifiers, and count +1 as the positive class of labels +1 and -1. Scores are
    negated if `pos_label` is -1. Among the bases, this class comes before one of scikit-learn's displays.
    """

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
            For the legend; None is the name of the estimator's class, if there is one.
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
        return cls.from_predictions(y, scores_of(estimator, X), pos_label=pos_label, name=name, **kwargs)

    @classmethod
    def from_predictions(cls, y_true: Any, y_score: Any, *, pos_label: int = -1, name: str | None = None, **kwargs):
        """Draw the curve of given scores.

        Parameters
        ----------
        y_true : array-like of shape (n_samples,)
            +1 normal, -1 anomaly.
        y_score : array-like of shape (n_samples,)
            Higher is more normal, whatever `pos_label`. NaN counts as the least normal, as it does for `predict`.
        pos_label, name, **kwargs
            As for :meth:`from_estimator`.

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


class AnomalyRocCurveDisplay(_AnomalyCurve, metrics.RocCurveDisplay):
    """scikit-learn's :class:`~sklearn.metrics.RocCurveDisplay` for outlier detectors.

    Anomalies are positive unless `pos_label` says otherwise: the false-positive rate is the share of normal images that
    are flagged. The AUROC is the same for both classes.

    Examples
    --------
    >>> from skl_transformaly.plotting import AnomalyRocCurveDisplay
    >>> display = AnomalyRocCurveDisplay.from_predictions([1, 1, -1, -1], [0.9, 0.8, 0.3, 0.1])
    >>> float(display.roc_auc)
    1.0
    """


class AnomalyPrecisionRecallDisplay(_AnomalyCurve, metrics.PrecisionRecallDisplay):
    """scikit-learn's :class:`~sklearn.metrics.PrecisionRecallDisplay` for outlier detectors.

    Anomalies are positive unless `pos_label` says otherwise: the recall is the share of anomalies that are flagged,
    the precision the share of anomalies among what is flagged, which depends on how many there are in `X`.

    Examples
    --------
    >>> from skl_transformaly.plotting import AnomalyPrecisionRecallDisplay
    >>> display = AnomalyPrecisionRecallDisplay.from_predictions([1, 1, 1, -1], [0.9, 0.8, 0.1, 0.3])
    >>> float(display.average_precision)
    0.5
    """


def _oriented(y: Any, scores: Any, pos_label: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels, and scores that are higher for the positive class."""
    if pos_label not in (-1, 1):
        raise ValueError(f"pos_label must be -1 (anomalies are positive) or 1, got {pos_label!r}.")
    labels = check_labels(y, "A curve", both=True)
    scores = column_or_1d(np.asarray(scores, dtype=np.float64))
    lowest = np.finfo(np.float64).min
    return labels, pos_label * np.nan_to_num(scores, nan=lowest, neginf=lowest)
