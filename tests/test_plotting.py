import subprocess
import sys

import matplotlib
import numpy as np
import pytest
from conftest import tiny_detector
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.metrics import average_precision_score, roc_auc_score

from skl_transformaly import ConformalDetector
from skl_transformaly.plotting import (
    AnomalyPrecisionRecallDisplay,
    AnomalyRocCurveDisplay,
    BlockDiscrepancyDisplay,
    EmbeddingDisplay,
    ExtremeImagesDisplay,
    ScoreHistogramDisplay,
    TrainingHistoryDisplay,
)

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def figures():
    import matplotlib.pyplot as plt

    yield
    plt.close("all")


@pytest.fixture
def labelled(rng):
    """Scores of which anomalies have the lower ones, mostly."""
    y = np.where(rng.random(60) < 0.3, -1, 1)
    return rng.normal(size=60) + y, y


def test_importing_it_loads_neither_torch_nor_matplotlib():
    code = "import sys, skl_transformaly.plotting; print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert answer.stdout.strip() == "[]"


def test_histogram_counts_are_numpys(labelled):
    scores, y = labelled
    display = ScoreHistogramDisplay.from_predictions(scores, y, bins=7)
    edges = np.histogram_bin_edges(scores, 7)
    np.testing.assert_array_equal(display.bin_edges, edges)
    for name, label in (("normal", 1), ("anomaly", -1)):
        np.testing.assert_array_equal(display.counts[name], np.histogram(scores[y == label], edges)[0])
        np.testing.assert_array_equal(display.bars_[name].get_data().values, display.counts[name])


def test_histogram_shows_a_detectors_threshold(fitted):
    detector, X = fitted
    display = ScoreHistogramDisplay.from_estimator(detector, X)
    assert display.threshold_line_.get_xdata()[0] == detector.offset_
    assert sum(display.counts["all"]) == len(X)


def test_histogram_shows_p_values_of_a_conformal_detector(rng):
    X = rng.normal(size=(120, 3))
    detector = ConformalDetector(IsolationForest(n_estimators=10, random_state=0), alpha=0.1, random_state=0).fit(X)
    new = rng.normal(size=(20, 3))
    display = ScoreHistogramDisplay.from_estimator(detector, new)
    order = np.argsort(detector.score_samples(new), kind="stable")
    np.testing.assert_allclose(display.p_line_.get_ydata(), detector.p_values(new)[order])


def test_histogram_says_how_many_lie_beyond_its_bins():
    display = ScoreHistogramDisplay.from_predictions([-5.0, 0.0, 0.5, 1.0, 9.0, 9.5], bins=[0, 1])
    assert display.n_outside == (1, 2)
    assert "1 below; 2 above" in display.ax_.get_xlabel()


def test_histogram_without_a_finite_score_is_refused():
    with pytest.raises(ValueError, match="None of the 2 scores is a finite number"):
        ScoreHistogramDisplay.from_predictions([np.nan, -np.inf])


def test_a_display_is_drawn_where_it_is_told_and_again_elsewhere(labelled):
    import matplotlib.pyplot as plt

    figure, (first, second) = plt.subplots(1, 2)
    display = ScoreHistogramDisplay.from_predictions(*labelled, ax=first)
    assert display.ax_ is first and display.figure_ is figure
    display.plot(ax=second)
    assert display.ax_ is second
    assert len(second.patches) == len(first.patches) == 2


def test_extreme_images_are_the_highest_then_the_lowest(rng):
    images = rng.integers(0, 256, (9, 8, 8, 3), dtype=np.uint8)
    scores = rng.permutation(9).astype(float)
    display = ExtremeImagesDisplay.from_predictions(images, scores, n_images=3)
    assert display.scores.tolist() == [8, 7, 6, 0, 1, 2]
    for position, image in zip(display.positions, display.images):
        np.testing.assert_array_equal(image, images[position])


def test_extreme_images_leave_unreadable_ones_out(rng):
    images = rng.integers(0, 256, (5, 8, 8), dtype=np.uint8)
    display = ExtremeImagesDisplay.from_predictions(images, [np.nan, 1.0, 2.0, 3.0, np.nan], n_images=4)
    assert display.positions.tolist() == [3, 1]


def test_extreme_images_come_with_the_detectors_maps(fitted):
    detector, X = fitted
    display = ExtremeImagesDisplay.from_estimator(detector, X, n_images=2)
    for position, single in zip(display.positions, display.maps):
        np.testing.assert_allclose(single, detector.anomaly_map(X[[position]])[0], rtol=1e-5)
    assert display.axes_.shape == (4, 2)


