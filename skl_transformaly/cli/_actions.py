"""Actions of `watch` on anomalies, repeated until they succeed: move or link files, run a command, call a URL."""

from __future__ import annotations

import contextlib
import errno
import filecmp
import http.client
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from skl_transformaly.cli._console import to_json
from skl_transformaly.cli._scores import Row, State, append_whole, file_state
from skl_transformaly.utils._files import absolute_path, replacing

__all__ = ["Actions", "Hook", "Shelf"]

_COMMAND_SECONDS, _URL_SECONDS = 60.0, 10.0
# Seconds until a failed action is repeated, doubled each time up to the second number
_FIRST_PAUSE, _LONGEST_PAUSE = 1.0, 60.0
_FIELDS = ("path", "score", "decision", "p_value", "prediction", "moved_to")
# What os.readlink of Windows puts before a path, however the link was made
_LONG = "\\\\?\\"
_NAME = re.compile(f"{{({'|'.join(_FIELDS)})}}")


class Hook:
    """Reports an anomaly: posts JSON to a URL of http or https, or runs a command without a shell.

    A command and its arguments are quoted as for a shell. In the arguments, {path}, {score}, {decision}, {p_value},
    {prediction} and {moved_to} are replaced; without any of these, the path of the image is added as the last argument.
    The command gets the row as JSON on its stdin.
    """

    def __init__(self, target: str):
        self.url = target if target.lower().startswith(("http://", "https://")) else None
        self.arguments: list[str] = []
        if self.url is not None:
            _check_url(self.url)
            return
        try:
            self.arguments = _split(target)
        except ValueError as error:
            raise ValueError(f"--on-anomaly {target!r} is not a command: {error}.") from error
        program = shutil.which(self.arguments[0]) if self.arguments else None
        if program is None:
            raise ValueError(f"--on-anomaly {target!r} is neither a URL of http or https nor a command that exists.")
        if os.name == "nt" and not program.lower().endswith((".exe", ".com")):
            # .bat and .cmd are run by cmd.exe, which would run parts of a file's name, too; others need another program
            raise ValueError(
                f"--on-anomaly {target!r} would run {program!r}, which Windows cannot start by itself. Name a program "
                "(.exe), as in 'python.exe alarm.py'."
            )
        self.arguments[0] = program  # as it was found: Windows itself looks for .exe only

    def __call__(self, row: Row) -> None:
        """Report an anomaly. Raises OSError if the command fails or hangs, or the server does not answer with 2xx."""
        content = to_json(row).encode()
        if self.url is not None:
            _post(self.url, content)
        else:
            _execute(self._filled_in(row), content)

    def _filled_in(self, row: Row) -> list[str]:
        place = row["moved_to"] or row["path"]
        values = {**row, "path": place}
        if not any(_NAME.search(argument) for argument in self.arguments[1:]):
            return [*self.arguments, place]
        return [self.arguments[0], *(_replaced(argument, values) for argument in self.arguments[1:])]


def _split(command: str) -> list[str]:
    """Split a command into its parts. On Windows, backslashes are parts of paths, and quotes are around whole parts."""
    if os.name != "nt":
        return shlex.split(command)
    return [re.sub(r"""^(["'])(.*)\1$""", r"\2", part, flags=re.DOTALL) for part in shlex.split(command, posix=False)]


def _replaced(argument: str, values: dict[str, Any]) -> str:
    """Replace names in braces by their values, once."""
    return _NAME.sub(lambda found: "" if values[found[1]] is None else str(values[found[1]]), argument)


def _execute(arguments: list[str], content: bytes) -> None:
    process = subprocess.Popen(
        arguments,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        # Ctrl-C is for the watcher, which lets the command end
        start_new_session=os.name != "nt",
        creationflags=getattr(subprocess, "CREATE_NEW_PROCESS_GROUP", 0),  # Windows has no sessions
    )
    try:
        process.communicate(content, timeout=_COMMAND_SECONDS)
    except subprocess.TimeoutExpired:
        raise OSError(f"{arguments[0]} took more than {_COMMAND_SECONDS:.0f} s and was stopped") from None
    finally:
        if process.poll() is None:
            _kill(process)
    if process.returncode:
        raise OSError(f"{arguments[0]} ended with status {process.returncode}")


def _kill(process: subprocess.Popen) -> None:
    if os.name == "nt":
        process.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.wait()


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows no redirect, so that nothing is sent to an address that the user did not name."""

    def redirect_request(self, *arguments: Any, **more: Any) -> None:
        return None


def _check_url(url: str) -> None:
    """Refuse a URL that no request can be sent to. Raises ValueError."""
    try:
        parts = urllib.parse.urlsplit(url)
        wrong = "it has no host" if not parts.hostname else ""
        parts.port  # noqa: B018  (raises ValueError if it is not a number)
    except ValueError as error:
        wrong = str(error)
    if re.search(r"[\s\x00-\x1f\x7f]|[^\x00-\x7f]", url):
        wrong = "blanks, control characters and others that are not ASCII are written as %20 and the like"
    if wrong:
        raise ValueError(f"--on-anomaly {url!r} is not a URL: {wrong}.")


def _post(url: str, content: bytes) -> None:
    """Post within `_URL_SECONDS`, however slowly the server answers: urllib's own limit is that of a single read."""
    failure: list[Exception] = []
    # a daemon: at the end of the program nobody waits for a server
    thread = threading.Thread(target=_post_to, args=(url, content, failure), daemon=True)
    thread.start()
    thread.join(_URL_SECONDS)
    if thread.is_alive():
        raise OSError(f"{url} took more than {_URL_SECONDS:g} s")
    if failure:
        raise failure[0]


