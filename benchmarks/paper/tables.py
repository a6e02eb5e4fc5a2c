"""The paper's tables, each from one command, on a data set of yours.

    python benchmarks/paper/tables.py 1 3 4 7 --data covid19 --root DIR --weights FILE
    python benchmarks/paper/tables.py 5 6 --data fashion_mnist --samples 500 --epochs 2 --weights FILE
    python benchmarks/paper/tables.py all --dry-run

1 and 2: unimodal AUROC, rivals and this detector (the paper splits its data sets over two tables). 3: embedding alone,
discrepancies of the last 1, 3, 10 blocks, both. 4 and 6: densities on the embedding, unimodal and multimodal. 5:
multimodal AUROC. 7: explained variance. The teacher runs once over the data set, and students are trained once for each
class and seed, whatever the number of tables. Rows go to OUT/rows.csv as each class finishes, tables to OUT/*.md, and
the rows that a table is made of to a .csv beside it; a stopped run goes on where it was.
"""

from __future__ import annotations

import argparse
import platform
import sys
import time
import warnings
from importlib.metadata import version
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import published
import spaces
from options import command, complete, guarded
from options import parser as common_options
from rivals import RIVALS
from study import SEEDED_RIVALS, Rows, Study

from skl_transformaly import __version__

TITLES = {
    "1": "Table 1, unimodal",
    "2": "Table 2, unimodal",
    "3": "Table 3, which features",
    "4": "Table 4, density of the embedding, unimodal",
    "5": "Table 5, multimodal",
    "6": "Table 6, density of the embedding, multimodal",
    "7": "Table 7, explained variance",
}


def plan(table: str, options: argparse.Namespace) -> tuple[str, list[str], list[tuple[str, str, str]]]:
    """Setting, groups to compute, and the columns (title, group, method) of a table."""
    setting = "multimodal" if table in "56" else "unimodal"
    blocks = spaces.block_counts(options.n_blocks)
    ours = [
        ("embedding", "embedding", "embedding"),
        ("discrepancy", "students", f"discrepancy, {blocks[-1]} blocks"),
        ("Transformaly", "students", "Transformaly"),
    ]
    if table in "125":
        columns = [(name, name, name) for name in RIVALS if name in options.rivals]
        columns += [("default", "default", "default"), *ours]
    elif table == "3":
        columns = ours[:1]
        columns += [(f"discrepancy {m}", "students", f"discrepancy, {m} blocks") for m in blocks]
        columns += [(f"both {m}", "students", f"both, {m} blocks") for m in blocks]
    elif table in "46":
        columns = [(name, "densities", name) for name in spaces.DENSITIES]
    else:
        columns = [
            (f"{space} at {share:.0%}", "students", f"{space}, {share:.0%} variance")
            for space in ("embedding", "both")
            for share in spaces.EXPLAINED_VARIANCES
        ]
    return setting, list(dict.fromkeys(group for _, group, _ in columns)), columns


