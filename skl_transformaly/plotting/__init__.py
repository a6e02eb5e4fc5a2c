"""Pictures of a fitted detector, as displays in the manner of scikit-learn's.

Users import it; it imports the estimators' public names, and nothing in the library imports it.
"""

from skl_transformaly.plotting._displays import (
    AnomalyPrecisionRecallDisplay,
    AnomalyRocCurveDisplay,
    BlockDiscrepancyDisplay,
    EmbeddingDisplay,
    ExtremeImagesDisplay,
    ScoreHistogramDisplay,
    TrainingHistoryDisplay,
)

__all__ = [
    "AnomalyPrecisionRecallDisplay",
    "AnomalyRocCurveDisplay",
    "BlockDiscrepancyDisplay",
    "EmbeddingDisplay",
    "ExtremeImagesDisplay",
    "ScoreHistogramDisplay",
    "TrainingHistoryDisplay",
]