def _post_to(url: str, content: bytes, failure: list[Exception]) -> None:
    headers = {"Content-Type": "application/json", "User-Agent": "skl-transformaly"}
    request = urllib.request.Request(url, content, headers, method="POST")
    try:
        urllib.request.build_opener(_NoRedirect).open(request, timeout=_URL_SECONDS).close()
    except urllib.error.HTTPError as error:
        error.close()
        failure.append(OSError(f"{url} answered {error.code}"))
    except http.client.HTTPException as error:  # neither an OSError nor a ValueError
        failure.append(OSError(f"{url} does not answer as a server of HTTP does ({type(error).__name__}: {error})"))
    except (OSError, ValueError) as error:  # URLError is an OSError
        failure.append(OSError(f"{url}: {getattr(error, 'reason', error)}"))
    except Exception as error:
        failure.append(error)


@dataclass
class Shelf:
    """Folder to which anomalies are moved, or in which they are linked, keeping their path below `root`."""

    folder: Path
    root: Path
    link: bool = False

    def __call__(self, path: str, state: State) -> str | None:
        """Move or link a file and return its new path; None if it is gone or no longer in that state."""
        if state is None or file_state(path) != state:
            return None
        wanted = self.folder / os.path.relpath(path, self.root)
        wanted.parent.mkdir(parents=True, exist_ok=True)
        target, number = wanted, 0
        while os.path.lexists(target):
            if self._is_there(path, target):
                return str(target)
            if not self.link and _is_link_to(target, absolute_path(path)):
                target.unlink()  # made by an earlier run with --link-to: it would lead nowhere
                break
            number += 1
            target = wanted.with_stem(f"{wanted.stem}-{number}")
        if self.link:
            target.symlink_to(absolute_path(path))
        else:
            _move(path, target)
        return str(target)

    def _is_there(self, path: str, target: Path) -> bool:
        """Whether an earlier run, killed before it could record this, moved or linked `path` to `target`."""
        if self.link:
            return _is_link_to(target, absolute_path(path))
        if target.is_symlink() or os.path.samefile(path, target):
            # If both names belong to one file, nothing has been moved yet; if both are links to one picture, it has.
            there = os.path.islink(path) and _is_link_to(target, _destination(path))
        else:
            there = target.is_file() and filecmp.cmp(path, target, shallow=False)
        if there:
            os.unlink(path)
        return there


def _is_link_to(path: Path, place: str) -> bool:
    return path.is_symlink() and _read_link(path) == place


def _read_link(link: str | os.PathLike) -> str:
    """Return what a link leads to, without what Windows puts before a path."""
    place = os.readlink(os.fspath(link))
    if os.name == "nt" and place.startswith(_LONG):
        unc = _LONG + "UNC\\"
        return "\\\\" + place.removeprefix(unc) if place.startswith(unc) else place.removeprefix(_LONG)
    return place


def _destination(link: str) -> str:
    """Return the absolute path that a link leads to; it may lead on from there."""
    return os.path.join(os.path.realpath(os.path.dirname(link)), _read_link(link))


def _move(path: str, target: Path) -> None:
    try:
        if os.path.islink(path) and not os.path.isabs(_read_link(path)):
            # as it is, it would lead elsewhere from there
            target.symlink_to(_destination(path))
            os.unlink(path)
        else:
            os.rename(path, target)
    except OSError as error:
        if error.errno != errno.EXDEV:
            raise
        # to another disk: whole or not at all
        part = target.with_name(f".{target.name}.part")
        try:
            shutil.copy2(path, part)
            os.replace(part, target)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        os.unlink(path)


@dataclass
class _Due:
    """An anomaly with actions that are still to be done."""

    row: Row
    number: int  # which of the rows of its path it is, counted from 1
    state: State
    left: list[str]
    warned: bool = False

    def key(self) -> dict[str, Any]:
        return {"path": self.row["path"], "number": self.number}

    def line(self) -> bytes:
        return _line({"due": self.row, "number": self.number, "state": self.state, "actions": self.left})


