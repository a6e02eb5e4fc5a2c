"""Displays: what they compute, and that what is drawn is what was computed."""

import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.metrics import average_precision_score, roc_auc_score
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM

matplotlib = pytest.importorskip("matplotlib")
matplotlib.use("Agg")
import matplotlib.pyplot as plt
from conftest import tiny_detector, tiny_paper

from skl_transformaly import ConformalDetector
from skl_transformaly.model_selection import NormalOnly, OneClassSplit
from skl_transformaly.plotting import (
    AnomalyPrecisionRecallDisplay,
    AnomalyRocCurveDisplay,
    EmbeddingDisplay,
    ExtremeImagesDisplay,
    ScoreHistogramDisplay,
    TrainingHistoryDisplay,
)


@pytest.fixture(autouse=True)
def close_figures():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def rows():
    """Rows, normal and not, and a forest fitted on others like the normal ones."""
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(size=(60, 2)), rng.normal(4, 1, size=(20, 2))])
    forest = IsolationForest(n_estimators=20, random_state=0).fit(rng.normal(size=(100, 2)))
    return X, np.repeat([1, -1], [60, 20]), forest


def heights(patch) -> np.ndarray:
    return patch.get_data().values


# Score histogram


def test_histogram_counts_are_those_of_numpy(rows):
    X, y, forest = rows
    display = ScoreHistogramDisplay.from_estimator(forest, X, y, bins=7)
    scores = forest.score_samples(X)
    edges = np.histogram_bin_edges(scores, 7)
    np.testing.assert_array_equal(display.bin_edges, edges)
    for name, label in {"normal": 1, "anomaly": -1}.items():
        expected = np.histogram(scores[y == label], edges)[0]
        np.testing.assert_array_equal(display.counts[name], expected)
        np.testing.assert_array_equal(heights(display.bars_[name]), expected)
        np.testing.assert_array_equal(display.bars_[name].get_data().edges, edges)


def test_threshold_line_separates_what_predict_separates(rows):
    X, _, forest = rows
    display = ScoreHistogramDisplay.from_estimator(forest, X, bins=[-np.inf, 0, 1])
    at = display.threshold_line_.get_xdata()[0]
    assert at == forest.offset_
    np.testing.assert_array_equal(forest.score_samples(X) >= at, forest.predict(X) == 1)


def test_without_offset_the_decision_function_is_drawn(rows):
    X, _, _ = rows
    pipeline = make_pipeline(StandardScaler(), IsolationForest(n_estimators=5, random_state=0)).fit(X)
    display = ScoreHistogramDisplay.from_estimator(pipeline, X)
    assert display.threshold == 0
    decisions = pipeline.decision_function(X)
    np.testing.assert_array_equal(display.counts["all"], np.histogram(decisions, display.bin_edges)[0])
    assert display.ax_.get_xlabel().startswith("decision")


def test_p_values_are_drawn_against_scores(rows):
    X, y, forest = rows
    detector = ConformalDetector(forest, calibration=0.5, random_state=0).fit(X[y == 1])
    display = ScoreHistogramDisplay.from_estimator(detector, X, y)
    x, p = display.p_line_.get_data()
    scores = detector.score_samples(X)
    order = np.argsort(scores, kind="stable")
    np.testing.assert_allclose(x, scores[order])
    np.testing.assert_array_equal(p, detector.p_values(X)[order])
    assert (np.diff(p) >= 0).all()
    # the threshold is where p-values pass alpha
    np.testing.assert_array_equal(x >= display.threshold, p > detector.alpha)


def test_a_detectors_own_p_values_are_drawn(fitted):
    detector, X = fitted
    display = ScoreHistogramDisplay.from_estimator(detector, X)
    assert display.threshold == detector.offset_
    np.testing.assert_allclose(display.p_line_.get_ydata(), np.sort(detector.p_values(X)))
    trusting = tiny_paper(threshold="training").fit(X)
    assert ScoreHistogramDisplay.from_estimator(trusting, X).p_line_ is None


def test_unreadable_images_are_not_counted():
    display = ScoreHistogramDisplay.from_predictions([1.0, np.nan, 2.0, 3.0], [1, 1, 1, -1], bins=2)
    assert {name: counts.sum() for name, counts in display.counts.items()} == {"normal": 2, "anomaly": 1}


