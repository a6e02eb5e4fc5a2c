"""Labels of a one-class task: +1 is normal, -1 is an anomaly; all else is refused. Sizes of groups of duplicates."""

from __future__ import annotations

import contextlib
from typing import Any

import numpy as np
from sklearn.model_selection import GroupKFold
from sklearn.utils.validation import check_array, column_or_1d

from skl_transformaly.utils._missing import is_missing
from skl_transformaly.utils._warnings import warn_user

__all__ = [
    "FORGOTTEN",
    "KNOWN_ANOMALY",
    "LEARNED",
    "TRIMMED",
    "by_appearance",
    "check_labels",
    "first_copies",
    "folds",
    "group_sizes",
    "normal_samples",
]

# What became of a training image, as `training_labels_` of a detector tells.
LEARNED, TRIMMED, KNOWN_ANOMALY, FORGOTTEN = 1, 0, -1, -2

# Folds where held-out scores have no closed form. With a fifth fewer images, what is held out seems more normal than
# new images will: of 40 photographs, whitened to 0.9 of the variance, 5 folds would flag 34 % of new ones, not 10.
_FOLDS = 20

_CONVERT = "Convert: y = np.where(y_is_anomaly, -1, 1)."


def check_labels(y: Any, who: str, *, both: bool = False) -> np.ndarray:
    """Return labels as int64 (n_samples,); `who` needs them and refuses any but +1 and -1.

    With `both`, there must be labels of both kinds.

    >>> check_labels([1.0, -1.0, 1.0], "A curve", both=True)
    array([ 1, -1,  1])
    """
    if y is None:
        raise ValueError(f"{who} needs y: +1 for normal samples, -1 for anomalies.")
    labels = column_or_1d(y, warn=True)
    if labels.dtype.kind == "O":
        labels = np.asarray(labels.tolist())
    found = np.unique(labels.astype(str)).tolist()
    if labels.dtype.kind not in "iuf" or not np.isin(labels, (-1, 1)).all():
        encoded = (
            " cross_val_predict(method='decision_function') turns -1 and +1 into 0 and 1 before it fits: pass "
            "cv=OneClassSplit() to it."
            if found == ["0", "1"]
            else ""
        )
        raise ValueError(
            f"y must be +1 for normal samples and -1 for anomalies, got {', '.join(found[:5])}"
            f"{', ...' if len(found) > 5 else ''}. With 0 for normal and 1 for anomaly, or False and True, AUROC would "
            f"silently be 1 - AUROC. {_CONVERT}{encoded}"
        )
    if both and len(found) < 2:
        raise ValueError(
            f"{who} needs both labels, +1 (normal) and -1 (anomaly); y holds {', '.join(found) or 'none'}."
        )
    return labels.astype(np.int64)


def normal_samples(y: Any, n: int, *, least: int = 2) -> np.ndarray | None:
    """Tell which of `n` samples are normal, as booleans (n,); None if `y` does not mark anomalies.

    +1 is a normal sample, -1 a known anomaly. Other numbers, such as classes, mean nothing here; a warning is issued if
    they may mark anomalies. Raises ValueError if `y` holds strings or booleans, lacks some labels, has another length,
    or marks fewer than `least` samples as normal.
    """
    labels = _as_vector(y)
    if labels is None:
        if y is not None:
            warn_user(
                f"y is {_described(y)}, which fit does not use: it takes all samples as normal. Expected is one number "
                "for each sample, +1 for normal ones and -1 for known anomalies."
            )
        return None
    _refuse_words(labels)
    if labels.dtype.kind == "O":
        with contextlib.suppress(TypeError, ValueError):
            # pandas' own missing values are no floats
            labels = np.array([np.nan if is_missing(label) else label for label in labels.tolist()], dtype=np.float64)
    if labels.dtype.kind not in "iuf":
        warn_user(f"y holds {labels.dtype} and no labels that fit can use: it takes all samples as normal.")
        return None
    _refuse_gaps(labels)
    if set(np.unique(labels).tolist()) - {-1, 1}:
        _warn_of_other_numbers(labels)
        return None
    if len(labels) != n:
        raise ValueError(f"y has {len(labels)} labels for {n} samples: pass one for each, +1 or -1.")
    normal = labels == 1
    if normal.all():
        return None
    if normal.sum() < least:
        raise ValueError(f"fit needs {least} normal samples (+1 in y), got {normal.sum()} of {n}.")
    return normal


