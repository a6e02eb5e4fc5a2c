"""The data sets of the accuracy benchmarks: images, labels, and which of them are for training."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

import numpy as np

sys.path.append(str(Path(__file__).parents[1] / "paper"))

import loaders

NAMES = ("cifar10", "fashion_mnist", "view", "cats_vs_dogs", "covid19")
FASHION = Path("/usr/share/datasets/fashion-mnist")  # Debian's package dataset-fashion-mnist


@dataclass
class Data:
    """Images of one data set, the training ones first.

    Attributes
    ----------
    images : list of str or of ndarray
    labels : ndarray of int
    n_train : int
    classes : list of str
    """

    images: list
    labels: np.ndarray
    n_train: int
    classes: list[str]

    def task(self, setting: str, label: int) -> tuple[np.ndarray, np.ndarray]:
        """Positions of the normal training images, and whether each test image is normal."""
        train, test = self.labels[: self.n_train], self.labels[self.n_train :]
        if setting == "one class normal":
            return np.flatnonzero(train == label), test == label
        return np.flatnonzero(train != label), test != label


def assets() -> Path:
    """The folder of real weights and images."""
    folder = os.environ.get("SKL_TRANSFORMALY_ASSETS", "../shared")
    if not (Path(folder) / "data").is_dir():
        raise SystemExit(f"No data in {folder!r}: set SKL_TRANSFORMALY_ASSETS.")
    return Path(folder)


def load(name: str, *, fashion_train: int = 500, fashion_test: int | None = None) -> Data:
    """One data set; of Fashion-MNIST so many images a class."""
    if name == "cifar10":
        with np.load(assets() / "data" / "cifar10_subset.npz") as kept:
            images = [*kept["X_train"], *kept["X_test"]]
            labels = np.concatenate([kept["y_train"], kept["y_test"]]).astype(int)
            return Data(images, labels, len(kept["y_train"]), [str(c) for c in kept["class_names"]])
    if name == "fashion_mnist":
        whole = loaders.load("fashion_mnist", FASHION)
        parts = []
        for images, labels, number in (
            (whole.X_train, whole.y_train, fashion_train),
            (whole.X_test, whole.y_test, fashion_test),
        ):
            rng = np.random.default_rng(0)  # the same images as benchmarks/paper/tables.py draws
            chosen = [rng.permutation(np.flatnonzero(labels == c))[:number] for c in np.unique(labels)]
            rows = np.sort(np.concatenate(chosen))
            parts.append(([images[int(i)] for i in rows], np.asarray(labels)[rows]))
        (train, y_train), (test, y_test) = parts
        return Data([*train, *test], np.concatenate([y_train, y_test]), len(train), [str(c) for c in whole.class_names])
    root = assets() / "data" / name
    classes = sorted(folder.name for folder in (root / "train").iterdir())
    images, labels, n_train = [], [], 0
    for split in ("train", "test"):
        for number, label in enumerate(classes):
            files = sorted(str(path) for path in (root / split / label).rglob("*") if path.is_file())
            images += files
            labels += [number] * len(files)
        n_train = n_train or len(images)
    return Data(images, np.array(labels), n_train, classes)
