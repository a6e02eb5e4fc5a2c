"""Images that appear in a folder, scored once when they are complete."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from skl_transformaly._drift import DriftMonitor
from skl_transformaly.cli._actions import Actions
from skl_transformaly.cli._scores import Row, ScoreFile, State, file_state
from skl_transformaly.images._folders import display_path, file_identity, has_image_suffix, is_image
from skl_transformaly.utils._files import absolute_path

__all__ = ["Arrivals", "Watcher"]

# Number of images that are scored before their rows are written and a stop is noticed
_CHUNK = 32
# Seconds between two attempts to write, and between two warnings that they fail
_RETRY, _REMIND = 1.0, 60.0
# Seconds after which a stop is noticed
_SLICE = 0.1


@dataclass
class _Waiting:
    state: State
    since: float
    unreadable: bool = False


class Arrivals:
    """Finds the images in a folder and its subfolders that are complete and have no row yet.

    A file is complete if its size and its time of change have stayed the same for `settle` seconds. If it cannot be
    decoded then, its writer may only pause: it is complete if it has stayed the same for `patience` seconds. Hidden
    files and folders are passed over, and so are the folders `excluded`.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        settle: float,
        patience: float,
        excluded: Iterable[str | os.PathLike] = (),
        clock: Callable[[], float] = time.monotonic,
    ):
        self.folder = absolute_path(folder)
        self.settle = settle
        self.patience = patience
        self._excluded = {os.path.realpath(path) for path in excluded}
        self._clock = clock
        self._waiting: dict[str, _Waiting] = {}
        self._no_images: dict[str, State] = {}
        self._troubles: dict[str, str] = {}
        self._told: set[str] = set()

    def look(self, known: Callable[[str, State], bool]) -> list[str]:
        """Look through the folder once, and return absolute paths of complete files, in the order of their changes.

        ``known(path, state)`` returns whether there is a row. Raises OSError if the folder cannot be listed; for
        subfolders see `take_troubles`.
        """
        now = self._clock()
        seen: dict[str, _Waiting] = {}
        complete = []
        no_images: dict[str, State] = {}  # those that are still there
        for path, state in self._files(self.folder, set()):
            if self._no_images.get(path) == state:
                no_images[path] = state
                continue
            if known(path, state):
                continue
            waiting = self._waiting.get(path)
            if waiting is None or waiting.state != state:
                waiting = _Waiting(state, now)
            seen[path] = waiting
            if now - waiting.since >= (self.patience if waiting.unreadable else self.settle):
                if os.path.splitext(path)[1] or is_image(path):
                    complete.append((state, path))
                elif waiting.unreadable:
                    no_images[path] = state
                else:
                    waiting.unreadable = True
        self._waiting, self._no_images = seen, no_images
        return [path for _, path in sorted(complete, key=lambda item: (item[0][1], item[1]))]

    def put_off(self, path: str) -> bool:
        """Mark a file as unreadable, and return whether it gets more time."""
        waiting = self._waiting.get(path)
        if waiting is None or self._clock() - waiting.since >= self.patience:
            return False
        waiting.unreadable = True
        return True

    def take_troubles(self) -> list[tuple[str, str]]:
        """Return folders and files that could not be listed, and why; each once."""
        new = [(path, why) for path, why in self._troubles.items() if path not in self._told]
        self._told.update(self._troubles)
        self._troubles.clear()
        return new

    def forget(self, path: str) -> None:
        """Forget a file that has its row."""
        self._waiting.pop(path, None)

    @property
    def waiting(self) -> list[str]:
        """Absolute paths of files that are incomplete or have no row yet."""
        return sorted(self._waiting)

    def _files(self, folder: str, above: set[tuple[int, int | str]]) -> Iterator[tuple[str, tuple[int, int]]]:
        identity = file_identity(folder)
        if identity in above or os.path.realpath(folder) in self._excluded:
            return
        with os.scandir(folder) as entries:
            visible = [entry for entry in entries if not entry.name.startswith(".")]
        for entry in visible:
            try:
                if entry.is_dir():
                    yield from self._files(entry.path, above | {identity})
                elif entry.is_file() and (has_image_suffix(entry.name) or not os.path.splitext(entry.name)[1]):
                    status = os.stat(entry.path)  # what Windows lists of a file that is being written is out of date
                    yield entry.path, (status.st_size, status.st_mtime_ns)
            except FileNotFoundError:
                continue  # gone since
            except OSError as error:
                self._troubles[entry.path] = error.strerror or str(error)


@dataclass
class Counts:
    """What a watcher has done since it was started."""

    scored: int = 0
    anomalies: int = 0
    unreadable: dict[str, str] = field(default_factory=dict)