def markdown(table: str, study: Study, shown: str, seconds: float) -> str:
    """One table with what is needed to make it again; `seconds` are those of the teacher's run."""
    options = study.options
    setting, groups, columns = plan(table, options)
    values = [study.values(setting, group, method) for _, group, method in columns]
    turn = "normal" if setting == "unimodal" else "anomalous"
    lines = [
        f"### {TITLES[table]}: {study.data.name}",
        "",
        f"AUROC in per cent; each class in turn is {turn}."
        + (" ±: standard deviation over the seeds." if any(v.shape[1] > 1 for v in values) else ""),
        "",
        f"| {turn} class | " + " | ".join(title for title, _, _ in columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for i, label in enumerate(study.labels()):
        name = study.data.class_names[label].replace("|", "\\|")
        lines.append(f"| {name} | " + " | ".join(cell(v[i]) for v in values) + " |")
    lines.append("| **mean** | " + " | ".join(f"**{cell(v.mean(axis=0))}**" for v in values) + " |")
    figures = published.quoted(table, study.data.name)
    if figures:
        quoted = [f"*{figures[title]:.1f}*" if title in figures else "" for title, _, _ in columns]
        every = "" if len(study.labels()) == len(study.data.class_names) else " and classes"
        lines.append(f"| *the paper: all images{every}, other teachers* | " + " | ".join(quoted) + " |")
    others = {name: figure for name, figure in figures.items() if name not in [title for title, _, _ in columns]}
    if others:
        lines += [
            "",
            "The paper has besides: " + ", ".join(f"{name} {figure:.1f}" for name, figure in others.items()) + ".",
        ]
    if table == "3":
        lift = values[-1] - values[0]
        lines += ["", f"Lift of both over the embedding alone: {cell(lift.mean(axis=0), sign=True)} points."]
    if table in "46":
        lines += [
            "",
            "On the whitened embedding, cut where it explains 90 %; DN2 of the other tables takes it as it is.",
        ]
    if any(np.isnan(v).any() for v in values):
        lines += ["", "-: not run, or fewer training images than the method needs."]
    packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "timm", "scikit-learn"))
    own = sorted({len(study.task(setting, label)[0]) for label in study.labels()})
    in_a_run = "-".join(map(str, sorted({own[0], own[-1]})))
    notes = f"{study.n_train} training images ({in_a_run} of them in a run) and {len(study.data.y_test)} test images"
    notes += f", seeds {options.seeds}"
    if options.rival_seeds and any(group in SEEDED_RIVALS for group in groups):
        notes += f" (rivals {options.rival_seeds})"
    if options.default_rows and "default" in groups:
        notes += ", the default's column from benchmarks/accuracy/rows.csv"
    if any(group == "students" for group in groups):
        students = study.students(options.seeds[0])
        notes += f", {students.max_epochs} epochs of batches of {students.batch_size}"
    took = f"{study.seconds(setting, groups):.0f} s for the rows, {seconds:.0f} s for the teacher's run."
    lines += [
        "",
        f"{notes}; {options.teacher} at {study.live.image_size_[0]} pixels in {study.live.precision_}. "
        f"{'Written by' if options.show else took} "
        f"skl-transformaly {__version__}, {packages}, Python {platform.python_version()}.",
        "",
        f"    {shown}",
        "",
    ]
    return "\n".join(lines)


def cell(aurocs: np.ndarray, sign: bool = False) -> str:
    """Mean over seeds in per cent, and standard deviation where there are several."""
    if np.isnan(aurocs).all():
        return "-"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        mean, deviation = 100 * np.nanmean(aurocs), 100 * np.nanstd(aurocs)
    text = f"{mean:+.1f}" if sign else f"{mean:.1f}"
    return text + (f" ± {deviation:.1f}" if np.isfinite(aurocs).sum() > 1 else "")


def write_rows(table: str, study: Study, path: Path) -> None:
    """Write the rows that a table is made of: of all rows.csv, those of its settings."""
    setting, _, columns = plan(table, study.options)
    path.unlink(missing_ok=True)
    chosen = Rows(path)
    for _, group, method in columns:
        for _, _, row in study.found(setting, group, method):
            chosen.add(**row)


def main(arguments: list[str] | None = None) -> None:
    parser = common_options(__doc__)
    parser.add_argument(
        "tables",
        nargs="+",
        choices=[*TITLES, "all"],
        metavar="TABLE",
        help="1 to 7, or all; 1 and 2 are the same table, of two groups of data sets: for data of yours, 2",
    )
    parser.add_argument(
        "--no-students", action="store_true", help="train no students; of what takes them, show what is there already"
    )
    arguments = sys.argv[1:] if arguments is None else arguments
    options = complete(parser, parser.parse_args(arguments))
    if "all" in options.tables:
        options.tables = ["1" if options.data in published.TABLES["1"] else "2", "3", "4", "5", "6", "7"]
    shown = command("tables.py", [argument for argument in arguments if argument != "--show"])
    if options.show:
        options.device = "cpu"  # whatever computed the rows
    start = time.perf_counter()
    study = Study(options)
    seconds = time.perf_counter() - start
    for table in options.tables:
        setting, groups, _ = plan(table, options)
        path = options.out / f"table{table}_{study.data.name}.md"

        def write(table: str = table, path: Path = path) -> str:
            text = markdown(table, study, shown, seconds)
            path.write_text(text)
            write_rows(table, study, path.with_suffix(".csv"))
            return text

        given = {"students": options.no_students, "default": bool(options.default_rows)}
        if not options.show:
            study.run(setting, [group for group in groups if not given.get(group)], write)
        text = write()
        print(text, flush=True)
        print(f"# Written to {path}; each figure is in {study.rows.path}.", file=sys.stderr)


if __name__ == "__main__":
    guarded(main)
