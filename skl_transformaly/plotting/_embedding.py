"""Map of a feature space in two dimensions."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.pipeline import Pipeline
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted, column_or_1d

from skl_transformaly._wrappers import innermost
from skl_transformaly.images._columns import settled
from skl_transformaly.plotting._base import COLORS, Display, scores_of
from skl_transformaly.utils._missing import is_missing

__all__ = ["EmbeddingDisplay"]


@dataclass(kw_only=True, eq=False, repr=False)
class EmbeddingDisplay(Display):
    """Map of a feature space in two dimensions, drawn by ``Axes.scatter``.

    Parameters
    ----------
    coordinates : ndarray of shape (n_samples, 2)
        Where each image is.
    y : ndarray of shape (n_samples,), default=None
        Labels of any kind; +1 and -1 are called normal and anomaly.
    values : ndarray of shape (n_samples,), default=None
        Numbers to colour by if there are no labels: scores.
    training : ndarray of shape (n_training, 2), default=None
        Where the training images are.
    axis_names : tuple of (str, str), default=("", "")
        Names of the two dimensions.

    Attributes
    ----------
    scatters_ : dict of matplotlib PathCollection
        By label, or "all" without labels; "unlabelled", where some are missing; and "training".

    Examples
    --------
    >>> from sklearn.datasets import load_digits
    >>> from skl_transformaly.plotting import EmbeddingDisplay
    >>> X, y = load_digits(n_class=3, return_X_y=True)
    >>> EmbeddingDisplay.from_predictions(X, y).coordinates.shape
    (537, 2)
    """

    coordinates: np.ndarray
    y: np.ndarray | None = None
    values: np.ndarray | None = None
    training: np.ndarray | None = None
    axis_names: tuple[str, str] = ("", "")

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: Any,
        y: Any = None,
        *,
        space: str = "pretrained",
        method: Any = "pca",
        random_state: Any = None,
        **kwargs: Any,
    ) -> EmbeddingDisplay:
        """Compute the features of images, and map them.

        Parameters
        ----------
        estimator : fitted outlier detector
            With a :class:`TransformalyDetector`, or a Pipeline, search or wrapper that ends in one, its features of the
            images are mapped, together with those of its training images; with any other detector, the rows in `X`.
        X : samples
            As `estimator` takes them.
        y : array-like of shape (n_samples,), default=None
            Labels to colour by, of any kind. Without them, images are scored and coloured by their scores.
        space : {"pretrained", "discrepancy"}, default="pretrained"
            The feature space of a TransformalyDetector: the embedding, or its principal components before whitening; or
            the logarithms of the discrepancies.
        method : {"pca", "tsne"} or transformer, default="pca"
            PCA; t-SNE, with a perplexity of 30 or, if that is less, a third of the number of images; or an object whose
            `fit_transform` returns 2 columns. It is fitted on training images and `X` together.
        random_state : int, RandomState or None, default=None
            Seeds t-SNE.
        **kwargs
            `ax` and others, passed to :meth:`plot`.

        Returns
        -------
        display : EmbeddingDisplay

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        ValueError
            The estimator does not use `space`, or a parameter is unknown.
        """
        check_is_fitted(estimator)
        if space not in ("pretrained", "discrepancy"):
            raise ValueError(f"space must be 'pretrained' or 'discrepancy', got {space!r}.")
        X = settled(X)  # an iterator would be at its end after the first use
        features, training = _features(estimator, X, space)
        values = None if y is not None else scores_of(estimator, X)
        return cls._make(features, y, values, training, method, random_state).plot(**kwargs)

    @classmethod
    def from_predictions(
        cls,
        features: Any,
        y: Any = None,
        *,
        values: Any = None,
        training: Any = None,
        method: Any = "pca",
        random_state: Any = None,
        **kwargs: Any,
    ) -> EmbeddingDisplay:
        """Map given features.

        Parameters
        ----------
        features : array-like of shape (n_samples, n_features)
            Rows with NaN, of unreadable images, are left out.
        y : array-like of shape (n_samples,), default=None
            Labels to colour by, of any kind.
        values : array-like of shape (n_samples,), default=None
            Numbers to colour by if `y` is None: scores.
        training : array-like of shape (n_training, n_features), default=None
            Features of the training images, to be drawn as well.
        method, random_state, **kwargs
            As for :meth:`from_estimator`.

        Returns
        -------
        display : EmbeddingDisplay

        Raises
        ------
        ValueError
            Lengths differ, or a parameter is unknown.
        """
        return cls._make(features, y, values, training, method, random_state).plot(**kwargs)

    @classmethod
    def _make(
        cls, features: Any, y: Any, values: Any, training: Any, method: Any, random_state: Any
    ) -> EmbeddingDisplay:
        rows = check_array(features, dtype=np.float64, ensure_all_finite="allow-nan")
        check_consistent_length(rows, y, values)
        background = rows[:0] if training is None else np.asarray(training, dtype=np.float64)
        background = background[~np.isnan(background).any(axis=1)]
        kept, n = ~np.isnan(rows).any(axis=1), len(background)
        places, names = _flatten(np.vstack([background, rows[kept]]), method, random_state)
        coordinates = np.full((len(rows), 2), np.nan)
        coordinates[kept] = places[n:]
        return cls(
            coordinates=coordinates,
            y=None if y is None else column_or_1d(y),
            values=None if values is None or y is not None else column_or_1d(values),
            training=None if training is None else places[:n],
            axis_names=names,
        )

    def _draw(self, ax: Any, style: dict[str, Any]) -> None:
        self.scatters_: dict[Any, Any] = {}
        style = {"s": 18, "alpha": 0.8, "linewidths": 0, **style}
        if self.training is not None:
            background = {**style, "color": COLORS["training"], "marker": "x", "linewidths": 1, "label": "training"}
            self.scatters_["training"] = ax.scatter(*self.training.T, **background)
        if self.y is None:
            self.scatters_["all"] = ax.scatter(*self.coordinates.T, **{"c": self.values, **style})
            if self.values is not None:
                ax.figure.colorbar(self.scatters_["all"], ax=ax, label="score (higher is more normal)")
        else:
            values = np.asarray(self.y).tolist()
            missing = np.array([is_missing(label) for label in values])
            labels = list(dict.fromkeys(label for label in values if not is_missing(label)))
            with contextlib.suppress(TypeError):  # labels of several kinds stay in the order in which they come
                labels.sort()
            detection = set(labels) <= {-1, 1}
            if missing.any():
                look = {"color": COLORS["training"], "label": "unlabelled"}
                self.scatters_["unlabelled"] = ax.scatter(*self.coordinates[missing].T, **{**look, **style})
            for k, label in enumerate(labels[::-1] if detection else labels):
                name = {1: "normal", -1: "anomaly"}[int(label)] if detection else str(label)
                look = {"color": COLORS.get(name, f"C{k}"), "label": name}
                at = self.coordinates[[not is_missing(value) and value == label for value in values]]
                self.scatters_[name] = ax.scatter(*at.T, **{**look, **style})
        ax.set(xlabel=self.axis_names[0], ylabel=self.axis_names[1])
        if not self.axis_names[0]:  # of t-SNE, neither axis means anything
            ax.set(xticks=[], yticks=[])
        if ax.get_legend_handles_labels()[0]:
            beside = {"loc": "center left", "bbox_to_anchor": (1, 0.5)} if self.y is not None else {}
            ax.legend(**beside)


def _flatten(features: np.ndarray, method: Any, random_state: Any) -> tuple[np.ndarray, tuple[str, str]]:
    """Return features in two dimensions, and the names of these."""
    if isinstance(method, str):
        if method not in ("pca", "tsne"):
            raise ValueError(f"method must be 'pca', 'tsne' or an object with fit_transform, got {method!r}.")
        if len(features) < 2:
            raise ValueError(f"Expected at least 2 images with features, to map them, got {len(features)}.")
        perplexity = min(30.0, (len(features) - 1) / 3)
        method = PCA(2) if method == "pca" else TSNE(perplexity=perplexity, random_state=random_state)
    if features.shape[1] == 1:  # of one block, or one component: along the first axis
        features = np.hstack([features, np.zeros_like(features)])
    method = clone(method, safe=False)
    with np.errstate(invalid="ignore"):  # where all features are alike
        places = np.asarray(method.fit_transform(features))[:, :2]
    if not hasattr(method, "explained_variance_ratio_"):
        return places, ("", "")
    first, second = np.nan_to_num(method.explained_variance_ratio_[:2])  # NaN there
    return places, (f"component 1 ({first:.0%} of the variance)", f"component 2 ({second:.0%})")


def _features(estimator: Any, X: Any, space: str) -> tuple[Any, Any]:
    """Return features of images and training images in a space of a detector; rows of `X` for other estimators."""
    detector = innermost(estimator)
    if not hasattr(detector, "feature_spaces_"):
        before = isinstance(estimator, Pipeline) and len(estimator) > 1
        return np.asarray(estimator[:-1].transform(X)) if before else X, None
    if space not in detector.feature_spaces_:
        raise ValueError(
            f"space={space!r} is not in use: the detector was fitted with feature_spaces="
            f"{tuple(detector.feature_spaces_)}."
        )
    z = np.asarray(estimator.transform(X))
    if space == "discrepancy":  # whose columns come last: discrepancies, then other measures
        m, k = len(detector.students_.block_indices_), len(detector.students_.measures_)
        training = detector.training_discrepancies_
        if detector.training_held_out_.shape[1]:  # by students that have not seen them, as those of new images are
            training = np.where(np.isnan(training), np.nan, detector.training_held_out_)
        return np.log(z[:, -k * m :][:, :m]), np.log(training[:, :m])
    fitted = detector.spaces_["pretrained"]
    embeddings = detector.training_embeddings_
    training = fitted.transform(embeddings[~np.isnan(embeddings).any(axis=1)])
    # in a map of whitened components, which have equal lengths, noise would be as large as what matters
    lengths = np.sqrt(fitted.whitening_.explained_variance_) if hasattr(fitted, "whitening_") else 1.0
    return z[:, : fitted.n_features_out_] * lengths, training * lengths
