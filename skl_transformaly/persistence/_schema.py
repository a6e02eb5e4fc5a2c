"""What a saved detector consists of: `PARTS` lists the classes that a file may name, and their fitted attributes.

An attribute that is not listed is left out with a warning in saving, and an error in loading.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.frozen import FrozenEstimator
from sklearn.mixture import GaussianMixture

from skl_transformaly._calibration import ConformalDetector
from skl_transformaly._density import AutoDensity, GaussianDensity, KNNDensity, LocalKNNDensity
from skl_transformaly._detector import TransformalyDetector
from skl_transformaly._space import FeatureSpace
from skl_transformaly.images._sequence import DIGEST_SIZE
from skl_transformaly.images._thumbnails import THUMBNAIL_SIZE, all_grey
from skl_transformaly.model_selection import NormalOnly
from skl_transformaly.persistence import _fields as f
from skl_transformaly.persistence import _invariants as invariants
from skl_transformaly.persistence import _networks as networks
from skl_transformaly.students._block import BlockStudents
from skl_transformaly.students._ridge import RidgeStudents
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.teacher._features import SPACES
from skl_transformaly.teacher._stored import MAX_IMAGE_SIZE
from skl_transformaly.utils._files import absolute_path
from skl_transformaly.utils._labels import LEARNED
from skl_transformaly.utils._torch import PRECISIONS

if TYPE_CHECKING:
    from skl_transformaly.persistence._reader import Reader
    from skl_transformaly.persistence._writer import Writer

__all__ = ["DETECTORS", "LEFT_OUT", "PARTS", "Spec"]

# Parameters that name places on this machine, and do not describe the detector.
LEFT_OUT = frozenset(("memory", "checkpoint"))


@dataclass(frozen=True)
class Spec:
    """A class that a file may name."""

    cls: Any
    # what `fit` sets and is stored as it is, in the order in which it is checked
    attributes: Mapping[str, f.Check] = field(default_factory=dict)
    optional: frozenset[str] = frozenset()  # those of them that may be missing
    derived: frozenset[str] = frozenset()  # not stored: `restore` makes them, or they belong to this process alone
    packed: Mapping[str, f.Check] = field(default_factory=dict)  # what `pack` returns, not stored as it is
    pack: Callable[[Any, Writer], dict[str, Any]] = lambda part, writer: {}
    restore: Callable[[Any, dict[str, Any], Reader], None] = lambda part, packed, reader: None
    # changes parameters that mean something on this machine alone
    portable: Callable[[dict[str, Any]], dict[str, Any]] = lambda params: params
    # refuses attributes that do not go together; sizes are those of the axes
    check: Callable[[Any, dict[str, int]], None] = lambda part, sizes: None


def _restore_neighbors(density: KNNDensity, packed: dict[str, Any], reader: Reader) -> None:
    invariants.check_neighbors(density)
    density.restore(density.samples_, density.floor_)


def _restore_detector(detector: TransformalyDetector, packed: dict[str, Any], reader: Reader) -> None:
    """Have clones of a detector whose teacher is named load it from the file, not from timm's hub."""
    detector.grey_ = all_grey(detector.training_thumbnails_[detector.training_labels_ == LEARNED])
    named = isinstance(detector.extractor, str)
    if named and getattr(detector.extractor_, "weights", None) == absolute_path(reader.file.path):
        detector.extractor = clone(detector.extractor_)


def _without_images(params: dict[str, Any]) -> dict[str, Any]:
    """Parameters of a conformal detector without calibration images, which scoring does not need."""
    return {**params, "calibration": ()} if isinstance(params["calibration"], tuple) else params


def _check_frozen(frozen: FrozenEstimator, sizes: dict[str, int]) -> None:
    if type(frozen.estimator).__name__ not in DETECTORS or not frozen.__sklearn_is_fitted__():
        f.refuse("holds no fitted detector")


DETECTORS = ("TransformalyDetector", "ConformalDetector", "NormalOnly", "FrozenEstimator")
_DENSITIES = ("AutoDensity", "GaussianDensity", "KNNDensity", "LocalKNNDensity", "GaussianMixture")
_REAL = ("float64", "float32")
_PLACES = ("int64",)

