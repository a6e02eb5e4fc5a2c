"""Pictures of a fitted detector, as displays in the manner of scikit-learn's.

Each display is made by `from_estimator`, or from given numbers, keeps those numbers as attributes, and draws them by
`plot`, once more elsewhere if wanted. Drawing needs matplotlib (extra ``plot``). Users import this room; it imports the
estimators' public names, and nothing in the library imports it.
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
