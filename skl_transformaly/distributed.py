"""Scores of many images on many machines, partition by partition, by dask (extra ``dask``).

Once a detector is fitted, images are independent of each other, so scoring needs nothing but an engine that hands out
partitions, starts them again if a worker dies, and keeps their order::

    from dask.distributed import Client
    from skl_transformaly.distributed import map_detector

    client = Client("tcp://scheduler:8786")  # or Client(): the cores of this machine
    scores = map_detector("model.tfm", "/shared/photos")  # nothing is read yet
    scores.compute()
"""

from __future__ import annotations

import contextlib
import functools
import multiprocessing
import os
import threading
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skl_transformaly.images._folders import list_images
from skl_transformaly.utils._files import file_sha256

__all__ = ["map_detector"]

# Methods that treat each image by itself, and the dtype of what they return.
_METHODS: dict[str, type] = {
    "score_samples": np.float64,
    "decision_function": np.float64,
    "p_values": np.float64,
    "predict": np.int64,
    "transform": np.float64,
}

_loading = threading.Lock()


def map_detector(
    detector: Any, X: Any, *, method: str = "score_samples", partition_size: int = 256, threads: int | None = None
) -> Any:
    """Apply a fitted detector to every partition of `X`, lazily, on whatever scheduler dask uses.

    The graph holds all that a score depends on, so a partition that is lost with its worker is computed again
    elsewhere.

    Parameters
    ----------
    detector : path or fitted detector
        Path of a file that :func:`skl_transformaly.save` wrote and that workers can read under the same path. The graph
        then holds the path and the file's SHA-256 alone, and each worker process loads the file once; a worker that
        finds another file there raises :class:`ModelFileError`. Or a fitted :class:`TransformalyDetector`,
        :class:`ConformalDetector` or anything else that has `method`: it is pickled and sent to each worker.
    X : dask collection, path, or sequence of paths
        - dask array (n, H, W), (n, H, W, C), or of rows (n, H*W*C): pixels as :class:`TransformalyDetector` takes
          them. A chunk is a partition; chunks that cut images apart are merged first.
        - dask array (n,), dask bag or dask series of paths: their chunks or partitions. The items of a bag may
          also be images.
        - path of a folder, or list, tuple or array of paths: cut into partitions of `partition_size`. The list travels
          with the graph, so for tens of millions of files pass a bag or a series made on the workers.

        Workers open the paths themselves: they must lead to the same files everywhere.
    method : {"score_samples", "decision_function", "predict", "p_values", "transform"}, default="score_samples"
        What to apply.
    partition_size : int, default=256
        Images in a partition, if `X` has none of its own: what is lost with a worker. Of decoded pixels only a batch of
        the teacher's is in memory.
    threads : int, default=None
        Threads of torch in each task. None is 1 on workers, as dask starts as many tasks as a worker has threads; in
        the main thread (dask's synchronous scheduler) it is what torch uses anyway.

    Returns
    -------
    values : dask array, bag or series
        Lazy, in the order of `X`, partitioned as it is. A bag or series for such, else an array of shape (n,), float64
        (int64 for "predict"); for "transform" (n, n_features).

    Raises
    ------
    ModuleNotFoundError
        dask is not installed.
    NotFittedError
        `detector` is not fitted.
    ModelFileError, OSError
        `detector` is the path of a file that cannot be loaded.
    AttributeError
        `detector` does not have the method.
    ValueError
        `method`, `partition_size` or `threads` is out of range.
    TypeError
        `X` is none of these.

    Notes
    -----
    Errors of images are raised when they are computed: an :class:`ImageError` names the file that cannot be read; its
    score is NaN if the detector has ``on_error="skip"``.

    The values are those of the detector's own method up to the rounding of matrix products, which may change with the
    size of a batch and the number of threads.

    On workers with GPUs have one thread for each process and GPU (as `dask-cuda` does), so that the teacher is on each
    once.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from skl_transformaly import TimmExtractor, TransformalyDetector
    >>> from skl_transformaly.distributed import map_detector
    >>> images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    >>> teacher = TimmExtractor("test_vit", weights=None, image_size=32)
    >>> detector = TransformalyDetector(teacher, feature_spaces=["pretrained"]).fit(images)
    >>> scores = map_detector(detector, da.from_array(images, chunks=(4, -1, -1, -1)))
    >>> scores
    dask.array<_call, shape=(12,), dtype=float64, chunksize=(4,), chunktype=numpy.ndarray>
    >>> np.allclose(scores.compute(scheduler="synchronous"), detector.score_samples(images))
    True
    """
    dask = _import_dask()
    if method not in _METHODS:
        raise ValueError(f"method must be one of {sorted(_METHODS)}, got {method!r}.")
    _check_count(partition_size, "partition_size")
    if threads is not None:
        _check_count(threads, "threads")
    options: dict[str, Any] = {"method": method, "threads": threads}
    if isinstance(detector, (str, os.PathLike)):
        options |= {"detector": os.path.abspath(detector), "sha256": file_sha256(detector)}
        detector = _load(options["detector"], options["sha256"])
    else:
        # a key of the graph, so that it is sent to each worker once and not with each task
        options["detector"] = dask.delayed(detector, traverse=False)
    if isinstance(detector, type) or not hasattr(detector, method):
        raise AttributeError(f"{detector!r} does not have the method {method!r}; expected a fitted detector that has.")
    check_is_fitted(detector)
    options["width"] = len(detector.get_feature_names_out()) if method == "transform" else None
    return _map(X if dask.is_dask_collection(X) else _partition(X, int(partition_size)), options)