def test_scores_beyond_the_bins_are_told():
    scores = [-np.inf, -9.0, -8.0, 0.1, 0.5, 7.0]
    display = ScoreHistogramDisplay.from_predictions(scores, bins=[0, 0.3, 1])
    assert display.n_outside == (3, 1)
    assert "3 below" in display.ax_.get_xlabel() and "1 above" in display.ax_.get_xlabel()


@pytest.mark.parametrize("bins", ["auto", "fd"])
@pytest.mark.parametrize("spread", [1, 0])
def test_one_score_far_out_does_not_make_a_million_bins(bins, spread):
    scores = np.append(spread * np.random.default_rng(0).normal(size=200), -1e6)
    display = ScoreHistogramDisplay.from_predictions(scores, bins=bins)
    assert len(display.counts["all"]) <= 100 and display.counts["all"].sum() == 201


@pytest.mark.parametrize("bins", ["auto", "fd", "sturges"])
def test_rules_for_bins_are_those_of_numpy(bins):
    scores = np.random.default_rng(0).normal(size=200)
    display = ScoreHistogramDisplay.from_predictions(scores, bins=bins)
    np.testing.assert_array_equal(display.bin_edges, np.histogram_bin_edges(scores, bins))


def test_no_finite_score_is_an_error():
    with pytest.raises(ValueError, match="None of the 2 scores is a finite number"):
        ScoreHistogramDisplay.from_predictions([np.nan, np.nan])


@pytest.mark.parametrize("y", [[0, 1, 0, 1], ["a", "b", "a", "b"]])
def test_labels_must_be_signs(y):
    with pytest.raises(ValueError, match=r"\+1 for normal samples and -1 for anomalies"):
        ScoreHistogramDisplay.from_predictions([1.0, 2.0, 3.0, 4.0], y)


# Extreme images


def test_extreme_images_are_those_of_extreme_scores():
    X = np.arange(10, dtype=np.uint8)[:, np.newaxis, np.newaxis] * np.ones((1, 4, 5), dtype=np.uint8)
    scores = np.array([5.0, 1, 9, np.nan, 7, 2, 8, 3, 4, 6])
    display = ExtremeImagesDisplay.from_predictions(X, scores, n_images=3)
    assert display.positions.tolist() == [2, 6, 4, 1, 5, 7]
    assert display.scores.tolist() == [9, 8, 7, 1, 2, 3]
    assert [int(image[0, 0, 0]) for image in display.images] == [2, 6, 4, 1, 5, 7]
    drawn = [ax.images[0].get_array() for ax in display.axes_.flat]
    np.testing.assert_allclose([image[0, 0] for image in drawn], np.array([2, 6, 4, 1, 5, 7]) / 255)


@pytest.mark.parametrize("inset", [False, True])
def test_extreme_images_keep_within_axes_that_were_placed_by_hand(inset):
    figure = plt.figure()
    ax = figure.add_subplot().inset_axes([0.2, 0.1, 0.5, 0.6]) if inset else figure.add_axes([0.2, 0.1, 0.5, 0.6])
    X = np.zeros((6, 8, 8, 3), dtype=np.uint8)
    display = ExtremeImagesDisplay.from_predictions(X, np.arange(6.0), ax=ax, n_images=2)
    box = ax.get_position()
    for single in display.axes_.flat:
        place = single.get_position()
        assert box.x0 <= place.x0 < place.x1 <= box.x1 and box.y0 <= place.y0 < place.y1 <= box.y1


def test_maps_are_those_of_the_images_above_them(fitted):
    detector, X = fitted
    display = ExtremeImagesDisplay.from_estimator(detector, X, n_images=2)
    assert display.axes_.shape == (4, 2)
    maps = detector.anomaly_map(X)
    for row, half in ((1, 0), (3, 1)):
        for column in (0, 1):
            position = display.positions[2 * half + column]
            np.testing.assert_allclose(display.axes_[row, column].images[0].get_array(), maps[position], rtol=1e-4)
            np.testing.assert_array_equal(display.axes_[row - 1, column].images[0].get_array() * 255, X[position])