def test_maps_of_an_estimator_without_any_are_refused(rng):
    X = rng.random((10, 4))
    forest = IsolationForest(n_estimators=5, random_state=0).fit(X)
    with pytest.raises(TypeError, match="IsolationForest has none"):
        ExtremeImagesDisplay.from_estimator(forest, X, maps=True, image_shape=(2, 2))


def test_blocks_show_quantiles_of_discrepancies(rng):
    z, y = rng.random((40, 3)), np.repeat([1, -1], 20)
    display = BlockDiscrepancyDisplay.from_predictions(z, y, block_indices=[4, 5, 7])
    np.testing.assert_allclose(display.lines_["anomaly"].get_ydata(), np.median(z[y == -1], axis=0))
    np.testing.assert_allclose(display.quantiles["normal"][2], np.quantile(z[y == 1], 0.95, axis=0))
    assert display.lines_["normal"].get_xdata().tolist() == [4, 5, 7]


def test_blocks_of_a_detector_are_in_units_of_its_training_images(fitted):
    detector, X = fitted
    display = BlockDiscrepancyDisplay.from_estimator(detector, X)
    usual = detector.students_.transform(X).mean(axis=0)
    expected = np.median(detector.students_.transform(X) / usual, axis=0)
    np.testing.assert_allclose(display.quantiles["all"][1], expected, rtol=1e-6)


def test_blocks_without_students_are_refused(rng):
    forest = IsolationForest(n_estimators=5, random_state=0).fit(rng.random((10, 4)))
    with pytest.raises(TypeError, match="no students in IsolationForest"):
        BlockDiscrepancyDisplay.from_estimator(forest, rng.random((2, 4)))


def test_embedding_is_scikit_learns_pca(rng):
    features = rng.normal(size=(30, 5)) * [5, 3, 1, 1, 1]
    display = EmbeddingDisplay.from_predictions(features)
    np.testing.assert_allclose(np.abs(display.coordinates), np.abs(PCA(2).fit_transform(features)), atol=1e-9)


def test_embedding_colours_classes_and_leaves_nan_out(rng):
    features = rng.normal(size=(20, 4))
    features[3] = np.nan
    y = np.repeat(["a", "b"], 10)
    display = EmbeddingDisplay.from_predictions(features, y)
    assert np.isnan(display.coordinates[3]).all() and np.isfinite(np.delete(display.coordinates, 3, axis=0)).all()
    assert sorted(display.scatters_) == ["a", "b"]


@pytest.mark.parametrize("space", ["pretrained", "discrepancy"])
def test_embedding_of_a_detector_has_its_training_images_behind(fitted, space):
    detector, X = fitted
    display = EmbeddingDisplay.from_estimator(detector, X[:5], space=space)
    assert display.coordinates.shape == (5, 2)
    # the same images as in training lie at the same places
    np.testing.assert_allclose(display.coordinates, display.training[:5], atol=1e-4)


def test_history_is_the_students(fitted):
    detector, _ = fitted
    display = TrainingHistoryDisplay.from_estimator(detector)
    for index, history in detector.students_.history_.items():
        np.testing.assert_array_equal(display.lines_[index, "loss"].get_ydata(), history["loss"])


@pytest.mark.parametrize("pos_label", [-1, 1])
def test_roc_is_not_inverted(labelled, pos_label):
    scores, y = labelled
    display = AnomalyRocCurveDisplay.from_predictions(y, scores, pos_label=pos_label)
    assert display.roc_auc == pytest.approx(roc_auc_score(y == 1, scores))


@pytest.mark.parametrize("pos_label", [-1, 1])
def test_precision_recall_is_of_the_positive_class(labelled, pos_label):
    scores, y = labelled
    display = AnomalyPrecisionRecallDisplay.from_predictions(y, scores, pos_label=pos_label)
    assert display.average_precision == pytest.approx(average_precision_score(y == pos_label, pos_label * scores))


def test_curve_of_a_detector_is_that_of_its_scores(rng):
    images = rng.integers(0, 256, (16, 20, 24, 3), dtype=np.uint8)
    y = np.repeat([1, -1], 8)
    detector = tiny_detector(feature_spaces=["pretrained"]).fit(images[:8])
    display = AnomalyRocCurveDisplay.from_estimator(detector, images, y)
    assert display.roc_auc == pytest.approx(roc_auc_score(y, detector.score_samples(images)))


@pytest.mark.parametrize("y, message", [([0, 1, 0, 1], r"\+1"), ([1, 1, 1, 1], "needs both labels")])
def test_labels_that_would_mislead_are_refused(y, message):
    with pytest.raises(ValueError, match=message):
        AnomalyRocCurveDisplay.from_predictions(y, [0.1, 0.2, 0.3, 0.4])
