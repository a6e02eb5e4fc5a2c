"""Scores from features that are at hand: every cell of tables 3, 4, 6 and 7 from one extraction.

They are those of TransformalyDetector.paper() taken apart: whitening, a density in each space, and their sum.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture

from skl_transformaly import KNNDensity, TransformalyDetector

PAPER = TransformalyDetector.paper()
# What turns features into scores there: part of the key of each row that depends on it.
SCORING = {
    name: value
    for name, value in PAPER.get_params().items()
    if name.startswith(("density", "discrepancy_density", "explained_variance", "normalize", "fusion"))
}

EXPLAINED_VARIANCES = (0.85, 0.9, 0.95)
BLOCKS = (1, 3, 10)

DENSITIES: dict[str, Callable[[int], Any]] = {
    "kNN k = 2": lambda seed: KNNDensity(n_neighbors=2),
    "kNN k = 5": lambda seed: KNNDensity(n_neighbors=5),
    "GMM n = 1": lambda seed: GaussianMixture(1, random_state=seed),
    "GMM n = 5": lambda seed: GaussianMixture(5, random_state=seed),
    "GMM n = 20": lambda seed: GaussianMixture(20, random_state=seed),
}


def block_counts(n_students: int) -> list[int]:
    """Numbers of last blocks that table 3 compares: the paper's, as far as there are students, and all of them."""
    return sorted({n_students, *(m for m in BLOCKS if m < n_students)})


class Whitening:
    """Principal components of the training embeddings, cut where they explain enough variance.

    One eigendecomposition serves all thresholds: components do not depend on how many are kept.
    """

    def __init__(self, train: np.ndarray, test: np.ndarray, *, fewer: int = 0):
        pca = PCA(whiten=True, svd_solver="full").fit(train)
        self._cumulative = np.cumsum(pca.explained_variance_ratio_)
        self._train, self._test = pca.transform(train), pca.transform(test)
        self._fewer = fewer

    def cut(self, explained_variance: float) -> tuple[np.ndarray, np.ndarray]:
        """Whitened training and test embeddings that explain at least so much."""
        k = int(np.searchsorted(self._cumulative, explained_variance, side="right")) + 1
        k = max(1, k - self._fewer)
        return self._train[:, :k], self._test[:, :k]


def log_density(density: Any, train: np.ndarray, test: np.ndarray) -> np.ndarray:
    """Log-densities of `test` under a clone of `density` fitted on `train`."""
    return clone(density).fit(train).score_samples(test)


def embedding_rows(whitening: Whitening, y_test: np.ndarray) -> Iterator[tuple[str, float]]:
    """Yield method and AUROC of the embedding by itself (tables 1, 2, 3, 5)."""
    yield "embedding", roc_auc_score(y_test, log_density(PAPER.density, *whitening.cut(PAPER.explained_variance)))


def density_rows(whitening: Whitening, y_test: np.ndarray, seed: int) -> Iterator[tuple[str, float]]:
    """Yield method and AUROC of other densities on the embedding (tables 4, 6)."""
    train, test = whitening.cut(PAPER.explained_variance)
    for name, make in DENSITIES.items():
        density = make(seed)
        needed = getattr(density, "n_components", 0) or density.n_neighbors
        if len(train) > needed:
            yield name, roc_auc_score(y_test, log_density(density, train, test))


def both_rows(
    whitening: Whitening,
    discrepancies: tuple[np.ndarray, np.ndarray],
    y_test: np.ndarray,
    density: Any = PAPER.discrepancy_density,
) -> Iterator[tuple[str, float]]:
    """Yield method and AUROC of everything that needs discrepancies (tables 1, 2, 3, 5, 7)."""
    z_f, z_f_test = discrepancies
    embedding = {share: log_density(PAPER.density, *whitening.cut(share)) for share in EXPLAINED_VARIANCES}
    usual = embedding[PAPER.explained_variance]
    for m in block_counts(z_f.shape[1]):
        deviation = log_density(density, z_f[:, -m:], z_f_test[:, -m:])
        yield f"discrepancy, {m} blocks", roc_auc_score(y_test, deviation)
        yield f"both, {m} blocks", roc_auc_score(y_test, usual + deviation)
    deviation = log_density(density, z_f, z_f_test)
    for share, scores in embedding.items():
        yield f"embedding, {share:.0%} variance", roc_auc_score(y_test, scores)
        yield f"both, {share:.0%} variance", roc_auc_score(y_test, scores + deviation)
    yield "Transformaly", roc_auc_score(y_test, usual + deviation)
