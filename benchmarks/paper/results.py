"""Put the tables of one or more folders of results into one Markdown file, with the lifts side by side.

    python benchmarks/paper/results.py paper-results > benchmarks/paper/RESULTS.md

Reads what tables.py and figure4.py left there, INTRODUCTION.md from beside this file, and the figures of published.py.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import published

TABLE = re.compile(r"table(\d)_(.+)\.md")
LIFT = re.compile(r"Lift of both over the embedding alone: (.+) points\.")
MEANS = re.compile(r"\| \*\*mean\*\* \| (.+) \|")


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


def lifts(files: list[tuple[str, str, str]]) -> list[str]:
    """The table of the discrepancy's lift on each data set, beside the paper's."""
    lines = ["| data set | embedding | both | lift | the paper's lift |", "|---|---|---|---|---|"]
    unread = False
    for number, name, text in files:
        if number == "3":
            means = MEANS.search(text).group(1).replace("*", "").split(" | ")
            theirs = published.paper_lift(name)
            unread |= theirs is None
            shown = "-" if theirs is None else f"{theirs:+.1f}"
            lines.append(f"| {name} | {means[0]} | {means[-1]} | {LIFT.search(text).group(1)} | {shown} |")
    if unread:
        lines += ["", "-: the cells of the paper's table 3 could not be read."]
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
