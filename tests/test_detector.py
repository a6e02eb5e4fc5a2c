"""The detector: what a score is, the threshold, and life among scikit-learn's tools."""

import itertools
import pickle
import warnings

import joblib
import numpy as np
import pytest
import timm
import torch
from conftest import tiny_detector, tiny_extractor, tiny_paper, tiny_students, write_images
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from safetensors.torch import save_file
from scipy.special import softmax
from scipy.stats import multivariate_normal
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.ensemble import IsolationForest
from sklearn.mixture import GaussianMixture
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, normalize

from skl_transformaly import AutoDensity, GaussianDensity, RidgeStudents, TimmExtractor, TransformalyDetector
from skl_transformaly._fusion import held_out_threshold, interpolated_p_values
from skl_transformaly.teacher._architecture import layer_indices, variation_indices
from skl_transformaly.teacher._inside import shown_deviation


@pytest.mark.parametrize("scale", [False, True])
def test_the_papers_score_is_the_sum_of_two_log_densities(images, scale):
    """Rebuilt from the parts by scikit-learn's PCA and scipy's normal distribution."""
    X, new = images[:9], images[9:]
    detector = tiny_paper(normalize=scale, explained_variance=0.7).fit(X)
    embed = normalize if scale else np.asarray
    z_p, z_p_new = (embed(detector.extractor_.transform(part)) for part in (X, new))
    z_f, z_f_new = (detector.students_.transform(part) for part in (X, new))
    pca = PCA(0.7, whiten=True, svd_solver="full").fit(z_p)
    expected = np.zeros(3)
    for old, late in ((pca.transform(z_p), pca.transform(z_p_new)), (z_f, z_f_new)):
        expected += multivariate_normal(old.mean(axis=0), np.cov(old, rowvar=False, bias=True)).logpdf(late)
    np.testing.assert_allclose(detector.score_samples(new), expected, rtol=1e-3)
    assert detector.offset_ == pytest.approx(np.quantile(detector.score_as_new(X), 0.05))


def test_the_score_is_the_sum_of_parts_on_the_scale_of_held_out_images(images, rng):
    """Each part is its space's log-density, less the mean over training images without themselves, by its deviation."""
    new = rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    detector = tiny_detector(feature_spaces=["pretrained"], density="gaussian").fit(images)
    z, z_new = (normalize(detector.extractor_.transform(X).astype(np.float64)) for X in (images, new))
    density = GaussianDensity().fit(z)
    held_out = density.held_out_scores(z)
    expected = (density.score_samples(z_new) - held_out.mean()) / held_out.std()
    np.testing.assert_allclose(detector.score_samples(new), expected, rtol=1e-6)


def test_a_teacher_of_the_papers_settings_computes_as_the_papers_does():
    named = TransformalyDetector.paper("vit_tiny_patch16_224").extractor
    assert (named.model_name, named.precision, named.interpolation) == ("vit_tiny_patch16_224", "float32", "bilinear")
    mine = tiny_extractor()
    assert TransformalyDetector.paper(mine).extractor is mine


def test_parts_of_several_spaces_add_up(images, rng):
    new = rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    names = ["pretrained", "layers", "variation", "discrepancy"]
    alone = [tiny_detector(feature_spaces=[name]).fit(images) for name in names]
    together = tiny_detector().fit(images)
    assert together.feature_spaces_ == names  # a random teacher has no classes
    expected = sum(weight * d.score_samples(new) for d, weight in zip(alone, [1, 1, 1, 0.5]))
    np.testing.assert_allclose(together.score_samples(new), expected, rtol=1e-9)
    np.testing.assert_array_equal(together.weights_, [1, 1, 1, 0.5])
    np.testing.assert_array_equal(tiny_paper().fit(images).weights_, 1)
    expected = sum(weight * d.training_scores_ for d, weight in zip(alone, [1, 1, 1, 0.5]))
    np.testing.assert_allclose(together.training_scores_, expected, rtol=1e-9)


def test_discrepancies_of_training_images_are_those_of_students_that_have_not_seen_them(images):
    detector = tiny_detector(feature_spaces=["discrepancy"]).fit(images)
    seen, unseen = detector.training_discrepancies_, detector.students_.held_out_discrepancies_
    assert (unseen[:, :2] > seen[:, :2]).all()
    np.testing.assert_array_equal(unseen[:, 2:], seen[:, 2:])  # what blocks add does not depend on students
    density = GaussianDensity(target="diagonal").fit(seen)
    scores = density.held_out_scores(seen, unseen=unseen)
    np.testing.assert_allclose(detector.training_scores_, (scores - scores.mean()) / scores.std(), rtol=1e-9)


