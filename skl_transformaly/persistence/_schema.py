"""What a saved detector consists of: `PARTS` lists the classes that a file may name, and their fitted attributes.

An attribute that is not listed is an error, both in saving and in loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._density import AutoDensity, GaussianDensity, KNNDensity
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._space import FeatureSpace
from skl_transformaly.images._sequence import DIGEST_SIZE, THUMBNAIL_SIZE
from skl_transformaly.model_selection import NormalOnly
from skl_transformaly.persistence._fields import (
    Check,
    array,
    count,
    each,
    fields,
    flag,
    names,
    number,
    optional,
    part,
    refuse,
    sides,
    table,
    text,
)
from skl_transformaly.persistence._invariants import (
    check_auto,
    check_conformal,
    check_detector,
    check_gaussian,
    check_image_shape,
    check_mixture,
    check_neighbors,
    check_pca,
    check_ridge,
    check_space,
)
from skl_transformaly.persistence._networks import (
    pack_block_students,
    pack_ridge_students,
    pack_teacher,
    portable_extractor,
    restore_block_students,
    restore_ridge_students,
    restore_teacher,
)
from skl_transformaly.students._block import BlockStudents
from skl_transformaly.students._ridge import RidgeStudents
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.teacher._features import SPACES
from skl_transformaly.teacher._stored import MAX_IMAGE_SIZE
from skl_transformaly.utils._torch import PRECISIONS

if TYPE_CHECKING:
    from skl_transformaly.persistence._reader import Reader
    from skl_transformaly.persistence._writer import Writer

__all__ = ["DETECTORS", "LEFT_OUT", "PARTS", "Spec"]

# Parameters that name places on this machine, and do not describe the detector.
LEFT_OUT = frozenset(("memory", "checkpoint"))


@dataclass(frozen=True)
class Spec:
    """A class that a file may name.

    Attributes
    ----------
    cls : type
    attributes : dict of str to Check
        Attributes that `fit` sets and that are stored as they are, in the order in which they are checked.
    optional : set of str
        Those of them that may be missing.
    derived : set of str
        Attributes that are not stored: `restore` makes them again, or they belong to this process alone.
    packed : dict of str to Check
        What ``pack(part, writer)`` returns, and ``restore(part, packed, reader)`` makes attributes of: state that is
        not stored as it is.
    portable : callable
        Changes parameters that mean something on this machine alone.
    check : callable
        ``check(part, sizes)`` refuses attributes that do not go together; `sizes` are those of the axes.
    """

    cls: Any
    attributes: Mapping[str, Check] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()
    derived: frozenset[str] = frozenset()
    packed: Mapping[str, Check] = field(default_factory=dict)
    pack: Callable[[Any, Writer], dict[str, Any]] = lambda part, writer: {}
    restore: Callable[[Any, dict[str, Any], Reader], None] = lambda part, packed, reader: None
    portable: Callable[[dict[str, Any]], dict[str, Any]] = lambda params: params
    check: Callable[[Any, dict[str, int]], None] = lambda part, sizes: None


def _restore_neighbors(density: KNNDensity, packed: dict[str, Any], reader: Reader) -> None:
    check_neighbors(density)
    density.restore(density.samples_, density.floor_)


def _without_images(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a conformal detector without calibration images, which scoring does not need."""
    return {**params, "calibration": ()} if isinstance(params["calibration"], tuple) else params


def _check_frozen(frozen: FrozenEstimator, sizes: dict[str, int]) -> None:
    if type(frozen.estimator).__name__ not in DETECTORS or not frozen.__sklearn_is_fitted__():
        refuse("holds no fitted detector")


DETECTORS = ("TransformalyDetector", "ConformalDetector", "NormalOnly", "FrozenEstimator")
_DENSITIES = ("AutoDensity", "GaussianDensity", "KNNDensity", "GaussianMixture")
_REAL = ("float64", "float32")
_PLACES = ("int64",)

# what ImageInputMixin sets
_IMAGES = {
    "image_shape_": optional(sides(3)),
    "n_features_in_": count(1, axis="features"),
    "feature_names_in_": names("features"),
}
# what scikit-learn's validate_data sets
_ROWS = {"n_features_in_": count(1, axis="d"), "feature_names_in_": names("d")}
_ROWS_OPTIONAL = frozenset(("feature_names_in_",))

_F32 = ("float32",)
_RESIDUALS = optional(
    fields(
        mean=array("C", "h", "w", dtypes=_F32),
        whitening=array("C", "C", dtypes=_F32),
        level=array("h", "w", dtypes=_F32),
        spread=array("h", "w", dtypes=_F32),
    )
)
_LAYOUT = fields(tokens=flag, prefix=count(high=10_000), channels_last=flag, residual=flag, kernel=count(1, high=3))

