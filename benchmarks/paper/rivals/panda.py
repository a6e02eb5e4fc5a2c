"""PANDA: the pre-trained network's last blocks, fine-tuned to draw normal images together.

Method
    The last blocks are trained to bring the embeddings of normal images close to their mean before training
    (compactness loss). Left alone, this collapses to one point for all images, so it is stopped early: after a
    constant number of steps, or for each image on its own. In the latter, checkpoints are kept at fixed
    intervals; at each, an image's kNN distance is divided by the mean one of the training images, and the largest
    of these ratios is its anomaly score.

Source
    T. Reiss, N. Cohen, L. Bergman and Y. Hoshen, "PANDA: Adapting Pretrained Features for Anomaly Detection and
    Segmentation", CVPR 2021, variants PANDA-Early and PANDA-SES; details from the authors' code.

Settings
    As published: last 2 blocks, eval mode; SGD with learning rate 1e-2, momentum 0.9, weight decay 5e-5,
    gradients clipped at norm 1e-3, batch 32, at most 15 epochs or 2,300 steps; loss averaged over dimensions; k = 2,
    squared distances.

Deviations
    - The teacher is the benchmark's instead of a ResNet-152. Of a transformer, 2 of the last blocks are tuned,
      where those of a ResNet are 2 stages of 4.
    - The normalisation layers behind the blocks train too: a ResNet has none there.
    - The number of checkpoints is not in the authors' code, which leaves out SES: here 5 at equal intervals, and
      the network before training.
    - A training image's distance is that to the other training images, since that to itself is 0.
    - Images are not augmented or cropped, which lets the frozen blocks run once only. The authors' training does
      not augment either.
    - Batches of an epoch have nearly equal sizes instead of a small one at the end.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from sklearn.utils import check_random_state

from rivals._base import Rival, descend, fitted_extractor, minibatches
from rivals._tuning import Tail, capture, capture_images
from rivals.dn2 import fit_neighbours, neighbour_distance
from skl_transformaly.images._images import Images

__all__ = ["PANDA"]


class PANDA(Rival):
    """Nearest neighbours of an embedding tuned for compactness; see the module's docstring.

    Parameters
    ----------
    extractor : str, extractor or None, default=None
        The teacher, as TransformalyDetector takes it; it needs `teacher_` too.
    early : {"ses", "constant"}, default="ses"
        Early stopping for each image, or after a constant number of steps.
    n_tuned : int, default=2
        How many of the teacher's last blocks train.
    max_steps : int, default=2300
        Minibatches to train on.
    max_epochs : int or None, default=15
        Training also ends after so many epochs; None is no such bound. On the 5,000 images of a CIFAR-10 class,
        15 epochs are the 2,300 steps.
    n_checkpoints : int, default=5
        Of ``early="ses"``, besides the network before training.
    lr, momentum, weight_decay : float, default=1e-2, 0.9, 5e-5
        Of SGD.
    clip : float, default=1e-3
        Largest norm of the gradient.
    batch_size : int, default=32
    n_neighbors : int, default=2
    random_state : int, RandomState or None, default=None

    Attributes
    ----------
    extractor_ : extractor
    tail_ : Tail
        The tuned blocks, at the end of training.
    checkpoints_ : list of (weights, NearestNeighbors, float)
        Tuned weights, training embeddings and the divisor of the distances; one with ``early="constant"``.
    history_ : list of float
        Mean loss of each epoch.
    """

    def __init__(
        self,
        extractor: Any = None,
        *,
        early: str = "ses",
        n_tuned: int = 2,
        max_steps: int = 2300,
        max_epochs: int | None = 15,
        n_checkpoints: int = 5,
        lr: float = 1e-2,
        momentum: float = 0.9,
        weight_decay: float = 5e-5,
        clip: float = 1e-3,
        batch_size: int = 32,
        n_neighbors: int = 2,
        random_state: Any = None,
    ):
        self.extractor = extractor
        self.early = early
        self.n_tuned = n_tuned
        self.max_steps = max_steps
        self.max_epochs = max_epochs
        self.n_checkpoints = n_checkpoints
        self.lr = lr
        self.momentum = momentum
        self.weight_decay = weight_decay
        self.clip = clip
        self.batch_size = batch_size
        self.n_neighbors = n_neighbors
        self.random_state = random_state

    def _fit(self, images: Images) -> np.ndarray:
        if self.early not in ("ses", "constant"):
            raise ValueError(f"early must be 'ses' or 'constant', got {self.early!r}.")
        rng = check_random_state(self.random_state)
        self.extractor_ = fitted_extractor(self.extractor, images)
        self.tail_ = Tail(self.extractor_, self.n_tuned)
        activations = capture_images(self.extractor_, images, self.tail_.index)
        parameters = list(self.tail_.tuned().values())
        centre = torch.from_numpy(self._embed(activations).mean(axis=0)).to(parameters[0])
        optimizer = torch.optim.SGD(parameters, lr=self.lr, momentum=self.momentum, weight_decay=self.weight_decay)
        n_steps = self.max_steps
        if self.max_epochs is not None:
            n_steps = min(n_steps, self.max_epochs * math.ceil(len(activations) / self.batch_size))
        intervals = self.n_checkpoints if self.early == "ses" else 0
        keep_at = {n_steps * i // intervals for i in range(intervals + 1)} if intervals else {n_steps}
        self.history_: list[float] = []
        self.checkpoints_: list[tuple] = []
        training = [self._keep(activations)] if 0 in keep_at else []
        step = 0
        while step < n_steps:
            total, seen = 0.0, 0
            for chosen in minibatches(len(activations), self.batch_size, rng)[: n_steps - step]:
                loss = (self.tail_(activations[torch.from_numpy(chosen)]) - centre).square().mean()
                total += descend(loss, optimizer, "PANDA", self.clip) * len(chosen)
                step, seen = step + 1, seen + len(chosen)
                if step in keep_at:
                    training.append(self._keep(activations))
            self.history_.append(total / seen)
        return -np.max(training, axis=0)

    def _score(self, images: Images) -> np.ndarray:
        scores = []
        for _, pixels in images.batches(self.extractor_.batch_size):
            activations = capture(self.extractor_, self.extractor_.preprocess(pixels), self.tail_.index)
            ratios = [
                neighbour_distance(neighbours, self._embed(activations, weights)) / divisor
                for weights, neighbours, divisor in self.checkpoints_
            ]
            scores.append(-np.max(ratios, axis=0))
        return np.concatenate(scores)

    def _keep(self, activations: torch.Tensor) -> np.ndarray:
        """Keep a checkpoint; gives the training images' own anomaly scores there."""
        neighbours = fit_neighbours(self._embed(activations), self.n_neighbors)
        distances = neighbour_distance(neighbours)
        divisor = (float(distances.mean()) or 1.0) if self.early == "ses" else 1.0
        self.checkpoints_.append((self.tail_.snapshot(), neighbours, divisor))
        return distances / divisor

    def _embed(self, activations: torch.Tensor, weights: dict | None = None) -> np.ndarray:
        return self.tail_.embed(activations, self.extractor_.batch_size, weights)
