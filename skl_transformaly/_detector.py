"""TransformalyDetector: validate, compose teacher, students and densities, fuse, set the threshold, explain."""

from __future__ import annotations

import os
from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, OutlierMixin, TransformerMixin, clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._cleaning import least_normal, near_duplicates
from skl_transformaly._density import GaussianDensity, resolve_density
from skl_transformaly._explanation import nearest, reasons, scatter, where_readable
from skl_transformaly._fusion import held_out_threshold, interpolated_p_values
from skl_transformaly._measuring import NOT_FINITE, Measurer, copies, enlarge
from skl_transformaly._space import FeatureSpace
from skl_transformaly._weighting import space_weights
from skl_transformaly.images._input import ImageInputMixin
from skl_transformaly.images._sequence import DIGEST_SIZE, THUMBNAIL_SIZE, Images
from skl_transformaly.students._block import BlockStudents
from skl_transformaly.students._imitation import Comparer
from skl_transformaly.students._ridge import RidgeStudents
from skl_transformaly.teacher._extractor import resolve_extractor
from skl_transformaly.teacher._features import SPACES, layer_indices
from skl_transformaly.teacher._protocol import count_classes
from skl_transformaly.utils._cache import Cache
from skl_transformaly.utils._compat import HasMethods, Interval, StrOptions, fit_context
from skl_transformaly.utils._fitting import all_or_nothing
from skl_transformaly.utils._labels import normal_samples
from skl_transformaly.utils._torch import own_settings
from skl_transformaly.utils._warnings import warn_user

__all__ = ["TransformalyDetector"]

# Parts that may be a name or None, and how to give the object instead.
_PARTS = {
    "extractor": "such as extractor=TimmExtractor('vit_tiny_patch16_224')",
    "students": "students=RidgeStudents() or students=BlockStudents()",
    "density": "such as density=GaussianDensity() or GaussianMixture(5)",
    "discrepancy_density": "such as discrepancy_density=GaussianDensity() or GaussianMixture(5)",
}

# What became of a training image, as `training_labels_` tells.
_LEARNED, _TRIMMED, _KNOWN_ANOMALY, _FORGOTTEN = 1, 0, -1, -2


