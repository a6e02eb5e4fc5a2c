"""``transformaly score``: scores of images, in a file that can be resumed."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skl_transformaly.cli._app import FOUND, INTERRUPTED, OUT, Mistake, Model, Output, Paths, Weights, command, fail
from skl_transformaly.cli._console import counted
from skl_transformaly.cli._inputs import (
    check_model,
    check_no_input,
    check_writable,
    find_images,
    load_model,
    missing_text,
    passed_over,
    unreadable_text,
)

if TYPE_CHECKING:
    from skl_transformaly.cli._scores import ScoreFile
    from skl_transformaly.images._folders import FoundFiles

__all__ = ["score", "scored"]

# Number of images that are scored before their rows are written
_CHUNK = 64


@command()
def score(
    tell: Output,
    model: Model,
    paths: Paths,
    out: Annotated[
        Path | None,
        typer.Option(*OUT, metavar="FILE", help=".csv, .jsonl or .parquet. Default: CSV on stdout."),
    ] = None,
    resume: Annotated[
        bool,
        typer.Option(
            "--resume", help="Keep the scores in --out (.csv or .jsonl); score only other and changed images."
        ),
    ] = False,
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help="Exit with code 1 if an image is an anomaly or cannot be read.")
    ] = False,
    weights: Weights = None,
) -> None:
    """Score images: path, score, decision, p-value, prediction (1 normal, -1 anomaly).

    Higher scores are more normal; the decision is negative for anomalies. Images of the fit get the scores of a model
    that has not seen them. Images that cannot be read have no score, and the prediction -1.
    """
    check_model(model, "score MODEL IMAGES")
    _check(out, resume, model, weights)
    found = find_images(paths, missing="keep")
    if out is not None:
        check_no_input(out, found.paths)
    missing = missing_text(found)
    detector, header = load_model(model, weights, tell)
    tally = _Tally()
    with tell.progress("Scoring", len(found.paths)) as advance:
        if out is None:
            _score_to_stdout("jsonl" if tell.json else "csv", detector, found.paths, tally, advance)
        elif out.suffix.lower() == ".parquet":
            _score_to_parquet(out, detector, found.paths, tally, advance)
        else:
            from skl_transformaly.cli._scores import ScoreFile

            with ScoreFile(out, resume=resume, model=header["sha256"]) as file:
                _score_into(file, detector, found.paths, tally, tell, advance)
    _summarise(detector, found, tally, out, tell)
    if missing:
        fail(missing)
    if fail_on_anomaly and tally.anomalies:
        raise typer.Exit(FOUND)


def _check(out: Path | None, resume: bool, *inputs: str | Path | None) -> None:
    if out is None:
        if resume:
            raise Mistake("--resume needs --out FILE, the file to continue.")
        return
    if out.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
        raise Mistake(f"--out {str(out)!r} must end in .csv, .jsonl or .parquet.")
    if resume and out.suffix.lower() == ".parquet":
        raise Mistake("--resume needs a .csv or .jsonl file: a Parquet file is written only when all rows are known.")
    check_writable(out, *inputs)


@dataclass
class _Tally:
    """Counts of anomalies, and of rows kept from an earlier run; unreadable images."""

    anomalies: int = 0
    kept: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)
    p_values: list[float] = field(default_factory=list)

    def count(self, rows: list[dict[str, Any]]) -> None:
        """Add rows of this run."""
        self.anomalies += sum(row["prediction"] < 0 for row in rows)
        self.p_values += [row["p_value"] for row in rows if row["p_value"] is not None]


def _summarise(detector: Any, found: FoundFiles, tally: _Tally, out: Path | None, tell: Output) -> None:
    from skl_transformaly._drift import unlike_calibration
    from skl_transformaly.cli._trust import FalseAlarms

    if tally.unreadable:
        tell.warn(unreadable_text(tally.unreadable, "no score, prediction -1"))
    alarms = FalseAlarms.of(detector)
    if alarms is not None and (strange := unlike_calibration(tally.p_values, alarms.images)):
        tell.warn(strange)
    unreadable = len(tally.unreadable)
    readable = len(found.paths) - unreadable
    anomalies = tally.anomalies - unreadable
    text = f"{counted(len(found.paths), 'image')}: {counted(anomalies, 'anomaly')}"
    text += f", {unreadable} could not be read" if unreadable else ""
    text += f"{passed_over(found)}."
    alarms = FalseAlarms.of(detector) if readable else None
    if alarms is not None:
        most = f" to {alarms.most * readable:.1f}" if alarms.left_out else ""
        text += f" If all were normal, {alarms.expected * readable:.1f}{most} would be flagged on average."
    if out is None:
        tell.note(text)
        return
    data = {
        "images": len(found.paths),
        "anomalies": tally.anomalies,
        "resumed": tally.kept,
        "unreadable": tally.unreadable,
        "hidden": found.hidden,
        "other": found.other,
        "out": str(out),
    }
    tell.made(f"{out}: {text}", data)


def _score_to_stdout(
    kind: str, detector: Any, paths: list[str], tally: _Tally, advance: Callable[[float], None]
) -> None:
    from skl_transformaly.cli._scores import format_rows

    sys.stdout.buffer.write(format_rows([], kind, header=True))
    for rows in scored(detector, paths, tally.unreadable):
        sys.stdout.buffer.write(format_rows(rows, kind))
        sys.stdout.buffer.flush()
        tally.count(rows)
        advance(len(rows))


def _score_to_parquet(
    out: Path, detector: Any, paths: list[str], tally: _Tally, advance: Callable[[float], None]
) -> None:
    from skl_transformaly.cli._parquet import ParquetScores

    table = ParquetScores(out)
    try:
        for rows in scored(detector, paths, tally.unreadable):
            table.add(rows)
            tally.count(rows)
            advance(len(rows))
    except KeyboardInterrupt:
        fail("stopped; no scores were written. Rows of a .csv or .jsonl file are kept for --resume.", INTERRUPTED)
    table.write()


def _score_into(
    file: ScoreFile,
    detector: Any,
    paths: list[str],
    tally: _Tally,
    tell: Output,
    advance: Callable[[float], None],
) -> None:
    """Score images without a score in a file of scores, and those that have changed since."""
    again = _reuse(file, paths, tally, tell)
    advance(tally.kept)
    states: dict[str, Any] = {}
    try:
        for rows in scored(detector, [path for path in paths if path not in file.done], tally.unreadable, states):
            file.write(rows, {row["path"]: states[row["path"]] for row in rows})
            tally.count(rows)
            advance(len(rows))
    except KeyboardInterrupt:
        fail(f"stopped after {counted(len(file.done), 'row')}; continue with --resume.", INTERRUPTED)
    if again:
        file.arrange(paths)


def _reuse(file: ScoreFile, paths: list[str], tally: _Tally, tell: Output) -> list[str]:
    """Count the valid rows of an earlier run, and return the paths of the others, which are removed."""
    again = _drop_stale(file, paths, tell)
    old = [path for path in paths if path in file.done]
    tally.kept, tally.anomalies = len(old), sum(file.done[path][1] < 0 for path in old)
    return again


def _drop_stale(file: ScoreFile, paths: list[str], tell: Output) -> list[str]:
    """Remove the rows of images that have changed since, of another model, or without a score, to be scored again."""
    stale = file.stale(paths)
    asked = set(paths)
    others = file.stale(path for path in file.done if path not in asked)
    strange = [path for path in others if not file.knows(path)]
    if strange:
        raise Mistake(
            f"{str(file.path)!r} has {counted(len(strange), 'row')} of other images, such as {strange[0]!r}, which may "
            "have been scored by another model: name these images too, or score into another file."
        )
    if others:
        tell.warn(
            f"{str(file.path)!r}: kept {counted(len(others), 'row')} of other images that have changed or are gone, "
            f"such as {others[0]!r}."
        )
    if stale:
        tell.warn(
            f"{str(file.path)!r}: scoring {counted(len(stale), 'image')} again, such as {stale[0]!r}, which changed or "
            "may have been scored by another model."
        )
    # whatever kept them from being read, such as a network, may be over
    blank = [path for path in paths if path in file.done and file.done[path][0] is None]
    again = list(dict.fromkeys([*stale, *blank]))
    file.drop(again)
    return again


def scored(
    detector: Any, paths: list[str], unreadable: dict[str, str], states: dict[str, Any] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of scores; add images without score to `unreadable`, and the states of files before to `states`."""
    import numpy as np

    from skl_transformaly.cli._provenance import reasons
    from skl_transformaly.cli._scores import file_state, score_rows
    from skl_transformaly.images._images import as_images

    for start in range(0, len(paths), _CHUNK):
        chunk = paths[start : start + _CHUNK]
        if states is not None:
            states.clear()
            states.update({path: file_state(path) for path in chunk})
        table = detector.score_table(as_images(chunk, on_error="skip"))
        unreadable.update(reasons(chunk, np.flatnonzero(np.isnan(table["score"])).tolist()))
        yield score_rows(chunk, table)
