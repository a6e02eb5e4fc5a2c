"""One run of the teacher over a data set, kept, and played back to every student, class, seed and rival."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from skl_transformaly.images._images import Images
from skl_transformaly.students._activations import inspect_blocks
from skl_transformaly.students._imitation import select_blocks
from skl_transformaly.utils._cache import fingerprint


class Recording:
    """An extractor whose images are the numbers of images that the teacher has seen already.

    It has what :class:`skl_transformaly.TimmExtractor` gives to students and detectors; what a block got and
    gave is read from a file instead of computed. Activations are stored in the precision that the teacher
    computes in: exactly in float32, rounded in 16 bits.

    Parameters
    ----------
    extractor : fitted TimmExtractor
    images : Images
    n_blocks : int, sequence of int, None or False
        The blocks to record, as in BlockStudents; False records embeddings alone.
    folder : path
        Where the recording lies until this object goes.
    embeddings : ndarray of shape (n, D), default=None
        Embeddings that are known already: with ``n_blocks=False`` the teacher does not run at all.

    Attributes
    ----------
    images : Images
        Stand-ins for the images, to be given to whatever uses this extractor.
    embeddings : ndarray of shape (n, D), float64
    """

    def __init__(
        self, extractor: Any, images: Images, n_blocks: Any, folder: Path, *, embeddings: np.ndarray | None = None
    ):
        self.extractor = extractor
        self.images = Images(len(images), lambda i: np.array([[[i]]]))
        self.blocks_ = extractor.blocks_
        self.batch_size = extractor.batch_size
        self.precision_ = extractor.precision_
        self.embedding_size_ = extractor.embedding_size_
        self._seen = images
        self._chosen = set() if n_blocks is False else set(select_blocks(n_blocks, len(self.blocks_)).tolist())
        self._first = min(self._chosen, default=0)
        self._store: dict[tuple[str, int], Tensor] = {}
        if embeddings is not None and not self._chosen:
            self.embeddings = embeddings
            return
        self._arguments, chained = inspect_blocks(images, extractor)
        sixteen = extractor.precision_ in ("bfloat16", "float16")
        dtype = {"float64": torch.float64}.get(extractor.precision_, torch.bfloat16 if sixteen else torch.float32)
        self.embeddings = np.zeros((len(images), extractor.embedding_size_))

        place = slice(0)

        def keep(role: str, index: int, tensor: Tensor) -> None:
            if (role, index) not in self._store:
                self._store[role, index] = _on_disk(folder, (len(images), *tensor.shape[1:]), dtype)
            self._store[role, index][place] = tensor.cpu().to(dtype)

        def visit(index, block, args, kwargs, output):
            if index in self._chosen:
                if not (chained and ("output", index - 1) in self._store):
                    keep("input", index, args[0])
                keep("output", index, output)

        with tqdm(total=len(images), desc="Teacher", unit="image") as progress:
            for positions, pixels in images.batches(extractor.batch_size):
                place = slice(int(positions[0]), int(positions[-1]) + 1)
                batch = extractor.preprocess(pixels)
                self.embeddings[place] = extractor.embed(batch, visit).double().cpu().numpy()
                progress.update(len(positions))
        self._device = batch.device
        self._dtype = batch.dtype

    @staticmethod
    def bytes_per_image(extractor: Any, image: np.ndarray, n_blocks: Any) -> int:
        """How much room one image's activations take."""
        chosen = select_blocks(n_blocks, len(extractor.blocks_)).tolist()
        sizes: list[int] = []

        def visit(index, block, args, kwargs, output):
            if index in chosen:
                sizes.append(output.numel())
                if not sizes[1:]:
                    sizes.append(args[0].numel())

        extractor.embed(extractor.preprocess([image]), visit)
        width = {"float64": 8, "float32": 4}.get(extractor.precision_, 2)
        return sum(sizes) * width

    def fit(self, X: Any, y: Any = None) -> Recording:
        """Do nothing: the teacher has run."""
        return self

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this recording: the teacher, and the images whose numbers are played back."""
        return {**self.extractor.identity(), "images": fingerprint(self._seen)}

    def preprocess(self, pixels: list[np.ndarray]) -> Tensor:
        """Numbers of images as one tensor."""
        return torch.tensor([int(image.item()) for image in pixels])

    def embed(self, batch: Tensor, visit: Any = None) -> Tensor:
        """Play back: call `visit` for each block; give the embeddings."""
        if visit is not None:
            if not self._chosen:
                raise ValueError("This recording holds embeddings alone.")
            # Blocks before the first recorded one pass its input on, so that the chain of blocks is whole.
            output = args = self._read("input", self._first, batch)
            for index, block in enumerate(self.blocks_):
                if index >= self._first:
                    if ("input", index) in self._store and index > self._first:
                        args = self._read("input", index, batch)
                    else:
                        args = output
                    output = self._read("output", index, batch) if index in self._chosen else args
                extra, kwargs = self._arguments[index]
                visit(index, block, (args, *extra), kwargs, output)
        return torch.from_numpy(self.embeddings[batch.numpy()])

    def new_blocks(self, seed: int) -> list[Any]:
        """Fresh blocks, as the extractor's own."""
        return self.extractor.new_blocks(seed)

    def compute(self) -> Any:
        """The context that the extractor computes in."""
        return self.extractor.compute()

    @property
    def teacher_(self) -> Any:
        """The network itself, for rivals that fine-tune a copy of it."""
        return self.extractor.teacher_

    def _read(self, role: str, index: int, rows: Tensor) -> Tensor:
        return self._store[role, index][rows].to(device=self._device, dtype=self._dtype)


def join(*parts: Images) -> Images:
    """Several sequences of images as one."""
    stacks = [part.stack for part in parts]
    if all(s is not None and s.dtype == stacks[0].dtype and s.shape[1:] == stacks[0].shape[1:] for s in stacks):
        stack = np.concatenate(stacks)
        return Images(len(stack), stack.__getitem__, stack=stack)
    ends = np.cumsum([len(part) for part in parts])

    def decode(i: int) -> np.ndarray:
        which = int(np.searchsorted(ends, i, side="right"))
        return parts[which][i - (int(ends[which - 1]) if which else 0)]

    return Images(int(ends[-1]), decode)


def _on_disk(folder: Path, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """A tensor mapped from a file without a name: it goes with the process, however that ends."""
    size = int(np.prod(shape)) * dtype.itemsize
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(size)
        raw = torch.from_numpy(np.memmap(file, dtype=np.uint8, mode="r+", shape=(size,)))
    return raw.view(dtype).view(shape)