# what ImageInputMixin sets
_IMAGES = {
    "image_shape_": f.optional(f.sides(3)),
    "n_features_in_": f.count(1, axis="features"),
    "feature_names_in_": f.names("features"),
}
_IMAGES_OPTIONAL = frozenset(("n_features_in_", "feature_names_in_"))
# what scikit-learn's validate_data sets
_ROWS = {"n_features_in_": f.count(1, axis="d"), "feature_names_in_": f.names("d")}
_ROWS_OPTIONAL = frozenset(("feature_names_in_",))

_NEIGHBORS = {
    **_ROWS,
    "samples_": f.array("n", "d", dtypes=_REAL),
    "positions_": f.array("n", dtypes=_PLACES),
    "floor_": f.number(),
    "n_samples_fit_": f.count(2),
}

_F32 = ("float32",)
_RESIDUALS = f.optional(
    f.fields(
        mean=f.array("C", "h", "w", dtypes=_F32),
        whitening=f.array("C", "C", dtypes=_F32),
        level=f.array("h", "w", dtypes=_F32),
        spread=f.array("h", "w", dtypes=_F32),
    )
)
_STUDENTS_DERIVED = frozenset(("residuals_", "cache_keys_"))
_RIDGE_OWN = frozenset(
    ("local_weights_", "context_weights_", "_layouts", "_sizes", "_modules", "_inverses", "_sums", "_times")
)
_LAYOUT = f.fields(
    tokens=f.flag, prefix=f.count(high=10_000), channels_last=f.flag, residual=f.flag, kernel=f.count(1, high=3)
)

