"""One detector a class, fitted on part of its normal images; the others are held out for the studies beside this file.

A detector is fitted on 60 % of the class's training images, drawn at random. Held out are the other 40 % ("validation")
and the images of the same class in the test set. Students are trained for as many blocks as any study needs; the last m
of them are what a detector with ``n_blocks=m`` would have trained, so all settings come from one training.
"""

from __future__ import annotations

import argparse
import os
import platform
import shlex
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.model_selection import train_test_split

from skl_transformaly import BlockStudents, GaussianDensity, TimmExtractor, TransformalyDetector, __version__

N_BLOCKS = 10
FIT_SHARE = 0.6

Spaces = tuple[np.ndarray, np.ndarray]  # embeddings (n, D) and discrepancies (n, N_BLOCKS), float64


@dataclass
class Case:
    """A class of a data set that is normal, and what others hold."""

    data: str
    name: str
    fit: Any
    validation: Any
    test_normal: Any
    test_anomalies: Any


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--covid19", type=Path, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--cifar10", type=Path, help=".npz with X_train, y_train, X_test, y_test and class_names")
    parser.add_argument("--classes", type=int, default=10, help="CIFAR-10 classes that are normal in turn")
    parser.add_argument("--anomalies", type=int, default=30, help="CIFAR-10 test images of each other class")
    parser.add_argument("--weights", default="hub", help="of vit_tiny_patch16_224: 'hub' or a path")
    parser.add_argument("--interpolation", choices=["bilinear", "bicubic"], default="bilinear")
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--memory", type=Path, required=True, help="folder for embeddings and trained students")
    parser.add_argument("--seed", type=int, default=0)


def cases(options: argparse.Namespace) -> Iterator[Case]:
    if options.covid19:
        names = sorted(folder.name for folder in (options.covid19 / "train").iterdir())
        files = {
            (part, name): sorted((options.covid19 / part / name).iterdir())
            for part in ("train", "test")
            for name in names
        }
        for name in names:
            anomalies = [path for other in names if other != name for path in files["test", other]]
            yield Case("covid19", name, *_halves(files["train", name], options.seed), files["test", name], anomalies)
    if options.cifar10:
        data = np.load(options.cifar10)
        X_train, y_train, X_test, y_test = (data[key] for key in ("X_train", "y_train", "X_test", "y_test"))
        for label, name in list(enumerate(data["class_names"]))[: options.classes]:
            others = [np.flatnonzero(y_test == other)[: options.anomalies] for other in range(10) if other != label]
            halves = _halves(X_train[y_train == label], options.seed)
            yield Case("cifar10", str(name), *halves, X_test[y_test == label], X_test[np.concatenate(others)])


def _halves(X: Any, seed: int) -> tuple[Any, Any]:
    return tuple(train_test_split(X, train_size=FIT_SHARE, random_state=seed))


def detector(options: argparse.Namespace) -> TransformalyDetector:
    """The detector of the study: the paper's two spaces, with shrunk Gaussians; found again in --memory."""
    extractor = TimmExtractor(
        "vit_tiny_patch16_224",
        weights=options.weights,
        interpolation=options.interpolation,
        precision=options.precision,
    )
    return TransformalyDetector.paper().set_params(
        extractor=extractor,
        students=BlockStudents(n_blocks=N_BLOCKS),
        density=GaussianDensity(shrinkage=0.3, target="diagonal"),
        discrepancy_density=GaussianDensity(shrinkage=0.3, target="diagonal"),
        memory=str(options.memory),
        random_state=options.seed,
    )


def spaces(fitted: TransformalyDetector, X: Any) -> Spaces:
    """Embeddings before whitening, and discrepancies."""
    found = fitted._measure(fitted._images(X, reset=False))
    return found["pretrained"], found["discrepancy"]


def report(path: Path, lines: list[str], options: argparse.Namespace) -> None:
    """Print the lines and write them to `path`, with what they come from: command, versions, seed."""
    command = ["python", os.path.relpath(sys.argv[0]), *sys.argv[1:]]
    for at, word in enumerate(command):  # folders are everybody's own
        if os.path.isabs(word):
            command[at] = Path(word).name.upper().partition(".")[0]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "scikit-learn", "numpy"))
    lines = [
        *lines,
        "",
        f"Command: `{shlex.join(command)}`. Seed {options.seed}. skl-transformaly {__version__}, {packages}, Python "
        f"{platform.python_version()}.",
    ]
    text = "\n".join(lines) + "\n"
    print(text)
    path.write_text(text)
