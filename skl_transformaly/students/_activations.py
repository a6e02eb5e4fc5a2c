"""Inputs and outputs of the teacher's blocks, layer by layer, with two layers held at a time."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from skl_transformaly.images._sequence import Images
from skl_transformaly.teacher._protocol import Extractor, chunk_size
from skl_transformaly.utils._chunks import Chunks

__all__ = ["BlockActivations", "ImitationError", "LayerWalk", "inspect_blocks", "map_file", "on_disk"]

# With storage="auto", larger activations are kept on disk.
_RAM_BYTES = 2**29
# Zeros are written in pieces of so many bytes, where the disk cannot be asked for room.
_ZEROS = 2**22


@dataclass
class BlockActivations:
    """Inputs and outputs of one teacher block for all training images.

    Attributes
    ----------
    index : int
        Index of the block in ``extractor.blocks_``.
    inputs, outputs : Tensor of shape (n, ...)
        Tokens (n, T, D) or feature maps (n, C, H, W), in the caller's memory or mapped from a file.
    args, kwargs : tuple, dict
        What the block receives besides its input, for instance rotary embeddings.
    """

    index: int
    inputs: Tensor
    outputs: Tensor
    args: tuple
    kwargs: dict


class ImitationError(TypeError):
    """The blocks of a teacher cannot be imitated one by one."""


class _Stop(Exception):
    """Stops the teacher at the last block of interest."""


class LayerWalk(BlockActivations):
    """Activations of one block at a time; moving to another block overwrites them.

    The teacher runs once over the images, up to the first requested block; each later block runs on the stored output
    of the block before it. If a model computes something between its blocks, a stored output is not the next block's
    input, and the teacher runs from the images again for each block, which is slower but returns the same activations.

    Parameters
    ----------
    images : Images
    extractor : fitted extractor
    storage : {"auto", "ram", "disk"}
        Where activations are kept; "auto" uses memory if the two layers take at most 512 MiB, and disk otherwise.

    Raises
    ------
    TypeError
        The blocks cannot be imitated one by one; see `inspect_blocks`.
    """

    def __init__(self, images: Images, extractor: Extractor, storage: str):
        super().__init__(-1, torch.empty(0), torch.empty(0), (), {})
        self._images = images
        self._extractor = extractor
        self._storage = storage
        self._arguments, self._chained = inspect_blocks(images, extractor)

    def move_to(self, index: int) -> None:
        """Move to a block; moving to a later one is fastest.

        Raises
        ------
        OSError
            The disk has no room for the activations.
        """
        if self.index < 0 or index < self.index or not self._chained:
            self._capture(index)
        while self.index < index:
            self._advance()
        self.args, self.kwargs = self._arguments[index]

    def _capture(self, index: int) -> None:
        """Run the teacher from the images up to a block, and keep the block's inputs and outputs."""
        self.inputs = self.outputs = torch.empty(0)  # free two layers before two others are allocated
        caught: list[Tensor] = []

        def visit(i, block, args, kwargs, output):
            if i == index:
                caught[:] = args[0], output
                raise _Stop

        def run(batch: Tensor) -> tuple[Tensor, ...]:
            with contextlib.suppress(_Stop), torch.no_grad(), self._extractor.compute():
                self._extractor.embed(batch, visit)
            return tuple(tensor.cpu() for tensor in caught)

        layers: list[Tensor] = []
        filled, total = 0, len(self._images)
        chunks = Chunks("running the teacher on", chunk_size(self._extractor))
        for _, pixels in self._images.batches(self._extractor.batch_size):
            parts = chunks(run, self._extractor.preprocess(pixels))
            caught[:] = [torch.cat(tensors) if len(parts) > 1 else tensors[0] for tensors in zip(*parts)]
            if not layers:
                to_disk = on_disk(self._storage, total * sum(map(_row_bytes, caught)))
                layers = [_allocate(total, tensor, to_disk) for tensor in caught]
            for layer, tensor in zip(layers, caught):
                layer[filled : filled + len(tensor)] = tensor
            filled += len(caught[0])
        self.index = index
        self.inputs, self.outputs = layers[0][:filled], layers[1][:filled]

    def _advance(self) -> None:
        """Move to the next block: outputs become inputs, and new outputs overwrite the old inputs."""
        self.index += 1
        args, kwargs = self._arguments[self.index]
        block = self._extractor.blocks_[self.index]
        spare: Tensor | None = self.inputs
        self.inputs = self.outputs
        outputs: Any = None
        parameter = next(block.parameters(), None)
        device = self.inputs.device if parameter is None else parameter.device

        @torch.no_grad()
        def run(inputs: Tensor) -> Tensor:
            with self._extractor.compute():
                return block(inputs.to(device), *args, **kwargs).cpu()

        total = len(self.inputs)
        chunks = Chunks("running the teacher on", chunk_size(self._extractor))
        for start in range(0, total, self._extractor.batch_size):
            rows = slice(start, start + self._extractor.batch_size)
            parts = chunks(run, self.inputs[rows])
            batch = torch.cat(parts) if len(parts) > 1 else parts[0]
            if outputs is None:
                if spare is not None and spare.shape[1:] == batch.shape[1:]:
                    outputs = spare
                else:
                    spare = None  # free it before another is allocated
                    to_disk = on_disk(self._storage, total * (_row_bytes(batch) + _row_bytes(self.inputs)))
                    outputs = _allocate(total, batch, to_disk)
            outputs[rows] = batch
        self.outputs = outputs