def test_a_training_image_scored_again_gets_the_score_without_itself(images, rng):
    detector = tiny_detector().fit(images)
    order = rng.permutation(12)
    np.testing.assert_array_equal(detector.score_samples(images[order]), detector.training_scores_[order])
    assert (detector.score_as_new(images) != detector.training_scores_).all()
    np.testing.assert_array_equal(detector.score_samples(images / 255), detector.training_scores_)


@pytest.mark.parametrize("density", ["auto", "gaussian", "knn"])
def test_duplicates_of_an_image_do_not_vouch_for_it(density, images):
    """An image that is there five times gets about the score that it has where it is there once."""
    settings = {"density": density, "feature_spaces": ["pretrained"]}
    once = tiny_detector(**settings).fit(images)
    many = tiny_detector(**settings).fit(np.concatenate([images, np.repeat(images[:1], 4, axis=0)]))
    assert len(set(many.training_scores_[[0, 12, 13, 14, 15]])) == 1
    assert many.training_scores_[0] == pytest.approx(once.training_scores_[0], abs=0.5)


@pytest.mark.parametrize("n", [2, 3, 5, 8, 20])
def test_few_images_have_finite_scores_and_something_can_be_flagged(n, rng):
    X = rng.integers(100, 156, (n, 20, 24, 3), dtype=np.uint8)
    odd = rng.integers(0, 256, (1, 20, 24, 3), dtype=np.uint8)
    odd[:, :10] = 255
    detector = tiny_detector(contamination=0.05)
    if n < 19:
        with pytest.warns(UserWarning, match=f"With {n} images a false-positive rate below {100 / (n + 1):.3g}%"):
            detector.fit(X)
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            detector.fit(X)
    assert np.isfinite(detector.training_scores_).all()
    if n > 3:  # three held-out scores may be as far from each other as an odd image is from them
        assert detector.predict(odd).tolist() == [-1]


@pytest.mark.parametrize("n", [2, 8, 19])
def test_the_papers_threshold_warns_once_of_few_images(n, rng):
    X = rng.integers(100, 156, (n, 20, 24, 3), dtype=np.uint8)
    detector = tiny_paper(feature_spaces=["pretrained"], students=None, contamination=0.05)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        detector.fit(X)
    told = [str(warning.message) for warning in caught]
    assert len(told) == (n < 19) and all("expect many more false alarms than contamination=0.05" in t for t in told)


def test_a_threshold_between_two_scores_flags_as_many_as_it_says(images):
    detector = tiny_detector(contamination=0.25).fit(images)
    assert (detector.fit_predict(images) == -1).sum() == 3  # 0.25 * 13 gaps: between the third and the fourth
    assert not np.isin(detector.training_scores_, detector.offset_).any()


@settings(max_examples=200, deadline=None)
@given(
    held_out=arrays(np.float64, st.integers(2, 40), elements=st.floats(-100, 100, width=32)),
    score=st.floats(-110, 110, width=32),
    rate=st.floats(0.01, 0.5),
)
@example(held_out=np.array([1.0, 1.0]), score=0.0, rate=1 / 3)
@example(held_out=np.arange(19.0), score=-1.0, rate=0.05)
def test_what_is_flagged_has_a_p_value_below_the_rate(held_out, score, rate):
    ordered = np.sort(held_out)
    p = interpolated_p_values(np.array([score]), held_out)[0]
    n, lower, as_low = len(held_out), (held_out < score).sum(), (held_out <= score).sum()
    assert max(1, lower - 1) / (n + 1) <= p <= (1 + as_low) / (n + 1)
    threshold = held_out_threshold(ordered, rate)
    if rate * (n + 1) >= 1 and abs(score - threshold) > 1e-9:
        lowest = p == pytest.approx(1 / (n + 1), abs=1e-12)  # n scores cannot tell smaller shares
        assert (score < threshold) == (p < rate or bool(lowest))


