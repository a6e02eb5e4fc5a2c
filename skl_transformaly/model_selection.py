"""Choose settings of a one-class detector: splits, scorers and synthetic anomalies that respect what is normal.

scikit-learn's searches fit on whatever a fold holds. A one-class detector must see normal samples only, and be
measured on both kinds. With labels +1 for normal and -1 for anomaly, as scikit-learn's outlier detectors give
them::

    search = GridSearchCV(NormalOnly(detector), grid, cv=OneClassSplit(5, random_state=0), scoring="roc_auc")
    search.fit(X, y)

Without a single known anomaly::

    search = GridSearchCV(detector, grid, cv=5, scoring=SyntheticOutlierScorer())
    search.fit(X)
"""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Callable, Iterator
from copy import deepcopy
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, MetaEstimatorMixin, _fit_context, clone
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import BaseCrossValidator, StratifiedKFold, check_cv
from sklearn.utils import _safe_indexing, check_random_state, get_tags, indexable
from sklearn.utils._param_validation import HasMethods, StrOptions
from sklearn.utils.metaestimators import available_if
from sklearn.utils.validation import check_consistent_length, check_is_fitted, column_or_1d

from skl_transformaly.images._columns import settled
from skl_transformaly.images._images import Images, _is_table, as_images, list_images
from skl_transformaly.utils._fitting import all_or_nothing

__all__ = ["NormalOnly", "OneClassSplit", "SyntheticOutlierScorer", "held_out_log_likelihood", "synthetic_outliers"]

_KINDS = ("cutpaste", "channels", "patches")
_GRID = 3  # patches per side, as in the first jigsaw puzzles (Noroozi and Favaro, ECCV 2016)
_TRIES = 20

_CONVERT = "Convert: y = np.where(y_is_anomaly, -1, 1)."


class OneClassSplit(BaseCrossValidator):
    """Cross-validation whose training folds hold normal samples only, and whose test folds hold both kinds.

    Parameters
    ----------
    cv : int, splitter or iterable, default=5
        The splits to start from. A number of folds, at least 2, is
        ``StratifiedKFold(cv, shuffle=True, random_state=random_state)``; else any splitter of scikit-learn, or an
        iterable of (train, test) positions.
    random_state : int, RandomState or None, default=None
        Seeds the shuffle where `cv` is a number. A splitter has its own.

    Raises
    ------
    ValueError
        `cv` is none of these, or `random_state` is given together with a splitter, where it would do nothing.

    See Also
    --------
    NormalOnly : Keeps anomalies out of the refit after a search, which no splitter can.

    Notes
    -----
    ``GridSearchCV(refit=True)``, the default, fits the best setting once more on all of `X`, anomalies included:
    wrap the detector in :class:`NormalOnly`, or pass ``refit=False``.

    Training folds of one kind have no AUROC: leave ``return_train_score=False``, which successive halving has to be
    told. A halving over samples draws from the test folds as well; with few anomalies, start it with enough samples
    (``min_resources``) that each test fold still holds both kinds.

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
                f"random_state={random_state!r} would have no effect on cv={cv!r}: give it to that splitter instead."
            )
        # an iterator would be empty at the second call of split
        self.cv = cv if whole or hasattr(cv, "split") else list(cv)
        self.random_state = random_state

    def split(self, X: Any, y: Any = None, groups: Any = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield the positions of each training and test fold.

        Parameters
        ----------
        X : sequence of n_samples
            Samples; only their number counts to most splitters.
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
        labels = _check_labels(y, "OneClassSplit")
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
        """Give the number of folds.

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
        """Give the routing of the splitter within: whether it wants `groups`.

        Returns
        -------
        routing : MetadataRequest
        """
        return self._splitter().get_metadata_routing()

    @property
    def shuffle(self) -> bool:
        """Whether folds may differ between calls where `random_state` is None; successive halving asks this."""
        if isinstance(self.cv, Integral):
            return True
        return getattr(self.cv, "shuffle", True) and not isinstance(getattr(self.cv, "random_state", 0), Integral)

    def _splitter(self) -> Any:
        if isinstance(self.cv, Integral):
            return StratifiedKFold(int(self.cv), shuffle=True, random_state=self.random_state)
        return check_cv(self.cv)


