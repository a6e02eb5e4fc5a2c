"""The detector: what a score is, the threshold, and life among scikit-learn's tools."""

import pickle

import joblib
import numpy as np
import pytest
from conftest import tiny_detector, tiny_extractor, tiny_students
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, normalize

from skl_transformaly import GaussianDensity, TimmExtractor, TransformalyDetector


@pytest.mark.parametrize("scale", [False, True])
def test_score_is_the_sum_of_two_log_densities(images, scale):
    """Rebuilt from the parts by scikit-learn's PCA and scipy's normal distribution."""
    X, new = images[:9], images[9:]
    density = GaussianDensity(shrinkage=0)
    detector = tiny_detector(normalize=scale, explained_variance=0.7, discrepancy_density=density).fit(X)
    embed = normalize if scale else np.asarray
    z_p, z_p_new = (embed(detector.extractor_.transform(part)) for part in (X, new))
    z_f, z_f_new = (detector.students_.transform(part) for part in (X, new))
    whiten = PCA(0.7, whiten=True, svd_solver="full").fit(z_p)
    w = whiten.transform(z_p_new)
    expected = multivariate_normal(np.zeros(w.shape[1]), np.eye(w.shape[1])).logpdf(w)
    expected += multivariate_normal(z_f.mean(axis=0), np.cov(z_f, rowvar=False)).logpdf(z_f_new)
    np.testing.assert_allclose(detector.score_samples(new), expected, rtol=1e-3)


def test_components_are_the_fewest_that_reach_the_explained_variance(images):
    detector = tiny_detector(explained_variance=0.6).fit(images)
    ratios = PCA(svd_solver="full").fit(detector.extractor_.transform(images)).explained_variance_ratio_
    assert detector.whitening_.n_components_ == int(np.argmax(np.cumsum(ratios) >= 0.6)) + 1


def test_the_ranking_does_not_depend_on_the_scale_of_the_teachers_activations(images):
    """Discrepancies of size 1e-9 rank as those of size 1 do."""
    detector = tiny_detector(feature_spaces=["discrepancy"]).fit(images)
    z = detector.transform(images)
    for scale in (1e-9, 1e9):
        other = clone(detector.discrepancy_density_).fit(z * scale).score_samples(z * scale)
        np.testing.assert_array_equal(np.argsort(other), np.argsort(detector.score_samples(images)))


@pytest.mark.parametrize("space, columns", [("pretrained", slice(None, -2)), ("discrepancy", slice(-2, None))])
def test_one_space_alone_is_its_share_of_both(space, columns, fitted):
    detector, X = fitted
    alone = tiny_detector(feature_spaces=[space]).fit(X)
    np.testing.assert_allclose(alone.transform(X), detector.transform(X)[:, columns])


def test_the_two_spaces_add_up(fitted):
    detector, X = fitted
    parts = [tiny_detector(feature_spaces=[space]).fit(X).score_samples(X) for space in ("pretrained", "discrepancy")]
    np.testing.assert_allclose(sum(parts), detector.score_samples(X))


def test_no_students_are_trained_for_the_embedding_alone(images):
    assert not hasattr(tiny_detector(feature_spaces=["pretrained"]).fit(images), "students_")


@pytest.mark.parametrize("spaces", [[], ["embedding"], ["pretrained", "pretrained"]])
def test_unknown_feature_spaces_are_refused(spaces, images):
    with pytest.raises(ValueError, match="feature_spaces must name"):
        tiny_detector(feature_spaces=spaces).fit(images)


@pytest.mark.parametrize(
    "density",
    ["gmm", "knn", GaussianMixture(2, random_state=0), KernelDensity(), make_pipeline(PCA(2), GaussianMixture(1))],
)
@pytest.mark.parametrize("parameter", ["density", "discrepancy_density"])
def test_any_density_takes_either_place(density, parameter, images):
    assert np.isfinite(tiny_detector(**{parameter: density}).fit(images).score_samples(images)).all()


def test_contamination_is_the_share_of_training_images_below_the_threshold(images):
    detector = tiny_detector(contamination=0.25).fit(images)
    assert (detector.predict(images) == -1).sum() == 3


def test_an_image_right_at_the_threshold_is_normal(images):
    """Half of eleven: the threshold is the median training score itself."""
    labels = tiny_detector(contamination=0.5).fit_predict(images[:11])
    assert (labels == -1).sum() == 5


def test_auto_threshold_is_the_lowest_twentieth_of_training_scores(fitted):
    detector, X = fitted
    assert detector.offset_ == pytest.approx(np.quantile(detector.score_samples(X), 0.05))


def test_decision_is_the_score_less_the_offset(fitted):
    detector, X = fitted
    np.testing.assert_array_equal(detector.decision_function(X), detector.score_samples(X) - detector.offset_)


def test_scores_are_float64(fitted):
    detector, X = fitted
    assert detector.score_samples(X).dtype == np.float64


@pytest.mark.parametrize("batch_size", [1, 5, 64])
def test_scores_do_not_depend_on_the_batch_size(batch_size, images):
    expected = tiny_detector(extractor=tiny_extractor(batch_size=4)).fit(images)
    scores = expected.score_samples(images)
    expected.extractor_.set_params(batch_size=batch_size)
    np.testing.assert_allclose(expected.score_samples(images), scores, rtol=1e-9)


def test_scores_do_not_depend_on_order_or_company(fitted, rng):
    detector, X = fitted
    scores = detector.score_samples(X)
    order = rng.permutation(len(X))
    np.testing.assert_allclose(detector.score_samples(X[order]), scores[order], rtol=1e-9)
    np.testing.assert_allclose(detector.score_samples(X[order[:3]]), scores[order[:3]], rtol=1e-9)


