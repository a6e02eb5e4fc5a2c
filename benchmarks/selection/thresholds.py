"""False-positive rates on new normal images, beside the rate that was promised.

    python benchmarks/selection/thresholds.py

Each class in turn is normal; no anomaly takes part. All images of the class, of training and test set together, are
split at random: three quarters are given to fit, the others are new. So everything is resampled, and new images come
from where the given ones come from. Two tables:

1. The default detector without students, whose fit on features that are at hand costs little: 200 splits, with three
   ways to set a threshold. Split-conformal sets a third of the given images aside.
2. The whole default detector, students included: fewer splits, one way.

The data are those of ``benchmarks/accuracy``. Writes thresholds.md beside this file.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from scipy import stats

sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))

import torch
from data import NAMES, Data, load
from few import teacher_features
from run import extractor

import skl_transformaly
from skl_transformaly import TransformalyDetector
from skl_transformaly._fusion import held_out_threshold, p_values
from skl_transformaly._space import FeatureSpace

RATES = (0.01, 0.05, 0.1)
Flags = dict[tuple[str, float], float]


class Spaces:
    """The default detector's spaces without students, fitted on features that are at hand."""

    def __init__(self, features: dict[str, np.ndarray], sizes: dict[str, list[int]], rows: np.ndarray):
        self._features = features
        self._spaces = {name: FeatureSpace("auto").fit(z[rows], sizes=sizes[name]) for name, z in features.items()}
        self.held_out = sum(space.held_out_parts_ for space in self._spaces.values())

    def scores(self, rows: np.ndarray) -> np.ndarray:
        """Scores as new images."""
        return sum(space.score_samples(self._features[name][rows]) for name, space in self._spaces.items())


def promised(rate: float, n: int) -> bool:
    """Whether n images can keep it."""
    return rate * (n + 1) >= 1


def three_ways(features: dict, sizes: dict, given: np.ndarray, new: np.ndarray) -> Flags:
    """Share of new images that is flagged by each way to set a threshold, at each rate that it can keep."""
    whole = Spaces(features, sizes, given)
    fitted, scores = whole.scores(given), whole.scores(new)
    third = len(given) // 3
    proper = Spaces(features, sizes, given[third:])
    p = p_values(proper.scores(new), proper.scores(given[:third]))
    found = {}
    for rate in RATES:
        found["fitted scores", rate] = (scores < np.quantile(fitted, rate)).mean()
        if promised(rate, third):
            found["split-conformal", rate] = (p <= rate).mean()
        if promised(rate, len(given)):
            found["held-out scores", rate] = (scores < held_out_threshold(np.sort(whole.held_out), rate)).mean()
    return found


def with_students(data: Data, precision: str, given: np.ndarray, new: np.ndarray) -> Flags:
    """The same for the whole default detector."""
    detector = TransformalyDetector(extractor("vit_tiny", precision)).fit([data.images[i] for i in given])
    scores, held_out = detector.score_samples([data.images[i] for i in new]), np.sort(detector.training_scores_)
    return {
        ("held-out scores", rate): (scores < held_out_threshold(held_out, rate)).mean()
        for rate in RATES
        if promised(rate, len(given))
    }


