"""How many images does it take? AUROC, false alarms and recall against the number of training images.

    python benchmarks/accuracy/few.py --data view cats_vs_dogs cifar10 --draws 20 > benchmarks/accuracy/FEW.md

The teacher runs once over a data set. Each draw then fits what TransformalyDetector fits on the teacher's features, its
feature spaces and its threshold, on so many images of one class. Students are left out: they would run anew in each.
"""

from __future__ import annotations

import argparse
import platform

import numpy as np
import torch
from data import NAMES, load
from run import extractor
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize

import skl_transformaly
from skl_transformaly._fusion import held_out_threshold
from skl_transformaly._space import FeatureSpace
from skl_transformaly.images._images import as_images
from skl_transformaly.students._imitation import Comparer
from skl_transformaly.teacher._features import TEACHER_SPACES, TeacherFeatures

NUMBERS = (20, 40, 80, 160)
RATE = 0.05


def teacher_features(images: list, teacher: str, precision: str) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Features of all images in the teacher's spaces, and the sizes of their groups."""
    model = extractor(teacher, precision).fit(images[:2])
    found = TeacherFeatures(model, TEACHER_SPACES, len(images))
    compare = Comparer(model, None, collect=found.collect)
    for positions, pixels in as_images(images).batches(model.batch_size):
        compare(model.preprocess(pixels), positions)
    return found.features, found.sizes


def one(features: dict, sizes: dict, rows: np.ndarray, test: slice) -> tuple[np.ndarray, float]:
    """Scores of the test images, and the threshold."""
    score, held_out = 0.0, 0.0
    for name, z in features.items():
        space = FeatureSpace("auto").fit(z[rows], sizes=sizes[name])
        score = score + space.score_samples(z[test])
        held_out = held_out + space.held_out_parts_
    return score, held_out_threshold(np.sort(held_out), RATE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=["view", "cats_vs_dogs", "cifar10"])
    parser.add_argument("--teacher", nargs="+", choices=["vit_tiny", "bundled"], default=["vit_tiny"])
    parser.add_argument("--draws", type=int, default=20)
    parser.add_argument("--precision", default="auto")
    options = parser.parse_args()
    print(
        f"# Few images\n\nskl-transformaly {skl_transformaly.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.backends.cpu.get_cpu_capability()}. Means over classes and "
        f"{options.draws} draws, per cent; contamination is {RATE:.0%}. ± is two standard errors over all draws.\n"
    )
    print(
        "| teacher | data | images | AUROC | Ledoit-Wolf, unit length | new normal images flagged | anomalies flagged |"
    )
    print("|---|---|---|---|---|---|---|")
    for teacher in options.teacher:
        for name in options.data:
            data = load(name)
            features, sizes = teacher_features(data.images, teacher, options.precision)
            test = slice(data.n_train, None)
            unit = normalize(features["pretrained"].astype(np.float64))
            for n in NUMBERS:
                rows = []
                for label in range(len(data.classes)):
                    positions, normal = data.task("one class normal", label)
                    for draw in range(options.draws):
                        chosen = np.random.default_rng([label, draw]).permutation(positions)[:n]
                        score, threshold = one(features, sizes, chosen, test)
                        flagged = score < threshold
                        rival = -LedoitWolf().fit(unit[chosen]).mahalanobis(unit[test])
                        aurocs = [roc_auc_score(normal, s) for s in (score, rival)]
                        rows.append([*aurocs, flagged[normal].mean(), flagged[~normal].mean()])
                mean, error = np.mean(rows, axis=0), 2 * np.std(rows, axis=0) / np.sqrt(len(rows))
                cells = [f"{100 * m:.1f} ± {100 * e:.1f}" for m, e in zip(mean, error)]
                print(f"| {teacher} | {name} | {n} | " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
