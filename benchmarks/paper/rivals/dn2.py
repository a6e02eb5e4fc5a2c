"""DN2: nearest neighbours of the pre-trained embedding.

Method
    An image's anomaly score is the mean squared Euclidean distance from its embedding to the k nearest
    embeddings of training images.

Source
    L. Bergman, N. Cohen and Y. Hoshen, "Deep Nearest Neighbor Anomaly Detection", arXiv:2002.10445, 2020.

Settings
    k = 2, no scaling of the embedding; distances are squared, as in the code of the authors' PANDA.

Deviations
    - The teacher is the benchmark's instead of a ResNet-101, so that all methods see the same features.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors

from rivals._base import EmbeddingRival

__all__ = ["DN2", "fit_neighbours", "neighbour_distance"]


class DN2(EmbeddingRival):
    """Mean squared distance to the nearest training embeddings; see the module's docstring.

    Parameters
    ----------
    extractor : str, extractor or None, default=None
        The teacher, as TransformalyDetector takes it.
    n_neighbors : int, default=2
        k; less than the number of training images.
    """

    def __init__(self, extractor: Any = None, *, n_neighbors: int = 2):
        self.extractor = extractor
        self.n_neighbors = n_neighbors

    def _fit_rows(self, Z: np.ndarray) -> np.ndarray:
        self.neighbours_ = fit_neighbours(Z, self.n_neighbors)
        return -neighbour_distance(self.neighbours_)

    def _score_rows(self, Z: np.ndarray) -> np.ndarray:
        return -neighbour_distance(self.neighbours_, Z)


def fit_neighbours(Z: np.ndarray, n_neighbors: int) -> NearestNeighbors:
    """Index of the training rows `Z`, of which there must be more than `n_neighbors`."""
    if len(Z) <= n_neighbors:
        raise ValueError(
            f"n_neighbors={n_neighbors} needs at least {n_neighbors + 1} images, got {len(Z)}: lower it, or give more."
        )
    return NearestNeighbors(n_neighbors=n_neighbors).fit(Z)


def neighbour_distance(neighbours: NearestNeighbors, Z: np.ndarray | None = None) -> np.ndarray:
    """Mean squared distance of rows `Z` to their neighbours; None: of each training row to the others."""
    return np.mean(neighbours.kneighbors(Z)[0] ** 2, axis=1)
