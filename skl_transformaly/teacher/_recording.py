"""Runs of the teacher, recorded in a file to be visited again without running it."""

from __future__ import annotations

import contextlib
import tempfile
import weakref
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skl_transformaly.teacher._inside import shown, shown_deviation
from skl_transformaly.teacher._network import BlockVisitor

__all__ = ["Recording"]


@dataclass(frozen=True)
class _Stored:
    """Where a tensor lies in the file, and how it lies in memory."""

    offset: int
    shape: tuple[int, ...]  # in the file: dimensions of larger strides first
    order: tuple[int, ...]  # which of the tensor's dimensions these are
    dtype: torch.dtype


@dataclass
class _Run:
    """One run of the teacher: each visit with its input, output and what was shown of its inside, and the embedding."""

    positions: np.ndarray
    visits: list[tuple[int, nn.Module, _Stored, _Stored, Tensor | None]] = field(default_factory=list)
    embedding: Tensor = field(default_factory=lambda: torch.empty(0))


class Recording:
    """What a teacher's visitor saw, for as many images as a file of `limit` bytes holds.

    A second pass that reads it takes a small part of the time of decoding the images and running the teacher. The file
    has no name, so that it is gone even if the process is killed.
    """

    def __init__(self, limit: int):
        self._limit = limit
        self._runs: list[_Run] = []
        self._length = 0
        self._full = not limit
        self._file: Any = None
        if not self._full:
            try:
                # unbuffered, so that a failure to write is noticed at once
                self._file = tempfile.TemporaryFile(prefix="skl_transformaly_", buffering=0)  # noqa: SIM115
                weakref.finalize(self, self._file.close)
            except OSError:  # nowhere to write: the teacher will run again instead
                self._full = True

    def embed(self, extractor: Any, batch: Tensor, positions: np.ndarray, visit: BlockVisitor) -> Tensor:
        """Run the teacher as ``extractor.embed(batch, visit)`` does, and record it if there is room.

        Once the file is full, no later run is recorded either.
        """
        if self._full or batch.device.type != "cpu":  # an accelerator runs again sooner than it copies
            return extractor.embed(batch, visit)
        run = _Run(positions)
        # the output before, which mostly is the next block's input, and where it is
        before: tuple[Any, _Stored | None] = (None, None)

        def watch(index, block, args, kwargs, output):
            nonlocal before
            x = before[1] if args[0] is before[0] else self._write(args[0])
            before = output, (x if output is args[0] else self._write(output))
            if x is not None and before[1] is not None:
                run.visits.append((index, block, x, before[1], shown_deviation()))
            visit(index, block, args, kwargs, output)

        run.embedding = extractor.embed(batch, watch)
        if not self._full:
            self._runs.append(run)
        return run.embedding

    def runs(self) -> Iterator[_Run]:
        """Yield what was recorded, in order, for `play`."""
        yield from self._runs

    def play(self, run: _Run, visit: BlockVisitor) -> Tensor:
        """Show a recorded run to a visitor, without other arguments than the input, and return the embedding."""
        before: tuple[_Stored | None, Tensor] = (None, run.embedding)
        for index, block, x, output, inside in run.visits:
            entering = before[1] if x is before[0] else self._read(x)
            before = output, (entering if output is x else self._read(output))
            with shown(inside):
                visit(index, block, (entering,), {}, before[1])
        return run.embedding

    def _write(self, tensor: Any) -> _Stored | None:
        """Append a tensor and return its place; anything else, or what does not fit, ends the recording: None."""
        if self._full or not isinstance(tensor, Tensor):
            self._full = True
            return None
        order = tuple(sorted(range(tensor.ndim), key=lambda d: -tensor.stride()[d]))
        ordered = tensor.detach().permute(order).contiguous()
        written = 0
        if self._length + ordered.nbytes <= self._limit:
            with contextlib.suppress(OSError):  # the disk is full
                written = self._file.write(_bytes(ordered))
        if written < ordered.nbytes:
            self._full = True
            return None
        self._length += written
        return _Stored(self._length - written, tuple(ordered.shape), order, tensor.dtype)

    def _read(self, place: _Stored) -> Tensor:
        ordered = torch.empty(place.shape, dtype=place.dtype)
        self._file.seek(place.offset)
        if self._file.readinto(_bytes(ordered)) < ordered.nbytes:
            raise OSError("The file of recorded activations ended early.")
        return ordered.permute(tuple(np.argsort(place.order)))


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.reshape(-1).view(torch.uint8).numpy().data
