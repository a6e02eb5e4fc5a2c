"""TransformalyDetector: validate, compose teacher, students and densities, fuse, set the threshold, explain."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._decisions import DecisionMixin
from skl_transformaly._density import GaussianDensity
from skl_transformaly._explanation import ExplanationMixin, where_readable
from skl_transformaly._fusion import interpolated_p_values
from skl_transformaly._learning import LearningMixin
from skl_transformaly._measuring import Measurer
from skl_transformaly.images._input import ImageInputMixin
from skl_transformaly.images._sequence import Images
from skl_transformaly.students._block import BlockStudents
from skl_transformaly.students._ridge import RidgeStudents
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.utils._cache import Cache
from skl_transformaly.utils._compat import HasMethods, Interval, StrOptions
from skl_transformaly.utils._labels import LEARNED
from skl_transformaly.utils._torch import own_settings

__all__ = ["TransformalyDetector"]

# Parts that may be a name or None, and how to give the object instead.
_PARTS = {
    "extractor": "such as extractor=TimmExtractor('vit_tiny_patch16_224')",
    "students": "students=RidgeStudents() or students=BlockStudents()",
    "density": "such as density=GaussianDensity() or GaussianMixture(5)",
    "discrepancy_density": "such as discrepancy_density=GaussianDensity() or GaussianMixture(5)",
}


class TransformalyDetector(
    LearningMixin, ExplanationMixin, ImageInputMixin, TransformerMixin, DecisionMixin, BaseEstimator
):
    """Finds images unlike the normal ones, by their likelihood in several feature spaces.

    A frozen teacher describes an image in up to five ways, and a density of normal images is fitted to each:

    - "pretrained": the teacher's embedding z_p, as in the paper [1]_;
    - "classes": what the teacher would call the image, by the classifier that its weights came with;
    - "layers": class token and mean patch token (for models in stages: the mean over places) after its later blocks;
    - "variation": the standard deviation over places of each feature of the last layer in models in stages, and of each
      hidden unit of two later blocks' MLPs in transformers;
    - "discrepancy": z_f, how far students that have seen normal images only deviate from the teacher's blocks [1]_;
      beside it :class:`RidgeStudents` measure how much each block adds to its input.

    Log-densities are brought to the scale of normal images that had no part in the fit, and added. Each space's part is
    in standard deviations of normal images, that of the discrepancy in units of two, so that it counts half; the score
    is their sum, about 0 for normal images and lower for less normal ones. How rare a score is among normal images is
    its p-value (`p_values`).

    Parameters
    ----------
    extractor : str or extractor, default="vit_base_patch16_224.augreg_in21k_ft_in1k"
        The teacher: the name of a timm model, whose weights timm downloads; "bundled", an EfficientNet-lite0
        whose ImageNet weights come from the package index (extra ``offline``); or an extractor, such as
        ``TimmExtractor("vit_tiny_patch16_224", weights="weights.safetensors")``.
    feature_spaces : {"auto", "teacher"} or sequence of str, default="auto"
        Which spaces the score sums over; "auto" takes all that there are: without a classifier of the teacher there are
        no "classes", without features at 4 places or more no "variation". "teacher" is the same without
        "discrepancy", for which students are fitted.
    students : RidgeStudents, BlockStudents or None, default=None
        None is ``RidgeStudents()``, solved in closed form. ``BlockStudents()`` are trained by gradient, as the paper's.
    density : {"auto", "gaussian", "gmm", "knn"} or estimator, default="auto"
        Density of the teacher's features in each space: :class:`AutoDensity`, neighbours and a Gaussian together;
        :class:`GaussianDensity`; scikit-learn's ``GaussianMixture`` with 5 components; :class:`KNNDensity`; or any
        estimator with ``fit`` and ``score_samples``, which is fitted 20 times more for held-out scores. A mixture's
        covariances need many images and much room (5 of 1,280 features take 130 MB): give `explained_variance`, too.
    discrepancy_density : {"auto", "gaussian", "gmm", "knn"} or estimator, default="gaussian"
        Density of the discrepancies, likewise.
    explained_variance : float or None, default=None
        Share of the variance to keep, in (0, 1): the teacher's features are whitened by the fewest principal components
        that reach it, as in the paper; by fewer, with a warning, if there are too few images to hold some out. None
        keeps all dimensions, and leaves it to the density to be regularised.
    normalize : bool, default=True
        Scale embedding, class token and mean patch tokens to unit length, each by itself. The paper does not.
    fusion : {"standardized", "sum"}, default="standardized"
        How log-densities are added: on the scale of held-out normal images, or as they are, as in the paper. The
        latter cannot add up several spaces with ``density="auto"``, whose scores have a scale of their own.
    contamination : float, default=0.05
        Share of new normal images, in (0, 0.5], that `predict` may flag: `fit` sets `offset_` by it. With n training
        images, promises below 1 / (n + 1) cannot be kept: then the lowest held-out score is the threshold, with a
        warning.
    trim : float, default=0.0
        Share of the training images, in [0, 0.5), that may not be normal: those that are the least like the others, as
        the teacher's spaces alone see it, are left out of the fit. Half as much again as is expected is best
        (``benchmarks/accuracy/NOTES.md``). The threshold is that of the images that are left: if some that were left
        out are normal, more than `contamination` of new normal images are flagged, by about `trim`.
    threshold : {"held-out", "training"}, default="held-out"
        Which scores of the training images set `offset_`: each image's without its own part in the fit, or, as is usual
        elsewhere, those after the fit, which promise nothing about new images. With the latter, `weights_` come from
        scores after the fit, too, which favours spaces that know the training images well.
    memory : str, path, joblib.Memory or None, default=None
        A folder in which features and students are kept and found again, by the content of the images, the weights,
        the preprocessing, the precision, the parameters and the versions of libraries: clones, folds, grids and other
        processes share them. A grid over densities or `explained_variance` then costs the densities. Trained students
        are kept only with a `random_state`: another fit draws others. What is scored is kept, too, without bound:
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
        1 shows progress, and what `memory` finds.

    Attributes
    ----------
    extractor_ : extractor
        The fitted teacher.
    feature_spaces_ : list of str
        The spaces in use.
    spaces_ : dict of str to FeatureSpace
        Density and scale of each.
    students_ : RidgeStudents or BlockStudents
        The fitted students, if "discrepancy" is among the feature spaces.
    offset_ : float
        ``decision_function = score_samples - offset_``.
    training_scores_ : ndarray of shape (n_samples,), float64
        Score of each training image without its own part in the fit (with ``threshold="training"``: with it); NaN for
        unreadable ones.
    reference_scores_ : ndarray of shape (n,), float64
        These in ascending order, without NaN, and one for all copies of an image: what threshold and p-values come
        from.
    held_out_ : bool
        Whether `training_scores_` are held-out ones.
    training_parts_ : ndarray of shape (n_samples, n_spaces), float64
        What the spaces add to it, in the order of `feature_spaces_`.
    training_terms_ : ndarray of shape (n_samples, m), float64
        What the students' blocks add to the part of "discrepancy", if its density is a :class:`GaussianDensity`; else
        m is 0.
    training_labels_ : ndarray of shape (n_samples,), int8
        What became of each training image: 1, it was learned, if it could be read; 0, `trim` left it out; -1, it is a
        known anomaly; -2, it was taken back by `forget`. Scores, parts and terms are NaN unless it was learned.
    training_groups_ : ndarray of shape (n_samples,), int
        The same number for copies of an image, exact, resized or compressed again, which are held out together; -1 for
        images that were not learned.
    training_features_ : dict of str to ndarray of shape (n_samples, D_space)
        Features of the training images by space, NaN for unreadable ones: z_p in "pretrained", and in "discrepancy" z_f
        after the fit, followed by the other measures of :class:`RidgeStudents`.
    training_held_out_ : ndarray of shape (n_samples, k * m), float64
        The discrepancies by students that did not see the image; no column without them.
    training_thumbnails_ : ndarray of shape (n_samples, 768), uint8
        Small versions by which copies are found.
    grey_ : bool
        Whether all images that were learned are grey. Then scoring warns of images that have colour.
    weights_ : ndarray of shape (n_spaces,), float64
        How much each space counts, in the order of `feature_spaces_`: 1, and the discrepancy beside others 0.5 (with
        ``fusion="sum"`` 1), unless `fit` was given 5 or more known anomalies that other weights tell apart better. They
        are fitted to the held-out parts that also set
        the threshold, so that with few normal images slightly more of new ones are flagged than was promised.
    training_digests_ : ndarray of shape (n_samples, 16), uint8
        Digests of the training images' pixels, by which they are recognised.
    image_shape_ : tuple or None
        (H, W, C) of the images that `fit` saw, if they were one array.
    n_features_in_ : int
        H * W * C, where `image_shape_` is not None.
    feature_names_in_ : ndarray of str
        Column names, where `fit` saw a data frame of rows.

    See Also
    --------
    TimmExtractor : The teacher.
    RidgeStudents : Students in closed form.
    BlockStudents : Trained students.
    ConformalDetector : A promised false-positive rate around any outlier detector.

    Notes
    -----
    Images are given as: an array (n, H, W) or (n, H, W, C), uint8 0-255 or float 0-1, C = 1, 3 or 4; rows
    (n, H*W*C) with `image_shape`; a torch tensor (n, C, H, W); a sequence of paths, of PIL images or of arrays
    of different sizes; the path of a folder; a map-style torch Dataset. From paths, folders and Datasets only
    the current batch is decoded at a time, and of image files some more, ahead, on threads.

    *Large JPEGs.* JPEG files whose shorter side has at least 1,344 pixels, and six times what the teacher takes, are
    decoded at a half, a quarter or an eighth of their size, which is several times as fast and changes scores by a few
    hundredths of a standard deviation (``benchmarks/speed/decoding.py``). Fit and score such files in the same way: as
    arrays or PIL images, which are resized from all their pixels, they score slightly differently, and are not
    recognised as training images.

    *Training images.* Nothing that an image helped to fit judges that image. Scored again, an image that `fit` has seen
    is recognised by its pixels, and gets its score from `training_scores_`, which is that of a detector which has not
    seen it: in closed form with Gaussians, neighbours and :class:`RidgeStudents`; by 20 folds with other densities,
    whose scores are put on the scale of the density of all images (``benchmarks/selection/own_densities.md``); and
    with :class:`BlockStudents`, of which 3 more sets are trained for that, each on two thirds of the images and in as
    many steps (``benchmarks/selection/trained_students.md``). Duplicates of an image are left out with it.

    *Densities* are fitted on discrepancies of students that have seen the images, which ranks better; scale, threshold
    and p-values come from those of students that have not.

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
    >>> from skl_transformaly import RidgeStudents, TimmExtractor, TransformalyDetector
    >>> rng = np.random.default_rng(0)
    >>> normal = rng.integers(100, 156, (20, 32, 32, 3), dtype=np.uint8)
    >>> detector = TransformalyDetector(
    ...     TimmExtractor("vit_tiny_patch16_224", weights=None, image_size=32), students=RidgeStudents(n_blocks=2)
    ... )
    >>> scores = detector.fit(normal).score_samples(normal)
    >>> scores.shape, scores.dtype
    ((20,), dtype('float64'))
    >>> bool((scores == detector.training_scores_).all())
    True
    """

    _parameter_constraints: dict = {
        "extractor": [str, HasMethods("fit")],
        "feature_spaces": ["array-like", str],
        "students": [HasMethods("fit"), None],
        "density": [StrOptions({"auto", "gaussian", "gmm", "knn"}), HasMethods(["fit", "score_samples"])],
        "discrepancy_density": [StrOptions({"auto", "gaussian", "gmm", "knn"}), HasMethods(["fit", "score_samples"])],
        "explained_variance": [Interval(Real, 0, 1, closed="neither"), None],
        "normalize": ["boolean"],
        "fusion": [StrOptions({"standardized", "sum"})],
        "contamination": [Interval(Real, 0, 0.5, closed="right")],
        "trim": [Interval(Real, 0, 0.5, closed="left")],
        "threshold": [StrOptions({"held-out", "training"})],
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
        feature_spaces: str | Sequence[str] = "auto",
        students: RidgeStudents | BlockStudents | None = None,
        density: Any = "auto",
        discrepancy_density: Any = "gaussian",
        explained_variance: float | None = None,
        normalize: bool = True,
        fusion: str = "standardized",
        contamination: float = 0.05,
        trim: float = 0.0,
        threshold: str = "held-out",
        memory: Any = None,
        image_shape: tuple[int, ...] | None = None,
        on_error: str = "raise",
        n_jobs: int | None = None,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.extractor = extractor
        self.feature_spaces = feature_spaces
        self.students = students
        self.density = density
        self.discrepancy_density = discrepancy_density
        self.explained_variance = explained_variance
        self.normalize = normalize
        self.fusion = fusion
        self.contamination = contamination
        self.trim = trim
        self.threshold = threshold
        self.memory = memory
        self.image_shape = image_shape
        self.on_error = on_error
        self.n_jobs = n_jobs
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def paper(cls, extractor: Any = "vit_base_patch16_384.orig_in21k_ft_in1k", **changes: Any) -> TransformalyDetector:
        """Make a detector with the paper's settings.

        Two spaces, trained students, Gaussians without shrinkage, and log-likelihoods that are added as they are.

        The embedding is whitened to 90 % of its variance (Section 3.3), the students are trained as in Section 4, and
        the threshold is a quantile of the training scores. A teacher by name computes in float32 and resizes
        bilinearly, as the authors' does; an extractor stays as it is.

        Images that a fit has seen score higher than new ones: with this threshold, far more new normal images are
        flagged than `contamination` says, nearly half with twenty images, and reasons exaggerate. There are no
        p-values. :class:`ConformalDetector` gives such a detector a threshold that holds.

        Parameters
        ----------
        extractor : str or extractor, default="vit_base_patch16_384.orig_in21k_ft_in1k"
            The authors' teacher: a ViT-B/16 at 384 pixels, pre-trained on ImageNet-21k and fine-tuned on ImageNet-1k.
        **changes
            Parameters that differ all the same.

        Returns
        -------
        detector : TransformalyDetector

        Examples
        --------
        >>> from skl_transformaly import TransformalyDetector
        >>> TransformalyDetector.paper("bundled").explained_variance
        0.9
        """
        settings = {
            "feature_spaces": ("pretrained", "discrepancy"),
            "students": BlockStudents.paper(),
            "density": GaussianDensity(shrinkage=0.0),
            "discrepancy_density": GaussianDensity(shrinkage=0.0, target="diagonal"),
            "explained_variance": 0.9,
            "normalize": False,
            "fusion": "sum",
            "threshold": "training",
        }
        if isinstance(extractor, str):
            extractor = TimmExtractor(extractor, precision="float32", interpolation="bilinear")
        return cls(extractor, **{**settings, **changes})

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

    def score_samples(self, X: Any) -> np.ndarray:
        """Score how normal each image is, by the sum of the feature spaces' parts; higher is more normal.

        Parameters
        ----------
        X : images
            See Notes for their forms.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            Sums of parts in standard deviations of held-out normal images (with ``fusion="sum"``: in nats). Images
            that `fit` has seen get their `training_scores_`; NaN for unreadable images with ``on_error="skip"``.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        ValueError
            `X` is not images, an image cannot be read, or an array of images has another shape than in `fit`.
        """
        return self._score(X)

    def score_as_new(self, X: Any) -> np.ndarray:
        """Score images as if `fit` had not seen them, even if it has; model files and ONNX files are checked by this.

        Parameters
        ----------
        X : images
            As for `score_samples`.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            Those of `score_samples` for new images; too high for training images.
        """
        return self._score(X, recognise=False)

    def p_values(self, X: Any) -> np.ndarray:
        """Compute how rare a score as low as each image's is among new normal images.

        Parameters
        ----------
        X : images
            As for `score_samples`.

        Returns
        -------
        p : ndarray of shape (n_samples,), float64
            In [1 / (n + 1), 1] with n training images, copies counted once; small for anomalies. Just above the k-th
            lowest of `reference_scores_` it is k / (n + 1), and between these it is interpolated. `predict` flags what
            is below `contamination` (or, if that is below 1 / (n + 1), what scores below all of them by more than a
            twentieth of the gap between the two lowest). NaN if the score is.

        Raises
        ------
        ValueError
            The detector was fitted with ``threshold="training"``, and so has no held-out scores.

        Notes
        -----
        The training scores are leave-one-out (or fold) scores: p-values are those of the jackknife, which hold if
        leaving out one image hardly changes the scores of others; without that, nothing is proven for any number of
        images [1]_. ``benchmarks/selection/thresholds.md`` says how well they hold. :class:`ConformalDetector` keeps
        its promise for any detector, at the price of images that are kept out of the fit.

        References
        ----------
        .. [1] R. F. Barber, E. J. Candes, A. Ramdas and R. J. Tibshirani, "Predictive Inference with the Jackknife+",
           Annals of Statistics 49(1), 2021.
        """
        check_is_fitted(self)
        if not self.held_out_:
            raise ValueError(
                "p-values take held-out scores, and this detector was fitted with threshold='training'. Fit with "
                "threshold='held-out', or calibrate it with ConformalDetector."
            )
        return self._p_values_of(self.score_samples(X))

    def transform(self, X: Any) -> np.ndarray:
        """Compute all feature spaces side by side, as the densities take them, for use with other estimators.

        Parameters
        ----------
        X : images
            As for `score_samples`.

        Returns
        -------
        Z : ndarray of shape (n_samples, k), float64
            The spaces' features in the order of `feature_spaces_`; see `get_feature_names_out`.

        Notes
        -----
        Students deviate less on images that they have learned. Training images, known by their pixels, get the
        discrepancies by students that have not seen them (`training_held_out_`), so that what another estimator learns
        from them holds for new images. ``paper()`` has no such students.
        """
        check_is_fitted(self)
        images = self._images(X, reset=False)
        features = self._measurer().measure(images)
        if self.training_held_out_.shape[1]:
            discrepancies = features["discrepancy"].copy()
            for position, row in self._recognised(images):
                discrepancies[position] = self.training_held_out_[row]
            features = {**features, "discrepancy": discrepancies}
        return self._side_by_side(features)

    def fit_transform(self, X: Any, y: Any = None) -> np.ndarray:  # type: ignore[override]  # fit takes no parameters
        """Fit, and return what `transform` returns for the same images, without measuring them again.

        Parameters
        ----------
        X : images
            As for `fit`.
        y : array-like of shape (n_samples,), default=None
            As for `fit`.

        Returns
        -------
        Z : ndarray of shape (n_samples, k), float64
        """
        self.fit(X, y)
        unseen = {"discrepancy": self.training_held_out_} if self.training_held_out_.shape[1] else {}
        return self._side_by_side({**self.training_features_, **unseen})

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Get names of the columns that `transform` returns.

        Parameters
        ----------
        input_features : ignored

        Returns
        -------
        names : ndarray of str
            "pretrained0", ... for the teacher's features or their components; "discrepancy2", ... with the index of the
            teacher's block; "update2", ... likewise, if the students measure it.
        """
        check_is_fitted(self)
        names: list[str] = []
        for name, space in self.spaces_.items():
            if name == "discrepancy":
                blocks = self.students_.block_indices_
                names += [f"{measure}{index}" for measure in self.students_.measures_ for index in blocks]
            else:
                names += [f"{name}{i}" for i in range(space.n_features_out_)]
        return np.asarray(names, dtype=object)

    # ----- measuring

    def _measurer(self) -> Measurer:
        students = self.students_ if "discrepancy" in self.feature_spaces_ else None
        drawn = students is not None and self._draws_students()
        widths = {name: space.n_features_in_ for name, space in getattr(self, "spaces_", {}).items()}
        return Measurer(self.extractor_, students, self.feature_spaces_, self._cache(), widths=widths, drawn=drawn)

    def _by_block(self, terms: np.ndarray) -> np.ndarray:
        """What each block adds, (n, m), of what each of its measures does, (n, k * m)."""
        return terms.reshape(len(terms), -1, len(self.students_.block_indices_)).sum(axis=1)

    def _images(self, X: Any, *, reset: bool) -> Images:
        return self._check_images(X, reset=reset, image_shape=self.image_shape, on_error=self.on_error)

    def _cache(self) -> Cache:
        return Cache(self.memory, self.verbose)

    # ----- scoring

    def _new_images(self, X: Any) -> Images:
        """Images to be scored."""
        images = self._images(X, reset=False)
        if images is X:  # what is learned about them here is not the user's object's
            images = X.take(range(len(X)))
        images.warn_of_colour = self.grey_
        return images

    def _score(self, X: Any, *, recognise: bool = True) -> np.ndarray:
        check_is_fitted(self)
        images = self._new_images(X) if recognise else self._images(X, reset=False)  # probes are not the user's
        return self._parts(images, self._measurer().measure(images), recognise=recognise)[0].sum(axis=1)

    @own_settings()
    def _parts_of(self, features: dict[str, np.ndarray]) -> np.ndarray:
        """What each space adds to the scores, (n, S), of images that are new; NaN rows stay NaN."""
        return np.column_stack([where_readable(z, self.spaces_[name].score_samples) for name, z in features.items()])

    def _parts(
        self, images: Images, features: dict[str, np.ndarray], *, recognise: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each space adds to the scores, (n, S), and each block to "discrepancy", (n, m); NaN rows stay NaN.

        Training images, known by their pixels, get what they were given without themselves.
        """
        parts = self._parts_of(features)
        terms = np.zeros((len(parts), self.training_terms_.shape[1]))
        if terms.shape[1]:
            space = self.spaces_["discrepancy"]
            terms = where_readable(features["discrepancy"], lambda z: self._by_block(np.asarray(space.terms(z))))
        if recognise:
            for position, row in self._recognised(images):
                parts[position], terms[position] = self.training_parts_[row], self.training_terms_[row]
        return parts, terms

    def _recognised(self, images: Images) -> Iterator[tuple[int, int]]:
        """Yield positions of measured images that were learned, with their rows among the training images."""
        learned = np.flatnonzero(self.training_labels_ == LEARNED)[::-1]  # of copies, the first counts
        rows = {bytes(self.training_digests_[row]): row for row in learned}
        for position, digest in images.digests.items():
            if (row := rows.get(digest)) is not None:
                yield position, int(row)

    def _side_by_side(self, features: dict[str, np.ndarray]) -> np.ndarray:
        return np.hstack([where_readable(features[space], self.spaces_[space].transform) for space in features])

    def _p_values_of(self, scores: np.ndarray) -> np.ndarray:
        if not self.held_out_:
            return np.full(len(scores), np.nan)
        return interpolated_p_values(scores, self.reference_scores_)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())  # which from Python 3.11 on is the object's own
        state.pop("_images_seen", None)  # they are the user's, and may be large
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "training_scores_")
