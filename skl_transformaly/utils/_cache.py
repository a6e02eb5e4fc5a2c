"""Results kept on disk, found again by the content of what they were computed from."""

from __future__ import annotations

import functools
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

import joblib
import numpy as np
import torch
from joblib.hashing import NumpyHasher
from sklearn.utils.validation import check_memory

from skl_transformaly.utils._compat import FileSystemStoreBackend
from skl_transformaly.utils._files import replacing
from skl_transformaly.utils._versions import versions
from skl_transformaly.utils._warnings import warn_user

__all__ = ["Cache", "fingerprint", "identity"]

T = TypeVar("T")

# A result is only found by the same versions of these.
_PACKAGES = ("skl-transformaly", "torch", "timm", "numpy", "pillow")


class Cache:
    """Remembers results in a ``joblib.Memory``, given as in Pipeline: None, a path or an object. None only computes.

    If the cache cannot be read or written, it warns, and the work goes on. `parameter` is its name for the user.
    """

    def __init__(self, memory: Any, verbose: int = 0, parameter: str = "memory"):
        self.verbose = verbose
        self.parameter = parameter
        self._call: Any = None
        try:
            if isinstance(memory, (str, os.PathLike)):
                memory = joblib.Memory(os.path.expanduser(memory), backend=_STORE, verbose=0)
            memory = check_memory(memory)
            if getattr(memory, "location", True) is not None:
                self._call = memory.cache(_remember, ignore=["compute"], verbose=0)
        except OSError as error:
            self._warn(error)

    @property
    def active(self) -> bool:
        """Whether results are kept."""
        return self._call is not None

    def has(self, what: str, key: dict[str, Any]) -> bool:
        """Return whether a result is kept under `what` and `key`."""
        try:
            return self.active and bool(self._call.check_call_in_cache(what, {**key, "versions": _versions()}, None))
        except OSError:
            return False

    def __call__(self, what: str, key: dict[str, Any], compute: Callable[[], T]) -> T:
        """Return the result of `compute`, from the cache if it holds one under `what` and `key`.

        `key` is everything that the result depends on, as numbers, strings and nests of them.
        """
        if self._call is None:
            return compute()
        started = False
        result: list[T] = []

        def once() -> T:
            nonlocal started
            started = True
            result.append(compute())
            return result[0]

        key = {**key, "versions": _versions()}
        try:
            if self.verbose:
                hit = self._call.check_call_in_cache(what, key, None)
                print(f"[memory] {'found' if hit else 'computing'}: {what} {joblib.hash(key)[:8]}")
            return self._call(what, key, once)
        except OSError as error:
            if started and not result:
                raise
            self._warn(error)
            return result[0] if result else compute()

    def forget(self, what: str, key: dict[str, Any]) -> None:
        """Remove what is kept under `what` and `key`."""
        if self._call is None:
            return
        key = {**key, "versions": _versions()}
        try:
            if self._call.check_call_in_cache(what, key, None):
                self._call.call_and_shelve(what, key, None).clear()
        except OSError as error:
            self._warn(error)

    def _warn(self, error: OSError) -> None:
        warn_user(
            f"The cache cannot be used ({error}); the work goes on without it. Set `{self.parameter}` to a folder that "
            "can be written and has room."
        )


class _Store(FileSystemStoreBackend):
    """joblib's folder of files, but raises an error if a file cannot be written, and leaves no part of it behind."""

    def dump_item(self, call_id: Sequence[str], item: Any, verbose: int = 1) -> None:
        path = os.path.join(self.location, *call_id, "output.pkl")
        os.makedirs(os.path.dirname(path), exist_ok=True)
        with replacing(path) as file:
            joblib.dump(item, file)


_STORE = "skl_transformaly"
joblib.register_store_backend(_STORE, _Store)


def _remember(what: str, key: dict[str, Any], compute: Callable[[], Any]) -> Any:
    return compute()


class _Digested(Protocol):
    """What a cache needs of ``images._sequence.Images``."""

    digests: dict[int, bytes]
    thumbnails: dict[int, np.ndarray] | None
    unreadable: dict[int, str]

    def __len__(self) -> int: ...
    def batches(self, batch_size: int) -> Iterator[Any]: ...


def fingerprint(images: _Digested) -> str:
    """Return a SHA-256 over the digests of all images' pixels in their order; images not seen yet are decoded."""
    seen: list[dict[int, Any]] = [images.digests, *([] if images.thumbnails is None else [images.thumbnails])]
    if any(len(known) + len(images.unreadable) < len(images) for known in seen):
        deque(images.batches(64), maxlen=0)  # which looks at each
    digest = hashlib.sha256(str(len(images)).encode())
    for position, own in sorted(images.digests.items()):
        digest.update(str(position).encode() + own)
    return digest.hexdigest()


def identity(extractor: Any) -> Any:
    """Return what distinguishes a fitted extractor from all that compute other values.

    Its class, since a subclass may preprocess or embed otherwise, and its own ``identity()``, or a hash over the whole
    object if it has none.
    """
    own = getattr(extractor, "identity", None)
    kind = f"{type(extractor).__module__}.{type(extractor).__qualname__}"
    return {"class": kind, "own": _hash(extractor) if own is None else own()}


class _TensorHasher(NumpyHasher):
    """joblib's, to which equal tensors are equal; itself it sees the storage that they happen to have."""

    def save(self, obj: Any) -> None:
        if isinstance(obj, torch.Tensor):
            values = obj.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
            obj = ("tensor", str(obj.dtype), tuple(obj.shape), values)
        super().save(obj)


def _hash(obj: Any) -> str:
    return _TensorHasher(hash_name="md5").hash(obj)


@functools.cache  # reading them takes longer than a hit
def _versions() -> dict[str, str]:
    return versions(_PACKAGES)
