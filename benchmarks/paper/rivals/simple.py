"""Three detectors on embeddings that take a line of scikit-learn each.

Method
    `UnitMahalanobis`: the Mahalanobis distance to the training embeddings, all scaled to unit length. `UnitNeighbours`:
    the mean distance to the nearest training embeddings, likewise. `Forest`: an isolation forest.

Source
    F. T. Liu, K. M. Ting and Z.-H. Zhou, "Isolation Forest", ICDM 2008; for the others see `mahalanobis` and `dn2`.

Settings
    Ledoit and Wolf's covariance; k = 2; scikit-learn's defaults.

Deviations
    None: they have no authors to deviate from.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.ensemble import IsolationForest
from sklearn.preprocessing import normalize

from rivals._base import EmbeddingRival
from rivals.dn2 import DN2, fit_neighbours
from rivals.mahalanobis import Mahalanobis

__all__ = ["Forest", "UnitMahalanobis", "UnitNeighbours"]


class UnitMahalanobis(Mahalanobis):
    """Mahalanobis distance between embeddings of unit length; parameters are those of :class:`Mahalanobis`."""

    def _fit_rows(self, Z: np.ndarray) -> np.ndarray:
        return super()._fit_rows(normalize(Z))

    def _score_rows(self, Z: np.ndarray) -> np.ndarray:
        return super()._score_rows(normalize(Z))


class UnitNeighbours(DN2):
    """Mean distance to the nearest training embeddings, all of unit length; parameters are those of :class:`DN2`."""

    def _fit_rows(self, Z: np.ndarray) -> np.ndarray:
        self.neighbours_ = fit_neighbours(normalize(Z), self.n_neighbors)
        return -self.neighbours_.kneighbors()[0].mean(axis=1)

    def _score_rows(self, Z: np.ndarray) -> np.ndarray:
        return -self.neighbours_.kneighbors(normalize(Z))[0].mean(axis=1)


class Forest(EmbeddingRival):
    """Isolation forest on embeddings.

    Parameters
    ----------
    extractor : str, extractor or None, default=None
        The teacher, as TransformalyDetector takes it.
    random_state : int, RandomState or None, default=None
        Seeds the trees.
    """

    def __init__(self, extractor: Any = None, *, random_state: Any = None):
        self.extractor = extractor
        self.random_state = random_state

    def _fit_rows(self, Z: np.ndarray) -> np.ndarray:
        self.forest_ = IsolationForest(random_state=self.random_state).fit(Z)
        return self._score_rows(Z)

    def _score_rows(self, Z: np.ndarray) -> np.ndarray:
        return self.forest_.score_samples(Z)
