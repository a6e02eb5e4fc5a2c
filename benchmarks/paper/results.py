"""Put the tables of one or more folders of results into one Markdown file, with the lifts side by side.

    python benchmarks/paper/results.py paper-results > benchmarks/paper/RESULTS.md

Reads what tables.py, figure4.py, why.py and losses.py left there, INTRODUCTION.md from beside this file, and the
figures of published.py.
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

HOW = """
**Where it helps, and where not.** Log-likelihoods of the two spaces are added as they are; nothing in normal images
says which of the two to trust. The discrepancy adds what the embedding lacks where students deviate more on images of a
kind that they did not train on; by how much they do is in the last tables of this section.
""".strip()


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
        if number == "3":
            mean = cells(text)[1]["mean"]
            theirs = published.paper_lift(name)
            unread |= theirs is None
            shown = "-" if theirs is None else f"{theirs:+.1f}"
            lines.append(f"| {name} | unimodal | {mean[0]} | {mean[-1]} | {LIFT.search(text).group(1)} | {shown} |")
        elif number == "5":
            titles, figures = cells(text)
            mean = dict(zip(titles, figures["mean"]))
            before, after = mean["embedding"], mean["Transformaly"]
            lines.append(f"| {name} | multimodal | {before} | {after} | {after - before:+.1f} | |")
    if unread:
        lines += ["", "-: the cells of the paper's table 3 could not be read."]
    return lines


Lift = tuple[str, float, float, float]  # class, and the AUROC of the embedding, the discrepancy and both


def lifts_by_class(files: list[tuple[str, str, str]], number: str, titles: tuple[str, str, str]) -> list[Lift]:
    """Each class in the tables of this number, from the last columns whose titles begin like these."""
    rows = []
    for other, name, text in files:
        if other == number:
            known, figures = cells(text)
            columns = [max(i for i, column in enumerate(known) if column.startswith(title)) for title in titles]
            rows += [(f"{name}, {c}", *(row[i] for i in columns)) for c, row in figures.items() if c != "mean"]
    return rows


def where_it_helps(files: list[tuple[str, str, str]]) -> list[str]:
    """Which classes gain by the discrepancy, and why others lose."""
    lines = []
    settings = {
        "unimodal": ("3", ("embedding", "discrepancy", "both")),
        "multimodal": ("5", ("embedding", "discrepancy", "Transformaly")),
    }
    for setting, (number, titles) in settings.items():
        rows = lifts_by_class(files, number, titles)
        if len({both - e for _, e, _, both in rows}) < 3:
            continue
        lost = sorted((row for row in rows if row[3] < row[1]), key=lambda row: row[3] - row[1])
        found = spearmanr([d - e for _, e, d, _ in rows], [both - e for _, e, _, both in rows])
        lines += [
            f"**{setting.capitalize()}**: over {len(rows)} classes, the lift goes with how much better or worse the "
            "discrepancy is by itself than the embedding (Spearman's rho "
            f"{found.statistic:.2f}, p = {found.pvalue:.1g}). "
            + (f"The {len(lost)} classes that lose:" if lost else "No class loses."),
            "",
        ]
        if lost:
            lines += [
                "| class | embedding | discrepancy | both | lift |",
                "|---|---|---|---|---|",
                *(f"| {n} | {e:.1f} | {d:.1f} | {both:.1f} | {both - e:+.1f} |" for n, e, d, both in lost),
                "",
            ]
    return lines


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


def reports(pattern: str, folders: list[Path]) -> list[str]:
    """What other commands left in these folders."""
    return [path.read_text() for folder in folders for path in sorted(folder.glob(pattern))]


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
    print("\n" + HOW + "\n")
    print("\n".join(where_it_helps(files)).strip())
    print("\n".join(["", *reports("why_*.md", options.folders)]).rstrip())
    print("\n## Tables\n")
    print("\n".join(text for _, _, text in files).strip())
    quotes = sources(files)
    if quotes:
        print("\n## Sources of the quoted figures\n")
        print("\n".join(quotes))
    if losses := reports("losses_*.md", options.folders):
        print("\n## Losses of the rivals that train\n")
        print("\n".join(losses).strip())
    if confusion := reports("confusion_*.md", options.folders):
        print("\n## Pre-training confusion\n")
        print("\n".join(confusion).strip())


if __name__ == "__main__":
    main()
