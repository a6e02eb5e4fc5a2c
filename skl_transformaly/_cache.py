"""Results kept on disk, found again by the content of what they were computed from."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from typing import Any, TypeVar

import joblib
import numpy as np
from sklearn.utils.validation import check_memory

from skl_transformaly._images import Images

__all__ = ["Cache", "fingerprint", "identity"]

T = TypeVar("T")

# What a result may depend on besides its key: another version never finds it.
_PACKAGES = ("skl-transformaly", "torch", "timm", "numpy", "pillow")


class Cache:
    """Remembers results in a ``joblib.Memory``; without one, computes.

    A cache is a convenience: where it cannot be read or written, it warns, and the work goes on.

    Parameters
    ----------
    memory : None, str or joblib.Memory
        As in scikit-learn's Pipeline.
    verbose : int, default=0
        1 prints each hit and miss.
    """

    def __init__(self, memory: Any, verbose: int = 0):
        self.verbose = verbose
        self._call: Any = None
        try:
            memory = check_memory(memory)
            if getattr(memory, "location", True) is not None:
                self._call = memory.cache(_remember, ignore=["compute"], verbose=0)
        except OSError as error:
            _warn(error)

    @property
    def active(self) -> bool:
        """Whether anything is remembered at all."""
        return self._call is not None

    def __call__(self, what: str, key: dict[str, Any], compute: Callable[[], T]) -> T:
        """Give the result of `compute`, from the cache where it has one under `what` and `key`.

        Parameters
        ----------
        what : str
            Kind of result.
        key : dict
            All that the result depends on, as numbers, strings and nests of them.
        compute : callable
            Takes nothing. What it raises is raised.
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
            _warn(error)
            return result[0] if result else compute()


def _remember(what: str, key: dict[str, Any], compute: Callable[[], Any]) -> Any:
    return compute()


def _warn(error: OSError) -> None:
    warnings.warn(
        f"The cache cannot be used ({error}); the work goes on without it. Give `memory` a folder that can be written "
        "and has room.",
        UserWarning,
        stacklevel=3,
    )


def fingerprint(images: Images) -> str:
    """SHA-256 over the decoded pixels of all images, their shapes, dtypes and order."""
    digest = hashlib.sha256(str(len(images)).encode())
    for positions, pixels in images.batches(64):
        for position, image in zip(positions, pixels):
            digest.update(f"{position} {image.dtype} {image.shape}".encode())
            digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def identity(extractor: Any) -> Any:
    """What tells a fitted extractor from all that give other values.

    An extractor's own ``identity()`` where it has one, else a hash over the whole object.
    """
    own = getattr(extractor, "identity", None)
    return own() if own is not None else joblib.hash(extractor)


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:  # run from a checkout
            found[name] = "unknown"
    return found
