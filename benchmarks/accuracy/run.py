"""AUROC of the default detector, its spaces and simple rivals, for each class of each data set.

    python benchmarks/accuracy/run.py fit --data cifar10 view --setting one --out OUT
    python benchmarks/accuracy/run.py tables --out OUT

`fit` adds rows to OUT/rows.csv whenever the classes that share a pass (`--at-a-time`) are done, and goes on where it
stopped; `tables` prints them. Choices were made on the classes with even numbers of cifar10, fashion_mnist and view.
Where others were looked at as well, NOTES.md says so.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import os
import platform
import time
import warnings
from pathlib import Path

import numpy as np
import torch
from data import NAMES, Data, assets, load
from shared_pass import parts_of_many
from sklearn.covariance import LedoitWolf
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import normalize

import skl_transformaly
from skl_transformaly import RidgeStudents, TimmExtractor, TransformalyDetector

SETTINGS = {"one": "one class normal", "all-but-one": "all but one normal"}
FIELDS = (
    "data",
    "setting",
    "teacher",
    "class",
    "method",
    "auroc",
    "flagged_normal",
    "flagged_anomalies",
    "n",
    "seconds",
    "computed",
)
WHOLE = "all spaces"
RIVALS = (
    "Mahalanobis, Ledoit-Wolf",
    "Mahalanobis, Ledoit-Wolf, unit length",
    "kNN (2), unit length",
    "IsolationForest",
)
CHOSEN_ON = ("cifar10", "fashion_mnist", "view")


def extractor(name: str, precision: str, image_size: int | None = None) -> TimmExtractor:
    if name == "bundled":
        return TimmExtractor("tf_efficientnet_lite0", weights="bundled", precision=precision, image_size=image_size)
    weights = assets() / "weights" / "vit_tiny_patch16_224.safetensors"
    return TimmExtractor(
        "vit_tiny_patch16_224", weights=weights, interpolation="bilinear", precision=precision, image_size=image_size
    )


def rivals(train: np.ndarray, test: np.ndarray) -> dict[str, np.ndarray]:
    """Scores of five lines of scikit-learn each, on embeddings; higher is more normal."""
    unit, unit_test = normalize(train), normalize(test)
    return {
        "Mahalanobis, Ledoit-Wolf": -LedoitWolf().fit(train).mahalanobis(test),
        "Mahalanobis, Ledoit-Wolf, unit length": -LedoitWolf().fit(unit).mahalanobis(unit_test),
        "kNN (2), unit length": -NearestNeighbors(n_neighbors=2).fit(unit).kneighbors(unit_test)[0].mean(axis=1),
        "IsolationForest": IsolationForest(random_state=0).fit(train).score_samples(test),
    }


class Rows:
    """A CSV of results, which is written a class at a time."""

    def __init__(self, folder: Path):
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / "rows.csv"
        self.rows = list(csv.DictReader(self.path.open())) if self.path.exists() else []

    def has(self, **fields) -> bool:
        """Whether there is a row with these fields."""
        return any(all(row[k] == str(v) for k, v in fields.items()) for row in self.rows)

    def add(self, **fields) -> None:
        """Write a row through to the disk."""
        row = {name: str(fields.get(name, "")) for name in FIELDS}
        self.rows.append(row)
        with self.path.open("a", newline="") as file:
            writer = csv.DictWriter(file, FIELDS)
            if file.tell() == 0:
                writer.writeheader()
            writer.writerow(row)


def fit(options: argparse.Namespace) -> None:
    rows = Rows(options.out)
    for name in options.data:
        data = load(name, fashion_test=options.fashion_test)
        for setting in (SETTINGS[key] for key in options.setting):
            if setting == "all but one normal" and len(data.classes) < 3:
                continue
            todo = [
                label
                for label in range(len(data.classes))
                if not rows.has(data=name, setting=setting, teacher=options.teacher, **{"class": data.classes[label]})
            ]
            for start in range(0, len(todo), options.at_a_time):
                study(options, rows, name, data, setting, todo[start : start + options.at_a_time])


def study(options, rows: Rows, name: str, data: Data, setting: str, labels: list[int]) -> None:
    """Fit detectors of some classes, and score the test images by all of them in one pass."""
    detectors, seconds = [], []
    for label in labels:
        positions, _ = data.task(setting, label)
        start = time.perf_counter()
        detector = TransformalyDetector(
            extractor(options.teacher, options.precision, options.image_size),
            students=RidgeStudents(),
            feature_spaces="auto" if options.students else "teacher",
            random_state=0,
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detectors.append(detector.fit([data.images[i] for i in positions]))
        seconds.append(time.perf_counter() - start)
    test = data.images[data.n_train :]
    embeddings = detectors[0].extractor_.transform(test)
    for label, detector, parts, took in zip(labels, detectors, parts_of_many(detectors, test), seconds):
        positions, normal = data.task(setting, label)
        fields = {"data": name, "setting": setting, "teacher": options.teacher, "class": data.classes[label]}
        fields["n"] = len(positions)
        whole = WHOLE if options.students else "all spaces but discrepancy"
        scores = {whole: sum(parts.values()), **parts}
        if options.students:
            scores["all spaces but discrepancy"] = sum(v for k, v in parts.items() if k != "discrepancy")
        flagged = scores[whole] < detector.offset_
        scores.update(rivals(detector.training_embeddings_, embeddings))
        for method, score in scores.items():
            extra = {}
            if method == whole:
                extra = {"flagged_normal": flagged[normal].mean(), "flagged_anomalies": flagged[~normal].mean()}
                extra["seconds"] = round(took, 1)
            extra["computed"] = time.strftime("%Y-%m-%d", time.gmtime())
            rows.add(**fields, method=method, auroc=roc_auc_score(normal, score), **extra)
        print(name, setting, data.classes[label], f"{100 * roc_auc_score(normal, scores[whole]):.1f}", flush=True)


def tables(options: argparse.Namespace) -> None:
    rows = Rows(options.out).rows
    print(
        "# Accuracy of the defaults\n\n"
        "Written by `python benchmarks/accuracy/run.py tables` from rows.csv, which "
        "`python benchmarks/accuracy/run.py fit --precision float32 --fashion-test 200` (with `--teacher bundled` for "
        "the second teacher) adds to; settings that no row is there for were not run yet. What was tried besides is in "
        "NOTES.md.\n"
    )
    print(
        f"skl-transformaly {skl_transformaly.__version__}, torch {torch.__version__}, numpy {np.__version__}, Python "
        f"{platform.python_version()}, {torch.backends.cpu.get_cpu_capability()}"
    )
    teachers = list(dict.fromkeys(row["teacher"] for row in rows))
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for teacher in teachers:
        print(
            f"\n### Teacher: {teacher}\n\nMean AUROC over classes, per cent; in brackets over those with odd numbers. "
            "Lift: of all spaces over the pretrained one, the embedding. Beside the best rival: all spaces less the "
            "best of the rivals' means.\n"
        )
        columns = [WHOLE, "lift", "beside the best rival", *(method for method in methods if method != WHOLE)]
        print("| data | setting | classes | " + " | ".join(columns) + " |\n|" + "---|" * (len(columns) + 3))
        flagged = []
        for name, setting in itertools.product(NAMES, SETTINGS.values()):
            mine = [r for r in rows if (r["teacher"], r["data"], r["setting"]) == (teacher, name, setting)]
            if not mine:
                continue
            classes = list(dict.fromkeys(row["class"] for row in mine))
            means = {method: np.mean(_values(mine, method, classes)) for method in (WHOLE, "pretrained", *RIVALS)}
            cells = {method: _mean(mine, method, classes, name) for method in methods}
            cells["lift"] = f"{100 * (means[WHOLE] - means['pretrained']):+.1f}"
            best = max(means[rival] for rival in RIVALS)
            cells["beside the best rival"] = f"{100 * (means[WHOLE] - best):+.1f}"
            print(f"| {name} | {setting} | {len(classes)} | " + " | ".join(cells[column] for column in columns) + " |")
            flagged.append(f"| {name} | {setting} | " + " | ".join(_flagged(mine)) + " |")
        print(
            "\nShare of new images that are flagged at contamination 0.05, per cent; mean over classes, and of the "
            "class with the fewest flagged anomalies. Computed: days; rows of an earlier one are of an earlier version "
            "of the library.\n"
        )
        header = ["data", "setting", "normal", "anomalies", "fewest", "images a fit", "seconds a fit", "computed"]
        print("| " + " | ".join(header) + " |\n|" + "---|" * len(header))
        print("\n".join(flagged))
    from few import read, table  # which imports this file

    if by_number := read(options.out / "few.csv"):
        print(
            "\n### By the number of normal images\n\nWithout students; written by `python benchmarks/accuracy/few.py`, "
            "whose FEW.md says what the columns are.\n"
        )
        print(table(by_number), end="")


def _flagged(rows: list[dict]) -> list[str]:
    whole = [row for row in rows if row["flagged_normal"]]
    normal, anomalies = (np.array([float(r[k]) for r in whole]) for k in ("flagged_normal", "flagged_anomalies"))
    sizes, took = (np.mean([float(r[k]) for r in whole]) for k in ("n", "seconds"))
    days = sorted({row["computed"] for row in rows})
    return [
        f"{100 * normal.mean():.1f}",
        f"{100 * anomalies.mean():.1f}",
        f"{100 * anomalies.min():.1f}",
        f"{sizes:.0f}",
        f"{took:.0f}",
        days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}",
    ]


def _values(rows: list[dict], method: str, classes: list[str]) -> list[float]:
    return [float(r["auroc"]) for label in classes for r in rows if r["class"] == label and r["method"] == method]


def _mean(rows: list[dict], method: str, classes: list[str], name: str) -> str:
    values = _values(rows, method, classes)
    if not values:
        return "-"
    text = f"{100 * np.mean(values):.1f}"
    return f"{text} ({100 * np.mean(values[1::2]):.1f})" if name in CHOSEN_ON and len(values) > 1 else text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", nargs="?", choices=["fit", "tables"], default="tables")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--setting", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--teacher", choices=["vit_tiny", "bundled"], default="vit_tiny")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--image-size", type=int, default=None, help="pixels (default: that of the weights)")
    parser.add_argument("--fashion-test", type=int, default=None, help="test images a class of Fashion-MNIST; else all")
    parser.add_argument("--at-a-time", type=int, default=10, help="classes that share a pass over the test images")
    parser.add_argument("--no-students", dest="students", action="store_false")
    options = parser.parse_args()
    {"fit": fit, "tables": tables}[options.command](options)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    main()
