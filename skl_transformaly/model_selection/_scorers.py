"""Scorers that need no anomalies, for ``scoring=``."""

from __future__ import annotations

from typing import Any

import numpy as np
from sklearn.base import BaseEstimator
from sklearn.metrics import roc_auc_score
from sklearn.utils import check_consistent_length

from skl_transformaly._wrappers import innermost
from skl_transformaly.images._columns import settled
from skl_transformaly.images._images import Images, as_images, is_table
from skl_transformaly.images._samples import as_sequence, on_error_of, take_samples
from skl_transformaly.model_selection._outliers import KINDS, corrupter, synthetic_outliers
from skl_transformaly.utils._compat import StrOptions
from skl_transformaly.utils._labels import check_labels

__all__ = ["SyntheticOutlierScorer", "held_out_log_likelihood"]


def held_out_log_likelihood(estimator: Any, X: Any, y: Any = None) -> float:
    """Compute the mean log-density of normal samples that the estimator has not seen; for ``scoring=``.

    It needs no anomalies, but compares only settings whose densities are in the same space, such as the `shrinkage` of
    a density. Do not use it for parameters that change the space: `explained_variance`, `normalize`, `feature_spaces`
    or the extractor. Log-densities of 10 and of 20 whitened components have different units, and each further component
    costs about 1.4 nats, however useful it is. Nor can scores be compared that each fit puts on the scale of its own
    training images: those of :class:`AutoDensity`, :class:`LocalKNNDensity`, and a :class:`TransformalyDetector` unless
    ``fusion="sum"`` and ``density="gaussian"``. For those, use "roc_auc" with known anomalies, or
    :class:`SyntheticOutlierScorer`.

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
        `y` holds other labels, or no normal sample; or the scores have an origin or a unit of each fit's own.

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
    part = innermost(estimator)
    densities = [part, *(space.density_ for space in getattr(part, "spaces_", {}).values())]
    own_scale = [one for one in densities if not getattr(one, "_comparable", True)]
    if getattr(part, "fusion", None) == "standardized" or own_scale:
        name = type(own_scale[0] if own_scale else part).__name__
        ways = 'Set fusion="sum" and density="gaussian"' if hasattr(part, "fusion") else "Take a GaussianDensity"
        raise ValueError(
            f"held_out_log_likelihood compares log-densities, and scores of {name} have an origin or a unit of each "
            f'fit\'s own. {ways}, or use SyntheticOutlierScorer() or "roc_auc".'
        )
    scores = np.asarray(estimator.score_samples(_normal_samples(estimator, X, y)), dtype=np.float64)
    scores = scores[~np.isnan(scores)]
    return float(scores.mean()) if len(scores) else np.nan


class SyntheticOutlierScorer(BaseEstimator):
    """Measures how well a detector separates normal images from corrupted copies of them; for ``scoring=``.

    It needs no anomalies: one :func:`synthetic outlier <synthetic_outliers>` is made from each normal image. It ranks
    settings well if real anomalies resemble the synthetic ones: choose `kind` accordingly.

    Parameters
    ----------
    kind : {"cutpaste", "channels", "patches", "all"}, default="all"
        See :func:`synthetic_outliers`.
    random_state : int, RandomState or None, default=0
        Seeds the draws. An integer gives all settings the same anomalies.
    image_shape : tuple of int, default=None
        (H, W) or (H, W, C) of images that come as rows.

    See Also
    --------
    OneClassSplit : If there are known anomalies, ``scoring="roc_auc"`` on these folds is the better measure.

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
        "kind": [StrOptions({*KINDS, "all"})],
        "random_state": ["random_state"],
        "image_shape": ["array-like", None],
    }

    def __init__(
        self,
        kind: str = "all",
        *,
        random_state: Any = 0,
        image_shape: tuple[int, ...] | None = None,
    ):
        self.kind = kind
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
            AUROC, in 0-1 where 0.5 is chance. Unreadable images are left out.

        Raises
        ------
        ValueError
            `X` is rows without `image_shape`; `y` holds other labels, or no normal sample.
        """
        self._validate_params()
        X = settled(_normal_samples(estimator, X, y))  # an iterator would be at its end after the first use
        outliers: Any
        array = isinstance(X, np.ndarray) and X.dtype.kind not in "OUST"
        one_by_one = array and X.ndim > 2 and on_error_of(estimator) == "skip"  # since some may be unreadable
        if is_table(X) or (array and not one_by_one):
            outliers = synthetic_outliers(X, self.kind, image_shape=self.image_shape, random_state=self.random_state)
        else:
            images = as_images(X, on_error=on_error_of(estimator))
            corrupt = corrupter(images, self.kind, self.random_state)
            # made when they are used, so that no more than a batch is in memory
            outliers = Images(len(images), lambda i: corrupt(i)[0], on_error=images.on_error)
        response = estimator.decision_function if hasattr(estimator, "decision_function") else estimator.score_samples
        inside, outside = np.asarray(response(X)), np.asarray(response(outliers))
        # log-densities may be infinite, which roc_auc_score refuses
        most = np.finfo(np.float64).max
        scores = np.clip(np.concatenate([inside, outside]).astype(np.float64), -most, most)
        labels = np.repeat([1, -1], [len(inside), len(outside)])
        readable = ~np.isnan(scores)
        return float(roc_auc_score(labels[readable], scores[readable]))


def _normal_samples(estimator: Any, X: Any, y: Any) -> Any:
    if y is None:
        return X
    labels = check_labels(y, "The scorer")
    normal = np.flatnonzero(labels == 1)
    if len(normal) == 0:
        raise ValueError("y holds no normal sample (+1), and only those are scored.")
    X = as_sequence(X)
    check_consistent_length(X, labels)
    return X if len(normal) == len(labels) else take_samples(X, normal, on_error=on_error_of(estimator))