def _import_dask() -> Any:
    try:
        import dask
        import dask.array  # numpy alone; a bare dask lacks its dependencies
    except ImportError as error:
        raise ModuleNotFoundError(
            f"map_detector needs dask, which is not installed ({error}): pip install 'skl-transformaly[dask]'."
        ) from error
    return dask


def _check_count(value: Any, name: str) -> None:
    if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
        raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


@functools.lru_cache(maxsize=2)  # so that two can be compared without each pushing the other out
def _load(path: str, sha256: str) -> Any:
    """Load a model file that must still be the one that a graph was built with, once in a process."""
    from skl_transformaly import ModelFileError, load

    # before, so that another file is not loaded; and after, in case it was replaced in between
    found, detector = file_sha256(path), None
    if found == sha256:
        detector = load(path)
        found = file_sha256(path)
    if found != sha256:
        raise ModelFileError(
            f"{path!r} was replaced after this graph was built: its SHA-256 is {found}, expected {sha256}. Call "
            "map_detector again for the new model, or keep each model under a file name of its own."
        )
    return detector


def _partition(paths: Any, size: int) -> Any:
    """Paths as a dask array of strings."""
    import dask.array as da

    kind = type(paths).__name__
    if isinstance(paths, (str, os.PathLike)):
        paths = list_images(paths)
    elif isinstance(paths, Iterable) and hasattr(paths, "__len__"):  # a generator is refused, as by fit
        paths = list(paths)
    if not isinstance(paths, list) or not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise TypeError(
            f"Cannot partition a {kind}; expected a folder or a sequence of paths, or a dask collection: images in "
            "memory become one by dask.array.from_array(images, chunks=(256, -1, -1, -1)) or dask.bag.from_sequence."
        )
    if not paths:
        raise ValueError("There is no path in X.")
    array = np.empty(len(paths), dtype=object)  # strings of fixed width would all be as wide as the widest
    # absolute, because a worker, and this process later, may be in another folder
    array[:] = [os.path.abspath(path) for path in paths]
    return da.from_array(array, chunks=size)


def _map(X: Any, options: dict[str, Any]) -> Any:
    """Apply `_call` to each partition of a dask collection."""
    method, dtype = options["method"], _METHODS[options["method"]]
    if hasattr(X, "chunks"):
        return _map_array(X, dtype, options)
    if hasattr(X, "to_bag"):  # a series; a data frame has no single column of paths
        if getattr(X, "ndim", 1) != 1:
            raise TypeError(
                'Got a data frame; expected its column of paths, as in map_detector(detector, frame["path"]).'
            )
        if method == "transform":
            raise TypeError("method='transform' returns several columns; of a series take its bag: series.to_bag().")
        return X.map_partitions(_call_series, meta=(method, dtype), **options)
    if hasattr(X, "map_partitions"):
        return X.map_partitions(_call_list, **options)
    raise TypeError(
        f"Cannot score a dask {type(X).__name__}; expected a dask array of pixels or paths, or a bag or series of "
        "paths."
    )


def _map_array(X: Any, dtype: type, options: dict[str, Any]) -> Any:
    X = X.rechunk(dict.fromkeys(range(1, X.ndim), -1))
    shape: dict[str, Any]
    if options["width"] is None:
        shape = {"chunks": (X.chunks[0],), "drop_axis": list(range(1, X.ndim)), "meta": np.empty(0, dtype)}
    else:
        shape = {"chunks": (X.chunks[0], (options["width"],)), "meta": np.empty((0, 0), dtype)}
        shape |= {"new_axis": 1} if X.ndim == 1 else {"drop_axis": list(range(2, X.ndim))}
    return X.map_blocks(_call, dtype=dtype, **shape, **options)


def _call(
    images: Any, *, detector: Any, method: str, width: int | None, threads: int | None, sha256: str | None = None
) -> np.ndarray:
    """One task: what `method` returns for one partition."""
    if len(images) == 0:  # a partition that a filter has emptied
        return np.empty((0,) if width is None else (0, width), dtype=_METHODS[method])
    from skl_transformaly.utils._torch import limited_threads

    if sha256 is not None:
        with _loading:  # the other threads of this process wait
            detector = _load(detector, sha256)
    if threads is None and not _alone():
        threads = 1
    with contextlib.nullcontext() if threads is None else limited_threads(threads):
        return np.asarray(getattr(detector, method)(images), dtype=_METHODS[method])


def _call_list(images: Iterable, **options: Any) -> list:
    return list(_call(list(images), **options))


def _call_series(images: Any, **options: Any) -> Any:
    values = _call(images.tolist(), **options)
    return type(images)(values, index=images.index, name=options["method"])


def _alone() -> bool:
    """Whether no other task can run beside this one: it is in the main thread of a main process."""
    return threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
