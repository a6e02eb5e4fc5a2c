"""False-positive rates on new normal images where students are trained, beside the rate that was promised.

    python benchmarks/selection/trained_students.py

Trained students cannot be left out in closed form, as those of the default can (thresholds.py). Held-out discrepancies
come from three more sets of students instead, each trained on two thirds of the images, in as many steps. Here the
discrepancy is the only feature space, so that nothing else keeps the promise. Each class of CIFAR-10 in turn is normal;
at random, so many of its images are given to fit, and all others are new. The teacher is the ViT-Tiny of
``benchmarks/accuracy`` at 64 pixels, of which training takes a tenth of the time. Writes trained_students.md beside
this file.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))

from data import load
from run import extractor
from thresholds import cell

import skl_transformaly
from skl_transformaly import BlockStudents, RidgeStudents, TransformalyDetector
from skl_transformaly._fusion import held_out_threshold

RATES = (0.05, 0.1, 0.2, 0.5)
STUDENTS: dict[str, Callable[[int], Any]] = {
    "trained (`BlockStudents`)": lambda blocks: BlockStudents(n_blocks=blocks),
    "in closed form (`RidgeStudents`)": lambda blocks: RidgeStudents(n_blocks=blocks),
}


def flagged(images: list[Any], given: np.ndarray, new: np.ndarray, students: Any, precision: str) -> list[float]:
    """Shares of the new images that are flagged by held-out scores, at each rate; then by fitted scores."""
    teacher = extractor("vit_tiny", precision).set_params(image_size=64)
    detector = TransformalyDetector(teacher, feature_spaces=["discrepancy"], students=students, random_state=0)
    detector.fit([images[i] for i in given])
    scores = detector.score_samples([images[i] for i in new])
    fitted = detector.score_as_new([images[i] for i in given])
    held_out = np.sort(detector.training_scores_)
    return [
        *(float((scores < held_out_threshold(held_out, rate)).mean()) for rate in RATES),
        *(float((scores < np.quantile(fitted, rate)).mean()) for rate in RATES),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--classes", type=int, nargs="+", default=[0, 2, 4], help="their positions")
    parser.add_argument("--given", type=int, default=60, help="images given to fit")
    parser.add_argument("--splits", type=int, default=8, help="of each class")
    parser.add_argument("--blocks", type=int, default=4, help="so many of the last ones have a student")
    parser.add_argument("--precision", default="float32")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("trained_students.md"))
    options = parser.parse_args()
    data = load("cifar10")
    found: dict[str, list[list[float]]] = {name: [] for name in STUDENTS}
    for split in range(options.splits):
        for label in options.classes:
            order = np.random.default_rng([label, split]).permutation(np.flatnonzero(data.labels == label))
            given, new = order[: options.given], order[options.given :]
            for name, make in STUDENTS.items():
                found[name].append(flagged(data.images, given, new, make(options.blocks), options.precision))
        options.out.write_text(report(found, options))


def report(found: dict[str, list[list[float]]], options: argparse.Namespace) -> str:
    arguments = shlex.join(sys.argv[1:]).partition("--out")[0].strip()  # which folder is everybody's own
    fits = len(next(iter(found.values())))
    lines = [
        "# Promised and observed false-positive rates of students",
        "",
        "Per cent of new normal images that are flagged by the discrepancy alone, after a fit to "
        f"{options.given} images of a class of CIFAR-10 at 64 pixels: the mean over {fits} fits "
        f"({len(options.classes)} classes) with its 95 % interval, and in brackets the range that 90 % of them lie in. "
        "'held-out scores', the default, are of students that have not seen the image; 'fitted scores' of those that "
        "have.",
        "",
        "| students | promised | held-out scores | fitted scores |",
        "|---|---|---|---|",
    ]
    for name, rows in found.items():
        shares = np.array(rows).T
        for rate, held_out, fitted in zip(RATES, shares, shares[len(RATES) :]):
            lines.append(f"| {name} | {100 * rate:.0f} | {cell(held_out)} | {cell(fitted)} |")
    lines += [
        "",
        f"`{f'python benchmarks/selection/trained_students.py {arguments}'.strip()}`",
        "",
        f"skl-transformaly {skl_transformaly.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.backends.cpu.get_cpu_capability()}.",
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
