"""Pre-training confusion: which classes the teacher maps to the same place, and what that predicts."""

from __future__ import annotations

import numpy as np
from scipy.stats import mannwhitneyu
from sklearn.neighbors import NearestNeighbors


def class_distances(Z: np.ndarray, y: np.ndarray, n_neighbors: int = 2) -> np.ndarray:
    """Distances of each image to the nearest ones of each class.

    Parameters
    ----------
    Z : ndarray of shape (n_samples, D)
        Embeddings.
    y : ndarray of shape (n_samples,), int
        Classes, each of 0 ... K - 1 at least twice.
    n_neighbors : int, default=2
        Neighbours in a class, the image itself aside; at most as many as the smallest class has.

    Returns
    -------
    distances : ndarray of shape (n_samples, K, n_neighbors), float64
        Euclidean, nearest first.
    """
    counts = np.bincount(y)
    if counts.min() < 2:
        raise ValueError(
            "Each class needs two images at least: an image is compared with the others of its class, but there are "
            f"{counts[counts < 2].tolist()} of classes {np.flatnonzero(counts < 2).tolist()}."
        )
    n_neighbors = min(n_neighbors, int(counts.min()) - 1)
    distances = np.empty((len(Z), len(counts), n_neighbors))
    for label in range(len(counts)):
        own = y == label
        neighbours = NearestNeighbors(n_neighbors=n_neighbors).fit(Z[own])
        distances[own, label] = neighbours.kneighbors()[0]
        if not own.all():
            distances[~own, label] = neighbours.kneighbors(Z[~own])[0]
    return distances


def class_confusion(distances: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How well each class would hide among all others, if it were the anomaly; `distances` from `class_distances`.

    Gives an array (K,): the chance that an image of the class is nearer to the other classes than an image of those is
    to the rest of them. 0 where the class is apart, 0.5 where it is in their midst, more where it is denser than they.
    """
    n, classes, n_neighbors = distances.shape
    confusion = np.empty(classes)
    for label in range(classes):
        others = np.delete(distances, label, axis=1).reshape(n, -1)
        nearest = np.partition(others, n_neighbors - 1, axis=1)[:, :n_neighbors].mean(axis=1)
        confusion[label] = _nearer(nearest[y == label], nearest[y != label])
    return confusion


def pair_confusion(distances: np.ndarray, y: np.ndarray) -> np.ndarray:
    """How well each class would hide in each other one; `distances` from `class_distances`.

    Gives an array (K, K): ``[a, b]`` is the chance that an image of class a is nearer to class b than an image of b is
    to the rest of its class. 0 where they are apart, 0.5 where they are in the same place, and on the diagonal.
    """
    classes = distances.shape[1]
    mean = distances.mean(axis=2)
    confusion = np.full((classes, classes), 0.5)
    for a in range(classes):
        for b in range(classes):
            if a != b:
                confusion[a, b] = _nearer(mean[y == a, b], mean[y == b, b])
    return confusion


def ranked_pairs(confusion: np.ndarray) -> list[tuple[int, int, float]]:
    """Pairs of classes (a, b, chance), a hiding in b, the most confused first; each pair in its worse direction."""
    pairs = [(a, b) if confusion[a, b] >= confusion[b, a] else (b, a) for a in range(len(confusion)) for b in range(a)]
    return sorted(((a, b, float(confusion[a, b])) for a, b in pairs), key=lambda pair: -pair[2])


def _nearer(first: np.ndarray, second: np.ndarray) -> float:
    """Chance that one of `first` is less than one of `second`; ties count half."""
    return 1 - float(mannwhitneyu(first, second).statistic) / (len(first) * len(second))
