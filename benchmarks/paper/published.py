"""Figures that papers report, in per cent AUROC; quoted, never computed here and never filled from memory.

The paper's own tables could not be read, so what stands here for it is second hand, and its tables 3 to 7 are empty. A
figure goes in under its table, its data set and the column title that tables.py uses (`plan` there), with the source in
which it was read; what no column carries is printed below the table. Figures that a source does not tie to one method
and one data set are left out.
"""

from __future__ import annotations

from typing import NamedTuple


class Figure(NamedTuple):
    """AUROC in per cent, and the key in `SOURCES` of where it was read."""

    auroc: float
    source: str


_BENCHMARK = "README of apostolikas/Semantic-Anomaly-Segmentation-Benchmark on GitHub"
_LISTED = "as listed by sotaverified.org (second hand)"

SOURCES = {
    "benchmark": f"{_BENCHMARK}, what papers report (second hand: Transformaly with ViT-B/16 at 384 pixels, MSAD with "
    "ViT-B/16 at 224, CSI with ResNet-18, Deep SVDD with LeNet)",
    "benchmark, rerun": f"{_BENCHMARK}, its authors' own run of Transformaly with ViT-B/16 at 224 pixels",
    "PANDA": "T. Reiss et al., PANDA, arXiv 2010.05903, abstract",
    "PANDA, listed": f"T. Reiss et al., PANDA, arXiv 2010.05903, {_LISTED}",
    "MSAD, listed": "T. Reiss and Y. Hoshen, Mean-Shifted Contrastive Loss for Anomaly Detection, arXiv 2106.03844, "
    f"{_LISTED}",
    "UniCon-HA": "Unilaterally Aggregated Contrastive Learning with Hierarchical Augmentation for Anomaly Detection, "
    "table 1 (second hand: D. Hendrycks et al.'s rotations and translations with ResNet-18, from CSI's paper)",
}

# The paper spreads its unimodal figures over tables 1 and 2 by data set, so no figure stands in both.
_UNIMODAL: dict[str, dict[str, Figure]] = {
    "cifar10": {
        "Transformaly": Figure(98.3, "benchmark"),
        "Transformaly (224 pixels)": Figure(94.9, "benchmark, rerun"),
        "PANDA": Figure(96.2, "PANDA"),
        "MSAD": Figure(97.2, "benchmark"),
        "MSAD (its paper)": Figure(98.6, "MSAD, listed"),
        "CSI": Figure(94.3, "benchmark"),
        "Rot+Trans (Hendrycks et al.)": Figure(89.8, "UniCon-HA"),
        "Deep SVDD": Figure(64.8, "benchmark"),
    },
    "cifar100": {
        "Transformaly": Figure(97.3, "benchmark"),
        "Transformaly (224 pixels)": Figure(93.0, "benchmark, rerun"),
        "MSAD": Figure(96.4, "benchmark"),
        "MSAD (its paper)": Figure(96.5, "MSAD, listed"),
        "CSI": Figure(89.6, "benchmark"),
    },
    "fashion_mnist": {
        "Transformaly": Figure(94.4, "benchmark"),
        "Transformaly (224 pixels)": Figure(92.7, "benchmark, rerun"),
        "MSAD": Figure(94.2, "benchmark"),
        "CSI": Figure(94.2, "benchmark"),
    },
    "cats_vs_dogs": {
        "PANDA": Figure(97.3, "PANDA, listed"),
        "Deep SVDD": Figure(50.5, "PANDA, listed"),
        "OC-SVM (RBF kernel)": Figure(51.7, "PANDA, listed"),
    },
}
_TABLES: dict[str, dict[str, dict[str, Figure]]] = {
    "1": _UNIMODAL,
    "2": _UNIMODAL,
    "3": {},
    "4": {},
    "5": {},
    "6": {},
    "7": {},
}


def figures(table: str, dataset: str) -> dict[str, Figure]:
    """What could be read for a table ("1" to "7") and a data set or its subset, by column title."""
    return _TABLES[table].get(dataset.removesuffix("_subset"), {})


def quoted(table: str, dataset: str) -> dict[str, float]:
    """AUROC in per cent by column title; empty where nothing could be read."""
    return {title: figure.auroc for title, figure in figures(table, dataset).items()}


def paper_lift(dataset: str) -> float | None:
    """Points that ten blocks' discrepancy adds in the paper's table 3; None unless both of its cells could be read."""
    known = quoted("3", dataset)
    if "both 10" in known and "embedding" in known:
        return known["both 10"] - known["embedding"]
    return None
