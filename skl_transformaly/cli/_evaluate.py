"""``transformaly evaluate``: how well a model tells anomalies from normal images."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skl_transformaly.cli._app import Mistake, Model, Output, Weights, command
from skl_transformaly.cli._console import counted
from skl_transformaly.cli._inputs import check_model, load_model, unreadable_text
from skl_transformaly.cli._score import scored

if TYPE_CHECKING:
    from numpy import ndarray

    from skl_transformaly.cli._evaluation import Interval
    from skl_transformaly.images._folders import FoundFiles

__all__ = ["evaluate"]

_CONFIDENCE = 0.95  # of the intervals
_TITLES = {"auroc": "AUROC", "aupr": "AUPR", "fpr95": "FPR at 95 % TPR"}


@command()
def evaluate(
    out: Output,
    model: Model,
    test_dir: Annotated[
        Path, typer.Argument(metavar="TEST_DIR", help="Folder with a folder for each class.", show_default=False)
    ],
    good: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="A normal class; may be repeated. Default: 'good', 'normal' or 'ok'."),
    ] = None,
    weights: Weights = None,
) -> None:
    """Measure how well a model tells anomalies from normal images: AUROC, AUPR, FPR at 95 % TPR.

    Anomalies are the positive class: TPR is the share of anomalies found, FPR the share of normal images flagged.
    """
    check_model(model, "evaluate MODEL TEST_DIR")
    test = _find_test(test_dir, good or [], out)
    detector, _ = load_model(model, weights, out)
    scores = _score_test(detector, test, out)

    from skl_transformaly.cli._comments import comments
    from skl_transformaly.cli._evaluation import evaluate_scores, per_class
    from skl_transformaly.cli._trust import FalseAlarms

    y = test.y
    figures = evaluate_scores(scores["score"], y)
    classes = per_class(scores["score"], test.labels, test.classes, test.normal)
    if not figures["auroc"].value >= 0.5:
        out.warn(
            f"AUROC is below one half: {', '.join(test.normal)} scores lower than the anomalies. Was the model fitted "
            "on another class than --good?"
        )
    flagged = scores["prediction"] == -1
    said = comments(figures, y, flagged, scores["p_value"], classes, FalseAlarms.of(detector))
    text = [*_text(test, figures, classes, flagged), "", *said]
    out.result("\n".join(text), {**_data(test, figures, classes, flagged), "comments": said})


@dataclass
class _Test:
    """Labelled images: paths that `found` holds, and the class of each, of which some are normal."""

    found: FoundFiles
    labels: Any
    classes: list[str]
    normal: list[str]
    outside: int
    unreadable: dict[str, str] = field(default_factory=dict)

    @property
    def y(self) -> ndarray:
        """+1 for images of a normal class, -1 for others."""
        import numpy as np

        return np.where(np.isin(self.labels, self.normal), 1, -1)


def _find_test(test_dir: Path, good: list[str], out: Output) -> _Test:
    import numpy as np

    from skl_transformaly.cli._evaluation import class_folders, normal_classes
    from skl_transformaly.cli._files import find_files
    from skl_transformaly.images._folders import FoundFiles

    classes = class_folders(test_dir)
    normal = normal_classes(classes, good)
    found = FoundFiles()
    labels: list[str] = []
    for name in classes:
        one = find_files([str(test_dir / name)])
        found = found + one
        labels += [name] * len(one.paths)
    # a class folder may be a link, so that its images are found by another path
    outside = len(set(find_files([str(test_dir)]).paths) - set(found.paths))
    if outside:
        out.warn(f"{counted(outside, 'image')} outside the class folders left out.")
    return _Test(found, np.array(labels), classes, normal, outside)


def _score_test(detector: Any, test: _Test, out: Output) -> dict[str, ndarray]:
    """Columns of scores of the images that can be read; takes the others out of `test`."""
    import numpy as np

    rows: list[dict[str, Any]] = []
    with out.progress("Scoring", len(test.found.paths)) as advance:
        for chunk in scored(detector, test.found.paths, test.unreadable):
            rows += chunk
            advance(len(chunk))
    if test.unreadable:
        out.warn(unreadable_text(test.unreadable, "left out"))
    readable = np.array([row["score"] is not None for row in rows], dtype=bool)
    test.labels = test.labels[readable]
    y = test.y
    if len(set(y.tolist())) < 2:
        raise Mistake(
            f"The class folders hold {np.sum(y == 1)} normal images ({', '.join(test.normal)}) and {np.sum(y == -1)} "
            "anomalies that can be read; expected both."
        )
    kept = [row for row, keep in zip(rows, readable) if keep]
    numbers = ("score", "p_value", "prediction")
    return {name: np.array([row[name] for row in kept], dtype=np.float64) for name in numbers}


def _text(test: _Test, figures: dict[str, Interval], classes: dict[str, Any], flagged: ndarray) -> list[str]:
    import numpy as np

    y = test.y
    lacking = f"too few {'images' if min(np.sum(y == 1), np.sum(y == -1)) < 2 else 'mistakes'} for an interval"
    lines = [
        f"normal: {', '.join(test.normal)} ({counted(int(np.sum(y == 1)), 'image')}); anomalies: "
        + ", ".join(f"{name} ({entry['n']})" for name, entry in classes.items()),
        f"{'':<16} {'value':>6}  {100 * _CONFIDENCE:g} % interval",
        *(
            f"{_TITLES[name]:<16} {value:6.3f}  {_interval(low, high, lacking)}"
            for name, (value, low, high) in figures.items()
        ),
        f"flagged by the model's threshold: {_share(flagged[y == 1], 'normal images')}, "
        + _share(flagged[y == -1], "anomalies"),
    ]
    if len(classes) > 1:
        width = max(len(name) for name in classes)
        lines += ["AUROC by class:"]
        lines += [
            f"  {name:<{width}} {'-' if entry['auroc'] is None else format(entry['auroc'], '.3f')}"
            for name, entry in classes.items()
        ]
    return lines


def _interval(low: float, high: float, lacking: str) -> str:
    if high - low == 1:  # anything at all
        return "too few images for an interval"
    return f"{low:.3f} to {high:.3f}" if high >= low else lacking


def _share(flags: ndarray, noun: str) -> str:
    return f"{flags.sum()} of {len(flags)} {noun} ({100 * flags.mean():.1f} %)"


def _data(test: _Test, figures: dict[str, Interval], classes: dict[str, Any], flagged: ndarray) -> dict[str, Any]:
    import numpy as np

    y = test.y
    return {
        "normal": test.normal,
        "n_normal": int(np.sum(y == 1)),
        "n_anomalies": int(np.sum(y == -1)),
        "confidence": _CONFIDENCE,
        **{
            name: {"value": value, "low": None if np.isnan(low) else low, "high": None if np.isnan(high) else high}
            for name, (value, low, high) in figures.items()
        },
        "flagged_normal": int(flagged[y == 1].sum()),
        "flagged_anomalies": int(flagged[y == -1].sum()),
        "classes": classes,
        "unreadable": test.unreadable,
        "hidden": test.found.hidden,
        "other": test.found.other,
        "outside": test.outside,
    }
