"""False-positive rates of densities without a closed form for held-out scores, beside the rate that was promised.

    python benchmarks/selection/own_densities.py

Classes of the natural scenes ("view") are normal in turn; no anomaly takes part. Of the teacher's embeddings of the
training images, some are given to a FeatureSpace with the density, and the others are new. Flagged is what has a
p-value below 0.1, of which 10 % are promised; of p-values below one half there should be 50 %. Held-out scores come
from clones that are fitted on the samples outside each of 5 or 20 folds, as they are or on the scale of the density of
all (the library's way). Data and teacher are those of ``benchmarks/accuracy``. Writes own_densities.md beside this
file.
"""

from __future__ import annotations

import argparse
import platform
import shlex
import sys
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import sklearn
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.svm import OneClassSVM

sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))

from data import load
from few import teacher_features

import skl_transformaly
from skl_transformaly import _density
from skl_transformaly._fusion import interpolated_p_values
from skl_transformaly._space import FeatureSpace

DENSITIES = {
    "PCA of 0.8 of the variance, whitened, and a Gaussian": make_pipeline(
        PCA(0.8, whiten=True), GaussianMixture(1, reg_covar=1e-3)
    ),
    "PCA(10)": PCA(10),
    "OneClassSVM()": OneClassSVM(),
    "OneClassSVM(nu=0.1)": OneClassSVM(nu=0.1),
    'KernelDensity(bandwidth="scott")': KernelDensity(bandwidth="scott"),
    "KernelDensity(bandwidth=0.1)": KernelDensity(bandwidth=0.1),
    "IsolationForest()": IsolationForest(random_state=0),
    '"gmm"': "gmm",
}
WAYS = {"5 folds": (5, False), "20 folds": (20, False), "20 folds, on scale": (20, True)}


def flagged(density: object, Z: np.ndarray, given: np.ndarray, way: tuple[int, bool]) -> tuple[float, float]:
    """Shares of new samples with p-values below 0.1 and below 0.5."""
    count, scaled = way
    splits, on_scale = _density.folds, _density.on_scale
    with (
        mock.patch.object(_density, "folds", lambda groups, n: splits(groups, n, count)),
        mock.patch.object(_density, "on_scale", on_scale if scaled else lambda scores, own, part: scores),
    ):
        space = FeatureSpace(density).fit(Z[given])
    p = interpolated_p_values(space.score_samples(np.delete(Z, given, axis=0)), space.held_out_parts_)
    return float(np.mean(p < 0.1)), float(np.mean(p < 0.5))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--teacher", choices=("vit_tiny", "bundled"), default="vit_tiny")
    parser.add_argument("--classes", type=int, default=3)
    parser.add_argument("--splits", type=int, default=5)
    parser.add_argument("--given", type=int, nargs="+", default=[20, 60, 150])
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    data = load("view")
    lines = [
        "# Promised and observed false-positive rates of densities of one's own",
        "",
        f"Per cent of new normal images that are flagged where 10 % are promised, and in brackets of p-values below "
        f"one half: {options.classes} classes of `view` x {options.splits} splits, embeddings of the teacher "
        f"{options.teacher}. Held-out scores by 5 or 20 folds as they are, and by 20 folds on the scale of the density "
        "of all, as the library computes them.",
        "",
        f"| density | given | {' | '.join(WAYS)} |",
        "|---|---|---|---|---|",
    ]
    embeddings = []
    for label in range(options.classes):
        images = [data.images[i] for i in np.flatnonzero(data.labels[: data.n_train] == label)]
        embeddings.append(teacher_features(images, options.teacher, "float32")[0]["pretrained"])
    for name, density in DENSITIES.items():
        for n in options.given:
            row = []
            for way in WAYS.values():
                found = [
                    flagged(density, Z, np.random.default_rng(seed).permutation(len(Z))[:n], way)
                    for Z in embeddings
                    for seed in range(options.splits)
                ]
                rate, half = 100 * np.mean(found, axis=0)
                row.append(f"{rate:.1f} ({half:.0f})")
            lines.append(f"| {name} | {n} | {' | '.join(row)} |")
            print(lines[-1], flush=True)
    lines += [
        "",
        f"Command: `python benchmarks/selection/own_densities.py {shlex.join(sys.argv[1:])}".rstrip()
        + f"`. skl-transformaly {skl_transformaly.__version__}, scikit-learn {sklearn.__version__}, Python "
        f"{platform.python_version()}.",
        "",
    ]
    (Path(__file__).parent / "own_densities.md").write_text("\n".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