class Watcher:
    """Scores the images that appear in a folder, writes their rows, and runs the actions on anomalies.

    `on_row` is called with each row that was written, `warn` with a text; ``stopping()`` returns whether to stop.
    """

    def __init__(
        self,
        detector: Any,
        file: ScoreFile,
        arrivals: Arrivals,
        actions: Actions,
        *,
        on_row: Callable[[Row], None],
        warn: Callable[[str], None],
        stopping: Callable[[], bool],
    ):
        self.detector = detector
        self.file = file
        self.arrivals = arrivals
        self.actions = actions
        self.counts = Counts()
        self._on_row, self._warn, self._stopping = on_row, warn, stopping
        self._blind = False
        self._monitor = _monitor(detector, [score for score, _ in file.done.values()])
        self._drifted = False
        self._check_drift()

    def run(self, interval: float, *, once: bool = False, idle: Callable[[], None] = lambda: None) -> None:
        """Look, score and write until stopped; with `once`, until nothing is left to do."""
        while not self._stopping():
            start = time.monotonic()
            self.step()
            if once and not self.arrivals.waiting and not self._blind:
                return
            idle()
            # at least half of the time is not spent on listing the folder
            self._sleep(max(interval, time.monotonic() - start))

    def _sleep(self, seconds: float) -> None:
        """Wait, but not longer than until a stop."""
        end = time.monotonic() + seconds
        while not self._stopping() and (left := end - time.monotonic()) > 0:
            time.sleep(min(left, _SLICE))

    def step(self) -> None:
        """Look through the folder once, and process complete files."""
        try:
            complete = self.arrivals.look(self.file.holds)
            self._blind = False
        except OSError as error:
            complete = []
            if not self._blind:
                self._warn(f"{error.filename or self.arrivals.folder}: {error.strerror or error}. Waiting for it.")
            self._blind = True
        for folder, why in self.arrivals.take_troubles():
            self._warn(f"{folder}: {why}. Images in it are not scored.")
        for start in range(0, len(complete), _CHUNK):
            if self._stopping():
                return
            self._score(complete[start : start + _CHUNK])
            self.actions.run(self._stopping)
        self.actions.run(self._stopping)

    def _score(self, paths: list[str]) -> None:
        from skl_transformaly.cli._score import scored

        unreadable: dict[str, str] = {}
        states: dict[str, State] = {}
        (rows,) = scored(self.detector, paths, unreadable, states)
        rows = [row for row in rows if self._is_final(row["path"], states[row["path"]], row["path"] in unreadable)]
        if not rows or not self._write(rows, states):
            return
        self.counts.scored += len(rows)
        for row in rows:
            self.arrivals.forget(row["path"])
            self.counts.anomalies += row["prediction"] < 0 and row["score"] is not None
            if row["path"] in unreadable:
                self.counts.unreadable[row["path"]] = unreadable[row["path"]]
                self._warn(f"{display_path(row['path'])} could not be read: {unreadable[row['path']]}")
            self._on_row(row)
        if self._monitor is not None:
            self._monitor.update_scores([row["score"] for row in rows if row["score"] is not None])
            self._check_drift()

    def _is_final(self, path: str, before: State, unreadable: bool) -> bool:
        """Return whether the row of a file can be written; otherwise the file is gone, or looked at again."""
        now = file_state(path)
        if unreadable:
            return now is not None and now == before and not self.arrivals.put_off(path)
        return before is not None and now in (before, None)

    def _write(self, rows: list[Row], states: dict[str, State]) -> bool:
        """Write rows, repeatedly until it succeeds; return False if stopped before."""
        told = -float("inf")
        due = None
        while True:
            try:
                due = self.actions.note(rows, states) if due is None else due
                self.file.write(rows, {row["path"]: states[row["path"]] for row in rows})
            except OSError as error:
                if time.monotonic() - told >= _REMIND:
                    told = time.monotonic()
                    why = error.strerror or error
                    self._warn(f"{str(self.file.path)!r} cannot be written: {why}. Trying again; nothing is lost.")
                if self._stopping():
                    return False
                self._sleep(_RETRY)
            else:
                self.actions.add(due)
                return True

    def _check_drift(self) -> None:
        if self._monitor is None or self._drifted:
            return
        report = self._monitor.report()
        if report.drifted:
            self._drifted = True
            self._warn(
                f"scores have drifted, since image {report.alarm} at the latest, from those of the normal images that "
                "calibrated the model: another camera or another light?"
            )


def _monitor(detector: Any, scores: list[float | None]) -> DriftMonitor | None:
    """Return a monitor that has seen the scores of earlier runs; None if the detector has no reference scores."""
    try:
        monitor = DriftMonitor(detector)
    except ValueError:
        return None
    monitor.update_scores([score for score in scores if score is not None])
    return monitor
