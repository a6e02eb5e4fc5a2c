"""scikit-learn's ``transform_output``: users get data frames, and what the package itself computes stays as it is."""

import numpy as np
import pandas as pd
import pytest
import sklearn
from conftest import tiny_detector, tiny_extractor, tiny_students
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from skl_transformaly import ConformalDetector, KNNDensity, RidgeStudents, TransformalyDetector
from skl_transformaly.model_selection import NormalOnly
from skl_transformaly.plotting import EmbeddingDisplay

DETECTORS = {
    "all spaces": lambda: tiny_detector(),
    "whitened": lambda: tiny_detector(feature_spaces=["pretrained", "discrepancy"], explained_variance=0.9),
    "discrepancy alone": lambda: tiny_detector(feature_spaces=["discrepancy"]),
    "trained students": lambda: tiny_detector(feature_spaces=["discrepancy"], students=tiny_students()),
    "densities in pipelines": lambda: tiny_detector(
        feature_spaces=["pretrained", "discrepancy"],
        density=make_pipeline(StandardScaler(), PCA(3), GaussianMixture(2, random_state=0)),
        discrepancy_density=make_pipeline(StandardScaler(), KNNDensity()),
    ),
    "conformal": lambda: ConformalDetector(tiny_detector(feature_spaces=["discrepancy"]), alpha=0.4, random_state=0),
}


def results(detector, new):
    table = detector.explain(new)
    return {
        "decision_function": detector.decision_function(new),
        "predict": detector.predict(new),
        "p_values": detector.p_values(new),
        "transform": detector.transform(new),
        "anomaly_map": np.stack(detector.anomaly_map(new)) if "discrepancy" in table else np.zeros(1),
        **{name: column for name, column in table.items() if column.dtype != object},
    }


@pytest.mark.parametrize("case", DETECTORS)
def test_results_do_not_depend_on_the_container_that_is_set(case, images):
    new = 255 - images[:4]
    expected = results(DETECTORS[case]().fit(images), new)
    with sklearn.config_context(transform_output="pandas"):
        found = results(DETECTORS[case]().fit(images), new)
    assert isinstance(found["transform"], pd.DataFrame)
    for name, values in expected.items():
        np.testing.assert_allclose(found[name], values, rtol=1e-6, atol=1e-9, err_msg=name)


@pytest.mark.parametrize("form", ["array", "list", "Series of images"])
@pytest.mark.parametrize(
    "make",
    [
        lambda: tiny_detector(feature_spaces=["pretrained"]),
        tiny_extractor,
        lambda: tiny_students(extractor=tiny_extractor()),
        lambda: RidgeStudents(n_blocks=2, extractor=tiny_extractor()),
        lambda: make_pipeline(tiny_extractor(), StandardScaler(), PCA(2)),
        lambda: make_pipeline(StandardScaler(), PCA(3), tiny_detector(feature_spaces=["pretrained"])),
    ],
)
@pytest.mark.filterwarnings("ignore:.*rows of", "ignore:.*used as they are", "ignore:X has feature names")
def test_features_come_as_a_data_frame(make, form, images):
    X = {"array": images, "list": list(images), "Series of images": pd.Series(list(images), index=np.arange(12) + 5)}[
        form
    ]
    estimator = make()
    if isinstance(getattr(estimator, "steps", [("", None)])[0][1], StandardScaler):
        X = images.reshape(len(images), -1)
    with sklearn.config_context(transform_output="pandas"):
        features = estimator.fit_transform(X)
        assert isinstance(features, pd.DataFrame)
        assert len(features) == len(images)
        np.testing.assert_allclose(estimator.transform(X), features, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(estimator.transform(X), features, rtol=1e-5, atol=1e-6)


def test_pipelines_and_wrappers_score_alike(images):
    y = np.where(np.arange(12) < 10, 1, -1)

    def scores():
        pipeline = make_pipeline(tiny_extractor(), StandardScaler(), IsolationForest(random_state=0)).fit(images)
        only = NormalOnly(TransformalyDetector(**tiny_detector(feature_spaces=["discrepancy"]).get_params(False)))
        return pipeline.score_samples(images), only.fit(images, y).explain(images)["neighbor0"]

    expected = scores()
    with sklearn.config_context(transform_output="pandas"):
        for found, values in zip(scores(), expected):
            np.testing.assert_allclose(found, values)


def test_displays_draw_what_is_transformed(images):
    pytest.importorskip("matplotlib").use("Agg")
    detector = tiny_detector(feature_spaces=["pretrained"]).fit(images)
    with sklearn.config_context(transform_output="pandas"):
        EmbeddingDisplay.from_estimator(detector, images)
