"""``transformaly evaluate``: how well a model tells anomalies from normal images."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from skl_transformaly.cli._app import (
    Debug,
    Json,
    Mistake,
    Model,
    Output,
    Quiet,
    Weights,
    app,
    command,
)
from skl_transformaly.cli._inputs import (
    load_model,
    unreadable_text,
)
from skl_transformaly.cli._score import scored

__all__ = ["evaluate"]


@app.command()
@command
def evaluate(
    model: Model,
    test_dir: Annotated[
        Path, typer.Argument(metavar="TEST_DIR", help="Folder that holds a folder for each class.", show_default=False)
    ],
    good: Annotated[
        list[str] | None,
        typer.Option(metavar="NAME", help="The class that is normal, or one of them. Else 'good', 'normal' or 'ok'."),
    ] = None,
    confidence: Annotated[float, typer.Option(help="Of the intervals, in (0, 1).")] = 0.95,
    resamples: Annotated[int, typer.Option(min=100, help="Bootstrap resamples.")] = 1000,
    seed: Annotated[int, typer.Option(min=0, help="Of the bootstrap.")] = 0,
    weights: Weights = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Measure how well a model tells anomalies from normal images: AUROC, AUPR, FPR at 95 % TPR.

    Anomalies are what is looked for: TPR is the share of anomalies found, FPR the share of normal images flagged.
    """
    out = Output(as_json, quiet)
    if not 0 < confidence < 1:
        raise Mistake(f"--confidence must be in (0, 1), got {confidence}.")
    import numpy as np

    from skl_transformaly.cli._evaluation import class_folders, evaluate_scores, normal_classes, per_class
    from skl_transformaly.cli._files import find_files
    from skl_transformaly.images._folders import FoundFiles

    classes = class_folders(test_dir)
    normal = normal_classes(classes, good or [])
    found = FoundFiles()
    labels: list[str] = []
    for name in classes:
        one = find_files([str(test_dir / name)])
        found = found + one
        labels += [name] * len(one.paths)
    outside = len(find_files([str(test_dir)]).paths) - len(found.paths)
    if outside:
        out.warn(f"{outside} images lie in no class folder: left out.")
    detector, _ = load_model(model, weights)
    unreadable: dict[str, str] = {}
    rows = []
    with out.progress("Scoring", len(found.paths)) as advance:
        for chunk in scored(detector, found.paths, unreadable):
            rows += chunk
            advance(len(chunk))
    if unreadable:
        out.warn(unreadable_text(unreadable, "left out"))
    readable = np.array([row["score"] is not None for row in rows], dtype=bool)
    scores = np.array([row["score"] for row, kept in zip(rows, readable) if kept], dtype=np.float64)
    predictions = np.array([row["prediction"] for row, kept in zip(rows, readable) if kept])
    names = np.array(labels)[readable]
    y = np.where(np.isin(names, normal), 1, -1)
    if len(set(y.tolist())) < 2:
        raise Mistake(
            f"{test_dir} holds {np.sum(y == 1)} normal images ({', '.join(normal)}) and {np.sum(y == -1)} anomalies "
            "that can be read; expected both."
        )
    figures = evaluate_scores(scores, y, confidence=confidence, n_resamples=resamples, random_state=seed)
    classwise = per_class(scores, names, classes, normal)
    flagged = {kind: int(np.sum((y == kind) & (predictions == -1))) for kind in (1, -1)}
    total = {kind: int(np.sum(y == kind)) for kind in (1, -1)}
    if not figures["auroc"].value >= 0.5:
        out.warn(
            f"AUROC is below one half: {', '.join(normal)} scores lower than the anomalies do. Is --good the class "
            "that the model was fitted on?"
        )
    titles = {"auroc": "AUROC", "aupr": "AUPR", "fpr95": "FPR at 95 % TPR"}
    lines = [
        f"normal: {', '.join(normal)} ({total[1]} images); anomalies: "
        + ", ".join(f"{name} ({entry['n']})" for name, entry in classwise.items()),
        f"{'':<16} {'value':>6}  {100 * confidence:g} % interval",
        *(
            f"{titles[name]:<16} {value:6.3f}  {'-' if np.isnan(low) else f'{low:.3f} to {high:.3f}'}"
            for name, (value, low, high) in figures.items()
        ),
        f"flagged by the model's threshold: {flagged[1]} of {total[1]} normal images "
        f"({100 * flagged[1] / total[1]:.1f} %), {flagged[-1]} of {total[-1]} anomalies "
        f"({100 * flagged[-1] / total[-1]:.1f} %)",
    ]
    if len(classwise) > 1:
        width = max(len(name) for name in classwise)
        lines += ["AUROC by class:"]
        lines += [
            f"  {name:<{width}} {'-' if entry['auroc'] is None else format(entry['auroc'], '.3f')}"
            for name, entry in classwise.items()
        ]
    data = {
        "normal": normal,
        "n_normal": total[1],
        "n_anomalies": total[-1],
        "confidence": confidence,
        **{
            name: {"value": value, "low": None if np.isnan(low) else low, "high": None if np.isnan(high) else high}
            for name, (value, low, high) in figures.items()
        },
        "flagged_normal": flagged[1],
        "flagged_anomalies": flagged[-1],
        "classes": classwise,
        "unreadable": unreadable,
        "hidden": found.hidden,
        "other": found.other,
        "outside": outside,
    }
    out.result("\n".join(lines), data)
