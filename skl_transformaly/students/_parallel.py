"""Training several students at a time by joblib: what workers receive and return, and the storage of layers."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import tempfile
import threading
import warnings
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from torch import Tensor, nn
from tqdm.auto import tqdm

from skl_transformaly.students._activations import BlockActivations, LayerWalk, map_file, on_disk
from skl_transformaly.students._training import Train, TrainedStudent, finished
from skl_transformaly.teacher._kernels import own_memory
from skl_transformaly.teacher._protocol import Extractor
from skl_transformaly.utils._torch import limited_threads, own_settings

__all__ = ["count_jobs", "train_in_waves"]


def count_jobs(n_jobs: int | None, blocks: int) -> int:
    """Number of blocks trained at a time: joblib's number of workers, at most `blocks` and a positive `n_jobs`.

    joblib's backends for clusters report all of their workers, whatever `n_jobs` is.
    """
    jobs = min(effective_n_jobs(n_jobs), blocks)
    return min(jobs, n_jobs) if n_jobs is not None and n_jobs > 0 else jobs


def train_in_waves(
    train: Train,
    students: dict[int, nn.Module],
    walk: LayerWalk,
    extractor: Extractor,
    seed: int,
    *,
    n_jobs: int | None,
    storage: str,
) -> Iterator[tuple[int, TrainedStudent]]:
    """Train as many students at a time as joblib has workers; yield each block's index and trained student.

    The layers of a wave are stored, sent to workers, and deleted when all its students are trained: one layer for each
    student and one more, besides the two that `walk` holds. Blocks of one teacher cost about the same, so workers
    hardly wait for each other. Workers on this machine map layers stored in files; joblib sends layers to other
    machines by value.

    Parameters
    ----------
    train : callable
        ``train(student, layer, extractor, seed, progress)``; must be picklable.
    students : dict of int to nn.Module
        Untrained students by block index, in order of depth. Each is trained once its index is yielded.
    walk : LayerWalk
    extractor : fitted extractor
        Workers receive a copy; that of a :class:`TimmExtractor` lacks the network.
    seed : int
    n_jobs : int or None
        As in joblib.
    storage : {"auto", "ram", "disk"}
        Where layers are stored; "auto" uses memory if everything held here and by workers takes at most 512 MiB.
    """
    jobs = count_jobs(n_jobs, len(students))
    device = next(parameter for student in students.values() for parameter in student.parameters()).device
    shared = (_without_network(extractor, device), str(device), seed, max(1, torch.get_num_threads() // jobs))
    indices = list(students)
    # by value if layers are in memory: joblib's own files for them would accumulate until the last wave
    with Parallel(n_jobs=n_jobs, prefer="processes", max_nbytes=None) as parallel:
        for start in range(0, len(indices), jobs):
            wave = indices[start : start + jobs]
            with _Store(storage, len(wave)) as store:
                layers = []
                for index in wave:
                    walk.move_to(index)
                    layers.append(store.keep(walk))
                results = parallel(
                    delayed(_train_elsewhere)(train, copy.deepcopy(students[layer.place]).cpu(), layer, *shared)
                    for layer in layers
                )
                for layer, (weights, history) in zip(layers, results):
                    student = students[layer.place]
                    student.load_state_dict(weights)
                    yield layer.place, finished(student, layer.unpacked(device), history, extractor)


def _train_elsewhere(
    train: Train, student: nn.Module, layer: _PackedLayer, extractor: Extractor, device: str, seed: int, threads: int
) -> tuple[dict[str, Tensor], dict[str, list[float]]]:
    """Train one student in a worker; returns its weights and history."""
    with own_settings(), own_memory(), _limit(threads):
        student = student.to(device)
        history = train(student, layer.unpacked(torch.device(device)), extractor, seed, tqdm(disable=True))
        return {name: tensor.cpu() for name, tensor in student.state_dict().items()}, history


def _limit(threads: int) -> contextlib.AbstractContextManager:
    """Share the cores among workers; a worker process whose engine has set its threads keeps them."""
    in_a_thread = threading.current_thread() is not threading.main_thread()
    if not in_a_thread and (multiprocessing.parent_process() is None or "OMP_NUM_THREADS" in os.environ):
        return contextlib.nullcontext()
    return limited_threads(min(threads, torch.get_num_threads()))


def _without_network(extractor: Extractor, device: torch.device) -> Extractor:
    """Copy an extractor for pickling; the copy computes on `device`, whatever the worker's machine has."""
    light = copy.copy(extractor)  # like pickling, this leaves out the network
    if hasattr(light, "device"):
        light.device = str(device)
    return light