class Actions:
    """Actions on anomalies, recorded in a file so that none is forgotten when the program is stopped.

    An anomaly is recorded before its row is written, and each action after it has succeeded. So each action is done at
    least once, and twice only if the program is killed between an action and its record. ``count(path)`` returns the
    number of rows of a path: actions on a row that was never written are not done, since the image is scored again.
    """

    def __init__(
        self,
        path: Path,
        shelf: Shelf | None,
        hook: Hook | None,
        *,
        warn: Callable[[str], None],
        count: Callable[[str], int],
        clock: Callable[[], float] = time.monotonic,
    ):
        self.path = path
        self.shelf = shelf
        self.hook = hook
        self._warn = warn
        self._count = count
        self._clock = clock
        self._file: Any = None
        self._late = b""  # lines about actions that are done, still to be written
        self._pause, self._not_before = _FIRST_PAUSE, -float("inf")
        self._due = [due for due in _read(path) if count(due.row["path"]) >= due.number]

    @property
    def waiting(self) -> int:
        """Number of anomalies with actions that this run is still to do."""
        return sum(bool(self._asked(due)) for due in self._due)

    @property
    def left(self) -> int:
        """Number of anomalies with actions that are still to be done, by this run or by one with other options."""
        return len(self._due)

    def _asked(self, due: _Due) -> list[str]:
        """Return the actions that are left of those that this run was asked for."""
        asked = {"move": self.shelf is not None, "tell": self.hook is not None}
        return [action for action in due.left if asked.get(action)]

    def note(self, rows: Iterable[Row], states: dict[str, State]) -> list[_Due]:
        """Record, all or nothing, the actions on the anomalies among `rows`, before these are written.

        The result must be passed to `add` once the rows are written.
        """
        due = []
        for row in rows:
            # a file that cannot be read may still be written to
            move = self.shelf is not None and row["score"] is not None
            actions = ["move"] * move + ["tell"] * (self.hook is not None)
            if row["prediction"] < 0 and actions:
                number = self._count(row["path"]) + 1
                due.append(_Due({**row, "moved_to": None}, number, states[row["path"]], actions))
        self._write(b"".join(one.line() for one in due))
        return due

    def add(self, due: list[_Due]) -> None:
        self._due += due

    def run(self, stopping: Callable[[], bool] = lambda: False) -> None:
        """Do all actions; those that fail are repeated by a later call, after a pause."""
        self._write_late()
        if self._clock() < self._not_before:
            return
        failed = False
        for due in list(self._due):
            if stopping():
                return
            try:
                self._do(due)
            except OSError as error:
                failed = True
                self._due.remove(due)
                self._due.append(due)
                if not due.warned:
                    due.warned = True
                    self._warn(f"{due.row['path']}: {error}. It is repeated until it succeeds.")
                if self._asked(due)[:1] == ["tell"]:
                    break  # or each anomaly would wait for a server that is down
            else:
                if not due.left:  # what this run was not asked for is kept for one that is
                    self._due.remove(due)
        if failed:
            self._not_before = self._clock() + self._pause
            self._pause = min(2 * self._pause, _LONGEST_PAUSE)
        else:
            self._pause = _FIRST_PAUSE

    def _do(self, due: _Due) -> None:
        """Do all actions that are left and asked for, even if one of them fails."""
        failure = None
        for action in self._asked(due):
            try:
                if action == "move" and self.shelf is not None:
                    due.row["moved_to"] = self.shelf(due.row["path"], due.state)
                elif action == "tell" and self.hook is not None:
                    self.hook(due.row)
                due.left.remove(action)
                self._late += _line({"done": action, **due.key(), "moved_to": due.row["moved_to"]})
                self._write_late()
            except OSError as error:
                failure = failure or error
        if failure is not None:
            raise failure

    def _write(self, content: bytes) -> None:
        if not content:
            return
        if self._file is None:
            self._start()
        append_whole(self._file, content, self._file.seek(0, os.SEEK_END))

    def _write_late(self) -> None:
        """Record actions that are done; if the disk is full, later."""
        with contextlib.suppress(OSError):
            self._write(self._late)
            self._late = b""

    def _start(self) -> None:
        """Record the actions that an earlier run left, and open the file for more."""
        with replacing(self.path) as file:
            file.write(b"".join(due.line() for due in self._due))
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def close(self) -> None:
        self._write_late()
        if self._file is not None:
            self._file.close()


def _line(entry: dict[str, Any]) -> bytes:
    return to_json(entry).encode() + b"\n"


def _read(path: Path) -> list[_Due]:
    """Read the actions that are still to be done, without a part of a line at the end of the file."""
    found: dict[tuple[str, int], _Due] = {}
    with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
        for line in file:
            try:
                entry = json.loads(line)
                number = int(entry["number"])
                if "due" in entry:
                    row = {name: entry["due"][name] for name in _FIELDS}
                    size, changed = entry["state"]
                    actions = [str(action) for action in entry["actions"]]
                    found[row["path"], number] = _Due(row, number, (int(size), int(changed)), actions)
                elif (entry["path"], number) in found:
                    due = found[entry["path"], number]
                    due.left = [action for action in due.left if action != entry["done"]]
                    due.row["moved_to"] = entry["moved_to"]
            except (ValueError, TypeError, KeyError):
                continue
    return [due for due in found.values() if due.left]
