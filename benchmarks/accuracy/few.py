"""How many images does it take? AUROC, false alarms and recall against the number of training images.

    python benchmarks/accuracy/few.py
    python benchmarks/accuracy/few_picture.py

The first command adds rows to few.csv, goes on where it stopped, and writes FEW.md from all rows; the second one draws
docs/pictures/how_many.png from them.

The teacher runs once over a data set. Each draw then fits what TransformalyDetector fits on the teacher's features, its
feature spaces and its threshold, on so many images of one class. Students are left out: they would run anew in each.
"""

from __future__ import annotations

import argparse
import csv
import os
import platform
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from data import NAMES, Data, load
from run import extractor
from sklearn.covariance import LedoitWolf
from sklearn.metrics import roc_auc_score
from sklearn.preprocessing import normalize

import skl_transformaly
from skl_transformaly._fusion import held_out_threshold
from skl_transformaly._space import FeatureSpace
from skl_transformaly.images._images import as_images
from skl_transformaly.students._imitation import Comparer
from skl_transformaly.teacher._features import TEACHER_SPACES, TeacherFeatures, missing_spaces

NUMBERS = (10, 20, 40, 80, 160, 300, 1000)
RATE = 0.05
DATA = ("view", "cats_vs_dogs", "cifar10", "fashion_mnist")
TEACHERS = ("vit_tiny", "bundled")
MEASURED = ("AUROC", "Ledoit-Wolf", "false alarms", "same folder", "recall")
FIELDS = (
    "teacher",
    "data",
    "images",
    "fits",
    "AUROC",
    "Ledoit-Wolf",
    "false alarms",
    "nine of ten fits",
    "same folder",
    "recall",
)
# Fewer images that were not drawn say too little.
LEAST_REST = 20
HEAD = """\
# How many images does it take?

Rows of few.csv, by

    {command}
    python benchmarks/accuracy/few_picture.py

skl-transformaly {ours}, torch {torch}, Python {python}, {processor}. One class is normal. Means over classes and
draws of the training images, per cent, with `contamination={rate}` and without students; ± is two standard errors of
the mean, from the spread over draws of the same class. Ledoit-Wolf: AUROC of the Mahalanobis distance by this
covariance, on embeddings of unit length. False alarms: normal test images that are flagged, and between which shares
nine of ten fits lie; the same folder: training images that were not drawn and are flagged, which differ from those
drawn by nothing but chance. Recall: anomalies that are flagged. If a class has no more images than a row asks for,
there is one draw.

"""


def teacher_features(images: list, teacher: str, precision: str) -> tuple[dict[str, np.ndarray], dict[str, list[int]]]:
    """Features of all images in the teacher's spaces, and the sizes of their groups."""
    model = extractor(teacher, precision).fit(images[:2])
    missing = missing_spaces(model)
    found = TeacherFeatures(model, [space for space in TEACHER_SPACES if space not in missing], len(images))
    compare = Comparer(model, None, collect=found.collect)
    for positions, pixels in as_images(images).batches(model.batch_size):
        compare(model.preprocess(pixels), positions)
    return found.features, found.sizes


def one(features: dict, sizes: dict, rows: np.ndarray, new: np.ndarray) -> tuple[np.ndarray, float]:
    """Scores of new images, and the threshold."""
    score, held_out = 0.0, 0.0
    for name, z in features.items():
        space = FeatureSpace("auto").fit(z[rows], sizes=sizes[name])
        score = score + space.score_samples(z[new])
        held_out = held_out + space.held_out_parts_
    return score, held_out_threshold(np.sort(held_out), RATE)


