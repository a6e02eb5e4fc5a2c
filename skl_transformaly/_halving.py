"""Batches that do not fit into an accelerator's memory are taken in parts."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

import torch

__all__ = ["Halving"]

T = TypeVar("T")


class Halving:
    """Remembers how many images fit at a time, and works in parts of that size.

    It starts without a bound; each time the accelerator runs out of memory the bound becomes half of what was tried,
    and a warning names the number. One object serves one use of memory: what fits for scoring may not for training.

    Parameters
    ----------
    what : str
        For the warning: what is done with the images.
    """

    def __init__(self, what: str):
        self.what = what
        self.size: int | None = None

    def parts(self, batch: Sequence[T] | Any) -> Iterator[Any]:
        """Yield `batch` in parts of the present size."""
        size = self.size or max(1, len(batch))
        for start in range(0, len(batch), size):
            yield batch[start : start + size]

    def __call__(self, function: Callable[[Any], T], batch: Any) -> list[T]:
        """Results of `function` for the parts of `batch`, all of one size, which is halved until it fits.

        Raises
        ------
        torch.cuda.OutOfMemoryError
            Not even one image fits.
        """
        while True:
            try:
                return [function(part) for part in self.parts(batch)]
            except torch.cuda.OutOfMemoryError:
                tried = min(self.size or len(batch), len(batch))
                if tried < 2:
                    raise
            # outside of the handler, whose traceback would keep the failed pass's tensors alive
            self.size = tried // 2
            warnings.warn(
                f"Out of memory while {self.what} {tried} images at a time; going on with {self.size}. Set batch_size "
                "to that to save the failed attempt.",
                UserWarning,
                stacklevel=3,
            )
