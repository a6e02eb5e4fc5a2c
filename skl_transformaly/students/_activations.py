"""What enters and leaves each teacher block, layer by layer, two layers held at a time."""

from __future__ import annotations

import contextlib
import math
import os
import tempfile
from collections.abc import Generator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from skl_transformaly.images._images import Images
from skl_transformaly.utils._chunks import Halving

__all__ = ["BlockActivations", "iter_activations", "map_file"]


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


def iter_activations(
    images: Images, extractor: Any, indices: Sequence[int], *, cache: str, cache_bytes: int
) -> Generator[BlockActivations, None, None]:
    """Yield each block's activations over all `images`, from the first of `indices` to the last.

    The teacher runs once over the images, up to the first block; each further layer is the next block
    run on the stored output of the one before. What was yielded is overwritten when the next is asked for.
    Where a model does something between its blocks, stored outputs are not the next block's inputs,
    and the teacher runs from the images again for each block: slower, never wrong.

    Parameters
    ----------
    images : Images
    extractor : object with the protocol of TimmExtractor
    indices : sequence of int
        Ascending places in ``extractor.blocks_``.
    cache : {"auto", "memory", "disk"}
        Where activations are kept; "auto" is memory up to `cache_bytes` for the two layers, else disk.
    cache_bytes : int

    Raises
    ------
    TypeError
        The blocks cannot be imitated one by one; see `inspect_blocks`.
    OSError
        The disk has no room for the activations.
    """
    arguments, chained = inspect_blocks(images, extractor)
    blocks = extractor.blocks_
    # One object throughout, changed in place: the caller's reference to it keeps no old layer alive.
    layer = BlockActivations(-1, torch.empty(0), torch.empty(0), (), {})
    for index in indices:
        if layer.index < 0 or not chained:
            layer.inputs = layer.outputs = torch.empty(0)  # frees two layers before two others are made
            layer.inputs, layer.outputs = _capture(images, extractor, index, cache, cache_bytes)
            layer.index = index
        while layer.index < index:
            layer.index += 1
            layer.args, layer.kwargs = arguments[layer.index]
            _advance(layer, blocks[layer.index], extractor, cache, cache_bytes)
        layer.args, layer.kwargs = arguments[index]
        yield layer


def inspect_blocks(images: Images, extractor: Any) -> tuple[dict[int, tuple[tuple, dict]], bool]:
    """Run one and then two images through and learn how the blocks are called.

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
    blocks = extractor.blocks_
    arguments: dict[int, tuple[tuple, dict]] = {}
    chained = True
    order: list[int] = []
    previous: tuple[Tensor, Tensor] | None = None

    def refuse(index, block, what):
        raise TypeError(
            f"Block {index} ({type(block).__name__}) of the teacher {what}, so no student can imitate it. Choose "
            "another teacher, or other n_blocks."
        )

    def visit(index, block, args, kwargs, output):
        nonlocal chained, previous
        if index == len(blocks):
            return
        if not args or not isinstance(args[0], Tensor) or not isinstance(output, Tensor):
            refuse(index, block, "does not turn one tensor into one tensor")
        extra = (args[1:], dict(kwargs))
        if index in arguments and not _equal(arguments[index], extra):
            refuse(index, block, "takes arguments that change with the image")
        arguments[index] = extra
        if previous is not None:
            output_before, copy_before = previous
            chained &= output_before is args[0]
            if not torch.allclose(output_before, copy_before, rtol=0, atol=0, equal_nan=True):
                refuse(index, block, "changes its input in place")
        previous = (output, output.clone())
        order.append(index)

    for number in (1, 2):
        _, pixels = next(images.batches(number), (None, None))
        if pixels is None:
            raise ValueError(f"None of the {len(images)} images could be read; first: {images.unreadable[0]}")
        order.clear()
        previous = None
        with torch.no_grad(), extractor.compute():
            extractor.embed(extractor.preprocess(pixels), visit)
        if order != list(range(len(blocks))):
            raise TypeError(
                f"The teacher's {len(blocks)} blocks run in the order {order}, not once each from first to last, so "
                "they cannot be imitated one by one. Choose another teacher."
            )
    return arguments, chained


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


def _capture(images: Images, extractor: Any, index: int, cache: str, cache_bytes: int) -> tuple[Tensor, Tensor]:
    """Run the teacher from the images to block `index`; keep what enters and leaves it."""
    caught: list[Tensor] = []

    def visit(i, block, args, kwargs, output):
        if i == index:
            caught[:] = args[0], output
            raise _Stop

    def run(batch: Tensor) -> tuple[Tensor, ...]:
        with contextlib.suppress(_Stop), torch.no_grad(), extractor.compute():
            extractor.embed(batch, visit)
        return tuple(tensor.cpu() for tensor in caught)

    layers: list[Tensor] = []
    filled = 0
    halving = Halving("running the teacher on", getattr(extractor, "chunk_size_", None))
    for _, pixels in images.batches(extractor.batch_size):
        parts = halving(run, extractor.preprocess(pixels))
        caught[:] = [torch.cat(tensors) if len(parts) > 1 else tensors[0] for tensors in zip(*parts)]
        if not layers:
            total = sum(len(images) * _row_bytes(tensor) for tensor in caught)
            on_disk = cache == "disk" or (cache == "auto" and total > cache_bytes)
            layers = [_allocate(len(images), tensor, on_disk) for tensor in caught]
        for layer, tensor in zip(layers, caught):
            layer[filled : filled + len(tensor)] = tensor
        filled += len(caught[0])
    return layers[0][:filled], layers[1][:filled]


def _advance(layer: BlockActivations, block: nn.Module, extractor: Any, cache: str, cache_bytes: int) -> None:
    """Make `layer` that of the next block: its outputs become inputs, new outputs take the old inputs' place."""
    spare: Tensor | None = layer.inputs
    layer.inputs = layer.outputs
    outputs: Any = None
    parameter = next(block.parameters(), None)
    device = layer.inputs.device if parameter is None else parameter.device

    @torch.no_grad()
    def run(inputs: Tensor) -> Tensor:
        with extractor.compute():
            return block(inputs.to(device), *layer.args, **layer.kwargs).cpu()

    halving = Halving("running the teacher on", getattr(extractor, "chunk_size_", None))
    for start in range(0, len(layer.inputs), extractor.batch_size):
        rows = slice(start, start + extractor.batch_size)
        parts = halving(run, layer.inputs[rows])
        batch = torch.cat(parts) if len(parts) > 1 else parts[0]
        if outputs is None:
            if spare is not None and spare.shape[1:] == batch.shape[1:]:
                outputs = spare
            else:
                spare = None  # frees it before another is made
                total = len(layer.inputs) * (_row_bytes(batch) + _row_bytes(layer.inputs))
                on_disk = cache == "disk" or (cache == "auto" and total > cache_bytes)
                outputs = _allocate(len(layer.inputs), batch, on_disk)
        outputs[rows] = batch
    layer.outputs = outputs


def _row_bytes(tensor: Tensor) -> int:
    return tensor[0].numel() * tensor.element_size()


def _allocate(n: int, like: Tensor, on_disk: bool) -> Tensor:
    """An uninitialised CPU tensor of `n` rows as in `like`, in memory or mapped from a nameless file."""
    shape = (n, *like.shape[1:])
    if not on_disk:
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
            "TMPDIR to a larger disk, use cache='memory', or fit on fewer images.",
        ) from error
    return np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,))
