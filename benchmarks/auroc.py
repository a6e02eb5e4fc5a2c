"""Unimodal AUROC: each class in turn is normal, all test images are scored.

Prints, per class and on average, the AUROC of the embedding alone, the discrepancy alone, and both.

    python benchmarks/auroc.py digits
    python benchmarks/auroc.py covid19 --root DIR --weights FILE
    python benchmarks/auroc.py cifar10 --root FILE --weights FILE

``digits`` are scikit-learn's, with the bundled teacher unless another is named. ``covid19`` reads class folders
``train/CLASS`` and ``test/CLASS`` below --root. ``cifar10`` reads an .npz with X_train, y_train, X_test, y_test and
class_names.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector, __version__

Task = tuple[str, object, object, np.ndarray]  # name of the normal class, X_normal, X_test, is_normal


def digits(root: Path | None) -> Iterator[Task]:
    data = load_digits()
    X_train, X_test, y_train, y_test = train_test_split(
        (data.images / 16).astype(np.float32), data.target, test_size=0.5, random_state=0, stratify=data.target
    )
    for digit in range(10):
        yield str(digit), X_train[y_train == digit], X_test, y_test == digit


def covid19(root: Path) -> Iterator[Task]:
    classes = sorted(folder.name for folder in (root / "train").iterdir())
    test = [(path, name) for name in classes for path in sorted((root / "test" / name).iterdir())]
    for normal in classes:
        X_test = [path for path, _ in test]
        yield normal, root / "train" / normal, X_test, np.array([name == normal for _, name in test])


def cifar10(root: Path) -> Iterator[Task]:
    data = np.load(root)
    for label, name in enumerate(data["class_names"]):
        yield str(name), data["X_train"][data["y_train"] == label], data["X_test"], data["y_test"] == label


DATA = {"digits": digits, "covid19": covid19, "cifar10": cifar10}


def data_parser(description: str | None) -> argparse.ArgumentParser:
    """A parser that asks for the data and the teacher."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", choices=DATA)
    parser.add_argument("--root", type=Path, help="folder or file of the data")
    parser.add_argument("--teacher", help="timm name (default: vit_tiny_patch16_224; for digits the bundled one)")
    parser.add_argument("--weights", default="hub", help="'hub' or the path of the teacher's weights")
    return parser


def main() -> None:
    parser = data_parser(__doc__)
    parser.add_argument("--image-size", type=int, help="pixels (default: that of the weights; for digits 64)")
    parser.add_argument("--interpolation", choices=["bilinear", "bicubic"], help="default: that of the weights")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--explained-variance", type=float, default=0.9)
    parser.add_argument("--classes", type=int, help="only the first so many classes are normal in turn")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--paper", action="store_true", help="the paper's training of the students")
    options = parser.parse_args()
    if options.data == "digits" and options.teacher is None:
        options.teacher, options.weights = "tf_efficientnet_lite0", "bundled"
        options.image_size = options.image_size or 64
    elif options.root is None and options.data != "digits":
        parser.error(f"{options.data} needs --root")

    start = time.perf_counter()
    print(f"| {options.data}, normal class | embedding | discrepancy | both |\n|---|---|---|---|")
    results = []
    for seed in options.seeds:
        for number, (name, X_normal, X_test, is_normal) in enumerate(DATA[options.data](options.root)):
            if options.classes is not None and number >= options.classes:
                break
            extractor = TimmExtractor(
                options.teacher or "vit_tiny_patch16_224",
                weights=options.weights,
                image_size=options.image_size,
                interpolation=options.interpolation,
                precision=options.precision,
            )
            detector = TransformalyDetector(
                extractor,
                students=BlockStudents.paper() if options.paper else BlockStudents(),
                explained_variance=options.explained_variance,
                random_state=seed,
            ).fit(X_normal)
            parts = detector.explain(X_test, n_neighbors=1)
            row = [roc_auc_score(is_normal, parts[name]) for name in ("pretrained", "discrepancy", "score")]
            results.append(row)
            print("| {} | {:.3f} | {:.3f} | {:.3f} |".format(name, *row), flush=True)
    print("| mean | {:.3f} | {:.3f} | {:.3f} |".format(*np.mean(results, axis=0)))
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "scikit-learn"))
    print(
        f"\n{time.perf_counter() - start:.0f} s for fitting and scoring, {detector.extractor_.precision_}, "
        f"seeds {options.seeds}, Python {platform.python_version()}, skl-transformaly {__version__}, {packages}"
    )


if __name__ == "__main__":
    main()
