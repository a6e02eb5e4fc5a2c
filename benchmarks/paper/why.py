"""Why the discrepancy lifts, or does not: how much more an image deviates where its class was not trained on.

    python benchmarks/paper/why.py unimodal --data covid19 --root DIR --weights FILE
    python benchmarks/paper/why.py multimodal --epochs 2 --data fashion_mnist --weights FILE

Takes the students of tables 3 (unimodal) and 5 (multimodal), with those tables' options and their --out folder, where
they are kept; writes OUT/why_SETTING_DATA.md.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from options import command, complete, guarded, publish
from options import parser as common_options
from scipy.stats import spearmanr
from sklearn.metrics import roc_auc_score
from study import Study


def novelty(levels: np.ndarray, y: np.ndarray, setting: str) -> dict[str, np.ndarray]:
    """How the same images deviate in runs that trained on their class and in runs that did not.

    Parameters
    ----------
    levels : ndarray of shape (K, n_test)
        Mean logarithm of the discrepancies of each test image; a row for the run in which each class was chosen.
    y : ndarray of shape (n_test,), int
        Class of each test image, 0 ... K - 1.
    setting : {"unimodal", "multimodal"}
        Whether the chosen class was the one that was trained on, or the one that was not.

    Returns
    -------
    raised : ndarray of shape (K,)
        Factor by which the images of a class deviate more where it was not trained on; geometric mean. A class and a
        run count as one factor each, so that students that are better or worse altogether change nothing.
    correlation : ndarray of shape (K,)
        Spearman's, over the images of a class, of one with the other.
    familiar : ndarray of shape (K,)
        AUROC of telling a class from all others by how its images deviate where it was trained on: what the discrepancy
        would reach without noticing anything new.
    """
    own = np.arange(len(levels))[:, None] == y  # the run that chose the image's own class
    chosen = np.where(own, levels, 0).sum(axis=0)
    others = np.where(own, 0, levels).sum(axis=0) / (len(levels) - 1)
    trained, novel = (chosen, others) if setting == "unimodal" else (others, chosen)
    classes = [y == label for label in range(len(levels))]
    sign = -1 if setting == "unimodal" else 1
    return {
        "raised": np.exp(_beyond_class_and_run(np.stack([levels[:, c].mean(axis=1) for c in classes], axis=1)) * sign),
        "correlation": np.array([spearmanr(novel[c], trained[c]).statistic for c in classes]),
        "familiar": np.array([roc_auc_score(c, trained) for c in classes]),
    }


def _beyond_class_and_run(table: np.ndarray) -> np.ndarray:
    """By how much the diagonal of `table` (runs by classes) exceeds the sum of a run's and a class's own levels.

    These are fitted to what is beside the diagonal, by least squares.
    """
    run, label = np.nonzero(~np.eye(len(table), dtype=bool))
    one = np.eye(len(table))
    levels = np.linalg.lstsq(np.hstack([one[run], one[label]]), table[run, label], rcond=None)[0]
    return np.diag(table) - levels[: len(table)] - levels[len(table) :]


def report(study: Study, setting: str, found: dict[str, np.ndarray], shown: str) -> str:
    """The figures as Markdown."""
    deviates = 100 * (found["raised"] - 1)
    mean = 100 * np.expm1(np.log(found["raised"]).mean())
    columns = {
        "deviates more where not trained on": [f"{v:+.0f} %" for v in deviates],
        "rank correlation": [f"{v:.2f}" for v in found["correlation"]],
    }
    summary = (
        f"Images deviate {mean:.0f} % more where their class was not trained on (geometric mean). Rank correlation: of "
        f"how much a class's images deviate there with how much they do where it was trained on; median "
        f"{np.median(found['correlation']):.2f}."
    )
    method = f"discrepancy, {study.options.n_blocks} blocks"
    auroc = study.values(setting, "students", method).mean(axis=1)
    if setting == "multimodal" and not np.isnan(auroc).any():
        columns["AUROC of the discrepancy"] = [f"{100 * v:.1f}" for v in auroc]
        columns["AUROC where trained on"] = [f"{100 * v:.1f}" for v in found["familiar"]]
        if len(auroc) > 3:
            rho = spearmanr(auroc, found["familiar"]).statistic
            summary += (
                " Last column: what telling the class from the others by the mean deviation would reach if nothing "
                "about it were new. Over the classes, its rank correlation with the discrepancy's AUROC, whose "
                f"Gaussian notices images that deviate less than usual as well, is {rho:.2f}."
            )
    lines = [
        f"### How much of the discrepancy is novelty, {setting}: {study.data.name}",
        "",
        "| class | " + " | ".join(columns) + " |",
        "|---" * (len(columns) + 1) + "|",
    ]
    for place, label in enumerate(study.labels()):
        name = study.data.class_names[label].replace("|", "\\|")
        lines.append(f"| {name} | " + " | ".join(cells[place] for cells in columns.values()) + " |")
    return "\n".join([*lines, "", summary, "", f"    {shown}", ""])


def main(arguments: list[str] | None = None) -> None:
    parser = common_options(__doc__)
    parser.add_argument("setting", choices=["unimodal", "multimodal"])
    options = complete(parser, parser.parse_args(arguments))
    shown = command("why.py", sys.argv[1:] if arguments is None else arguments)
    study = Study(options)
    labels = study.labels()
    if len(labels) < 3 or options.classes:
        parser.error("all classes are needed, three at least: leave out --classes")
    study.run(options.setting, ["students"])
    y = np.searchsorted(labels, study.data.y_test[np.isin(study.data.y_test, labels)])
    levels = []
    for label in labels:
        runs = [study.discrepancies(options.setting, label, seed)[1] for seed in options.seeds]
        levels.append(np.log(np.mean(runs, axis=0)).mean(axis=1)[np.isin(study.data.y_test, labels)])
    text = report(study, options.setting, novelty(np.array(levels), y, options.setting), shown)
    path = options.out / f"why_{options.setting}_{study.data.name}.md"
    publish(text, path)


if __name__ == "__main__":
    guarded(main)