def test_p_values_are_shares_of_the_held_out_scores(images, rng):
    new = rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    detector = tiny_detector().fit(images)
    scores = detector.score_samples(new)
    as_low = np.array([sum(held_out <= score for held_out in detector.training_scores_) for score in scores])
    p = detector.p_values(new)
    assert (p >= np.maximum(1, as_low - 1) / 13).all() and (p <= (1 + as_low) / 13).all()
    table = detector.score_table(new)
    np.testing.assert_array_equal(table["p_value"], detector.p_values(new))
    np.testing.assert_array_equal(table["prediction"], detector.predict(new))


def test_scores_of_fitted_images_give_no_p_values(images):
    detector = tiny_detector(threshold="training").fit(images)
    with pytest.raises(ValueError, match="fitted with threshold='training'"):
        detector.p_values(images)
    detector.set_params(threshold="held-out")  # which a fit alone would change
    assert np.isnan(detector.score_table(images)["p_value"]).all()


@pytest.mark.slow
def test_the_share_of_new_normal_images_that_is_flagged_is_what_was_asked_for(rng):
    """Over 40 detectors and 1,600 new images from the same source."""
    flagged = []
    for _ in range(40):
        X = rng.normal(128, 20, (70, 4, 4, 3)).clip(0, 255).astype(np.uint8)
        detector = tiny_detector(feature_spaces=["pretrained", "layers"], contamination=0.1).fit(X[:30])
        flagged += (detector.predict(X[30:]) == -1).tolist()
    assert np.mean(flagged) == pytest.approx(0.1, abs=0.035)


def test_trained_students_are_cross_fitted(images):
    """Held-out discrepancies of trained students are those of students that were trained on the other folds."""
    from skl_transformaly.utils._labels import folds

    detector = tiny_detector(students=tiny_students(), feature_spaces=["discrepancy"]).fit(images)
    unseen = np.empty((12, 2))
    for train, test in folds(np.arange(12), 12, count=3):
        students = tiny_students(extractor=tiny_extractor()).fit(images[train])
        unseen[test] = students.transform(images[test])
    scores = (
        GaussianDensity(target="diagonal")
        .fit(detector.training_discrepancies_)
        .held_out_scores(detector.training_discrepancies_, unseen=unseen)
    )
    np.testing.assert_allclose(detector.training_scores_, (scores - scores.mean()) / scores.std(), rtol=1e-4)


def test_classes_need_a_classifier(images, tmp_path):
    with pytest.raises(ValueError, match="no feature space 'classes': its weights came without a classifier"):
        tiny_detector(feature_spaces=["classes"]).fit(images)


def test_classes_are_the_square_roots_of_softened_probabilities(images, tmp_path):
    torch.manual_seed(0)
    state = timm.create_model("test_vit", num_classes=7).state_dict()
    save_file(state, tmp_path / "weights.safetensors")
    extractor = tiny_extractor(weights=tmp_path / "weights.safetensors", image_size=None)
    detector = tiny_detector(extractor=extractor).fit(images)
    assert detector.feature_spaces_ == ["pretrained", "classes", "layers", "variation", "discrepancy"]
    z = detector.extractor_.transform(images)
    logits = z @ state["head.weight"].double().numpy().T + state["head.bias"].double().numpy()
    expected = np.sqrt(softmax(logits / 2, axis=1))
    alone = tiny_detector(extractor=extractor, feature_spaces=["classes"]).fit(images)
    np.testing.assert_allclose(alone.transform(images), expected, rtol=1e-6)