def measure(data: Data, features: dict, sizes: dict, n: int, draws: int) -> Iterator[list[list[float]]]:
    """For each class, what MEASURED names in each draw of `n` of its training images."""
    test = np.arange(data.n_train, len(data.labels))
    unit = normalize(features["pretrained"].astype(np.float64))
    for label in range(len(data.classes)):
        positions, normal = data.task("one class normal", label)
        found = []
        for draw in range(draws if n < len(positions) else 1):
            chosen = np.random.default_rng([label, draw]).permutation(positions)[:n]
            rest = np.setdiff1d(positions, chosen)
            score, threshold = one(features, sizes, chosen, np.concatenate([test, rest]))
            score, flagged, of_rest = score[: len(test)], *np.split(score < threshold, [len(test)])
            rival = -LedoitWolf().fit(unit[chosen]).mahalanobis(unit[test])
            aurocs = [roc_auc_score(normal, s) for s in (score, rival)]
            same = of_rest.mean() if len(rest) >= LEAST_REST else np.nan
            found.append([*aurocs, flagged[normal].mean(), same, flagged[~normal].mean()])
        yield found


def summary(classes: list[list[list[float]]]) -> dict[str, str]:
    """A row's means, each with its error, and the range of false alarms, in per cent."""
    fits = 100 * np.concatenate(classes)
    texts = [f"{mean:.1f}" for mean in fits.mean(axis=0)]
    if len(fits) > len(classes):
        # classes are the same in all rows: only the draws are chance
        spread = np.mean([np.var(100 * np.array(found), axis=0, ddof=1) for found in classes], axis=0)
        texts = [f"{text} ± {error:.1f}" for text, error in zip(texts, 2 * np.sqrt(spread / len(fits)))]
    low, high = np.quantile(fits[:, MEASURED.index("false alarms")], [0.05, 0.95])
    texts = ["-" if text.startswith("nan") else text for text in texts]
    return {"fits": str(len(fits)), **dict(zip(MEASURED, texts)), "nine of ten fits": f"{low:.1f} to {high:.1f}"}


def read(path: Path) -> list[dict[str, str]]:
    """Rows that are there already."""
    return list(csv.DictReader(path.open(encoding="utf-8"))) if path.exists() else []


def fit(options: argparse.Namespace, path: Path) -> None:
    """Measure the rows that are missing, and write each to the file as soon as it is there."""
    there = {(row["teacher"], row["data"], int(row["images"])) for row in read(path)}
    for teacher in options.teacher:
        for name in options.data:
            data = load(name, fashion_train=max(options.numbers), fashion_test=options.fashion_test)
            smallest = np.bincount(data.labels[: data.n_train]).min()
            todo = [n for n in options.numbers if n <= smallest and (teacher, name, n) not in there]
            if not todo:
                continue
            features, sizes = teacher_features(data.images, teacher, options.precision)
            for n in todo:
                found = summary(list(measure(data, features, sizes, n, options.draws)))
                with path.open("a", newline="", encoding="utf-8") as file:
                    writer = csv.DictWriter(file, FIELDS)
                    if file.tell() == 0:
                        writer.writeheader()
                    writer.writerow({"teacher": teacher, "data": name, "images": n, **found})
                print(teacher, name, n, found["AUROC"], flush=True)


def table(rows: list[dict[str, str]]) -> str:
    """The rows in Markdown."""
    lines = [FIELDS, ["---"] * len(FIELDS), *([row[name] for name in FIELDS] for row in rows)]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=DATA)
    parser.add_argument("--teacher", nargs="+", choices=TEACHERS, default=TEACHERS)
    parser.add_argument("--numbers", nargs="+", type=int, default=NUMBERS, help="of images, as far as a class has them")
    parser.add_argument("--draws", type=int, default=20, help="of the training images, for each class and number")
    parser.add_argument("--fashion-test", type=int, default=200, help="test images a class of Fashion-MNIST")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent, help="the folder of few.csv and FEW.md")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    fit(options, options.out / "few.csv")
    rows = read(options.out / "few.csv")
    used = {key: " ".join(dict.fromkeys(row[key] for row in rows)) for key in ("data", "teacher")}
    head = HEAD.format(
        command=f"python benchmarks/accuracy/few.py --data {used['data']} --teacher {used['teacher']} "
        f"--draws {options.draws}",
        ours=skl_transformaly.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        processor=torch.backends.cpu.get_cpu_capability(),
        rate=RATE,
    )
    (options.out / "FEW.md").write_text(head + table(rows), encoding="utf-8")


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    main()
