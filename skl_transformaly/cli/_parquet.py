"""A table of scores as Parquet."""

from __future__ import annotations

import os

from skl_transformaly.cli._scores import COLUMNS, Row
from skl_transformaly.utils._files import replacing

__all__ = ["ParquetScores"]


class ParquetScores:
    """Scores that become a Parquet file when all are there: such a file cannot grow."""

    def __init__(self, path: str | os.PathLike):
        try:
            import pyarrow.parquet  # type: ignore[import-untyped]
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "Writing .parquet needs pyarrow: pip install 'skl-transformaly[cli]'. .csv and .jsonl need nothing."
            ) from error
        self._path = path
        self._arrow = pyarrow
        kinds = [pyarrow.string(), pyarrow.float64(), pyarrow.float64(), pyarrow.float64(), pyarrow.int8()]
        self._schema = pyarrow.schema(list(zip(COLUMNS, kinds)))
        self._tables = [self._schema.empty_table()]

    def add(self, rows: list[Row]) -> None:
        """Add rows."""
        rows = [{**row, "path": _as_text(row["path"])} for row in rows]
        self._tables.append(self._arrow.Table.from_pylist(rows, self._schema))

    def write(self) -> None:
        """Write the file, or leave the one that is there if that fails."""
        with replacing(self._path) as file:
            self._arrow.parquet.write_table(self._arrow.concat_tables(self._tables), file)


def _as_text(path: str) -> str:
    """A path as Parquet takes it, in UTF-8: other bytes are escaped."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")
