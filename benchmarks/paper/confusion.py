"""Pre-training confusion: which classes the teacher maps to the same place, and what that predicts."""

from __future__ import annotations

import numpy as np
from sklearn.neighbors import NearestNeighbors


def class_confusion(Z: np.ndarray, y: np.ndarray, n_neighbors: int = 10) -> np.ndarray:
    """How often an image's neighbours in the embedding are of another class.

    Parameters
    ----------
    Z : ndarray of shape (n_samples, D)
        Embeddings.
    y : ndarray of shape (n_samples,), int
        Classes, each of 0 ... K - 1 at least once.
    n_neighbors : int, default=10
        Neighbours to look at, the image itself aside; at most n_samples - 1.

    Returns
    -------
    shares : ndarray of shape (K, K), float64
        ``shares[a, b]`` is the mean share of class b among the nearest neighbours of class a's images, in 0-1,
        weighted as if all classes had equally many images; rows sum to 1.
    """
    n_neighbors = min(n_neighbors, len(Z) - 1)
    neighbours = NearestNeighbors(n_neighbors=n_neighbors).fit(Z).kneighbors(return_distance=False)
    counts = np.bincount(y)
    weights = 1.0 / counts[y[neighbours]]
    one_hot = np.eye(len(counts))[y[neighbours]] * weights[:, :, None]
    shares = one_hot.sum(axis=1) / weights.sum(axis=1, keepdims=True)
    return np.stack([shares[y == label].mean(axis=0) for label in range(len(counts))])


def ranked_pairs(shares: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs of classes, the most confused first, with the mean of the two shares."""
    pairs = [(a, b, (shares[a, b] + shares[b, a]) / 2) for a in range(len(shares)) for b in range(a)]
    return sorted(pairs, key=lambda pair: -pair[2])
