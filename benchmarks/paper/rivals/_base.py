"""What the rivals share: scikit-learn's interface, embedding and pixels of images, minibatches."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.utils.validation import check_is_fitted
from torch import Tensor
from torch.nn import functional as F

from skl_transformaly.images._images import Images, as_images
from skl_transformaly.teacher._extractor import resolve_extractor

__all__ = ["EmbeddingRival", "Rival", "descend", "embed_images", "fitted_extractor", "minibatches", "pixel_tensor"]


class Rival(OutlierMixin, BaseEstimator):
    """Outlier detector on images; a subclass writes ``_fit(images)``, which gives training scores, and ``_score``.

    Attributes
    ----------
    offset_ : float
        The 5 % quantile of the training scores: ``decision_function = score_samples - offset_``.
    """

    def fit(self, X: Any, y: Any = None) -> Rival:
        """Learn what is normal.

        Parameters
        ----------
        X : images
            Normal images only, at least 2, in any form that ``skl_transformaly.images._images.as_images`` takes.
        y : ignored

        Returns
        -------
        self : Rival

        Raises
        ------
        ValueError
            Fewer than 2 images, or fewer than the method needs.
        """
        images = as_images(X)
        if len(images) < 2:
            raise ValueError(f"fit needs at least 2 images, got {len(images)}: give more normal images.")
        self.offset_ = float(np.percentile(self._fit(images), 5))
        return self

    def score_samples(self, X: Any) -> np.ndarray:
        """Score of each image, higher is more normal: ndarray of shape (n_samples,), float64."""
        check_is_fitted(self)
        return self._score(as_images(X))

    def decision_function(self, X: Any) -> np.ndarray:
        """``score_samples(X) - offset_``: negative for anomalies."""
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """+1 for normal images, -1 for anomalies."""
        return np.where(self.decision_function(X) >= 0, 1, -1)

    def _fit(self, images: Images) -> np.ndarray:
        raise NotImplementedError

    def _score(self, images: Images) -> np.ndarray:
        raise NotImplementedError


class EmbeddingRival(Rival):
    """Rival on embeddings of the frozen teacher; a subclass writes ``_fit_rows(Z)`` and ``_score_rows(Z)``.

    Attributes
    ----------
    extractor_ : extractor
        The fitted teacher.
    """

    def _fit(self, images: Images) -> np.ndarray:
        self.extractor_ = fitted_extractor(self.extractor, images)
        return self._fit_rows(embed_images(self.extractor_, images))

    def _score(self, images: Images) -> np.ndarray:
        return self._score_rows(embed_images(self.extractor_, images))

    def _fit_rows(self, Z: np.ndarray) -> np.ndarray:
        raise NotImplementedError

    def _score_rows(self, Z: np.ndarray) -> np.ndarray:
        raise NotImplementedError


def fitted_extractor(extractor: Any, images: Images) -> Any:
    """Give `extractor` itself where it is fitted, else a fitted clone; names as TransformalyDetector takes them."""
    extractor = resolve_extractor(extractor)
    return extractor if hasattr(extractor, "blocks_") else clone(extractor, safe=False).fit(images)


def embed_images(extractor: Any, images: Images) -> np.ndarray:
    """Teacher's embeddings: ndarray of shape (n_samples, D), float64."""
    batches = images.batches(extractor.batch_size)
    return np.concatenate([extractor.embed(extractor.preprocess(p)).double().cpu().numpy() for _, p in batches])


def pixel_tensor(images: Images, size: int) -> Tensor:
    """Images resized whole (bilinear, antialiased) to a Tensor of shape (n, 3, size, size), float32 in 0-1.

    Grey images fill all three channels; transparent ones are laid on white.
    """
    rows = []
    for image in images:
        white = np.iinfo(image.dtype).max if image.dtype.kind == "u" else 1
        pixels = torch.from_numpy((image / white).astype(np.float32)).permute(2, 0, 1)[None]
        if pixels.shape[1] == 4:
            alpha = pixels[:, 3:]
            pixels = pixels[:, :3] * alpha + (1 - alpha)
        pixels = F.interpolate(pixels, size=(size, size), mode="bilinear", antialias=True, align_corners=False)
        rows.append(pixels.expand(-1, 3, -1, -1))
    return torch.cat(rows)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer, name: str, clip: float | None = None) -> float:
    """One step down the gradient of a loss, whose norm is at most `clip`; returns the loss, which must be finite."""
    if not torch.isfinite(loss):
        raise FloatingPointError(f"{name}'s loss is not finite: lower lr, or compute in float32.")
    optimizer.zero_grad()
    loss.backward()
    if clip is not None:
        torch.nn.utils.clip_grad_norm_(optimizer.param_groups[0]["params"], clip)
    optimizer.step()
    return loss.item()


def minibatches(n: int, batch_size: int, rng: np.random.RandomState) -> list[np.ndarray]:
    """Shuffle positions 0...n-1 into batches of nearly equal sizes, none above `batch_size`.

    Equal sizes, so that no epoch ends with a batch of one, of which neither batch statistics nor a contrast exist.
    """
    return np.array_split(rng.permutation(n), math.ceil(n / batch_size))
