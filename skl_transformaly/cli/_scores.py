"""The table of scores: its columns, and files to which it is written row by row."""

from __future__ import annotations

import contextlib
import csv
import errno
import io
import json
import math
import os
import stat
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from skl_transformaly.cli._console import to_json
from skl_transformaly.utils._files import replacing
from skl_transformaly.utils._warnings import warn_user

__all__ = [
    "ACTIONS_SUFFIX",
    "COLUMNS",
    "ScoreFile",
    "ScoreFileError",
    "append_whole",
    "file_state",
    "format_rows",
    "score_rows",
]

# Added to the name of a file of scores: of what `watch` is still to do about anomalies
ACTIONS_SUFFIX = ".actions.jsonl"
COLUMNS = ("path", "score", "decision", "p_value", "prediction")

# Bytes of a row with the longest path that Linux allows, all of it escaped
_LONGEST_ROW = 2**16
# On Windows a lock is of a byte, which may lie beyond the end of the file
_LOCKED_BYTE = 2**40

Row = dict[str, Any]
# Size of an image file in bytes, and time of its last change in nanoseconds; None if it does not exist
State = tuple[int, int] | None


class ScoreFileError(ValueError):
    """A file of scores cannot be continued."""


def score_rows(paths: list[str], table: dict[str, np.ndarray]) -> list[Row]:
    """Make rows of `paths` and the columns of `table`; NaN becomes None."""
    rows = []
    for i, path in enumerate(paths):
        row: Row = {"path": path}
        for name in COLUMNS[1:-1]:
            value = float(table[name][i])
            row[name] = None if math.isnan(value) else value
        row["prediction"] = int(table["prediction"][i])
        rows.append(row)
    return rows


def format_rows(rows: Iterable[Row], kind: str, *, header: bool = False) -> bytes:
    """Format rows as text of the `kind` "csv" or "jsonl".

    Numbers are written with all digits. In CSV, a missing number is an empty field, and bytes of a path that are not
    UTF-8 are kept; for JSON see :func:`to_json`, which escapes them.
    """
    if kind == "jsonl":
        return "".join(to_json(row) + "\n" for row in rows).encode()
    lines = [_csv_line(COLUMNS)] * header
    for row in rows:
        lines.append(_csv_line([_inert(row["path"]), *("" if row[k] is None else repr(row[k]) for k in COLUMNS[1:])]))
    return "".join(lines).encode("utf-8", "surrogateescape")


def _csv_line(fields: Sequence[str]) -> str:
    text = io.StringIO()
    # csv quotes fields with characters of its line terminator, and a carriage return in a path must be quoted
    csv.writer(text, lineterminator="\r\n").writerow(fields)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _inert(path: str) -> str:
    # a spreadsheet would take it as a formula; ./ does not change the path
    return f"./{path}" if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path


