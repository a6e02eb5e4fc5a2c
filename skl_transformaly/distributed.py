"""Scores of many images, and fits to many, on many machines, partition by partition, by dask (extra ``dask``).

Once a detector is fitted, images are independent of each other, so scoring needs nothing but an engine that hands out
partitions, starts them again if a worker dies, and keeps their order::

    from dask.distributed import Client
    from skl_transformaly.distributed import map_detector

    client = Client("tcp://scheduler:8786")  # or Client(): the cores of this machine
    scores = map_detector("model.tfm", "/shared/photos")  # nothing is read yet
    scores.compute()

A fit takes sums over the images, which add up over partitions, and so no image and no activation leaves its worker::

    from skl_transformaly.distributed import fit_detector

    detector = fit_detector(TransformalyDetector("bundled"), "/shared/normal_photos")
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
from skl_transformaly.images._formats import absolute
from skl_transformaly.utils._files import absolute_path, file_sha256

__all__ = ["fit_detector", "fit_students", "map_detector"]

# Methods that treat each image by itself, and the dtype of what they return.
_METHODS: dict[str, type] = {
    "score_samples": np.float64,
    "decision_function": np.float64,
    "p_values": np.float64,
    "predict": np.int64,
    "transform": np.float64,
}

# Sums that a task adds up.
_BRANCHES = 8

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
        What to apply; to a series all but "transform", which has several columns: take its bag.
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
    _check_counts(partition_size, threads)
    options: dict[str, Any] = {"method": method, "threads": threads}
    if isinstance(detector, (str, os.PathLike)):
        options |= {"detector": absolute_path(detector), "sha256": file_sha256(detector)}
        detector = _load(options["detector"], options["sha256"])
    else:
        # a key of the graph, so that it is sent to each worker once and not with each task
        options["detector"] = dask.delayed(detector, traverse=False)
    if isinstance(detector, type) or not hasattr(detector, method):
        raise AttributeError(f"{detector!r} does not have the method {method!r}; expected a fitted detector that has.")
    check_is_fitted(detector)
    options["width"] = len(detector.get_feature_names_out()) if method == "transform" else None
    return _map(_collection(X, partition_size), options)


def fit_students(students: Any, X: Any, *, partition_size: int = 256, threads: int | None = None) -> Any:
    """Fit students in closed form to the images of all partitions, in one pass, on whatever scheduler dask uses.

    Each partition's images are run through the teacher where they are, and leave nothing but sums of products, of the
    same size for any number of images. The sums of partitions are added up in a tree, and the students are solved once.

    Parameters
    ----------
    students : RidgeStudents
        Its parameters count; it is not changed.
    X : dask collection, path, or sequence of paths
        Normal images, as :func:`map_detector` takes them.
    partition_size : int, default=256
        Images in a partition, if `X` has none of its own. A task takes memory for its sums besides: with 10 blocks 35
        MB for a ViT-Tiny/16, 470 MB for a ViT-B/16.
    threads : int, default=None
        As in :func:`map_detector`.

    Returns
    -------
    fitted : RidgeStudents
        New students, whose `training_discrepancies_` and `held_out_discrepancies_` have no rows: to measure the images
        takes a second pass, as in :func:`fit_detector`.

    Raises
    ------
    ModuleNotFoundError
        dask is not installed.
    TypeError
        `students` are others, or `X` is none of these.
    ValueError
        `partition_size` or `threads` is out of range, or what `RidgeStudents.fit` refuses.

    Notes
    -----
    The students are those of one process to the rounding of 64 bits if the sizes of partitions are multiples of the
    extractor's `batch_size` and as many of torch's threads are used; else to that of the teacher's precision, as the
    teacher computes slightly different values for a batch of another size. Features are taken around those of the first
    batch in either case, so that one batch is run twice.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from skl_transformaly import RidgeStudents, TimmExtractor
    >>> from skl_transformaly.distributed import fit_students
    >>> images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    >>> students = RidgeStudents(n_blocks=2, extractor=TimmExtractor("test_vit", weights=None, image_size=32))
    >>> fitted = fit_students(students, da.from_array(images, chunks=(4, -1, -1, -1)))
    >>> np.allclose(fitted.transform(images), students.fit(images).transform(images), rtol=1e-3)
    True
    """
    from skl_transformaly.students._ridge import RidgeStudents

    if not isinstance(students, RidgeStudents):
        raise TypeError(f"Only RidgeStudents are sums over partitions, got {type(students).__name__}.")
    run = _PartedFit(X, partition_size, threads)
    fitted, start = run.begin(students)
    fitted.solve_sums(run.sums(fitted, start).sums)
    return fitted


def fit_detector(detector: Any, X: Any, *, partition_size: int = 256, threads: int | None = None) -> Any:
    """Fit a detector to the images of all partitions, in two passes, on whatever scheduler dask uses.

    In the first pass students are solved, as by :func:`fit_students`. In the second each image is measured, with and
    without its own part in the students. Of an image no more than its features, discrepancies and a thumbnail, some ten
    kB, come back to this process, which fits the densities and sets the threshold.

    Parameters
    ----------
    detector : TransformalyDetector
        Its parameters count; it is not changed. `memory` is not used.
    X : dask collection, path, or sequence of paths
        Normal images, as :func:`map_detector` takes them.
    partition_size : int, default=256
        As in :func:`fit_students`.
    threads : int, default=None
        As in :func:`map_detector`.

    Returns
    -------
    fitted : TransformalyDetector
        A new detector, as `fit` would make it. Like one from a file, it does not hold its training images.

    Raises
    ------
    ModuleNotFoundError
        dask is not installed.
    TypeError
        `detector` is something else, or `X` is none of these.
    ValueError
        `partition_size` or `threads` is out of range, `trim` is not 0, the students are trained, or what `fit` refuses.
    ImageError
        An image cannot be read, unless the detector has ``on_error="skip"``.

    Warns
    -----
    UserWarning
        Images were skipped, or there are too few for `contamination`.

    Notes
    -----
    The teacher runs twice over each image: to keep what it computed for the second pass would tie tasks to the worker
    that has it. Else see Notes of :func:`fit_students`. Weights of the teacher must be at hand here and on workers.

    Examples
    --------
    >>> import dask.array as da
    >>> import numpy as np
    >>> from skl_transformaly import RidgeStudents, TimmExtractor, TransformalyDetector
    >>> from skl_transformaly.distributed import fit_detector
    >>> images = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), dtype=np.uint8)
    >>> teacher = TimmExtractor("test_vit", weights=None, image_size=32)
    >>> detector = TransformalyDetector(teacher, students=RidgeStudents(n_blocks=2))
    >>> fitted = fit_detector(detector, da.from_array(images, chunks=(10, -1, -1, -1)))
    >>> fitted.predict(images).shape
    (20,)
    """
    from skl_transformaly._detector import TransformalyDetector
    from skl_transformaly._measuring import copies
    from skl_transformaly._parts import joined, seen_images
    from skl_transformaly.students._leaving_out import folds_of_copies, map_positions
    from skl_transformaly.utils._labels import group_sizes

    if not isinstance(detector, TransformalyDetector):
        raise TypeError(f"Expected a TransformalyDetector, got {type(detector).__name__}.")
    run = _PartedFit(X, partition_size, threads)
    fitted, start = run.begin(detector)
    lengths, duplicates, in_maps = None, np.empty(0, int), np.empty(0, int)
    if start:
        found = run.sums(fitted, start)
        fitted.students_.solve_sums(found.sums)
        seen = seen_images(found.seen)
        duplicates, in_maps = group_sizes(seen.groups(), len(seen)), map_positions(len(seen))
        lengths = [part.length for part in found.seen]
    parts = run.measures(fitted, lengths, duplicates, in_maps)
    seen = seen_images([part.seen for part in parts])
    features, measured = joined(parts, copies(seen))
    if measured is not None:
        for fold in folds_of_copies(seen.groups(), features.groups):
            measured.replace(fold, run.left_out(fitted, lengths, fold, in_maps))
        measured.share(seen.groups())
        features.features["discrepancy"][:] = measured.fitted
        fitted.students_.set_training_measures(measured)
    fitted.end_parts(seen, features)
    _warn_of_unreadable(seen)
    return fitted


class _PartedFit:
    """A fit as dask runs it, pass by pass."""

    def __init__(self, X: Any, partition_size: int, threads: int | None):
        self._dask = _import_dask()
        _check_counts(partition_size, threads)
        self._threads = threads
        X = _collection(X, partition_size)
        whole = _whole_images(X) if _kind(X) == "array" else X
        self._parts = list(np.ravel(whole.to_delayed()))

    def begin(self, estimator: Any) -> tuple[Any, Any]:
        """See the first images: of one partition, or of more if it holds fewer than 2."""
        from skl_transformaly._parts import begin

        estimator._validate_params()
        count = 1
        while True:
            last = count >= len(self._parts)
            begun = self._compute([self._task(begin, estimator, self._parts[:count], last)])[0]
            if begun is not None:
                return begun
            count *= 2

    def sums(self, estimator: Any, start: Any) -> Any:
        """Add up the sums of all partitions."""
        from skl_transformaly._parts import sum_part, total

        estimator, start = self._shared(estimator), self._shared(start)
        sums = [self._task(sum_part, estimator, part, start) for part in self._parts]
        while len(sums) > 1:
            sums = [self._task(total, sums[i : i + _BRANCHES]) for i in range(0, len(sums), _BRANCHES)]
        return self._compute(sums)[0]

    def measures(self, detector: Any, lengths: Any, duplicates: np.ndarray, in_maps: np.ndarray) -> tuple:
        """Measure the images of all partitions, which are of these lengths."""
        from skl_transformaly._parts import measure_part

        detector = self._shared(detector)
        starts = np.cumsum([0, *(lengths or [0] * len(self._parts))])
        tasks = []
        for part, start, end in zip(self._parts, starts, starts[1:]):
            chosen = in_maps[(in_maps >= start) & (in_maps < end)] - start
            tasks.append(self._task(measure_part, detector, part, duplicates[start:end], chosen))
        return self._compute(tasks)

    def left_out(self, detector: Any, lengths: Any, fold: np.ndarray, in_maps: np.ndarray) -> Any:
        """Measure the images at these positions by students that are solved without them."""
        from skl_transformaly._parts import measure_left_out, sum_chosen, total
        from skl_transformaly.students._leaving_out import Measured

        starts = np.cumsum([0, *lengths])
        chosen = [
            (part, fold[(fold >= start) & (fold < end)], start)
            for part, start, end in zip(self._parts, starts, starts[1:])
            if ((fold >= start) & (fold < end)).any()
        ]
        shared, empty = self._shared(detector), self._shared(detector.students_.empty_sums())
        sums = self._compute([self._task(sum_chosen, shared, part, at - start, empty) for part, at, start in chosen])
        students = self._shared(detector.students_.without(total(sums).sums))
        tasks = [
            self._task(measure_left_out, shared, part, students, at - start, np.flatnonzero(np.isin(at, in_maps)))
            for part, at, start in chosen
        ]
        return Measured.joined(self._compute(tasks))

    def _task(self, function: Any, *args: Any) -> Any:
        return self._dask.delayed(_with_threads)(self._threads, function, *args)

    def _shared(self, what: Any) -> Any:
        """A key of the graph, so that it is sent to each worker once and not with each task."""
        return self._dask.delayed(what, traverse=False)

    def _compute(self, tasks: list) -> tuple:
        return self._dask.compute(*tasks)


def _with_threads(threads: int | None, function: Any, *args: Any) -> Any:
    with _task_threads(threads):
        return function(*args)


def _warn_of_unreadable(images: Any) -> None:
    from skl_transformaly.utils._warnings import warn_user

    if images.unreadable:
        first = next(iter(images.unreadable.values()))
        warn_user(
            f"{len(images.unreadable)} of {len(images)} images could not be read: they are left out; first: {first}"
        )


def _import_dask() -> Any:
    try:
        import dask
        import dask.array  # numpy alone; a bare dask lacks its dependencies
    except ImportError as error:
        raise ModuleNotFoundError(
            f"This needs dask, which is not installed ({error}): pip install 'skl-transformaly[dask]'."
        ) from error
    return dask


def _check_counts(partition_size: Any, threads: Any) -> None:
    for name, value in {"partition_size": partition_size, "threads": threads}.items():
        if name == "threads" and value is None:
            continue
        if not isinstance(value, Integral) or isinstance(value, bool) or value < 1:
            raise ValueError(f"{name} must be an integer of at least 1, got {value!r}.")


def _collection(X: Any, partition_size: int) -> Any:
    """`X` if it is a dask collection, else its paths as one."""
    return X if _import_dask().is_dask_collection(X) else _partition(X, int(partition_size))


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
    array[:] = [absolute(path) for path in paths]
    return da.from_array(array, chunks=size)


def _kind(X: Any) -> str:
    """Which dask collection of images `X` is: "array", "series" or "bag"."""
    from dask.delayed import Delayed

    if isinstance(X, Delayed) or not hasattr(X, "to_delayed"):
        raise TypeError(
            f"Cannot take images from a dask {type(X).__name__}; expected a dask array of pixels or paths, or a bag or "
            "series of paths."
        )
    if hasattr(X, "chunks"):
        return "array"
    if not hasattr(X, "to_bag"):
        return "bag"
    if getattr(X, "ndim", 1) != 1:
        raise TypeError('Got a data frame; expected its column of paths, such as frame["path"].')
    return "series"


def _whole_images(X: Any) -> Any:
    """A dask array whose chunks cut no image apart."""
    return X.rechunk(dict.fromkeys(range(1, X.ndim), -1))


def _map(X: Any, options: dict[str, Any]) -> Any:
    """Apply `_call` to each partition of a dask collection."""
    method, dtype, kind = options["method"], _METHODS[options["method"]], _kind(X)
    if kind == "array":
        return _map_array(_whole_images(X), dtype, options)
    if kind == "bag":
        return X.map_partitions(_call_list, **options)
    if method == "transform":
        raise TypeError("method='transform' returns several columns; of a series take its bag: series.to_bag().")
    return X.map_partitions(_call_series, meta=(method, dtype), **options)


def _map_array(X: Any, dtype: type, options: dict[str, Any]) -> Any:
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
    if sha256 is not None:
        with _loading:  # the other threads of this process wait
            detector = _load(detector, sha256)
    with _task_threads(threads):
        return np.asarray(getattr(detector, method)(images), dtype=_METHODS[method])


def _call_list(images: Iterable, **options: Any) -> list:
    return list(_call(list(images), **options))


def _call_series(images: Any, **options: Any) -> Any:
    values = _call(images.tolist(), **options)
    return type(images)(values, index=images.index, name=options["method"])


def _task_threads(threads: int | None) -> contextlib.AbstractContextManager:
    """Let torch use so many threads in a task; None is 1 if others may run beside it."""
    from skl_transformaly.utils._torch import limited_threads

    if threads is None and not _alone():
        threads = 1
    return contextlib.nullcontext() if threads is None else limited_threads(threads)


def _alone() -> bool:
    """Whether no other task can run beside this one: it is in the main thread of a main process."""
    return threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