def test_maps_of_all_images_may_be_given(fitted):
    detector, X = fitted
    maps = np.arange(12)[:, np.newaxis, np.newaxis] * np.ones((1, 20, 24))
    display = ExtremeImagesDisplay.from_predictions(X, np.arange(12), maps=maps, n_images=2)
    assert [single[0, 0] for single in display.maps] == [11, 10, 0, 1]


def test_frames_say_who_is_who():
    X, scores = np.zeros((4, 3, 3), dtype=np.uint8), [4.0, 3.0, 2.0, 1.0]
    display = ExtremeImagesDisplay.from_predictions(X, scores, [1, -1, -1, 1], n_images=2)
    colors = [matplotlib.colors.to_hex(ax.spines["top"].get_edgecolor()) for ax in display.axes_.flat]
    normal, anomaly = (matplotlib.colors.to_hex(color) for color in ("tab:blue", "tab:orange"))
    assert colors == [normal, anomaly, normal, anomaly]
    assert [text.get_text() for text in display.ax_.get_legend().get_texts()] == ["normal", "anomaly"]


def test_a_detector_without_maps_shows_none(rows):
    X, _, _ = rows
    forest = IsolationForest(n_estimators=5, random_state=0).fit(X)
    display = ExtremeImagesDisplay.from_estimator(forest, X, image_shape=(1, 2), n_images=2)
    assert display.axes_.shape == (2, 2) and display.maps is None
    with pytest.raises(TypeError, match="needs an estimator with anomaly_map, but got IsolationForest"):
        ExtremeImagesDisplay.from_estimator(forest, X, image_shape=(1, 2), maps=True)


def test_rows_need_the_shape_of_images(rows):
    X, _, forest = rows
    with pytest.raises(ValueError, match="Pass image_shape"):
        ExtremeImagesDisplay.from_estimator(forest, X)


@pytest.mark.parametrize("form", ["paths", "folder", "images of several sizes", "skip"])
def test_images_come_in_any_form(tmp_path, fitted, form):
    from PIL import Image

    detector, X = fitted
    paths = [tmp_path / f"{i:02}.png" for i in range(6)]
    for path, image in zip(paths, X):
        Image.fromarray(image).save(path)
    given = {"paths": paths, "folder": str(tmp_path), "images of several sizes": [X[0], X[1, :15], *X[2:6]]}.get(form)
    if form == "skip":
        (tmp_path / "00.png").write_bytes(b"no image")
        detector = tiny_detector(on_error="skip", feature_spaces=["pretrained"])
        with pytest.warns(UserWarning, match="could not be read"):
            detector.fit(paths)
        with pytest.warns(UserWarning, match="could not be read"):
            display = ExtremeImagesDisplay.from_estimator(detector, paths, n_images=3)
        assert sorted(display.positions.tolist()) == [1, 2, 4, 5] or 0 not in display.positions
    else:
        display = ExtremeImagesDisplay.from_estimator(detector, given, n_images=3, maps=True)
        assert sorted(display.positions.tolist()) == [0, 1, 2, 3, 4, 5]
        assert [m.shape for m in display.maps] == [image.shape[:2] for image in display.images]


def test_sixteen_bits_and_floats_are_drawn_in_their_range():
    wide = [np.full((2, 2), 65535, dtype=np.uint16), np.full((2, 2), 300, dtype=np.uint16)]
    display = ExtremeImagesDisplay.from_predictions(wide, [1.0, 0.0])
    assert display.axes_[0, 0].images[0].get_array().max() == 1
    display = ExtremeImagesDisplay.from_predictions(np.array([[0.0, 16.0], [8.0, 0.0]]), [1.0, 0.0], image_shape=(1, 2))
    np.testing.assert_allclose(display.axes_[1, 0].images[0].get_array(), [[0.5, 0]])


# Training