def over_splits(positions: np.ndarray, splits: int, flagged: Callable[[np.ndarray, np.ndarray], Flags]) -> dict:
    """Shares in each split, by way and rate."""
    found: dict[tuple[str, float], list[float]] = {}
    for split in range(splits):
        order = np.random.default_rng(split).permutation(positions)
        for key, share in flagged(*np.split(order, [3 * len(order) // 4])).items():
            found.setdefault(key, []).append(share)
    return {key: np.array(shares) for key, shares in found.items()}


def cell(shares: np.ndarray | None) -> str:
    """Mean and its 95 % interval (Student's t), in per cent, and where nine in ten single splits lie."""
    if shares is None:
        return "-"
    half = stats.t.ppf(0.975, len(shares) - 1) * shares.std(ddof=1) / np.sqrt(len(shares))
    low, high = 100 * np.quantile(shares, (0.05, 0.95))
    return f"{100 * shares.mean():.1f} ± {100 * half:.1f} ({low:.0f} to {high:.0f})"


def table(found: dict[tuple[str, str], dict], sizes: dict[tuple[str, str], int]) -> list[str]:
    ways = list(dict.fromkeys(way for row in found.values() for way, _ in row))
    lines = ["| data | class | given | promised | " + " | ".join(ways) + " |", "|---|---|---|---|" + "---|" * len(ways)]
    for name in dict.fromkeys(name for name, _ in found):
        rows = {label: row for (other, label), row in found.items() if other == name}
        given = {label: str(3 * sizes[name, label] // 4) for label in rows}
        if len(rows) > 1:
            common = set.intersection(*(set(row) for row in rows.values()))
            rows["**mean**"] = {key: np.mean([row[key] for row in rows.values()], axis=0) for key in common}
        for label, row in rows.items():
            for rate in RATES:
                cells = " | ".join(cell(row.get((way, rate))) for way in ways)
                lines.append(f"| {name} | {label} | {given.get(label, '')} | {100 * rate:.0f} | {cells} |")
    return lines


def report(
    options: argparse.Namespace,
    without: dict[tuple[str, str], dict],
    whole: dict[tuple[str, str], dict],
    numbers: dict[tuple[str, str], int],
) -> str:
    arguments = shlex.join(sys.argv[1:]).partition("--out")[0].strip()  # which folder is everybody's own
    lines = [
        "# Promised and observed false-positive rates",
        "",
        "Per cent of new normal images that are flagged, teacher ViT-Tiny: the mean over random splits with its 95 % "
        "interval, and in brackets the range that 90 % of the single splits lie in. 'fitted scores' is a quantile of "
        "the given images' scores after the fit; 'held-out scores', the default, one of their scores without their own "
        "part in it; 'split-conformal' is ConformalDetector with a third of the given images set aside. -: so few "
        "images cannot keep the rate, which ConformalDetector refuses and the detector warns about.",
        "",
        f"## 1. The default detector without students, {options.splits} splits",
        "",
        *table(without, numbers),
    ]
    if whole:
        title = f"## 2. The whole default detector, {options.student_splits} splits"
        lines += ["", title, "", *table(whole, numbers)]
    lines += [
        "",
        f"`python benchmarks/selection/thresholds.py {arguments}`",
        "",
        f"skl-transformaly {skl_transformaly.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.backends.cpu.get_cpu_capability()}.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=["covid19", "cats_vs_dogs", "view", "cifar10"])
    parser.add_argument("--classes", type=int, default=3, help="of each data set, at most")
    parser.add_argument("--splits", type=int, default=200)
    parser.add_argument("--with-students", nargs="*", choices=NAMES, default=["covid19", "cats_vs_dogs"])
    parser.add_argument("--student-splits", type=int, default=10)
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).with_name("thresholds.md"))
    options = parser.parse_args()
    without: dict[tuple[str, str], dict] = {}
    whole: dict[tuple[str, str], dict] = {}
    numbers: dict[tuple[str, str], int] = {}
    for name in options.data:
        data = load(name)
        classes = data.classes[: options.classes]
        features, sizes = teacher_features(data.images, "vit_tiny", options.precision)
        for label, title in enumerate(classes):
            positions = np.flatnonzero(data.labels == label)
            numbers[name, title] = len(positions)
            without[name, title] = over_splits(positions, options.splits, partial(three_ways, features, sizes))
            print(name, title, {key: round(100 * v.mean(), 1) for key, v in without[name, title].items()}, flush=True)
            if name in options.with_students:
                whole[name, title] = over_splits(
                    positions,
                    options.student_splits,
                    partial(with_students, data, options.precision),
                )
            options.out.write_text(report(options, without, whole, numbers))  # hours in all: each class counts


if __name__ == "__main__":
    main()