def _as_vector(y: Any) -> np.ndarray | None:
    """Labels, perhaps of a column, as a vector; None of None, and of what cannot be labels."""
    try:
        labels = np.asarray(y)
    except (TypeError, ValueError, RuntimeError):
        return None
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels.ravel()
    return None if y is None or labels.ndim != 1 else labels


def _described(y: Any) -> str:
    shape = getattr(y, "shape", None)
    return f"{type(y).__name__}" + (f" of shape {tuple(shape)}" if shape is not None else "")


def _warn_of_other_numbers(labels: np.ndarray) -> None:
    """Warn if numbers that `fit` cannot use may mark some samples, which it takes as normal, as anomalies."""
    anomalies = int((labels == -1).sum())
    if np.unique(labels).tolist() == [0, 1]:
        warn_user(
            f"y holds 0 and 1, which fit does not use: it takes all {len(labels)} samples as normal. If one of the two "
            "means anomaly, pass normal samples only. If y is also used for scoring, label normal samples +1 and "
            f"anomalies -1, or roc_auc may silently be 1 - AUROC. {_CONVERT}"
        )
    if anomalies and not np.nan_to_num(labels % 1).any():
        warn_user(
            f"y marks {anomalies} of {len(labels)} samples as anomalies (-1), but it has other numbers than +1 and -1, "
            "so that fit ignores it and takes all samples as normal. Pass normal samples only, fit(X[y == 1]); wrap "
            "the detector, skl_transformaly.model_selection.NormalOnly(detector); or, in a search, set refit=False."
        )


def _refuse_words(labels: np.ndarray) -> None:
    words = [label for label in labels.tolist() if isinstance(label, (str, bytes, bool))]
    if words:
        found = ", ".join(map(repr, sorted(set(words), key=str)[:5]))
        raise ValueError(
            f"y holds labels such as {found}, but numbers are expected, +1 for normal samples and -1 for anomalies: "
            "pass y=None with normal samples only, or convert y and wrap the detector in "
            f"skl_transformaly.model_selection.NormalOnly. {_CONVERT}"
        )


def _refuse_gaps(labels: np.ndarray) -> None:
    missing = np.isnan(labels)
    if len(labels) and missing.all():
        warn_user(f"y holds no label for any of {len(labels)} samples: fit takes all as normal.")
    if missing.any() and not missing.all() and np.isin(labels[~missing], (-1, 1)).all():
        raise ValueError(
            f"y has no label for {missing.sum()} of {len(labels)} samples (NaN or None): label them +1 or -1, or leave "
            "them out of X and y."
        )


def group_sizes(groups: Any, n: int) -> np.ndarray:
    """How many samples the group of each has; ones without groups."""
    if groups is None:
        return np.ones(n, dtype=int)
    groups = check_array(groups, ensure_2d=False, dtype=None)
    if groups.shape != (n,):
        raise ValueError(f"groups must name one group for each of the {n} samples, got shape {groups.shape}.")
    _, inverse, counts = np.unique(groups, return_inverse=True, return_counts=True)
    return counts[inverse]


def by_appearance(groups: Any) -> np.ndarray:
    """Number groups in the order in which they appear, so that what depends on numbers does not depend on their origin.

    >>> by_appearance([7, 3, 7, 5]).tolist()
    [0, 1, 0, 2]
    """
    _, first, numbers = np.unique(groups, return_index=True, return_inverse=True)
    return first.argsort().argsort()[numbers.ravel()]


def first_copies(rows: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Find for each row the first one of its group that equals it, by positions (n_samples,).

    >>> first_copies(np.array([[1.0], [2.0], [1.0], [1.0]]), np.array([0, 0, 0, 1]))
    array([0, 1, 0, 3])
    """
    first = np.arange(len(rows))
    several = np.flatnonzero(group_sizes(groups, len(rows)) > 1)
    several = several[np.argsort(groups[several], kind="stable")]
    for members in np.split(several, np.flatnonzero(np.diff(groups[several])) + 1):
        _, kept, places = np.unique(rows[members], axis=0, return_index=True, return_inverse=True)
        first[members] = members[kept][places.ravel()]  # numpy 2.0.0 gives a column
    return first


def folds(groups: Any, n: int, count: int = _FOLDS) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return at most `count` splits of `n` samples that hold each out once, and keep groups together.

    Raises
    ------
    ValueError
        There is one group only.
    """
    groups = np.arange(n) if groups is None else by_appearance(groups)
    distinct = len(np.unique(groups))
    if distinct < 2:
        raise ValueError(f"All {n} samples are duplicates of one: give samples that differ.")
    splitter = GroupKFold(min(count, distinct), shuffle=True, random_state=0)
    return list(splitter.split(groups, groups=groups))