def test_history_is_drawn_epoch_by_epoch():
    history = {4: {"loss": [3.0, 2.0, 1.0], "validation_loss": [4.0, 3.0, 3.0]}, 5: {"loss": [1.0]}}
    display = TrainingHistoryDisplay.from_history(history)
    assert set(display.lines_) == {(4, "loss"), (4, "validation_loss"), (5, "loss")}
    x, loss = display.lines_[4, "validation_loss"].get_data()
    assert list(x) == [1, 2, 3] and list(loss) == [4, 3, 3]
    same = {tuple(display.lines_[4, name].get_color()) for name in history[4]}
    assert len(same) == 1


def test_students_that_were_not_trained_have_no_history(fitted, rows):
    with pytest.raises(TypeError, match="RidgeStudents has no training history"):
        TrainingHistoryDisplay.from_estimator(fitted[0])
    with pytest.raises(TypeError, match="There are no students in IsolationForest"):
        TrainingHistoryDisplay.from_estimator(rows[2])


def test_students_are_found_within_wrappers(fitted):
    X = fitted[1]
    detector = tiny_paper().fit(X)
    for wrapper in (
        detector,
        detector.students_,
        NormalOnly(tiny_paper()).fit(X, np.ones(len(X))),
        make_pipeline(tiny_paper()).fit(X),
    ):
        assert set(TrainingHistoryDisplay.from_estimator(wrapper).history) == {4, 5}


# Embedding


def test_pca_map_is_that_of_training_images_and_others(fitted):
    detector, X = fitted
    display = EmbeddingDisplay.from_estimator(detector, X[:5], np.repeat([1, -1], [3, 2]))
    kept = detector.transform(X)[:, : detector.extractor_.embedding_size_]
    expected = PCA(2).fit_transform(np.vstack([kept, kept[:5]]))
    np.testing.assert_allclose(np.abs(display.training), np.abs(expected[:12]), atol=1e-3)
    np.testing.assert_allclose(np.abs(display.coordinates), np.abs(expected[12:]), atol=1e-3)
    np.testing.assert_allclose(display.scatters_["anomaly"].get_offsets(), display.coordinates[3:])


def test_without_labels_scores_are_the_colors(rows):
    X, _, forest = rows
    display = EmbeddingDisplay.from_estimator(forest, X)
    np.testing.assert_array_equal(display.scatters_["all"].get_array(), forest.score_samples(X))
    pipeline = make_pipeline(StandardScaler(), OneClassSVM()).fit(X)
    display = EmbeddingDisplay.from_estimator(pipeline, X)
    expected = PCA(2).fit_transform(StandardScaler().fit_transform(X))
    np.testing.assert_allclose(np.abs(display.coordinates), np.abs(expected))


def test_an_iterator_can_be_mapped(rows):
    X, _, forest = rows
    display = EmbeddingDisplay.from_estimator(forest, iter(X))
    np.testing.assert_array_equal(display.scatters_["all"].get_array(), forest.score_samples(X))


@pytest.mark.parametrize("method", ["pca", "tsne"])
def test_one_feature_lies_along_the_first_axis(method):
    x = np.arange(8.0)[:, np.newaxis] ** 2
    display = EmbeddingDisplay.from_predictions(x, method=method, random_state=0)
    assert display.coordinates.shape == (8, 2)
    if method == "pca":
        np.testing.assert_allclose(np.abs(display.coordinates), np.hstack([np.abs(x - x.mean()), 0 * x]), atol=1e-9)


def test_a_pipeline_of_the_detector_alone_shows_its_rows(rows):
    X, _, _ = rows
    display = EmbeddingDisplay.from_estimator(make_pipeline(OneClassSVM()).fit(X), X)
    np.testing.assert_allclose(np.abs(display.coordinates), np.abs(PCA(2).fit_transform(X)))


@pytest.mark.parametrize("labels", [[1, -1, np.nan], ["bolt", "nut", None], [1, -1, pd.NA]])
def test_points_without_a_label_are_drawn_as_unlabelled(rows, labels):
    X, _, _ = rows
    y = np.resize(np.array(labels, dtype=object), len(X))
    display = EmbeddingDisplay.from_predictions(X, y)
    assert len(display.scatters_) == 3
    assert sum(len(drawn.get_offsets()) for drawn in display.scatters_.values()) == len(X)
    assert len(display.scatters_["unlabelled"].get_offsets()) == len(X) // 3


