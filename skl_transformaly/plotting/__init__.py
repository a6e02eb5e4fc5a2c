"""Displays of a fitted detector, like those of scikit-learn.

Each display is made by `from_estimator` or from given numbers, keeps these as attributes, and draws them by `plot`,
which can be called again. Drawing needs matplotlib (extra ``plot``). Users import this room; it imports the estimators'
public names, and nothing in the library imports it.
"""

from skl_transformaly.plotting._curves import AnomalyPrecisionRecallDisplay, AnomalyRocCurveDisplay
from skl_transformaly.plotting._embedding import EmbeddingDisplay
from skl_transformaly.plotting._extremes import ExtremeImagesDisplay
from skl_transformaly.plotting._histogram import ScoreHistogramDisplay
from skl_transformaly.plotting._history import TrainingHistoryDisplay

__all__ = [
    "AnomalyPrecisionRecallDisplay",
    "AnomalyRocCurveDisplay",
    "EmbeddingDisplay",
    "ExtremeImagesDisplay",
    "ScoreHistogramDisplay",
    "TrainingHistoryDisplay",
]