@pytest.mark.parametrize(
    "model, size", [("test_efficientnet", 64), ("test_convnext", 64), ("swin_tiny_patch4_window7_224", 64)]
)
def test_variation_is_the_standard_deviation_over_places_of_the_last_map(images, model, size):
    extractor = tiny_extractor(model, image_size=size, precision="float64")
    detector = tiny_detector(extractor=extractor, feature_spaces=["variation"], normalize=False).fit(images)
    fitted = detector.extractor_
    with torch.no_grad():
        maps = fitted.to_maps(fitted.teacher_.model.forward_features(fitted.preprocess(images))).numpy()
    np.testing.assert_allclose(detector.transform(images), maps.std(axis=(2, 3)), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("model", ["test_vit", "test_efficientnet"])
def test_teacher_names_all_spaces_but_the_students(images, model):
    extractor = tiny_extractor(model, image_size=64)
    detector = tiny_detector(extractor=extractor, feature_spaces="teacher").fit(images)
    everything = tiny_detector(extractor=extractor).fit(images).feature_spaces_
    assert [*detector.feature_spaces_, "discrepancy"] == everything and not hasattr(detector, "students_")


@pytest.mark.parametrize(
    "model, size, solved",
    [
        *itertools.product(["test_vit"], [48], [False, True]),
        *itertools.product(["vit_medium_patch16_reg4_gap_256"], [32], [False, True]),  # no class token, but registers
        *itertools.product(["eva02_tiny_patch14_224"], [28], [False, True]),  # gated hidden units
        ("vit_small_patch16_dinov3", 32, False),
        ("hiera_tiny_224", 224, False),  # which reorders places
    ],
)
def test_variation_is_the_standard_deviation_over_places_of_hidden_units(images, model, size, solved):
    """Of two blocks before the last; also where students take what was recorded of the teacher."""
    images = images[:3]
    extractor = tiny_extractor(model, image_size=size)
    spaces = ["variation", *["discrepancy"] * solved]
    detector = tiny_detector(extractor=extractor, feature_spaces=spaces, normalize=False).fit(images)
    fitted, inputs = detector.extractor_, []
    for block in fitted.blocks_[-3:-1]:
        block.mlp.fc2.register_forward_pre_hook(lambda layer, args: inputs.append(args[0].numpy()))
    with torch.no_grad():
        fitted.teacher_.model.forward_features(fitted.preprocess(images))
    prefix = getattr(fitted.teacher_.model, "num_prefix_tokens", 0)
    expected = np.hstack([hidden[:, prefix:].std(axis=1) for hidden in inputs])
    np.testing.assert_allclose(detector.training_features_["variation"], expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(detector.transform(images)[:, : expected.shape[1]], expected, rtol=1e-9, atol=1e-12)


def test_what_a_block_shows_of_its_inside_is_gone_after_it(images):
    extractor = tiny_extractor().fit(images)
    batch, found = extractor.preprocess(images), []
    extractor.embed(batch, lambda *_: found.append(shown_deviation() is not None))
    assert found == [False, False, False, True, True, False, False] and shown_deviation() is None
    extractor.embed(batch)  # nobody looks
    with pytest.raises(RuntimeError):
        extractor.embed(batch, lambda index, *_: (_ for _ in ()).throw(RuntimeError) if index == 3 else None)
    assert shown_deviation() is None


class EndsWithMap(TimmExtractor):
    """A transformer that says that it ends with a map."""

    n_places_ = 4

    def embed(self, batch, visit=None):
        def translated(index, block, args, kwargs, output):
            visit(index, block, args, kwargs, self.to_maps(output) if index == len(self.blocks_) else output)

        return super().embed(batch, None if visit is None else translated)


def test_what_the_last_layer_returns_goes_before_what_blocks_show(images):
    extractor = EndsWithMap("test_vit", weights=None, image_size=32, precision="float64", device="cpu")
    detector = tiny_detector(extractor=extractor, feature_spaces=["variation"], normalize=False).fit(images)
    tokens = detector.extractor_.teacher_.model.forward_features(detector.extractor_.preprocess(images))[:, 1:]
    np.testing.assert_allclose(detector.transform(images), tokens.numpy().std(axis=1), rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("total, expected", [(1, []), (2, [0]), (6, [3, 4]), (12, [9, 10]), (24, [21, 22])])
def test_blocks_that_are_looked_into_are_two_before_the_last(total, expected):
    assert variation_indices(total) == expected


@pytest.mark.parametrize("model, size", [("test_vit", 16), ("test_efficientnet", 32)])
def test_variation_needs_four_places(images, model, size):
    extractor = tiny_extractor(model, image_size=size)
    assert "variation" not in tiny_detector(extractor=extractor).fit(images).feature_spaces_
    with pytest.raises(ValueError, match="no feature space 'variation': neither its last layer nor"):
        tiny_detector(extractor=extractor, feature_spaces=["variation"]).fit(images)


@pytest.mark.parametrize(
    "total, expected",
    [(1, []), (2, [0]), (4, [2]), (6, [3, 4]), (7, [4, 5]), (12, [7, 8, 9, 10]), (24, [19, 20, 21, 22])],
)
def test_layers_are_a_third_of_the_blocks_before_the_last(total, expected):
    assert layer_indices(total) == expected


def test_layers_are_class_token_and_mean_patch_token(images):
    detector = tiny_detector(feature_spaces=["layers"], normalize=False).fit(images)
    found = {}

    def visit(index, block, args, kwargs, output):
        found[index] = output.numpy()

    detector.extractor_.embed(detector.extractor_.preprocess(images), visit)
    groups = [part for i in (3, 4) for part in (found[i][:, 0], found[i][:, 1:].mean(axis=1))]
    expected = np.hstack([*groups, found[6][:, 1:].mean(axis=1)])  # and the mean of what the last layer gives
    np.testing.assert_allclose(detector.transform(images), expected, rtol=1e-6)


def test_explained_variance_keeps_the_fewest_components_that_reach_it(images):
    detector = tiny_detector(explained_variance=0.6).fit(images)
    z = normalize(detector.extractor_.transform(images))
    ratios = PCA(svd_solver="full").fit(z).explained_variance_ratio_
    kept = detector.spaces_["pretrained"].n_features_out_
    assert kept == int(np.argmax(np.cumsum(ratios) >= 0.6)) + 1


def test_no_students_are_trained_for_the_embedding_alone(images):
    assert not hasattr(tiny_detector(feature_spaces=["pretrained"]).fit(images), "students_")


@pytest.mark.parametrize("spaces", [[], ["embedding"], ["pretrained", "pretrained"]])
def test_unknown_feature_spaces_are_refused(spaces, images):
    with pytest.raises(ValueError, match="feature_spaces must be"):
        tiny_detector(feature_spaces=spaces).fit(images)


@pytest.mark.parametrize(
    "density",
    ["gmm", "knn", GaussianMixture(2, random_state=0), KernelDensity(), make_pipeline(PCA(2), GaussianMixture(1))],
)
@pytest.mark.parametrize("parameter", ["density", "discrepancy_density"])
def test_any_density_takes_either_place(density, parameter, images):
    assert np.isfinite(tiny_detector(**{parameter: density}).fit(images).score_samples(images)).all()


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


@pytest.mark.parametrize("n", [2, 5, 33])
@pytest.mark.parametrize("precision", ["float32", "float64"])
def test_copies_of_one_image_are_refused(images, n, precision):
    """Of images in other batches, features differ by rounding, which must not be taken for the variation of images."""
    with pytest.raises(ValueError, match=rf"All {n} training images are copies of one"):
        tiny_detector(extractor=tiny_extractor(precision=precision)).fit(np.repeat(images[:1], n, axis=0))


@pytest.mark.parametrize("copies", [1, 5])
@pytest.mark.parametrize("settings", [{"feature_spaces": "teacher"}, {}, {"density": "gaussian"}])
def test_of_two_images_an_image_between_them_is_normal_and_a_different_one_is_not(images, copies, settings):
    X = np.concatenate([images[:1], images[:1] // 2 + 60] * copies)
    detector = tiny_detector(**settings).fit(X)
    between = (X[:1].astype(int) + X[1:2]) // 2
    scores = detector.score_samples(np.concatenate([between, 255 - X[:1]]).astype(np.uint8))
    assert scores[0] > detector.offset_ > scores[1]
    assert abs(scores[0]) < 1e6


@pytest.mark.parametrize("which", [[0, 1], [0, 0, 1]])
def test_trained_students_say_how_many_images_they_need(images, which):
    with pytest.raises(ValueError, match="at least 3 images that differ.*, got 2: give more, or take RidgeStudents"):
        tiny_detector(students=tiny_students()).fit(images[which])


@pytest.mark.parametrize("students", [None, tiny_students()], ids=["solved", "trained"])
def test_a_single_image_that_can_be_read_is_too_few(images, tmp_path, students):
    write_images(tmp_path / "new", images[:3])
    for name in ("000.png", "002.png"):
        (tmp_path / "new" / name).write_bytes(b"not an image")
    detector = tiny_detector(students=students, on_error="skip")
    with (
        pytest.warns(UserWarning, match="could not be read"),
        pytest.raises(ValueError, match="fit needs 2 images, only 1 of 3 could be read"),
    ):
        detector.fit(tmp_path / "new")


def test_two_images_are_enough_for_finite_scores(images):
    assert np.isfinite(tiny_detector().fit(images[:2]).score_samples(images)).all()


def test_values_that_are_not_finite_are_an_error_and_no_score(fitted, monkeypatch):
    detector, X = fitted
    monkeypatch.setattr(
        "skl_transformaly.students._imitation.by_measure", lambda found: torch.full((len(found[4]), 4), torch.inf)
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


@pytest.mark.filterwarnings("ignore:Best performing initialization")
def test_a_random_state_seeds_what_is_within_a_density(images):
    density = make_pipeline(FunctionTransformer(), GaussianMixture(3, init_params="random", max_iter=1, tol=1e3))
    settings = {"density": density, "feature_spaces": ["pretrained"]}
    one, same, other = (
        tiny_detector(**settings, random_state=seed).fit(images).score_samples(images) for seed in (1, 1, 2)
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


def test_transform_gives_discrepancies_of_images_that_were_learned_without_them(images, rng):
    new = rng.integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)
    detector = tiny_detector(feature_spaces=["pretrained", "discrepancy"]).fit(images)
    width = detector.training_held_out_.shape[1]
    z = detector.transform(np.concatenate([new, images[3:]]))
    np.testing.assert_array_equal(z[4:, -width:], detector.training_held_out_[3:])
    assert not np.allclose(z[4:, -width:], detector.students_.transform(images[3:]), rtol=1e-3)
    np.testing.assert_allclose(z[:4, -width:], detector.students_.transform(new), rtol=1e-4)


@pytest.mark.parametrize("y", [None, [1] * 9 + [-1] * 3])
def test_fit_transform_is_transform_of_the_fit_without_measuring_again(images, y, monkeypatch):
    detector = tiny_detector(trim=0.2)
    z = detector.fit_transform(images, y)
    expected = detector.transform(images)
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(TransformalyDetector, "transform", lambda *_: 1 / 0)
    np.testing.assert_array_equal(clone(detector).fit_transform(images, y), z)


@pytest.mark.parametrize(
    ("parameter", "given"),
    [("extractor", TimmExtractor), ("students", RidgeStudents), ("density", GaussianDensity)],
)
def test_parts_are_objects(images, parameter, given):
    with pytest.raises(TypeError, match=rf"{parameter} must be an object, got the class .*: write {given.__name__}\("):
        tiny_detector(**{parameter: given}).fit(images)


def test_transform_names_its_columns(fitted):
    detector, X = fitted
    names = detector.get_feature_names_out().tolist()
    assert names[0] == "pretrained0" and names[-4:] == ["discrepancy4", "discrepancy5", "update4", "update5"]
    assert detector.transform(X).shape == (12, len(names))


def test_transform_gives_a_data_frame_where_asked(images):
    pytest.importorskip("pandas")
    frame = tiny_detector().set_output(transform="pandas").fit(images).transform(images)
    assert list(frame.columns)[-4:] == ["discrepancy4", "discrepancy5", "update4", "update5"]


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
    assert "TransformalyDetector" in html and "RidgeStudents" in html


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


def test_a_warning_of_few_images_points_at_the_call_of_fit(images):
    with pytest.warns(UserWarning, match="With 8 images") as caught:
        tiny_detector(contamination=0.05).fit(images[:8])
    assert [warning.filename for warning in caught if "With 8 images" in str(warning.message)] == [__file__]


@pytest.mark.parametrize("spaces", [[], ["pretrained", "pretrained"], ["pretrained", "colour"]])
def test_spaces_are_named_each_once(images, spaces):
    with pytest.raises(ValueError, match="feature_spaces must be 'auto', 'teacher' or some of"):
        tiny_detector(feature_spaces=spaces).fit(images)


@pytest.mark.parametrize("trim", [-0.1, 0.5, 1.0])
def test_less_than_half_of_the_images_can_be_trimmed(images, trim):
    with pytest.raises(ValueError, match="'trim' parameter"):
        tiny_detector(trim=trim).fit(images)


@pytest.mark.parametrize(
    "changes, named",
    [
        ({}, "density='auto'"),
        ({"density": "gaussian", "discrepancy_density": AutoDensity()}, r"discrepancy_density=AutoDensity\(\)"),
    ],
)
def test_log_densities_are_not_added_to_what_is_in_standard_deviations(images, changes, named):
    """A space in nats would silently decide the whole score."""
    with pytest.raises(ValueError, match=f"(?s)fusion='sum'.*{named}.*='gaussian'"):
        tiny_detector(fusion="sum", **changes).fit(images)


def test_a_sum_of_one_space_takes_any_density(images):
    detector = tiny_detector(fusion="sum", feature_spaces=["pretrained"]).fit(images)
    space = detector.spaces_["pretrained"]
    features = space.transform(detector.training_features_["pretrained"])
    np.testing.assert_allclose(detector.score_as_new(images), space.density_.score_samples(features))
