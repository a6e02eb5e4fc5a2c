"""Trained students against students in closed form, by AUROC of the discrepancy alone and of the whole score.

    python benchmarks/accuracy/students.py > benchmarks/accuracy/STUDENTS.md

reads what two other commands have written: ``benchmarks/paper/tables.py 3`` (``BlockStudents``, its rows in
``benchmarks/paper/rows/``) and ``benchmarks/accuracy/run.py fit`` (``RidgeStudents``, its rows in rows.csv).
"""

from __future__ import annotations

import csv
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean, median, stdev

sys.path.append(str(Path(__file__).parents[1] / "paper"))

from published import SETTINGS

HERE = Path(__file__).parent

TRAINED = {"discrepancy, 10 blocks": "discrepancy", "Transformaly": "all spaces"}
Figures = dict[tuple[str, str, str, str], list[float]]  # by data, setting, class and what is scored; one for each seed


def trained() -> tuple[Figures, Figures]:
    """AUROC of trained students, and seconds of their training."""
    aurocs, seconds = defaultdict(list), defaultdict(list)
    for path in sorted((HERE.parent / "paper" / "rows").glob("*.csv")):
        for row in csv.DictReader(path.open()):
            if row["method"] in TRAINED:
                key = row["dataset"], SETTINGS[row["setting"]], row["class"], TRAINED[row["method"]]
                aurocs[key].append(100 * float(row["auroc"]))
                seconds[key].append(float(row["seconds"]))
    return aurocs, seconds


def solved() -> tuple[Figures, Figures]:
    """AUROC of students in closed form, and seconds of the whole detector's fit."""
    aurocs, seconds = defaultdict(list), defaultdict(list)
    for row in csv.DictReader((HERE / "rows.csv").open()):
        if row["teacher"] == "vit_tiny" and row["method"] in TRAINED.values():
            key = row["data"], row["setting"], row["class"], row["method"]
            aurocs[key].append(100 * float(row["auroc"]))
            if row["seconds"]:
                seconds[key].append(float(row["seconds"]))
    return aurocs, seconds


def cell(values: list[float]) -> str:
    spread = f" ± {stdev(values):.1f}" if len(values) > 1 else ""
    return f"{mean(values):.1f}{spread}"


def row(label: str, *cells: str) -> None:
    print(f"| {label} | " + " | ".join(cells) + " |")


def main() -> None:
    theirs, training = trained()
    ours, fitting = solved()
    print(
        "# Trained students against students in closed form\n\n"
        "Written by `python benchmarks/accuracy/students.py` from the rows of `benchmarks/paper/tables.py 3` and of\n"
        "`benchmarks/accuracy/run.py fit`. ViT-Tiny/16 at 224 pixels, ten blocks; AUROC in per cent, ± the standard\n"
        "deviation over seeds where there are three. Trained: `BlockStudents` with the library's defaults and the\n"
        "paper's densities; whole: the paper's two spaces. Closed form: `RidgeStudents`; whole: the default.\n"
        "Seconds of training, and of measuring all that the tables need, are of cores that other processes shared,\n"
        "the median over seeds; those of the default's whole fit are of one thread. Where all classes but one of\n"
        "CIFAR-10, Fashion-MNIST and View are normal, most students were trained on an NVIDIA H100: compare no\n"
        "seconds there.\n"
    )
    print("| normal class | trained | closed form | whole, trained | whole, default | s, trained | s, default |")
    print("|---|---|---|---|---|---|---|")
    for name, setting in sorted({key[:2] for key in theirs} & {key[:2] for key in ours}):
        both = [k for k in theirs if k[:2] == (name, setting) and k[3] == "discrepancy" and k in ours]
        columns = []
        for key in both:
            whole = (*key[:3], "all spaces")
            seconds = ([median(found[k])] if found[k] else [] for found, k in ((training, key), (fitting, whole)))
            columns.append([theirs[key], ours[key], theirs[whole], ours[whole], *seconds])
            row(f"{name}, {setting}: {key[2]}", *map(cell, columns[-1][:4]), *map(_seconds, columns[-1][4:]))
        means = [mean(mean(values) for values in column if values) for column in zip(*columns)]
        row(f"**{name}, {setting}**", *(f"**{x:.1f}**" for x in means[:4]), *(f"**{x:.0f}**" for x in means[4:]))


def _seconds(values: list[float]) -> str:
    return f"{mean(values):.0f}" if values else "-"


if __name__ == "__main__":
    main()
