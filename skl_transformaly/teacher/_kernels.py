"""Faster ways to compute in 16 bits on a CPU than torch's usual ones; results differ by rounding alone."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import threading
from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import torch
from timm.layers import Mlp
from torch import Tensor, nn
from torch.nn import functional as F

from skl_transformaly.utils._compat import linear_pointwise

__all__ = ["REUSED_BYTES", "is_suited", "keep_memory", "own_memory", "release_memory", "releasing", "suit_sixteen_bits"]

_Batch = TypeVar("_Batch")

# The largest block of memory that glibc ever keeps: its DEFAULT_MMAP_THRESHOLD_MAX on 64-bit systems.
REUSED_BYTES = 2**25


def suit_sixteen_bits(module: nn.Module) -> None:
    """Change how `module` computes, not what, for a CPU in 16 bits; in float32 it computes as before.

    Attention multiplies its matrices one by one instead of in torch's fused kernel, which takes twice as long forward
    and three times as long backward (``benchmarks/speed/attention.py``). Where no gradient is taken, linear layers add
    their bias and apply their GELU while a part of the product is in the cache, instead of in two further runs through
    memory (``benchmarks/speed/linear.py``). Names of parameters stay.
    """
    fused = _fused_linear_works()
    parts: list[Any] = list(module.modules())
    for part in parts:
        if getattr(part, "fused_attn", False) is True:
            part.fused_attn = False
        # Exactly these classes: subclasses may compute something else. A change of class keeps the object, with its
        # parameters and hooks, as torch's own parametrizations do.
        if fused and type(part) is nn.Linear:
            part.__class__ = _Linear
        elif fused and type(part) is Mlp:
            part.__class__ = _Mlp


def is_suited(module: nn.Module) -> bool:
    """Whether `module` was changed by :func:`suit_sixteen_bits`."""
    return any(isinstance(part, _Linear) or getattr(part, "fused_attn", None) is False for part in module.modules())


def _fused_linear(x: Tensor, layer: Any, activation: str = "none", algorithm: str = "") -> Tensor:
    """``activation(layer(x))`` in bfloat16 by one call of oneDNN."""
    weight, bias = (None if p is None else p.to(torch.bfloat16) for p in (layer.weight, layer.bias))
    return linear_pointwise(x.to(torch.bfloat16), weight, bias, activation, algorithm)


@functools.cache
def _fused_linear_works() -> bool:
    """Whether this torch has the call, which is private to it, and it computes what it should."""
    like: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        layer = nn.utils.skip_init(nn.Linear, 64, 32, **like)  # which draws no random numbers
        layer.weight.copy_(torch.linspace(-1, 1, 64 * 32, **like).view(32, 64))
        layer.bias.copy_(torch.linspace(-2, 2, 32, **like))
        x = torch.linspace(-0.5, 0.7, 3 * 5 * 64, **like).view(3, 5, 64)
        expected = layer(x)
        try:
            plain, activated = _fused_linear(x, layer), _fused_linear(x, layer, "gelu", "none")
        except (AttributeError, RuntimeError, TypeError):  # no such call, built without oneDNN, or another signature
            return False
        return _close(plain, expected) and _close(activated, F.gelu(expected))


def _close(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and float((one.float() - other).abs().max()) < 0.02 * float(other.abs().max())


def _can_fuse(x: Tensor) -> bool:
    """Whether the present call may be fused: no gradient is taken, and no exporter traces it."""
    return (
        x.device.type == "cpu"
        and not torch.is_grad_enabled()
        and torch.is_autocast_enabled("cpu")
        and torch.get_autocast_dtype("cpu") == torch.bfloat16
        and not torch.jit.is_tracing()
        and not torch.compiler.is_compiling()
    )


class _Linear(nn.Linear):
    def forward(self, input: Tensor, activation: str = "none", algorithm: str = "") -> Tensor:
        # an activation is passed only if the call can be fused
        if activation != "none" or _can_fuse(input):
            return _fused_linear(input, self, activation, algorithm)
        return super().forward(input)


class _Mlp(Mlp):
    def forward(self, x: Tensor) -> Tensor:
        act, fc1 = self.act, self.fc1
        if self.training or not (_can_fuse(x) and type(act) is nn.GELU and type(fc1) is _Linear):
            return super().forward(x)
        return self.fc2(self.norm(fc1(x, "gelu", act.approximate)))


@functools.cache
def keep_memory() -> None:
    """Make the allocator reuse freed memory instead of returning it to the system; once a process.

    glibc gives blocks above a threshold back as soon as they are freed, and the next layer waits for the system to
    find, clear and map others: a tenth of a ViT-B/16's time on a CPU. The threshold rises to the size of the largest
    such block that was freed, up to 32 MiB. Elsewhere this does nothing.
    """
    torch.empty(REUSED_BYTES - 2**16, dtype=torch.uint8, device="cpu")


# Names of glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4
_owners = 0
_owners_lock = threading.Lock()


@contextlib.contextmanager
def own_memory() -> Iterator[None]:
    """Keep all memory that is freed within for what comes next, and return it to the system at the end.

    Training holds layers of many images, which are above the size up to which :func:`keep_memory` helps: for each of
    them, in each step, the system would find and clear fresh pages, which was a third of the time of training students
    of an EfficientNet-lite0. Several threads may be within at a time. Without glibc this does nothing.
    """
    global _owners
    libc = _glibc()
    if libc is None:
        yield
        return
    with _owners_lock:
        _owners += 1
        libc.mallopt(_M_MMAP_MAX, 0)  # all from the heap
        libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)  # which does not shrink
    try:
        yield
    finally:
        with _owners_lock:
            _owners -= 1
            if not _owners:
                # glibc's default, and what `keep_memory` leads to
                libc.mallopt(_M_MMAP_MAX, 65536)
                libc.mallopt(_M_MMAP_THRESHOLD, REUSED_BYTES)
                libc.mallopt(_M_TRIM_THRESHOLD, 2 * REUSED_BYTES)
                libc.malloc_trim(0)


def release_memory() -> None:
    """Return memory that was freed to the system, after work on layers of many images. Without glibc, does nothing.

    The price of :func:`keep_memory`: small results lie between what large layers have left, which glibc returns only
    if asked to. A fit of 1,000 images held 300 MiB more than it needed, and left them behind.
    """
    libc = _glibc()
    if libc is not None:
        libc.malloc_trim(0)


def releasing(batches: Iterable[_Batch], every: int = 4) -> Iterator[_Batch]:
    """Yield `batches`, and call :func:`release_memory` after each few of them."""
    for number, batch in enumerate(batches, 1):
        yield batch
        if number % every == 0:
            release_memory()


@functools.cache
def _glibc() -> Any:
    """The C library, if it is glibc."""
    try:
        libc = ctypes.CDLL(None)
        return libc if libc.gnu_get_libc_version and libc.mallopt and libc.malloc_trim else None
    except (AttributeError, OSError, TypeError):
        return None
