"""Score on many machines: dask arrays, bags, series and lists of paths, partition by partition, and Ray Data batches.

Images are independent of each other once a detector is fitted, so scoring needs nothing but an engine that hands out
partitions, starts them again where a worker dies, and keeps their order. dask is such an engine (extra ``dask``)::

    from dask.distributed import Client
    from skl_transformaly.distributed import map_detector

    client = Client("tcp://scheduler:8786")  # or Client(): this machine's cores
    scores = map_detector(detector, "/shared/photos")  # nothing is read yet
    scores.compute()

Ray Data is another; see :class:`BatchScorer`.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import multiprocessing
import os
import pickle
import sys
import threading
import warnings
from collections import ChainMap, OrderedDict
from collections.abc import Iterable, Mapping
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skl_transformaly.images._folders import list_images

__all__ = ["BatchScorer", "map_detector"]

# Methods that treat each image by itself, and the dtype of what they give.
_METHODS: dict[str, type] = {
    "score_samples": np.float64,
    "decision_function": np.float64,
    "p_values": np.float64,
    "predict": np.int64,
    "transform": np.float64,
}

# Detectors that this process has loaded, by the SHA-256 of their pickles or files, the latest last. Two, so that two
# can be compared without each pushing the other out.
_loaded: OrderedDict[str, Any] = OrderedDict()
_KEPT = 2
_loading = threading.Lock()


def map_detector(
    detector: Any, X: Any, *, method: str = "score_samples", partition_size: int = 256, threads: int | None = None
) -> Any:
    """Apply a fitted detector to every partition of `X`, lazily, on whatever scheduler dask uses.

    The detector is in the graph once. A worker process loads it, and the teacher, with its first partition, and keeps
    both for all others, those of later graphs included. Since the graph holds all that a score depends on, a partition
    that is lost with its worker is computed again elsewhere.

    Parameters
    ----------
    detector : fitted detector or path
        A :class:`TransformalyDetector`, or anything fitted that can be pickled and has `method`, such as a
        :class:`ConformalDetector` around one. Or the path of a file that :func:`skl_transformaly.save` wrote and that
        workers can read under the same path: the graph then holds the path and the file's SHA-256 alone, which suits
        detectors of hundreds of MB. A worker that finds another file there raises :class:`ModelFileError`.
    X : dask collection, path, or sequence of paths
        - dask array (n, H, W), (n, H, W, C), or of rows (n, H*W*C): pixels as :class:`TransformalyDetector` takes
          them. A chunk is a partition; one that cuts images apart is first merged.
        - dask array (n,), dask bag or dask series of paths: their chunks or partitions. The items of a bag may
          also be images.
        - path of a folder, or list, tuple or array of paths: cut into partitions of `partition_size`. The list travels
          with the graph, so for tens of millions of files rather have a bag or a series made on the workers.

        Workers open the paths themselves: they must lead to the same files everywhere.
    method : {"score_samples", "decision_function", "predict", "p_values", "transform"}, default="score_samples"
        What to apply.
    partition_size : int, default=256
        Images in a partition, where `X` has none of its own: what is lost with a worker, and what is in its hands
        at a time. Of decoded pixels only a batch of the teacher's is in memory.
    threads : int, default=None
        Threads of torch in each task. None is 1 wherever tasks run beside each other, on workers' threads and in
        workers' processes: dask starts as many tasks as a worker has threads, and one each fills the cores and no
        more. In the caller's own main thread (dask's synchronous scheduler) None is what torch uses anyway.

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
        `detector` has no such method.
    ValueError
        `method` or `partition_size` is out of range, or images in `X` have another shape than in `fit`.
    TypeError
        `X` is none of these, or `detector` cannot be pickled.

    See Also
    --------
    BatchScorer : The same for engines that map a class over batches.

    Notes
    -----
    What cannot be read is found when it is computed: an :class:`ImageError` that names the file, or NaN where the
    detector has ``on_error="skip"``.

    The values are those of ``detector.score_samples`` up to the rounding of matrix products, which may change with the
    size of a batch and the number of threads.

    On workers with GPUs have one thread for each process and GPU (`dask-cuda` does), so that the teacher is on
    each once.

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
    _check_threads(threads)
    if not isinstance(partition_size, Integral) or partition_size < 1:
        raise ValueError(f"partition_size must be an integer of at least 1, got {partition_size!r}.")
    source: bytes | str
    if isinstance(detector, (str, os.PathLike)):
        source, key = os.fspath(detector), _file_sha256(detector)
        detector = _read_unchanged(source, key)
        _check(detector, method)
    else:
        _check(detector, method)
        source = _pickle(detector)
        key = hashlib.sha256(source).hexdigest()
    width = len(detector.get_feature_names_out()) if method == "transform" else None
    options = {
        # a key of the graph, so that it is sent to each worker once and not with each task
        "source": dask.delayed(source, name=f"detector-{key}", traverse=False),
        "key": key,
        "method": method,
        "width": width,
        "threads": threads,
    }
    if isinstance(X, (str, os.PathLike)):
        X = list_images(X)
    if not dask.is_dask_collection(X):
        X = _partition(X, int(partition_size))
    if hasattr(X, "chunks"):
        return _map_array(detector, X, method, width, options)
    if hasattr(X, "to_bag"):  # a series; a data frame has no single column of paths
        if getattr(X, "ndim", 1) != 1:
            raise TypeError(
                'Got a data frame; expected its column of paths, as in map_detector(detector, frame["path"]).'
            )
        return X.map_partitions(_call_series, meta=(method, _METHODS[method]), **_one_column(method, options))
    if hasattr(X, "map_partitions"):
        return X.map_partitions(_call_list, **options)
    raise TypeError(
        f"Cannot score a dask {type(X).__name__}; expected a dask array of pixels or paths, or a bag or series of "
        "paths."
    )