def test_labels_of_several_kinds_are_all_drawn(rows):
    X, _, _ = rows
    y = np.resize(np.array(["a", 1, None, "b"], dtype=object), len(X))
    display = EmbeddingDisplay.from_predictions(X, y)
    assert set(display.scatters_) == {"unlabelled", "a", "1", "b"}
    assert sum(len(drawn.get_offsets()) for drawn in display.scatters_.values()) == len(X)


def test_a_style_of_the_user_is_that_of_all_points(rows):
    X, _, _ = rows
    display = EmbeddingDisplay.from_predictions(X, np.resize([1, -1], len(X)), color="r", label="mine")
    colours = {tuple(drawn.get_facecolor()[0][:3]) for drawn in display.scatters_.values()}
    assert colours == {(1.0, 0.0, 0.0)}


def test_what_cannot_be_mapped_is_said(rows):
    X, _, _ = rows
    for few in (X[:1], np.full_like(X, np.nan)):
        with pytest.raises(ValueError, match="at least 2 images"):
            EmbeddingDisplay.from_predictions(few)
    display = EmbeddingDisplay.from_predictions(np.ones((4, 3)))
    assert display.axis_names[0] == "component 1 (0% of the variance)"


def test_tsne_and_other_transformers(rows):
    X, y, _ = rows
    first = EmbeddingDisplay.from_predictions(X, y, method="tsne", random_state=0)
    again = EmbeddingDisplay.from_predictions(X, y, method="tsne", random_state=0)
    np.testing.assert_array_equal(first.coordinates, again.coordinates)
    own = EmbeddingDisplay.from_predictions(X, method=StandardScaler(), values=X[:, 0])
    np.testing.assert_allclose(own.coordinates, (X - X.mean(0)) / X.std(0))


def test_discrepancies_are_mapped_by_their_logarithm(fitted):
    detector, X = fitted
    new = 255 - X[:3]
    display = EmbeddingDisplay.from_estimator(detector, new, np.ones(3), space="discrepancy")
    # where the images of the fit lie for students that have not seen them, as new ones do
    both = np.log(np.vstack([detector.training_held_out_, detector.students_.transform(new)])[:, :2])
    expected = PCA(2).fit_transform(both)
    drawn = np.vstack([display.training, display.coordinates])
    np.testing.assert_allclose(np.abs(drawn), np.abs(expected), atol=1e-4)


def test_unreadable_images_have_no_place_on_the_map():
    features = np.random.default_rng(0).normal(size=(6, 3))
    features[2] = np.nan
    display = EmbeddingDisplay.from_predictions(features)
    assert np.isnan(display.coordinates).any(axis=1).tolist() == [False, False, True, False, False, False]
    np.testing.assert_allclose(
        np.abs(np.delete(display.coordinates, 2, 0)), np.abs(PCA(2).fit_transform(features[[0, 1, 3, 4, 5]]))
    )


def test_a_space_that_is_not_in_use_is_an_error(images):
    detector = tiny_detector(feature_spaces=["pretrained"]).fit(images)
    with pytest.raises(ValueError, match="space='discrepancy' is not in use"):
        EmbeddingDisplay.from_estimator(detector, images, space="discrepancy")
    with pytest.raises(ValueError, match="method must be"):
        EmbeddingDisplay.from_estimator(detector, images, method="umap")


# Curves


@pytest.mark.parametrize("pos_label", [-1, 1])
def test_auroc_is_not_inverted(rows, pos_label):
    X, y, forest = rows
    expected = roc_auc_score(y, forest.decision_function(X))
    assert expected > 0.9
    display = AnomalyRocCurveDisplay.from_estimator(forest, X, y, pos_label=pos_label)
    assert display.roc_auc == pytest.approx(expected)
    given = AnomalyRocCurveDisplay.from_predictions(y, forest.score_samples(X), pos_label=pos_label)
    assert given.roc_auc == pytest.approx(expected)
    assert f"Positive label: {pos_label}" in display.ax_.get_xlabel()


def test_false_positives_are_flagged_normal_images(rows):
    X, y, forest = rows
    display = AnomalyRocCurveDisplay.from_estimator(forest, X, y, drop_intermediate=False)
    flagged = forest.predict(X) == -1
    point = np.mean(flagged[y == 1]), np.mean(flagged[y == -1])
    assert np.isclose(np.column_stack([display.fpr, display.tpr]), point).all(axis=1).any()


