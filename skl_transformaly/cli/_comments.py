"""Sentences on the figures of an evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from scipy.stats import betabinom

from skl_transformaly.cli._console import counted
from skl_transformaly.cli._evaluation import Interval
from skl_transformaly.cli._trust import FalseAlarms, percent

__all__ = ["comments"]

# Number of images of a kind below which figures are rough
_FEW = 20
# AUROCs below which anomalies are hardly told apart, and above which they are told apart well
_POOR, _GOOD = 0.65, 0.9
# Probability below which a number of false alarms is not taken for chance
_LEVEL = 0.01
# Rates of false alarms that are considered
_ALPHAS = (0.1, 0.2, 0.3)
# By how much the share of flagged anomalies must rise more than that of normal images, to be worth mentioning
_WORTH = 0.1
# What to look at first if the threshold is low
_UNCLEAN = (
    "Images among those of the fit that are not normal lower the threshold: `fit` lists the least normal ones, and its "
    "--trim leaves them out."
)


def comments(
    figures: Mapping[str, Interval],
    y: np.ndarray,
    flagged: np.ndarray,
    p_values: np.ndarray,
    classes: Mapping[str, Mapping[str, Any]],
    alarms: FalseAlarms | None,
) -> list[str]:
    """Comment on an evaluation in at least one sentence.

    `figures` are those of `evaluate_scores`, `classes` those of `per_class`, and `alarms` those that are expected.
    """
    auroc = figures["auroc"]
    found = [
        _on_auroc(auroc.value),
        _on_missed(auroc.value, y, flagged, p_values, alarms),
        _on_false_alarms(y, flagged, alarms),
        _on_classes(classes) if auroc.value >= 0.5 else "",
        _on_few(auroc, y),
    ]
    said = [sentence for sentence in found if sentence]
    return said or [
        f"The model tells these anomalies from normal images (AUROC {auroc.value:.2f}). It flags "
        f"{flagged[y == -1].sum()} of {counted(int((y == -1).sum()), 'anomaly')}, and about as many normal images as "
        "expected."
    ]


def _on_auroc(auroc: float) -> str:
    if 0.5 <= auroc < _POOR:
        return (
            f"AUROC {auroc:.2f}: these anomalies hardly score lower than normal images. Another teacher may separate "
            "them better (fit --teacher; `teachers` lists some)."
        )
    return ""


def _on_missed(
    auroc: float, y: np.ndarray, flagged: np.ndarray, p_values: np.ndarray, alarms: FalseAlarms | None
) -> str:
    """Comment on anomalies that score low, but above the threshold."""
    anomalies = y == -1
    caught = int(flagged[anomalies].sum())
    if auroc < _POOR or caught >= anomalies.sum() / 2:
        return ""
    amount = f"only {caught} of {anomalies.sum()} anomalies are" if caught else "no anomaly is"
    advice = "" if alarms is None or np.isnan(p_values).any() else _on_other_rates(anomalies, flagged, p_values, alarms)
    return f"AUROC {auroc:.2f}, but {amount} flagged. {advice}{_UNCLEAN}"


def _on_other_rates(anomalies: np.ndarray, flagged: np.ndarray, p_values: np.ndarray, alarms: FalseAlarms) -> str:
    """What a higher rate of false alarms would find."""
    normal = ~anomalies
    gain = {
        a: np.mean(p_values[anomalies] <= a) - np.mean(p_values[normal] <= a) for a in _ALPHAS if a > alarms.expected
    }
    now = np.mean(flagged[anomalies]) - np.mean(flagged[normal])
    best = max(gain, key=lambda alpha: gain[alpha], default=None)
    if best is None or gain[best] < now + _WORTH:
        more = [a for a in gain if np.mean(p_values[normal] <= a) > np.mean(flagged[normal])]
        return "A higher threshold would flag about as many more normal images as anomalies. " if more else ""
    return (
        f"With fit --alpha {best:g}, {np.sum(p_values[anomalies] <= best)} of {anomalies.sum()} anomalies would be "
        f"flagged, and {np.sum(p_values[normal] <= best)} of {counted(int(normal.sum()), 'normal image')}. "
    )


def _on_false_alarms(y: np.ndarray, flagged: np.ndarray, alarms: FalseAlarms | None) -> str:
    """Comment on more false alarms than expected, given the uncertainty of the threshold."""
    if alarms is None:
        return ""
    n, false = int(np.sum(y == 1)), int(flagged[y == 1].sum())
    k = alarms.most * (alarms.images + 1)
    if betabinom.sf(false - 1, n, k, alarms.images + 1 - k) > _LEVEL:
        return ""
    return (
        f"{false} of {counted(n, 'normal image')} are flagged; about {alarms.most * n:.0f} "
        f"({percent(alarms.most)} %) were expected. They differ from the images of the fit: if all are normal, fit "
        "on some of them as well."
    )


def _on_classes(classes: Mapping[str, Mapping[str, Any]]) -> str:
    known = {name: entry["auroc"] for name, entry in classes.items() if entry["auroc"] is not None}
    if len(known) < 2:
        return ""
    worst = min(known, key=lambda name: known[name])
    if known[worst] >= _POOR or max(known.values()) < known[worst] + _WORTH:
        return ""
    return f"{worst} is the hardest class: AUROC {known[worst]:.2f}."


def _on_few(auroc: Interval, y: np.ndarray) -> str:
    n, m = int(np.sum(y == 1)), int(np.sum(y == -1))
    if min(n, m) >= _FEW:
        return ""
    count = f"{counted(n, 'normal image')} and {counted(m, 'anomaly')}"
    if not auroc.high - auroc.low > 0.01:  # also without an interval
        return f"{count} are few: these figures are rough."
    return f"{count} are few: AUROC may as well be {auroc.low:.2f} or {auroc.high:.2f}."
