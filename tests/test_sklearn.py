"""scikit-learn's own checks, over the detector and every part."""

import pytest
from conftest import tiny_detector, tiny_extractor, tiny_paper, tiny_students
from sklearn.utils.estimator_checks import parametrize_with_checks

from skl_transformaly import AutoDensity, ConformalDetector, GaussianDensity, KNNDensity, LocalKNNDensity, RidgeStudents

ESTIMATORS = [
    tiny_detector(),
    tiny_detector(feature_spaces=["pretrained"]),
    tiny_detector(feature_spaces=["discrepancy"]),
    tiny_extractor(),
    tiny_students(extractor=tiny_extractor()),
    RidgeStudents(n_blocks=2, extractor=tiny_extractor()),
    ConformalDetector(tiny_detector(), alpha=0.2, calibration="held-out"),
    AutoDensity(),
    GaussianDensity(),
    KNNDensity(),
    LocalKNNDensity(n_neighbors=2),
]


@pytest.mark.filterwarnings("ignore:X is rows of", "ignore:.* pixels are expected in")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check):
    check(estimator)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:X is rows of", "ignore:.* pixels are expected in")
@parametrize_with_checks([tiny_paper(), ConformalDetector(tiny_detector(), alpha=0.2, calibration=0.5)])
def test_scikit_learn_check_of_slower_estimators(estimator, check):
    check(estimator)
