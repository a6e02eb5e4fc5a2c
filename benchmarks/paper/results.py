"""Put the tables of one or more folders of results into one Markdown file, with the main figures first.

    python benchmarks/paper/results.py paper-results > benchmarks/paper/RESULTS.md
    python benchmarks/paper/results.py paper-results --paper results-of-paper-option > benchmarks/paper/RESULTS.md
    python benchmarks/paper/results.py paper-results --paper PAPER --few PAPER-AND-SAMPLES > benchmarks/paper/RESULTS.md

Reads what tables.py, figure4.py, why.py and losses.py left there, INTRODUCTION.md from beside this file, and the
figures of published.py. Means and lifts are of the rows that tables.py leaves beside its tables, not of rounded cells.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import sys
from collections.abc import Iterable
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import published
from rivals import RIVALS
from scipy.stats import spearmanr
from study import Rows
from tables import cell

SETTINGS = ("unimodal", "multimodal")

WHAT = """
Mean AUROC over classes, per cent; each is in turn the normal one (unimodal) or the only one that is not (multimodal).
-: not run on all classes, or not in the paper. Default: `TransformalyDetector` as it comes. Paper's settings:
`TransformalyDetector.paper()`, its training included (`--paper`, see "The paper's own training"). On all images of nine
classes of Fashion-MNIST that training takes 1.5 to 2.5 hours of a core for each class that takes its turn: it ran on
six of the ten, and on fewer images of all (see "The paper's own training on fewer images"); all methods have a line of
their own for these. Faster students: the same two spaces, densities and sum, with students trained as the other tables'
commands say. Best rival: the best of those that ran, by these very figures, which favours it; mixtures in the embedding
(tables 4 and 6) count as densities of this method. The paper: its own figure, of a ViT-B/16 at 384 pixels, all images
and all classes. ±: standard deviation over seeds.
""".strip()

FEW = """
Thirty epochs of every image of all classes but one take hours a class on a processor. Here a run has fewer images of
each class (`--samples`): 297 or 300 altogether, as many as one class has in the unimodal tables, and 153 of
Fashion-MNIST. The default and the rivals that train no network learn from the same images. CIFAR-10 and View have run
on all of their images as well, in the section before.
""".strip()

HOW = """
The paper's lift: of ten blocks, in its table 3; multimodal, its table 5 less the single Gaussian of its table 6, the
nearest thing that it prints.

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


class Figures:
    """AUROC of each class and seed, by data set, setting and method.

    Parameters
    ----------
    rows : iterable of dict
        As tables.py writes them; rows of more than one table count once.
    """

    def __init__(self, rows: Iterable[dict[str, str]]):
        self._values: dict[tuple[str, str], dict[str, dict[tuple[str, str], float]]] = {}
        for row in rows:
            study = self._values.setdefault((row["dataset"], row["setting"]), {})
            study.setdefault(row["method"], {})[row["class"], row["seed"]] = float(row["auroc"])

    def studies(self) -> list[tuple[str, str]]:
        """Data sets and settings, the unimodal ones first."""
        return sorted(self._values, key=lambda study: (SETTINGS.index(study[1]), study[0]))

    def has(self, study: tuple[str, str]) -> bool:
        """Whether any method ran."""
        return study in self._values

    def classes(self, study: tuple[str, str]) -> list[str]:
        """All classes that any method ran on."""
        return list(dict.fromkeys(name for values in self._values[study].values() for name, _ in values))

    def of_classes(self, study: tuple[str, str], classes: Iterable[str]) -> Figures:
        """Those of some classes of one study."""
        kept, found = set(classes), Figures([])
        found._values[study] = {
            method: {key: value for key, value in values.items() if key[0] in kept}
            for method, values in self._values[study].items()
        }
        return found

    def values(self, study: tuple[str, str], method: str) -> np.ndarray:
        """AUROC of classes by seeds; NaN where there is none."""
        found = self._values[study].get(method, {})
        seeds = sorted({seed for _, seed in found}) or ["0"]
        return np.array([[found.get((name, seed), np.nan) for seed in seeds] for name in self.classes(study)])

    def mean(self, study: tuple[str, str], method: str) -> float:
        """Mean over seeds and classes; NaN unless all are there."""
        return float(self.values(study, method).mean())

    def discrepancy(self, study: tuple[str, str]) -> str:
        """The method that is the discrepancy of the most blocks."""
        methods = [method for method in self._values[study] if method.startswith("discrepancy, ")]
        return max(methods, key=lambda method: int(method.split()[1]), default="discrepancy")


