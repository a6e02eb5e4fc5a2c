"""Device, precision, seeding and threads, which all torch computations share."""

from __future__ import annotations

import contextlib
import functools
import mmap
import os
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from scipy.linalg import blas
from threadpoolctl import ThreadpoolController, threadpool_limits
from torch import Tensor

from skl_transformaly.utils._compat import cpu_has_bfloat16

__all__ = [
    "OUT_OF_MEMORY",
    "PRECISIONS",
    "at_least_float32",
    "autocast",
    "limited_threads",
    "own_settings",
    "resolve_device",
    "resolve_precision",
    "seeded",
    "single_threaded_blas",
    "weights_dtype",
    "whole_float32",
]

PRECISIONS = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def resolve_device(device: str | torch.device) -> torch.device:
    """Turn ``"auto"`` into CUDA, else Apple's MPS, else the CPU. Raises ValueError if a device is not available."""
    if device != "auto":
        try:
            resolved = torch.device(device)
            torch.zeros(1, device=resolved).item()  # "meta" makes tensors, but does not compute
        except (RuntimeError, AssertionError, TypeError) as error:
            # torch may add pages about its dispatcher
            why = str(error).split(". ")[0].splitlines()[0].removesuffix(".")
            raise ValueError(f"device={device!r} cannot be used here: {why}. Try device='auto' or 'cpu'.") from error
        return resolved
    if torch.cuda.is_available():
        return torch.device("cuda")
    # in whose autocast torch 2.4 cannot compute
    if torch.backends.mps.is_available() and torch.amp.is_autocast_available("mps"):
        return torch.device("mps")
    return torch.device("cpu")


def resolve_precision(precision: str, device: torch.device, *, attention: bool = True) -> str:
    """Turn ``"auto"`` into a precision name by what the processor computes natively.

    bfloat16 if the processor has instructions for it (AVX-512 BF16 or AMX on CPUs) and the model is made of matrix
    products (`attention`); float32 elsewhere: a CPU's small depthwise convolutions gain nothing from bfloat16. The rule
    asks for features and measures no time, so that the same machine always computes the same scores.
    """
    if precision != "auto":
        if precision not in PRECISIONS:
            raise ValueError(f"precision must be 'auto' or one of {sorted(PRECISIONS)}, got {precision!r}.")
        if precision == "float64" and device.type == "mps":
            raise ValueError("precision='float64' does not exist on MPS; use 'float32' or device='cpu'.")
        return precision
    if device.type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float16"
    if device.type == "cpu" and attention and cpu_has_bfloat16():
        return "bfloat16"
    return "float32"


def weights_dtype(precision: str) -> torch.dtype:
    """Return the dtype of the weights of networks that compute in `precision`."""
    return torch.float64 if precision == "float64" else torch.float32


def at_least_float32(tensor: Tensor) -> Tensor:
    """`tensor` in float32 if it is in 16 bits, else as it is."""
    return tensor.float() if tensor.dtype in (torch.bfloat16, torch.float16) else tensor


def autocast(device: torch.device, precision: str) -> contextlib.AbstractContextManager:
    """Context in which float32 weights compute in `precision`; residual sums stay in float32."""
    if precision in ("float32", "float64"):
        # switched off, not absent: a caller's own autocast must not change the scores
        return torch.autocast(device.type, enabled=False)
    # Without its cache, which outlives this context within another of autocast: students would go on with the weights
    # that they had at first. Each weight is used once in a pass, so there is nothing to gain.
    return torch.autocast(device.type, dtype=PRECISIONS[precision], cache_enabled=False)


# Parts of torch's messages if memory is short, since the type of the error does not show it.
OUT_OF_MEMORY = (
    "not enough memory",
    "can't allocate memory",
    "Cannot allocate memory",  # to map a file
    "out of memory",
    "could not create a primitive",
)


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """Compute as if the caller had set nothing: no autocast, inference mode, default device, or ban on gradients."""
    _leave_threads_to_the_parent()
    _catch_up()
    _take_buffers()
    with contextlib.ExitStack() as stack:
        stack.enter_context(np.errstate(under="ignore"))  # tiny products are zero, whatever the caller wants to hear of
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        stack.enter_context(torch.autocast("cpu", enabled=False))
        if torch.cuda.is_available():
            stack.enter_context(torch.autocast("cuda", enabled=False))
            stack.enter_context(whole_float32)
        if torch.get_default_device().type != "cpu":  # its context slows each operation a little
            stack.enter_context(torch.device("cpu"))
        try:
            yield
        except RuntimeError as error:
            # an accelerator that runs out of memory is not an error yet: batches are halved then
            accelerator = isinstance(error, torch.cuda.OutOfMemoryError)
            if accelerator or not any(words in str(error) for words in OUT_OF_MEMORY):
                raise
            raise MemoryError(
                f"torch ran out of memory ({str(error).splitlines()[0]}). Give the extractor a smaller "
                "batch_size or image_size, or students storage='disk'."
            ) from error


