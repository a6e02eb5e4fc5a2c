"""How long threads of OpenMP should wait awake for each other: a fit on a quiet machine, and beside one busy process.

    python benchmarks/speed/waiting.py

Each fit is a process of its own, which reads GOMP_SPINCOUNT when torch loads GCC's OpenMP. The command line sets 3000
(``skl_transformaly.__main__``); "default" leaves it to OpenMP. Other builds of torch, as on macOS, do not read it.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from harness import Timing, machine, table

FIT = """
import time, warnings
import numpy as np
from skl_transformaly import TransformalyDetector
warnings.simplefilter("ignore")
images = np.random.default_rng(0).integers(0, 256, (64, 224, 224, 3), dtype=np.uint8)
detector = TransformalyDetector("bundled", random_state=0).fit(images[:4])
start = time.perf_counter()
detector.fit(images)
print(time.perf_counter() - start)
"""
BUSY = "while True: pass"


def seconds(spins: str) -> float:
    """Of a fit to 64 images with the bundled teacher."""
    own = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in own}
    if spins != "default":
        environment["GOMP_SPINCOUNT"] = spins
    found = subprocess.run([sys.executable, "-c", FIT], env=environment, check=True, capture_output=True, text=True)
    return float(found.stdout)


def measure(counts: list[str], repeats: int) -> dict[str, Timing]:
    """Fits with each count in turn."""
    times: dict[str, list[float]] = {spins: [] for spins in counts}
    for _ in range(repeats):
        for spins in counts:
            times[spins].append(seconds(spins))
    return {spins: Timing(found) for spins, found in times.items()}


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--spins", nargs="+", default=["default", "30000", "3000", "0"], help="default: %(default)s")
    parser.add_argument("--repeats", type=int, default=2, help="default: %(default)s")
    options = parser.parse_args()
    quiet = measure(options.spins, options.repeats)
    with subprocess.Popen([sys.executable, "-c", BUSY]) as busy:
        try:
            beside = measure(options.spins, options.repeats)
        finally:
            busy.kill()
    rows = [[spins, quiet[spins].show(1, "s", 1), beside[spins].show(1, "s", 1)] for spins in options.spins]
    print(f"{machine()}\n\n    python benchmarks/speed/waiting.py\n")
    print(table(["GOMP_SPINCOUNT", "fit, quiet machine", "fit, beside a busy process"], rows))


if __name__ == "__main__":
    main()
