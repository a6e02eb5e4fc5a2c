"""NormalOnly: fits a detector on the normal samples of labelled data."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.frozen import FrozenEstimator
from sklearn.utils import get_tags
from sklearn.utils.validation import check_consistent_length, check_is_fitted

from skl_transformaly._wrappers import DelegatingMixin, delegate
from skl_transformaly.images._samples import as_sequence, on_error_of, take_samples
from skl_transformaly.utils._compat import HasMethods, fit_context
from skl_transformaly.utils._fitting import all_or_nothing
from skl_transformaly.utils._labels import check_labels

__all__ = ["NormalOnly"]


class NormalOnly(DelegatingMixin, BaseEstimator):
    """Fits a detector on the normal samples of labelled data.

    A search needs it to refit: ``GridSearchCV`` fits the best setting on all of `X`, and most one-class detectors
    ignore `y` and would learn the anomalies in it as normal. (:class:`TransformalyDetector` would weigh its spaces by
    them.)

    Parameters
    ----------
    estimator : outlier detector
        Fitted on the samples whose label is +1. Its parameters are set as ``estimator__...``.

    Attributes
    ----------
    estimator_ : outlier detector
        The fitted detector, to which scores, decisions, p-values, features and maps are delegated; all else is there.
    fitted_positions_ : ndarray of shape (n_fitted,), int, or None
        Positions in the `X` of `fit` of the normal samples; None if all were normal.
    n_features_in_ : int
        That of `estimator_`, if it has one.
    feature_names_in_ : ndarray of str
        That of `estimator_`, if it has one.

    See Also
    --------
    OneClassSplit : Folds to train on normal samples and to test on both kinds.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.ensemble import IsolationForest
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skl_transformaly.model_selection import NormalOnly, OneClassSplit
    >>> rng = np.random.default_rng(0)
    >>> X = np.vstack([rng.normal(size=(40, 2)), rng.normal(6, 1, size=(10, 2))])
    >>> y = np.array([1] * 40 + [-1] * 10)  # +1 normal, -1 anomaly
    >>> search = GridSearchCV(
    ...     NormalOnly(IsolationForest(random_state=0)),
    ...     {"estimator__n_estimators": [10, 20]},
    ...     cv=OneClassSplit(5, random_state=0),
    ...     scoring="roc_auc",
    ... )
    >>> search.fit(X, y).predict([[0, 0], [6, 6]])
    array([ 1, -1])
    """

    _parameter_constraints: dict = {"estimator": [HasMethods("fit")]}

    decision_function = delegate("decision_function", "Shifted score of each sample, negative for anomalies")
    predict = delegate("predict", "Which samples are anomalies (-1)")
    p_values = delegate("p_values", "p-value of each sample")
    select = delegate("select", "Which samples of a batch are declared anomalies")

    def __init__(self, estimator: Any):
        self.estimator = estimator

    @property
    def classes_(self) -> np.ndarray:
        """The labels in ascending order, which ``cross_val_predict(method="decision_function")`` needs."""
        check_is_fitted(self, "estimator_")
        return np.array([-1, 1])

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None) -> NormalOnly:
        """Fit `estimator` on the normal samples.

        Parameters
        ----------
        X : samples
            As `estimator` takes them: rows, or images in any form that :class:`TransformalyDetector` takes.
        y : array-like of shape (n_samples,)
            +1 normal, -1 anomaly.

        Returns
        -------
        self : NormalOnly

        Raises
        ------
        ValueError
            `y` is missing, holds other labels, no normal sample, or is not as long as `X`.
        """
        labels = check_labels(y, "NormalOnly.fit")
        normal = np.flatnonzero(labels == 1)
        if len(normal) == 0:
            raise ValueError("y holds no normal sample (+1), so there is nothing to learn from.")
        X = samples = as_sequence(X)
        check_consistent_length(samples, labels)
        some = len(normal) < len(labels)
        frozen = isinstance(self.estimator, FrozenEstimator)  # whose own images are elsewhere
        self.fitted_positions_ = normal if some and not frozen else None
        if some:
            X = take_samples(samples, normal, on_error=on_error_of(self.estimator))
        self.estimator_ = clone(self.estimator).fit(X, None)
        return self

    def __sklearn_tags__(self):
        tags = deepcopy(get_tags(getattr(self, "estimator_", self.estimator)))
        tags.target_tags.required = True
        return tags