class BatchScorer:
    """A detector as a class over batches in columns, the form that Ray Data's ``map_batches`` takes.

    Ray starts a pool of processes, each of which makes one object of the class, and so loads the detector once::

        import ray
        from skl_transformaly.distributed import BatchScorer

        paths = ray.data.from_items([{"path": path} for path in paths])  # or ray.data.read_parquet(...)
        scored = paths.map_batches(
            BatchScorer,
            fn_constructor_kwargs={"detector": detector, "column": "path"},
            batch_size=256,
            compute=ray.data.ActorPoolStrategy(size=8),  # processes over the cluster
            num_cpus=1,  # cores of each; Ray sets its threads accordingly
        )
        scored.write_parquet("scores")  # columns "path" and "score_samples"

    ``ray.data.read_images(folder, include_paths=True)`` with ``column="image"`` decodes on the workers, too. With GPUs
    give ``num_gpus=1``. Ray starts batches of a process that dies again on another.

    Parameters
    ----------
    detector : fitted detector or path
        As for :func:`map_detector`.
    column : str, default="path"
        The column of images: paths, or pixels.
    method : {"score_samples", "decision_function", "predict", "p_values", "transform"}, default="score_samples"
        What to apply, and the name of the column that is added.
    threads : int, default=None
        Threads of torch; None leaves them as they are.

    Raises
    ------
    NotFittedError, AttributeError, ValueError
        As for :func:`map_detector`.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly import TimmExtractor, TransformalyDetector
    >>> from skl_transformaly.distributed import BatchScorer
    >>> images = np.random.default_rng(0).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    >>> teacher = TimmExtractor("test_vit", weights=None, image_size=32)
    >>> detector = TransformalyDetector(teacher, feature_spaces=["pretrained"]).fit(images)
    >>> scorer = BatchScorer(detector, column="image")
    >>> batch = scorer({"image": images[:3], "id": np.arange(3)})
    >>> {name: values.shape for name, values in batch.items()}
    {'image': (3, 32, 32, 3), 'id': (3,), 'score_samples': (3,)}
    """

    def __init__(
        self, detector: Any, *, column: str = "path", method: str = "score_samples", threads: int | None = None
    ):
        if isinstance(detector, (str, os.PathLike)):
            detector = _read(detector)
        _check(detector, method)
        _check_threads(threads)
        self.detector = detector
        self.column = column
        self.method = method
        self.threads = threads

    def __call__(self, batch: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Add a column to one batch.

        Parameters
        ----------
        batch : mapping of str to array of length n
            Columns, the one of images among them.

        Returns
        -------
        batch : dict of str to ndarray
            The same columns, and one of the method's name.

        Raises
        ------
        KeyError
            `batch` has no column of images.
        ImageError
            An image cannot be read.
        """
        if not isinstance(batch, Mapping) and not hasattr(batch, "columns"):
            raise TypeError(f"A batch is a dict of columns, got a {type(batch).__name__}.")
        if self.column not in batch:
            raise KeyError(f"The batch has no column {self.column!r}; it has {sorted(batch)}. Set `column`.")
        return {**batch, self.method: _apply(self.detector, batch[self.column], self.method, None, self.threads)}


def _import_dask() -> Any:
    try:
        import dask
        import dask.array  # numpy alone; a bare dask lacks its dependencies
    except ImportError as error:
        raise ModuleNotFoundError(
            f"map_detector needs dask, which is not installed ({error}): pip install 'skl-transformaly[dask]'."
        ) from error
    return dask


def _read(path: str | os.PathLike) -> Any:
    from skl_transformaly.persistence import load

    return load(path)


def _read_unchanged(path: str, sha256: str) -> Any:
    """Load a model file that must still be the one that a graph was built with.

    Raises
    ------
    ModelFileError
        It is another one.
    """
    from skl_transformaly.utils._container import ModelFileError

    # before, so that another file is not loaded; and after, in case it was replaced in between
    found, detector = _file_sha256(path), None
    if found == sha256:
        detector = _read(path)
        found = _file_sha256(path)
    if found != sha256:
        raise ModelFileError(
            f"{path!r} was replaced after this graph was built: its SHA-256 is {found}, expected {sha256}. Call "
            "map_detector again for the new model, or keep each model under a file name of its own."
        )
    return detector


def _file_sha256(path: str | os.PathLike) -> str:
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def _check(detector: Any, method: str) -> None:
    if method not in _METHODS:
        raise ValueError(f"method must be one of {sorted(_METHODS)}, got {method!r}.")
    if isinstance(detector, type) or not hasattr(detector, method):
        raise AttributeError(f"{detector!r} has no method {method!r}; expected a fitted detector that has.")
    check_is_fitted(detector)


def _check_threads(threads: Any) -> None:
    if threads is not None and (not isinstance(threads, Integral) or isinstance(threads, bool) or threads < 1):
        raise ValueError(f"threads must be None or an integer of at least 1, got {threads!r}.")


def _pickle(detector: Any) -> bytes:
    """Pickle so that the same detector gives the same bytes, by which workers know it."""
    import cloudpickle  # type: ignore[import-untyped] # comes with dask; takes classes of the user's own script, too

    class Pickler(cloudpickle.Pickler):
        dispatch_table = cloudpickle.Pickler.dispatch_table

    if "torch" in sys.modules:  # whose own pickles hold addresses of memory
        Pickler.dispatch_table = ChainMap({sys.modules["torch"].Tensor: _reduce_tensor}, Pickler.dispatch_table)
    file = io.BytesIO()
    pickler = Pickler(file)
    try:
        pickler.dump(detector)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise TypeError(
            f"The {type(detector).__name__} cannot be pickled, and so cannot be sent to workers ({error})."
        ) from error
    return file.getvalue()


def _reduce_tensor(tensor: Any) -> Any:
    try:
        array = tensor.numpy()
    except (TypeError, RuntimeError):  # not a plain tensor in memory, or of a dtype that numpy lacks
        return tensor.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
    return sys.modules["torch"].from_numpy, (array,)


def _partition(paths: Any, size: int) -> Any:
    """Paths as a dask array of strings."""
    import dask.array as da

    kind = type(paths).__name__
    if isinstance(paths, Iterable) and hasattr(paths, "__len__"):  # a generator is refused, as by fit
        paths = list(paths)
    if not isinstance(paths, list) or not all(isinstance(path, (str, os.PathLike)) for path in paths):
        raise TypeError(
            f"Cannot partition a {kind}; expected a folder or a sequence of paths, or a dask collection: images in "
            "memory become one by dask.array.from_array(images, chunks=(256, -1, -1, -1)) or dask.bag.from_sequence."
        )
    if not paths:
        raise ValueError("There is no path in X.")
    array = np.empty(len(paths), dtype=object)  # strings of fixed width would all be as wide as the widest
    # absolute, for a worker, and this process later, may be in another folder
    array[:] = [os.path.abspath(path) for path in paths]
    return da.from_array(array, chunks=size)


def _map_array(detector: Any, X: Any, method: str, width: int | None, options: dict[str, Any]) -> Any:
    if X.ndim > 1:
        _check_form(detector, X)
        X = X.rechunk(dict.fromkeys(range(1, X.ndim), -1))
    rows = (X.chunks[0],)
    dtype = _METHODS[method]
    shape: dict[str, Any]
    if width is None:
        shape = {"drop_axis": list(range(1, X.ndim)), "chunks": rows, "meta": np.empty(0, dtype)}
    else:
        shape = {"chunks": (*rows, (width,)), "meta": np.empty((0, 0), dtype), "drop_axis": list(range(2, X.ndim))}
        if X.ndim == 1:
            shape["new_axis"] = 1
    return X.map_blocks(_call, dtype=dtype, **shape, **options)


def _check_form(detector: Any, X: Any) -> None:
    """Raise now, rather than on every worker, where images have not the shape or dtype that `detector` takes."""
    look = getattr(detector, "_images", None)
    if look is None or any(np.isnan(X.shape[1:])):
        return
    blank = np.broadcast_to(np.zeros((), X.dtype), (1, *X.shape[1:]))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of the values, which are not X's
        look(blank, reset=False)


def _one_column(method: str, options: dict[str, Any]) -> dict[str, Any]:
    if method == "transform":
        raise TypeError("method='transform' gives several columns; of a series take its bag: series.to_bag().")
    return options


def _call(
    images: Any, *, source: bytes | str, key: str, method: str, width: int | None, threads: int | None
) -> np.ndarray:
    """One task: what `method` gives for one partition."""
    return _apply(_load(key, source), images, method, width, _default_threads() if threads is None else threads)


def _call_list(images: Iterable, **options: Any) -> list:
    return list(_call(list(images), **options))


def _call_series(images: Any, **options: Any) -> Any:
    values = _call(images.tolist(), **options)
    return type(images)(values, index=images.index, name=options["method"])


def _apply(detector: Any, images: Any, method: str, width: int | None, threads: int | None) -> np.ndarray:
    if len(images) == 0:  # a partition that a filter has emptied
        return np.empty((0,) if width is None else (0, width), dtype=_METHODS[method])
    if threads is None:
        limit: contextlib.AbstractContextManager = contextlib.nullcontext()
    else:
        from skl_transformaly.utils._torch import limited_threads

        limit = limited_threads(threads)
    with limit:
        return np.asarray(getattr(detector, method)(images), dtype=_METHODS[method])


def _load(key: str, source: bytes | str) -> Any:
    """The detector, unpickled or read by the first task of this process that needs it."""
    with _loading:
        if key not in _loaded:
            _loaded[key] = pickle.loads(source) if isinstance(source, bytes) else _read_unchanged(source, key)
            while len(_loaded) > _KEPT:
                _loaded.popitem(last=False)
        _loaded.move_to_end(key)
        return _loaded[key]


def _default_threads() -> int | None:
    """One thread where other tasks run beside this one; as torch has it in the main thread of a main process."""
    alone = threading.current_thread() is threading.main_thread() and multiprocessing.parent_process() is None
    return None if alone else 1
