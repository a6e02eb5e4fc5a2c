"""AUROC by how much the discrepancy counts beside the teacher's spaces, each of which counts 1; the default is 0.5.

    python benchmarks/accuracy/shares.py --data cifar10 view fashion_mnist
    python benchmarks/accuracy/shares.py --data view --setting all-but-one

Classes with even numbers take turns, on which defaults are chosen.
"""

from __future__ import annotations

import argparse
import os
import warnings

import numpy as np
from data import NAMES, load
from run import SETTINGS, extractor
from shared_pass import parts_of_many
from sklearn.metrics import roc_auc_score

from skl_transformaly import TransformalyDetector

SHARES = (0, 0.25, 0.5, 0.75, 1, 1.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=["cifar10", "fashion_mnist", "view"])
    parser.add_argument("--setting", choices=list(SETTINGS), default="one")
    parser.add_argument("--classes", nargs="+", type=int, help="their positions (default: the even ones)")
    parser.add_argument("--teacher", choices=["vit_tiny", "bundled"], default="vit_tiny")
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    print("| data | setting | classes | " + " | ".join(map(str, SHARES)) + " |")
    print("|---" * (3 + len(SHARES)) + "|")
    for name in options.data:
        data = load(name, fashion_test=200)
        labels = options.classes or range(0, len(data.classes), 2)
        test = data.images[data.n_train :]
        aurocs = []
        for label in labels:
            positions, normal = data.task(SETTINGS[options.setting], label)
            detector = TransformalyDetector(extractor(options.teacher, options.precision), random_state=0)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                detector.fit([data.images[i] for i in positions])
            (parts,) = parts_of_many([detector], test)
            discrepancy = parts.pop("discrepancy") / detector.weights_[-1]
            aurocs.append([roc_auc_score(normal, sum(parts.values()) + share * discrepancy) for share in SHARES])
        cells = " | ".join(f"{value:.2f}" for value in 100 * np.mean(aurocs, axis=0))
        print(f"| {name} | {SETTINGS[options.setting]} | {len(aurocs)} | {cells} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    main()
