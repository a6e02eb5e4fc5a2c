"""Figures that papers report, in per cent AUROC; quoted, never computed here.

Only what could be read is quoted. The three figures of the paper are those that a later benchmark of semantic anomaly
detection lists for it (ViT-B/16 at 384 pixels), as are MSAD's, CSI's and Deep SVDD's; PANDA's is from its abstract.
"""

from __future__ import annotations

_UNIMODAL: dict[str, dict[str, float]] = {
    "cifar10": {"Transformaly": 98.3, "PANDA": 96.2, "MSAD": 97.2, "CSI": 94.3, "Deep SVDD": 64.8},
    "cifar100": {"Transformaly": 97.3, "MSAD": 96.4, "CSI": 89.6},
    "fashion_mnist": {"Transformaly": 94.4, "MSAD": 94.2, "CSI": 94.2},
}
_PAPER: dict[tuple[str, str], dict[str, float]] = {
    (table, data): figures for table in ("1", "2") for data, figures in _UNIMODAL.items()
}


def quoted(table: str, dataset: str) -> dict[str, float]:
    """What papers report for a table's data set, by method; empty where nothing could be read."""
    return _PAPER.get((table, dataset.removesuffix("_subset")), {})