_PARTS = (
    Spec(
        TimmExtractor,
        {
            **_IMAGES,
            "embedding_size_": count(1, axis="D"),
            "image_size_": sides(2, high=MAX_IMAGE_SIZE),
            "precision_": text(*PRECISIONS),
            "weights_sha256_": text(length=64),
        },
        frozenset(_IMAGES),
        frozenset(("_teacher", "settings_")),
        {"teacher": count()},
        pack_teacher,
        restore_teacher,
        portable_extractor,
        check_image_shape,
    ),
    Spec(
        BlockStudents,
        {**_IMAGES, "extractor_": part("TimmExtractor"), "block_indices_": array("m", dtypes=_PLACES)},
        frozenset(_IMAGES),
        frozenset(("students_", "history_", "cache_keys_", "residuals_")),
        {
            "students": each(
                fields(network=text(), history=table(text(), each(number(finite=False))), residuals=_RESIDUALS)
            )
        },
        pack_block_students,
        restore_block_students,
        check=check_image_shape,
    ),
    Spec(
        RidgeStudents,
        {
            **_IMAGES,
            "extractor_": part("TimmExtractor"),
            "block_indices_": array("m", dtypes=_PLACES),
            "updates_": flag,
            "training_discrepancies_": array("n", "columns", nan=True),
            "held_out_discrepancies_": array("n", "columns", nan=True),
        },
        frozenset(_IMAGES),
        frozenset(
            ("local_weights_", "context_weights_", "cache_keys_", "residuals_", "_layouts", "_sizes")
            + ("_modules", "_inverses")
        ),
        {
            "students": each(
                fields(
                    layout=_LAYOUT,
                    size=sides(2, low=0),
                    local=array("C", "F", dtypes=_REAL),
                    context=array("C", "Q", dtypes=_REAL),
                    residuals=_RESIDUALS,
                )
            )
        },
        pack_ridge_students,
        restore_ridge_students,
        check=check_ridge,
    ),
    Spec(
        GaussianDensity,
        {
            **_ROWS,
            "mean_": array("d"),
            "scale_": array("d"),
            "variances_": array("k"),
            "components_": array("k", "d"),
            "floor_": number(),
            "shrinkage_": number(),
            "n_samples_": count(2),
        },
        _ROWS_OPTIONAL,
        check=check_gaussian,
    ),
    Spec(
        KNNDensity,
        {
            **_ROWS,
            "samples_": array("n", "d"),
            "positions_": array("n", dtypes=_PLACES),
            "floor_": number(),
            "n_samples_fit_": count(2),
        },
        _ROWS_OPTIONAL,
        frozenset(("neighbors_",)),
        restore=_restore_neighbors,
    ),
    Spec(
        AutoDensity,
        {
            **_ROWS,
            "gaussian_": part("GaussianDensity", d="d"),
            "neighbors_": part("KNNDensity", d="d"),
            "location_": array(2),
            "spread_": array(2),
            "held_out_scores_": array("n"),
        },
        _ROWS_OPTIONAL,
        check=check_auto,
    ),
    Spec(
        GaussianMixture,
        {
            **_ROWS,
            "weights_": array("k"),
            "means_": array("k", "d"),
            "covariances_": array(),
            "precisions_": array(),
            "precisions_cholesky_": array(),
            "converged_": flag,
            "n_iter_": count(),
            "lower_bound_": number(finite=False),
            "lower_bounds_": each(number(finite=False)),
        },
        _ROWS_OPTIONAL | {"lower_bounds_"},  # from scikit-learn 1.7 on
        check=check_mixture,
    ),
    Spec(
        PCA,
        {
            **_ROWS,
            "n_components_": count(1, axis="k"),
            "n_samples_": count(1),
            "mean_": array("d"),
            "components_": array("k", "d"),
            "explained_variance_": array("k"),
            "explained_variance_ratio_": array("k"),
            "singular_values_": array("k"),
            "noise_variance_": number(),
        },
        _ROWS_OPTIONAL,
        frozenset(("_fit_svd_solver",)),  # which only fit uses
        check=check_pca,
    ),
    Spec(
        FeatureSpace,
        {
            "n_features_in_": count(1, axis="z"),
            "sizes_": array("groups", dtypes=_PLACES),
            "whitening_": part("PCA", d="z", k="k"),
            "density_": part(*_DENSITIES, d="features"),
            "location_": number(),
            "spread_": number(),
            "usual_": number(),
            "lowest_": number(),
            "term_locations_": array("features"),
        },
        frozenset(("whitening_", "term_locations_")),
        check=check_space,
    ),
    Spec(
        TransformalyDetector,
        {
            **_IMAGES,
            "extractor_": part("TimmExtractor", D="D"),
            "students_": part("RidgeStudents", "BlockStudents", m="m"),
            "feature_spaces_": each(text(*SPACES)),
            "spaces_": table(text(*SPACES), part("FeatureSpace")),
            "offset_": number(),
            "held_out_": flag,
            "training_scores_": array("n", nan=True),
            "training_parts_": array("n", "S", nan=True),
            "training_terms_": array("n", "terms", nan=True),
            "training_labels_": array("n", dtypes=("int8",)),
            "training_groups_": array("n", dtypes=_PLACES),
            "training_features_": table(text(*SPACES), array("n", None, dtypes=_REAL, nan=True)),
            "training_held_out_": array("n", "unseen", nan=True),
            "training_digests_": array("n", DIGEST_SIZE, dtypes=("uint8",)),
            "training_thumbnails_": array("n", THUMBNAIL_SIZE, dtypes=("uint8",)),
            "weights_": array("S"),
        },
        frozenset(_IMAGES) | {"students_"},
        frozenset(("_images_seen",)),
        check=check_detector,
    ),
    Spec(
        ConformalDetector,
        {
            "estimator_": part(*DETECTORS),
            "calibration_scores_": array("n"),
            "offset_": number(),
            "fitted_positions_": optional(array("fitted", dtypes=_PLACES)),
        },
        portable=_without_images,
        check=check_conformal,
    ),
    Spec(
        NormalOnly,
        {"estimator_": part(*DETECTORS), "fitted_positions_": optional(array("fitted", dtypes=_PLACES))},
    ),
    Spec(FrozenEstimator, check=_check_frozen),
)

PARTS: dict[str, Spec] = {spec.cls.__name__: spec for spec in _PARTS}