def main_figures(figures: Figures, paper: Figures, few: Figures) -> list[str]:
    """The table that matters: the library's defaults, the paper's settings, the best rival, the paper's own figure.

    Where the paper's settings ran on some of the classes, or on fewer images, more lines compare all methods on those.
    """
    header = ["data set", "setting", "default", "paper's settings", "faster students", "best rival", "the paper"]
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    for study in figures.studies():
        some = paper.classes(study) if paper.has(study) else []
        whole = set(some) == set(figures.classes(study))
        lines.append(_main_line(study, study[0], figures, paper if whole else Figures([]), figures))
        if some and not whole:
            title = f"{study[0]}, {len(some)} of {len(figures.classes(study))} classes"
            same = figures.of_classes(study, some)
            lines.append(_main_line(study, title, same, paper, same))
        if few.has(study) and not whole:
            lines.append(_main_line(study, f"{study[0]}, fewer images", few, few, Figures([])))
    return lines


def _main_line(study: tuple[str, str], title: str, figures: Figures, paper: Figures, faster: Figures) -> str:
    """One line of the main figures; default and rivals are those of `figures`."""
    runs = ((figures, "default"), (paper, "Transformaly"), (faster, "Transformaly"))
    ours = [cell(found.values(study, method).mean(axis=0)) if found.has(study) else "-" for found, method in runs]
    theirs = published.paper_auroc(*study)
    shown = [title, study[1], *ours, best_rival(figures, study), "-" if theirs is None else f"{theirs:.1f}"]
    return "| " + " | ".join(shown) + " |"


def best_rival(figures: Figures, study: tuple[str, str]) -> str:
    """The rival with the highest mean, and that mean in per cent."""
    rivals = {name: figures.mean(study, name) for name in RIVALS}
    best = max(rivals, key=lambda name: np.nan_to_num(rivals[name]))
    return "-" if np.isnan(rivals[best]) else f"{best} {100 * rivals[best]:.1f}"


def few_figures(figures: Figures) -> list[str]:
    """The library's defaults beside the paper's settings, of runs that had both learn from the same images."""
    methods = {"default": "default", "paper's settings": "Transformaly", "embedding alone": "embedding"}
    lines = ["| " + " | ".join(["data set", "setting", "classes", *methods, "best rival"]) + " |", "|---" * 7 + "|"]
    for study in figures.studies():
        values = [figures.values(study, method) for method in methods.values()]
        means = [cell(found.mean(axis=0)) for found in values]
        lines.append("| " + " | ".join([*study, str(len(values[0])), *means, best_rival(figures, study)]) + " |")
    return lines


def lifts(figures: Figures) -> list[str]:
    """The table of the discrepancy's lift on each data set, beside the paper's."""
    lines = ["| data set | setting | embedding | both | lift | the paper's lift |", "|---" * 6 + "|"]
    for study in figures.studies():
        embedding, both = (figures.values(study, method) for method in ("embedding", "Transformaly"))
        if np.isnan(embedding).any() or embedding.shape != both.shape:
            continue
        theirs = published.paper_lift(*study)
        cells = [
            cell(embedding.mean(axis=0)),
            cell(both.mean(axis=0)),
            cell((both - embedding).mean(axis=0), sign=True),
        ]
        lines.append("| " + " | ".join([*study, *cells, "-" if theirs is None else f"{theirs:+.1f}"]) + " |")
    return lines


