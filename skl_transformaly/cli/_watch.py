"""``transformaly watch``: score images as they appear in a folder, until stopped."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from skl_transformaly.cli._app import OUT, Mistake, Output, Weights, command, plain
from skl_transformaly.cli._console import counted, to_json
from skl_transformaly.cli._inputs import check_folder, check_model, check_writable, load_model
from skl_transformaly.utils._files import absolute_path

if TYPE_CHECKING:
    from skl_transformaly.cli._scores import ScoreFile
    from skl_transformaly.cli._watcher import Watcher

__all__ = ["watch"]

# Number of incomplete files that are named in the last line
_MOST_NAMES = 3


Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="Folder, with subfolders.", show_default=False)]
ModelOption = Annotated[
    Path, typer.Option("--model", "-m", metavar="MODEL", help="A model file that `fit` made.", show_default=False)
]
Rows = Annotated[
    Path,
    typer.Option(*OUT, metavar="FILE", help="File to append rows of scores to, .jsonl or .csv.", show_default=False),
]
MoveTo = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Move anomalies to this folder, keeping their subfolders.")
]
LinkTo = Annotated[
    Path | None, typer.Option(metavar="DIR", help="Link anomalies in this folder instead of moving them.")
]
OnAnomaly = Annotated[
    str | None,
    typer.Option(
        metavar="COMMAND|URL",
        help="Called for each anomaly: a command, run without a shell, with the path as last argument or in place of "
        "{path} (and {score}, {p_value}), whose output is not shown; or a URL, to which JSON is posted.",
    ),
]
Every = Annotated[float, typer.Option(min=0.05, metavar="S", help="Seconds between two looks at the folder.")]
Settle = Annotated[
    float, typer.Option(min=0, metavar="S", help="Seconds without change after which a file is complete.")
]
Patience = Annotated[
    float, typer.Option(min=0, metavar="S", help="Seconds without change after which an unreadable file is given up.")
]
Once = Annotated[bool, typer.Option("--once", help="Stop when all images are scored.")]


@command()
def watch(
    tell: Output,
    folder: Folder,
    model: ModelOption,
    out: Rows,
    move_to: MoveTo = None,
    link_to: LinkTo = None,
    on_anomaly: OnAnomaly = None,
    interval: Every = 1.0,
    settle: Settle = 2.0,
    patience: Patience = 60.0,
    once: Once = False,
    weights: Weights = None,
) -> None:
    """Score images as they appear in a folder, until SIGTERM or Ctrl-C.

    Images that are in the folder already are scored as well, unless --out has their rows. Started again after any stop,
    it continues where it was: no image is lost, and none is scored twice unless it has changed.
    """
    check_folder(folder, "folder to watch")
    if out.suffix.lower() not in (".csv", ".jsonl"):
        raise Mistake(f"--out {str(out)!r} must end in .jsonl or .csv.")
    check_writable(out, model, weights)
    check_model(model)
    shelf = _shelf(folder, move_to, link_to)
    from skl_transformaly.cli._actions import Actions, Hook
    from skl_transformaly.cli._scores import ACTIONS_SUFFIX, ScoreFile
    from skl_transformaly.cli._watcher import Arrivals, Watcher

    hook = None if on_anomaly is None else Hook(on_anomaly)
    with contextlib.ExitStack() as stack:
        stopping = stack.enter_context(_until_stopped())
        detector, header = load_model(model, weights, tell)
        file = stack.enter_context(ScoreFile(out, resume=True, model=header["sha256"]))
        _check_rows(file)
        actions = Actions(out.with_name(out.name + ACTIONS_SUFFIX), shelf, hook, warn=tell.warn, count=file.count)
        excluded = [] if shelf is None else [shelf.folder]
        arrivals = Arrivals(folder, settle=settle, patience=patience, excluded=excluded)
        _tell_of_before(file, actions, tell)
        with _display(tell, folder) as (on_row, show), contextlib.closing(actions):
            watcher = Watcher(detector, file, arrivals, actions, on_row=on_row, warn=tell.warn, stopping=stopping)
            watcher.run(interval, once=once, idle=lambda: show(watcher))
        if actions.waiting:
            tell.warn(f"{counted(actions.waiting, 'anomaly')} still to be moved or reported at the next start.")
        tell.note(f"{out}: {_state(watcher, named=True)}.")
        if once and actions.waiting and not stopping():
            raise Mistake(
                "Not all anomalies could be moved or reported: mend the cause, and run the same command again."
            )


def _shelf(folder: Path, move_to: Path | None, link_to: Path | None) -> Any:
    if move_to is not None and link_to is not None:
        raise Mistake("--move-to and --link-to exclude each other.")
    target = move_to or link_to
    if target is None:
        return None
    if os.path.realpath(target) == os.path.realpath(folder):
        raise Mistake(f"{'--move-to' if move_to else '--link-to'} must be another folder than the watched one.")
    try:
        target.mkdir(parents=True, exist_ok=True)
    except FileExistsError:
        raise Mistake(f"{str(target)!r} is not a folder.") from None
    if link_to is not None:
        _check_links(link_to)
    from skl_transformaly.cli._actions import Shelf

    return Shelf(Path(absolute_path(target)), Path(absolute_path(folder)), link=link_to is not None)


def _check_links(folder: Path) -> None:
    """Refuse a folder in which no links can be made: some disks have none, and Windows asks for a privilege."""
    link = folder / f".{secrets.token_hex(8)}.tmp"
    try:
        link.symlink_to("nowhere")
    except OSError as error:
        windows = " (Windows lets administrators make links, and everybody in its developer mode)" * (os.name == "nt")
        raise Mistake(
            f"--link-to cannot make links in {str(folder)!r}: {error.strerror or error}{windows}. Use --move-to, or "
            "another folder."
        ) from error
    link.unlink()


def _check_rows(file: ScoreFile) -> None:
    strange = [path for path in file.done if not file.knows(path)]
    if strange:
        raise Mistake(
            f"{str(file.path)!r} has rows of another or unknown model, such as that of {strange[0]!r}: score into "
            "another file."
        )


def _tell_of_before(file: ScoreFile, actions: Any, tell: Output) -> None:
    """Say what earlier runs with the same file did, and left to do."""
    if file.done:
        anomalies = sum(score is not None and prediction < 0 for score, prediction in file.done.values())
        tell.note(
            f"{file.path} has {counted(len(file.done), 'image')} of earlier runs ({counted(anomalies, 'anomaly')}): "
            "unless they change, they are neither scored nor moved or reported again."
        )
    if actions.left:
        of_these = f"{counted(actions.left, 'anomaly')} of these {'was' if actions.left == 1 else 'were'}"
        tell.note(f"{of_these} to be moved or reported, without success; what these options ask of it is done now.")


@contextlib.contextmanager
def _until_stopped() -> Iterator[Callable[[], bool]]:
    """Yield a function that returns whether a signal to stop came; a second one stops the program at once."""
    came: list[int] = []

    def stop(signum: int, frame: Any) -> None:
        if came:
            raise KeyboardInterrupt
        came.append(signum)

    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGINT", "SIGBREAK")]  # the last of Windows only
    before = {number: signal.signal(number, stop) for number in numbers if number is not None}
    try:
        yield lambda: bool(came)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextlib.contextmanager
def _display(tell: Output, folder: Path) -> Iterator[tuple[Callable[[dict], None], Callable[[Watcher], None]]]:
    """Yield a function that shows a row, and one that shows the state."""
    from skl_transformaly.images._folders import display_path

    def on_row(row: dict[str, Any]) -> None:
        if tell.json:
            print(to_json(row), flush=True)
        if row["prediction"] < 0 and row["score"] is not None:
            rare = "" if row["p_value"] is None else f", p = {row['p_value']:.2g}"
            tell.note(
                f"{time.strftime('%H:%M:%S')} anomaly: {display_path(row['path'])} (score {row['score']:.4g}{rare})"
            )

    if not tell.lively:
        tell.note(f"Watching {folder}.")
        yield on_row, lambda watcher: None
        return
    from rich.console import Console
    from rich.text import Text

    with Console(stderr=True).status(Text(plain(f"Watching {folder}")), spinner="dots") as status:
        yield on_row, lambda watcher: status.update(Text(plain(f"Watching {folder}: {_state(watcher)}")))


def _state(watcher: Watcher, *, named: bool = False) -> str:
    """Return the state in one line; with the names of a few incomplete files if `named`."""
    counts, waiting = watcher.counts, watcher.arrivals.waiting
    parts = [f"{counts.scored} scored", counted(counts.anomalies, "anomaly")]
    if counts.unreadable:
        parts.append(f"{len(counts.unreadable)} unreadable")
    if waiting:
        parts.append(f"{len(waiting)} incomplete")
    if waiting and named:
        more = ", ..." if len(waiting) > _MOST_NAMES else ""
        parts[-1] += f" ({', '.join(waiting[:_MOST_NAMES])}{more})"
    if watcher.actions.waiting:
        parts.append(f"{watcher.actions.waiting} to be moved or reported")
    return ", ".join(parts)