@pytest.mark.parametrize("pos_label", [-1, 1])
def test_average_precision_is_that_of_the_positive_class(rows, pos_label):
    X, y, forest = rows
    display = AnomalyPrecisionRecallDisplay.from_estimator(forest, X, y, pos_label=pos_label)
    expected = average_precision_score(y == pos_label, pos_label * forest.score_samples(X))
    assert display.average_precision == pytest.approx(expected)


def test_nan_scores_count_as_the_least_normal():
    display = AnomalyRocCurveDisplay.from_predictions([1, 1, -1], [0.2, -np.inf, np.nan])
    assert display.roc_auc == pytest.approx(0.75)  # NaN ties with a density of zero


@pytest.mark.parametrize("display", [AnomalyRocCurveDisplay, AnomalyPrecisionRecallDisplay])
def test_curves_refuse_what_would_invert_or_be_empty(display):
    with pytest.raises(ValueError, match="silently"):
        display.from_predictions([0, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="needs both labels"):
        display.from_predictions([1, 1], [0.1, 0.2])
    with pytest.raises(ValueError, match="pos_label"):
        display.from_predictions([1, -1], [0.1, 0.2], pos_label=0)


# All displays


DRAWN = {
    "histogram": lambda ax: ScoreHistogramDisplay.from_predictions([1.0, 2.0, 3.0], ax=ax),
    "images": lambda ax: ExtremeImagesDisplay.from_predictions(np.zeros((4, 3, 3)), [1.0, 2.0, 3.0, 4.0], ax=ax),
    "embedding": lambda ax: EmbeddingDisplay.from_predictions(np.eye(3), ax=ax),
    "history": lambda ax: TrainingHistoryDisplay.from_history({0: {"loss": [2.0, 1.0]}}, ax=ax),
    "roc": lambda ax: AnomalyRocCurveDisplay.from_predictions([1, -1], [1.0, 0.0], ax=ax),
    "precision-recall": lambda ax: AnomalyPrecisionRecallDisplay.from_predictions([1, -1], [1.0, 0.0], ax=ax),
}


@pytest.mark.parametrize("name", DRAWN)
def test_displays_draw_where_they_are_told_and_again_elsewhere(name):
    figure, (first, second) = plt.subplots(1, 2)
    display = DRAWN[name](first)
    assert display.ax_ is first and display.figure_ is figure
    assert display.plot(ax=second) is display
    assert display.ax_ is second
    assert DRAWN[name](None).figure_ is not figure


def test_a_search_is_looked_into(images):
    X, y = np.concatenate([images, 255 - images]), np.repeat([1, -1], 12)
    search = GridSearchCV(
        NormalOnly(tiny_detector()),
        {"estimator__explained_variance": [0.5]},
        cv=OneClassSplit(2, random_state=0),
        scoring="roc_auc",
    ).fit(X, y)
    assert ScoreHistogramDisplay.from_estimator(search, X, y).threshold == 0
    assert EmbeddingDisplay.from_estimator(search, X, y).training.shape == (12, 2)


@pytest.mark.parametrize(
    "draw",
    [
        ScoreHistogramDisplay.from_estimator,
        ExtremeImagesDisplay.from_estimator,
        EmbeddingDisplay.from_estimator,
        AnomalyRocCurveDisplay.from_estimator,
        AnomalyPrecisionRecallDisplay.from_estimator,
        lambda detector, X, y: TrainingHistoryDisplay.from_estimator(detector),
    ],
)
def test_an_unfitted_detector_is_an_error(draw, images):
    with pytest.raises(NotFittedError):
        draw(tiny_detector(), images, np.ones(12))


def test_import_loads_neither_torch_nor_matplotlib():
    code = "import sys, skl_transformaly.plotting; assert not {'torch', 'timm', 'matplotlib'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_without_matplotlib_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.pyplot", None)
    with pytest.raises(ImportError, match=r"skl-transformaly\[plot\]"):
        ScoreHistogramDisplay.from_predictions([1.0, 2.0])
