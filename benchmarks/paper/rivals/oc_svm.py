"""One-class SVM, on embeddings and on pixels.

Method
    A hyperplane in the space of an RBF kernel that separates the training images from the origin with the
    largest margin, a share of at most `nu` of them being left outside. The score is the kernel expansion before the
    offset is taken off (``OneClassSVM.score_samples``).

Source
    B. Schölkopf, J. C. Platt, J. Shawe-Taylor, A. J. Smola and R. C. Williamson, "Estimating the Support of a
    High-Dimensional Distribution", Neural Computation 13(7), 2001.

Settings
    As a baseline on images: L. Ruff et al., "Deep One-Class Classification", ICML 2018, with nu out of 0.01
    and 0.1 and gamma chosen by grid search on labelled test data. Here nu = 0.1, and gamma is 1 / (features * their
    variance) (scikit-learn's "scale").

Deviations
    - gamma by the rule, and nu fixed: one-class training has no labels to choose them by.
    - Ruff et al. reduce pixels by PCA to 95 % of variance, to save time; here pixels are resized to 32 x 32
      instead and nothing is dropped.
    - `OCSVM` standardises embeddings, as no unit of theirs is better than another. `OCSVMPixels` leaves pixels
      in 0-1: they share one unit, and standardising would blow up the noise of pixels that hardly change.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

from rivals._base import EmbeddingRival, Rival, pixel_tensor
from skl_transformaly.images._images import Images

__all__ = ["OCSVM", "OCSVMPixels"]


class OCSVM(EmbeddingRival):
    """One-class SVM on standardised embeddings; see the module's docstring.

    Parameters
    ----------
    extractor : str, extractor or None, default=None
        The teacher, as TransformalyDetector takes it.
    nu : float, default=0.1
        In (0, 1]: at most this share of the training images is left outside.
    gamma : "scale" or float, default="scale"
        Of the RBF kernel.
    """

    def __init__(self, extractor: Any = None, *, nu: float = 0.1, gamma: float | str = "scale"):
        self.extractor = extractor
        self.nu = nu
        self.gamma = gamma

    def _fit_rows(self, Z: np.ndarray) -> np.ndarray:
        self.svm_ = make_pipeline(StandardScaler(), OneClassSVM(nu=self.nu, gamma=self.gamma)).fit(Z)
        return self._score_rows(Z)

    def _score_rows(self, Z: np.ndarray) -> np.ndarray:
        return self.svm_.score_samples(Z)


class OCSVMPixels(Rival):
    """One-class SVM on pixels; see the module's docstring.

    Parameters
    ----------
    extractor : ignored
        There so that all rivals are built alike.
    nu, gamma
        As in :class:`OCSVM`.
    size : int, default=32
        Height and width in pixels that images are resized to.
    """

    def __init__(self, extractor: Any = None, *, nu: float = 0.1, gamma: float | str = "scale", size: int = 32):
        self.extractor = extractor
        self.nu = nu
        self.gamma = gamma
        self.size = size

    def _fit(self, images: Images) -> np.ndarray:
        Z = self._rows(images)
        self.svm_ = OneClassSVM(nu=self.nu, gamma=self.gamma).fit(Z)
        return self.svm_.score_samples(Z)

    def _score(self, images: Images) -> np.ndarray:
        return self.svm_.score_samples(self._rows(images))

    def _rows(self, images: Images) -> np.ndarray:
        return pixel_tensor(images, self.size).flatten(1).double().numpy()
