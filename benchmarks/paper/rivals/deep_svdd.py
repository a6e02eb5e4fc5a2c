"""Deep SVDD: a small network, trained from pixels to map normal images close to one point.

Method
    A convolutional encoder without bias terms, initialised as half of an autoencoder, is trained to map all
    normal images close to a fixed centre, the mean of its first outputs. The anomaly score is the squared distance to
    the centre.

Source
    L. Ruff, R. A. Vandermeulen, N. Görnitz, L. Deecke, S. A. Siddiqui, A. Binder, E. Müller and M. Kloft, "Deep
    One-Class Classification", ICML 2018, one-class objective; architecture and settings for CIFAR-10, with details
    from the authors' code.

Settings
    As published: 32 x 32 pixels; global contrast normalisation by L1 scale, then min-max over the training
    images; three blocks of 5 x 5 convolution (32, 64, 128 filters), batch normalisation without affine terms, leaky
    ReLU and pooling, then 128 linear units; the mirrored decoder; components of the centre within 0.1 of 0
    moved to -0.1 or 0.1; Adam, learning rate 1e-4, divided by 10 late in training, weight decay 5e-7, batch 200.

Deviations
    - 60 epochs after 40 of the autoencoder, instead of 150 after 350 (`paper_settings`), for time. The learning rate
      drops after the same shares of them as published: 50 of 150, 250 of 350.
    - Grey images fill the three channels of the CIFAR-10 network; the authors have another network for MNIST.
    - Batches of an epoch have nearly equal sizes instead of a small one at the end.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.utils import check_random_state
from torch import Tensor, nn
from torch.nn import functional as F

from rivals._base import Rival, descend, minibatches, pixel_tensor
from skl_transformaly.images._images import Images
from skl_transformaly.utils._torch import resolve_device, seeded

__all__ = ["DeepSVDD"]

_SIZE = 32
_FEATURES = 128
_EPSILON = 0.1  # no component of the centre closer to 0: a unit could reach 0 by weights of 0 alone


class DeepSVDD(Rival):
    """Distance to the centre of a one-class network; see the module's docstring.

    Parameters
    ----------
    extractor : ignored
        There so that all rivals are built alike.
    max_epochs : int, default=60
        Epochs of the one-class objective.
    pretrain_epochs : int, default=40
        Epochs of the autoencoder before; 0 leaves the initialisation random.
    lr, weight_decay : float, default=1e-4, 5e-7
        Of Adam.
    batch_size : int, default=200
    device : str, default="auto"
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    history_ : list of float
        Mean loss of each epoch of the one-class objective.
    """

    paper_settings: ClassVar[dict[str, int]] = {"max_epochs": 150, "pretrain_epochs": 350}

    def __init__(
        self,
        extractor: Any = None,
        *,
        max_epochs: int = 60,
        pretrain_epochs: int = 40,
        lr: float = 1e-4,
        weight_decay: float = 5e-7,
        batch_size: int = 200,
        device: str = "auto",
        random_state: Any = None,
    ):
        self.extractor = extractor
        self.max_epochs = max_epochs
        self.pretrain_epochs = pretrain_epochs
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.device = device
        self.random_state = random_state

    def _fit(self, images: Images) -> np.ndarray:
        rng = check_random_state(self.random_state)
        device = resolve_device(self.device)
        contrasts = _contrast(pixel_tensor(images, _SIZE))
        self._low, self._span = float(contrasts.min()), float(np.ptp(contrasts.numpy())) or 1.0
        # channels last: these convolutions take half the time on a CPU
        pixels = self._rescale(contrasts).to(device, memory_format=torch.channels_last)
        with seeded(rng.randint(np.iinfo(np.int32).max)):
            autoencoder = _Autoencoder().to(device, memory_format=torch.channels_last)
        self._train(
            autoencoder,
            lambda batch: (autoencoder(batch) - batch).square().sum(dim=(1, 2, 3)).mean(),
            pixels,
            self.pretrain_epochs,
            5 / 7,
            rng,
        )
        self.encoder_ = autoencoder.encoder
        centre = self._encode(pixels).mean(dim=0)
        sign = torch.where(centre < 0, -1.0, 1.0)
        self.centre_ = torch.where(centre.abs() < _EPSILON, sign * _EPSILON, centre)
        self.history_ = self._train(
            self.encoder_,
            lambda batch: (self.encoder_(batch) - self.centre_).square().sum(dim=1).mean(),
            pixels,
            self.max_epochs,
            1 / 3,
            rng,
        )
        return self._distances(pixels)

    def _score(self, images: Images) -> np.ndarray:
        return self._distances(self._rescale(_contrast(pixel_tensor(images, _SIZE))).to(self.centre_.device))

    def _distances(self, pixels: Tensor) -> np.ndarray:
        return -(self._encode(pixels) - self.centre_).square().sum(dim=1).double().cpu().numpy()

    def _rescale(self, contrasts: Tensor) -> Tensor:
        return (contrasts - self._low) / self._span

    @torch.no_grad()
    def _encode(self, pixels: Tensor) -> Tensor:
        self.encoder_.eval()
        return torch.cat([self.encoder_(batch) for batch in pixels.split(self.batch_size)])

    def _train(
        self,
        network: nn.Module,
        loss_of: Callable[[Tensor], Tensor],
        pixels: Tensor,
        n_epochs: int,
        drop_after: float,
        rng: np.random.RandomState,
    ) -> list[float]:
        """Train `network` on `pixels`, the learning rate dropping after a share of the epochs; mean losses."""
        optimizer = torch.optim.Adam(network.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [max(1, round(drop_after * n_epochs))], gamma=0.1)
        network.train()
        history = []
        for _ in range(n_epochs):
            total = 0.0
            for chosen in minibatches(len(pixels), self.batch_size, rng):
                loss = loss_of(pixels[torch.from_numpy(chosen).to(pixels.device)])
                total += descend(loss, optimizer, "Deep SVDD") * len(chosen)
            schedule.step()
            history.append(total / len(pixels))
        return history


class _Encoder(nn.Module):
    """Three blocks of convolution and pooling, then linear units; no bias anywhere, or zero weights would do."""

    def __init__(self):
        super().__init__()
        self.convolutions = nn.ModuleList([_convolution(a, b) for a, b in [(3, 32), (32, 64), (64, 128)]])
        self.norms = nn.ModuleList([nn.BatchNorm2d(n, eps=1e-4, affine=False) for n in (32, 64, 128)])
        self.linear = nn.Linear(128 * 4 * 4, _FEATURES, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms):
            x = F.max_pool2d(F.leaky_relu(norm(convolution(x))), 2)
        return self.linear(x.flatten(1))


class _Autoencoder(nn.Module):
    """The encoder and its mirror image."""

    def __init__(self):
        super().__init__()
        self.encoder = _Encoder()
        self.norm = nn.BatchNorm1d(_FEATURES, eps=1e-4, affine=False)
        self.convolutions = nn.ModuleList([_convolution(a, b) for a, b in [(8, 128), (128, 64), (64, 32)]])
        self.norms = nn.ModuleList([nn.BatchNorm2d(n, eps=1e-4, affine=False) for n in (128, 64, 32)])
        self.last = _convolution(32, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.norm(self.encoder(x)).view(-1, _FEATURES // 16, 4, 4))
        for convolution, norm in zip(self.convolutions, self.norms):
            x = F.interpolate(F.leaky_relu(norm(convolution(x))), scale_factor=2)
        return torch.sigmoid(self.last(x))


def _convolution(n_in: int, n_out: int) -> nn.Conv2d:
    convolution = nn.Conv2d(n_in, n_out, 5, padding=2, bias=False)
    nn.init.xavier_uniform_(convolution.weight, gain=nn.init.calculate_gain("leaky_relu"))
    return convolution


def _contrast(pixels: Tensor) -> Tensor:
    """Each image less its mean, in units of its mean absolute deviation; all 0 for an image of one value."""
    centred = pixels - pixels.mean(dim=(1, 2, 3), keepdim=True)
    scale = centred.abs().mean(dim=(1, 2, 3), keepdim=True)
    return centred / scale.clamp(min=1e-6)
