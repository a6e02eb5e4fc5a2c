"""Students trained beside each other by joblib: what goes to a worker, what comes back, what is kept meanwhile."""

from __future__ import annotations

import contextlib
import copy
import multiprocessing
import os
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from joblib import Parallel, delayed, effective_n_jobs
from torch import Tensor, nn
from tqdm.auto import tqdm

from skl_transformaly.students._activations import BlockActivations, map_file
from skl_transformaly.utils._torch import limited_threads, own_settings

__all__ = ["count_jobs", "train_in_waves"]

# train(student, layer, extractor, seed, progress) trains in place and gives the history
Train = Callable[[nn.Module, BlockActivations, Any, int, tqdm], dict]

# Bytes of a layer, and how to see them as the tensor that they were.
_Form = tuple[torch.dtype, tuple[int, ...]]


def count_jobs(n_jobs: int | None, blocks: int) -> int:
    """How many of so many blocks are trained at a time: joblib's number of workers, at most `n_jobs` where it is one.

    joblib's backends for clusters give all workers whatever was asked for.
    """
    jobs = min(effective_n_jobs(n_jobs), blocks)
    return min(jobs, n_jobs) if n_jobs is not None and n_jobs > 0 else jobs


def train_in_waves(
    train: Train,
    students: dict[int, nn.Module],
    layers: Iterator[BlockActivations],
    extractor: Any,
    seed: int,
    *,
    n_jobs: int | None,
    cache: str,
    cache_bytes: int,
) -> Iterator[tuple[BlockActivations, dict]]:
    """Train as many students at a time as joblib has workers, and yield each one's layer and history.

    The layers of a wave are stored, handed out and, when all its students are trained, given up: one for each student
    and one more, beside the two that `layers` works on. Blocks of one teacher are of about the same cost, so hardly a
    worker waits. Layers in files are mapped by workers on this machine; joblib sends them by value to others.

    Parameters
    ----------
    train : callable
        ``train(student, layer, extractor, seed, progress)`` trains in place and gives the history; can be pickled.
    students : dict of int to nn.Module
        By index of the block, in order of depth. They have been trained when their layer is yielded.
    layers : iterator of BlockActivations
        Of the same blocks; each may be overwritten when the next is asked for.
    extractor : extractor
        Workers get a copy, in which a :class:`TimmExtractor` is without its network.
    seed : int
    n_jobs : int or None
        As in joblib.
    cache : {"auto", "memory", "disk"}
        Where layers are stored; "auto" is memory if all that is held here and in workers fits in `cache_bytes`.
    cache_bytes : int
    """
    jobs = count_jobs(n_jobs, len(students))
    device = next(parameter for student in students.values() for parameter in student.parameters()).device
    threads = max(1, torch.get_num_threads() // jobs)
    light = _without_network(extractor, device)
    indices = list(students)
    # by value where layers are in memory: joblib's own files for them would pile up until the last wave
    with Parallel(n_jobs=n_jobs, prefer="processes", max_nbytes=None) as parallel:
        for start in range(0, len(indices), jobs):
            with _Store(cache, cache_bytes, min(jobs, len(indices) - start)) as store:
                wave = [store.keep(layer) for layer in islice(layers, jobs)]
                results = parallel(
                    delayed(_train_elsewhere)(
                        train,
                        copy.deepcopy(students[index]).cpu(),
                        index,
                        *arrays,
                        forms,
                        _to(extra, torch.device("cpu")),
                        light,
                        str(device),
                        seed,
                        threads,
                    )
                    for index, arrays, forms, extra in wave
                )
                for (index, arrays, forms, extra), (state, history) in zip(wave, results):
                    students[index].load_state_dict(state)
                    yield _layer(index, arrays, forms, extra), history


def _train_elsewhere(
    train: Train,
    student: nn.Module,
    index: int,
    inputs: np.ndarray,
    outputs: np.ndarray,
    forms: tuple[_Form, _Form],
    extra: tuple[tuple, dict],
    extractor: Any,
    device: str,
    seed: int,
    threads: int,
) -> tuple[dict[str, Tensor], dict]:
    """One task: train one student; gives its weights and history."""
    with own_settings(), _limit(threads):
        student = student.to(device)
        layer = _layer(index, (inputs, outputs), forms, _to(extra, torch.device(device)))
        history = train(student, layer, extractor, seed, tqdm(disable=True))
        return {name: tensor.cpu() for name, tensor in student.state_dict().items()}, history


def _limit(threads: int) -> contextlib.AbstractContextManager:
    """Leave to a process of its own what its engine has set, share out the cores where workers are threads."""
    in_a_thread = threading.current_thread() is not threading.main_thread()
    if not in_a_thread and (multiprocessing.parent_process() is None or "OMP_NUM_THREADS" in os.environ):
        return contextlib.nullcontext()
    return limited_threads(min(threads, torch.get_num_threads()))


def _without_network(extractor: Any, device: torch.device) -> Any:
    """A copy to be pickled, that computes on `device` and not on whatever the worker's machine has."""
    light = copy.copy(extractor)  # as a pickle, which leaves the network out
    if hasattr(light, "device"):
        light.device = str(device)
    return light


class _Store:
    """Layers of one wave, in memory or in files of a folder that goes when the wave is over.

    Parameters
    ----------
    cache : {"auto", "memory", "disk"}
    cache_bytes : int
    wave : int
        Number of layers' students.
    """

    def __init__(self, cache: str, cache_bytes: int, wave: int):
        self.cache = cache
        self.cache_bytes = cache_bytes
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

    def keep(self, layer: BlockActivations) -> tuple[int, tuple, tuple[_Form, _Form], tuple[tuple, dict]]:
        """Copy a layer; what the block before gave is stored once."""
        if self._on_disk is None:
            # here the wave's layers and one more; in each worker two
            total = 3 * (self.wave + 1) * max(_bytes(layer.inputs), _bytes(layer.outputs))
            self._on_disk = self.cache == "disk" or (self.cache == "auto" and total > self.cache_bytes)
        last = self._last
        if last is not None and layer.index == last[0] + 1 and layer.inputs is last[1]:
            inputs = last[2]
        else:
            inputs = self._copy(layer.inputs)
        outputs = self._copy(layer.outputs)
        self._last = (layer.index, layer.outputs, outputs)
        forms = tuple((tensor.dtype, tuple(tensor.shape)) for tensor in (layer.inputs, layer.outputs))
        return layer.index, (inputs, outputs), forms, (layer.args, layer.kwargs)  # type: ignore[return-value]

    def _copy(self, tensor: Tensor) -> np.ndarray:
        """The bytes of a tensor over all images, where joblib can hand them on."""
        raw = tensor.contiguous().flatten().view(torch.uint8).numpy()
        if not self._on_disk:
            return raw.copy()
        if self._folder is None:
            # named, since workers open them; ignore errors, since Windows keeps what a worker has open
            self._folder = tempfile.TemporaryDirectory(prefix="skl_transformaly_", ignore_cleanup_errors=True)
        fd, path = tempfile.mkstemp(dir=self._folder.name)
        os.close(fd)
        with open(path, "r+b") as file:
            mapped = map_file(file, raw.nbytes)
        mapped[:] = raw
        return mapped


def _layer(index: int, arrays: tuple, forms: tuple[_Form, _Form], extra: tuple[tuple, dict]) -> BlockActivations:
    inputs, outputs = (_tensor(array, *form) for array, form in zip(arrays, forms))
    return BlockActivations(index, inputs, outputs, *extra)


def _tensor(array: np.ndarray, dtype: torch.dtype, shape: tuple[int, ...]) -> Tensor:
    if array.ctypes.data % 64:  # cut out of a message
        array = array.copy()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")  # and nobody writes
        return torch.from_numpy(array).view(dtype).view(shape)


def _bytes(tensor: Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def _to(nest: Any, device: torch.device) -> Any:
    """A nest of arguments, with its tensors on `device`."""
    if isinstance(nest, Tensor):
        return nest.to(device)
    if isinstance(nest, (tuple, list)):
        return type(nest)(_to(item, device) for item in nest)
    if isinstance(nest, dict):
        return {key: _to(item, device) for key, item in nest.items()}
    return nest
