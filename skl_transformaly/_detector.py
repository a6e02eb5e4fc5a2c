"""TransformalyDetector: validate, compose teacher, students and densities, set the threshold."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
from PIL import Image
from sklearn.base import BaseEstimator, OutlierMixin, TransformerMixin, _fit_context, clone
from sklearn.decomposition import PCA
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils import check_random_state, column_or_1d
from sklearn.utils._param_validation import HasMethods, Interval, StrOptions
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._cache import Cache, fingerprint, identity
from skl_transformaly._density import GaussianDensity, resolve_density
from skl_transformaly._extractor import resolve_extractor
from skl_transformaly._halving import Halving
from skl_transformaly._images import ImageInputMixin, Images
from skl_transformaly._students import BlockStudents
from skl_transformaly.model_selection import check_normal_only

__all__ = ["TransformalyDetector"]

_SPACES = ("pretrained", "discrepancy")

# Parts that may be a name or None, and how to give the object instead.
_PARTS = {
    "extractor": "such as extractor=TimmExtractor('vit_tiny_patch16_224')",
    "students": "students=BlockStudents()",
    "density": "such as density=GaussianDensity() or GaussianMixture(5)",
    "discrepancy_density": "such as discrepancy_density=GaussianDensity() or GaussianMixture(5)",
}


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
        training images that shall fall below it; "auto" is 0.05. That share of new normal images is
        another one, larger or smaller, since densities and students have seen the training images
        (``benchmarks/selection/thresholds.md``); :class:`ConformalDetector` keeps a promise.
    memory : str, path, joblib.Memory or None, default=None
        A folder in which embeddings, trained students and discrepancies are kept and found again, by the content of
        the images, the weights, the preprocessing, the precision, the parameters and the versions of libraries: clones,
        folds, grids and other processes share them. A grid over densities or `explained_variance` then costs the
        densities, and one over the number of blocks trains each block once. Students and discrepancies are kept only
        with a `random_state`: another fit draws others. What is scored is kept, too, without bound:
        ``set_params(memory=None)`` on the fitted detector ends that, and ``joblib.Memory(folder).reduce_size`` or
        deleting the folder frees the room. To find something again, all pixels are read. Like any pickle, a cache is
        for your own files only.
    image_shape : tuple of int, default=None
        (H, W) or (H, W, C) of images that come as rows of values, as scikit-learn's own tools make them.
    on_error : {"raise", "skip"}, default="raise"
        What to do with an image that cannot be read: raise, naming it, or warn, leave it out of fitting, and
        score it NaN (`predict` then says -1).
    n_jobs : int or None, default=None
        Students trained at a time, where `students` does not say itself: None is 1, or what ``joblib.parallel_config``
        says; see :class:`BlockStudents`.
    random_state : int, RandomState or None, default=None
        Seeds every part that takes a `random_state` and has none of its own.
    verbose : int, default=0
        1 shows the students' progress, and what `memory` finds.

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
        "feature_spaces": ["array-like", str],
        "contamination": [StrOptions({"auto"}), Interval(Real, 0, 0.5, closed="right")],
        "memory": [str, os.PathLike, HasMethods("cache"), None],
        "image_shape": ["array-like", None],
        "on_error": [StrOptions({"raise", "skip"})],
        "n_jobs": [Integral, None],
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
        memory: Any = None,
        image_shape: tuple[int, ...] | None = None,
        on_error: str = "raise",
        n_jobs: int | None = None,
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
        self.memory = memory
        self.image_shape = image_shape
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    def set_params(self, **params: Any) -> TransformalyDetector:
        """Set parameters, those of a part as ``part__name``.

        Parameters
        ----------
        **params
            Parameters of the detector, and of parts that are objects: ``students__n_blocks``.

        Returns
        -------
        self : TransformalyDetector

        Raises
        ------
        ValueError
            There is no such parameter; or the part is a name or None, which has no parameters.
        """
        for name in params:
            part, nested, _ = name.partition("__")
            if not nested or part not in _PARTS:
                continue
            value = params.get(part, getattr(self, part))
            if value is None or isinstance(value, str):
                raise ValueError(
                    f"{name} cannot be set: {part}={value!r} stands for an object that is made in fit. Give the object "
                    f"itself, {_PARTS[part]}, whose parameters can then be set and searched."
                )
        return super().set_params(**params)

    @_fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None) -> TransformalyDetector:
        """Learn what is normal.

        Parameters
        ----------
        X : images
            Normal images only; see Notes for their forms.
        y : ignored
            With a warning where it says that images are anomalies (-1): fit takes all as normal.

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
        check_normal_only(y)
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

    def anomaly_map(self, X: Any, *, block: int | None = None) -> np.ndarray | list[np.ndarray]:
        """Show where in each image the students deviate from the teacher as they do not on normal images.

        Parameters
        ----------
        X : images
            See Notes for their forms.
        block : int, default=None
            One block's map alone, by its index in ``students_.block_indices_``; None is the mean over blocks.

        Returns
        -------
        maps : ndarray of shape (n_samples, H, W), float32; or list of such (H, W)
            One map an image, at the image's own size (a list where sizes differ). In standard deviations over training
            images at the same place: 0 is their mean, higher is less normal. NaN for unreadable images with
            ``on_error="skip"`` (as a 1 x 1 map in lists).

        Raises
        ------
        ValueError
            No students (``feature_spaces`` without "discrepancy"), or no student of `block`.
        TypeError
            The extractor cannot say where in the image a block's output is.

        Notes
        -----
        The plain squared difference shows what is hard to imitate in any image, edges and outlying tokens,
        more than what is wrong with this one. So each token's difference is compared with those of training images at
        the same place: their mean, their covariance over channels, and the mean and standard deviation of the log of
        the distance. How much that matters is measured by ``benchmarks/maps.py``. It takes images that are framed alike
        to be of most use, and does no harm where they are not.
        """
        check_is_fitted(self)
        self._check_maps()
        indices = self.students_.block_indices_.tolist()
        if block is not None and block not in indices:
            raise ValueError(f"block={block!r} has no student; those with one are {indices}.")
        chosen = [indices.index(block)] if block is not None else list(range(len(indices)))
        images = self._images(X, reset=False)
        blank = np.full(images.image_shape[:2] if images.image_shape else (1, 1), np.nan, dtype=np.float32)
        maps = [blank] * len(images)
        for positions, pixels in images.batches(self.extractor_.batch_size):
            coarse = self.students_.measure_maps(self.extractor_.preprocess(pixels), standardize=True)
            for position, image, single in zip(positions, pixels, coarse):
                maps[position] = _enlarge(single[chosen].mean(axis=0), image.shape[:2])
        same_size = len({single.shape for single in maps}) == 1
        return np.stack(maps) if same_size else maps

    def explain(self, X: Any, *, n_neighbors: int = 3, maps: bool = False) -> dict[str, np.ndarray]:
        """Take each image's score apart.

        Parameters
        ----------
        X : images
            See Notes for their forms.
        n_neighbors : int, default=3
            How many of the nearest training images to name; at most as many as there are.
        maps : bool, default=False
            Give `anomaly_map` as well, for little more time than the table alone takes.

        Returns
        -------
        table : dict of str to ndarray of shape (n_samples,)
            Columns, ready for ``pandas.DataFrame(table)``, all NaN (neighbours -1) for unreadable images:

            - ``score``: the sum of
            - ``pretrained`` and ``discrepancy``: log-likelihoods in the two spaces, of those in use;
            - ``block2``, ...: each student's part in ``discrepancy``, which they add up to: the log-density of its
              discrepancy given those of the blocks before it. Only with :class:`GaussianDensity`, where the chain rule
              is exact;
            - ``neighbor0``, ...: positions in the training images of the nearest ones, nearest first, and
              ``distance0``, ...: their Euclidean distances, in the whitened embedding where it is in use, else in
              the standardised discrepancies;
            - ``map``: only with `maps`, of dtype object: each image's map as from `anomaly_map`, None where unreadable.

        Raises
        ------
        ValueError, TypeError
            With `maps`, as `anomaly_map`.
        """
        check_is_fitted(self)
        images = self._images(X, reset=False)
        drawn: list[np.ndarray | None] = [None] * len(images)
        if maps:
            self._check_maps()
            spaces = self._spaces(*self._run(images, drawn))
        else:
            spaces = self._features(images)
        table = {"score": self._scores(spaces)}
        for space, z in spaces.items():
            table[space] = self._scores({space: z})
        if "discrepancy" in spaces and isinstance(self.discrepancy_density_, GaussianDensity):
            terms = _where_readable(spaces["discrepancy"], self.discrepancy_density_.conditional_terms)
            table.update({f"block{i}": term for i, term in zip(self.students_.block_indices_.tolist(), terms.T)})
        table.update(self._nearest(spaces, n_neighbors))
        if maps:
            table["map"] = np.empty(len(images), dtype=object)
            table["map"][:] = drawn
        return table

    def explained_variance_path(self, X: Any, y: Any = None) -> dict[str, np.ndarray]:
        """Scores for every number of whitened components, from the one decomposition that `fit` made.

        Choosing `explained_variance` by a grid search fits once for each value and fold; on one validation set this
        gives all of them at once.

        Parameters
        ----------
        X : images
            Validation images, normal and anomalous.
        y : array-like of shape (n_samples,), default=None
            +1 normal, -1 anomaly.

        Returns
        -------
        path : dict of str to ndarray
            - ``n_components``, shape (K,): 1 ... K;
            - ``explained_variance``, shape (K,): the share that so many explain; any smaller value of the parameter
              `explained_variance` above the share before gives so many components;
            - ``scores``, shape (K, n_samples): what `score_samples` would give;
            - ``auroc``, shape (K,): only with `y`.

        Raises
        ------
        ValueError
            The pre-trained space is not in use, or `y` is not of +1 and -1.
        """
        check_is_fitted(self)
        if "pretrained" not in self.feature_spaces:
            raise ValueError("There is no whitening to vary: fit with 'pretrained' among feature_spaces.")
        embeddings, discrepancies = self._measure(self._images(X, reset=False))
        spaces = {"discrepancy": discrepancies} if "discrepancy" in self.feature_spaces else {}
        rest = self._scores(spaces) if spaces else np.zeros(len(embeddings))
        training = self._training_embeddings[~np.isnan(self._training_embeddings).any(axis=1)]
        pca = PCA(whiten=True, svd_solver="full").fit(self._scaled(training))
        rank = int((pca.explained_variance_ratio_ > 1e-12).sum())
        z = _where_readable(embeddings, lambda rows: pca.transform(self._scaled(rows))[:, :rank])
        z_training = pca.transform(self._scaled(training))[:, :rank]
        numbers = np.arange(1, rank + 1)
        scores = np.empty((rank, len(z)))
        for row, k in zip(scores, numbers):
            density = clone(self.density_).fit(z_training[:, :k])
            row[:] = rest + _where_readable(z[:, :k], density.score_samples)
        explained = np.cumsum(pca.explained_variance_ratio_)[:rank]
        path = {"n_components": numbers, "explained_variance": explained, "scores": scores}
        if y is not None:
            y = column_or_1d(y)
            if set(np.unique(y).tolist()) != {-1, 1}:
                raise ValueError(f"y must hold both +1 (normal) and -1 (anomaly), got {np.unique(y)[:5].tolist()}.")
            path["auroc"] = np.array([roc_auc_score(y, row) for row in scores])
        return path

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
        if isinstance(self.feature_spaces, str):
            raise ValueError(f"feature_spaces must be a sequence, got a str: write [{self.feature_spaces!r}].")
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
            if self.n_jobs is not None and students.get_params(deep=False).get("n_jobs", 0) is None:
                students.set_params(n_jobs=self.n_jobs)
            if self.verbose and not students.verbose:
                students.set_params(verbose=self.verbose)
            # a checkpoint of an unseeded fit keeps the seed that was drawn
            if self.random_state is not None or getattr(students, "checkpoint", None) is None:
                students = _with_seed(students, random_state)
            # students of a seed that nobody will draw again would only fill the disk
            cache = Cache(None) if self.random_state is None else self._cache()
            self.students_ = students.fit(images, extractor=self.extractor_, cache=cache)
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
        # float32 holds what any teacher but a float64 one gives
        compact = embeddings.astype(np.float32)
        self._training_embeddings = compact if np.array_equal(compact, embeddings, equal_nan=True) else embeddings
        self._training_discrepancies = discrepancies
        scores = self._scores(self._spaces(embeddings, discrepancies))
        self.offset_ = _offset(scores[readable], self.contamination)
        self._training_decisions = scores - self.offset_

    def _images(self, X: Any, *, reset: bool) -> Images:
        return self._check_images(X, reset=reset, image_shape=self.image_shape, on_error=self.on_error)

    def _features(self, images: Images) -> dict[str, np.ndarray]:
        return self._spaces(*self._measure(images))

    def _cache(self) -> Cache:
        return Cache(self.memory, self.verbose)

    def _measure(self, images: Images) -> tuple[np.ndarray, np.ndarray]:
        """z_p (n, D) and z_f (n, m; no columns where not in use), NaN where an image is unreadable.

        What the cache has is taken from there; if anything is missing, the teacher and all students run.
        """
        cache = self._cache()
        if not cache.active:
            return self._run(images)
        computed: list[tuple[np.ndarray, np.ndarray]] = []

        def run() -> tuple[np.ndarray, np.ndarray]:
            if not computed:
                computed.append(self._run(images))
            return computed[0]

        seen = {"images": fingerprint(images)}
        z_p = cache("embeddings", {**seen, "teacher": identity(self.extractor_)}, lambda: run()[0])
        if "discrepancy" not in self.feature_spaces:
            return z_p, np.empty((len(images), 0))
        keys = self.students_._keys
        if not keys:  # students that were fitted without a cache have no name there
            return run()
        z_f = []
        for j, index in enumerate(self.students_.block_indices_.tolist()):
            key = {**seen, "student": keys[index]}
            z_f.append(cache(f"discrepancies of block {index}", key, partial(lambda j: run()[1][:, j], j)))
        return z_p, np.stack(z_f, axis=1)

    def _check_maps(self) -> None:
        if "discrepancy" not in self.feature_spaces:
            raise ValueError("An anomaly map shows what students miss: fit with 'discrepancy' among feature_spaces.")

    def _run(self, images: Images, maps: list[np.ndarray | None] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """z_p and z_f by the teacher and all students; `maps`, where given, is filled in with anomaly maps."""
        rows = [np.arange(0)]
        z_ps: list[np.ndarray] = []
        z_fs: list[np.ndarray] = []
        for positions, pixels in images.batches(self.extractor_.batch_size):
            batch = self.extractor_.preprocess(pixels)
            if maps is not None:
                z_p, z_f, coarse = self.students_.examine(batch)
                for position, image, single in zip(positions, pixels, coarse):
                    maps[position] = _enlarge(single.mean(axis=0), image.shape[:2])
            elif "discrepancy" in self.feature_spaces:
                z_p, z_f = self.students_.measure(batch)
            else:
                halving = Halving("scoring", getattr(self.extractor_, "chunk_size_", None))
                z_p = np.concatenate([z.double().cpu().numpy() for z in halving(self.extractor_.embed, batch)])
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
            width = self.whitening_.n_features_in_ if hasattr(self, "whitening_") else 1
            return np.full((len(images), width), np.nan), np.full((len(images), m), np.nan)
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
        embeddings = self._scaled(embeddings)
        scale = np.abs(embeddings).max()
        if not np.ptp(embeddings, axis=0).max() > 1e-12 * scale:
            raise ValueError(
                f"All {len(embeddings)} training images have the same embedding, so nothing can be learned about how "
                "normal images vary. Give images that differ."
            )
        return PCA(self.explained_variance, whiten=True, svd_solver="full").fit(embeddings)

    def _scaled(self, embeddings: np.ndarray) -> np.ndarray:
        embeddings = embeddings.astype(np.float64)
        return normalize(embeddings) if self.normalize else embeddings

    def _whiten(self, embeddings: np.ndarray) -> np.ndarray:
        return _where_readable(embeddings, lambda rows: self.whitening_.transform(self._scaled(rows)))

    def _nearest(self, spaces: dict[str, np.ndarray], n_neighbors: int) -> dict[str, np.ndarray]:
        """Positions and distances of the nearest training images, as columns."""
        if "pretrained" in spaces:
            z, training = spaces["pretrained"], self._whiten(self._training_embeddings)
        else:
            scaler = StandardScaler().fit(self._training_discrepancies)
            z, training = scaler.transform(spaces["discrepancy"]), scaler.transform(self._training_discrepancies)
        places = np.flatnonzero(~np.isnan(training).any(axis=1))
        readable = ~np.isnan(z).any(axis=1)
        k = min(n_neighbors, len(places))
        distances, positions = np.full((len(z), k), np.nan), np.full((len(z), k), -1)
        if readable.any():
            neighbors = NearestNeighbors(n_neighbors=k).fit(training[places])
            distances[readable], found = neighbors.kneighbors(z[readable])
            positions[readable] = places[found]
        named = {f"neighbor{i}": column for i, column in enumerate(positions.T)}
        return {**named, **{f"distance{i}": column for i, column in enumerate(distances.T)}}

    def _scores(self, spaces: dict[str, np.ndarray]) -> np.ndarray:
        """Sum of log-densities over the spaces (Eq. 2); NaN rows stay NaN."""
        densities = {"pretrained": "density_", "discrepancy": "discrepancy_density_"}
        parts = [_where_readable(z, getattr(self, densities[space]).score_samples) for space, z in spaces.items()]
        return np.sum(parts, axis=0)

    @staticmethod
    def _labels(decisions: np.ndarray) -> np.ndarray:
        return np.where(decisions >= 0, 1, -1)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "offset_")


def _where_readable(rows: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `function` to the rows without NaN; the others get NaN."""
    readable = ~np.isnan(rows).any(axis=1)
    if not readable.any():
        shape = function(np.zeros((1, rows.shape[1]))).shape[1:]
        return np.full((len(rows), *shape), np.nan)
    values = function(rows[readable])
    return _scatter(len(rows), np.flatnonzero(readable), values)


def _enlarge(coarse: np.ndarray, size: tuple[int, ...]) -> np.ndarray:
    """A map at the size of its image, bilinear."""
    image = Image.fromarray(coarse.astype(np.float32))
    return np.asarray(image.resize((size[1], size[0]), Image.Resampling.BILINEAR))


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