def inspect_blocks(images: Images, extractor: Extractor) -> tuple[dict[int, tuple[tuple, dict]], bool]:
    """Run the teacher on one image and then on two, and record how its blocks are called.

    Returns
    -------
    arguments : dict of int to (args, kwargs)
        What each block receives besides its input; the same for all images.
    chained : bool
        Whether each block's input is the output of the block before it.

    Raises
    ------
    TypeError
        A block does not turn one tensor into one tensor, takes arguments that change with the image, or changes its
        input in place, or the blocks do not run once each in order.
    """
    found = _Inspection(extractor.blocks_)
    pixels = _first_two(images)
    for number in (1, 2):
        found.begin()
        with torch.no_grad(), extractor.compute():
            extractor.embed(extractor.preprocess(pixels[:number]), found.visit)
        found.check_order()
    return found.arguments, found.chained


def _first_two(images: Images) -> Any:
    """Pixels of the first two readable images; if the first two images can be read, no others are decoded."""
    looked_at = 2
    while True:
        first = images.take(range(min(looked_at, len(images))))
        _, pixels = next(first.batches(looked_at), (None, []))
        if len(pixels) >= 2 or (len(pixels) and looked_at >= len(images)):
            return pixels[:2]
        if looked_at >= len(images):
            raise ValueError(f"No image could be read; first: {first.unreadable[0]}")
        looked_at *= 4


class _Inspection:
    """Watches a teacher run, and rejects blocks that cannot be imitated one by one."""

    def __init__(self, blocks: Sequence[nn.Module]):
        self.arguments: dict[int, tuple[tuple, dict]] = {}
        self.chained = True
        self._blocks = blocks
        self.begin()

    def begin(self) -> None:
        """Prepare for a run that starts at the first block."""
        self._order: list[int] = []
        self._previous: tuple[Tensor, Tensor] | None = None  # the last output, and a copy of it

    def visit(self, index: int, block: nn.Module, args: tuple, kwargs: dict, output: Tensor) -> None:
        if index == len(self._blocks):
            return
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            self._refuse(index, "does not turn one tensor into one tensor")
        extra = (args[1:], dict(kwargs))
        if index in self.arguments and not _equal(self.arguments[index], extra):
            self._refuse(index, "takes arguments that change with the image")
        self.arguments[index] = extra
        if self._previous is not None:
            before, then = self._previous
            self.chained &= before is args[0]
            if not torch.allclose(before, then, rtol=0, atol=0, equal_nan=True):
                self._refuse(index, "changes its input in place")
        self._previous = (output, output.clone())
        self._order.append(index)

    def check_order(self) -> None:
        """Reject a run in which the blocks did not run once each from first to last."""
        if self._order != list(range(len(self._blocks))):
            raise ImitationError(
                f"The teacher's {len(self._blocks)} blocks run in the order {self._order}, not once each from first to "
                "last, so they cannot be imitated one by one. Choose another teacher."
            )

    def _refuse(self, index: int, what: str) -> NoReturn:
        raise ImitationError(
            f"Block {index} ({type(self._blocks[index]).__name__}) of the teacher {what}, so no student can imitate "
            "it. Choose another teacher."
        )


def _equal(one: Any, other: Any) -> bool:
    """Whether two nested structures of arguments hold equal values."""
    if isinstance(one, Tensor) or isinstance(other, Tensor):
        both = isinstance(one, Tensor) and isinstance(other, Tensor)
        return both and one.shape == other.shape and torch.equal(one, other)
    if isinstance(one, (tuple, list)) and isinstance(other, (tuple, list)):
        return len(one) == len(other) and all(map(_equal, one, other))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    return bool(one == other)


def on_disk(storage: str, size: int) -> bool:
    """Whether `size` bytes of activations are kept on disk."""
    return storage == "disk" or (storage == "auto" and size > _RAM_BYTES)


def _row_bytes(tensor: Tensor) -> int:
    return tensor[0].numel() * tensor.element_size()


def _allocate(n: int, like: Tensor, to_disk: bool) -> Tensor:
    """Allocate an uninitialised CPU tensor of `n` rows as in `like`, in memory or mapped from an unnamed file."""
    shape = (n, *like.shape[1:])
    if not to_disk:
        return torch.empty(shape, dtype=like.dtype)
    size = math.prod(shape) * like.element_size()
    # The file has no name (POSIX) or is deleted with its handle (Windows), so it never outlives the process.
    with tempfile.TemporaryFile(prefix="skl_transformaly_") as file:
        raw = torch.from_numpy(map_file(file, size))
    return raw.view(like.dtype).view(shape)


def map_file(file: Any, size: int) -> np.memmap:
    """Map an open file as `size` writable bytes; the mapping outlives the handle and keeps the file.

    Raises
    ------
    OSError
        The disk has no room for `size` bytes.
    """
    try:
        # Reserve the blocks now: on a full disk, a write into a mapped hole would kill the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        elif os.name == "nt":  # where the end of a file reserves what is before it
            file.truncate(size)
        else:  # such as macOS
            for start in range(0, size, _ZEROS):
                file.write(bytes(min(_ZEROS, size - start)))
            file.flush()
    except OSError as error:
        raise OSError(
            error.errno,
            f"No room for {size / 2**20:.0f} MiB of activations in {tempfile.gettempdir()} ({error.strerror}). Set "
            "TMPDIR to a larger disk, use storage='ram', or fit on fewer images.",
        ) from error
    return np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
