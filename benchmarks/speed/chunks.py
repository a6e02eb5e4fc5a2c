"""Teacher and students on many images at a time, or on as many as a C library has memory at hand for.

    python benchmarks/speed/chunks.py [--images 64] [--repeats 5]

Scoring by a stage model in float32: in chunks whose largest tensor is at most 32 MiB (`TimmExtractor.chunk_size_`),
and in whole batches of 32. "system" is processor time spent in the kernel, which finds, clears and maps pages. Both
ways alternate; median, minimum and maximum.
"""

from __future__ import annotations

import argparse
import resource
import time

import numpy as np
from harness import machine, noise, table

from skl_transformaly import BlockStudents, TimmExtractor
from skl_transformaly.teacher import _extractor


def measure(model: str, weights: str, n: int, repeats: int) -> list[list[str]]:
    images = noise(n)
    extractor = TimmExtractor(model, weights=weights, precision="float32").fit(images)
    students = BlockStudents(max_epochs=1, random_state=0).fit(images[:8], extractor=extractor)
    bounds = {"chunks": _extractor.REUSED_BYTES, "whole batches": 2**40}
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in bounds}
    for _ in range(repeats + 1):
        for name, bound in bounds.items():
            _extractor.REUSED_BYTES = bound
            before, start = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
            students.transform(images)
            seconds = time.perf_counter() - start
            after = resource.getrusage(resource.RUSAGE_SELF)
            found[name].append((1e3 * seconds / n, 1e3 * (after.ru_stime - before.ru_stime) / n))
    rows = []
    for name, times in found.items():
        _extractor.REUSED_BYTES = bounds[name]
        wall, system = np.array(times[1:]).T
        rows.append(
            [model, name, str(min(32, extractor.chunk_size_))]
            + [f"{np.median(t):.1f} ({t.min():.1f} to {t.max():.1f})" for t in (wall, system)]
        )
    _extractor.REUSED_BYTES = bounds["chunks"]
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    rows = measure("tf_efficientnet_lite0", "bundled", options.images, options.repeats)
    print(machine())
    print(table(["teacher", "in", "at a time", "ms an image", "of these system"], rows))


if __name__ == "__main__":
    main()
