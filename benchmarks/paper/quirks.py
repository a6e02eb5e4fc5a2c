"""Where the authors' released code differs from the paper, each difference to be switched on by name.

They matter to whoever compares figures: some look at test data, others change the input or the density.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from tqdm.auto import tqdm

from skl_transformaly import BlockStudents
from skl_transformaly.students._activations import BlockActivations
from skl_transformaly.students._training import Imitation, StudentTraining, Train, TrainingSettings

QUIRKS = {
    "best-epoch-on-test": "Each student keeps the epoch of the lowest loss on the test set's normal images: a look at "
    "test data.",
    "teacher-dropout": "The frozen teacher drops out a tenth of its values while students train (the authors draw "
    "anew in each step; here once for each training image, since the teacher sees each once).",
    "one-component-fewer": "Whitening keeps one principal component fewer than are needed to reach the threshold.",
    "384px": "Images are 384 pixels wide rather than 224.",
    "unscaled-ridge": "The Gaussian of the discrepancies adds 1e-6 to variances of unscaled discrepancies and does not "
    "shrink correlations.",
}


class BestEpochOnTest(BlockStudents):
    """Students that keep the epoch at which they imitate the last `n_held_out` images best."""

    def __init__(self, *, n_held_out: int = 0, **parameters: Any):
        super().__init__(**parameters)
        self.n_held_out = n_held_out

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return sorted([*BlockStudents._get_param_names(), "n_held_out"])

    def _train_function(self) -> Train:
        settings = TrainingSettings(self.max_epochs, self.lr, self.batch_size, self.token_share)
        return partial(train_to_best_epoch, settings=settings, n_held_out=self.n_held_out)


def train_to_best_epoch(
    student: torch.nn.Module,
    layer: BlockActivations,
    extractor: Any,
    seed: int,
    progress: tqdm,
    *,
    settings: TrainingSettings,
    n_held_out: int,
) -> dict[str, list[float]]:
    """As ``train_student``, on all but the last images; keeps the epoch with the lowest loss on those."""
    n = len(layer.inputs) - n_held_out
    training = StudentTraining(student, layer, extractor, seed, settings, n_images=n)
    history: dict[str, list[float]] = {"loss": [], "validation_loss": []}
    best: dict[str, torch.Tensor] = {}
    with training.randomness():
        for _ in range(settings.max_epochs):
            history["loss"].append(training.epoch())
            training.settle()
            held_out = mean_loss(training.imitation, np.arange(n, n + n_held_out), settings.batch_size)
            if held_out < min(history["validation_loss"], default=np.inf):
                best = copy.deepcopy(student.state_dict())
            history["validation_loss"].append(held_out)
            progress.update()
    training.end()
    student.load_state_dict(best)
    return history


@torch.no_grad()
def mean_loss(imitation: Imitation, rows: np.ndarray, batch_size: int) -> float:
    """Loss in eval mode over the images `rows`."""
    imitation.eval()
    batches = np.array_split(rows, -(-len(rows) // batch_size))
    total = sum(float(imitation.loss(batch)) * len(batch) for batch in batches)
    imitation.train()
    return total / len(rows)


@contextlib.contextmanager
def teacher_dropout(extractor: Any, seed: int) -> Iterator[None]:
    """Let the teacher drop out a tenth of what its attention and its MLP give, within."""
    parts = [getattr(block, name, None) for block in extractor.blocks_ for name in ("attn", "mlp")]
    if None in parts:
        raise ValueError("teacher-dropout needs blocks with attention and an MLP, as those of a Vision Transformer.")
    handles = [
        part.register_forward_hook(lambda module, args, output: torch.nn.functional.dropout(output, 0.1))
        for part in parts
    ]
    try:
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # of a GPU's generator, too
            yield
    finally:
        for handle in handles:
            handle.remove()


def unscaled_gaussian() -> GaussianMixture:
    """The authors' density of the discrepancies."""
    return GaussianMixture(n_components=1, reg_covar=1e-6)
