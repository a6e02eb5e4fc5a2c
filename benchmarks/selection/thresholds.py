"""False-positive rates on new normal images beside the rate that was promised: ConformalDetector and `contamination`.

    python benchmarks/selection/thresholds.py --covid19 DIR --cifar10 FILE --weights FILE --memory DIR

Each class in turn is normal; no anomaly takes part. Three tables of 200 random splits each:

1. One detector of both feature spaces a class, fitted once on 60 % of its training images. Its scores of the images
   held out are split at random, half to calibrate and half to be new. Resampled: who calibrates and who is new. Not
   resampled: what the students were trained on.
2. The pre-trained space alone, whose fit costs nothing, so everything is resampled: three quarters of the class's
   images, of training and test set together, are given to fit, the others are new.
3. As 2, but only training images are split and given to fit; new are the test images, always the same: what the promise
   is worth where exchangeability is not made by the split itself.

Intervals are 95 %: in 1 and 2 of the mean over splits of these images (Student's t), in 3 over test images.
Writes thresholds.md beside this file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import held_out
import numpy as np
from scipy import stats
from sklearn.base import BaseEstimator, OutlierMixin
from sklearn.frozen import FrozenEstimator
from tqdm import tqdm

from skl_transformaly import ConformalDetector
from skl_transformaly._fusion import held_out_threshold
from skl_transformaly._space import FeatureSpace

ALPHAS = (0.01, 0.05, 0.1)
WAYS = ("fitted scores", "split-conformal", "held-out scores")


class Scored(OutlierMixin, BaseEstimator):
    """A detector whose samples are their own scores."""

    def fit(self, X: Any, y: Any = None) -> Scored:
        """Learn nothing."""
        return self

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Give the samples."""
        return X[:, 0]

    def __sklearn_is_fitted__(self) -> bool:
        return True


def pretrained_space() -> FeatureSpace:
    """What TransformalyDetector(feature_spaces=["pretrained"]) does to embeddings."""
    return FeatureSpace("auto")


def flagged(way: str, estimator: Any, X: np.ndarray, new: np.ndarray, seed: int) -> dict[float, np.ndarray]:
    """Which of the new images are flagged at each rate; rates that `way` refuses are absent."""
    if way == "split-conformal":
        return rates(ConformalDetector(estimator, alpha=0.5, calibration=1 / 3, random_state=seed).fit(X), new)
    fitted = estimator.fit(X)
    scores = fitted.score_samples(new)
    if way == "fitted scores":
        return {alpha: scores < np.percentile(fitted.score_samples(X), 100 * alpha) for alpha in ALPHAS}
    return {
        alpha: scores < held_out_threshold(np.sort(fitted.held_out_parts_), alpha)
        for alpha in ALPHAS
        if alpha * (len(X) + 1) >= 1
    }


def rates(detector: ConformalDetector, new: np.ndarray) -> dict[float, np.ndarray]:
    """Flags at every rate from one fit, by p-values, which do not depend on `alpha`."""
    n, p = len(detector.calibration_scores_), detector.p_values(new)
    return {alpha: p <= alpha for alpha in ALPHAS if 1 / (n + 1) <= alpha}


