"""Draw what few.py measured: AUROC, false alarms and recall against the number of training images.

The rows are those of few.csv, the picture is docs/pictures/how_many.png.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

RATE = 5  # per cent: few.RATE
PANELS = {
    "AUROC": "AUROC, %",
    "false alarms": "False alarms, % (shade: nine of ten fits)",
    "recall": "Anomalies found, %",
}
TEACHERS = {"vit_tiny": "ViT-Tiny/16", "bundled": "bundled EfficientNet-lite0"}
DATA = {  # Okabe and Ito's colours: told apart by colour-blind eyes too
    "view": ("View", "#0072B2"),
    "cats_vs_dogs": ("cats vs dogs", "#D55E00"),
    "cifar10": ("CIFAR-10", "#009E73"),
    "fashion_mnist": ("Fashion-MNIST", "#CC79A7"),
    "covid19": ("chest X-rays", "#555555"),
}


def spread(heights: list[float], gap: float) -> list[float]:
    """The same heights, moved apart until each is at least `gap` above the one before."""
    order = np.argsort(heights)
    moved = np.asarray(heights, dtype=float)[order]
    for _ in range(1000):
        overlap = gap - np.diff(moved)
        if (overlap <= 1e-6 * gap).all():
            break
        push = np.clip(overlap, 0, None) / 2
        moved[:-1] -= push
        moved[1:] += push
    back = np.empty_like(moved)
    back[order] = moved
    return back.tolist()


def draw(axis: plt.Axes, rows: list[dict], measured: str) -> list[tuple]:
    """The lines of one teacher and one measure; returns where each ends, its name and colour."""
    ends = []
    for name, (title, colour) in DATA.items():
        mine = sorted((row for row in rows if row["data"] == name), key=lambda row: int(row["images"]))
        if not mine:
            continue
        n = [int(row["images"]) for row in mine]
        # cells are "mean" or "mean ± error", and "low to high"
        mean = np.array([float(row[measured].split()[0]) for row in mine])
        error = np.array([float(row[measured].partition("±")[2] or 0) for row in mine])
        low, high = np.clip([mean - error, mean + error], 0, 100)
        if measured == "false alarms":
            low, high = np.array([row["nine of ten fits"].split(" to ") for row in mine], dtype=float).T
        axis.plot(n, mean, marker="o", markersize=3, color=colour)
        axis.fill_between(n, low, high, color=colour, alpha=0.12, linewidth=0)
        ends.append((n[-1], mean[-1], title, colour))
    return ends


def name_lines(axis: plt.Axes, ends: list[tuple]) -> None:
    """Names at the right of the panel, none over another."""
    low, high = axis.get_ylim()
    heights = spread([end[1] for end in ends], gap=(high - low) / 13)
    for (n, mean, title, colour), height in zip(ends, heights):
        axis.annotate(
            title,
            (n, mean),
            xytext=(axis.get_xlim()[1] * 1.1, height),
            color=colour,
            va="center",
            annotation_clip=False,
            arrowprops={"arrowstyle": "-", "color": colour, "alpha": 0.4, "linewidth": 0.8},
        )


def main() -> None:
    here = Path(__file__).parent
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=here / "few.csv")
    parser.add_argument("--out", type=Path, default=here.parents[1] / "docs" / "pictures" / "how_many.png")
    options = parser.parse_args()
    rows = list(csv.DictReader(options.rows.open(encoding="utf-8")))
    teachers = [name for name in TEACHERS if any(row["teacher"] == name for row in rows)]
    numbers = sorted({int(row["images"]) for row in rows})
    last = {}
    figure, grid = plt.subplots(
        len(teachers),
        len(PANELS),
        figsize=(11.5, 3.4 * len(teachers)),
        sharex=True,
        sharey="col",
        squeeze=False,
        layout="constrained",
    )
    for column, (measured, title) in enumerate(PANELS.items()):
        for axis, teacher in zip(grid[:, column], teachers):
            ends = draw(axis, [row for row in rows if row["teacher"] == teacher], measured)
            axis.set_title(f"{title}\n{TEACHERS[teacher]}", loc="left", fontsize=10)
            axis.set_xscale("log")
            axis.set_xticks(numbers, [str(n) for n in numbers])
            axis.minorticks_off()
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
            if measured == "false alarms":
                axis.axhline(RATE, color="black", linestyle="--", linewidth=1)
                axis.annotate("contamination", (numbers[-1], RATE), ha="right", va="top", fontsize=9)
            last[teacher] = axis, ends
        grid[-1, column].set_xlabel("normal images for the fit")
    # limits and names wait for the lines of both teachers
    grid[0, list(PANELS).index("false alarms")].set_ylim(bottom=0)
    for axis, ends in last.values():
        name_lines(axis, ends)
    figure.savefig(options.out, dpi=130)


if __name__ == "__main__":
    main()
