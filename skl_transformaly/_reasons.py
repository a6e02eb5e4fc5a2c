"""Reasons why images are flagged, in words; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

__all__ = ["PLAINLY", "reason_column", "reasons", "times_text"]

# Descriptions of the spaces
PLAINLY = {
    "pretrained": "the teacher's description of the whole image",
    "classes": "what the teacher takes it for",
    "layers": "the teacher's later layers",
    "variation": "how the teacher's later layers vary over the image",
    "discrepancy": "what students of normal images cannot imitate",
}


def reason_column(table: dict[str, np.ndarray], decisions: np.ndarray) -> np.ndarray:
    """Describe why images are flagged, from the other columns of :meth:`ExplanationMixin.explain`.

    `decisions` (n,) are those of the detector that flags, whose threshold need not be that of the one that explains.
    """
    spaces = [name.removeprefix("times_") for name in table if name.startswith("times_")]
    blocks = [int(name[5:]) for name in table if name.startswith("block")]
    times = np.column_stack([table[f"times_{name}"] for name in spaces])
    terms = np.column_stack([table[f"block{index}"] for index in blocks]) if blocks else np.empty((len(times), 0))
    return reasons(decisions, times, spaces, terms, blocks)


def reasons(
    decisions: np.ndarray, times: np.ndarray, spaces: Sequence[str], terms: np.ndarray, blocks: Sequence[int]
) -> np.ndarray:
    """Describe why images are flagged.

    `decisions` (n,) are negative for anomalies and NaN for unreadable images; `times` (n, S) are those of
    :meth:`FeatureSpace.times_usual`; `terms` (n, m) are the parts of the `blocks` in "discrepancy".
    """
    found = np.empty(len(times), dtype=object)
    for i, row in enumerate(times):
        if np.isnan(row).any():
            found[i] = "unreadable"
        elif decisions[i] >= 0:
            found[i] = "normal"
        else:
            name = spaces[int(row.argmax())]
            where = PLAINLY[name]
            if name == "discrepancy" and len(blocks):
                where = f"{where}, block {blocks[int(terms[i].argmin())]}"
            found[i] = (
                f"unusual in {name} ({where}): {times_text(row.max())} times as far from the usual as 99 % of normal "
                "images"
            )
            others = [j for j in np.argsort(-row, kind="stable")[1:] if row[j] > 1]
            if row.max() <= 1:
                found[i] += ", so not far by itself; the score adds up all feature spaces"
            elif others:
                found[i] += "; also in " + ", ".join(f"{spaces[j]} ({times_text(row[j])} times)" for j in others)
    return found


def times_text(times: float) -> str:
    """Format a number of times with two digits.

    >>> times_text(1.234), times_text(138.0)
    ('1.2', '138')
    """
    return f"{times:.2g}" if abs(times) < 10 else f"{times:.0f}"
