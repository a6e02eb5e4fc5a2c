"""Put the tables of one or more folders of results into one Markdown file, with the lifts side by side.

    python benchmarks/paper/results.py paper-results > benchmarks/paper/RESULTS.md

Reads what tables.py and figure4.py left there, and INTRODUCTION.md from beside this file.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
from pathlib import Path

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
    """The table of the discrepancy's lift on each data set."""
    lines = ["| data set | embedding | both | lift |", "|---|---|---|---|"]
    for number, name, text in files:
        if number == "3":
            means = MEANS.search(text).group(1).replace("*", "").split(" | ")
            lines.append(f"| {name} | {means[0]} | {means[-1]} | {LIFT.search(text).group(1)} |")
    return lines


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
    reports = [path.read_text() for folder in options.folders for path in sorted(folder.glob("confusion_*.md"))]
    if reports:
        print("\n## Pre-training confusion\n")
        print("\n".join(reports).strip())


if __name__ == "__main__":
    main()