def held_out_scores(fitted: Any, case: held_out.Case, splits: int, seed: int) -> dict[tuple[str, float], np.ndarray]:
    """Rates in each split of table 1."""
    training = fitted.score_as_new(case.fit)
    scores = np.concatenate([fitted.score_samples(case.validation), fitted.score_samples(case.test_normal)])[:, None]
    found: dict[tuple[str, float], list[float]] = {}
    for split in range(splits):
        order = np.random.default_rng([seed, split]).permutation(len(scores))
        calibration, new = scores[order[: len(order) // 2]], scores[order[len(order) // 2 :]]
        detector = ConformalDetector(FrozenEstimator(Scored()), alpha=0.5, calibration=(calibration,)).fit(
            training[:, None]
        )
        for alpha, flags in rates(detector, new).items():
            found.setdefault(("split-conformal", alpha), []).append(flags.mean())
        for alpha in ALPHAS:
            below = new[:, 0] < np.percentile(training, 100 * alpha)
            found.setdefault(("fitted scores", alpha), []).append(below.mean())
            below = new[:, 0] < held_out_threshold(np.sort(fitted.training_scores_), alpha)
            found.setdefault(("held-out scores", alpha), []).append(below.mean())
    return {key: np.array(values) for key, values in found.items()}


def refits(pool: np.ndarray, new: np.ndarray | None, splits: int, seed: int) -> dict[tuple[str, float], np.ndarray]:
    """Rates in each split of table 2; with `new`, flags of each of those images in each split, for table 3."""
    found: dict[tuple[str, float], list[Any]] = {}
    for split in range(splits):
        order = np.random.default_rng([seed, split]).permutation(len(pool))
        given = order[: 3 * len(order) // 4]
        rest = pool[order[len(given) :]] if new is None else new
        for way in WAYS:
            for alpha, flags in flagged(way, pretrained_space(), pool[given], rest, split).items():
                found.setdefault((way, alpha), []).append(flags.mean() if new is None else flags)
    return {key: np.array(values) for key, values in found.items()}


def cell(values: np.ndarray | None, *, spread: bool = True) -> str:
    """Mean and its interval, in per cent, and where nine in ten single splits are."""
    if values is None:
        return "refused"
    half = stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values))
    text = f"{100 * values.mean():.1f} ± {100 * half:.1f}"
    low, high = 100 * np.quantile(values, (0.05, 0.95))
    return text + (f" ({low:.0f} to {high:.0f})" if spread else "")


def table(rows: dict[tuple[str, str], dict], ways: tuple[str, ...], *, spread: bool = True) -> list[str]:
    lines = ["| data | class | promised | " + " | ".join(ways) + " |", "|---|---|---|" + "---|" * len(ways)]
    for data in dict.fromkeys(data for data, _ in rows):
        of_data = {name: row for (other, name), row in rows.items() if other == data}
        if spread:  # per split, then over classes: classes share no image, but splits share the classes
            keys = set.intersection(*(set(row) for row in of_data.values()))
            of_data["**mean**"] = {key: np.mean([row[key] for row in of_data.values()], axis=0) for key in keys}
        else:
            keys = set.intersection(*(set(row) for row in of_data.values()))
            of_data["**all**"] = {key: np.concatenate([row[key] for row in of_data.values()]) for key in keys}
        for name, row in of_data.items():
            for alpha in ALPHAS:
                cells = [cell(row.get((way, alpha)), spread=spread) for way in ways]
                lines.append(f"| {data} | {name} | {100 * alpha:.0f} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    held_out.add_options(parser)
    parser.add_argument("--splits", type=int, default=200)
    options = parser.parse_args()
    once: dict[tuple[str, str], dict] = {}
    again: dict[tuple[str, str], dict] = {}
    apart: dict[tuple[str, str], dict] = {}
    sizes = []
    for case in tqdm(list(held_out.cases(options))):
        key = (case.data, case.name)
        fitted = held_out.detector(options).fit(case.fit)
        once[key] = held_out_scores(fitted, case, options.splits, options.seed)
        training = np.vstack([held_out.spaces(fitted, X)[0] for X in (case.fit, case.validation)])
        test = held_out.spaces(fitted, case.test_normal)[0]
        again[key] = refits(np.vstack([training, test]), None, options.splits, options.seed)
        apart[key] = {
            k: flags.mean(axis=0) for k, flags in refits(training, test, options.splits, options.seed).items()
        }
        n = (len(case.fit), len(case.validation) + len(test), len(training) + len(test))
        sizes.append(
            f"{case.data} {case.name}: 1. {n[0]} to fit, {n[1] // 2} to calibrate, {n[1] - n[1] // 2} new; 2. "
            f"{3 * n[2] // 4} to fit and calibrate, {n[2] - 3 * n[2] // 4} new; "
            f"3. {3 * len(training) // 4} and {len(test)}"
        )
    lines = [
        "# Promised and observed false-positive rates",
        "",
        "Per cent of new normal images that are flagged, teacher ViT-Tiny: the mean over "
        f"{options.splits} random splits with its 95 % interval, and in brackets the range that 90 % of the single "
        "splits lie in. 'fitted scores' is a quantile of the training images' scores after the fit; 'held-out scores', "
        "the default, is one of their scores without their own part in it. 'refused': with so few calibration "
        "images ConformalDetector raises an error instead of promising.",
        "",
        "## 1. Both feature spaces, fitted once; who calibrates and who is new is drawn",
        "",
        *table(once, WAYS),
        "",
        "## 2. The pre-trained space, fitted anew in each split",
        "",
        "All three get the same three quarters of a class's images; split-conformal sets a third of these aside.",
        "",
        *table(again, WAYS),
        "",
        "## 3. The pre-trained space, fitted on training images alone; new are the test images",
        "",
        "Only the training images are split. The interval is over test images, each with its mean over the splits.",
        "",
        *table(apart, WAYS, spread=False),
        "",
        "Images: " + "; ".join(sizes) + ".",
    ]
    held_out.report(Path(__file__).with_name("thresholds.md"), lines, options)


if __name__ == "__main__":
    main()