class _WholeFloat32:
    """Context in which CUDA computes products of float32 as they are, not in TF32, whose ten bits a score shows.

    cuDNN takes TF32 for convolutions by itself, and whichever algorithm it likes. The settings are those of the whole
    process: of several threads, the first sets them and the last puts the caller's back.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._inside = 0
        self._before: list[tuple[Any, str, Any]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside > 1:
                return
            cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
            # torch refuses the older name to callers of the newer one
            name, value = ("fp32_precision", "ieee") if hasattr(cudnn, "conv") else ("allow_tf32", False)
            settings: list[tuple[Any, str, Any]] = [(cudnn, "deterministic", True), (cudnn, "benchmark", False)]
            settings += [(matmul, name, value), (getattr(cudnn, "conv", cudnn), name, value)]
            self._before = [(owner, name, getattr(owner, name)) for owner, name, _ in settings]
            for setting in settings:
                setattr(*setting)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for setting in self._before:
                    setattr(*setting)


whole_float32 = _WholeFloat32()
_forked = False  # whether this process is a fork that has not set its threads yet


def _note_fork() -> None:
    global _forked
    _forked = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)


def _leave_threads_to_the_parent() -> None:
    """Compute with one thread in a forked process, as torch's own data loaders do.

    The threads of OpenMP stay behind in the parent, and whoever waits for them in the child waits for ever.
    """
    global _forked
    if _forked:
        _forked = False
        threadpool_limits(limits=1)
        torch.set_num_threads(1)


_BUFFERS = 128  # MiB, twice what numpy's and scipy's OpenBLAS take
_with_buffers: int | None = None  # the process that has them: a fork loses them


def _take_buffers() -> None:
    """Let OpenBLAS have its buffers in a process whose memory is limited, as by ``ulimit -v``.

    Without memory it would try to get them for ever, or end the process.
    """
    global _with_buffers
    if _with_buffers == os.getpid() or not _is_limited():
        return
    try:
        mmap.mmap(-1, _BUFFERS * 2**20).close()
    except OSError as error:
        raise MemoryError(
            f"Less than {_BUFFERS} MiB of memory are left, which numerical libraries need to begin with. Raise the "
            "limit on this process's memory (ulimit -v)."
        ) from error
    square = np.eye(256)
    with threadpool_limits(limits=1, user_api="blas"):  # which takes a buffer itself
        _ = square @ square, blas.dgemm(1.0, square, square)
    _with_buffers = os.getpid()


def _is_limited() -> bool:
    """Whether this process may have only so much memory, whatever the machine has."""
    try:
        import resource
    except ImportError:  # Windows
        return False
    return resource.getrlimit(resource.RLIMIT_AS)[0] != resource.RLIM_INFINITY


_generator_lock = threading.RLock()


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's global generator within, and restore the caller's state after; one thread at a time.

    timm's initialisers draw from the global generator and take no other. It is the whole process's: were two threads
    within at once, each would draw from the other's numbers.
    """
    with _generator_lock, torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(seed)
        yield


_limits = 0  # how many limited_threads are in force in this process, whatever their threads
_limits_lock = threading.Lock()
_unlimited = 0


class _Own(threading.local):
    """What a thread has to do with limits.

    Attributes
    ----------
    within : list of int
        Limits that it is within.
    behind : bool or None
        Whether its number is still a limit, though it left; None if it was never within.
    """

    def __init__(self) -> None:
        self.within: list[int] = []
        self.behind: bool | None = None


_own = _Own()


@contextlib.contextmanager
def limited_threads(n: int) -> Iterator[None]:
    """Let this thread's torch operations use `n` threads within.

    torch and MKL keep one number for the process, which threads that begin within take over, and OpenMP one for each
    thread. Several threads may be within at a time; the last to leave restores the process's number, and the others
    catch up when they compute again.
    """
    global _limits, _unlimited
    with _limits_lock:
        if not _limits and not _own.behind:  # of a thread that is behind, the number is a limit: the last one holds
            _unlimited = _process_threads() if _own.behind is None else torch.get_num_threads()
        _limits += 1
        _own.within.append(n)
        torch.set_num_threads(n)
    try:
        yield
    finally:
        with _limits_lock:
            _limits -= 1
            _own.within.remove(n)
            _own.behind = bool(_limits) and not _own.within
            if _own.within:
                torch.set_num_threads(_own.within[-1])
            elif not _limits:
                torch.set_num_threads(_unlimited)


def _process_threads() -> int:
    """The process's number, as a new thread has it: one that was never within may have taken a limit over."""
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    thread.start()
    thread.join()
    return found[0]


def _catch_up() -> None:
    """Let this thread use as many threads as it did before :class:`limited_threads`, once no thread is within."""
    if _own.behind:
        with _limits_lock:
            if not _limits:
                torch.set_num_threads(_unlimited)
                _own.behind = False


@functools.cache
def _thread_pools() -> ThreadpoolController:
    return ThreadpoolController()  # looks through all libraries of the process, which takes a while


_inside_single = 0  # how many single_threaded_blas are in force in this process
_before_single: Any = None  # what restores the threads that were there before the first of them


@contextlib.contextmanager
def single_threaded_blas() -> Iterator[None]:
    """Let numpy and scipy use one thread within: for small matrices, or if several threads call them.

    The number is the process's. Several threads may be within at a time; the last to leave restores it.
    """
    global _inside_single, _before_single
    with _limits_lock:
        if not _inside_single:
            with _any_thread_may_limit():
                _before_single = _thread_pools().limit(limits=1, user_api="blas")
        _inside_single += 1
    try:
        yield
    finally:
        with _limits_lock:
            _inside_single -= 1
            if not _inside_single:
                with _any_thread_may_limit():
                    _before_single.restore_original_limits()


@contextlib.contextmanager
def _any_thread_may_limit() -> Iterator[None]:
    """Let this thread change OpenBLAS's number of threads, and afterwards any other thread.

    In recent versions of threadpoolctl, only the first thread that limits OpenBLAS can change the limit, and calls from
    other threads are ignored. Here, one thread may set the limit and another one restore it.
    """
    pools = [pool for pool in _thread_pools().lib_controllers if hasattr(pool, "clear_controlling_thread")]
    for pool in pools:
        pool.clear_controlling_thread(force=True)
    try:
        yield
    finally:
        for pool in pools:
            pool.clear_controlling_thread(force=True)
