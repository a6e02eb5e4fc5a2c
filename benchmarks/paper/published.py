"""Figures that papers report, in per cent AUROC; quoted, never computed here."""

from __future__ import annotations

# (table, data set): [(source, {column: AUROC})]
QUOTED: dict[tuple[str, str], list[tuple[str, dict[str, float]]]] = {}


def rows(table: str, dataset: str, columns: list[str]) -> list[tuple[str, list[float | None]]]:
    """Source and figures, for the columns of a table."""
    return [(source, [figures.get(c) for c in columns]) for source, figures in QUOTED.get((table, dataset), [])]
