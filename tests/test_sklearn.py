"""scikit-learn's own checks, over the detector and every part."""

import pytest
from conftest import tiny_detector, tiny_extractor, tiny_students
from sklearn.utils.estimator_checks import parametrize_with_checks

from skl_transformaly import GaussianDensity, KNNDensity, LocalKNNDensity

ESTIMATORS = [
    tiny_detector(),
    tiny_detector(feature_spaces=["pretrained"]),
    tiny_detector(feature_spaces=["discrepancy"]),
    tiny_extractor(),
    tiny_students(extractor=tiny_extractor()),
    GaussianDensity(),
    KNNDensity(),
    LocalKNNDensity(n_neighbors=2),
]


@pytest.mark.filterwarnings("ignore:X is rows of", "ignore:.* pixels are expected in")
@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_check(estimator, check):
    check(estimator)
