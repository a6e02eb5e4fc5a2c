"""The table of scores: its columns, and the files that it is written to row by row."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["COLUMNS", "ScoreFile", "ScoreFileError", "format_rows", "open_scores", "score_table", "score_rows"]

COLUMNS = ("path", "score", "decision", "p_value", "prediction")

_MAX = float(np.finfo(np.float64).max)
# bytes of a row whose path is as long as Linux allows, all of it escaped
_LONGEST_ROW = 2**16

Row = dict[str, Any]


class ScoreFileError(ValueError):
    """A file of scores that cannot be gone on with. Its message says why, and what to do."""


def score_table(detector: Any, X: Any, score: Any = None) -> dict[str, np.ndarray]:
    """Score, decision, p-value and prediction of each image, by any fitted detector.

    Parameters
    ----------
    detector : outlier detector
        With `score_table` (:class:`ConformalDetector`), or with `score_samples` and `offset_`.
    X : images
        In any form that the detector takes.
    score : ndarray of shape (n_samples,), default=None
        What ``score_samples(X)`` gave (of the detector inside a :class:`ConformalDetector`), where it is known already.

    Returns
    -------
    table : dict of str to ndarray of shape (n_samples,)
        ``score``, ``decision`` and ``p_value``, float64, and ``prediction``, int: +1 normal, -1 anomaly. Scores of
        unreadable images are NaN. All p-values are NaN where the detector gives none.
    """
    if hasattr(detector, "score_table"):
        return detector.score_table(X, score=score)
    score = np.asarray(detector.score_samples(X) if score is None else score, dtype=np.float64)
    decision = score - detector.offset_
    return {
        "score": score,
        "decision": decision,
        "p_value": np.full(len(score), np.nan),
        "prediction": np.where(decision >= 0, 1, -1),
    }


def score_rows(paths: list[str], table: dict[str, np.ndarray]) -> list[Row]:
    """Make rows of `paths` and the columns of `table`; what is no number becomes None."""
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
    """Rows as text: `kind` is "csv" or "jsonl".

    Numbers have all the digits that they need to be read back as they were. In CSV, a missing number is an empty field,
    and bytes of a path that are not UTF-8 stay as they are; in JSON they are escapes, and infinity, which JSON lacks,
    is the largest number.
    """
    if kind == "jsonl":
        finite = [{name: _finite(value) for name, value in row.items()} for row in rows]
        return "".join(json.dumps(row, allow_nan=False) + "\n" for row in finite).encode()
    lines = [_csv_line(COLUMNS)] * header
    for row in rows:
        lines.append(_csv_line([_inert(row["path"]), *("" if row[k] is None else repr(row[k]) for k in COLUMNS[1:])]))
    return "".join(lines).encode("utf-8", "surrogateescape")


def _csv_line(fields: Sequence[str]) -> str:
    text = io.StringIO()
    # csv puts into quotes what its line terminator holds: a carriage return in a path needs them as well
    csv.writer(text, lineterminator="\r\n").writerow(fields)
    return text.getvalue().removesuffix("\r\n") + "\n"


def _finite(value: Any) -> Any:
    return max(-_MAX, min(_MAX, value)) if isinstance(value, float) else value


def _inert(path: str) -> str:
    # a spreadsheet would take it as a formula; with ./ it names the same file
    return f"./{path}" if path.startswith(("=", "+", "-", "@", "\t", "\r")) else path


class ScoreFile:
    """A file of scores that grows by whole rows.

    Whatever stops the program, the file holds whole rows, at most followed by a part of one, which going on cuts off.
    Where writing itself fails, the rows that were being written are cut off at once.

    Parameters
    ----------
    path : path
        ``.csv`` or ``.jsonl``.
    resume : bool
        Keep the rows that are there.

    Attributes
    ----------
    done : dict of str to (float or None, int)
        Score and prediction of each path that has a row.

    Raises
    ------
    ScoreFileError
        With `resume`: the file is not one of scores.
    OSError
        The file cannot be written.
    """

    def __init__(self, path: str | os.PathLike, *, resume: bool = False):
        self.path = Path(path)
        self.kind = self.path.suffix[1:].lower()
        self.done: dict[str, tuple[float | None, int]] = {}
        self._whole = 0  # bytes of the file that are whole rows
        # unbuffered: a row is in the file when write returns
        self._file: Any = open(self.path, "r+b" if resume and self.path.exists() else "wb", buffering=0)  # noqa: SIM115
        try:
            if resume:
                for row, end in _read_rows(self.path, self.kind):
                    self._whole = end
                    if row is not None:
                        self._note(row)
                if self._file.seek(0, os.SEEK_END) - self._whole > _LONGEST_ROW:
                    raise ScoreFileError(
                        f"{str(self.path)!r} is not a file of scores, or was changed: no row ends after byte "
                        f"{self._whole}. Score into another file, or without resuming."
                    )
                self._file.truncate(self._whole)
                self._file.seek(self._whole)
            if self.kind == "csv" and self._whole == 0:
                self._append(format_rows([], "csv", header=True))
        except BaseException:
            self._file.close()
            raise

    def write(self, rows: list[Row]) -> None:
        """Append `rows`.

        Raises
        ------
        OSError
            No room, for one; the file then ends with a whole row.
        """
        self._append(format_rows(rows, self.kind))
        for row in rows:
            self._note(row)

    def _note(self, row: Row) -> None:
        self.done[str(Path(row["path"]))] = (row["score"], row["prediction"])

    def _append(self, content: bytes) -> None:
        view = memoryview(content)
        try:
            while view:
                view = view[self._file.write(view) :]
        except BaseException:
            with contextlib.suppress(OSError):  # no file of its own, such as a device
                self._file.truncate(self._whole)
                self._file.seek(self._whole)
            raise
        self._whole += len(content)

    def finish(self) -> None:
        """Close the file; all rows are written."""
        self.close()

    def close(self) -> None:
        """Close the file; more rows may be to come, with `resume`."""
        self._file.close()

    def __enter__(self) -> ScoreFile:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _ParquetScores(ScoreFile):
    """Scores as Parquet, which is readable only once it is whole: until then the rows are in a file beside it."""

    def __init__(self, path: str | os.PathLike, *, resume: bool = False):
        self.target = Path(path)
        spool = self.target.with_name(self.target.name + ".part.jsonl")
        finished = []
        if resume and not spool.exists() and self.target.exists():
            finished = list(_read_parquet(self.target))
        # that the target can be written shows here, not after hours
        if not os.access(self.target.parent, os.W_OK) or self.target.is_dir():
            raise OSError(f"{str(self.target)!r} cannot be written.")
        super().__init__(spool, resume=resume)
        if finished:
            self.write(finished)

    def finish(self) -> None:
        self.close()
        written = self.target.with_name(self.target.name + ".part")
        try:
            _write_parquet(self.path, written)
            os.replace(written, self.target)
        except BaseException:
            written.unlink(missing_ok=True)
            raise
        self.path.unlink()


def open_scores(path: str | os.PathLike, *, resume: bool = False) -> ScoreFile:
    """Open a file of scores for writing; its suffix says its kind.

    Parameters
    ----------
    path : path
        ``.csv``, ``.jsonl`` or ``.parquet``.
    resume : bool, default=False
        Keep the rows that are there, if any.

    Returns
    -------
    ScoreFile

    Raises
    ------
    ScoreFileError
        Another suffix; or, with `resume`, the file is not one of scores.
    ModuleNotFoundError
        pyarrow is missing for ``.parquet``.
    OSError
        The file cannot be written.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> path = Path(tempfile.mkdtemp()) / "scores.csv"
    >>> row = {"path": "a.png", "score": -1.5, "decision": 0.25, "p_value": 0.5, "prediction": 1}
    >>> with open_scores(path) as scores:
    ...     scores.write([row])
    >>> print(path.read_text())
    path,score,decision,p_value,prediction
    a.png,-1.5,0.25,0.5,1
    <BLANKLINE>
    >>> with open_scores(path, resume=True) as scores:
    ...     print(scores.done)
    {'a.png': (-1.5, 1)}
    """
    suffix = Path(path).suffix.lower()
    if suffix not in (".csv", ".jsonl", ".parquet"):
        raise ScoreFileError(f"{str(path)!r} must end in .csv, .jsonl or .parquet.")
    return (_ParquetScores if suffix == ".parquet" else ScoreFile)(path, resume=resume)


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
                f"{', '.join(COLUMNS)}). Score into another file, or without resuming."
            ) from error


def _records(path: Path, *, quoted: bool) -> Iterator[bytes]:
    """Split a file into records that end in a line feed; one within quotes ends none."""
    record = b""
    with open(path, "rb") as file:
        for line in file:
            record += line
            if line.endswith(b"\n") and not (quoted and record.count(b'"') % 2):
                yield record
                record = b""
            elif len(record) > _LONGEST_ROW:
                return


def _pyarrow() -> Any:
    try:
        import pyarrow.parquet  # type: ignore[import-untyped]
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "Writing .parquet needs pyarrow: pip install 'skl-transformaly[cli]'. .csv and .jsonl need nothing."
        ) from error
    return pyarrow


def _schema(pa: Any) -> Any:
    kinds = [pa.string(), pa.float64(), pa.float64(), pa.float64(), pa.int8()]
    return pa.schema([pa.field(name, kind) for name, kind in zip(COLUMNS, kinds)])


def _write_parquet(spool: Path, path: Path, group: int = 65536) -> None:
    pa = _pyarrow()
    schema = _schema(pa)
    with pa.parquet.ParquetWriter(path, schema) as writer:
        rows: list[Row] = []

        def flush() -> None:
            writer.write_table(pa.Table.from_pylist(rows, schema))
            rows.clear()

        for row, _ in _read_rows(spool, "jsonl"):
            assert row is not None
            # Parquet's text is UTF-8; other bytes of a path are written as \xNN
            rows.append({**row, "path": os.fsencode(row["path"]).decode("utf-8", "backslashreplace")})
            if len(rows) == group:
                flush()
        flush()


def _read_parquet(path: Path) -> Iterator[Row]:
    pa = _pyarrow()
    try:
        table = pa.parquet.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise ScoreFileError(f"{str(path)!r} is not a file of scores: {error}. Score into another file.") from error
    if tuple(table.column_names) != COLUMNS:
        raise ScoreFileError(f"{str(path)!r} is not a file of scores: it has columns {table.column_names}.")
    yield from table.to_pylist()
