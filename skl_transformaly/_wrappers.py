"""Wrappers of a detector: what they delegate to it, and how to find it in them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from sklearn.base import MetaEstimatorMixin
from sklearn.frozen import FrozenEstimator
from sklearn.pipeline import Pipeline
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._reasons import reason_column
from skl_transformaly.images._columns import settled

__all__ = ["DelegatingMixin", "decider", "delegate", "innermost", "nested"]


def nested(estimator: Any) -> Iterator[Any]:
    """Yield a fitted estimator, then the detector inside it, and so on: searches, pipelines, wrappers, frozen ones."""
    while estimator is not None:
        yield estimator
        if isinstance(estimator, FrozenEstimator):  # which passes on the attributes of what it holds
            estimator = estimator.estimator
        elif isinstance(estimator, Pipeline):
            estimator = estimator[-1]
        else:
            inner = getattr(estimator, "best_estimator_", getattr(estimator, "estimator_", None))
            # IsolationForest has an estimator_ too, which is one of its trees
            estimator = inner if hasattr(inner, "score_samples") else None


def innermost(estimator: Any) -> Any:
    """Return the detector that does the work inside a fitted estimator: the last of :func:`nested`."""
    *_, last = nested(estimator)
    return last


def decider(estimator: Any) -> Any:
    """Return the outermost part of a fitted estimator that has a threshold of its own."""
    # FrozenEstimator has all attributes of what it holds
    parts = (part for part in nested(estimator) if not isinstance(part, FrozenEstimator))
    return next(part for part in parts if hasattr(part, "offset_"))


def delegate(name: str, result: str) -> Any:
    """Build the method `name` of a wrapper, available if the wrapped estimator has it."""

    def has_it(wrapper):
        return hasattr(getattr(wrapper, "estimator_", wrapper.estimator), name)

    def method(self, X, *args, **kwargs):
        check_is_fitted(self)
        return getattr(self.estimator_, name)(X, *args, **kwargs)

    method.__name__ = name  # scikit-learn's scorers call a response method by this
    method.__doc__ = f"""{result}, by `estimator_`.

        Parameters
        ----------
        X : samples
            As `estimator` takes them.
        *args, **kwargs
            Passed on.

        Returns
        -------
        result
            As `estimator` returns it.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        """
    return available_if(has_it)(method)


class DelegatingMixin(MetaEstimatorMixin):
    """Delegates methods of a wrapper to the ``estimator_`` that it fitted."""

    estimator: Any
    estimator_: Any
    fitted_positions_: np.ndarray | None

    score_samples = delegate("score_samples", "Score of each sample, higher is more normal")
    transform = delegate("transform", "Features of each sample")
    anomaly_map = delegate("anomaly_map", "Map of each image, of where it is unlike the normal ones")

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and predict which of the samples are anomalies; no rate is promised for them, since `fit` has seen them.

        Parameters
        ----------
        X, y
            As for `fit`.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int
            +1 normal, -1 anomaly.
        """
        X = settled(X)  # an iterator would be at its end after `fit`
        return self.fit(X, y).predict(X)

    @available_if(lambda self: hasattr(getattr(self, "estimator_", self.estimator), "transform"))
    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """Fit, and return features of the same samples.

        Parameters
        ----------
        X, y
            As for `fit`.

        Returns
        -------
        features
            As `transform` returns them.
        """
        X = settled(X)  # an iterator would be at its end after `fit`
        return self.fit(X, y).transform(X)

    @available_if(lambda self: hasattr(getattr(self, "estimator_", self.estimator), "explain"))
    def explain(self, X: Any, *args: Any, **options: Any) -> dict[str, np.ndarray]:
        """Take each score apart, by `estimator_`.

        Parameters
        ----------
        X : samples
            As `estimator` takes them.
        *args, **options
            Passed on; see :meth:`TransformalyDetector.explain`.

        Returns
        -------
        table : dict of str to ndarray of shape (n_samples,)
            Columns as `estimator` returns them, but for ``reason``, which is of what this wrapper flags, if it has a
            threshold of its own. ``neighbor0``, ... are positions in the `X` of `fit`, of which `estimator_` saw a
            part.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        """
        check_is_fitted(self)
        table = self.estimator_.explain(X, *args, **options)
        if isinstance(table, dict) and "reason" in table and hasattr(self, "offset_"):
            table["reason"] = reason_column(table, np.asarray(table["score"]) - self.offset_)
        places = self.fitted_positions_
        if places is not None and isinstance(table, dict):
            for name, column in table.items():
                if name.startswith("neighbor"):
                    seen = (column >= 0) & (column < len(places))  # others were learned from later
                    table[name] = np.where(seen, places[np.where(seen, column, 0)], -1)
        return table

    @available_if(lambda self: hasattr(getattr(self, "estimator_", self.estimator), "get_feature_names_out"))
    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Get the names of the columns that `transform` returns.

        Parameters
        ----------
        input_features : default=None
            Passed on to `estimator_`.

        Returns
        -------
        names : ndarray of str
        """
        check_is_fitted(self)
        return self.estimator_.get_feature_names_out(input_features)

    @property
    def n_features_in_(self) -> int:
        """Number of features that `estimator_` saw."""
        return self.estimator_.n_features_in_

    @property
    def feature_names_in_(self) -> np.ndarray:
        """Names of the features that `estimator_` saw."""
        return self.estimator_.feature_names_in_
