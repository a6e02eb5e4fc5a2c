"""Ten thousand small scorings, as a service makes them in a day: does anything grow?

    python benchmarks/faults/leak.py [--calls 10000] [--fits 60]

Inputs of every kind take turns, broken ones among them. After a warm-up, memory (what the process asked for,
RssAnon), open files, threads and objects of Python are looked at from time to time; a quantity leaks if its least value
in the last third of the looks exceeds its greatest in the first third by more than :data:`ALLOWED`. Repeated fits are
looked at in the same way.
"""

from __future__ import annotations

import argparse
import gc
import io
import json
import os
import pickle
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.base import clone

from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector

# Growth that is not called a leak. An allocator's pools settle over the first thousands of calls.
ALLOWED = {"memory, MiB": 3.0, "open files": 0, "threads": 0, "objects": 50}


def detector() -> TransformalyDetector:
    """A small detector of random weights, in the precision that is the default."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    extractor = TimmExtractor("test_vit", weights=None, image_size=32, device="cpu")
    students = BlockStudents(n_blocks=2, max_epochs=1)
    return TransformalyDetector(extractor, students=students, random_state=0).fit(list(images))


def calls(fitted: TransformalyDetector, folder: Path) -> list[Callable[[], object]]:
    """What takes turns."""
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 256, (32, 40, 3), dtype=np.uint8)
    Image.fromarray(picture).save(folder / "whole.png")
    (folder / "broken.png").write_bytes((folder / "whole.png").read_bytes()[:500])
    skipping = pickle.loads(pickle.dumps(fitted)).set_params(on_error="skip")
    whole = (folder / "whole.png").read_bytes()

    def refused(X: object) -> None:
        try:
            fitted.score_samples(X)
        except ValueError:
            return
        raise AssertionError("was to be refused")

    return [
        lambda: fitted.score_samples([picture]),
        lambda: fitted.score_samples(rng.integers(0, 256, (int(rng.integers(1, 5)), 20, 24, 3), dtype=np.uint8)),
        lambda: fitted.predict([folder / "whole.png"]),
        lambda: fitted.decision_function([Image.open(io.BytesIO(whole))]),
        lambda: fitted.score_samples(torch.from_numpy(picture.transpose(2, 0, 1).copy())[None]),
        lambda: refused([folder / "broken.png"]),
        lambda: refused(np.full((1, 8, 8, 3), np.nan)),
        lambda: skipping.score_samples([folder / "whole.png", folder / "broken.png"]),
        lambda: fitted.anomaly_map([picture]),
        lambda: fitted.explain([picture]),
    ]


def look() -> dict[str, float]:
    gc.collect()
    with open("/proc/self/status") as status:
        anonymous = next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024
    return {
        "memory, MiB": anonymous,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": threading.active_count(),
        "objects": len(gc.get_objects()),
    }


def watch(call: Callable[[int], object], times: int, looks: int = 30, warm_up: float = 0.2) -> dict[str, float]:
    """Growth of each quantity over ``call(0)``, ``call(1)``, ...; negative where it shrank."""
    seen: list[dict[str, float]] = []
    first = int(times * warm_up)
    every = max(1, (times - first) // looks)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for i in range(times):
            call(i)
            if i >= first and (i - first) % every == 0:
                seen.append(look())
    third = len(seen) // 3
    return {
        name: min(values[name] for values in seen[-third:]) - max(values[name] for values in seen[:third])
        for name in ALLOWED
    }


def scorings(times: int) -> dict[str, float]:
    """Growth over so many scorings."""
    with tempfile.TemporaryDirectory() as folder:
        turns = calls(detector(), Path(folder))
        return watch(lambda i: turns[i % len(turns)](), times)


def fits(times: int) -> dict[str, float]:
    """Growth over so many fits."""
    fitted = detector()
    images = np.random.default_rng(2).integers(0, 256, (12, 32, 32, 3), dtype=np.uint8)
    return watch(lambda i: clone(fitted).fit(images), times, looks=max(6, times // 3), warm_up=0.3)


def leaks(growth: dict[str, float]) -> list[str]:
    """Names of what grew more than it may."""
    return [name for name, grown in growth.items() if grown > ALLOWED[name]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000, help="scorings; 0: none")
    parser.add_argument("--fits", type=int, default=60, help="0: none")
    parser.add_argument("--threads", type=int, default=1, help="of torch; 0: as many as it takes by itself")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    start = time.monotonic()
    result = {"scorings": options.calls, "fits": options.fits, "leaks": 0}
    for what, times, grow in (("scorings", options.calls, scorings), ("fits", options.fits, fits)):
        if times == 0:
            continue
        growth = grow(times)
        found = leaks(growth)
        result["leaks"] += len(found)
        result[f"growth over {what}"] = {name: round(grown, 2) for name, grown in growth.items()}
        print(f"{times} {what}:", end=" ")
        print(
            ", ".join(f"{name} {grown:+.2f}" for name, grown in growth.items()), f"leaks: {found or 'none'}", flush=True
        )
    result["seconds"] = round(time.monotonic() - start, 1)
    print("RESULT", json.dumps(result))
    return int(bool(result["leaks"]))


if __name__ == "__main__":
    sys.exit(main())
