"""What enters and leaves each teacher block, layer by layer, two layers held at a time."""

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

__all__ = ["BlockActivations", "LayerWalk", "inspect_blocks", "map_file", "on_disk"]

# With storage="auto", activations that take more than this are kept on disk.
_RAM_BYTES = 2**29


@dataclass
class BlockActivations:
    """What one teacher block did to all training images.

    Attributes
    ----------
    index : int
        The block's place in ``extractor.blocks_``.
    inputs, outputs : Tensor of shape (n, ...)
        Tokens (n, T, D) or feature maps (n, C, H, W), in the caller's memory or mapped from a file.
    args, kwargs : tuple, dict
        What the block got beside its input, for instance rotary embeddings.
    """

    index: int
    inputs: Tensor
    outputs: Tensor
    args: tuple
    kwargs: dict


class _Stop(Exception):
    """Ends a teacher's run at the last block of interest."""


class LayerWalk(BlockActivations):
    """The activations of the block that it stands at; moving on to another block overwrites them.

    The teacher runs once over the images, up to the first block that is asked for; each further layer is the next block
    run on the stored output of the one before. If a model does something between its blocks, stored outputs are not
    the next block's inputs, and the teacher runs from the images again for each block: slower, never wrong.

    Parameters
    ----------
    images : Images
    extractor : fitted extractor
    storage : {"auto", "ram", "disk"}
        Where activations are kept; "auto" is memory as long as the two layers take at most 512 MiB, else disk.

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
        """Move to a block, quickest to a later one.

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
        """Run the teacher from the images to a block, and keep what enters and leaves it."""
        self.inputs = self.outputs = torch.empty(0)  # frees two layers before two others are made
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
        """Move to the next block: outputs become inputs, and new outputs take the old inputs' place."""
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
                    spare = None  # frees it before another is made
                    to_disk = on_disk(self._storage, total * (_row_bytes(batch) + _row_bytes(self.inputs)))
                    outputs = _allocate(total, batch, to_disk)
            outputs[rows] = batch
        self.outputs = outputs


def inspect_blocks(images: Images, extractor: Extractor) -> tuple[dict[int, tuple[tuple, dict]], bool]:
    """Run one and then two images through the teacher, and learn how its blocks are called.

    Returns
    -------
    arguments : dict of int to (args, kwargs)
        What each block gets beside its input; the same for all images.
    chained : bool
        Whether each block's input is the output of the block before it.

    Raises
    ------
    TypeError
        A block does not turn one tensor into one tensor of floats, gets arguments that change with the
        image, changes its input in place, or the blocks do not run once each in their order.
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
    """Pixels of the first two images that can be read; no others are decoded for that, if these can."""
    looked_at = 2
    while True:
        first = images.take(range(min(looked_at, len(images))))
        _, pixels = next(first.batches(2), (None, []))
        if len(pixels) == 2 or (len(pixels) and looked_at >= len(images)):
            return pixels
        if looked_at >= len(images):
            raise ValueError(f"None of the {len(images)} images could be read; first: {first.unreadable[0]}")
        looked_at *= 4


class _Inspection:
    """Watches runs of a teacher, and refuses blocks that cannot be imitated one by one."""

    def __init__(self, blocks: Sequence[nn.Module]):
        self.arguments: dict[int, tuple[tuple, dict]] = {}
        self.chained = True
        self._blocks = blocks
        self.begin()

    def begin(self) -> None:
        """Expect a run from the first block on."""
        self._order: list[int] = []
        self._previous: tuple[Tensor, Tensor] | None = None  # the last output, and what it was then

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
        """Refuse a run in which the blocks did not run once each, from first to last."""
        if self._order != list(range(len(self._blocks))):
            raise TypeError(
                f"The teacher's {len(self._blocks)} blocks run in the order {self._order}, not once each from first to "
                "last, so they cannot be imitated one by one. Choose another teacher."
            )

    def _refuse(self, index: int, what: str) -> NoReturn:
        raise TypeError(
            f"Block {index} ({type(self._blocks[index]).__name__}) of the teacher {what}, so no student can imitate "
            "it. Choose another teacher, or other n_blocks."
        )


def _equal(one: Any, other: Any) -> bool:
    """Whether two nests of arguments hold equal values."""
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
    """An uninitialised CPU tensor of `n` rows as in `like`, in memory or mapped from a nameless file."""
    shape = (n, *like.shape[1:])
    if not to_disk:
        return torch.empty(shape, dtype=like.dtype)
    size = math.prod(shape) * like.element_size()
    # The file has no name (POSIX) or goes with its handle (Windows): no way of dying leaves it behind.
    with tempfile.TemporaryFile(prefix="skl_transformaly_") as file:
        raw = torch.from_numpy(map_file(file, size))
    return raw.view(like.dtype).view(shape)


def map_file(file: Any, size: int) -> np.memmap:
    """Map an open file as `size` bytes that can be written; the mapping outlives the handle, and holds the file.

    Raises
    ------
    OSError
        The disk has no room for them.
    """
    try:
        # Reserve the blocks now: on a full disk, a write into a mapped hole would kill the process.
        if hasattr(os, "posix_fallocate"):
            os.posix_fallocate(file.fileno(), 0, size)
        else:
            file.truncate(size)
    except OSError as error:
        raise OSError(
            error.errno,
            f"No room for {size / 2**20:.0f} MiB of activations in {tempfile.gettempdir()} ({error.strerror}). Set "
            "TMPDIR to a larger disk, use storage='ram', or fit on fewer images.",
        ) from error
    return np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
