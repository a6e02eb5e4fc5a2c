"""OneClassSplit: cross-validation for detectors that learn from normal samples only."""

from __future__ import annotations

from collections.abc import Iterator
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.model_selection import BaseCrossValidator, StratifiedKFold, check_cv

from skl_transformaly.utils._labels import check_labels

__all__ = ["OneClassSplit"]


class OneClassSplit(BaseCrossValidator):
    """Cross-validation with training folds of normal samples only, and test folds of both kinds.

    Parameters
    ----------
    cv : int, splitter or iterable, default=5
        The splits to start from: a number of folds, at least 2, for
        ``StratifiedKFold(cv, shuffle=True, random_state=random_state)``; any splitter of scikit-learn; or an iterable
        of (train, test) positions.
    random_state : int, RandomState or None, default=None
        Seeds the shuffle if `cv` is a number. A splitter has its own.

    Raises
    ------
    ValueError
        `cv` is something else, or `random_state` is given together with a splitter, on which it has no effect.

    See Also
    --------
    NormalOnly : Keeps anomalies out of the refit after a search, which a splitter cannot do.

    Notes
    -----
    ``GridSearchCV(refit=True)``, the default, fits the best setting once more on all of `X`, anomalies included:
    wrap the detector in :class:`NormalOnly`, or pass ``refit=False``.

    The AUROC of a training fold is not defined: keep ``return_train_score=False``, which must be set for successive
    halving. Halving over samples also draws from the test folds: with few anomalies, start with enough samples
    (``min_resources``) that each test fold holds both kinds.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn.model_selection import cross_val_score
    >>> from skl_transformaly.model_selection import OneClassSplit
    >>> rng = np.random.default_rng(0)
    >>> X = np.vstack([rng.normal(size=(40, 2)), rng.normal(6, 1, size=(10, 2))])
    >>> y = np.array([1] * 40 + [-1] * 10)  # +1 normal, -1 anomaly
    >>> cv = OneClassSplit(5, random_state=0)
    >>> cv
    OneClassSplit(cv=5, random_state=0)
    >>> [len(train) for train, test in cv.split(X, y)]
    [32, 32, 32, 32, 32]
    >>> cross_val_score(IsolationForest(random_state=0), X, y, cv=cv, scoring="roc_auc").mean().round(2)
    np.float64(1.0)
    """

    def __init__(self, cv: Any = 5, *, random_state: Any = None):
        whole = isinstance(cv, Integral) and not isinstance(cv, bool)
        if (whole and cv < 2) or cv is None or isinstance(cv, (bool, float, str)):
            raise ValueError(
                f"cv must be a number of folds of at least 2, a splitter, or an iterable of (train, test), got {cv!r}."
            )
        if not whole and random_state is not None:
            raise ValueError(
                f"random_state={random_state!r} has no effect on cv={cv!r}: pass it to that splitter instead."
            )
        # an iterator would be empty at the second call of split
        self.cv = cv if whole or hasattr(cv, "split") else list(cv)
        self.random_state = random_state

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the positions of each training and test fold.

        Parameters
        ----------
        X : sequence of n_samples
            Samples; most splitters use only their number.
        y : array-like of shape (n_samples,)
            +1 normal, -1 anomaly.
        groups : array-like of shape (n_samples,), default=None
            Passed on to `cv`.

        Yields
        ------
        train : ndarray of int
            Normal samples only.
        test : ndarray of int
            Normal samples and anomalies.

        Raises
        ------
        ValueError
            `y` is missing or holds other labels; a training fold holds no normal sample; or a test fold holds one
            kind only.
        """
        labels = check_labels(y, "OneClassSplit")
        if (labels == 1).all():
            raise ValueError(
                "y holds no anomaly (-1), so nothing can be measured against it. Without anomalies use scikit-learn's "
                "KFold and scoring=SyntheticOutlierScorer()."
            )
        places = np.arange(len(labels))
        folds = []
        for k, (train, test) in enumerate(self._splitter().split(X, labels, groups)):
            train, test = places[train], places[test]
            train = train[labels[train] == 1]
            if len(train) == 0:
                raise ValueError(f"Training fold {k} holds no normal sample (+1): give more, or use other folds.")
            if len(np.unique(labels[test])) < 2:
                found = f"only {'normal samples' if (labels[test] == 1).all() else 'anomalies'}"
                raise ValueError(
                    f"Test fold {k} holds {found if len(test) else 'nothing'}, so no AUROC can be measured on it "
                    f"({np.sum(labels == -1)} anomalies and {np.sum(labels == 1)} normal samples in all). Use fewer "
                    "folds, or folds that hold both kinds: StratifiedKFold, or StratifiedGroupKFold with groups."
                )
            folds.append((train, test))
        yield from folds

    def get_n_splits(self, X: Any = None, y: Any = None, groups: Any = None) -> int:
        """Return the number of folds.

        Parameters
        ----------
        X, y, groups : default=None
            Passed on to `cv`; a few splitters need them.

        Returns
        -------
        n_splits : int
        """
        return self._splitter().get_n_splits(X, y, groups)

    def get_metadata_routing(self):
        """Return the metadata routing of the splitter: whether it requests `groups`.

        Returns
        -------
        routing : MetadataRequest
        """
        return self._splitter().get_metadata_routing()

    @property
    def shuffle(self) -> bool:
        """Whether folds may differ between calls if `random_state` is None; successive halving asks for this."""
        if isinstance(self.cv, Integral):
            return True
        return getattr(self.cv, "shuffle", True) and not isinstance(getattr(self.cv, "random_state", 0), Integral)

    def _splitter(self) -> Any:
        if isinstance(self.cv, Integral):
            return StratifiedKFold(int(self.cv), shuffle=True, random_state=self.random_state)
        return check_cv(self.cv)
