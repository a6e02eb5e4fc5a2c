"""How well criteria that need no anomaly pick the setting that real anomalies would have picked.

    python benchmarks/selection/criteria.py --covid19 DIR --cifar10 FILE --weights FILE --memory DIR

Each class in turn is normal. A detector is fitted on 60 % of its training images in each of the settings below; the
criteria see the other 40 % and nothing else: their log-likelihood, and the AUROC against synthetic outliers made of
them. What a setting is worth is its AUROC on the test set, with all other classes as anomalies. Regret is the AUROC of
the best setting less that of the setting picked, in points (0.01); rank correlation is Spearman's, between criterion
and test AUROC over the settings.

"10 real anomalies" and "half of the real anomalies" see anomalies beside the 40 %: what having some is worth. All rows
are measured on the other half of the anomalies. Writes criteria.md beside this file.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from itertools import product
from pathlib import Path

import held_out
import numpy as np
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from tqdm import tqdm

from skl_transformaly import GaussianDensity, KNNDensity
from skl_transformaly.model_selection import synthetic_outliers

KINDS = ("cutpaste", "channels", "patches")
CRITERIA = ("held_out_log_likelihood", "all kinds", *KINDS, "10 real anomalies", "half of the real anomalies")

EXPLAINED_VARIANCES = (0.5, 0.7, 0.8, 0.9, 0.95, 0.99)
DENSITIES: dict[str, Callable] = {
    "gaussian": partial(GaussianDensity, shrinkage=0.3, target="diagonal"),
    "gmm": lambda: GaussianMixture(5, random_state=0),
    "knn": KNNDensity,
}
BLOCKS = (1, 2, 4, 7, 10)
SHRINKAGES = (0, 0.1, 0.3, 0.6, 1)

# (explained_variance, density, n_blocks, shrinkage of the density of discrepancies)
Setting = tuple[float, str, int, float]
DEFAULT: Setting = (0.9, "gaussian", 10, 0.3)
GRIDS: dict[str, list[Setting]] = {
    "explained_variance": [(v, *DEFAULT[1:]) for v in EXPLAINED_VARIANCES],
    "density": [(DEFAULT[0], d, *DEFAULT[2:]) for d in DENSITIES],
    "students__n_blocks": [(*DEFAULT[:2], m, DEFAULT[3]) for m in BLOCKS],
    "discrepancy_density__shrinkage": [(*DEFAULT[:3], s) for s in SHRINKAGES],
    "all four": list(product(EXPLAINED_VARIANCES, DENSITIES, BLOCKS, SHRINKAGES)),
}


class Scores:
    """Scores of many images in every setting, from one fit of the students: log-densities of the two spaces, added."""

    def __init__(self, fit: held_out.Spaces, groups: dict[str, held_out.Spaces]):
        self._embedding: dict[tuple[float, str], dict[str, np.ndarray]] = {}
        self._discrepancy: dict[tuple[int, float], dict[str, np.ndarray]] = {}
        for share in EXPLAINED_VARIANCES:
            whitening = PCA(share, whiten=True, svd_solver="full").fit(fit[0])
            for name, make in DENSITIES.items():
                density = make().fit(whitening.transform(fit[0]))
                self._embedding[share, name] = {
                    group: density.score_samples(whitening.transform(z_p)) for group, (z_p, _) in groups.items()
                }
        for m, shrinkage in product(BLOCKS, SHRINKAGES):
            density = GaussianDensity(shrinkage=shrinkage, target="diagonal").fit(fit[1][:, -m:])
            self._discrepancy[m, shrinkage] = {
                group: density.score_samples(z_f[:, -m:]) for group, (_, z_f) in groups.items()
            }

    def __call__(self, setting: Setting) -> dict[str, np.ndarray]:
        """Scores by group of images."""
        embedding, discrepancy = self._embedding[setting[:2]], self._discrepancy[setting[2:]]
        return {group: embedding[group] + discrepancy[group] for group in embedding}


def auroc(normal: np.ndarray, anomalies: np.ndarray) -> float:
    return roc_auc_score(np.repeat([1, -1], [len(normal), len(anomalies)]), np.concatenate([normal, anomalies]))


def study(options: argparse.Namespace, case: held_out.Case) -> dict[Setting, dict[str, float]]:
    """Every criterion and the test AUROC ("worth") of every setting."""
    fitted = held_out.detector(options).fit(case.fit)
    groups = {
        "validation": held_out.spaces(fitted, case.validation),
        "normal": held_out.spaces(fitted, case.test_normal),
        "anomalies": held_out.spaces(fitted, case.test_anomalies),
    }
    for kind in KINDS:
        groups[kind] = held_out.spaces(fitted, synthetic_outliers(case.validation, kind, random_state=0))
    # kind="all" takes the kinds in turn, and an image's draw depends on its place alone
    turn = np.arange(len(case.validation)) % len(KINDS)
    groups["all kinds"] = tuple(np.choose(turn[:, None], [groups[kind][space] for kind in KINDS]) for space in (0, 1))
    scores = Scores(held_out.spaces(fitted, case.fit), groups)
    if not np.allclose(scores(DEFAULT)["normal"], fitted.score_samples(case.test_normal)):
        raise AssertionError("the scores put together here are not the detector's")
    half = np.random.default_rng(options.seed).permutation(len(case.test_anomalies))
    seen, unseen = half[: len(half) // 2], half[len(half) // 2 :]
    table = {}
    for setting in GRIDS["all four"]:
        of = scores(setting)
        row = {"held_out_log_likelihood": float(of["validation"].mean())}
        row |= {kind: auroc(of["validation"], of[kind]) for kind in ("all kinds", *KINDS)}
        row["10 real anomalies"] = auroc(of["validation"], of["anomalies"][seen[:10]])
        row["half of the real anomalies"] = auroc(of["validation"], of["anomalies"][seen])
        row["worth"] = auroc(of["normal"], of["anomalies"][unseen])
        table[setting] = row
    return table


def judge(table: dict[Setting, dict[str, float]], grid: list[Setting]) -> dict[str, tuple[float, float]]:
    """Regret in points and rank correlation of each criterion over the settings of a grid."""
    worth = np.array([table[setting]["worth"] for setting in grid])
    found = {}
    for criterion in CRITERIA:
        values = np.array([table[setting][criterion] for setting in grid])
        picked = worth[values == values.max()].mean()  # of settings that tie, any
        constant = np.ptp(values) == 0 or np.ptp(worth) == 0
        correlation = np.nan if constant else float(spearmanr(values, worth).statistic)
        found[criterion] = (100 * (worth.max() - picked), correlation)
    found["the default setting"] = (100 * (worth.max() - table[DEFAULT]["worth"]), np.nan)
    found["a setting at random"] = (100 * (worth.max() - worth.mean()), np.nan)
    return found


def rows(verdicts: dict[str, dict[str, tuple[float, float]]]) -> list[str]:
    """One row a criterion, one column a grid or class: regret and rank correlation."""
    lines = [f"| criterion | {' | '.join(verdicts)} |", "|---|" + "---|" * len(verdicts)]
    for criterion in (*CRITERIA, "the default setting", "a setting at random"):
        cells = []
        for verdict in verdicts.values():
            regret, correlation = verdict[criterion]
            cells.append(f"{regret:.1f}" + ("" if np.isnan(correlation) else f" ({correlation:+.2f})"))
        lines.append(f"| {criterion} | {' | '.join(cells)} |")
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    held_out.add_options(parser)
    options = parser.parse_args()
    tables: dict[str, dict[str, dict]] = {}
    for case in tqdm(list(held_out.cases(options))):
        tables.setdefault(case.data, {})[case.name] = study(options, case)
    lines = [
        "# Choosing settings without any anomaly",
        "",
        "Teacher ViT-Tiny. Regret in points of AUROC (0 is the best setting of the grid), and in brackets the rank "
        "correlation of the criterion with the test AUROC. Ways to pick: the log-likelihood of held-out normal images; "
        "the AUROC against synthetic outliers made of them (`SyntheticOutlierScorer`, all kinds in turn or one kind); "
        "the AUROC against some real anomalies.",
    ]
    for data, of_data in tables.items():
        lines += ["", f"## {data}: mean over {len(of_data)} classes, by what is chosen", ""]
        means = {}
        for grid, settings in GRIDS.items():
            verdicts = [judge(table, settings) for table in of_data.values()]
            means[f"{grid} ({len(settings)})"] = {
                criterion: tuple(np.mean([[v[criterion][0], np.nan_to_num(v[criterion][1])] for v in verdicts], axis=0))
                if not all(np.isnan(v[criterion][1]) for v in verdicts)
                else (float(np.mean([v[criterion][0] for v in verdicts])), np.nan)
                for criterion in verdicts[0]
            }
        lines += rows(means)
        lines += ["", f"## {data}: all four parameters, class by class", ""]
        lines += rows({name: judge(table, GRIDS["all four"]) for name, table in of_data.items()})
        best = [max(GRIDS["all four"], key=lambda s: table[s]["worth"]) for table in of_data.values()]
        which = "which (explained_variance, density, n_blocks, shrinkage)"
        lines += ["", f"| class | test AUROC of the default | of the best | {which} |"]
        lines += ["|---|---|---|---|"]
        for (name, table), setting in zip(of_data.items(), best):
            lines.append(f"| {name} | {table[DEFAULT]['worth']:.3f} | {table[setting]['worth']:.3f} | {setting} |")
    held_out.report(Path(__file__).with_name("criteria.md"), lines, options)


if __name__ == "__main__":
    main()
