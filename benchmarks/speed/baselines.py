"""What a user has without this package: timm's features, and the paper's training as anyone would first write it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from skl_transformaly import TimmExtractor


def plain_timm(extractor: TimmExtractor, batch: Tensor) -> Callable[[], Any]:
    """``model.forward_features`` of the same teacher in float32, without gradients: the embedding alone."""
    model = extractor.teacher_.model

    @torch.no_grad()
    def run() -> Tensor:
        return model.forward_features(batch)

    return run


class PlainLoop:
    """The paper's training, step by step: the frozen teacher and all students run together on each batch, in float32.

    Adam at 1e-4, as the paper has it; one loss for each block, summed; the teacher's activations are thrown away after
    each step.

    Parameters
    ----------
    extractor : fitted TimmExtractor
        In float32.
    n_blocks : int
        Students of the last so many blocks.
    """

    def __init__(self, extractor: TimmExtractor, n_blocks: int = 10):
        self.extractor = extractor
        fresh = extractor.new_blocks(seed=0)
        self.students = dict(list(enumerate(fresh))[-n_blocks:])
        parameters = [p for student in self.students.values() for p in student.parameters()]
        self.optimizer = torch.optim.Adam(parameters, lr=1e-4)

    def step(self, batch: Tensor) -> float:
        """Train all students on one batch of preprocessed images; gives the loss."""
        seen: dict[int, tuple[Tensor, tuple, dict, Tensor]] = {}

        def visit(index: int, block: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
            if index in self.students:
                seen[index] = (args[0], args[1:], kwargs, output)

        self.extractor.embed(batch, visit)
        loss = sum(
            nn.functional.mse_loss(self.students[index](x, *extra, **kwargs), target)
            for index, (x, extra, kwargs, target) in seen.items()
        )
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())
