"""What solved students take on this processor besides the teacher: leaving images out, and solving the blocks.

    python benchmarks/speed/solving.py

Left out: 32 images of one block, with triangular systems solved by scipy's LAPACK or by torch's BLAS, as the library
does (``skl_transformaly.students._regression._solve_part``). Blocks: ten of them, solved one at a time or several
(``RidgeStudents._solution``).
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from unittest import mock

import numpy as np
import torch
from scipy.linalg import lapack
from torch import Tensor

sys.path.insert(0, str(Path(__file__).parent))

from harness import interleaved, machine, ratio, table

from skl_transformaly import RidgeStudents
from skl_transformaly.students import _regression, _ridge

IMAGES, TOKENS, BLOCKS = 32, 197, 10
# Places and channels of a block's map or tokens.
STUDIES = (
    ("ViT-Tiny/16", 197, 192),
    ("ViT-B/16", 197, 768),
    ("EfficientNet-lite0, block 3", 49, 80),
    ("EfficientNet-lite0, block 7", 49, 320),
)


def by_scipy(factors: Tensor, targets: Tensor) -> Tensor:
    """Solve systems (B, R, R) for targets (B, R, C), given their upper factors, by scipy's LAPACK."""
    pairs = zip(factors.numpy(), targets.numpy())
    return torch.from_numpy(np.stack([lapack.spotrs(factor.T, target, lower=1)[0] for factor, target in pairs]))


def left_out() -> list[list[str]]:
    """Rows of the first table."""
    rows = []
    for name, places, channels in STUDIES:
        mixed = torch.randn(IMAGES, places, places) / places**0.5
        systems = torch.eye(places) - 0.04 * mixed @ mixed.mT
        targets = torch.randn(IMAGES, places, channels)

        def solve(systems: Tensor = systems, targets: Tensor = targets) -> Tensor:
            return _regression._solve_each(systems.clone(), targets)

        times = interleaved({"scipy": mock.patch.object(_regression, "_substitute", by_scipy)(solve), "torch": solve})
        quotient = ratio(times["torch"], times["scipy"]).show(1, "", 2)
        rows.append([name, str(places), str(channels), times["scipy"].show(), times["torch"].show(), quotient])
    return rows


def blocks() -> list[list[str]]:
    """Rows of the second table."""
    rows = []
    for name, width in (("ViT-Tiny/16", 192), ("ViT-B/16", 768)):
        layout = _regression.Layout(True, 1, False, True, 1)
        sums = []
        for _ in range(BLOCKS):
            x = torch.randn(IMAGES, TOKENS, width)
            sums.append(_regression.Sums(layout, (0, 0)))
            sums[-1].add(sums[-1].products(x, x + torch.randn_like(x)))
        students = RidgeStudents(n_blocks=BLOCKS)
        students.block_indices_, students.extractor_ = np.arange(BLOCKS), None

        def solve(at_once: int, sums: list = sums, students: RidgeStudents = students) -> None:
            with mock.patch.object(_ridge, "_SOLVED_AT_ONCE", at_once):
                students._solution(dict(enumerate(sums)))

        times = interleaved({"one": partial(solve, 1), "several": partial(solve, _ridge._SOLVED_AT_ONCE)}, 3)
        quotient = ratio(times["several"], times["one"]).show(1, "", 2)
        rows.append([name, times["one"].show(1, "s"), times["several"].show(1, "s"), quotient])
    return rows


def main() -> None:
    """Print the tables."""
    print(f"{machine()}\n\n    python benchmarks/speed/solving.py\n")
    torch.manual_seed(0)
    header = ["block of", "places", "channels", f"{IMAGES} images by scipy", "by torch", "torch / scipy"]
    print(table(header, left_out()) + "\n")
    header = [f"{BLOCKS} blocks of", "one at a time", f"up to {_ridge._SOLVED_AT_ONCE}", "several / one"]
    print(table(header, blocks()))


if __name__ == "__main__":
    main()