def test_fitting_twice_gives_the_same_scores(images):
    detector = tiny_detector()
    first = detector.fit(images).score_samples(images)
    np.testing.assert_array_equal(detector.fit(images).score_samples(images), first)


def test_fit_predict_is_fit_then_predict(images):
    detector = tiny_detector(contamination=0.3)
    np.testing.assert_array_equal(detector.fit_predict(images), detector.predict(images))


def test_identical_training_images_are_refused(images):
    with pytest.raises(ValueError, match="same embedding"):
        tiny_detector().fit(np.repeat(images[:1], 5, axis=0))


def test_two_images_are_enough_for_finite_scores(images):
    assert np.isfinite(tiny_detector().fit(images[:2]).score_samples(images)).all()


def test_values_that_are_not_finite_are_an_error_and_no_score(fitted, monkeypatch):
    detector, X = fitted
    monkeypatch.setattr(
        type(detector.students_),
        "measure",
        lambda self, batch: (np.full((len(batch), 64), np.inf), np.ones((len(batch), 2))),
    )
    with pytest.raises(FloatingPointError, match="precision='float32'"):
        detector.score_samples(X)


def test_a_random_state_seeds_the_parts(images):
    one, same, other = (
        tiny_detector(students=tiny_students(random_state=None), random_state=seed).fit(images).score_samples(images)
        for seed in (1, 1, 2)
    )
    np.testing.assert_array_equal(one, same)
    assert not np.allclose(one, other)


# Among scikit-learn's tools


def test_clone_is_unfitted_and_fits_to_the_same(fitted):
    detector, X = fitted
    copy = clone(detector)
    assert not hasattr(copy, "offset_")
    np.testing.assert_array_equal(copy.fit(X).score_samples(X), detector.score_samples(X))


def test_pickle_and_joblib_give_the_same_scores(fitted, tmp_path):
    detector, X = fitted
    joblib.dump(detector, tmp_path / "detector.joblib")
    for copy in (pickle.loads(pickle.dumps(detector)), joblib.load(tmp_path / "detector.joblib")):
        np.testing.assert_array_equal(copy.score_samples(X), detector.score_samples(X))


def test_a_pickle_weighs_what_its_students_weigh(images):
    detector = tiny_detector(extractor=tiny_extractor(precision="float32")).fit(images)
    students = sum(p.numel() * 4 for student in detector.students_.students_ for p in student.parameters())
    # for maps: a covariance of 64 channels, and a mean residual for each of 4 places and channels, of each student
    residuals = 2 * 4 * (64 * 64 + 64 * 4)
    assert len(pickle.dumps(detector)) < students + residuals + 50_000


def test_transform_names_its_columns(fitted):
    detector, X = fitted
    k = detector.whitening_.n_components_
    expected = [f"pretrained{i}" for i in range(k)] + ["discrepancy4", "discrepancy5"]
    assert detector.get_feature_names_out().tolist() == expected


def test_transform_gives_a_data_frame_where_asked(images):
    pytest.importorskip("pandas")
    frame = tiny_detector().set_output(transform="pandas").fit(images).transform(images)
    assert list(frame.columns)[-2:] == ["discrepancy4", "discrepancy5"]


def test_both_spaces_feed_another_detector(images):
    pipeline = make_pipeline(tiny_detector(), IsolationForest(random_state=0)).fit(images)
    assert set(pipeline.predict(images)) <= {-1, 1}


def test_pipeline_passes_images_through(images):
    grey = FunctionTransformer(lambda X: X.mean(axis=-1).astype(np.uint8))
    pipeline = make_pipeline(grey, tiny_detector()).fit(images)
    expected = tiny_detector().fit(images.mean(axis=-1).astype(np.uint8))
    np.testing.assert_allclose(
        pipeline.decision_function(images), expected.decision_function(images.mean(axis=-1).astype(np.uint8))
    )


def test_cross_val_score_works_on_paths(tmp_path, images):
    from PIL import Image

    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    y = np.array([1, -1] * 6)
    scores = cross_val_score(tiny_detector(feature_spaces=["pretrained"]), paths, y, cv=3, scoring="roc_auc")
    assert scores.shape == (3,) and np.isfinite(scores).all()


def test_grid_search_reaches_every_part(images):
    grid = {
        "explained_variance": [0.5, 0.9],
        "extractor__model_name": ["test_vit", "test_vit2"],
        "students__n_blocks": [1],
        "density__n_components": [1],
    }
    search = GridSearchCV(tiny_detector(density=GaussianMixture(1)), grid, scoring="roc_auc", cv=2)
    search.fit(images, [1, -1] * 6)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_html_representation_shows_the_parts(fitted):
    html = fitted[0]._repr_html_()
    assert "TransformalyDetector" in html and "BlockStudents" in html


def test_a_string_names_a_timm_model(images, monkeypatch):
    asked = []
    monkeypatch.setattr(TimmExtractor, "fit", lambda self, X, y=None: asked.append(self.model_name) or 1 / 0)
    with pytest.raises(ZeroDivisionError):
        TransformalyDetector("vit_tiny_patch16_224").fit(images)
    assert asked == ["vit_tiny_patch16_224"]


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"explained_variance": 1.5}, "explained_variance"),
        ({"contamination": 0.7}, "contamination"),
        ({"density": "normal"}, "density"),
        ({"on_error": "ignore"}, "on_error"),
        ({"students": "ten"}, "students"),
    ],
)
def test_parameters_out_of_range_are_refused(wrong, message, images):
    with pytest.raises(ValueError, match=message):
        tiny_detector(**wrong).fit(images)