# The dtype and shape of the tensor that a layer's bytes are copied from.
_Form = tuple[torch.dtype, tuple[int, ...]]


class _PackedLayer(NamedTuple):
    """A layer as arrays of bytes, which joblib can send."""

    place: int
    inputs: np.ndarray
    outputs: np.ndarray
    forms: tuple[_Form, _Form]
    args: tuple
    kwargs: dict

    def unpacked(self, device: torch.device) -> BlockActivations:
        """Return the layer as tensors on the CPU, with the block's other arguments on `device`."""
        inputs, outputs = _tensor(self.inputs, *self.forms[0]), _tensor(self.outputs, *self.forms[1])
        return BlockActivations(self.place, inputs, outputs, _to(self.args, device), _to(self.kwargs, device))


class _Store:
    """Layers of one wave, in memory or in files of a folder that is deleted after the wave.

    Parameters
    ----------
    storage : {"auto", "ram", "disk"}
    wave : int
        Number of students in the wave.
    """

    def __init__(self, storage: str, wave: int):
        self.storage = storage
        self.wave = wave

    def __enter__(self) -> _Store:
        self._folder: tempfile.TemporaryDirectory | None = None
        self._last: tuple[int, Tensor, np.ndarray] | None = None
        self._on_disk: bool | None = None
        return self

    def __exit__(self, *_: Any) -> None:
        self._last = None
        if self._folder is not None:
            self._folder.cleanup()

    def keep(self, layer: BlockActivations) -> _PackedLayer:
        """Copy a layer; inputs that are the previous layer's outputs are stored once."""
        if self._on_disk is None:
            # here the wave's layers and one more, and two in each worker
            self._on_disk = on_disk(self.storage, 3 * (self.wave + 1) * max(layer.inputs.nbytes, layer.outputs.nbytes))
        last = self._last
        if last is not None and layer.index == last[0] + 1 and layer.inputs is last[1]:
            inputs = last[2]
        else:
            inputs = self._copy(layer.inputs)
        outputs = self._copy(layer.outputs)
        self._last = (layer.index, layer.outputs, outputs)
        forms = ((layer.inputs.dtype, tuple(layer.inputs.shape)), (layer.outputs.dtype, tuple(layer.outputs.shape)))
        cpu = torch.device("cpu")
        return _PackedLayer(layer.index, inputs, outputs, forms, _to(layer.args, cpu), _to(layer.kwargs, cpu))

    def _copy(self, tensor: Tensor) -> np.ndarray:
        """Copy a tensor's bytes to memory or to a file, from which joblib can send them."""
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
        if not self._on_disk:
            return raw.copy()
        if self._folder is None:
            # named, since workers open its files; errors are ignored, since Windows cannot delete open files
            self._folder = tempfile.TemporaryDirectory(prefix="skl_transformaly_", ignore_cleanup_errors=True)
        fd, path = tempfile.mkstemp(dir=self._folder.name)
        os.close(fd)
        with open(path, "r+b") as file:
            mapped = map_file(file, raw.nbytes)
        mapped[:] = raw
        return mapped


def _tensor(array: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if array.ctypes.data % 64:  # not aligned, as within a message
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # nothing writes to it
        return torch.from_numpy(array).view(dtype).view(shape)


def _to(nest: Any, device: torch.device) -> Any:
    """Move the tensors in nested arguments to `device`."""
    if isinstance(nest, Tensor):
        return nest.to(device)
    if isinstance(nest, (tuple, list)):
        return type(nest)(_to(item, device) for item in nest)
    if isinstance(nest, dict):
        return {key: _to(item, device) for key, item in nest.items()}
    return nest
