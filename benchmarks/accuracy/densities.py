"""What was tried for densities, feature spaces and their sum, on the teacher's features.

    python benchmarks/accuracy/densities.py > benchmarks/accuracy/DENSITIES.md

The teacher is the ViT-Tiny of run.py, and runs once over a data set; its classes with even numbers, on which defaults
are chosen, take turns. Mean AUROC over these of

1. the embedding alone, by density, and classes and layers alone, by how they are made;
2. embedding, classes and layers together, by density;
3. the same three spaces with the default density, by how their parts become one score.

Where all classes but one are normal, so many training images of each are taken as `--samples` says.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from data import NAMES, Data, load
from few import teacher_features
from run import SETTINGS
from scipy import stats
from scipy.special import logsumexp, softmax
from sklearn.base import BaseEstimator, clone
from sklearn.cluster import KMeans
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from tried import some_of_each

import skl_transformaly
from skl_transformaly import AutoDensity, GaussianDensity, KNNDensity, LocalKNNDensity
from skl_transformaly._density import held_out_scores, location_and_spread
from skl_transformaly._space import FeatureSpace

HEAD = """\
# Densities, spaces and sums

Mean AUROC, per cent, over the classes with even numbers, on which defaults are chosen, by

    python benchmarks/accuracy/densities.py{arguments}

Up to 300 training and 100 to 120 test images a class; where all but one class are normal, {samples} training images of
each. `AutoDensity` has fewer than 20 neighbours of fewer than 400 images. skl-transformaly {ours}, torch {torch},
Python {python}, {processor}, {precision}."""
BESIDE = ("pretrained", "classes", "layers")
TEMPERATURE = 2.0  # of the space "classes"
LEAST = 1e-12  # of what logarithms and roots are taken of


class Together(BaseEstimator):
    """The weighted mean of several log-densities, each standardised over held-out samples, as in AutoDensity."""

    def __init__(self, parts: Sequence[Any], shares: Sequence[float]):
        self.parts = parts
        self.shares = shares

    def fit(self, X: np.ndarray, y: Any = None) -> Together:
        """Fit the density."""
        self.parts_ = [clone(part).fit(X) for part in self.parts]
        held_out = [held_out_scores(part, X) for part in self.parts_]
        self.scales_ = [location_and_spread(scores) for scores in held_out]
        self.held_out_scores_ = self._mean(held_out)
        return self

    def _mean(self, scores: Sequence[np.ndarray]) -> np.ndarray:
        columns = zip(self.shares, scores, self.scales_)
        return sum(share * (values - location) / spread for share, values, (location, spread) in columns)

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Log-densities, up to a constant."""
        return self._mean([part.score_samples(X) for part in self.parts_])


