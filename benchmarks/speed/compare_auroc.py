"""AUROC of two ways to train, side by side, from folders of results of ``benchmarks/paper/tables.py``.

    python benchmarks/paper/tables.py 3 --seeds 0 1 2 --out AUTO ...
    python benchmarks/paper/tables.py 3 --seeds 0 1 2 --out FLOAT32 --precision float32 ...
    python benchmarks/paper/tables.py 3 --seeds 0 1 2 --out PAPER --paper ...
    python benchmarks/speed/compare_auroc.py AUTO FLOAT32 --names "16 bits" float32
    python benchmarks/speed/compare_auroc.py AUTO PAPER --names defaults "the paper's training"

Compares what both folders have: the same class, seed and method. Students that start from the same weights and see the
same batches part by rounding as they would by another seed, so the spread over seeds stands beside the difference.
"""

from __future__ import annotations

import argparse
import csv
import shlex
from pathlib import Path

import numpy as np

METHODS = {"embedding": "embedding", "discrepancy, 10 blocks": "discrepancy", "both, 10 blocks": "both"}


def read(folder: Path) -> dict[tuple[str, str, str, int], float]:
    """AUROC by data set, method, class and seed, of the rows of table 3."""
    with (folder / "rows.csv").open(newline="") as file:
        return {
            (row["dataset"], row["method"], row["class"], int(row["seed"])): float(row["auroc"])
            for row in csv.DictReader(file)
            if row["setting"] == "unimodal" and row["method"] in METHODS
        }


def compare(first: Path, second: Path) -> list[str]:
    """Rows of the table for one data set."""
    found, reference = read(first), read(second)
    shared = sorted(found.keys() & reference.keys())
    if not shared:
        raise SystemExit(f"{first} and {second} have no class, seed and method in common.")
    lines = []
    for method, name in METHODS.items():
        keys = [key for key in shared if key[1] == method]
        runs: dict[str, list[float]] = {}
        moved: dict[str, list[float]] = {}
        for key in keys:
            runs.setdefault(key[2], []).append(reference[key])
            moved.setdefault(key[2], []).append(found[key] - reference[key])
        spread = np.sqrt(np.mean([np.var(values, ddof=1) for values in runs.values() if len(values) > 1] or [np.nan]))
        differences = np.array([np.mean(values) for values in moved.values()])  # an embedding is the same for all seeds
        error = differences.std(ddof=1) / np.sqrt(len(differences)) if len(differences) > 1 else np.nan
        lines.append(
            f"| {keys[0][0]} | {name} | {len(runs)} x {len(keys) // len(runs)} "
            f"| {np.mean([found[key] for key in keys]):.4f} | {np.mean([reference[key] for key in keys]):.4f} "
            f"| {differences.mean():+.4f} +- {error:.4f} "
            f"| {np.abs(differences).max():.4f} | {'-' if np.isnan(spread) else f'{spread:.4f}'} |"
        )
    return lines


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path, metavar="FOLDER", help="pairs, one for each data set")
    parser.add_argument("--names", nargs=2, default=["first", "second"], help="what the two of a pair are")
    options = parser.parse_args()
    folders, (one, other) = options.folders, options.names
    if len(folders) % 2:
        parser.error("folders come in pairs")
    print(f"### AUROC: {one}, and {other}\n")
    print(
        f"| data | score | classes x seeds | {one} | {other} | mean difference +- standard error over classes "
        "| largest of a class | standard deviation over seeds |\n|---|---|---|---|---|---|---|---|"
    )
    for pair in zip(folders[::2], folders[1::2]):
        print("\n".join(compare(*pair)))
    command = ["python", "benchmarks/speed/compare_auroc.py", *["FOLDER"] * len(folders), "--names", one, other]
    print(f"\n    {shlex.join(command)}\n")


if __name__ == "__main__":
    main()
