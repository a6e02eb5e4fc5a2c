"""The figures that the paper printed, in per cent AUROC; quoted, never computed here.

Source: M. J. Cohen and S. Avidan, Transformaly - Two (Feature Spaces) Are Better Than One, CVPR Workshops 2022, tables
1 to 7. They are in published.csv: by table, data set as loaders.py names it, and column title as tables.py has it
(`plan` there).
Tables 1 to 4 and 7 are unimodal, 5 and 6 multimodal. The paper's OC-SVM stands for the one on pixels here: on
embeddings of a pre-trained teacher it is far better than these figures.
"""

from __future__ import annotations

import csv
from pathlib import Path

# What benchmarks/accuracy calls the paper's settings.
SETTINGS = {"unimodal": "one class normal", "multimodal": "all but one normal"}

Tables = dict[str, dict[str, dict[str, float]]]


def _read() -> Tables:
    tables: Tables = {}
    with open(Path(__file__).with_suffix(".csv"), encoding="utf-8", newline="") as file:
        for row in csv.DictReader(file):
            figures = tables.setdefault(row["table"], {}).setdefault(row["dataset"], {})
            figures[row["column"]] = float(row["auroc"])
    return tables


TABLES = _read()


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
