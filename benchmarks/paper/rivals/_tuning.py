"""Fine-tuning a teacher's last blocks without running the frozen ones again and again.

What enters the first tuned block is captured once; a `Tail` maps it to the embedding and is what trains.
"""

from __future__ import annotations

import contextlib
import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skl_transformaly.images._images import Images
from skl_transformaly.teacher._architecture import find_blocks

__all__ = ["Tail", "capture", "capture_images"]


class _Captured(Exception):
    """Ends the teacher's run once it has been seen what it is run for."""


class _Skip(nn.Module):
    """In place of a block that is not needed: gives its first input, whatever else it gets."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return x


def capture(extractor: Any, batch: Tensor, index: int) -> Tensor:
    """What enters the teacher's block `index` when it embeds `batch`.

    Parameters
    ----------
    extractor : extractor
        Fitted; ``embed(batch, visit)`` is all that is used, and `teacher_` for the dtype.
    batch : Tensor
        From ``extractor.preprocess``.
    index : int
        Of a block in ``extractor.blocks_``.

    Returns
    -------
    activations : Tensor of shape (B, ...)
        In the dtype of the teacher's parameters.

    Raises
    ------
    ValueError
        The extractor never visited that block.
    """
    parts: list[Tensor] = []

    def visit(i, block, args, kwargs, output):
        if i == index:
            parts.append(args[0])
            raise _Captured

    # a teacher may take less at a time than a minibatch holds
    pieces = batch.split(extractor.batch_size) if len(batch) > extractor.batch_size else [batch]
    for piece in pieces:
        with contextlib.suppress(_Captured):
            extractor.embed(piece, visit)
    if len(parts) < len(pieces):
        raise ValueError(f"{type(extractor).__name__}.embed did not visit block {index}, whose input is needed.")
    return torch.cat(parts).to(next(extractor.teacher_.model.parameters()).dtype)


def capture_images(extractor: Any, images: Images, index: int) -> Tensor:
    """What enters the teacher's block `index`, for all images: a Tensor of shape (n, ...) in main memory."""
    batches = images.batches(extractor.batch_size)
    return torch.cat([capture(extractor, extractor.preprocess(pixels), index).cpu() for _, pixels in batches])


class Tail(nn.Module):
    """The teacher from one of its last blocks on, as a trainable copy: from a block's input to the embedding.

    The teacher's own forward pass runs on blank images with the frozen blocks taken out, and what enters the
    first tuned block is put in place of what comes there, so that position embeddings, pooling and whatever else
    surrounds the blocks stay the architecture's own. The copy is in eval mode: no dropout, fixed batch statistics.
    Networks with layers of fixed shape between their blocks (DenseNet) cannot be run so.

    Parameters
    ----------
    extractor : extractor
        Fitted; its `teacher_` is copied, and it computes in its precision.
    n_tuned : int
        How many of the last blocks train, together with the normalisation layers behind them.

    Attributes
    ----------
    index : int
        Of the first tuned block.

    Raises
    ------
    ValueError
        `n_tuned` is not between 1 and the number of blocks.
    """

    def __init__(self, extractor: Any, n_tuned: int):
        super().__init__()
        teacher = extractor.teacher_
        self.model = copy.deepcopy(teacher.model).eval().requires_grad_(False)
        blocks = find_blocks(self.model)
        if not 1 <= n_tuned <= len(blocks):
            raise ValueError(f"n_tuned must be between 1 and {len(blocks)}, the number of blocks, got {n_tuned}.")
        self.index = len(blocks) - n_tuned
        self._compute = extractor.compute
        self._input_size = tuple(teacher.data_config["input_size"])
        for block in blocks:  # the original's hooks, which would report this copy's blocks as its own
            for hooks in (block._forward_hooks, block._forward_hooks_with_kwargs, block._forward_hooks_always_called):
                hooks.clear()
        for block in blocks[self.index :]:
            block.requires_grad_(True)
        modules = list(self.model.modules())
        end = max(modules.index(module) for module in blocks[-1].modules())
        for module in modules[end + 1 :]:
            if "norm" in type(module).__name__.lower():
                for parameter in module.parameters(recurse=False):
                    parameter.requires_grad_(True)
        for block in blocks[: self.index]:
            _replace(self.model, block, _Skip())
        blocks[self.index].register_forward_pre_hook(lambda block, args: (self._activations, *args[1:]))

    def forward(self, activations: Tensor) -> Tensor:
        """Embeddings (B, D) of what enters block `index`, (B, ...), in the dtype of the parameters."""
        parameter = next(self.model.parameters())
        self._activations = activations.to(parameter)
        blank = torch.zeros(1, *self._input_size).to(parameter).expand(len(activations), -1, -1, -1)
        try:
            with self._compute():
                features = self.model.forward_features(blank)
                return self.model.forward_head(features, pre_logits=True).flatten(1).to(parameter.dtype)
        finally:
            del self._activations

    def tuned(self) -> dict[str, nn.Parameter]:
        """Names and values of the parameters that train."""
        return {name: parameter for name, parameter in self.named_parameters() if parameter.requires_grad}

    def snapshot(self) -> dict[str, Tensor]:
        """Copy of `tuned`, to be given to `embed` later."""
        return {name: parameter.detach().clone() for name, parameter in self.tuned().items()}

    @torch.no_grad()
    def embed(self, activations: Tensor, batch_size: int, snapshot: dict[str, Tensor] | None = None) -> np.ndarray:
        """Embeddings of any number of activations, with the present weights or those of `snapshot`.

        Returns
        -------
        Z : ndarray of shape (n, D), float64
        """
        batches = activations.split(batch_size)
        rows = [torch.func.functional_call(self, snapshot or {}, (batch,)) for batch in batches]
        return torch.cat(rows).double().cpu().numpy()


def _replace(model: nn.Module, old: nn.Module, new: nn.Module) -> None:
    for parent in model.modules():
        for name, child in parent.named_children():
            if child is old:
                setattr(parent, name, new)
                return
