"""Checks of a file: what must hold between the fitted attributes of a class, whatever it was fitted on.

Each function takes a part whose attributes have the right kinds and shapes, and the sizes of their axes.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from sklearn.decomposition import PCA
from sklearn.mixture import GaussianMixture

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._density import AutoDensity, GaussianDensity, KNNDensity, LocalKNNDensity
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._fusion import conformal_threshold, held_out_threshold
from skl_transformaly._space import FeatureSpace
from skl_transformaly._wrappers import innermost
from skl_transformaly.persistence._fields import brief, refuse
from skl_transformaly.students._residuals import ResidualStatistics
from skl_transformaly.utils._labels import LEARNED

_ORTHONORMAL = 1e-6  # but for rounding


# ----- densities


def _check_orthonormal(components: np.ndarray) -> None:
    if not np.allclose(components @ components.T, np.eye(len(components)), atol=_ORTHONORMAL):
        refuse("has components_ that are not orthonormal")


def check_gaussian(density: GaussianDensity, sizes: dict[str, int]) -> None:
    """A covariance that is positive definite, in orthonormal directions."""
    if not (density.floor_ > 0 and (density.scale_ > 0).all() and (density.variances_ >= 0).all()):
        refuse("has floor_, scale_ or variances_ of a covariance that is not positive definite")
    if not 0 <= density.shrinkage_ <= 1:
        refuse(f"has shrinkage_ {brief(density.shrinkage_)}; expected a share")
    if sizes["k"] > min(density.n_samples_, sizes["d"]):
        refuse(f"has {sizes['k']} components_ of {density.n_samples_} samples (n_samples_) in {sizes['d']} dimensions")
    if density.target == "identity" and (density.scale_ != 1).any():
        refuse("has scale_ that is not 1, and target='identity'")
    _check_orthonormal(density.components_)


def check_neighbors(density: KNNDensity) -> None:
    """Samples at ascending positions among those of the fit, and a positive least distance."""
    positions = density.positions_
    if not density.n_neighbors <= len(density.samples_):
        refuse(f"has n_neighbors={density.n_neighbors} of {len(density.samples_)} samples")
    if not ((np.diff(positions) > 0).all() and positions[0] >= 0 and positions[-1] < density.n_samples_fit_):
        refuse("has samples at positions_ that were not fitted")
    if not density.floor_ > 0:
        refuse(f"has floor_ {brief(density.floor_)}; expected a positive distance")


def check_local_neighbors(density: LocalKNNDensity, sizes: dict[str, int]) -> None:
    """Distances that are not below the least one, and a share."""
    if not (density.distances_ >= density.floor_).all():
        refuse("has distances_ below floor_")
    if not 0 <= density.scaling_ <= 1:
        refuse(f"has scaling_ {brief(density.scaling_)}; expected a share")


def check_auto(density: AutoDensity, sizes: dict[str, int]) -> None:
    """Both parts of one fit, and positive spreads."""
    if not (density.spread_ > 0).all():
        refuse("has spread_ that is not positive")
    fitted = {len(density.held_out_scores_), density.gaussian_.n_samples_, density.neighbors_.n_samples_fit_}
    if len(fitted) > 1:
        refuse(f"has held_out_scores_, gaussian_ and neighbors_ of {sorted(fitted)} samples; expected the same ones")


def check_mixture(mixture: GaussianMixture, sizes: dict[str, int]) -> None:
    """Weights that are shares, and precisions that are positive definite."""
    k, d = sizes["k"], sizes["d"]
    kind = mixture.covariance_type
    shape = {"full": (k, d, d), "tied": (d, d), "diag": (k, d), "spherical": (k,)}[kind]
    for name in ("covariances_", "precisions_", "precisions_cholesky_"):
        if getattr(mixture, name).shape != shape:
            refuse(f"has {name} of shape {getattr(mixture, name).shape}; expected {shape}")
    if mixture.n_components != k:
        refuse(f"has {k} components, and n_components={mixture.n_components}")
    if not ((mixture.weights_ >= 0).all() and math.isclose(mixture.weights_.sum(), 1, rel_tol=1e-6)):
        refuse("has weights_ that are not shares of a whole")
    roots = mixture.precisions_cholesky_
    if kind in ("full", "tied"):
        if np.tril(roots, -1).any():
            refuse("has precisions_cholesky_ that is not upper triangular")
        roots = np.diagonal(roots, axis1=-2, axis2=-1)
    if not (roots > 0).all():
        refuse("has precisions_cholesky_ that is not positive definite")


def check_pca(pca: PCA, sizes: dict[str, int]) -> None:
    """Orthonormal directions of descending variance."""
    variances = pca.explained_variance_
    if not ((variances >= 0).all() and (np.diff(variances) <= 0).all()):
        refuse("has explained_variance_ that is negative, or not in descending order")
    _check_orthonormal(pca.components_)


def check_space(space: FeatureSpace, sizes: dict[str, int]) -> None:
    """Groups that are its features, a density of these, and a scale."""
    if int(space.sizes_.sum()) != sizes["z"] or (space.sizes_ < 1).any():
        refuse("has groups (sizes_) that are not its features")
    if not space.spread_ > 0:
        refuse(f"has spread_ {brief(space.spread_)}; expected a positive number")
    if space.unit_length_ != (space.normalize and not space.discrepancy):
        refuse(f"has unit_length_ {space.unit_length_} that does not go with normalize={space.normalize}")
    if hasattr(space, "whitening_") != (space.explained_variance is not None and not space.discrepancy):
        refuse(f"has whitening_ that does not go with explained_variance={space.explained_variance}")
    expected = sizes["k"] if hasattr(space, "whitening_") else sizes["z"]
    if sizes.get("features", expected) != expected:
        refuse(f"has a density_ of {sizes['features']} features; expected {expected}")
    if not space.standardize and space.location_ != 0:  # spread_ is the inverse of its weight
        refuse("has location_ other than 0, and standardize=False")
    if space.usual_ < space.lowest_:
        refuse(f"has usual_ {space.usual_} below lowest_ {space.lowest_}")


# ----- students


def check_residuals(statistics: ResidualStatistics) -> None:
    """Positive spreads, and a triangular whitening with a positive diagonal."""
    if not (statistics.spread > 0).all():
        refuse("has residuals whose spread is not positive")
    whitening = statistics.whitening
    if np.triu(whitening, 1).any() or not (np.diagonal(whitening) > 0).all():
        refuse("has residuals whose whitening is not lower triangular with a positive diagonal")


def check_ridge(students: Any, sizes: dict[str, int]) -> None:
    """Training discrepancies of its own blocks."""
    if sizes["columns"] != len(students.measures_) * sizes["m"]:
        refuse("has training_discrepancies_ of other blocks than its own")
    check_image_shape(students, sizes)


# ----- detectors


def check_image_shape(part: Any, sizes: dict[str, int]) -> None:
    """As many features as the image has values."""
    shape = getattr(part, "image_shape_", None)
    if shape is not None and hasattr(part, "n_features_in_") and math.prod(shape) != part.n_features_in_:
        refuse(f"has image_shape_ {shape}, and n_features_in_ {part.n_features_in_}")


def _count_discrepancies(detector: TransformalyDetector, sizes: dict[str, int]) -> int:
    """Number of discrepancies that the students measure of an image."""
    return len(detector.students_.measures_) * sizes["m"] if hasattr(detector, "students_") else 0


def check_detector(detector: TransformalyDetector, sizes: dict[str, int]) -> None:
    """Spaces that go with teacher and students, and training scores that are their parts and give the threshold."""
    spaces = detector.feature_spaces_
    if not spaces or list(detector.spaces_) != spaces:
        refuse(f"has no feature spaces, or other spaces_ than it lists: {spaces}")
    expected = {"pretrained": sizes.get("D"), "discrepancy": _count_discrepancies(detector, sizes)}
    for name, space in detector.spaces_.items():
        if expected.get(name, space.n_features_in_) not in (None, space.n_features_in_):
            refuse(f"has a feature space {name!r} of {space.n_features_in_} features; expected {expected[name]}")
    if hasattr(detector, "students_") != ("discrepancy" in spaces):
        refuse(f"has feature spaces {spaces}, which do not go with its students")
    if "discrepancy" in spaces and detector.students_.extractor_ is not detector.extractor_:
        refuse("has students of another teacher")
    if "classes" in spaces and not detector.extractor_.n_classes_:
        refuse("has a space of classes, but its teacher has no classifier")
    if "variation" in spaces and not detector.extractor_.n_places_:
        refuse("has a space of variation over places, but its teacher has features at no places")
    _check_training(detector, sizes)
    check_threshold(detector)
    check_image_shape(detector, sizes)


def _check_training(detector: TransformalyDetector, sizes: dict[str, int]) -> None:
    spaces = detector.feature_spaces_
    if detector.training_parts_.shape[1] != len(spaces):
        refuse("has training_parts_ of other feature spaces than its own")
    if list(detector.training_features_) != spaces:
        refuse("has training_features_ of other feature spaces than its own")
    for name, space in detector.spaces_.items():
        if detector.training_features_[name].shape[1] != space.n_features_in_:
            refuse(f"has training_features_ whose size is not that of the feature space {name!r}")
    if sizes["unseen"] not in (0, _count_discrepancies(detector, sizes)):
        refuse("has training_held_out_ of other blocks than its students'")
    if not np.isin(detector.training_labels_, (1, 0, -1, -2)).all() or not (detector.weights_ > 0).all():
        refuse("has training_labels_ other than 1, 0, -1 and -2, or weights_ that are not positive")
    _check_learned(detector)
    terms = detector.spaces_["discrepancy"] if "discrepancy" in spaces else None
    if detector.training_terms_.shape[1] != (sizes["m"] if hasattr(terms, "term_locations_") else 0):
        refuse("has training_terms_ of other blocks than its students'")
    total = detector.training_parts_.sum(axis=1)
    if not np.array_equal(total, detector.training_scores_, equal_nan=True):
        refuse("has training_scores_ that are not the sums of training_parts_")
    arrays = (detector.training_parts_, detector.training_terms_, *detector.training_features_.values())
    if any(np.isinf(array).any() for array in arrays):
        refuse("has training_parts_, training_terms_ or training_features_ with infinity")
    if detector.training_terms_.shape[1] and "discrepancy" in spaces:
        parts = detector.training_parts_[:, spaces.index("discrepancy")]
        if not np.allclose(detector.training_terms_.sum(axis=1), parts, rtol=1e-6, atol=1e-6, equal_nan=True):
            refuse("has training_terms_ that do not sum to training_parts_")


def _check_learned(detector: TransformalyDetector) -> None:
    """A score and a group for each image that was learned, and no score for others."""
    missing = [np.isnan(z) for z in detector.training_features_.values()]
    unreadable = missing[0].any(axis=1)
    if any((rows != unreadable[:, np.newaxis]).any() for rows in missing):
        refuse("has training_features_ of parts of an image")
    learned = (detector.training_labels_ == LEARNED) & ~unreadable
    if not np.array_equal(learned, ~np.isnan(detector.training_scores_)):
        refuse("has training_scores_ of other images than those that were learned (training_labels_)")
    groups = detector.training_groups_
    if (groups < -1).any() or (groups[learned] < 0).any():
        refuse("has training_groups_ without a number for each image that was learned")


def check_threshold(detector: Any) -> None:
    """An `offset_` that follows from the scores of the fit and from the rate that is asked for."""
    if isinstance(detector, ConformalDetector):
        _check_conformal_threshold(detector)
        return
    if detector.held_out_ != (detector.threshold == "held-out"):
        refuse(f"has held_out_ {detector.held_out_}, and threshold={detector.threshold!r}")
    scores = detector.reference_scores_
    if not len(scores):
        refuse("has no training_scores_ that are numbers")
    if detector.held_out_:
        expected = held_out_threshold(scores, detector.contamination)
    else:
        expected = float(np.quantile(scores, detector.contamination))
    # rounding may differ with the version of numpy
    if not math.isclose(detector.offset_, expected, rel_tol=1e-9, abs_tol=1e-9 * float(np.ptp(scores))):
        refuse(
            f"has offset_ {detector.offset_:.9g}, but contamination={detector.contamination} of its reference_scores_ "
            f"is {expected:.9g}"
        )


def _check_conformal_threshold(detector: ConformalDetector) -> None:
    scores = detector.calibration_scores_
    if not len(scores) or 1 / (len(scores) + 1) > detector.alpha:
        refuse(f"has {len(scores)} calibration_scores_, which are not enough for alpha={detector.alpha}")
    expected = conformal_threshold(scores, detector.alpha)
    if detector.offset_ != expected:
        refuse(
            f"has offset_ {detector.offset_:.9g}, but alpha={detector.alpha} of its calibration_scores_ is "
            f"{expected:.9g}"
        )


def check_conformal(detector: ConformalDetector, sizes: dict[str, int]) -> None:
    """Calibration scores in ascending order, the threshold that follows, and places of the images of the fit."""
    if not (np.diff(detector.calibration_scores_) >= 0).all():
        refuse("has calibration_scores_ that are not in ascending order")
    check_threshold(detector)
    positions = detector.fitted_positions_
    if positions is None:
        return
    if (positions < 0).any() or len(np.unique(positions)) < len(positions):
        refuse("has fitted_positions_ that are negative or not unique")
    inner = innermost(detector)
    if len(positions) > len(inner.training_scores_):  # more by partial_fit
        refuse(f"has {len(positions)} fitted_positions_ of a detector that was fitted on {len(inner.training_scores_)}")