_PARTS = (
    Spec(
        TimmExtractor,
        {
            **_IMAGES,
            "embedding_size_": f.count(1, axis="D"),
            "image_size_": f.sides(2, high=MAX_IMAGE_SIZE),
            "precision_": f.text(*PRECISIONS),
            "weights_sha256_": f.text(length=64),
        },
        _IMAGES_OPTIONAL,
        frozenset(("_teacher", "settings_")),
        {"teacher": f.count()},
        networks.pack_teacher,
        networks.restore_teacher,
        networks.portable_extractor,
        invariants.check_image_shape,
    ),
    Spec(
        BlockStudents,
        {**_IMAGES, "extractor_": f.part("TimmExtractor"), "block_indices_": f.array("m", dtypes=_PLACES)},
        _IMAGES_OPTIONAL,
        _STUDENTS_DERIVED | {"students_", "history_"},
        {
            "students": f.each(
                f.fields(
                    network=f.text(), history=f.table(f.text(), f.each(f.number(finite=False))), residuals=_RESIDUALS
                )
            )
        },
        networks.pack_block_students,
        networks.restore_block_students,
        check=invariants.check_image_shape,
    ),
    Spec(
        RidgeStudents,
        {
            **_IMAGES,
            "extractor_": f.part("TimmExtractor"),
            "block_indices_": f.array("m", dtypes=_PLACES),
            "updates_": f.flag,
            "training_discrepancies_": f.array("n", "columns", nan=True),
            "held_out_discrepancies_": f.array("n", "columns", nan=True),
        },
        _IMAGES_OPTIONAL,
        _STUDENTS_DERIVED | _RIDGE_OWN,
        {
            "students": f.each(
                f.fields(
                    layout=_LAYOUT,
                    size=f.sides(2, low=0),
                    local=f.array("C", "F", dtypes=_REAL),
                    context=f.array("C", "Q", dtypes=_REAL),
                    residuals=_RESIDUALS,
                )
            )
        },
        networks.pack_ridge_students,
        networks.restore_ridge_students,
        check=invariants.check_ridge,
    ),
    Spec(
        GaussianDensity,
        {
            **_ROWS,
            "mean_": f.array("d"),
            "scale_": f.array("d"),
            "variances_": f.array("k"),
            "components_": f.array("k", "d"),
            "floor_": f.number(),
            "shrinkage_": f.number(),
            "n_samples_": f.count(2),
        },
        _ROWS_OPTIONAL,
        check=invariants.check_gaussian,
    ),
    Spec(
        KNNDensity,
        _NEIGHBORS,
        _ROWS_OPTIONAL,
        frozenset(("neighbors_", "_origin")),
        restore=_restore_neighbors,
    ),
    Spec(
        LocalKNNDensity,
        {**_NEIGHBORS, "distances_": f.array("n"), "scaling_": f.number()},
        _ROWS_OPTIONAL,
        frozenset(("neighbors_", "_origin")),
        restore=_restore_neighbors,
        check=invariants.check_local_neighbors,
    ),
    Spec(
        AutoDensity,
        {
            **_ROWS,
            "gaussian_": f.part("GaussianDensity", d="d"),
            "neighbors_": f.part("LocalKNNDensity", d="d"),
            "location_": f.array(2),
            "spread_": f.array(2),
            "held_out_scores_": f.array("n"),
        },
        _ROWS_OPTIONAL,
        check=invariants.check_auto,
    ),
    Spec(
        GaussianMixture,
        {
            **_ROWS,
            "weights_": f.array("k"),
            "means_": f.array("k", "d"),
            "covariances_": f.array(),
            "precisions_": f.array(),
            "precisions_cholesky_": f.array(),
            "converged_": f.flag,
            "n_iter_": f.count(),
            "lower_bound_": f.number(finite=False),
            "lower_bounds_": f.each(f.number(finite=False)),
        },
        _ROWS_OPTIONAL | {"lower_bounds_"},  # from scikit-learn 1.7 on
        check=invariants.check_mixture,
    ),
    Spec(
        PCA,
        {
            **_ROWS,
            "n_components_": f.count(1, axis="k"),
            "n_samples_": f.count(1),
            "mean_": f.array("d"),
            "components_": f.array("k", "d"),
            "explained_variance_": f.array("k"),
            "explained_variance_ratio_": f.array("k"),
            "singular_values_": f.array("k"),
            "noise_variance_": f.number(),
        },
        _ROWS_OPTIONAL,
        frozenset(("_fit_svd_solver",)),  # which only fit uses
        check=invariants.check_pca,
    ),
    Spec(
        FeatureSpace,
        {
            "n_features_in_": f.count(1, axis="z"),
            "sizes_": f.array("groups", dtypes=_PLACES),
            "unit_length_": f.flag,
            "whitening_": f.part("PCA", d="z", k="k"),
            "density_": f.part(*_DENSITIES, d="features"),
            "location_": f.number(),
            "spread_": f.number(),
            "usual_": f.number(),
            "lowest_": f.number(),
            "term_locations_": f.array("features"),
        },
        frozenset(("whitening_", "term_locations_")),
        check=invariants.check_space,
    ),
    Spec(
        TransformalyDetector,
        {
            **_IMAGES,
            "extractor_": f.part("TimmExtractor", D="D"),
            "students_": f.part("RidgeStudents", "BlockStudents", m="m"),
            "feature_spaces_": f.each(f.text(*SPACES)),
            "spaces_": f.table(f.text(*SPACES), f.part("FeatureSpace")),
            "offset_": f.number(),
            "held_out_": f.flag,
            "training_scores_": f.array("n", nan=True),
            "training_parts_": f.array("n", "S", nan=True),
            "training_terms_": f.array("n", "terms", nan=True),
            "training_labels_": f.array("n", dtypes=("int8",)),
            "training_groups_": f.array("n", dtypes=_PLACES),
            "training_features_": f.table(f.text(*SPACES), f.array("n", None, dtypes=_REAL, nan=True)),
            "training_held_out_": f.array("n", "unseen", nan=True),
            "training_digests_": f.array("n", DIGEST_SIZE, dtypes=("uint8",)),
            "training_thumbnails_": f.array("n", THUMBNAIL_SIZE, dtypes=("uint8",)),
            "weights_": f.array("S"),
        },
        _IMAGES_OPTIONAL | {"students_"},
        frozenset(("_images_seen", "grey_")),
        restore=_restore_detector,
        check=invariants.check_detector,
    ),
    Spec(
        ConformalDetector,
        {
            "estimator_": f.part(*DETECTORS),
            "calibration_scores_": f.array("n"),
            "offset_": f.number(),
            "fitted_positions_": f.optional(f.array("fitted", dtypes=_PLACES)),
        },
        portable=_without_images,
        check=invariants.check_conformal,
    ),
    Spec(
        NormalOnly,
        {"estimator_": f.part(*DETECTORS), "fitted_positions_": f.optional(f.array("fitted", dtypes=_PLACES))},
    ),
    Spec(FrozenEstimator, check=_check_frozen),
)

PARTS: dict[str, Spec] = {spec.cls.__name__: spec for spec in _PARTS}
