"""Put the tables of one or more folders of results into one Markdown file, with the lifts side by side.

    python benchmarks/paper/results.py paper-results > benchmarks/paper/RESULTS.md

Reads what tables.py and figure4.py left there, INTRODUCTION.md from beside this file, and the figures of published.py.
"""

from __future__ import annotations

import argparse
import math
import os
import platform
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import published
from scipy.stats import spearmanr

TABLE = re.compile(r"table(\d)_(.+)\.md")
LIFT = re.compile(r"Lift of both over the embedding alone: (.+) points\.")


def machine() -> str:
    """Processor, cores and system."""
    name = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(r"model name\s*: (.+)", cpuinfo.read_text())
        name = found.group(1) if found else name
        flags = [flag for flag in ("avx512_bf16", "amx_bf16") if flag in cpuinfo.read_text()]
        name += f" ({', '.join(flags)})" if flags else ""
    return f"{name}, {os.cpu_count()} cores, {platform.system()}"


def cells(text: str) -> tuple[list[str], dict[str, list[float]]]:
    """Titles and figures of a table, row by row; the mean is the row "mean"."""
    rows = [line.strip("| ").replace("*", "").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    titles = rows[0][1:]
    figures = {
        name: [float(cell.split()[0]) if cell[:1].isdigit() else math.nan for cell in row]
        for name, *row in rows[1:]
        if not name.startswith("quoted")
    }
    return titles, figures


def lifts(files: list[tuple[str, str, str]]) -> list[str]:
    """The table of the discrepancy's lift on each data set, beside the paper's."""
    lines = ["| data set | setting | embedding | both | lift | the paper's lift |", "|---|---|---|---|---|---|"]
    unread = False
    for number, name, text in files:
        titles, figures = cells(text)
        if number == "3":
            mean = figures["mean"]
            theirs = published.paper_lift(name)
            unread |= theirs is None
            shown = "-" if theirs is None else f"{theirs:+.1f}"
            lines.append(f"| {name} | unimodal | {mean[0]} | {mean[-1]} | {LIFT.search(text).group(1)} | {shown} |")
        elif number == "5":
            mean = dict(zip(titles, figures["mean"]))
            before, after = mean["embedding"], mean["Transformaly"]
            lines.append(f"| {name} | multimodal | {before} | {after} | {after - before:+.1f} | |")
    if unread:
        lines += ["", "-: the cells of the paper's table 3 could not be read."]
    return lines


def where_it_helps(files: list[tuple[str, str, str]]) -> list[str]:
    """Which classes gain by the discrepancy, and why others lose."""
    rows = []
    for number, name, text in files:
        if number == "3":
            titles, figures = cells(text)
            columns = [titles.index(title) for title in ("embedding", "discrepancy 10", "both 10")]
            rows += [
                (f"{name}, {label}", *(row[i] for i in columns)) for label, row in figures.items() if label != "mean"
            ]
    ahead = [discrepancy - embedding for _, embedding, discrepancy, _ in rows]
    gain = [both - embedding for _, embedding, _, both in rows]
    correlation = spearmanr(ahead, gain)
    lines = [
        f"Where does it help? Over the {len(rows)} unimodal runs of table 3, the lift goes with how good the "
        "discrepancy is by itself, beside the embedding: Spearman's rho "
        f"{correlation.statistic:.2f} (p = {correlation.pvalue:.1g}). Log-likelihoods are added as they are, and "
        "nothing in normal images says which of the two spaces to trust. The classes that lose:",
        "",
        "| class | embedding | discrepancy | both | lift |",
        "|---|---|---|---|---|",
    ]
    lost = sorted((row for row in rows if row[3] < row[1]), key=lambda row: row[3] - row[1])
    return lines + [f"| {n} | {e:.1f} | {d:.1f} | {both:.1f} | {both - e:+.1f} |" for n, e, d, both in lost]


def sources(files: list[tuple[str, str, str]]) -> list[str]:
    """Where the quoted figures of these tables were read: a line for each source."""
    quotes: dict[str, list[str]] = {}
    for number, name, _ in files:
        for title, figure in published.figures(number, name).items():
            quote = f"{title} {figure.auroc:.1f} ({name})"
            lines = quotes.setdefault(figure.source, [])
            if quote not in lines:
                lines.append(quote)
    return [f"- {published.SOURCES[key]}: {', '.join(lines)}." for key, lines in quotes.items()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    options = parser.parse_args()
    files = sorted(
        (*TABLE.fullmatch(path.name).groups(), path.read_text())
        for folder in options.folders
        for path in folder.glob("table?_*.md")
    )
    introduction = Path(__file__).with_name("INTRODUCTION.md").read_text().strip()
    print(introduction.replace("MACHINE", machine()))
    print("\n## The discrepancy's lift\n")
    print("\n".join(lifts(files)))
    print("\n" + "\n".join(where_it_helps(files)))
    print("\n## Tables\n")
    print("\n".join(text for _, _, text in files).strip())
    quotes = sources(files)
    if quotes:
        print("\n## Sources of the quoted figures\n")
        print("\n".join(quotes))
    reports = [path.read_text() for folder in options.folders for path in sorted(folder.glob("confusion_*.md"))]
    if reports:
        print("\n## Pre-training confusion\n")
        print("\n".join(reports).strip())


if __name__ == "__main__":
    main()
