"""Data frames, data sets of rows, generators and other containers of images, as one sequence."""

from __future__ import annotations

import os
from collections.abc import Iterator, KeysView, Sequence, ValuesView
from typing import Any

import numpy as np
from PIL import Image

from skl_transformaly.utils._missing import is_missing

__all__ = ["has_frames", "settled"]


def settled(X: Any) -> Any:
    """Return `X` as a sequence, if it holds images in another way; else `X` itself.

    Iterators become lists, a data frame or array of one column that does not hold numbers becomes that column, and a
    data set whose rows are dicts, as those of Hugging Face, becomes its column of images. Raises ValueError if several
    columns may be meant, and TypeError for a data set without length and for a dict of several data sets.
    """
    if isinstance(X, np.ndarray):
        return _array_column(X)
    if isinstance(X, (str, os.PathLike, list, tuple, Image.Image)):
        return X
    if isinstance(X, (Iterator, KeysView, ValuesView)) and not hasattr(X, "read"):  # an open file iterates, too
        return [_frame(item) for item in X]
    if isinstance(X, dict) and hasattr(X, "column_names"):
        name = next(iter(X), "train")
        raise TypeError(f"X holds the data sets {', '.join(map(repr, X))}: pass one, such as X[{name!r}].")
    if hasattr(X, "column_names") and not isinstance(X, type):
        return _table_column(X) if hasattr(X, "schema") and hasattr(X, "column") else _dataset_column(X)
    if hasattr(X, "columns") and hasattr(X, "dtypes") and len(getattr(X, "shape", ())) == 2:
        return _frame_column(X)
    if hasattr(X, "to_numpy") and not hasattr(X, "iloc") and len(getattr(X, "shape", ())) == 1:
        return X.to_numpy()  # an Index cannot be split as arrays and Series can
    return X


def _frame(item: Any) -> Any:
    """An item of an iterator, which may be the same PIL image for each of its frames: a copy of the current one."""
    return item.copy() if has_frames(item) else item


def has_frames(item: Any) -> bool:
    """Return whether an item is a PIL image of several frames, of which it shows one at a time."""
    try:
        return isinstance(item, Image.Image) and getattr(item, "n_frames", 1) > 1
    except ValueError:  # it is closed, which decoding tells
        return False


class _Column(Sequence):
    """One column of a data set whose rows are dicts, decoded row by row."""

    def __init__(self, rows: Any, name: str):
        self.rows = rows
        self.name = name

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, i: Any) -> Any:
        if not -len(self) <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        return self.rows[int(i)][self.name]


def _dataset_column(X: Any) -> Any:
    names = list(X.column_names or ())
    if not hasattr(X, "__len__"):
        raise TypeError(
            f"X is a streamed data set of columns {', '.join(map(repr, names))}, which has no length: load it without "
            "streaming, or pass a list of its images."
        )
    if not len(X):
        return []
    features = getattr(X, "features", None) or {}
    images = [name for name in names if type(features.get(name)).__name__ == "Image"]
    if not images:
        row = X[0]
        images = [name for name in names if _is_picture(row[name])]
    if len(images) == 1 or len(names) == 1:
        return _Column(X, (images or names)[0])
    raise _ambiguous("data set", names, images)


def _array_column(X: np.ndarray) -> np.ndarray:
    """The column of an array (n, 1) of paths or images, as it comes from a frame; any other array as it is."""
    if X.dtype.kind not in "OUT" or X.ndim != 2 or X.shape[1] != 1:
        return X
    value = next((value for value in X[:, 0] if not is_missing(value)), None)
    return X[:, 0] if _is_picture(value) or _is_path(value) else X


def _table_column(X: Any) -> Any:
    """The column of a table of Arrow."""
    if len(X.column_names) == 1:
        return X.column(0).to_pylist()
    raise _ambiguous("table", list(X.column_names), [])


def _frame_column(X: Any) -> Any:
    """The column of images in a data frame; a frame of numbers is returned as it is."""
    columns = [X.iloc[:, j] for j in range(X.shape[1])] if hasattr(X, "iloc") else [X[name] for name in X.columns]
    values = [next((value for value in column if not is_missing(value)), None) for column in columns]
    held = [name for name, value in zip(X.columns, values) if _is_picture(value) or _is_path(value)]
    if not held:
        return X
    if len(columns) == 1:
        return columns[0]
    raise _ambiguous("data frame", list(X.columns), held)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike, bytes, dict))


def _is_picture(value: Any) -> bool:
    return isinstance(value, Image.Image) or getattr(value, "ndim", 0) >= 2


def _ambiguous(kind: str, names: list, held: list) -> ValueError:
    shown = ", ".join(map(repr, names[:10])) + ", ..." * (len(names) > 10)
    column = (held or names)[0]
    return ValueError(
        f"X is a {kind} with the columns {shown}, and one column is expected: pass the one that holds the images or "
        f"their paths, such as X[{column!r}]."
    )
