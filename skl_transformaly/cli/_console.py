"""Output to a terminal or a log: results on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

__all__ = ["Output", "command_line", "counted", "duration", "plain", "say", "to_json"]

# Seconds between lines about progress in a log
_PAUSE = 10.0


@dataclass
class Output:
    """Output of a command; if `quiet`, stderr has only warnings and errors."""

    json: bool
    quiet: bool
    debug: bool = False

    @property
    def lively(self) -> bool:
        """Whether stderr is a terminal that may show a moving bar."""
        return not self.quiet and sys.stderr.isatty()

    @property
    def tells(self) -> bool:
        """Whether `made` shows its text."""
        return not (self.quiet or self.json)

    def note(self, text: str) -> None:
        """Print a note on stderr, unless `quiet`."""
        if not self.quiet:
            say(text)

    def loading(self) -> None:
        """Announce, on a terminal, that libraries and a model are loaded, which takes seconds."""
        if self.lively:
            say("Loading the model ...")

    def warn(self, text: str) -> None:
        """Warn on stderr, even if `quiet`."""
        say(f"warning: {text}")

    def result(self, text: str, data: dict[str, Any]) -> None:
        """Print a result on stdout: `data` as JSON with ``--json``, else `text`."""
        print(to_json(data) if self.json else plain(text))

    def made(self, text: str, data: dict[str, Any]) -> None:
        """Report a file that was made: `data` as JSON on stdout with ``--json``, else `text` as a note."""
        if self.json:
            print(to_json(data))
        else:
            self.note(text)

    @contextlib.contextmanager
    def progress(self, label: str, total: float, unit: str = "images") -> Iterator[Callable[[float], None]]:
        """Show the progress of the block: a bar on a terminal, a line every ten seconds in a log.

        Yields a function to call with the amount done since its last call. A `unit` of "%" shows only shares.
        """
        if self.quiet:
            yield lambda n: None
        elif not self.lively:
            yield _LogLines(label, total, unit)
        else:
            from rich import progress
            from rich.console import Console

            columns = (
                progress.TextColumn("{task.description}", markup=False),
                progress.BarColumn(),
                progress.TaskProgressColumn() if unit == "%" else progress.MofNCompleteColumn(),
                progress.TimeRemainingColumn(compact=True),
            )
            with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
                task = bar.add_task(label, total=total)
                yield lambda n: bar.advance(task, n)

    @contextlib.contextmanager
    def waiting(self, label: str) -> Iterator[None]:
        """Show that the block is at work, if its progress is not known."""
        if self.quiet:
            yield
        elif self.lively:
            from rich import progress
            from rich.console import Console

            columns = (
                progress.SpinnerColumn(),
                progress.TextColumn("{task.description}", markup=False),
                progress.TimeElapsedColumn(),
            )
            with progress.Progress(*columns, console=Console(stderr=True), transient=True) as bar:
                bar.add_task(label, total=None)
                yield
        else:
            done = threading.Event()
            ticker = threading.Thread(target=_tick, args=(label, done), daemon=True)
            ticker.start()
            try:
                yield
            finally:
                done.set()
                ticker.join()


class _LogLines:
    """Takes the amount done since the last call, and writes a line every ten seconds."""

    def __init__(self, label: str, total: float, unit: str):
        self._label, self._total, self._unit = label, total, unit
        self._start = self._told = time.monotonic()
        self._done = 0.0

    def __call__(self, n: float) -> None:
        self._done += n
        now = time.monotonic()
        if now - self._told < _PAUSE or not 0 < self._done < self._total:
            return
        self._told = now
        left = duration((self._total - self._done) * (now - self._start) / self._done)
        done = f"{self._done:.0f} of {self._total:.0f} {self._unit}"
        if self._unit == "%":
            done = f"{self._done / self._total:.0%}"
        say(f"{self._label}: {done}, about {left} left")


def _tick(label: str, done: threading.Event) -> None:
    start = time.monotonic()
    told = ""
    while not done.wait(_PAUSE):
        passed = duration(time.monotonic() - start)  # in whole minutes, after a while
        if passed != told:
            told = passed
            say(f"{label}: {passed} so far")


def duration(seconds: float) -> str:
    """Return a time in words, as precise as an estimate can be.

    >>> [duration(seconds) for seconds in (0.2, 7.4, 43, 290, 9000)]
    ['1 s', '7 s', '45 s', '5 min', '2 h 30 min']
    """
    if seconds < 20:
        return f"{max(1, round(seconds))} s"
    if seconds < 100:
        return f"{5 * round(seconds / 5)} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def counted(number: int, noun: str) -> str:
    """Return a number and its noun.

    >>> counted(1, "image"), counted(2, "image"), counted(3, "anomaly")
    ('1 image', '2 images', '3 anomalies')
    """
    if number == 1:
        return f"1 {noun}"
    return f"{number} {noun.removesuffix('y')}ies" if noun.endswith("y") else f"{number} {noun}s"


def command_line(words: Iterable[str]) -> str:
    """Return a command, or a part of one, quoted to be pasted: cmd.exe does not know single quotes."""
    return subprocess.list2cmdline(words) if os.name == "nt" else shlex.join(words)


def to_json(data: Any) -> str:
    """Return `data` as JSON, which lacks some numbers: infinity is the largest one, and NaN is null.

    >>> to_json({"score": float("-inf"), "p": [float("nan"), 1]})
    '{"score": -1.7976931348623157e+308, "p": [null, 1]}'
    """
    return json.dumps(_finite(data), allow_nan=False)


def _finite(data: Any) -> Any:
    if isinstance(data, float):
        largest = sys.float_info.max
        return None if math.isnan(data) else max(-largest, min(largest, data))
    if isinstance(data, dict):
        return {name: _finite(value) for name, value in data.items()}
    return [_finite(value) for value in data] if isinstance(data, (list, tuple)) else data


def say(text: str) -> None:
    """Write lines to stderr, without buffering."""
    sys.stderr.write(plain(text) + "\n")
    sys.stderr.flush()


def plain(text: str) -> str:
    """Return `text` without characters that control a terminal."""
    from skl_transformaly.images._folders import display_path

    return "\n".join(display_path(line) for line in text.split("\n"))