def _delegate(name: str, result: str) -> Any:
    """Build the method `name` of a wrapper, there exactly where the wrapped estimator has it."""

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
            As `estimator` gives it.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        """
    return available_if(has_it)(method)


class DelegatingMixin(MetaEstimatorMixin):
    """For wrappers of a detector: what they leave to the ``estimator_`` that they fitted."""

    estimator: Any
    estimator_: Any
    fitted_positions_: np.ndarray | None

    score_samples = _delegate("score_samples", "Score of each sample, higher is more normal")
    transform = _delegate("transform", "Features of each sample")
    anomaly_map = _delegate("anomaly_map", "Map of each image, of where it is unlike the normal ones")

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and say which of the samples are anomalies; `fit` has seen them, so that nothing is promised of them.

        Parameters
        ----------
        X : samples
            As `fit` takes them.
        y : array-like of shape (n_samples,), default=None
            As `fit` takes it.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int
            +1 normal, -1 anomaly.
        """
        X = settled(X)  # an iterator would be at its end after `fit`
        return self.fit(X, y).predict(X)

    @available_if(lambda self: hasattr(getattr(self, "estimator_", self.estimator), "explain"))
    def explain(self, X: Any, *args: Any, **options: Any) -> dict[str, np.ndarray]:
        """What each score is made of, by `estimator_`.

        Parameters
        ----------
        X : samples
            As `estimator` takes them.
        *args, **options
            Passed on; see :meth:`TransformalyDetector.explain`.

        Returns
        -------
        table : dict of str to ndarray of shape (n_samples,)
            Columns as `estimator` gives them; ``neighbor0``, ... are positions in the `X` of `fit`, of which
            `estimator_` saw a part.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        """
        check_is_fitted(self)
        table = self.estimator_.explain(X, *args, **options)
        places = self.fitted_positions_
        if places is not None and isinstance(table, dict):
            for name, column in table.items():
                if name.startswith("neighbor"):
                    table[name] = np.where(column < 0, column, places[column])
        return table

    @available_if(lambda self: hasattr(getattr(self, "estimator_", self.estimator), "get_feature_names_out"))
    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of what `transform` gives.

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


