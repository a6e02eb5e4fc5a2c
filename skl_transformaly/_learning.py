"""What a detector learns, and how: from images, from more of them, from fewer, and from known anomalies."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._cleaning import least_normal, near_duplicates
from skl_transformaly._density import AutoDensity, resolve_density
from skl_transformaly._explanation import scatter
from skl_transformaly._fusion import can_promise, held_out_threshold, needed
from skl_transformaly._measuring import NOT_FINITE, Measurer, TrainingFeatures, release_checkpoint
from skl_transformaly._space import FeatureSpace
from skl_transformaly._weighting import default_weights, space_weights
from skl_transformaly.images._sequence import DIGEST_SIZE, Images
from skl_transformaly.images._thumbnails import THUMBNAIL_SIZE, all_grey
from skl_transformaly.students._regression import Sums
from skl_transformaly.students._ridge import RidgeStudents
from skl_transformaly.teacher._extractor import resolve_extractor
from skl_transformaly.teacher._features import SPACES, TEACHER_SPACES, missing_spaces
from skl_transformaly.teacher._kernels import release_memory
from skl_transformaly.utils._cache import Cache
from skl_transformaly.utils._compat import fit_context
from skl_transformaly.utils._fitting import all_or_nothing, refuse_class
from skl_transformaly.utils._labels import FORGOTTEN, KNOWN_ANOMALY, LEARNED, TRIMMED, normal_samples
from skl_transformaly.utils._torch import own_settings
from skl_transformaly.utils._warnings import warn_user

__all__ = ["LearningMixin"]


class LearningMixin:
    """Fitting, for :class:`TransformalyDetector`, which has the parameters and says how images are measured."""

    extractor: Any
    feature_spaces: Any
    students: Any
    density: Any
    discrepancy_density: Any
    explained_variance: float | None
    normalize: bool
    fusion: str
    contamination: float
    trim: float
    threshold: str
    n_jobs: int | None
    random_state: Any
    verbose: int

    extractor_: Any
    feature_spaces_: list[str]
    students_: Any
    spaces_: dict[str, FeatureSpace]
    training_features_: dict[str, np.ndarray]
    training_held_out_: np.ndarray
    training_digests_: np.ndarray
    training_thumbnails_: np.ndarray
    training_groups_: np.ndarray
    training_labels_: np.ndarray

    _images_seen: Images | None
    _images: Callable[..., Images]
    _cache: Callable[[], Cache]
    _measurer: Callable[[], Measurer]
    _by_block: Callable[[np.ndarray], np.ndarray]
    _parts_of: Callable[[dict[str, np.ndarray]], np.ndarray]
    _labels: Callable[[np.ndarray], np.ndarray]
    __sklearn_is_fitted__: Callable[[], bool]
    _validate_params: Callable[[], None]

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=False)
    @own_settings()
    def fit(self, X: Any, y: Any = None) -> Any:
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
    def partial_fit(self, X: Any, y: Any = None, *, update_students: bool = True) -> Any:
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
            `X` is not images, or an image cannot be read; a parameter is out of its range; or students are to be
            updated, and the earlier images are not at hand or have changed.

        Notes
        -----
        Positions, as in `forget` and `explain`, go on: the first image of `X` comes after the last one of the call
        before. For the earlier images a detector keeps what it was given: paths, or a reference to arrays. Pickles and
        model files hold neither; see `set_training_images`.
        """
        self._validate_params()  # by hand: the decorator of `fit` leaves a fitted estimator's partial_fit alone
        if not self.__sklearn_is_fitted__():
            self._fit(X, y)
            return self
        images = self._images(X, reset=False)
        labels = np.concatenate([self.training_labels_, self._labels_of(y, len(images), least=0)])
        if update_students and self._solves_students():
            self._learn_again(Images.joined([self._earlier_images(), images]), labels)
        else:
            self._add(images, labels)
        return self

    @all_or_nothing
    @own_settings()
    def forget(self, indices: Any, *, update_students: bool = True) -> Any:
        """Take images back that turned out not to be normal, as if they had not been in the fit.

        Parameters
        ----------
        indices : array-like of shape (k,), int, or of shape (n_samples,), bool
            Positions among all training images, in the order in which they were given, or which of them. Other images
            keep their positions.
        update_students : bool, default=True
            As in `partial_fit`: students in closed form need the images that are left once more; trained students stay
            as they are.

        Returns
        -------
        self : TransformalyDetector

        Raises
        ------
        IndexError
            An index is not that of a training image, or not an integer; or there are not as many booleans as images.
        ValueError
            Fewer than 2 images would be left; a parameter is out of its range; or students are to be updated, and the
            images are not at hand.
        """
        check_is_fitted(self)
        self._validate_params()
        labels = self.training_labels_.copy()
        labels[_positions(indices, len(labels))] = FORGOTTEN
        left = int(np.isin(labels, (LEARNED, TRIMMED)).sum())  # of which `trim` leaves out others, perhaps
        if left < 2:
            raise ValueError(f"forget would leave {left} of {len(labels)} images; 2 are needed.")
        if update_students and self._solves_students():
            self._learn_again(self._earlier_images(), labels)
            return self
        self._settle(labels, self._sizes())
        return self

    @own_settings()
    def set_training_images(self, X: Any) -> Any:
        """Hand over the training images, which a detector from a file or pickle does not hold.

        `partial_fit` and `forget` need them to update students in closed form, and notice if one has changed.

        Parameters
        ----------
        X : images
            All of them, in the order in which they were learned; see Notes of the class for their forms.

        Returns
        -------
        self : TransformalyDetector

        Raises
        ------
        ValueError
            There are fewer or more images than were learned.
        """
        check_is_fitted(self)
        images = self._images(X, reset=False)
        if len(images) != len(self.training_labels_):
            raise ValueError(f"X must be the {len(self.training_labels_)} training images, got {len(images)}.")
        self._images_seen = images
        return self

    def fit_predict(self, X: Any, y: Any = None) -> np.ndarray:
        """Fit, and say which of the training images themselves are anomalies.

        Each is judged by the others, unless ``threshold="training"``.

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
        others = np.flatnonzero(self.training_labels_ != LEARNED)
        if len(others):  # known anomalies, or what `trim` left out: as new images
            scores[others] = self._parts_of({name: z[others] for name, z in self.training_features_.items()}).sum(
                axis=1
            )
        return self._labels(scores - self.offset_)

    # ----- fitting

    def _fit(self, X: Any, y: Any) -> None:
        self._learn(*self._begin(X, y))

    def _begin(self, X: Any, y: Any) -> tuple[Images, np.ndarray]:
        """Check the images and their labels, fit the teacher, and choose the spaces."""
        for name in ("students_", "spaces_", "offset_", "training_scores_", "training_digests_"):
            self.__dict__.pop(name, None)  # of an earlier fit, perhaps with other feature spaces
        self._check_spaces()
        images = self._images(X, reset=True)
        labels = self._labels_of(y, len(images))
        self.extractor_ = clone(resolve_extractor(self.extractor), safe=False).fit(images)
        self.feature_spaces_ = self._resolve_spaces()
        self._check_fusion()
        return images.reduced(getattr(self.extractor_, "image_size_", None)), labels

    def _solves_students(self) -> bool:
        return "discrepancy" in self.feature_spaces_ and hasattr(self.students_, "measure_training")

    def _earlier_images(self) -> Images:
        images = getattr(self, "_images_seen", None)
        if images is None:
            raise ValueError(
                "Students in closed form need the earlier images again, which a detector from a file, a pickle, a deep "
                "copy or a fit in parts does not hold. Hand them over by set_training_images, or pass "
                "update_students=False, which leaves the students as they are."
            )
        return images

    def _learn_again(self, images: Images, labels: np.ndarray) -> None:
        """Fit to all images, of which those that came earlier must be what they were."""
        before, length = self.training_digests_, len(self.training_labels_)
        thumbnails = self.training_thumbnails_
        self._learn(images, labels)
        gone = np.flatnonzero(labels[:length] == FORGOTTEN)  # which are not read any more
        self.training_digests_[gone], self.training_thumbnails_[gone] = before[gone], thumbnails[gone]
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
        n = len(labels)
        sizes = self._sizes()
        self.training_features_ = {name: np.vstack([z, found[name]]) for name, z in self.training_features_.items()}
        places = np.arange(len(images))
        self.training_digests_ = np.vstack([self.training_digests_, _digests(images, places, len(images))])
        self.training_thumbnails_ = np.vstack([self.training_thumbnails_, _thumbnails(images, places, len(images))])
        if self.training_held_out_.shape[1]:
            self.training_held_out_ = np.vstack([self.training_held_out_, found["discrepancy"]])
            self._hold_out_copies(n - len(images))
        else:
            self.training_held_out_ = np.empty((n, 0))
        seen = getattr(self, "_images_seen", None)
        self._images_seen = None if seen is None else Images.joined([seen, images])
        self._settle(labels, sizes)

    def _hold_out_copies(self, before: int) -> None:
        """Give copies of images that came `before` their held-out discrepancies: students that stay have seen these.

        All other new images are unknown to the students, so that what these measure is held out already.
        """
        measured = np.flatnonzero(~np.isnan(self.training_held_out_).any(axis=1))
        groups = self._copies(measured)
        for group in np.intersect1d(groups[measured < before], groups[measured >= before]):
            members = measured[groups == group]
            earlier = members < before
            self.training_held_out_[members[~earlier]] = self.training_held_out_[members[earlier]].mean(axis=0)

    def _settle(self, labels: np.ndarray, sizes: dict[str, Any]) -> None:
        """Fit the spaces to what is labelled 1 now, from the features that are kept."""
        labels = self._trimmed_again(labels)
        learned = labels == LEARNED
        readable = ~np.isnan(next(iter(self.training_features_.values()))).any(axis=1)
        used = np.flatnonzero(learned & readable)
        if len(used) < 2:
            raise ValueError(f"{len(used)} of {len(labels)} images would be left that can be read; 2 are needed.")
        self.training_labels_ = labels
        self.training_groups_ = np.full(len(labels), -1)
        self.training_groups_[used] = self._copies(used)
        self._fit_spaces(sizes, check_random_state(self.random_state))

    def _copies(self, positions: np.ndarray) -> np.ndarray:
        """Number the training images at `positions`, so that copies have the same number, by what is kept of them."""
        same_pixels = np.unique(self.training_digests_[positions], axis=0, return_inverse=True)[1].ravel()
        return near_duplicates(self.training_thumbnails_[positions], same_pixels)

    def _sizes(self) -> dict[str, np.ndarray]:
        return {name: space.sizes_ for name, space in self.spaces_.items()}

    def _learned(self, name: str) -> np.ndarray:
        """Features of what was learned, NaN for all else; no column without that space."""
        z = self.training_features_.get(name, np.empty((len(self.training_labels_), 0)))
        return np.where((self.training_labels_ == LEARNED)[:, np.newaxis], z, np.nan)

    @property
    def training_embeddings_(self) -> np.ndarray:
        """z_p of the training images, (n_samples, D), NaN for those that are not in the fit."""
        return self._learned("pretrained")

    @property
    def training_discrepancies_(self) -> np.ndarray:
        """z_f of the training images after the fit, (n_samples, k * m), NaN for those that are not in the fit."""
        return self._learned("discrepancy")

    def _labels_of(self, y: Any, n: int, least: int = 2) -> np.ndarray:
        normal = normal_samples(y, n, least=least)
        if normal is None:
            return np.full(n, LEARNED, dtype=np.int8)
        return np.where(normal, LEARNED, KNOWN_ANOMALY).astype(np.int8)

    def _learn(self, images: Images, labels: np.ndarray) -> None:
        """Fit students and spaces to the images whose label is 1 or 0, and weigh the spaces by those of label -1.

        Images that were forgotten are not read.
        """
        random_state = check_random_state(self.random_state)
        held_out = self.threshold == "held-out" or self.fusion == "standardized"
        labels = self._trimmed(images, labels) if self.trim else np.where(labels == TRIMMED, LEARNED, labels)
        used = np.flatnonzero(labels == LEARNED)
        rest = np.flatnonzero((labels == TRIMMED) | (labels == KNOWN_ANOMALY))
        normal = images.take(used)  # also of all: their pixels are compared with those of an earlier fit
        normal.thumbnails = {}
        if "discrepancy" in self.feature_spaces_:
            self.students_ = self._fit_students(normal, random_state)
            release_memory()
        measurer = self._measurer()
        found = measurer.measure_training(normal, held_out)
        release_memory()
        self._keep(found, normal, used, labels)
        if len(rest):
            others = images.take(rest)
            others.thumbnails = {}
            for name, z in measurer.measure(others).items():
                self.training_features_[name][rest] = z
                if name == "discrepancy" and self.training_held_out_.shape[1]:  # students have not seen them
                    self.training_held_out_[rest] = z
            self.training_digests_ += _digests(others, rest, len(images))
            self.training_thumbnails_ += _thumbnails(others, rest, len(images))
        self._images_seen = images
        # seeds of densities do not depend on whether students draw any: later calls fit densities alone
        self._fit_spaces(found.sizes, check_random_state(self.random_state))
        if "discrepancy" in self.feature_spaces_:
            for students in (self.students_, *measurer.fold_students):
                release_checkpoint(students)
        release_memory()

    def _keep(self, found: TrainingFeatures, normal: Images, used: np.ndarray, labels: np.ndarray) -> None:
        """Keep what was measured of the images that are learned, `normal`, at their places `used` among all."""
        readable = ~np.isnan(next(iter(found.features.values()))).any(axis=1)
        n = len(labels)
        if readable.sum() < 2:
            first = next(iter(normal.unreadable.values()), "all others were left out")
            raise ValueError(f"fit needs 2 images, only {readable.sum()} of {n} could be read; first: {first}")
        if found.unseen is not None and not np.isfinite(found.unseen[readable]).all():
            raise FloatingPointError(NOT_FINITE)
        whole = len(used) == n
        self.training_features_ = (
            found.features if whole else {k: scatter(n, used, z) for k, z in found.features.items()}
        )
        self.training_held_out_ = np.empty((n, 0)) if found.unseen is None else scatter(n, used, found.unseen)
        self.training_labels_ = labels
        self.training_digests_ = _digests(normal, used, n)
        self.training_thumbnails_ = _thumbnails(normal, used, n)
        self.training_groups_ = np.full(n, -1)
        self.training_groups_[used] = np.where(readable, found.groups, -1)

    def begin_parts(self, X: Any) -> dict[int, Sums]:
        """Begin a fit to images that are measured in parts: by the first of them, as in `fit`.

        Parameters
        ----------
        X : images
            2 at least that can be read.

        Returns
        -------
        start : dict of int to Sums
            What the sums of students in closed form start from; empty without students.

        Raises
        ------
        ValueError
            `trim` is not 0, or the students are trained.
        """
        if self.trim:
            raise ValueError("A fit in parts takes all images as normal: set trim=0, or call fit.")
        images, _ = self._begin(X, None)
        if "discrepancy" not in self.feature_spaces_:
            return {}
        students = self._new_students(check_random_state(self.random_state))
        if not hasattr(students, "begin_sums"):
            raise ValueError(
                f"A fit in parts takes students in closed form, got {type(students).__name__}: set "
                "students=RidgeStudents(), or call fit."
            )
        self.students_ = students
        return students.begin_sums(images, self.extractor_)

    def end_parts(self, seen: Images, found: TrainingFeatures) -> None:
        """End it, once all images, which `seen` stands for, are measured."""
        self._keep(found, seen, np.arange(len(seen)), np.full(len(seen), LEARNED, dtype=np.int8))
        self._fit_spaces(found.sizes, check_random_state(self.random_state))

    def _trimmed(self, images: Images, labels: np.ndarray) -> np.ndarray:
        """Label 0 for the share `trim` of the images that is least like the others, by the teacher alone."""
        candidates = np.flatnonzero((labels == LEARNED) | (labels == TRIMMED))
        spaces = [space for space in self.feature_spaces_ if space != "discrepancy"] or ["pretrained"]
        taken = images.take(candidates)
        taken.thumbnails = {}
        found = Measurer(self.extractor_, None, spaces, self._cache()).measure_training(taken, held_out=False)
        return self._trim(labels, candidates, found.features, found.sizes, found.groups)

    def _trimmed_again(self, labels: np.ndarray) -> np.ndarray:
        """The same, by the features that are kept; unchanged without features of the teacher itself."""
        candidates = np.flatnonzero((labels == LEARNED) | (labels == TRIMMED))
        features = {name: z[candidates] for name, z in self.training_features_.items() if name != "discrepancy"}
        if not features:
            if self.trim:
                warn_user(
                    "trim needs features of the teacher itself, which feature_spaces=['discrepancy'] does not keep: of "
                    "the images that came after `fit`, none is left out."
                )
            return labels
        return self._trim(labels, candidates, features, self._sizes(), self._copies(candidates))

    def _trim(
        self,
        labels: np.ndarray,
        candidates: np.ndarray,
        features: dict[str, np.ndarray],
        sizes: Mapping[str, Any],
        groups: np.ndarray,
    ) -> np.ndarray:
        readable = np.flatnonzero(~np.isnan(next(iter(features.values()))).any(axis=1))
        kept = {name: z[readable] for name, z in features.items()}
        if self.trim and round(self.trim * len(readable)) < 1:
            warn_user(
                f"trim={self.trim:g} of {len(readable)} images is less than one image: none is left out. "
                f"trim={1 / max(len(readable), 3):.2g} leaves out one."
            )
        found = least_normal(kept, sizes, groups[readable], self.trim, self.normalize)
        labels = np.where(labels == TRIMMED, LEARNED, labels).astype(np.int8)
        labels[candidates[readable[found]]] = TRIMMED
        return labels

    def _fit_spaces(self, sizes: dict[str, Any], random_state: np.random.RandomState) -> None:
        """Fit a density to each space, weigh the spaces, and set the threshold: all that needs no image."""
        held_out = self.threshold == "held-out"
        standardize = self.fusion == "standardized"
        n = len(self.training_labels_)
        learned = self.training_labels_ == LEARNED
        used = np.flatnonzero(learned & ~np.isnan(next(iter(self.training_features_.values()))).any(axis=1))
        groups = self.training_groups_[used]
        self.grey_ = all_grey(self.training_thumbnails_[used])
        if len(np.unique(groups)) < 2:
            raise ValueError(
                f"All {len(used)} training images are copies of one, so the variation of normal images cannot be "
                "learned. Pass images that differ."
            )
        if "discrepancy" in self.feature_spaces_ and (held_out or standardize) and not self.training_held_out_.shape[1]:
            raise ValueError(
                f"threshold={self.threshold!r} and fusion={self.fusion!r} need discrepancies of students that have "
                "not seen the image, and the fit, with other settings, has kept none: fit anew."
            )
        spaces: dict[str, FeatureSpace] = {}
        parts, terms = np.full((n, len(self.feature_spaces_)), np.nan), np.zeros((n, 0))
        for j, name in enumerate(self.feature_spaces_):
            z = self.training_features_[name]
            z = z if len(used) == n else z[used]  # which copies them
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
        usual = default_weights(self.feature_spaces_, standardize)
        for space, weight in zip(spaces.values(), usual):
            space.scale(weight)
        learned_weights = self._weigh(parts[used] * usual)
        for space, weight in zip(spaces.values(), learned_weights):
            space.scale(weight)
        self.weights_ = usual * learned_weights
        if terms.shape[1]:
            terms = terms * self.weights_[self.feature_spaces_.index("discrepancy")]
        self.training_parts_, self.training_terms_ = parts * self.weights_, terms
        self.held_out_ = held_out
        self.training_scores_ = self.training_parts_.sum(axis=1)
        self._set_threshold()

    def _weigh(self, normal: np.ndarray) -> np.ndarray:
        """Weights of the spaces, from held-out parts of the training images and parts of the known anomalies."""
        known = np.flatnonzero(self.training_labels_ == KNOWN_ANOMALY)
        if not len(known):
            return np.ones(len(self.feature_spaces_))
        found = self._parts_of({name: z[known] for name, z in self.training_features_.items()})
        return space_weights(normal, found[~np.isnan(found).any(axis=1)])

    @property
    def reference_scores_(self) -> np.ndarray:
        """`training_scores_` in ascending order, without NaN and with one, the mean, for all copies of an image.

        They are what the threshold and p-values come from: however often an image was saved, new ones are no more often
        like it.
        """
        check_is_fitted(self)
        known = ~np.isnan(self.training_scores_)
        _, groups = np.unique(self.training_groups_[known], return_inverse=True)
        return np.sort(np.bincount(groups, self.training_scores_[known]) / np.bincount(groups))

    def _set_threshold(self) -> None:
        usable = self.reference_scores_
        distinct, enough = len(usable), needed(self.contamination)
        few = not can_promise(self.contamination, distinct)
        if self.threshold == "training":
            self.offset_ = float(np.quantile(usable, self.contamination))
            if few:
                warn_user(
                    f"With {distinct} images and threshold='training', the scores of the very images that were fitted, "
                    f"expect many more false alarms than contamination={self.contamination:g}; after two or three "
                    f"images, most new normal ones. threshold='held-out' keeps its rate, from {enough} images on."
                )
        else:
            self.offset_ = held_out_threshold(usable, self.contamination)
            if few:
                # as many digits as tell it from the rate that was asked for: 18 images can promise 5.26 %, not 5 %
                lowest = f"{100 / (distinct + 1):.3g}%"
                warn_user(
                    f"With {distinct} images a false-positive rate below {lowest} cannot be promised, and "
                    f"contamination={self.contamination:g} was asked for: what scores lower than all training images "
                    f"is flagged, {lowest} of new normal images on average over fits; a single fit on so few "
                    f"images can be far from it. {enough} images are enough.",
                )

    def _check_spaces(self) -> None:
        spaces = self.feature_spaces
        if isinstance(spaces, str):
            if spaces not in ("auto", "teacher"):
                raise ValueError(
                    f"feature_spaces must be 'auto', 'teacher' or a sequence, got another str: write [{spaces!r}]."
                )
            return
        known = all(isinstance(space, str) and space in SPACES for space in spaces)
        if not len(spaces) or not known or len(set(spaces)) < len(spaces):
            raise ValueError(
                f"feature_spaces must be 'auto', 'teacher' or some of {SPACES}, each once, got {spaces!r}."
            )

    def _check_fusion(self) -> None:
        """Refuse to add what is in nats to what is not."""
        if self.fusion == "standardized" or len(self.feature_spaces_) < 2:
            return
        for space in self.feature_spaces_:
            parameter = "discrepancy_density" if space == "discrepancy" else "density"
            density = getattr(self, parameter)
            if isinstance(resolve_density(density), AutoDensity):
                raise ValueError(
                    f"fusion='sum' adds log-densities as they are, and {parameter}={density!r} gives them in standard "
                    f"deviations, not in nats. Set {parameter}='gaussian', or leave fusion='standardized'."
                )

    def _resolve_spaces(self) -> list[str]:
        """The spaces in use, in the order in which they are always given."""
        missing = missing_spaces(self.extractor_)
        if isinstance(self.feature_spaces, str):
            all_spaces = SPACES if self.feature_spaces == "auto" else TEACHER_SPACES
            return [space for space in all_spaces if space not in missing]
        for space, why in missing.items():
            if space in self.feature_spaces:
                raise ValueError(
                    f"The teacher has no feature space {space!r}: {why}. Leave it out of feature_spaces, or take "
                    "'auto'."
                )
        return [space for space in SPACES if space in self.feature_spaces]

    def _fit_students(self, images: Images, random_state: np.random.RandomState) -> Any:
        students = self._new_students(random_state)
        return students._fit(images, self.extractor_, Cache(None) if self._draws_students() else self._cache())

    def _draws_students(self) -> bool:
        """Whether another fit would draw other students, so that caching them would only fill the disk."""
        return self.random_state is None and getattr(self.students, "random_state", 0) is None

    def _new_students(self, random_state: np.random.RandomState) -> Any:
        """Students to be fitted, with what the detector has set for them."""
        refuse_class(self.students, "students")
        students = RidgeStudents() if self.students is None else clone(self.students)
        if lacking := [name for name in ("extractor", "_fit") if not hasattr(students, name)]:
            raise TypeError(
                f"students must be RidgeStudents or BlockStudents, got {type(students).__name__}, which lacks "
                f"{' and '.join(lacking)}."
            )
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
        return students

    def _density(self, discrepancy: bool, random_state: np.random.RandomState) -> Any:
        density = self.discrepancy_density if discrepancy else self.density
        return _with_seed(clone(resolve_density(density, discrepancy=discrepancy)), random_state)


def _digests(images: Images, positions: np.ndarray, n: int) -> np.ndarray:
    """Digests (n, 16) of the images, at their positions among n; zeros elsewhere."""
    digests = np.zeros((n, DIGEST_SIZE), np.uint8)
    for i, digest in images.digests.items():
        digests[positions[i]] = np.frombuffer(digest, dtype=np.uint8)
    return digests


def _thumbnails(images: Images, positions: np.ndarray, n: int) -> np.ndarray:
    """Thumbnails (n, k) of the images, at their positions among n; zeros elsewhere."""
    thumbnails = np.zeros((n, THUMBNAIL_SIZE), np.uint8)
    for i, thumbnail in (images.thumbnails or {}).items():
        thumbnails[positions[i]] = thumbnail
    return thumbnails


def _positions(indices: Any, n: int) -> np.ndarray:
    """Positions among `n` images, from these or from a mask."""
    given = np.asarray(indices)
    if given.dtype == bool:
        if given.shape != (n,):
            raise IndexError(f"A mask of the training images has shape ({n},), got {given.shape}.")
        return np.flatnonzero(given)
    if given.size and given.dtype.kind not in "iu":
        raise IndexError(f"indices must be integers or a mask, got {given.dtype}.")
    positions = given.ravel().astype(np.intp)
    # Negative positions do not count from the end, because `explain` returns -1 for a missing neighbour.
    if len(wrong := positions[(positions < 0) | (positions >= n)]):
        raise IndexError(f"index {wrong[0]} is not that of a training image: there are {n}, counted from 0.")
    return positions


def _with_seed(part: Any, random_state: np.random.RandomState) -> Any:
    """Give `part`, and the estimators within it, a seed where they take one and have none."""
    parameters = part.get_params() if hasattr(part, "get_params") else {}
    for name in sorted(parameters):
        if name.split("__")[-1] == "random_state" and parameters[name] is None:
            part.set_params(**{name: random_state.randint(np.iinfo(np.int32).max)})
    return part
