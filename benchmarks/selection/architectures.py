"""False-positive rates with few images, by the teacher's architecture: do held-out scores hold behind ReLUs?

    python benchmarks/selection/architectures.py

Teachers have random weights and images of 64 pixels, so that any architecture is at hand; what matters is what their
features are like. Each class in turn is normal, a few of its images are given to fit, and others of the training set
are new. The last column is without what keeps students from relying on features that few images activate
(``_LEAST_VARIANCE``). Writes architectures.md beside this file.
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

sys.path.insert(0, str(Path(__file__).parents[1] / "accuracy"))

import torch
from data import NAMES, load

import skl_transformaly
from skl_transformaly import TimmExtractor, TransformalyDetector
from skl_transformaly.students import _regression

MODELS = ("resnet18", "efficientnet_lite0", "convnext_atto", "vit_tiny_patch16_224")
SPACES = {"whole": "auto", "teacher": "teacher", "discrepancy": ["discrepancy"]}


def flagged(teacher: TimmExtractor, spaces: object, given: list, new: list, rate: float) -> float:
    """Share of the new images that are flagged."""
    detector = TransformalyDetector(teacher, feature_spaces=spaces, contamination=rate, random_state=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float((detector.fit(given).predict(new) < 0).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--data", choices=NAMES, default="cifar10")
    parser.add_argument("--classes", type=int, default=5, help="the first so many take turns")
    parser.add_argument("--given", type=int, default=20)
    parser.add_argument("--new", type=int, default=40)
    parser.add_argument("--rate", type=float, default=0.1)
    options = parser.parse_args()
    data = load(options.data)
    lines = [
        "# False-positive rates with few images, by architecture\n",
        f"{options.given} images of one class of {options.data} given, {options.new} new ones, mean over "
        f"{options.classes} classes; {100 * options.rate:g} % promised. Per cent flagged.\n",
        f"| teacher, random weights | {' | '.join(SPACES)} | discrepancy, without a least variance |",
        "|---" * (len(SPACES) + 2) + "|",
    ]
    for model in options.models:
        teacher = TimmExtractor(model, weights=None, image_size=64, precision="float32")
        rows = []
        for label in range(options.classes):
            positions, _ = data.task("one class normal", label)
            images = [data.images[i] for i in positions[: options.given + options.new]]
            given, new = images[: options.given], images[options.given :]
            rates = [flagged(teacher, spaces, given, new, options.rate) for spaces in SPACES.values()]
            with mock.patch.object(_regression, "_LEAST_VARIANCE", 1e-12):
                rates.append(flagged(teacher, ["discrepancy"], given, new, options.rate))
            rows.append(rates)
        cells = " | ".join(f"{value:.1f}" for value in 100 * np.mean(rows, axis=0))
        lines.append(f"| {model} | {cells} |")
        print(lines[-1], flush=True)
    command = shlex.join(["python", "benchmarks/selection/architectures.py", *sys.argv[1:]])
    lines += [
        f"\n`{command}`\n",
        f"skl-transformaly {skl_transformaly.__version__}, torch {torch.__version__}, Python "
        f"{platform.python_version()}, {torch.backends.cpu.get_cpu_capability()}.",
    ]
    Path(__file__).with_name("architectures.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