class NormalOnly(DelegatingMixin, BaseEstimator):
    """Fits a detector on the normal samples of labelled data.

    The way to let a search refit: ``GridSearchCV`` fits its best setting on all of `X` in the end, and a bare
    one-class detector, which ignores `y`, takes the anomalies there as normal.

    Parameters
    ----------
    estimator : outlier detector
        Fitted on the rows of `X` where y is +1. Parameters within are reached as ``estimator__...``.

    Attributes
    ----------
    estimator_ : outlier detector
        The fitted one; all but fitting is left to it.
    fitted_positions_ : ndarray of shape (n_fitted,), int, or None
        Positions in the `X` of `fit` of the normal samples; None if all were normal.
    n_features_in_ : int
        That of `estimator_`, where it has one.
    feature_names_in_ : ndarray of str
        That of `estimator_`, where it has one.

    See Also
    --------
    OneClassSplit : Folds that hold both kinds where they are tested.

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

    decision_function = _delegate("decision_function", "Shifted score of each sample, negative for anomalies")
    predict = _delegate("predict", "Which samples are anomalies (-1)")
    p_values = _delegate("p_values", "p-value of each sample")
    select = _delegate("select", "Which samples of a batch are declared anomalies")

    def __init__(self, estimator: Any):
        self.estimator = estimator

    @property
    def classes_(self) -> np.ndarray:
        """-1 and +1, the labels in ascending order; ``cross_val_predict`` of `decision_function` asks for them."""
        check_is_fitted(self, "estimator_")
        return np.array([-1, 1])

    @all_or_nothing
    @_fit_context(prefer_skip_nested_validation=False)
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
        labels = _check_labels(y, "NormalOnly.fit")
        normal = np.flatnonzero(labels == 1)
        if len(normal) == 0:
            raise ValueError("y holds no normal sample (+1), so there is nothing to learn from.")
        X = samples = as_sequence(X)
        check_consistent_length(samples, labels)
        self.fitted_positions_ = normal if len(normal) < len(labels) else None
        if self.fitted_positions_ is not None:
            X = take_samples(samples, normal, on_error=_on_error(self.estimator))
        self.estimator_ = clone(self.estimator).fit(X, None)
        return self

    def __sklearn_tags__(self):
        tags = deepcopy(get_tags(getattr(self, "estimator_", self.estimator)))
        tags.target_tags.required = True
        return tags


def check_normal_only(y: Any, *, stacklevel: int = 4) -> None:
    """Warn where the labels given to a one-class `fit` say that some samples are anomalies, or may say so.

    One-class detectors ignore `y`, and so take those as normal: ``GridSearchCV(refit=True)`` does this quietly. With
    labels 0 and 1 a search by AUROC would moreover take the worst setting for the best, without a word.

    Parameters
    ----------
    y : array-like or None
        Numbers other than +1 and -1, such as classes, mean nothing, unless they are 0 and 1 alone.
    stacklevel : int, default=4
        Of the warning: 4 names the caller of a decorated `fit`.

    Raises
    ------
    ValueError
        `y` holds texts or booleans, of which nobody can know which mean normal.
    """
    try:
        labels = np.asarray(y)
    except (TypeError, ValueError, RuntimeError):  # y is ignored, whatever it is
        return
    if labels.ndim == 2 and labels.shape[1] == 1:  # a column
        labels = labels.ravel()
    if y is None or labels.ndim != 1:
        return
    _refuse_words(labels)
    if labels.dtype.kind == "O":
        with contextlib.suppress(TypeError, ValueError):
            labels = labels.astype(np.float64)
    if labels.dtype.kind not in "iuf":
        return
    anomalies = int((labels == -1).sum())
    if np.unique(labels).tolist() == [0, 1]:
        warnings.warn(
            f"y holds 0 and 1, but fit ignores y and takes all {len(labels)} samples as normal. If one of the two "
            "means anomaly, pass normal samples only; and where y is used to score, label normal samples +1 and "
            f"anomalies -1, or roc_auc may silently come out as 1 - AUROC. {_CONVERT}",
            UserWarning,
            stacklevel=stacklevel,
        )
    if anomalies and not np.nan_to_num(labels % 1).any():
        warnings.warn(
            f"y says that {anomalies} of {len(labels)} samples are anomalies (-1), but fit ignores y and takes "
            "them as normal. Pass normal samples only, fit(X[y == 1]); wrap the detector, "
            "skl_transformaly.model_selection.NormalOnly(detector); or, in a search, set refit=False.",
            UserWarning,
            stacklevel=stacklevel,
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


def held_out_log_likelihood(estimator: Any, X: Any, y: Any = None) -> float:
    """Mean log-density of normal samples that the estimator has not seen; for ``scoring=``.

    It needs no anomaly. It compares settings only if their densities live in the same space: `shrinkage` or `ridge`
    of a density, say, or how students are trained. It is no criterion for what changes the space:
    `explained_variance`, `normalize`, `feature_spaces`, or the extractor. Log-densities of 10 and of 20 whitened
    components have different units, and each further component costs about 1.4 nats, whatever it is worth. For
    those, use "roc_auc" with known anomalies, or :class:`SyntheticOutlierScorer`.

    Parameters
    ----------
    estimator : fitted estimator
        With `score_samples`.
    X : samples
        As `estimator` takes them.
    y : array-like of shape (n_samples,), default=None
        +1 normal, -1 anomaly; anomalies are left out. None: all are normal.

    Returns
    -------
    score : float
        Mean of ``estimator.score_samples``; NaN scores, of unreadable images, are left out.

    Raises
    ------
    ValueError
        `y` holds other labels, or no normal sample.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.model_selection import GridSearchCV
    >>> from skl_transformaly import GaussianDensity
    >>> from skl_transformaly.model_selection import held_out_log_likelihood
    >>> X = np.random.default_rng(0).normal(size=(30, 10))
    >>> search = GridSearchCV(GaussianDensity(), {"shrinkage": [0, 1]}, scoring=held_out_log_likelihood)
    >>> search.fit(X).best_params_
    {'shrinkage': 1}
    """
    scores = np.asarray(estimator.score_samples(_normal_samples(estimator, X, y)), dtype=np.float64)
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else np.nan


def synthetic_outliers(
    X: Any,
    kind: str = "all",
    *,
    image_shape: tuple[int, ...] | None = None,
    return_masks: bool = False,
    random_state: Any = None,
) -> Any:
    """Make one anomaly from each normal image.

    Parameters
    ----------
    X : images
        An array (n, H, W) or (n, H, W, C); a sequence of paths, PIL images or arrays; a folder; or a map-style torch
        Dataset. Rows (n, H*W*C) together with `image_shape`.
    kind : {"cutpaste", "channels", "patches", "all"}, default="all"
        - "cutpaste": a rectangle of 2-15 % of the area, of aspect ratio 0.3-3.3, pasted elsewhere in the image
          [1]_: a local defect;
        - "channels": red, green and blue in another order; an image without colour is inverted instead, within
          its own range of values: a wrong appearance of the right content;
        - "patches": a grid of 3 x 3 patches in another order [2]_: the right appearance of a wrong whole;
        - "all": the three in turn.
    image_shape : tuple of int, default=None
        (H, W) or (H, W, C) of images that come as rows.
    return_masks : bool, default=False
        Also say where; of "cutpaste" only.
    random_state : int, RandomState or None, default=None
        Seeds all draws.

    Returns
    -------
    outliers : ndarray or list of ndarray
        For an array, one of the same shape; for rows, rows; else a list of arrays (H, W, C). The dtype is that of
        the decoded images: uint8 stays uint8, float stays float.
    masks : ndarray of shape (n, H, W), or list of ndarray of shape (H, W), bool
        True where the rectangle was pasted. Only with ``return_masks=True``.

    Raises
    ------
    ValueError
        `kind` is unknown; `X` is rows without `image_shape`; masks are asked for of another kind than "cutpaste"; or
        an image is of a single pixel.

    Notes
    -----
    A draw that leaves an image as it was is repeated, up to 20 times; an image of one colour stays as it is.

    References
    ----------
    .. [1] C.-L. Li, K. Sohn, J. Yoon and T. Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and
       Localization", CVPR 2021.
    .. [2] M. Noroozi and P. Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
       ECCV 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly.model_selection import synthetic_outliers
    >>> X = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    >>> outliers, masks = synthetic_outliers(X, "cutpaste", return_masks=True, random_state=0)
    >>> outliers.shape, outliers.dtype, masks.shape
    ((4, 32, 32, 3), dtype('uint8'), (4, 32, 32))
    >>> bool((outliers == X)[~masks].all())
    True
    """
    if kind not in (*_KINDS, "all"):
        raise ValueError(f"kind must be one of {(*_KINDS, 'all')}, got {kind!r}.")
    if return_masks and kind != "cutpaste":
        raise ValueError(f"return_masks=True needs kind='cutpaste': {kind!r} changes the image as a whole.")
    images = _rows_as_images(X, image_shape) if _is_table(X) else as_images(X)
    corrupt = _corrupter(images, kind, random_state)
    pairs = [corrupt(i) for i in range(len(images))]
    outliers: Any = [outlier for outlier, _ in pairs]
    masks: Any = [mask for _, mask in pairs]
    if images.stack is not None:
        outliers = np.array(outliers, dtype=images.stack.dtype).reshape(images.stack.shape)
        masks = np.array(masks).reshape(images.stack.shape[:3]) if return_masks else None
        if _is_table(X) or isinstance(X, np.ndarray):
            outliers = outliers.reshape(X.shape if isinstance(X, np.ndarray) else (len(images), -1))
    return (outliers, masks) if return_masks else outliers


class SyntheticOutlierScorer(BaseEstimator):
    """How well a detector tells normal images from corrupted twins of theirs; for ``scoring=``.

    It needs no anomaly: from each normal image that it is given, one :func:`synthetic outlier <synthetic_outliers>`
    is made. Its value ranks settings as far as real anomalies resemble the synthetic ones: choose the `kind` that
    does.

    Parameters
    ----------
    kind : {"cutpaste", "channels", "patches", "all"}, default="all"
        See :func:`synthetic_outliers`.
    metric : "roc_auc" or callable, default="roc_auc"
        ``metric(y_true, y_score)``, larger is better, with y_true +1 for normal and -1 for synthetic outliers, and
        y_score the decision function.
    random_state : int, RandomState or None, default=0
        Seeds the draws. An integer gives all settings the same anomalies.
    image_shape : tuple of int, default=None
        (H, W) or (H, W, C) of images that come as rows.

    See Also
    --------
    OneClassSplit : With anomalies at hand, ``scoring="roc_auc"`` on these folds is the better measure.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn.datasets import load_digits
    >>> from sklearn.model_selection import cross_val_score
    >>> from sklearn.svm import OneClassSVM
    >>> from skl_transformaly.model_selection import SyntheticOutlierScorer
    >>> X = load_digits().data[:200]  # rows of 8 x 8 pixels
    >>> scorer = SyntheticOutlierScorer("patches", image_shape=(8, 8))
    >>> bool(cross_val_score(OneClassSVM(), X, cv=3, scoring=scorer).min() > 0.9)
    True
    """

    _parameter_constraints: dict = {
        "kind": [StrOptions({*_KINDS, "all"})],
        "metric": [StrOptions({"roc_auc"}), callable],
        "random_state": ["random_state"],
        "image_shape": ["array-like", None],
    }

    def __init__(
        self,
        kind: str = "all",
        metric: str | Callable[[np.ndarray, np.ndarray], float] = "roc_auc",
        random_state: Any = 0,
        *,
        image_shape: tuple[int, ...] | None = None,
    ):
        self.kind = kind
        self.metric = metric
        self.random_state = random_state
        self.image_shape = image_shape

    def __call__(self, estimator: Any, X: Any, y: Any = None) -> float:
        """Score `estimator`.

        Parameters
        ----------
        estimator : fitted estimator
            With `decision_function`, or at least `score_samples`.
        X : images
            See :func:`synthetic_outliers`.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly; anomalies are left out. None: all are normal.

        Returns
        -------
        score : float
            AUROC, in 0-1 where 0.5 is chance, or what `metric` gives. Unreadable images are left out.

        Raises
        ------
        ValueError
            `X` is rows without `image_shape`; `y` holds other labels, or no normal sample.
        """
        self._validate_params()
        X = _normal_samples(estimator, X, y)
        outliers: Any
        if _is_table(X) or (isinstance(X, np.ndarray) and X.dtype.kind not in "OUST"):
            outliers = synthetic_outliers(X, self.kind, image_shape=self.image_shape, random_state=self.random_state)
        else:
            images = as_images(X, on_error=_on_error(estimator))
            corrupt = _corrupter(images, self.kind, self.random_state)
            # made when they are asked for, so that no more than a batch is held
            outliers = Images(len(images), lambda i: corrupt(i)[0], on_error=images.on_error)
        response = estimator.decision_function if hasattr(estimator, "decision_function") else estimator.score_samples
        inside, outside = np.asarray(response(X)), np.asarray(response(outliers))
        scores = np.concatenate([inside, outside])
        labels = np.repeat([1, -1], [len(inside), len(outside)])
        readable = ~np.isnan(scores)
        metric: Any = roc_auc_score if self.metric == "roc_auc" else self.metric
        return float(metric(labels[readable], scores[readable]))


def as_sequence(X: Any) -> Any:
    """Give `X` as what has a length and can be indexed: a folder becomes its paths, an iterator a list."""
    return list_images(X) if isinstance(X, (str, os.PathLike)) else indexable(settled(X))[0]


def take_samples(X: Any, positions: np.ndarray, *, on_error: str = "raise") -> Any:
    """Give the samples of a sequence at `positions`; a Dataset is not decoded for that."""
    if isinstance(X, (list, tuple)) or hasattr(X, "shape"):
        return _safe_indexing(X, positions)
    return as_images(X, on_error=on_error).take(positions)


def _on_error(estimator: Any) -> str:
    """What a detector, perhaps within other estimators, does with an image that cannot be read."""
    params = estimator.get_params() if hasattr(estimator, "get_params") else {}
    skips = any(name.split("__")[-1] == "on_error" and value == "skip" for name, value in params.items())
    return "skip" if skips else "raise"


def _check_labels(y: Any, who: str) -> np.ndarray:
    """Give `y` as integers +1 and -1, or say what to do."""
    if y is None:
        raise ValueError(f"{who} needs y: +1 for normal samples, -1 for anomalies.")
    labels = column_or_1d(y, warn=True)
    if labels.dtype.kind == "O":
        labels = np.asarray(labels.tolist())
    if labels.dtype.kind in "iuf" and np.isin(labels, (-1, 1)).all():
        return labels.astype(np.int64)
    found = np.unique(labels.astype(str)).tolist()
    encoded = (
        " cross_val_predict(method='decision_function') turns -1 and +1 into 0 and 1 before it fits: pass "
        "cv=OneClassSplit() to it."
        if found == ["0", "1"]
        else ""
    )
    raise ValueError(
        f"y must be +1 for normal samples and -1 for anomalies, got {', '.join(found[:5])}"
        f"{', ...' if len(found) > 5 else ''}. With 0 for normal and 1 for anomaly, or False and True, AUROC would "
        f"silently come out as 1 - AUROC. {_CONVERT}{encoded}"
    )


def _normal_samples(estimator: Any, X: Any, y: Any) -> Any:
    if y is None:
        return X
    labels = _check_labels(y, "The scorer")
    normal = np.flatnonzero(labels == 1)
    if len(normal) == 0:
        raise ValueError("y holds no normal sample (+1), and only those are scored.")
    if len(normal) == len(labels):
        return X
    return take_samples(as_sequence(X), normal, on_error=_on_error(estimator))


def _rows_as_images(X: Any, image_shape: tuple[int, ...] | None) -> Images:
    rows = np.asarray(X)
    if image_shape is None:
        raise ValueError(
            f"X is rows, an array of shape {rows.shape}; outliers are made from images. Pass image_shape=(H, W) or "
            "(H, W, C), or X of shape (n, H, W[, C])."
        )
    shape = tuple(image_shape)
    if rows.ndim != 2 or len(shape) not in (2, 3) or np.prod(shape) != rows.shape[1]:
        raise ValueError(
            f"image_shape={image_shape!r} must be (H, W) or (H, W, C) with the product of the number of values in a "
            f"row of X, whose shape is {rows.shape}."
        )
    # not as_images: the range of the values is the detector's business, and any will do here
    stack = rows.reshape(len(rows), *shape, *([1] if len(shape) == 2 else []))
    return Images(len(stack), stack.__getitem__, stack=stack)


def _corrupter(images: Images, kind: str, random_state: Any) -> Callable[[int], tuple[np.ndarray, np.ndarray | None]]:
    """Give the function that makes an outlier of image `i`; it depends on `i` only, not on what was made before."""
    seeds = check_random_state(random_state).randint(np.iinfo(np.int32).max, size=len(images))
    kinds = _KINDS if kind == "all" else (kind,)
    make = {"cutpaste": _cutpaste, "channels": _channels, "patches": _patches}

    def corrupt(i: int) -> tuple[np.ndarray, np.ndarray | None]:
        image = images[i]
        rng = np.random.RandomState(seeds[i])
        for _ in range(_TRIES):
            outlier, mask = make[kinds[i % len(kinds)]](image, rng)
            if not np.array_equal(outlier, image):
                break
        return outlier, mask

    return corrupt


def _cutpaste(image: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[:2]
    _check_size(height, width)
    area = rng.uniform(0.02, 0.15) * height * width
    aspect = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    h = int(np.clip(np.round(np.sqrt(area * aspect)), 1, height))
    # from the rounded height, so that the area holds in small and in elongated images as well
    w = int(np.clip(np.round(area / h), 1, width))
    h = int(np.clip(np.round(area / w), 1, height))
    columns = width - w + 1
    places = (height - h + 1) * columns
    source = rng.randint(places)
    target = (source + rng.randint(1, places)) % places  # any place but the source
    (top, left), (to_top, to_left) = divmod(source, columns), divmod(target, columns)
    outlier = image.copy()
    outlier[to_top : to_top + h, to_left : to_left + w] = image[top : top + h, left : left + w]
    mask = np.zeros((height, width), dtype=bool)
    mask[to_top : to_top + h, to_left : to_left + w] = True
    return outlier, mask


def _channels(image: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, None]:
    colours = image[..., :3]  # opacity, if any, stays
    outlier = image.copy()
    if image.shape[-1] >= 3:
        orders = np.array([(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
        for order in rng.permutation(orders):
            outlier[..., :3] = colours[..., order]
            if not np.array_equal(outlier, image):  # two channels may be equal
                return outlier, None
    # the sum of the extremes would overflow small integers
    wide = np.float64 if image.dtype.kind == "f" else np.int64
    low, high = colours.min().astype(wide), colours.max().astype(wide)
    outlier[..., :3] = low + (high - colours.astype(wide))
    return outlier, None


def _patches(image: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, None]:
    height, width = image.shape[:2]
    _check_size(height, width)
    rows, columns = min(_GRID, height), min(_GRID, width)
    h, w = height // rows, width // columns
    order = rng.permutation(rows * columns)
    while (order == np.arange(rows * columns)).all():
        order = rng.permutation(rows * columns)
    outlier = image.copy()  # pixels beyond a whole number of patches stay
    for target, source in enumerate(order):
        (i, j), (k, m) = divmod(target, columns), divmod(int(source), columns)
        outlier[i * h : (i + 1) * h, j * w : (j + 1) * w] = image[k * h : (k + 1) * h, m * w : (m + 1) * w]
    return outlier, None


def _check_size(height: int, width: int) -> None:
    if height * width < 2:
        raise ValueError("An image of 1 x 1 pixels has no parts to move; use kind='channels', or larger images.")
