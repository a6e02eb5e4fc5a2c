"""Batches in parts, of as many images as fit an accelerator's memory or suit a CPU."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

from skl_transformaly.utils._warnings import warn_user

__all__ = ["Chunks"]

T = TypeVar("T")


class Chunks:
    """Works on batches in parts, and remembers how many images fit at a time.

    Each time the accelerator runs out of memory, the limit is halved, with a warning that names the number and `what`
    is done with the images. Use one object for one purpose: as many images may fit for scoring, but not for training.
    """

    def __init__(self, what: str, size: int | None = None):
        self.what = what
        self.size = size

    def parts(self, batch: Sequence[T] | Any) -> Iterator[Any]:
        """Yield `batch` in parts within the bound, of sizes as equal as possible."""
        count = math.ceil(len(batch) / self.size) if self.size else 1
        size = math.ceil(len(batch) / max(1, count)) or 1
        for start in range(0, len(batch), size):
            yield batch[start : start + size]

    def __call__(self, function: Callable[[Any], T], batch: Any) -> list[T]:
        """Results of `function` for the parts of `batch`, which are halved until they fit."""
        while True:
            try:
                return [function(part) for part in self.parts(batch)]
            except torch.cuda.OutOfMemoryError:
                tried = min(self.size or len(batch), len(batch))
                if tried < 2:
                    raise
            # outside of the handler, whose traceback would keep the failed pass's tensors alive
            self.size = tried // 2
            warn_user(
                f"Out of memory while {self.what} {tried} images at a time; going on with {self.size}. Set batch_size "
                "to that to save the failed attempt."
            )
