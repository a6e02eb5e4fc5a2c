"""Targets of growth with the number of images: memory, time, and workers of a cluster."""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import threading
import time
from functools import partial
from typing import Any

import numpy as np
from harness import Timing, noise, table, teacher

__all__ = ["growth", "memory", "workers"]

# Of the fit on workers: a teacher so small that 100,000 images take minutes, in float64, so that sums are exact
_SMALL = {"model": "test_vit", "image_size": 32, "precision": "float64"}
_PARTITION = 256
_WORKERS = 4


def memory(options: argparse.Namespace) -> str:
    """Growth of a fit's memory with the number of images."""
    context = multiprocessing.get_context("spawn")
    rows = []
    for model in options.models:
        for n in options.memory_images:
            receiver, sender = context.Pipe(duplex=False)
            process = context.Process(target=_peak, args=(model, options.precision, n, sender))
            process.start()
            sender.close()
            peaks = receiver.recv()
            process.join()
            rows.append([model, f"{n:,}", *(f"{peak:.0f} MiB" for peak in peaks)])
            print("#", *rows[-1], file=sys.stderr, flush=True)  # the last take an hour
    return (
        "### Memory of fit (target: 200 MiB whatever the number of images)\n\n"
        f"{table(['teacher', 'images', 'peak of anonymous memory', 'with mapped files'], rows)}\n\n"
        "Growth of a process's own memory in `TransformalyDetector.fit` with the defaults, the images, libraries and "
        "the loaded teacher aside."
    )


def _peak(model: str, precision: str, n: int, connection: Any) -> None:
    from skl_transformaly import TransformalyDetector

    images = noise(n)
    extractor = teacher(model, precision=precision)
    TransformalyDetector(extractor, random_state=0).fit(images[:64])  # what kernels keep for good
    before = _resident()  # of a heap without holes: a fit ends by returning what it has freed
    peaks, done = list(before), threading.Event()

    def watch() -> None:
        while not done.wait(0.02):
            peaks[:] = map(max, peaks, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    TransformalyDetector(extractor, random_state=0).fit(images)
    done.set()
    watcher.join()
    connection.send([peak - start for peak, start in zip(peaks, before)])


def _resident() -> tuple[float, float]:
    """MiB that this process asked for, and these with mapped files, which the system drops at need."""
    with open("/proc/self/status") as status:
        found = dict(line.split(":", 1) for line in status)
    return tuple(int(found[name].split()[0]) / 1024 for name in ("RssAnon", "VmRSS"))


def growth(options: argparse.Namespace) -> str:
    """Exponent of the time of fit in the number of images."""
    from skl_transformaly import TransformalyDetector

    numbers = options.growth_images
    images = noise(max(numbers))
    rows = []
    for model in options.models:
        detector = TransformalyDetector(teacher(model, precision=options.precision), random_state=0)
        detector.fit(images[:64])
        rounds = [[_seconds(partial(detector.fit, images[:n])) for n in numbers] for _ in range(options.growth_rounds)]
        exponents = Timing([_exponent(numbers, seconds) for seconds in rounds])
        shown = (Timing([seconds[i] for seconds in rounds]).show(1, "s", 1) for i in range(len(numbers)))
        rows.append([model, *shown, exponents.show(1, "", 3)])
    header = ["teacher", *(f"{n:,} images" for n in numbers), "exponent"]
    return (
        f"### Growth (target: exponent of at most 1.05)\n\n{table(header, rows)}\n\n`TransformalyDetector.fit` "
        f"with the defaults; exponent by least squares over logarithms; rounds: {options.growth_rounds}."
    )


def workers(options: argparse.Namespace) -> str:
    """Growth of a fit of students on dask workers, and whether they are those of one process."""
    import dask.array as da
    from distributed import Client, LocalCluster

    from skl_transformaly import RidgeStudents
    from skl_transformaly.distributed import fit_students

    model = {name: value for name, value in _SMALL.items() if name != "model"}
    students = RidgeStudents(extractor=teacher(_SMALL["model"], **model, device="cpu"))

    def partitioned(n: int) -> Any:
        sizes = [min(_PARTITION, n - start) for start in range(0, n, _PARTITION)]
        chunks = (tuple(sizes), (32,), (32,), (3,))
        return da.map_blocks(_block, chunks=chunks, dtype=np.uint8, meta=np.empty((0, 0, 0, 0), np.uint8))

    numbers, rounds = options.worker_images, []
    cluster = LocalCluster(
        n_workers=_WORKERS, threads_per_worker=1, processes=True, dashboard_address=None, memory_limit=0
    )
    with cluster, Client(cluster):
        fit_students(students, partitioned(_WORKERS * _PARTITION))  # loads what workers keep
        for _ in range(options.growth_rounds):
            rounds.append([_seconds(lambda n=n: fit_students(students, partitioned(n))) for n in numbers])
        fitted = fit_students(students, partitioned(max(numbers)))
    images = partitioned(max(numbers)).compute(scheduler="synchronous")
    alone = students.fit(images)
    difference = max(
        float(np.abs(found - expected).max() / np.abs(expected).max())
        for name in ("local_weights_", "context_weights_")
        for found, expected in zip(getattr(fitted, name), getattr(alone, name))
    )
    measured, expected = fitted.transform(images[:1000]), alone.transform(images[:1000])
    difference = max(difference, float(np.abs(measured / expected - 1).max()))
    rows = [[f"{n:,}", Timing([seconds[i] for seconds in rounds]).show(1, "s", 1)] for i, n in enumerate(numbers)]
    exponents = Timing([_exponent(numbers, seconds) for seconds in rounds])
    return (
        f"### Students fitted on {_WORKERS} dask workers (targets: exponent of at most 1.02; equal to one process to "
        f"1e-10)\n\n{table(['images', '`fit_students`'], rows)}\n\nExponent by least squares over logarithms: "
        f"{exponents.show(1, '', 3)}; rounds: {options.growth_rounds}. Largest relative difference of coefficients and "
        f"discrepancies to one process, on {max(numbers):,} images: {difference:.1e}. {_SMALL['model']} at "
        f"{_SMALL['image_size']} pixels in {_SMALL['precision']}, {len(alone.block_indices_)} students, partitions of "
        f"{_PARTITION} images that workers draw; a process with one thread for each worker."
    )


def _block(block_info: Any = None) -> np.ndarray:
    """Noise of one partition."""
    info = block_info[None]
    number, count = info["chunk-location"][0], info["chunk-shape"][0]
    return np.random.default_rng(number).integers(0, 256, (count, 32, 32, 3), dtype=np.uint8)


def _seconds(action: Any) -> float:
    start = time.perf_counter()
    action()
    return time.perf_counter() - start


def _exponent(numbers: list[int], seconds: list[float]) -> float:
    return float(np.polyfit(np.log(numbers), np.log(seconds), 1)[0])
