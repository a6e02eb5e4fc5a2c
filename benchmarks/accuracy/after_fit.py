"""After the first fit: folders that are not clean, and anomalies that are known.

    python benchmarks/accuracy/after_fit.py --data view cats_vs_dogs cifar10 --students view cats_vs_dogs

The teacher runs once over a data set. What TransformalyDetector does with its features is then done for each class as
normal: `trim` on training images into which others were mixed, and weights of the spaces from known anomalies, over
several draws. Students would run anew in each fit: `--students` adds tables of whole detectors with them, of one draw.
"""

from __future__ import annotations

import argparse
import platform
import warnings

import numpy as np
import torch
from data import NAMES, Data, load
from few import teacher_features
from run import extractor
from shared_pass import parts_of_many
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.neighbors import LocalOutlierFactor, NearestNeighbors
from sklearn.preprocessing import normalize

import skl_transformaly
from skl_transformaly import TransformalyDetector
from skl_transformaly._cleaning import least_normal
from skl_transformaly._fusion import held_out_threshold
from skl_transformaly._space import FeatureSpace
from skl_transformaly._weighting import space_weights

SHARES = (0.0, 0.01, 0.05, 0.1)
COUNTS = (0, 5, 10, 50)
DRAWS = 3
RATE = 0.05


def parts_of(features: dict, sizes: dict, rows: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Held-out parts of the rows that the spaces are fitted on, and parts of the others."""
    spaces = {name: FeatureSpace("auto").fit(z[rows], sizes=sizes[name]) for name, z in features.items()}
    held_out = np.column_stack([space.held_out_parts_ for space in spaces.values()])
    return held_out, np.column_stack([space.score_samples(features[name][others]) for name, space in spaces.items()])


def unclean(data: Data, features: dict, sizes: dict, label: int, share: float, seed: int) -> dict[str, float]:
    """Accuracy of a fit on images of one class into which a share of others was mixed."""
    rng = np.random.default_rng(seed)
    train = data.labels[: data.n_train]
    good = np.flatnonzero(train == label)
    count = round(share * len(good) / (1 - share))
    rows = np.concatenate([good, rng.choice(np.flatnonzero(train != label), count, replace=False)])
    planted = np.arange(len(rows)) >= len(good)
    test = np.arange(data.n_train, len(data.labels))
    normal = data.labels[test] == label
    mixed = {name: z[rows] for name, z in features.items()}
    held_out, scores = parts_of(features, sizes, rows, test)
    left_out = least_normal(mixed, sizes, np.arange(len(rows)), max(1.5 * share, 0.05), normalize=True)
    kept = np.setdiff1d(np.arange(len(rows)), left_out)
    held_out_of_kept, trimmed = parts_of(features, sizes, rows[kept], np.concatenate([test, rows]))
    found = {}
    for name, own, tested in (("plain", held_out, scores), ("trimmed", held_out_of_kept, trimmed[: len(test)])):
        total = tested.sum(axis=1)
        flagged = total < held_out_threshold(np.sort(own.sum(axis=1)), RATE)
        found[name] = roc_auc_score(normal, total)
        found[f"{name}, anomalies"], found[f"{name}, normal"] = flagged[~normal].mean(), flagged[normal].mean()
    if count:
        z = normalize(features["pretrained"][rows])
        ranked = {
            "held-out scores": -held_out.sum(axis=1),
            "after trimming": -trimmed[len(test) :].sum(axis=1),
            "IsolationForest": -IsolationForest(random_state=0).fit(z).score_samples(z),
            "LocalOutlierFactor": -LocalOutlierFactor().fit(z).negative_outlier_factor_,
            "kNN (5)": NearestNeighbors(n_neighbors=6).fit(z).kneighbors(z)[0][:, -1],
        }
        found.update({f"AP {name}": average_precision_score(planted, rank) for name, rank in ranked.items()})
    return found


def known(data: Data, features: dict, sizes: dict, label: int) -> dict[tuple[str, int], list[tuple[float, float]]]:
    """AUROC, and recall at 5 % of held-out normal images flagged, by kind of test anomaly and number of known ones."""
    train, test = data.labels[: data.n_train], np.arange(data.n_train, len(data.labels))
    pool = np.flatnonzero(train != label)
    held_out, parts = parts_of(features, sizes, np.flatnonzero(train == label), np.concatenate([pool, test]))
    known_parts, test_parts = parts[: len(pool)], parts[len(pool) :]
    found: dict[tuple[str, int], list[tuple[float, float]]] = {}
    rng = np.random.default_rng(label)
    for kind in np.unique(train[train != label]):
        for count in COUNTS:
            for _ in range(DRAWS if count else 1):
                chosen = rng.permutation(np.flatnonzero(train[pool] == kind))[:count]
                weights = space_weights(held_out, known_parts[chosen])
                threshold = held_out_threshold(np.sort(held_out @ weights), RATE)
                scores = test_parts @ weights
                labels = data.labels[test]
                for name, anomalies in (
                    ("that kind", labels == kind),
                    ("other kinds", ~np.isin(labels, (kind, label))),
                ):
                    if not anomalies.any():
                        continue
                    rows = anomalies | (labels == label)
                    auroc = roc_auc_score(labels[rows] == label, scores[rows])
                    found.setdefault((name, count), []).append((auroc, float((scores[anomalies] < threshold).mean())))
    return found


def whole(data: Data, label: int, options: argparse.Namespace) -> dict[str, float]:
    """AUROC of detectors with students: clean, mixed, trimmed, and with known anomalies of the next class."""
    rng = np.random.default_rng(label)
    train, test = data.labels[: data.n_train], np.arange(data.n_train, len(data.labels))
    good, others = np.flatnonzero(train == label), np.flatnonzero(train != label)
    mixed = np.concatenate([good, rng.choice(others, round(0.05 * len(good) / 0.95), replace=False)])
    kind = (label + 1) % len(data.classes)
    pool = rng.permutation(np.flatnonzero(train == kind))[: COUNTS[-1]]
    detectors = []
    for rows, trim in ((good, 0.0), (mixed, 0.0), (mixed, 0.075)):
        detector = TransformalyDetector(extractor(options.teacher, options.precision), trim=trim, random_state=0)
        detectors.append(detector.fit([data.images[i] for i in rows]))
    images = [data.images[i] for i in np.concatenate([test, pool])]
    parts = [np.column_stack(list(found.values())) for found in parts_of_many(detectors, images)]
    normal = data.labels[test] == label
    found = {
        name: roc_auc_score(normal, own[: len(test)].sum(axis=1))
        for name, own in zip(("clean", "5 % mixed in", "the same, trimmed"), parts)
    }
    for count in COUNTS:
        weights = space_weights(detectors[0].training_parts_, parts[0][len(test) :][:count])
        for name, rows in (
            ("that kind", np.isin(data.labels[test], (label, kind))),
            ("other kinds", data.labels[test] != kind),
        ):
            if not normal[rows].all():
                found[f"{name}, {count} known"] = roc_auc_score(normal[rows], (parts[0][: len(test)] @ weights)[rows])
    return found


def print_whole(options: argparse.Namespace) -> None:
    """The tables of whole detectors."""
    print(
        "\n## The same with students\n\nWhole detectors, one draw a class: AUROC on clean test images; then with known "
        "anomalies of the class that comes next.\n"
    )
    columns: list[str] = []
    for name in options.students:
        data = load(name)
        rows = [whole(data, label, options) for label in range(len(data.classes))]
        if not columns:
            columns = list(rows[0])
            print(f"| data | {' | '.join(columns)} |\n|{'---|' * (len(columns) + 1)}")
        shown = [f"{100 * np.mean([row[key] for row in rows]):.1f}" if key in rows[0] else "-" for key in columns]
        print(f"| {name} | {' | '.join(shown)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=["view", "cats_vs_dogs", "cifar10"])
    parser.add_argument("--teacher", choices=["vit_tiny", "bundled"], default="vit_tiny")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--students", nargs="*", choices=NAMES, default=[], help="data sets for tables with students")
    options = parser.parse_args()
    warnings.simplefilter("ignore", UserWarning)  # of few known anomalies
    print(
        f"# After the first fit\n\nskl-transformaly {skl_transformaly.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.backends.cpu.get_cpu_capability()}, teacher {options.teacher}, its "
        "feature spaces alone. Per cent, means over classes as normal and draws."
    )
    dirty, weighed = [], []
    for name in options.data:
        data = load(name)
        features, sizes = teacher_features(data.images, options.teacher, options.precision)
        classes = range(len(data.classes))
        for share in SHARES:
            rows = [
                unclean(data, features, sizes, c, share, seed) for c in classes for seed in range(3 if share else 1)
            ]
            dirty.append((name, share, {key: np.mean([row[key] for row in rows]) for key in rows[0]}))
        found: dict = {}
        for c in classes:
            for key, values in known(data, features, sizes, c).items():
                found.setdefault(key, []).extend(values)
        weighed += [(name, *key, np.mean(values, axis=0)) for key, values in found.items()]
    ranks = ("held-out scores", "after trimming", "IsolationForest", "LocalOutlierFactor", "kNN (5)")
    print(
        "\n## Folders that are not clean\n\nOther classes' images are mixed into the training images. AUROC on clean "
        "test images, and the shares of their anomalies and of their normal images that are flagged at "
        f"`contamination={RATE}`: of a plain fit, and of one with `trim` at 1.5 times the share that is there, at "
        "least 5 %.\n"
    )
    measures = ("AUROC", "anomalies flagged", "normal flagged")
    print("| data | mixed in | " + " | ".join(f"{what}: plain | trimmed" for what in measures) + " |")
    print("|---" * (2 + 2 * len(measures)) + "|")
    for name, share, row in dirty:
        keys = [f"{fit}{what}" for what in ("", ", anomalies", ", normal") for fit in ("plain", "trimmed")]
        print(f"| {name} | {share:.0%} | {' | '.join(f'{100 * row[key]:.1f}' for key in keys)} |")
    print("\nAverage precision of the mixed-in images among the training images.\n")
    print(f"| data | mixed in | {' | '.join(ranks)} |\n|---|---|{'---|' * len(ranks)}")
    for name, share, row in dirty:
        if share:
            shown = [f"{100 * row[f'AP {rank}']:.1f}" for rank in ranks]
            print(f"| {name} | {share:.0%} | {' | '.join(shown)} |")
    print(
        f"\n## Known anomalies\n\nOf one kind, another class, for each kind and {DRAWS} draws: `fit(X, y)` weighs the "
        "spaces by them. Recall is the share of anomalies that is flagged at `contamination=0.05`.\n"
    )
    print("| data | anomalies to be found | known | AUROC | recall |\n|---|---|---|---|---|")
    for name, kind, count, (auroc, recall) in sorted(weighed, key=lambda row: (row[0], row[1], row[2])):
        print(f"| {name} | of {kind} | {count} | {100 * auroc:.1f} | {100 * recall:.1f} |")
    if options.students:
        print_whole(options)


if __name__ == "__main__":
    main()