class Clusters(BaseEstimator):
    """Several means with one shared covariance, shrunk by Ledoit and Wolf."""

    def __init__(self, n_clusters: int = 10):
        self.n_clusters = n_clusters

    def fit(self, X: np.ndarray, y: Any = None) -> Clusters:
        """Fit the density."""
        found = KMeans(min(self.n_clusters, len(X) // 2), n_init=1, random_state=0).fit(X)
        self.means_, self.shares_ = found.cluster_centers_, np.bincount(found.labels_) / len(X)
        self.within_ = GaussianDensity().fit(X - self.means_[found.labels_])
        return self

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Log-densities, up to a constant."""
        each = [self.within_.score_samples(X - mean) for mean in self.means_]
        return logsumexp(np.array(each).T, axis=1, b=self.shares_)


class Turned(BaseEstimator):
    """Neighbours in the metric of the shrunk covariance."""

    def fit(self, X: np.ndarray, y: Any = None) -> Turned:
        """Fit the density."""
        variances, directions = np.linalg.eigh(GaussianDensity().fit(X).covariance_)
        self.to_ = directions / np.sqrt(np.maximum(variances, LEAST))
        self.density_ = LocalKNNDensity(n_neighbors=min(20, len(X) - 2), scaling=0.75).fit(X @ self.to_)
        return self

    def score_samples(self, X: np.ndarray) -> np.ndarray:
        """Log-densities, up to a constant."""
        return self.density_.score_samples(X @ self.to_)


GAUSSIAN = GaussianDensity()
OF_SPACES: dict[str, Any] = {
    "Gaussian": GAUSSIAN,
    "distance to the third neighbour": KNNDensity(n_neighbors=3),
    "the mean of these two": Together([GAUSSIAN, KNNDensity(n_neighbors=3)], [0.5, 0.5]),
    **{f"20 neighbours, scaling {s:g}": LocalKNNDensity(scaling=s) for s in (0, 0.5, 0.75, 1)},
    **{f"{k} neighbours, scaling 0.75": LocalKNNDensity(n_neighbors=k, scaling=0.75) for k in (5, 10)},
    **{
        f"scaling {s:g}, Gaussian {share:g}": Together([GAUSSIAN, LocalKNNDensity(scaling=s)], [share, 1 - share])
        for s in (0.5, 0.75)
        for share in (0.2, 0.5)
    },
    "AutoDensity (the default)": AutoDensity(),
}
OF_EMBEDDING: dict[str, Any] = {
    "Gaussian, Ledoit-Wolf": GAUSSIAN,
    **{f"Gaussian, shrinkage {s:g}": GaussianDensity(shrinkage=s) for s in (0.01, 0.1, 0.4, 0.95)},
    "Gaussian of standardised features": make_pipeline(StandardScaler(), GAUSSIAN),
    **{f"{n} clusters, one covariance": Clusters(n) for n in (10, 40)},
    "20 neighbours, scaling 0.75, in the metric of the covariance": Turned(),
}


@dataclass
class Part:
    """A space's parts in the scores of new images and, held out, of the known ones."""

    new: np.ndarray
    held_out: np.ndarray


def part(z: np.ndarray, sizes: Sequence[int], density: Any, known: np.ndarray, new: np.ndarray) -> Part:
    space = FeatureSpace(density).fit(z[known], sizes=sizes)
    return Part(space.score_samples(z[new]), space.held_out_parts_)


def spaces_alone(features: dict, sizes: dict, known: np.ndarray, new: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Scores by one space, whose density or features differ."""
    for name, density in OF_EMBEDDING.items():
        yield f"embedding: {name}", part(features["pretrained"], sizes["pretrained"], density, known, new).new
    logits = 2 * TEMPERATURE * np.log(np.maximum(features["classes"].astype(np.float64), LEAST))
    for temperature in (1, 2, 4, 8):
        z = np.sqrt(softmax(logits / temperature, axis=1))
        yield f"classes: Gaussian, temperature {temperature}", part(z, [z.shape[1]], GAUSSIAN, known, new).new
    layers = np.split(features["layers"], np.cumsum(sizes["layers"])[:-1], axis=1)
    yield "layers: one Gaussian", part(features["layers"], sizes["layers"], GAUSSIAN, known, new).new
    each = [part(z, [z.shape[1]], GAUSSIAN, known, new).new for z in layers]
    yield "layers: the sum of one Gaussian for each token", sum(each)


def sums(parts: Sequence[Part]) -> Iterator[tuple[str, np.ndarray]]:
    """One score of the parts of several spaces."""
    new, held_out = np.array([p.new for p in parts]), np.array([p.held_out for p in parts])
    yield "standardised log-likelihoods, added (the default)", new.sum(axis=0)
    yield "the lowest of them", new.min(axis=0)
    yield "the logarithm of the mean of their exponentials, negative", -logsumexp(-new, axis=0)
    values, directions = np.linalg.eigh(np.cov(held_out))
    turned = directions.T @ (new - held_out.mean(axis=1, keepdims=True))
    yield "decorrelated: the squared length", -(turned**2 / np.maximum(values, LEAST)[:, np.newaxis]).sum(axis=0)
    # how far from the best held-out part, as a distance greater than 0
    best = held_out.max(axis=1, keepdims=True) + 1e-3
    distances, usual = np.maximum(best - new, 1e-3), np.maximum(best - held_out, 1e-3)
    logs, of_usual = np.log(distances), np.log(usual)
    standard = (logs - of_usual.mean(axis=1, keepdims=True)) / of_usual.std(axis=1, keepdims=True)
    yield "logarithms of distances, standardised", -standard.sum(axis=0)
    yield "tail of a normal in these", stats.norm.logsf(standard).sum(axis=0)
    gamma = [stats.gamma.logsf(d, *stats.gamma.fit(u, floc=0)) for d, u in zip(distances, usual)]
    yield "tail of a gamma in the distances", np.sum(gamma, axis=0)


def study(
    data: Data, setting: str, labels: Sequence[int], samples: int | None, features: dict, sizes: dict
) -> dict[str, dict]:
    """AUROCs by table and row, one for each class."""
    new = np.arange(data.n_train, len(data.labels))
    found: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for label in labels:
        known, normal = data.task(setting, label)
        known = some_of_each(known, data.labels[known], samples)

        def note(table: str, row: str, scores: np.ndarray, normal: np.ndarray = normal) -> None:
            found[table][row].append(roc_auc_score(normal, scores))

        for row, scores in spaces_alone(features, sizes, known, new):
            note("1. One space", row, scores)
        for row, density in OF_SPACES.items():
            parts = [part(features[name], sizes[name], density, known, new) for name in BESIDE]
            note("2. Embedding, classes and layers", row, sum(p.new for p in parts))
        for row, scores in sums(parts):  # of the default density, the last
            note("3. How parts become one score", row, scores)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=["cifar10", "view", "fashion_mnist"])
    parser.add_argument("--setting", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--classes", nargs="+", type=int, help="their positions (default: the even ones)")
    parser.add_argument("--samples", type=int, default=60, help="training images of each of several normal classes")
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    head = HEAD.format(
        arguments="".join(f" {argument}" for argument in sys.argv[1:]),
        samples=options.samples,
        ours=skl_transformaly.__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        processor=torch.backends.cpu.get_cpu_capability(),
        precision=options.precision,
    )
    print(head, flush=True)
    columns: dict[str, dict[str, dict[str, list[float]]]] = {}
    for name in options.data:
        data = load(name, fashion_train=300, fashion_test=100)
        labels = options.classes or range(0, len(data.classes), 2)
        features, sizes = teacher_features(data.images, "vit_tiny", options.precision)
        for key in options.setting:
            samples = None if key == "one" else options.samples
            title = name if key == "one" else f"{name}, all but one"
            columns[title] = study(data, SETTINGS[key], labels, samples, features, sizes)
    for table, rows in next(iter(columns.values())).items():
        print(f"\n## {table}\n\n| | {' | '.join(columns)} |\n|---{'|---' * len(columns)}|")
        for row in rows:
            cells = [f"{100 * np.mean(column[table][row]):.1f}" for column in columns.values()]
            print(f"| {row} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    main()
