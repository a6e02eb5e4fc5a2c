"""Mahalanobis distance of the pre-trained embedding.

Method
    One Gaussian with full covariance is fitted to the training embeddings; an image's anomaly score is the
    Mahalanobis distance of its embedding.

Source
    O. Rippel, P. Mertens and D. Merhof, "Modeling the Distribution of Normal Data in Pre-Trained Deep Features for
    Anomaly Detection", ICPR 2020 (proceedings 2021).

Settings
    Covariance shrunk by Ledoit and Wolf's formula, all components kept.

Deviations
    - One embedding, the teacher's last, instead of a sum over the pooled outputs of all levels of an
      EfficientNet-B4: all methods of the benchmark see the same features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.covariance import EmpiricalCovariance, LedoitWolf

from rivals._base import EmbeddingRival

__all__ = ["Mahalanobis"]


class Mahalanobis(EmbeddingRival):
    """Mahalanobis distance to the training embeddings; see the module's docstring.

    Parameters
    ----------
    extractor : str, extractor or None, default=None
        The teacher, as TransformalyDetector takes it.
    covariance : {"ledoit-wolf", "empirical"}, default="ledoit-wolf"
        How the covariance is estimated.
    """

    def __init__(self, extractor: Any = None, *, covariance: str = "ledoit-wolf"):
        self.extractor = extractor
        self.covariance = covariance

    def _fit_rows(self, Z: np.ndarray) -> np.ndarray:
        estimators = {"empirical": EmpiricalCovariance, "ledoit-wolf": LedoitWolf}
        if self.covariance not in estimators:
            raise ValueError(f"covariance must be one of {sorted(estimators)}, got {self.covariance!r}.")
        self.covariance_ = estimators[self.covariance]().fit(Z)
        return self._score_rows(Z)

    def _score_rows(self, Z: np.ndarray) -> np.ndarray:
        # rounding can take a squared distance of nearly 0 below it
        return -np.sqrt(np.maximum(self.covariance_.mahalanobis(Z), 0))
