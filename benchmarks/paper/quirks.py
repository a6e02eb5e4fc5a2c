"""Where the authors' released code differs from the paper, each difference to be switched on by name.

They matter to whoever compares figures: some look at test data, others change the input or the density.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from sklearn.mixture import GaussianMixture

from skl_transformaly import BlockStudents

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
        super().__init__(**{**parameters, "early_stopping": True})
        self.n_held_out = n_held_out
        self.n_iter_no_change = self.max_epochs

    @classmethod
    def _get_param_names(cls) -> list[str]:
        return sorted([*BlockStudents._get_param_names(), "n_held_out"])

    def _split(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        return np.arange(n - self.n_held_out), np.arange(n - self.n_held_out, n)


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
