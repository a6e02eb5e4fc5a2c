"""MSAD: the pre-trained network's last blocks, fine-tuned by a contrast around the mean of normal images.

Method
    Embeddings are scaled to unit length, the mean of the training images' unit embeddings before training is
    subtracted, and the rest is scaled to unit length again. Two augmented views of each image are trained to agree
    in that, and those of different images to differ (InfoNCE): as angles are taken around the mean and not around the
    origin, this does not drive normal images apart from their centre. The anomaly score is the kNN distance
    between unit embeddings, which ranks as the angle does.

Source
    T. Reiss and Y. Hoshen, "Mean-Shifted Contrastive Loss for Anomaly Detection", AAAI 2023, without the angular
    centre loss, which the authors' code leaves off by default; details from that code.

Settings
    As in the authors' code: last 2 blocks, eval mode; temperature 0.25; SGD with learning rate 1e-5, no momentum,
    weight decay 5e-5, batch 64, 20 epochs; views by random crop (0.2 to 1 of the area), colour jitter (0.4, 0.4, 0.4,
    0.1; in 4 of 5 views), grey (1 of 5), Gaussian blur (sigma 0.1 to 2; 1 of 2) and horizontal flip (1 of 2);
    k = 2.

Deviations
    - The teacher is the benchmark's instead of a ResNet-152. Of a transformer, 2 of the last blocks are tuned,
      where those of a ResNet are 2 stages of 4.
    - The normalisation layers behind the blocks train too: a ResNet has none there.
    - Views are cut from images that are resized to the teacher's input already, so that every form of images
      takes the same way; the authors cut them from the files.
    - Images are not cropped for scoring; the benchmark's preprocessing is the same for all methods.
    - Batches of an epoch have nearly equal sizes instead of a small one at the end.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state
from torch import Tensor
from torch.nn import functional as F
from torchvision.transforms import v2

from rivals._base import Rival, descend, fitted_extractor, minibatches
from rivals._tuning import Tail, capture, capture_images
from rivals.dn2 import fit_neighbours, neighbour_distance
from skl_transformaly.images._images import Images
from skl_transformaly.utils._torch import seeded

__all__ = ["MSAD", "mean_shifted_loss"]


class MSAD(Rival):
    """Nearest neighbours by angle in an embedding tuned by contrast; see the module's docstring.

    Parameters
    ----------
    extractor : str, extractor or None, default=None
        The teacher, as TransformalyDetector takes it; it needs `teacher_` too, and to take real pixels.
    n_tuned : int, default=2
        How many of the teacher's last blocks train.
    max_epochs : int, default=20
    temperature : float, default=0.25
        Of the contrast.
    lr, weight_decay : float, default=1e-5, 5e-5
        Of SGD.
    batch_size : int, default=64
        Images in a minibatch; each comes in two views.
    n_neighbors : int, default=2
    random_state : int, RandomState or None, default=None
    views : dict or None, default=None
        Filled with what enters the tuned blocks for each view. Further fits with the same teacher and seed, on
        images some of which are the same, find theirs there and do not run the frozen blocks again, to the same
        result; it holds ``2 * max_epochs`` activations an image.

    Attributes
    ----------
    extractor_ : extractor
    tail_ : Tail
        The tuned blocks.
    neighbours_ : NearestNeighbors
        Tuned unit embeddings of the training images.
    history_ : list of float
        Mean loss of each epoch.
    """

    def __init__(
        self,
        extractor: Any = None,
        *,
        n_tuned: int = 2,
        max_epochs: int = 20,
        temperature: float = 0.25,
        lr: float = 1e-5,
        weight_decay: float = 5e-5,
        batch_size: int = 64,
        n_neighbors: int = 2,
        random_state: Any = None,
        views: dict | None = None,
    ):
        self.extractor = extractor
        self.n_tuned = n_tuned
        self.max_epochs = max_epochs
        self.temperature = temperature
        self.lr = lr
        self.weight_decay = weight_decay
        self.batch_size = batch_size
        self.n_neighbors = n_neighbors
        self.random_state = random_state
        self.views = views

    def _fit(self, images: Images) -> np.ndarray:
        rng = check_random_state(self.random_state)
        self.extractor_ = fitted_extractor(self.extractor, images)
        self.tail_ = Tail(self.extractor_, self.n_tuned)
        parameters = list(self.tail_.tuned().values())
        activations = capture_images(self.extractor_, images, self.tail_.index)
        centre = torch.from_numpy(self._embed(activations).mean(axis=0)).to(parameters[0])
        optimizer = torch.optim.SGD(parameters, lr=self.lr, weight_decay=self.weight_decay)
        seed = rng.randint(np.iinfo(np.int32).max)
        names = _names(images)
        self.history_: list[float] = []
        for epoch in range(self.max_epochs):
            total = 0.0
            for chosen in minibatches(len(images), self.batch_size, rng):
                shown = {(seed, epoch, *names[i]): images[int(i)] for i in chosen}
                loss = mean_shifted_loss(self.tail_(self._views(shown)), centre, self.temperature)
                total += descend(loss, optimizer, "MSAD") * len(chosen)
            self.history_.append(total / len(images))
        self.neighbours_ = fit_neighbours(self._embed(activations), self.n_neighbors)
        return -neighbour_distance(self.neighbours_)

    def _score(self, images: Images) -> np.ndarray:
        rows = []
        for _, pixels in images.batches(self.extractor_.batch_size):
            rows.append(self._embed(capture(self.extractor_, self.extractor_.preprocess(pixels), self.tail_.index)))
        return -neighbour_distance(self.neighbours_, np.concatenate(rows))

    def _embed(self, activations: Tensor) -> np.ndarray:
        """Unit embeddings (n, D) with the present weights."""
        return normalize(self.tail_.embed(activations, self.extractor_.batch_size))

    def _views(self, shown: dict[tuple, np.ndarray]) -> Tensor:
        """What enters the tuned blocks for two views of each image: (2 * B, ...), first views first.

        The names of the images seed their views.
        """
        known = {} if self.views is None else self.views
        missing = [name for name in shown if name not in known]
        if missing:
            batch = self.extractor_.preprocess([shown[name] for name in missing])
            views = torch.cat(_augmented(batch, missing, self.extractor_.teacher_.data_config))
            entering = capture(self.extractor_, views, self.tail_.index).unflatten(0, (2, -1))
            known.update(zip(missing, entering.unbind(1), strict=True))
        return torch.stack([known[name] for name in shown], dim=1).flatten(0, 1)


def _names(images: Iterable[np.ndarray]) -> list[tuple[str, int]]:
    """Name of each image: a hash of its content, and how many of the same content come before it."""
    seen: Counter[str] = Counter()
    names = []
    for image in images:
        digest = hashlib.sha256(repr((image.shape, image.dtype)).encode() + image.tobytes()).hexdigest()
        names.append((digest, seen[digest]))
        seen[digest] += 1
    return names


def mean_shifted_loss(embeddings: Tensor, centre: Tensor, temperature: float) -> Tensor:
    """InfoNCE over angles around `centre`.

    Parameters
    ----------
    embeddings : Tensor of shape (2 * B, D)
        The first views of B images, then the second ones in the same order.
    centre : Tensor of shape (D,)
        Mean of unit embeddings.
    temperature : float

    Returns
    -------
    loss : Tensor of shape ()
        Mean over views of -log of the share that the other view of the same image has among all other views.
    """
    shifted = F.normalize(F.normalize(embeddings, dim=1) - centre, dim=1)
    similarity = shifted @ shifted.T / temperature
    similarity = similarity.masked_fill(torch.eye(len(shifted), dtype=torch.bool, device=shifted.device), -torch.inf)
    partner = torch.arange(len(shifted), device=shifted.device).roll(len(shifted) // 2)
    return F.cross_entropy(similarity, partner)


def _augmented(batch: Tensor, names: list[tuple], data_config: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Two views of each image of a batch as `preprocess` gives it; an image's name seeds its views."""
    size = tuple(data_config["input_size"][1:])
    # 17 taps reach four deviations of the widest blur; reflection at the edges needs less than the image
    taps = min(17, 2 * ((min(size) - 1) // 2) + 1)
    transform = v2.Compose(
        [
            v2.RandomResizedCrop(size, scale=(0.2, 1.0), antialias=True),
            v2.RandomApply([v2.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            v2.RandomGrayscale(p=0.2),
            v2.RandomApply([v2.GaussianBlur(taps, sigma=(0.1, 2.0))], p=0.5),
            v2.RandomHorizontalFlip(),
        ]
    )
    mean, std = (torch.as_tensor(data_config[key]).to(batch).view(-1, 1, 1) for key in ("mean", "std"))
    first, second = [], []
    for image, name in zip((batch * std + mean).clamp(0, 1), names, strict=True):  # colours are jittered in 0-1
        # the augmentations draw from torch's global generator
        with seeded(int(hashlib.sha256(repr(name).encode()).hexdigest()[:15], 16)):
            first.append(transform(image))
            second.append(transform(image))
    return (torch.stack(first) - mean) / std, (torch.stack(second) - mean) / std