def file_state(path: str) -> State:
    """Return size and time of change of a file, by which changes are noticed; None if it does not exist."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return None
    return status.st_size, status.st_mtime_ns


class _Ledger:
    """The origin of the rows of a file of scores: the model's digest, and the state of each image when it was scored.

    It is kept in a file beside it, with one JSON object per line. The line of an image is written before its row, and
    the last line of a path counts, so that no row is taken for that of an image that has changed since.
    """

    def __init__(self, path: Path, model: str):
        self.path = path
        self.model = model
        self.states: dict[str, State] = {}
        # number, from 1, of the row with that state; an image may be replaced by another of the same name
        self.numbers: dict[str, int] = {}
        self._file: Any = None

    def read(self) -> str | None:
        """Read the file, and return the model in it, or None."""
        named = None
        with contextlib.suppress(FileNotFoundError), open(self.path, "rb") as file:
            for line in file:
                try:
                    entry = json.loads(line)
                    if named is None:
                        named = str(entry["model"])
                    else:
                        size, changed = entry["size"], entry["mtime_ns"]
                        self.states[str(entry["path"])] = None if size is None else (int(size), int(changed))
                        self.numbers[str(entry["path"])] = int(entry.get("number", 1))
                except (ValueError, TypeError, KeyError):
                    break  # a part of a line; ignore the rest
        return named

    def forget(self) -> None:
        """Forget all rows."""
        self.states.clear()
        self.numbers.clear()

    def _start(self) -> None:
        """Write the file, only before more is added, so that a run that is refused changes nothing."""
        with replacing(self.path) as file:
            file.write(json.dumps({"model": self.model}).encode() + b"\n" + self._lines(self.states, self.numbers))
        self._file = open(self.path, "ab", buffering=0)  # noqa: SIM115

    def note(self, states: dict[str, State], numbers: dict[str, int]) -> None:
        """Add the states of images whose rows are written next, and the number of rows that each has then."""
        if self._file is None:
            self._start()
        known, unknown = self.states, (-1, -1)
        # without those that were added before a row that could not be written
        new = {
            path: state
            for path, state in states.items()
            if (known.get(path, unknown), self.numbers.get(path, 1)) != (state, numbers[path])
        }
        append_whole(self._file, self._lines(new, numbers), self._file.seek(0, os.SEEK_END))
        self.states.update(new)
        self.numbers.update({path: numbers[path] for path in new})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    @staticmethod
    def _lines(states: dict[str, State], numbers: dict[str, int]) -> bytes:
        lines = []
        for path, state in states.items():
            size, changed = state or (None, None)
            entry = {"path": path, "size": size, "mtime_ns": changed}
            if numbers.get(path, 1) > 1:
                entry["number"] = numbers[path]
            lines.append(json.dumps(entry) + "\n")
        return "".join(lines).encode()


def append_whole(file: Any, content: bytes, end: int) -> None:
    """Write all of `content` at byte `end`, the end of an unbuffered file; nothing if that fails."""
    view = memoryview(content)
    try:
        while view:
            view = view[file.write(view) :]
    except BaseException:
        with contextlib.suppress(OSError):  # such as of a device
            file.truncate(end)
            file.seek(end)
        raise


class ScoreFile:
    """A file of scores, .csv or .jsonl, that grows by whole rows and is written by one process at a time.

    If the program is stopped at any time, the file holds whole rows, possibly followed by a part of one, which is
    removed when the file is continued (`resume`). If writing fails, the rows being written are removed at once. With
    the digest of the `model`, the model and the state of each image are kept in a file beside it, of the same name with
    ``.meta.jsonl`` added. `done` holds score and prediction of each path that has a row.

    Raises ScoreFileError if another process is writing the file, or if it is to be continued and is not one of scores.
    """

    def __init__(self, path: str | os.PathLike, *, resume: bool = False, model: str | None = None):
        self.path = Path(path)
        self.kind = self.path.suffix[1:].lower()
        self.done: dict[str, tuple[float | None, int]] = {}
        self._counts: Counter[str] = Counter()  # rows of each path
        self._whole = 0  # bytes of the file that are whole rows
        beside = self.path.with_name(self.path.name + ".meta.jsonl")
        self._ledger = None if model is None else _Ledger(beside, model)
        self._file: Any = _open_locked(self.path)
        try:
            if resume:
                self._read_back()
            elif self.path.is_file():
                self._file.truncate(0)
            if self.kind == "csv" and self._whole == 0:
                self._append(format_rows([], "csv", header=True))
            if not resume:  # the rows are gone that these files are about
                self.path.with_name(self.path.name + ACTIONS_SUFFIX).unlink(missing_ok=True)
            if self._ledger is None and not resume:
                beside.unlink(missing_ok=True)
            if self._ledger is not None and resume and self.done and self._ledger.read() != model:
                self._ledger.forget()  # rows of another model count as unknown
        except BaseException:
            self.close()
            raise

    def stale(self, paths: Iterable[str]) -> list[str]:
        """Return those of `paths` with rows that may be of other contents of the file, or by another model."""
        if self._ledger is None:
            return []
        return [path for path in paths if path in self.done and not self.holds(path, file_state(path))]

    def knows(self, path: str) -> bool:
        """Return whether it is known which model scored the image of `path`."""
        return self._ledger is not None and path in self._ledger.states

    def holds(self, path: str, state: State) -> bool:
        """Return whether there is a row of the image of `path` in `state`, by this model."""
        if self._ledger is None or self._ledger.states.get(path, (-1, -1)) != state:
            return False
        return self.count(path) >= self._ledger.numbers.get(path, 1)

    def count(self, path: str) -> int:
        """Return the number of rows of `path`."""
        return self._counts[path]

    def drop(self, paths: Iterable[str]) -> None:
        """Remove the rows of `paths`."""
        gone = set(paths)
        if not gone:
            return
        self._rewrite([row for row in self._rows() if str(Path(row["path"])) not in gone])

    def arrange(self, paths: Iterable[str]) -> None:
        """Put the rows of `paths` in their order, after those of others."""
        place = {path: i for i, path in enumerate(paths)}
        self._rewrite(sorted(self._rows(), key=lambda row: place.get(str(Path(row["path"])), -1)))

    def _rows(self) -> list[Row]:
        return [row for row, _ in _read_rows(self.path, self.kind) if row is not None]

    def _rewrite(self, rows: list[Row]) -> None:
        """Replace the rows by `rows`; stopped at any time, the file holds the old ones or the new ones."""
        content = format_rows(rows, self.kind, header=self.kind == "csv")
        with replacing(self.path) as file:
            file.write(content)
            if os.name == "nt":
                self._file.close()  # Windows replaces no open file
        before, self._file = self._file, _open_locked(self.path)
        before.close()  # whoever opens the file until now finds it locked, or replaced
        self._whole = self._file.seek(0, os.SEEK_END)
        self.done.clear()
        self._counts.clear()
        for row in rows:
            self._note(row)

    def write(self, rows: list[Row], states: dict[str, State] | None = None) -> None:
        """Append all of `rows` or none; `states` are those of their images before they were read."""
        if self._ledger is not None:
            states = states or {}
            self._ledger.note(states, {path: self.count(path) + 1 for path in states})
        self._append(format_rows(rows, self.kind))
        for row in rows:
            self._note(row)

    def _read_back(self) -> None:
        """Read the whole rows, and remove a part of one at the end."""
        for row, end in _read_rows(self.path, self.kind):
            self._whole = end
            if row is not None:
                self._note(row)
        if self._file.seek(0, os.SEEK_END) - self._whole > _LONGEST_ROW:
            raise ScoreFileError(
                f"{str(self.path)!r} is not a file of scores, or was changed: no row ends after byte "
                f"{self._whole}. Score into another file, or without --resume."
            )
        self._file.truncate(self._whole)
        self._file.seek(self._whole)

    def _note(self, row: Row) -> None:
        path = str(Path(row["path"]))
        self.done[path] = (row["score"], row["prediction"])
        self._counts[path] += 1

    def _append(self, content: bytes) -> None:
        self._check_unchanged()
        append_whole(self._file, content, self._whole)
        self._whole += len(content)

    def _check_unchanged(self) -> None:
        """Refuse to write on where another program, such as one that rotates logs, has cut or moved the file."""
        here = os.fstat(self._file.fileno())
        if not stat.S_ISREG(here.st_mode):
            return
        try:
            moved = not os.path.samestat(here, os.stat(self.path))
        except FileNotFoundError:
            if not self.path.parent.is_dir():  # a drive that is gone may come back
                raise
            moved = True
        if moved or here.st_size != self._whole:
            what = "moved or removed" if moved else f"changed: it has {here.st_size} bytes instead of {self._whole}"
            raise ScoreFileError(
                f"{str(self.path)!r} was {what}, while it was being written. Its rows say what is done: to begin a new "
                "file, end the program first, and move this one together with those beside it."
            )

    def close(self) -> None:
        """Close the file; it can be continued with `resume`."""
        if self._ledger is not None:
            self._ledger.close()
        self._file.close()

    def __enter__(self) -> ScoreFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


def _open_locked(path: Path) -> Any:
    """Open a file for writing, unbuffered, for this process alone; the lock ends with the process in any case."""
    while True:
        # not truncated: another process may be writing it
        file: Any = open(os.open(path, os.O_WRONLY | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666), "wb", buffering=0)  # noqa: SIM115
        try:
            _lock(file)
            if os.path.exists(path) and os.path.samestat(os.fstat(file.fileno()), os.stat(path)):
                return file
            file.close()  # another process finished and removed it in between
        except BlockingIOError:
            file.close()
            raise ScoreFileError(
                f"Another process is writing {str(path)!r}: wait for it to end, or score into another file."
            ) from None
        except BaseException:
            file.close()
            raise


def _lock(file: Any) -> None:
    """Lock an open file. Raises BlockingIOError if another process has locked it."""
    try:
        import fcntl
    except ModuleNotFoundError:  # Windows
        import msvcrt

        file.seek(_LOCKED_BYTE)
        try:
            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)  # type: ignore[attr-defined]
        except OSError as error:
            if error.errno in (errno.EACCES, errno.EDEADLK):
                raise BlockingIOError(error.errno, error.strerror) from error
            if error.errno != errno.EINVAL:  # which a share without locks answers
                raise
            _warn_unlocked(file, error)
        file.seek(0)
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise
    except OSError as error:
        if error.errno not in (errno.ENOTSUP, errno.ENOLCK, errno.ENOSYS):
            raise
        _warn_unlocked(file, error)


def _warn_unlocked(file: Any, error: OSError) -> None:
    warn_user(f"{file.name!r} cannot be locked ({error.strerror}): make sure that no other process writes to it.")


def _read_rows(path: Path, kind: str) -> Iterator[tuple[Row | None, int]]:
    """Yield each whole row (None for a header), and where it ends; a part of a row at the end is left out."""
    end = 0
    for record in _records(path, quoted=kind == "csv"):
        end += len(record)
        try:
            if kind == "jsonl":
                row = json.loads(record)
                if list(row) != list(COLUMNS):
                    raise ValueError(f"columns {list(row)}")
                if not _is_row(row):
                    raise ValueError("a value of another kind")
                yield row, end
                continue
            (fields,) = csv.reader([record.decode("utf-8", "surrogateescape")], strict=True)
            if end == len(record):
                if tuple(fields) != COLUMNS:
                    raise ValueError(f"columns {fields}")
                yield None, end
                continue
            if len(fields) != len(COLUMNS):
                raise ValueError(f"{len(fields)} fields")
            numbers = [float(text) if text else None for text in fields[1:-1]]
            yield dict(zip(COLUMNS, [fields[0], *numbers, int(fields[-1])])), end
        except (ValueError, TypeError, csv.Error) as error:
            raise ScoreFileError(
                f"{str(path)!r} is not a file of scores, or was changed ({error}, {end} bytes in; expected columns "
                f"{', '.join(COLUMNS)}). Score into another file, or without --resume."
            ) from error


def _is_row(row: Row) -> bool:
    """Whether the values are of the kinds that are written."""
    numbers = all(row[name] is None or type(row[name]) in (int, float) for name in COLUMNS[1:-1])
    return numbers and isinstance(row["path"], str) and type(row["prediction"]) is int


def _records(path: Path, *, quoted: bool) -> Iterator[bytes]:
    """Split a file into records that end in a line feed outside of quotes."""
    record = b""
    with open(path, "rb") as file:
        for line in file:
            record += line
            if line.endswith(b"\n") and not (quoted and record.count(b'"') % 2):
                yield record
                record = b""
            elif len(record) > _LONGEST_ROW:
                return
