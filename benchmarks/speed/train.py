"""What training students of a model in stages costs a processor, and what the system's pages have to do with it.

    python benchmarks/speed/train.py [--model bundled] [--images 24] [--repeats 3]

Processor time of `BlockStudents.fit` on one thread, which other programs on the machine hardly change, with freed
memory kept for the next layer (`own_memory`) and without, in turns; and how many pages the system had to find.
"""

from __future__ import annotations

import argparse
import resource
import statistics
from unittest import mock

import torch
from harness import machine, noise, table, teacher

from skl_transformaly import BlockStudents
from skl_transformaly.teacher import _kernels


def usage() -> tuple[float, float, int]:
    """Seconds of the program and of the system, and pages, so far."""
    found = resource.getrusage(resource.RUSAGE_SELF)
    return found.ru_utime, found.ru_stime, found.ru_minflt


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="bundled")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--images", type=int, default=24)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(1)
    extractor = teacher(options.model, precision=options.precision)
    images = noise(options.images)
    found: dict[str, list[tuple[float, ...]]] = {"kept": [], "given back": []}
    for _ in range(options.repeats):
        for how, spent in found.items():
            libc = _kernels._glibc() if how == "kept" else None
            before = usage()
            with mock.patch.object(_kernels, "_glibc", lambda libc=libc: libc):
                BlockStudents(random_state=0).fit(images, extractor=extractor)
            spent.append(tuple(b - a for a, b in zip(before, usage())))
    print(f"{machine()}\n\n{options.images} images, {options.model}, {extractor.precision_}, 8 epochs\n")
    rows = []
    for how, spent in found.items():
        user, system, pages = (statistics.median(values) / options.images for values in zip(*spent))
        rows.append([how, f"{user:.2f} s", f"{system:.2f} s", f"{pages:,.0f}"])
    print(table(["freed memory is", "program, an image", "system, an image", "pages, an image"], rows))


if __name__ == "__main__":
    main()
