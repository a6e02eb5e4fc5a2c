"""The figures that the paper printed, in per cent AUROC; quoted, never computed here.

Source: M. J. Cohen and S. Avidan, Transformaly - Two (Feature Spaces) Are Better Than One, CVPR Workshops 2022, tables
1 to 7. By table, data set as loaders.py names it, and column title as tables.py has it (`plan` there).
Tables 1 to 4 and 7 are unimodal, 5 and 6 multimodal. The paper's OC-SVM stands for the one on pixels here: on
embeddings of a pre-trained teacher it is far better than these figures.
"""

from __future__ import annotations

TABLES: dict[str, dict[str, dict[str, float]]] = {
    "1": {
        "cifar10": {
            "OC-SVM (pixels)": 64.7, "Deep SVDD": 64.8, "MHRot": 90.1, "CSI": 94.3, "DN2": 92.5, "PANDA": 96.2,
            "MSAD": 97.2, "Transformaly": 98.31,
        },
        "cifar100": {
            "OC-SVM (pixels)": 62.6, "Deep SVDD": 67.0, "MHRot": 80.1, "CSI": 89.6, "DN2": 94.1, "PANDA": 94.1,
            "MSAD": 96.4, "Transformaly": 97.34,
        },
        "fashion_mnist": {
            "OC-SVM (pixels)": 92.8, "Deep SVDD": 84.8, "MHRot": 93.2, "DN2": 94.5, "PANDA": 95.6, "MSAD": 94.21,
            "Transformaly": 94.43,
        },
        "cats_vs_dogs": {
            "OC-SVM (pixels)": 51.7, "Deep SVDD": 50.5, "MHRot": 86.0, "CSI": 86.3, "DN2": 96.0, "PANDA": 97.3,
            "MSAD": 99.3, "Transformaly": 99.52,
        },
        "dior": {
            "OC-SVM (pixels)": 70.7, "Deep SVDD": 70.0, "MHRot": 73.3, "CSI": 78.5, "DN2": 92.2, "PANDA": 94.3,
            "MSAD": 97.2, "Transformaly": 98.08,
        },
    },
    "2": {
        "blood_cells": {
            "Deep SVDD": 52.28, "DN2": 54.91, "PANDA": 56.25, "Transformaly": 74.85,
        },
        "covid19": {
            "Deep SVDD": 97.32, "DN2": 97.63, "PANDA": 99.33, "Transformaly": 98.87,
        },
        "weather": {
            "Deep SVDD": 73.55, "DN2": 80.05, "PANDA": 81.53, "Transformaly": 94.32,
        },
        "view": {
            "Deep SVDD": 60.31, "DN2": 90.86, "PANDA": 93.63, "Transformaly": 95.80,
        },
        "concrete_crack": {
            "Deep SVDD": 92.27, "DN2": 99.81, "PANDA": 99.93, "Transformaly": 99.77,
        },
    },
    "3": {
        "cifar10": {
            "embedding": 97.81, "discrepancy 1": 95.02, "discrepancy 3": 97.18, "discrepancy 10": 96.63,
            "both 1": 98.27, "both 3": 98.26, "both 10": 98.31,
        },
        "cifar100": {
            "embedding": 96.21, "discrepancy 1": 90.71, "discrepancy 3": 94.79, "discrepancy 10": 95.16,
            "both 1": 96.90, "both 3": 96.99, "both 10": 97.34,
        },
        "fashion_mnist": {
            "embedding": 93.94, "discrepancy 1": 88.41, "discrepancy 3": 92.39, "discrepancy 10": 94.14,
            "both 1": 94.00, "both 3": 94.07, "both 10": 94.43,
        },
        "cats_vs_dogs": {
            "embedding": 99.60, "discrepancy 1": 98.30, "discrepancy 3": 97.45, "discrepancy 10": 96.47,
            "both 1": 99.66, "both 3": 99.58, "both 10": 99.52,
        },
        "dior": {
            "embedding": 93.97, "discrepancy 1": 94.72, "discrepancy 3": 95.26, "discrepancy 10": 98.59,
            "both 1": 95.22, "both 3": 95.31, "both 10": 98.08,
        },
        "blood_cells": {
            "embedding": 72.19, "discrepancy 1": 74.80, "discrepancy 3": 75.43, "discrepancy 10": 73.58,
            "both 1": 73.15, "both 3": 74.41, "both 10": 74.85,
        },
        "covid19": {
            "embedding": 97.06, "discrepancy 1": 92.67, "discrepancy 3": 96.24, "discrepancy 10": 99.40,
            "both 1": 97.13, "both 3": 97.37, "both 10": 98.87,
        },
        "weather": {
            "embedding": 81.06, "discrepancy 1": 80.62, "discrepancy 3": 80.32, "discrepancy 10": 94.26,
            "both 1": 82.17, "both 3": 82.11, "both 10": 94.32,
        },
        "view": {
            "embedding": 95.48, "discrepancy 1": 94.40, "discrepancy 3": 94.41, "discrepancy 10": 94.68,
            "both 1": 95.56, "both 3": 95.54, "both 10": 95.80,
        },
        "concrete_crack": {
            "embedding": 99.72, "discrepancy 1": 99.47, "discrepancy 3": 99.13, "discrepancy 10": 99.41,
            "both 1": 99.75, "both 3": 99.74, "both 10": 99.77,
        },
    },
    "4": {
        "cifar10": {
            "kNN k = 2": 97.81, "kNN k = 5": 97.84, "GMM n = 1": 97.81, "GMM n = 5": 97.79, "GMM n = 20": 95.98,
        },
        "cifar100": {
            "kNN k = 2": 96.41, "kNN k = 5": 96.40, "GMM n = 1": 96.25, "GMM n = 5": 95.18, "GMM n = 20": 91.00,
        },
        "fashion_mnist": {
            "kNN k = 2": 94.19, "kNN k = 5": 94.09, "GMM n = 1": 93.94, "GMM n = 5": 93.69, "GMM n = 20": 93.04,
        },
        "cats_vs_dogs": {
            "kNN k = 2": 99.59, "kNN k = 5": 99.63, "GMM n = 1": 99.60, "GMM n = 5": 99.63, "GMM n = 20": 98.97,
        },
        "dior": {
            "kNN k = 2": 91.74, "kNN k = 5": 92.52, "GMM n = 1": 93.97, "GMM n = 5": 91.27, "GMM n = 20": 88.78,
        },
    },
    "5": {
        "cifar10": {
            "Deep SVDD": 50.67, "DN2": 71.7, "PANDA": 78.5, "MSAD": 85.3, "Transformaly": 90.38,
        },
        "cifar100": {
            "Deep SVDD": 50.75, "DN2": 71.0, "PANDA": 62.47, "MSAD": 67.65, "Transformaly": 79.80,
        },
        "fashion_mnist": {
            "Deep SVDD": 70.85, "DN2": 77.64, "PANDA": 79.45, "MSAD": 72.26, "Transformaly": 72.53,
        },
        "dior": {
            "Deep SVDD": 56.71, "DN2": 81.10, "PANDA": 86.92, "MSAD": 90.11, "Transformaly": 66.71,
        },
    },
    "6": {
        "cifar10": {
            "kNN k = 2": 88.76, "kNN k = 5": 89.16, "GMM n = 1": 90.23, "GMM n = 5": 90.81, "GMM n = 20": 90.39,
        },
        "cifar100": {
            "kNN k = 2": 82.20, "kNN k = 5": 82.68, "GMM n = 1": 78.76, "GMM n = 5": 79.42, "GMM n = 20": 77.66,
        },
        "fashion_mnist": {
            "kNN k = 2": 75.59, "kNN k = 5": 74.99, "GMM n = 1": 72.29, "GMM n = 5": 75.43, "GMM n = 20": 78.00,
        },
        "dior": {
            "kNN k = 2": 66.66, "kNN k = 5": 66.08, "GMM n = 1": 65.72, "GMM n = 5": 69.75, "GMM n = 20": 69.82,
        },
    },
    "7": {
        "cifar10": {
            "embedding at 85%": 96.85, "both at 85%": 98.11, "embedding at 90%": 97.81, "both at 90%": 98.31,
            "embedding at 95%": 98.11, "both at 95%": 98.33,
        },
        "weather": {
            "embedding at 85%": 81.46, "both at 85%": 94.43, "embedding at 90%": 81.06, "both at 90%": 94.32,
            "embedding at 95%": 81.45, "both at 95%": 94.21,
        },
    },
}  # fmt: skip


def quoted(table: str, dataset: str) -> dict[str, float]:
    """AUROC in per cent by column title, for a data set or its subset; empty where the paper has none."""
    # by data set, the paper spreads its unimodal figures over tables 1 and 2
    printed = {**TABLES["1"], **TABLES["2"]} if table in "12" else TABLES[table]
    return printed.get(dataset.removesuffix("_subset"), {})


def paper_auroc(dataset: str, setting: str) -> float | None:
    """The paper's figure of Transformaly in a setting."""
    return quoted("1" if setting == "unimodal" else "5", dataset).get("Transformaly")


def paper_lift(dataset: str, setting: str) -> float | None:
    """Points that ten blocks' discrepancy adds to the embedding in the paper.

    Multimodal figures of the embedding are those of table 6's single Gaussian: the paper's density of the embedding.
    """
    if setting == "unimodal":
        figures = quoted("3", dataset)
        both, embedding = figures.get("both 10"), figures.get("embedding")
    else:
        both, embedding = paper_auroc(dataset, setting), quoted("6", dataset).get("GMM n = 1")
    return None if both is None or embedding is None else both - embedding