def where_it_helps(figures: Figures) -> list[str]:
    """Which classes gain by the discrepancy, and why others lose."""
    lines = []
    for setting in SETTINGS:
        rows: list[tuple[str, float, float, float]] = []  # class, AUROC of the embedding, the discrepancy and both
        for study in figures.studies():
            if study[1] == setting:
                methods = ("embedding", figures.discrepancy(study), "Transformaly")
                columns = [100 * figures.values(study, method).mean(axis=1) for method in methods]
                named = zip(figures.classes(study), *columns)
                rows += [(f"{study[0]}, {name}", *row) for name, *row in named if not np.isnan(row).any()]
        if len({both - e for _, e, _, both in rows}) < 3:
            continue
        lost = sorted((row for row in rows if row[3] < row[1]), key=lambda row: row[3] - row[1])
        found = spearmanr([d - e for _, e, d, _ in rows], [both - e for _, e, _, both in rows])
        lines += [
            f"**{setting.capitalize()}**: over {len(rows)} classes, the lift goes with how much better or worse the "
            "discrepancy is by itself than the embedding (Spearman's rho "
            f"{found.statistic:.2f}, p = {found.pvalue:.1g}). "
            + (f"The {len(lost)} that lose:" if len(lost) > 1 else "One loses:" if lost else "No class loses."),
            "",
        ]
        if lost:
            lines += [
                "| class | embedding | discrepancy | both | lift |",
                "|---|---|---|---|---|",
                *(f"| {n} | {e:.1f} | {d:.1f} | {both:.1f} | {both - e:+.2f} |" for n, e, d, both in lost),
                "",
            ]
    return lines


def table_paths(folders: list[Path]) -> list[Path]:
    """Tables that tables.py left in these folders, in the paper's order."""
    return sorted((path for folder in folders for path in folder.glob("table?_*.md")), key=lambda path: path.name)


def reports(pattern: str, folders: list[Path]) -> list[str]:
    """What other commands left in these folders."""
    return [path.read_text() for folder in folders for path in sorted(folder.glob(pattern))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", nargs="+", type=Path)
    parser.add_argument("--paper", nargs="+", type=Path, default=[], help="folders of runs with --paper")
    parser.add_argument("--few", nargs="+", type=Path, default=[], help="folders of runs with --paper and --samples")
    options = parser.parse_args()
    paths, papers, few = map(table_paths, (options.folders, options.paper, options.few))
    figures, paper, of_few = (
        Figures(row for path in found for row in Rows(path.with_suffix(".csv")).rows) for found in (paths, papers, few)
    )
    title, introduction = Path(__file__).with_name("INTRODUCTION.md").read_text().strip().split("\n", 1)
    print(title + "\n\n## The main figures\n")
    print("\n".join(main_figures(figures, paper, of_few)))
    print("\n" + WHAT)
    print("\n## How they were made\n\n" + introduction.strip().replace("MACHINE", machine()))
    print("\n## The discrepancy's lift\n")
    print("\n".join(lifts(figures)))
    print("\n" + HOW + "\n")
    print("\n".join(where_it_helps(figures)).strip())
    print("\n".join(["", *reports("why_*.md", options.folders)]).rstrip())
    if papers:
        print("\n## The paper's own training\n")
        print("\n".join(path.read_text() for path in papers).replace("### ", "### With `--paper`: ").strip())
    if few:
        print("\n## The paper's own training on fewer images\n")
        print(FEW + "\n")
        print("\n".join(few_figures(of_few)) + "\n")
        print("\n".join(path.read_text() for path in few).replace("### ", "### With `--paper --samples`: ").strip())
    print("\n## Tables\n")
    print("\n".join(path.read_text() for path in paths).strip())
    if losses := reports("losses_*.md", options.folders):
        print("\n## Losses of the rivals that train\n")
        print("\n".join(losses).strip())
    if confusion := reports("confusion_*.md", options.folders):
        print("\n## Pre-training confusion\n")
        print("\n".join(confusion).strip())


if __name__ == "__main__":
    main()