class TransformalyDetector(ImageInputMixin, TransformerMixin, OutlierMixin, BaseEstimator):
    """Finds images unlike the normal ones, by their likelihood in several feature spaces.

    A frozen teacher describes an image in up to four ways, and a density of normal images is fitted to each:

    - "pretrained": the teacher's embedding z_p, as in the paper [1]_;
    - "classes": what the teacher would call the image, by the classifier that its weights came with;
    - "layers": class token and mean patch token (for models in stages: the mean over places) after its later blocks;
    - "discrepancy": z_f, how far students that have seen normal images only deviate from the teacher's blocks [1]_;
      beside it :class:`RidgeStudents` measure how much each block adds to its input.

    Log-densities are brought to the scale of normal images that had no part in the fit, and added. Each space's part is
    in standard deviations of normal images; the score is their sum, about 0 for normal images and lower for less normal
    ones. How rare a score is among normal images is its p-value (`p_values`).

    Parameters
    ----------
    extractor : str or extractor, default="vit_base_patch16_224.augreg_in21k_ft_in1k"
        The teacher: the name of a timm model, whose weights timm downloads; "bundled", an EfficientNet-lite0
        whose ImageNet weights come from the package index (extra ``offline``); or an extractor, such as
        ``TimmExtractor("vit_tiny_patch16_224", weights="weights.safetensors")``.
    feature_spaces : "auto" or sequence of str, default="auto"
        Which spaces the score sums over; "auto" takes all that the teacher has: without a classifier there are no
        "classes". Without "discrepancy" there are no students.
    students : RidgeStudents, BlockStudents or None, default=None
        None is ``RidgeStudents()``, solved in closed form. ``BlockStudents()`` are trained by gradient, as the paper's.
    density : {"auto", "gaussian", "gmm", "knn"} or estimator, default="auto"
        Density of the teacher's features in each space: :class:`AutoDensity`, a Gaussian and neighbours together;
        :class:`GaussianDensity`; scikit-learn's ``GaussianMixture`` with 5 components; :class:`KNNDensity`; or any
        estimator with ``fit`` and ``score_samples``.
    discrepancy_density : {"auto", "gaussian", "gmm", "knn"} or estimator, default="gaussian"
        Density of the discrepancies, likewise.
    explained_variance : float or None, default=None
        Share of the variance to keep, in (0, 1): the teacher's features are whitened by the fewest principal components
        that reach it, as in the paper. None keeps all dimensions, and leaves it to the density to be regularised.
    normalize : bool, default=True
        Scale embedding, class token and mean patch tokens to unit length, each by itself. The paper does not.
    fusion : {"standardized", "sum"}, default="standardized"
        How log-densities are added: on the scale of held-out normal images, or as they are, as in the paper.
    contamination : float, default=0.05
        Share of new normal images, in (0, 0.5], that `predict` may flag: `fit` sets `offset_` by it. With n training
        images,
        promises below 1 / (n + 1) cannot be kept: then the lowest held-out score is the threshold, with a warning.
    trim : float, default=0.0
        Share of the training images, in [0, 0.5), that may not be normal: those that are the least like the others, as
        the teacher's spaces alone see it, are left out of the fit.
    threshold : {"held-out", "training"}, default="held-out"
        Which scores of the training images set `offset_`: each image's without its own part in the fit, or, as is usual
        elsewhere, those after the fit, which promise nothing about new images.
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
    held_out_ : bool
        Whether `training_scores_` are held-out ones.
    training_parts_ : ndarray of shape (n_samples, n_spaces), float64
        What the spaces add to it, in the order of `feature_spaces_`.
    training_terms_ : ndarray of shape (n_samples, m), float64
        What the students' blocks add to the part of "discrepancy", if its density is a :class:`GaussianDensity`; else
        m is 0.
    training_labels_ : ndarray of shape (n_samples,), int8
        What became of each training image: 1, it was learned; 0, `trim` left it out; -1, it is a known anomaly; -2, it
        was taken back by `forget`. Scores, parts, terms and digests are NaN or 0 unless it is 1.
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
    weights_ : ndarray of shape (n_spaces,), float64
        How much each space counts, in the order of `feature_spaces_`: ones, unless `fit` was given known anomalies.
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

    *Large JPEGs.* JPEG files whose sides are at least twice 672 pixels and six times what the teacher takes are decoded
    at a half, a quarter or an eighth of their size, which is several times as fast and changes scores by a few
    hundredths of a standard deviation (``benchmarks/speed/decoding.py``). Fit and score such files in the same way: as
    arrays or PIL images, which are resized from all their pixels, they score slightly differently, and are not
    recognised as training images.

    *Training images.* Nothing that an image helped to fit judges that image. Scored again, an image that `fit` has seen
    is recognised by its pixels, and gets its score from `training_scores_`, which is that of a detector which has not
    seen it: in closed form with Gaussians, neighbours and :class:`RidgeStudents`; by folds with other densities, and
    with :class:`BlockStudents`, of which 3 more sets are trained for that, each on two thirds of the images. Duplicates
    of an image are left out with it.

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

    training_features_: dict[str, np.ndarray]
    training_held_out_: np.ndarray
    training_digests_: np.ndarray
    training_thumbnails_: np.ndarray
    training_groups_: np.ndarray
    training_labels_: np.ndarray

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
    def paper(
        cls, extractor: Any = "vit_base_patch16_384.augreg_in21k_ft_in1k", **changes: Any
    ) -> TransformalyDetector:
        """The paper's own settings: two spaces, trained students, Gaussians as they are, log-likelihoods added.

        The embedding is whitened to 90 % of its variance (Section 3.3), the students are trained as in Section 4, and
        the threshold is a quantile of the training scores. The paper computes in float32 and resizes bilinearly: give
        ``TimmExtractor(name, precision="float32", interpolation="bilinear")`` for that as well.

        Parameters
        ----------
        extractor : str or extractor, default="vit_base_patch16_384.augreg_in21k_ft_in1k"
            The paper's teacher is a ViT-B/16 at 384 pixels, pre-trained on ImageNet-21k.
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

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=False)
    def fit(self, X: Any, y: Any = None) -> TransformalyDetector:
        """Learn what is normal.

        Parameters
        ----------
        X : images
            Normal images only; see Notes for their forms.
        y : array-like of shape (n_samples,), default=None
            +1 for normal images, -1 for known anomalies, which are not learned: they tell how much each space counts
            (`weights_`), if there are 5 or more of them. None, and numbers that are neither, take all images as normal.
            Texts and booleans are refused.

        Returns
        -------
        self : TransformalyDetector

        Raises
        ------
        ValueError
            `X` is not images, an image cannot be read, a parameter is out of its range, the teacher lacks a space that
            is asked for, all images look the same to it, or `y` holds texts or booleans.
        TypeError
            A part lacks the methods that it needs.
        FloatingPointError
            A student's loss, a feature or a discrepancy is not finite.

        Warns
        -----
        UserWarning
            There are too few images for `contamination`.
        """
        self._fit(X, y)
        return self

    @all_or_nothing
    @own_settings()
    def partial_fit(self, X: Any, y: Any = None, *, update_students: bool = True) -> TransformalyDetector:
        """Learn from more normal images, as a fit on all images at once would.

        Densities, weights, threshold and p-values are those of all images together, to rounding. So are students in
        closed form, which need the earlier images once more: they are read again, and the teacher runs on all of them.
        Trained students stay as they are.

        Parameters
        ----------
        X : images
            See Notes of the class for their forms. Without a fit before, this is `fit`, and there must be 2 or more.
        y : array-like of shape (n_samples,), default=None
            As `fit` takes it.
        update_students : bool, default=True
            False leaves students in closed form as they are, too. Then no earlier image is needed, so that a detector
            from a file or pickle can learn, and the teacher runs on the new images alone.

        Returns
        -------
        self : TransformalyDetector

        Raises
        ------
        ValueError
            `X` is not images, or an image cannot be read; or students are to be updated, and the earlier images are not
            at hand or have changed.

        Notes
        -----
        Positions, as in `forget` and `explain`, go on: the first image of `X` comes after the last one of the call
        before. For the earlier images a detector keeps what it was given: paths, or a reference to arrays. Pickles and
        model files hold neither.
        """
        if not self.__sklearn_is_fitted__():
            self._fit(X, y)
            return self
        images = self._images(X, reset=False)
        labels = np.concatenate([self.training_labels_, self._labels_of(y, len(images))])
        if update_students and self._solves_students():
            self._learn_again(Images.joined([self._earlier_images(), images]), labels)
        else:
            self._add(images, labels)
        return self

    @all_or_nothing
    @own_settings()
    def forget(self, indices: Any, *, update_students: bool = True) -> TransformalyDetector:
        """Take images back that turned out not to be normal, as if they had not been in the fit.

        Parameters
        ----------
        indices : array-like of shape (k,), int
            Positions among all training images, in the order in which they were given. Other images keep theirs.
        update_students : bool, default=True
            As in `partial_fit`: students in closed form need the images that are left once more; trained students stay
            as they are.

        Returns
        -------
        self : TransformalyDetector

        Raises
        ------
        IndexError
            An index is not that of a training image.
        ValueError
            Fewer than 2 images would be left; or students are to be updated, and the images are not at hand.
        """
        check_is_fitted(self)
        chosen = np.asarray(indices, dtype=np.intp).ravel()
        labels = self.training_labels_.copy()
        labels[chosen] = _FORGOTTEN
        if (labels == _LEARNED).sum() < 2:
            raise ValueError(f"forget would leave {(labels == _LEARNED).sum()} of {len(labels)} images; 2 are needed.")
        if update_students and self._solves_students():
            self._learn_again(self._earlier_images(), labels)
            return self
        gone = np.flatnonzero(labels == _FORGOTTEN)
        self.training_labels_ = labels
        self.training_digests_, self.training_groups_ = self.training_digests_.copy(), self.training_groups_.copy()
        self.training_digests_[gone], self.training_groups_[gone] = 0, -1
        self._fit_spaces(self._sizes(), check_random_state(self.random_state))
        return self

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and say which of the training images themselves are anomalies, each judged by the others.

        Parameters
        ----------
        X : images
            See Notes for their forms.
        y : array-like of shape (n_samples,), default=None
            As `fit` takes it.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int
            +1 normal, -1 anomaly.
        """
        self.fit(X, y)
        scores = self.training_scores_.copy()
        others = np.flatnonzero(self.training_labels_ != _LEARNED)
        if len(others):  # known anomalies, or what `trim` left out: as new images
            scores[others] = self._parts_of({name: z[others] for name, z in self.training_features_.items()}).sum(
                axis=1
            )
        return self._labels(scores - self.offset_)

    def score_samples(self, X: Any) -> np.ndarray:
        """How normal each image is: the sum of the feature spaces' parts; higher is more normal.

        Parameters
        ----------
        X : images
            See Notes for their forms.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            In standard deviations of held-out normal images (with ``fusion="sum"``: in nats); images that `fit` has
            seen get their `training_scores_`; NaN for unreadable images with ``on_error="skip"``.

        Raises
        ------
        NotFittedError
            `fit` was not called.
        ValueError
            `X` is not images, an image cannot be read, or an array of images has another shape than in `fit`.
        """
        check_is_fitted(self)
        images = self._images(X, reset=False)
        return self._parts(images, self._measurer().measure(images))[0].sum(axis=1)

    def score_as_new(self, X: Any) -> np.ndarray:
        """Score images as if `fit` had not seen them, even if it has: what the model file and ONNX are checked by.

        Parameters
        ----------
        X : images
            See Notes for their forms.

        Returns
        -------
        scores : ndarray of shape (n_samples,), float64
            As `score_samples` gives for new images; too high for training images.
        """
        check_is_fitted(self)
        images = self._images(X, reset=False)
        return self._parts(images, self._measurer().measure(images), recognise=False)[0].sum(axis=1)

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

    def p_values(self, X: Any) -> np.ndarray:
        """How rare a score as low as each image's is among new normal images.

        Parameters
        ----------
        X : images
            See Notes for their forms.

        Returns
        -------
        p : ndarray of shape (n_samples,), float64
            In [1 / (n + 1), 1] with n training images; small for anomalies. Just above the k-th lowest of
            `training_scores_` it is k / (n + 1), and between these it is interpolated. `predict` flags what is below
            `contamination` (or, if that is below 1 / (n + 1), what scores lower than all training images). NaN where
            the score is.

        Raises
        ------
        ValueError
            The detector was fitted with ``threshold="training"``, and so has no held-out scores.

        Notes
        -----
        The training scores are leave-one-out (or fold) scores: p-values are those of the jackknife, which hold if
        leaving out one image hardly changes the scores of others; without that, nothing is proven for any number of
        images [1]_. ``benchmarks/accuracy/RESULTS.md`` says how well they hold. :class:`ConformalDetector` keeps its
        promise for any detector, at the price of images that are kept out of the fit.

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
        return interpolated_p_values(self.score_samples(X), self.training_scores_)

    def score_table(self, X: Any, score: Any = None) -> dict[str, np.ndarray]:
        """Score, decision, p-value and prediction of each image, from one scoring.

        Parameters
        ----------
        X : images
            See Notes for their forms.
        score : array-like of shape (n_samples,), default=None
            What ``score_samples(X)`` gave, if it is known already.

        Returns
        -------
        table : dict of str to ndarray of shape (n_samples,)
            Columns ``score``, ``decision`` and ``p_value``, float64, and ``prediction``, int; ready for
            ``pandas.DataFrame(table)``. p-values are NaN without held-out scores.
        """
        check_is_fitted(self)
        score = np.asarray(self.score_samples(X) if score is None else score, dtype=np.float64)
        decision = score - self.offset_
        return {
            "score": score,
            "decision": decision,
            "p_value": interpolated_p_values(score, self.training_scores_)
            if self.held_out_
            else np.full(len(score), np.nan),
            "prediction": self._labels(decision),
        }

    def transform(self, X: Any) -> np.ndarray:
        """All feature spaces side by side, as the densities take them, for use with other estimators.

        Parameters
        ----------
        X : images
            See Notes for their forms.

        Returns
        -------
        Z : ndarray of shape (n_samples, k), float64
            The spaces' features in the order of `feature_spaces_`; see `get_feature_names_out`.
        """
        check_is_fitted(self)
        features = self._measurer().measure(self._images(X, reset=False))
        return np.hstack([where_readable(features[space], self.spaces_[space].transform) for space in features])

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
        compare = Comparer(self.extractor_, self.students_, maps="standardized")
        for positions, pixels in images.batches(self.extractor_.batch_size):
            coarse = compare(self.extractor_.preprocess(pixels)).maps
            for position, image, single in zip(positions, pixels, coarse):
                maps[position] = enlarge(single[chosen].mean(axis=0), images.size(position, image))
        same_size = len({single.shape for single in maps}) == 1
        return np.stack(maps) if same_size else maps

    def explain(self, X: Any, *, n_neighbors: int = 3, maps: bool = False) -> dict[str, np.ndarray]:
        """Take each image's score apart.

        Parameters
        ----------
        X : images
            See Notes for their forms.
        n_neighbors : int, default=3
            How many of the nearest training images to name; at most as many as there are, and 0 searches for none.
        maps : bool, default=False
            Give `anomaly_map` as well, for little more time than the table alone takes.

        Returns
        -------
        table : dict of str to ndarray of shape (n_samples,)
            Columns, ready for ``pandas.DataFrame(table)``, all NaN (neighbours -1) for unreadable images:

            - ``score``: the sum of
            - ``pretrained``, ``classes``, ``layers`` and ``discrepancy``: the parts of the spaces in use;
            - ``block2``, ...: each student's part in ``discrepancy``, which they add up to; a student that makes up for
              others can have a positive one. Only with :class:`GaussianDensity`;
            - ``times_pretrained``, ...: how far the part lies below the median of the training images' held-out parts,
              in units of how far their 1 % quantile does (with fewer than 100 images, about the lowest): 14 is 14 times
              as far as 99 % of normal images;
            - ``reason``: in words, the space and block in which a flagged image is the most unusual, else "normal"; of
              dtype object;
            - ``neighbor0``, ...: positions in the training images of the nearest ones, nearest first, and
              ``distance0``, ...: their Euclidean distances, between embeddings of unit length if "pretrained" is in
              use, else between standardised discrepancies;
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
            features, _ = self._measurer().run(images, drawn)
        else:
            features = self._measurer().measure(images)
        parts, terms = self._parts(images, features)
        table = {"score": parts.sum(axis=1), **dict(zip(self.feature_spaces_, parts.T))}
        blocks = self.students_.block_indices_.tolist() if terms.shape[1] else []
        table.update({f"block{index}": column for index, column in zip(blocks, terms.T)})
        times = np.column_stack([self.spaces_[name].times_usual(table[name]) for name in self.feature_spaces_])
        table.update({f"times_{name}": column for name, column in zip(self.feature_spaces_, times.T)})
        table["reason"] = reasons(table["score"] - self.offset_, times, self.feature_spaces_, terms, blocks)
        if n_neighbors:
            table.update(nearest(features, self._training_features(), n_neighbors))
        if maps:
            table["map"] = np.empty(len(images), dtype=object)
            table["map"][:] = drawn
        return table

    def get_feature_names_out(self, input_features: Any = None) -> np.ndarray:
        """Names of what `transform` gives.

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

    # ----- fitting

    def _fit(self, X: Any, y: Any) -> None:
        for name in ("students_", "spaces_", "offset_", "training_scores_", "training_digests_"):
            self.__dict__.pop(name, None)  # of an earlier fit, perhaps with other feature spaces
        self._check_spaces()
        images = self._images(X, reset=True)
        labels = self._labels_of(y, len(images))
        self.extractor_ = clone(resolve_extractor(self.extractor), safe=False).fit(images)
        images = images.reduced(getattr(self.extractor_, "image_size_", None))
        self.feature_spaces_ = self._resolve_spaces()
        self._learn(images, labels)

    def _solves_students(self) -> bool:
        return "discrepancy" in self.feature_spaces_ and hasattr(self.students_, "measure_training")

    def _earlier_images(self) -> Images:
        images = getattr(self, "_images_seen", None)
        if images is None:
            raise ValueError(
                "Students in closed form need the earlier images again, and a detector from a file or pickle does not "
                "hold them. Pass update_students=False, which leaves the students as they are, or fit on all images."
            )
        return images

    def _learn_again(self, images: Images, labels: np.ndarray) -> None:
        """Fit to all images, of which those that came earlier must be what they were."""
        before, length = self.training_digests_, len(self.training_labels_)
        self._learn(images, labels)
        both = before.any(axis=1) & self.training_digests_[:length].any(axis=1)
        changed = np.flatnonzero(both & (before != self.training_digests_[:length]).any(axis=1))
        if len(changed):
            raise ValueError(
                f"{len(changed)} of {length} images have changed since they were learned, such as the one at position "
                f"{changed[0]}: fit anew."
            )

    def _add(self, images: Images, labels: np.ndarray) -> None:
        """Measure new images by the students as they are, and fit the spaces to all."""
        images.thumbnails = {}
        found = self._measurer().measure(images)
        before, n = len(self.training_labels_), len(labels)
        learned = labels[before:] == _LEARNED
        readable = ~np.isnan(next(iter(found.values()))).any(axis=1)
        sizes = self._sizes()
        if not readable.any():
            found = {name: np.full((len(images), z.shape[1]), np.nan) for name, z in self.training_features_.items()}
        self.training_features_ = {name: np.vstack([z, found[name]]) for name, z in self.training_features_.items()}
        if self.training_held_out_.shape[1]:  # students that stay have not seen the new images
            self.training_held_out_ = np.vstack([self.training_held_out_, found["discrepancy"]])
        else:
            self.training_held_out_ = np.empty((n, 0))
        digests, thumbnails = _keepsakes(images, np.arange(len(images)), len(images))
        digests[~learned] = 0
        self.training_digests_ = np.vstack([self.training_digests_, digests])
        self.training_thumbnails_ = np.vstack([self.training_thumbnails_, thumbnails])
        self.training_labels_ = labels
        seen = getattr(self, "_images_seen", None)
        self._images_seen = None if seen is None else Images.joined([seen, images])
        used = np.flatnonzero((labels == _LEARNED) & self.training_digests_.any(axis=1))
        same = np.unique(self.training_digests_[used], axis=0, return_inverse=True)[1].ravel()
        self.training_groups_ = np.full(n, -1)
        self.training_groups_[used] = near_duplicates(self.training_thumbnails_[used], same)
        self._fit_spaces(sizes, check_random_state(self.random_state))

    def _sizes(self) -> dict[str, np.ndarray]:
        return {name: space.sizes_ for name, space in self.spaces_.items()}

    def _training_features(self) -> dict[str, np.ndarray]:
        """Features of what was learned, NaN for all else."""
        learned = (self.training_labels_ == _LEARNED)[:, np.newaxis]
        return {name: np.where(learned, z, np.nan) for name, z in self.training_features_.items()}

    @property
    def training_embeddings_(self) -> np.ndarray:
        """z_p of the training images, (n_samples, D), NaN for those that are not in the fit."""
        return self._training_features().get("pretrained", np.empty((len(self.training_labels_), 0)))

    @property
    def training_discrepancies_(self) -> np.ndarray:
        """z_f of the training images after the fit, (n_samples, k * m), NaN for those that are not in the fit."""
        return self._training_features().get("discrepancy", np.empty((len(self.training_labels_), 0)))

    def _labels_of(self, y: Any, n: int) -> np.ndarray:
        normal = normal_samples(y, n)
        if normal is None:
            return np.full(n, _LEARNED, dtype=np.int8)
        return np.where(normal, _LEARNED, _KNOWN_ANOMALY).astype(np.int8)

    def _learn(self, images: Images, labels: np.ndarray) -> None:
        """Fit students and spaces to the images whose label is 1 or 0, and weigh the spaces by those of label -1."""
        random_state = check_random_state(self.random_state)
        held_out = self.threshold == "held-out" or self.fusion == "standardized"
        if self.trim:
            labels = self._trimmed(images, labels)
        used, rest = np.flatnonzero(labels == _LEARNED), np.flatnonzero(labels != _LEARNED)
        normal = images.take(used) if len(rest) else images
        normal.thumbnails = {}
        if "discrepancy" in self.feature_spaces_:
            self.students_ = self._fit_students(normal, random_state)
        measurer = self._measurer()
        features, sizes, unseen = measurer.measure_training(normal, held_out)
        readable = ~np.isnan(next(iter(features.values()))).any(axis=1)
        if readable.sum() < 2:
            first = next(iter(normal.unreadable.values()), "all others were left out")
            raise ValueError(
                f"fit needs 2 images, only {readable.sum()} of {len(images)} could be read; first: {first}"
            )
        if unseen is not None and not np.isfinite(unseen[readable]).all():
            raise FloatingPointError(NOT_FINITE)
        n = len(images)
        measured = {name: scatter(n, used, z) for name, z in features.items()}
        others = images.take(rest)
        if len(rest):
            for name, z in measurer.measure(others).items():
                measured[name][rest] = z
        self._images_seen = images
        self.training_features_ = measured
        self.training_held_out_ = np.empty((n, 0)) if unseen is None else scatter(n, used, unseen)
        self.training_labels_ = labels
        self.training_digests_, self.training_thumbnails_ = _keepsakes(normal, used, n)
        self.training_groups_ = np.full(n, -1)
        self.training_groups_[used] = copies(normal)
        self._fit_spaces(sizes, random_state)

    def _trimmed(self, images: Images, labels: np.ndarray) -> np.ndarray:
        """Label 0 for the share `trim` of the images that is least like the others, by the teacher alone."""
        candidates = np.flatnonzero((labels == _LEARNED) | (labels == _TRIMMED))
        spaces = [space for space in self.feature_spaces_ if space != "discrepancy"] or ["pretrained"]
        taken = images.take(candidates)
        taken.thumbnails = {}
        measurer = Measurer(self.extractor_, None, spaces, self._cache())
        features, sizes = measurer.run(taken)
        readable = np.flatnonzero(~np.isnan(features[spaces[0]]).any(axis=1))
        found = least_normal(
            {name: z[readable] for name, z in features.items()},
            sizes,
            copies(taken)[readable],
            self.trim,
            self.normalize,
        )
        labels = np.where(labels == _TRIMMED, _LEARNED, labels).astype(np.int8)
        labels[candidates[readable[found]]] = _TRIMMED
        return labels

    def _fit_spaces(self, sizes: dict[str, Any], random_state: np.random.RandomState) -> None:
        """Fit a density to each space, weigh the spaces, and set the threshold: all that needs no image."""
        held_out = self.threshold == "held-out"
        standardize = self.fusion == "standardized"
        n = len(self.training_labels_)
        learned = self.training_labels_ == _LEARNED
        used = np.flatnonzero(learned & ~np.isnan(next(iter(self.training_features_.values()))).any(axis=1))
        groups = self.training_groups_[used]
        spaces: dict[str, FeatureSpace] = {}
        parts, terms = np.full((n, len(self.feature_spaces_)), np.nan), np.zeros((n, 0))
        for j, name in enumerate(self.feature_spaces_):
            z = self.training_features_[name][used]
            discrepancy = name == "discrepancy"
            space = FeatureSpace(
                self._density(discrepancy, random_state),
                discrepancy=discrepancy,
                normalize=self.normalize,
                explained_variance=self.explained_variance,
                standardize=standardize,
                held_out=held_out or standardize,
            )
            unseen = self.training_held_out_[used] if discrepancy and self.training_held_out_.shape[1] else None
            space.fit(z, sizes=sizes.get(name), groups=groups, unseen=unseen)
            spaces[name] = space
            parts[used, j] = space.held_out_parts_ if held_out else space.score_samples(z)
            block_terms = space.held_out_terms_ if held_out else space.terms(z)
            if discrepancy and block_terms is not None:
                terms = np.full((n, len(self.students_.block_indices_)), np.nan)
                terms[used] = self._by_block(block_terms)
            del space.held_out_parts_, space.held_out_terms_  # the detector has them
        self.spaces_ = spaces
        self.weights_ = self._weigh(parts[used])
        for space, weight in zip(spaces.values(), self.weights_):
            space.scale(weight)
        if terms.shape[1]:
            terms = terms * self.weights_[self.feature_spaces_.index("discrepancy")]
        self.training_parts_, self.training_terms_ = parts * self.weights_, terms
        self.held_out_ = held_out
        self._set_threshold(self.training_parts_.sum(axis=1), len(np.unique(groups)))

    def _weigh(self, normal: np.ndarray) -> np.ndarray:
        """Weights of the spaces, from held-out parts of the training images and parts of the known anomalies."""
        known = np.flatnonzero(self.training_labels_ == _KNOWN_ANOMALY)
        if not len(known):
            return np.ones(len(self.feature_spaces_))
        found = self._parts_of({name: z[known] for name, z in self.training_features_.items()})
        return space_weights(normal, found[~np.isnan(found).any(axis=1)])

    def _set_threshold(self, scores: np.ndarray, distinct: int) -> None:
        usable = np.sort(scores[~np.isnan(scores)])
        if self.threshold == "training":
            self.offset_ = float(np.quantile(usable, self.contamination))
        else:
            self.offset_ = held_out_threshold(usable, self.contamination)
            if self.contamination * (distinct + 1) < 1:
                lowest, enough = 1 / (distinct + 1), int(np.ceil(1 / self.contamination)) - 1
                warn_user(
                    f"With {distinct} images a false-positive rate below {lowest:.0%} cannot be promised, and "
                    f"contamination={self.contamination:g} was asked for: what scores lower than all training images "
                    f"is flagged, {lowest:.0%} of new normal images on average over fits; a single fit on so few "
                    f"images can be far from it. {enough} images are enough.",
                )
        self.training_scores_ = scores

    def _check_spaces(self) -> None:
        spaces = self.feature_spaces
        if isinstance(spaces, str):
            if spaces != "auto":
                raise ValueError(f"feature_spaces must be 'auto' or a sequence, got a str: write [{spaces!r}].")
            return
        if not len(spaces) or len(set(spaces)) < len(spaces) or not set(spaces) <= set(SPACES):
            raise ValueError(f"feature_spaces must be 'auto' or name some of {SPACES}, each once, got {spaces!r}.")

    def _resolve_spaces(self) -> list[str]:
        """The spaces in use, in the order in which they are always given."""
        missing = {}
        if not count_classes(self.extractor_):
            missing["classes"] = "its weights came without a classifier"
        if not layer_indices(len(self.extractor_.blocks_)):
            missing["layers"] = "it has one block"
        if isinstance(self.feature_spaces, str):
            return [space for space in SPACES if space not in missing]
        for space, why in missing.items():
            if space in self.feature_spaces:
                raise ValueError(
                    f"The teacher has no feature space {space!r}: {why}. Leave it out of feature_spaces, or take "
                    "'auto'."
                )
        return [space for space in SPACES if space in self.feature_spaces]

    def _fit_students(self, images: Images, random_state: np.random.RandomState) -> Any:
        students = RidgeStudents() if self.students is None else clone(self.students)
        if students.extractor is not None:
            raise ValueError(
                "students.extractor must be None inside a TransformalyDetector, whose own extractor they imitate; "
                "set the detector's extractor instead."
            )
        parameters = students.get_params(deep=False)
        if self.n_jobs is not None and parameters.get("n_jobs", 0) is None:
            students.set_params(n_jobs=self.n_jobs)
        if self.verbose and not students.verbose:
            students.set_params(verbose=self.verbose)
        # a checkpoint of an unseeded fit keeps the seed that was drawn
        if self.random_state is not None or parameters.get("checkpoint") is None:
            students = _with_seed(students, random_state)
        # an unseeded fit is never repeated, so that caching its students would only fill the disk
        drawn = "random_state" in parameters and self.random_state is None
        return students._fit(images, self.extractor_, Cache(None) if drawn else self._cache())

    def _density(self, discrepancy: bool, random_state: np.random.RandomState) -> Any:
        density = self.discrepancy_density if discrepancy else self.density
        return _with_seed(clone(resolve_density(density, discrepancy=discrepancy)), random_state)

    # ----- measuring

    def _measurer(self) -> Measurer:
        students = self.students_ if "discrepancy" in self.feature_spaces_ else None
        drawn = self.random_state is None and students is not None and "random_state" in students.get_params()
        return Measurer(self.extractor_, students, self.feature_spaces_, self._cache(), drawn=drawn)

    def _by_block(self, terms: np.ndarray) -> np.ndarray:
        """What each block adds, (n, m), of what each of its measures does, (n, k * m)."""
        return terms.reshape(len(terms), -1, len(self.students_.block_indices_)).sum(axis=1)

    def _images(self, X: Any, *, reset: bool) -> Images:
        return self._check_images(X, reset=reset, image_shape=self.image_shape, on_error=self.on_error)

    def _cache(self) -> Cache:
        return Cache(self.memory, self.verbose)

    def _check_maps(self) -> None:
        if "discrepancy" not in self.feature_spaces_:
            raise ValueError("An anomaly map shows what students miss: fit with 'discrepancy' among feature_spaces.")

    # ----- scoring

    def _parts_of(self, features: dict[str, np.ndarray]) -> np.ndarray:
        """What each space adds to the scores, (n, S), of images that are new; NaN rows stay NaN."""
        return np.column_stack([where_readable(z, self.spaces_[name].score_samples) for name, z in features.items()])

    def _parts(
        self, images: Images, features: dict[str, np.ndarray], *, recognise: bool = True
    ) -> tuple[np.ndarray, np.ndarray]:
        """What each space adds to the scores, (n, S), and each block to "discrepancy", (n, m); NaN rows stay NaN.

        Training images, known by their pixels, get what they were given without themselves.
        """
        if images.unreadable and len(images.unreadable) == len(images):
            features = {name: np.full((len(images), self.spaces_[name].n_features_in_), np.nan) for name in features}
        parts = self._parts_of(features)
        terms = np.zeros((len(parts), self.training_terms_.shape[1]))
        if terms.shape[1]:
            space = self.spaces_["discrepancy"]
            terms = where_readable(features["discrepancy"], lambda z: self._by_block(np.asarray(space.terms(z))))
        for position, digest in images.digests.items() if recognise else ():
            same = (self.training_digests_ == np.frombuffer(digest, dtype=np.uint8)).all(axis=1)
            if same.any():
                row = int(same.argmax())
                parts[position], terms[position] = self.training_parts_[row], self.training_terms_[row]
        return parts, terms

    @staticmethod
    def _labels(decisions: np.ndarray) -> np.ndarray:
        return np.where(decisions >= 0, 1, -1)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(super().__getstate__())  # which from Python 3.11 on is the object's own
        state.pop("_images_seen", None)  # they are the user's, and may be large
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "training_scores_")


def _keepsakes(images: Images, positions: np.ndarray, n: int) -> tuple[np.ndarray, np.ndarray]:
    """Digests (n, 16) and thumbnails (n, k) of the images, at their positions among n; zeros elsewhere."""
    digests, thumbnails = np.zeros((n, DIGEST_SIZE), np.uint8), np.zeros((n, THUMBNAIL_SIZE), np.uint8)
    for i, digest in images.digests.items():
        digests[positions[i]] = np.frombuffer(digest, dtype=np.uint8)
    for i, thumbnail in (images.thumbnails or {}).items():
        thumbnails[positions[i]] = thumbnail
    return digests, thumbnails


def _with_seed(part: Any, random_state: np.random.RandomState) -> Any:
    """Give `part`, and the estimators within it, a seed where they take one and have none."""
    parameters = part.get_params() if hasattr(part, "get_params") else {}
    for name in sorted(parameters):
        if name.split("__")[-1] == "random_state" and parameters[name] is None:
            part.set_params(**{name: random_state.randint(np.iinfo(np.int32).max)})
    return part
