"""Statistics of a student's errors on normal images at each place, so that maps show what is unusual."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["MAP_IMAGES", "ResidualStatistics", "evenly", "most_in_maps"]

# Maps compare residuals with those of at most so many training images, and of fewer if a block's would take more bytes.
# With 16, 32, 64 or all of 70 and 111 X-rays and 100 drawn walls, pixel AUROC on defects differed by 0.01.
MAP_IMAGES, _LEAST_MAP_IMAGES = 32, 8
_MAP_BYTES = 2**25

# Minimum shrinkage of the covariance: directions with hardly any variance are mostly rounding error.
_RIDGE = 0.01
# Number of folds; each is compared with statistics of the others.
_FOLDS = 4
_TINY = 1e-6


@dataclass
class ResidualStatistics:
    """Distribution of one student's residuals, its output minus the teacher's, over normal images.

    Some places of an image (edges, letters, organs) are harder to imitate than others, and some channels of a
    transformer are far larger than all others: the plain squared error shows these, whatever the image. Here a residual
    is compared with the mean at its place, in units of the covariance over all places, as PaDiM [1]_ does with
    features. The logarithm of that distance is then compared with its mean and standard deviation at the place, over
    images that the mean and covariance were not estimated from (cross-fitting).

    Parameters
    ----------
    mean : ndarray of shape (C, h, w), float32
        Mean residual at each place.
    whitening : ndarray of shape (C, C), float32
        Lower triangular matrix that makes the covariance of residuals around `mean`, pooled over places, the identity.
    level : ndarray of shape (h, w), float32
        Cross-fitted mean of the log squared distance at each place. Two images cannot be cross-fitted: of these, new
        images seem unusual all over.
    spread : ndarray of shape (h, w), float32
        Cross-fitted standard deviation of the log squared distance at each place.

    References
    ----------
    .. [1] T. Defard, A. Setkov, A. Loesch and R. Audigier, "PaDiM: A Patch Distribution Modeling Framework for Anomaly
       Detection and Localization", ICPR Workshops 2021.
    """

    mean: np.ndarray
    whitening: np.ndarray
    level: np.ndarray
    spread: np.ndarray

    @classmethod
    def fit(cls, residuals: Tensor) -> ResidualStatistics:
        """Estimate the statistics from residuals of normal images.

        Parameters
        ----------
        residuals : Tensor of shape (n, C, h, w)

        Raises
        ------
        FloatingPointError
            The squared residuals are not finite.
        """
        if residuals.device.type not in ("cpu", "cuda"):  # other accelerators may lack float64
            residuals = residuals.cpu()
        n, channels = residuals.shape[:2]
        # Products are computed once for each fold and summed: subtracting a fold's products from those of all images
        # would lose precision if images are alike.
        folds = residuals.tensor_split(min(n, _FOLDS))
        moments = [_Moments.of(fold) for fold in folds]
        whole = _Moments.combined(moments)
        if not torch.isfinite(whole.products).all():
            raise FloatingPointError(
                "The squared residuals of a student are not finite: its training diverged. Lower lr, "
                "or give the extractor precision='float32'."
            )
        shrinkage = max(_RIDGE, _ledoit_wolf(residuals, whole))
        found = cls._estimate(whole, shrinkage)
        if n < 3:  # a single other image has no variance
            logs = found._log_distance(residuals)
        else:
            # Each image is measured by statistics of the other folds: with many channels and few images, it would seem
            # more usual by its own than any new image can.
            others = [_Moments.combined(moments[:i] + moments[i + 1 :]) for i in range(len(folds))]
            logs = torch.cat([cls._estimate(rest, shrinkage)._log_distance(fold) for rest, fold in zip(others, folds)])
        found.level = logs.mean(0).float().cpu().numpy()
        # at least the spread of a Gaussian: few images, or a place that is always black, may have less
        spread = logs.std(0, correction=0).clamp(min=(2 / channels) ** 0.5)
        found.spread = spread.float().cpu().numpy()
        return found

    @classmethod
    def _estimate(cls, moments: _Moments, shrinkage: float) -> ResidualStatistics:
        """Mean and whitening, with the covariance shrunk towards a multiple of the identity."""
        covariance = moments.covariance
        channels = len(covariance)
        identity = torch.eye(channels, dtype=covariance.dtype, device=covariance.device)
        # one image, or identical images, have no variance
        scale = float(covariance.diagonal().sum()) / channels or _TINY
        covariance = (1 - shrinkage) * covariance + shrinkage * scale * identity
        whitening = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), identity, upper=False)
        location, scale_to = (tensor.float().cpu().numpy() for tensor in (moments.mean, whitening))
        return cls(location, scale_to, np.zeros(0), np.zeros(0))

    def standardize(self, residuals: Tensor) -> Tensor:
        """Measure how unusual residuals are at their places.

        Parameters
        ----------
        residuals : Tensor of shape (B, C, h, w)

        Returns
        -------
        z : Tensor of shape (B, h, w)
            In standard deviations over normal images; 0 is their mean.
        """
        level, spread = (torch.from_numpy(array).to(residuals) for array in (self.level, self.spread))
        return (self._log_distance(residuals) - level) / spread

    def _log_distance(self, residuals: Tensor) -> Tensor:
        mean, whitening = (torch.from_numpy(array).to(residuals) for array in (self.mean, self.whitening))
        with torch.autocast(residuals.device.type, enabled=False):
            white = torch.einsum("dc,bchw->bdhw", whitening, residuals - mean)
        return (white.square().mean(1) + _TINY).log()


def evenly(n: int, most: int) -> np.ndarray:
    """Return at most so many of n positions, in ascending order and at even distances."""
    return np.unique(np.linspace(0, n - 1, min(n, most)).round().astype(int))


def most_in_maps(residual: Tensor) -> int:
    """Return of how many training images residuals of a block, such as this one, are kept to compare maps with."""
    return min(MAP_IMAGES, max(_LEAST_MAP_IMAGES, _MAP_BYTES // (4 * residual.numel())))


@dataclass
class _Moments:
    """Moments of residuals: the number of images, mean at each place (C, h, w) and products around it (C, C)."""

    count: int
    mean: Tensor
    products: Tensor

    @property
    def covariance(self) -> Tensor:
        return self.products / (self.count * self.mean[0].numel())

    @classmethod
    def of(cls, residuals: Tensor) -> _Moments:
        mean, rows = _centred(residuals)
        return cls(len(residuals), mean, (rows.T @ rows).double())

    @classmethod
    def combined(cls, parts: list[_Moments]) -> _Moments:
        """Moments of all parts together, as sums of positive terms only, as Chan, Golub and LeVeque add variances."""
        count = sum(part.count for part in parts)
        mean = torch.stack([part.mean * (part.count / count) for part in parts]).sum(0)
        products = torch.stack([part.products for part in parts]).sum(0)
        for part in parts:
            shift = (part.mean - mean).flatten(1).double()
            products += part.count * (shift @ shift.T)
        return cls(count, mean, products)


def _ledoit_wolf(residuals: Tensor, moments: _Moments) -> float:
    """Shrinkage of the covariance, as computed by scikit-learn's ``ledoit_wolf_shrinkage``.

    This reuses the products: scikit-learn would compute them twice more, which on small sets is a tenth of a fit.
    """
    channels = len(moments.products)
    # in units of the mean variance, or fourth powers would overflow or underflow
    unit = float(moments.covariance.diagonal().mean()) or 1.0
    covariance = moments.covariance / unit
    squares = ((residuals - moments.mean).double() / unit**0.5).square().sum(1)
    norm = float(covariance.square().sum())
    noise = float(squares.square().mean()) - norm
    far = norm - float(covariance.diagonal().sum()) ** 2 / channels
    return min(noise / squares.numel(), far) / far if far > 0 else 0.0


def _centred(residuals: Tensor) -> tuple[Tensor, Tensor]:
    """Mean at each place, and the residuals (n * h * w, C) around it."""
    mean = residuals.mean(0)
    return mean, (residuals - mean).movedim(1, -1).flatten(0, -2)
