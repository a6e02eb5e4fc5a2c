"""What a fitted detector learns afterwards: more images, fewer, known anomalies, and a few that are not normal."""

from __future__ import annotations

import io
import pickle
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_detector, tiny_paper, tiny_students
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.optimize import minimize
from sklearn.base import clone
from sklearn.frozen import FrozenEstimator
from sklearn.metrics import roc_auc_score
from sklearn.mixture import GaussianMixture
from sklearn.preprocessing import StandardScaler

from skl_transformaly import ConformalDetector, RidgeStudents, load, save
from skl_transformaly._cleaning import least_normal, near_duplicates
from skl_transformaly._fusion import held_out_threshold, interpolated_p_values
from skl_transformaly._weighting import _fit as fit_weights
from skl_transformaly._weighting import space_weights
from skl_transformaly._wrappers import decider
from skl_transformaly.images._images import as_images
from skl_transformaly.images._sequence import Images


def without_students(**changes):
    return tiny_detector(**{"feature_spaces": ["pretrained", "layers"], **changes})


def trained(**changes):
    return tiny_detector(**{"students": tiny_students(), **changes})


def save_images(images, folder):
    paths = []
    for i, image in enumerate(images):
        paths.append(folder / f"{i}.png")
        Image.fromarray(image).save(paths[-1])
    return paths


def assert_same(one, other, X):
    np.testing.assert_allclose(one.score_samples(X), other.score_samples(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(one.training_scores_, other.training_scores_, rtol=1e-6, atol=1e-6)
    assert one.offset_ == pytest.approx(other.offset_, rel=1e-6, abs=1e-6)


@pytest.fixture
def new(rng):
    return np.random.default_rng(7).integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)


# ----- partial_fit


@pytest.mark.parametrize("build", [without_students, tiny_detector], ids=["teacher alone", "solved students"])
def test_learning_in_parts_is_learning_at_once(build, images, new):
    parts = build().partial_fit(images[:5]).partial_fit(images[5:6]).partial_fit(images[6:])
    assert_same(parts, build().fit(images), new)


@settings(max_examples=10, deadline=None)
@given(cuts=st.lists(st.integers(2, 12), max_size=3))
def test_chunks_of_any_size_learn_the_same(cuts):
    X = np.random.default_rng(0).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    parts = without_students(feature_spaces=["pretrained"])
    for chunk in np.split(X, sorted({*cuts, 2})):
        if len(chunk):
            parts.partial_fit(chunk)
    assert_same(parts, without_students(feature_spaces=["pretrained"]).fit(X), X[:3] // 2)


def test_new_images_run_the_teacher_alone_without_students(images, monkeypatch):
    detector = without_students().fit(images[:8])
    seen = []
    embed = type(detector.extractor_).embed

    def count(self, batch, visit=None):
        seen.append(len(batch))
        return embed(self, batch, visit)

    monkeypatch.setattr(type(detector.extractor_), "embed", count)
    detector.partial_fit(images[8:])
    assert sum(seen) == 4


def test_trained_students_stay(images, new):
    detector = tiny_detector(students=tiny_students()).fit(images[:8])
    before = detector.students_.transform(new)
    detector.partial_fit(images[8:])
    np.testing.assert_array_equal(detector.students_.transform(new), before)
    assert len(detector.training_scores_) == 12 and np.isfinite(detector.training_scores_).all()


def test_a_detector_from_a_file_learns_with_its_students_as_they_are(images, new, tmp_path):
    detector = tiny_detector().fit(images[:8])
    save(detector, tmp_path / "m.tfm")
    loaded = load(tmp_path / "m.tfm").partial_fit(images[8:], update_students=False)
    assert_same(loaded, detector.partial_fit(images[8:], update_students=False), new)


@pytest.mark.parametrize("change", [0, 1], ids=["copies", "near copies"])
@pytest.mark.parametrize("build", [tiny_detector, trained], ids=["solved students", "trained students"])
def test_copies_are_not_taken_as_unseen_by_students_that_stay(build, change, images):
    more = np.concatenate([np.clip(images[:2], 1, 254) + np.uint8(change), images[8:]])
    detector = build().fit(np.clip(images[:8], 1, 254)).partial_fit(more, update_students=False)
    groups, held_out = detector.training_groups_, detector.training_held_out_
    assert (groups[8:10] == groups[:2]).all()
    np.testing.assert_array_equal(held_out[8:10], held_out[:2])
    unseen = detector.students_.transform(images[8:])
    np.testing.assert_allclose(held_out[10:], unseen, rtol=1e-6)


def test_a_detector_without_its_images_says_how_to_go_on(images):
    detector = pickle.loads(pickle.dumps(tiny_detector().fit(images[:8])))
    with pytest.raises(ValueError, match="update_students=False"):
        detector.partial_fit(images[8:])
    assert len(detector.training_scores_) == 8


def test_a_detector_that_is_given_its_images_again_learns_as_before(images, new):
    detector = tiny_detector().fit(images[:8])
    given = pickle.loads(pickle.dumps(detector)).set_training_images(images[:8]).partial_fit(images[8:])
    assert_same(given, detector.partial_fit(images[8:]), new)


def test_other_training_images_are_refused(images):
    detector = tiny_detector().fit(images[:8])
    with pytest.raises(ValueError, match="the 8 training images, got 7"):
        detector.set_training_images(images[:7])
    with pytest.raises(ValueError, match="1 of 8 images have changed.*position 2"):
        detector.set_training_images([*images[:2], images[9], *images[3:8]]).forget([0])


def test_images_that_changed_since_are_an_error(images, tmp_path):
    paths = save_images(images, tmp_path)
    detector = tiny_detector().fit(paths[:8])
    before = detector.training_scores_
    Image.fromarray(255 - images[3]).save(paths[3])
    with pytest.raises(ValueError, match="1 of 8 images have changed.*position 3"):
        detector.partial_fit(paths[8:])
    assert detector.training_scores_ is before


@pytest.mark.parametrize(
    "changes", [{"contamination": 5.0}, {"trim": 0.9}, {"threshold": "middle"}, {"fusion": "mean"}], ids=str
)
@pytest.mark.parametrize("fitted", [False, True])
def test_a_parameter_out_of_its_range_is_refused_when_learning(images, new, fitted, changes):
    detector = without_students()
    if fitted:
        detector.fit(images)
    detector.set_params(**changes)
    with pytest.raises(ValueError, match=f"The '{next(iter(changes))}' parameter"):
        detector.partial_fit(new)


def test_a_parameter_out_of_its_range_is_refused_when_forgetting(images):
    detector = without_students().fit(images).set_params(contamination=5.0)
    with pytest.raises(ValueError, match="The 'contamination' parameter"):
        detector.forget([0])


@pytest.mark.parametrize("indices", [[-1], [12], [0, 99], np.array([-3])])
def test_only_positions_of_training_images_are_forgotten(images, indices):
    detector = without_students().fit(images)
    with pytest.raises(IndexError, match="is not that of a training image: there are 12"):
        detector.forget(indices)
    assert (detector.training_labels_ == 1).all()


@pytest.mark.parametrize("update_students", [True, False])
def test_what_trim_left_out_may_come_back_when_others_are_forgotten(images, update_students):
    detector = tiny_detector(trim=0.3).fit(images[:5])
    learned = np.flatnonzero(detector.training_labels_ == 1)
    assert len(learned) == 3
    detector.forget(learned[:2], update_students=update_students)
    assert (detector.training_labels_ == 1).sum() == 2 and np.isfinite(detector.training_scores_).sum() == 2
    with pytest.raises(ValueError, match="would"):
        detector.forget(np.arange(5)[detector.training_labels_ >= 0][:2], update_students=update_students)


def test_an_image_that_is_gone_can_be_forgotten(images, new, tmp_path):
    paths = save_images(images, tmp_path)
    detector = tiny_detector().fit(paths)
    paths[3].unlink()
    detector.forget([3])
    assert_same_but_for(detector, tiny_detector().fit(np.delete(images, 3, axis=0)), new, 3)
    detector.partial_fit(new[:2]).forget([5])  # which read all others once more
    expected = tiny_detector().fit(np.concatenate([np.delete(images, [3, 5], axis=0), new[:2]]))
    np.testing.assert_allclose(detector.score_samples(new[2:]), expected.score_samples(new[2:]), rtol=1e-6)


def assert_same_but_for(one, other, X, position):
    np.testing.assert_allclose(one.score_samples(X), other.score_samples(X), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.delete(one.training_scores_, position), other.training_scores_, rtol=1e-6)
    assert np.isnan(one.training_scores_[position])


def test_parts_may_be_as_many_as_calls_within_calls_may_not():
    X = np.random.default_rng(0).integers(0, 256, (2000, 4, 4, 3), dtype=np.uint8)
    joined = as_images(X[:1])
    for i in range(1, len(X)):
        joined = Images.joined([joined, as_images(X[i : i + 1])])
    assert len(joined) == len(X)
    for i in (0, 1, 1000, 1999):
        np.testing.assert_array_equal(joined[i], X[i])
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(joined))[0], X[0])


def test_seeds_of_densities_stay_when_nothing_is_forgotten(images, new):
    spaces = ["pretrained", "discrepancy"]
    density = GaussianMixture(2, init_params="random", max_iter=1)
    detector = trained(density=density, feature_spaces=spaces, random_state=0).fit(images)
    before = detector.score_as_new(new)
    np.testing.assert_allclose(detector.forget([]).score_as_new(new), before, rtol=1e-6)


@pytest.mark.parametrize("students", [GaussianMixture(), StandardScaler(), "ridge"])
def test_what_are_no_students_is_said(images, students):
    with pytest.raises((TypeError, ValueError), match="students"):
        tiny_detector(students=students).fit(images)


@pytest.mark.parametrize("spaces", [[["pretrained"]], [1], [None], ["pretrained", "pretrained"], []])
def test_what_are_no_spaces_is_said(images, spaces):
    with pytest.raises(ValueError, match="feature_spaces must be"):
        tiny_detector(feature_spaces=spaces).fit(images)


def test_learned_images_are_recognised(images):
    detector = tiny_detector().fit(images[:8]).partial_fit(images[8:])
    np.testing.assert_array_equal(detector.score_samples(images), detector.training_scores_)


@pytest.mark.parametrize("label", [1, -1])
def test_a_single_labelled_image_can_follow(images, label):
    detector = tiny_detector().fit(images[:11])
    before = detector.offset_
    detector.partial_fit(images[11:], [label])
    assert detector.training_labels_.tolist() == [1] * 11 + [label]
    assert (detector.offset_ == before) == (label == -1)  # a known anomaly alone changes nothing


def test_copies_are_known_when_most_images_are_copies(images, new):
    X = np.concatenate([np.repeat(images[:1], 10, axis=0), images[1:4]])
    parts = without_students().fit(X[:11]).partial_fit(X[11:])
    assert_same(parts, without_students().fit(X), new)
    assert len(np.unique(parts.training_groups_)) == 4


@pytest.mark.parametrize("settings", [{"threshold": "held-out"}, {"fusion": "standardized"}])
def test_held_out_scores_that_the_fit_has_not_kept_are_asked_for_in_vain(images, settings):
    detector = tiny_paper().fit(images)
    with pytest.raises(ValueError, match="fit, with other settings, has kept none: fit anew"):
        detector.set_params(**settings).forget([0])


# ----- forget


@pytest.mark.parametrize("chosen", [np.arange(12) == 5, [5], np.array([5], np.uint8)])
def test_a_mask_or_positions_are_forgotten(images, chosen):
    assert np.flatnonzero(without_students().fit(images).forget(chosen).training_labels_ == -2).tolist() == [5]


@pytest.mark.parametrize("chosen", [[5.9], ["5"], [True, False], [12], [None]])
def test_what_is_no_position_is_not_forgotten(images, chosen):
    detector = without_students().fit(images)
    with pytest.raises(IndexError):
        detector.forget(chosen)
    assert (detector.training_labels_ == 1).all()


def test_nothing_may_be_forgotten(images):
    assert (without_students().fit(images).forget([]).training_labels_ == 1).all()


def test_two_images_that_can_be_read_must_be_left(images, tmp_path):
    paths = save_images(images[:4], tmp_path)
    paths[1].write_bytes(b"not an image")
    with pytest.warns(UserWarning, match="could not be read"):
        detector = without_students(on_error="skip").fit(paths)
    with pytest.raises(ValueError, match="1 of 4 images would be left that can be read"):
        detector.forget([0, 2])


@pytest.mark.parametrize("build", [without_students, tiny_detector], ids=["teacher alone", "solved students"])
def test_what_was_forgotten_was_never_learned(build, images, new):
    detector = build().fit(images).forget([2, 11])
    expected = build().fit(np.delete(images, [2, 11], axis=0))
    np.testing.assert_allclose(detector.score_samples(new), expected.score_samples(new), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(np.delete(detector.training_scores_, [2, 11]), expected.training_scores_, atol=1e-6)
    assert np.isnan(detector.training_scores_[[2, 11]]).all()


def test_a_forgotten_image_is_scored_as_a_new_one(images):
    detector = without_students().fit(images).forget([0])
    assert detector.training_labels_.tolist() == [-2] + [1] * 11
    assert np.isfinite(detector.score_samples(images[:1])).all()
    np.testing.assert_array_equal(detector.score_samples(images[:1]), detector.score_as_new(images[:1]))


def test_copies_are_known_when_another_image_was_forgotten(images):
    groups = without_students().fit(np.concatenate([images, images[-1:]])).forget([0]).training_groups_
    assert groups[0] == -1 and groups[-1] == groups[-2]
    assert len(np.unique(groups[1:])) == 11


def test_forgotten_images_stay_forgotten(images, new):
    detector = without_students().fit(images[:8]).forget([1]).partial_fit(images[8:])
    expected = without_students().fit(np.delete(images, 1, axis=0))
    np.testing.assert_allclose(detector.score_samples(new), expected.score_samples(new), rtol=1e-6, atol=1e-6)


def test_neighbours_keep_their_positions(images):
    detector = without_students().fit(images).forget([0, 1])
    assert detector.explain(images[5:6], n_neighbors=1)["neighbor0"].tolist() == [5]


def test_two_images_must_be_left(images):
    with pytest.raises(ValueError, match="leave 1 of 12"):
        without_students().fit(images).forget(range(11))


@pytest.mark.parametrize("index", [12, -13])
def test_only_training_images_can_be_forgotten(images, index):
    with pytest.raises(IndexError):
        without_students().fit(images).forget([index])


# ----- known anomalies


def labelled(images, count):
    anomalies = np.random.default_rng(3).integers(0, 40, (count, 20, 24, 3), dtype=np.uint8)
    return np.concatenate([images, anomalies]), np.r_[np.ones(len(images), int), -np.ones(count, int)]


def test_normality_is_learned_from_normal_images_alone(images, new):
    X, y = labelled(images, 3)
    with pytest.warns(UserWarning, match="3 known anomalies change nothing"):
        detector = tiny_detector().fit(X, y)
    assert_scores = tiny_detector().fit(images).score_samples(new)
    np.testing.assert_allclose(detector.score_samples(new), assert_scores, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(detector.weights_, tiny_detector().fit(images).weights_)
    assert detector.training_labels_.tolist() == y.tolist()


def test_known_anomalies_are_scored_as_new_images(images):
    X, y = labelled(images, 6)
    detector = without_students().fit(X, y)
    assert np.isnan(detector.training_scores_[12:]).all()
    np.testing.assert_array_equal(detector.score_samples(X[12:]), detector.score_as_new(X[12:]))


def test_parts_sum_to_the_weighted_score(images, new, tmp_path, monkeypatch):
    monkeypatch.setattr("skl_transformaly._learning.space_weights", lambda *parts: np.array([0.5, 1.5]))
    X, y = labelled(images, 6)
    detector = without_students().fit(X, y)
    table = detector.explain(new)
    np.testing.assert_allclose(table["pretrained"] + table["layers"], detector.score_samples(new), rtol=1e-9)
    plain = without_students().fit(images).explain(new)
    np.testing.assert_allclose(table["layers"], 1.5 * plain["layers"], rtol=1e-6)
    np.testing.assert_allclose(table["times_layers"], plain["times_layers"], rtol=1e-6)
    save(detector, tmp_path / "m.tfm")
    np.testing.assert_allclose(load(tmp_path / "m.tfm").score_samples(new), detector.score_samples(new), rtol=1e-9)


def test_fit_predict_judges_known_anomalies_as_new_images(images):
    X, y = labelled(images, 5)
    y[:6] = -1  # half of the normal images, which resemble the others
    detector = without_students()
    labels = detector.fit_predict(X, y)
    np.testing.assert_array_equal(labels[y == -1], detector.predict(X[y == -1]))
    assert set(labels[y == -1]) == {1, -1}


def test_a_calibrated_detector_leaves_anomalies_out(images, new):
    X, y = labelled(images, 3)
    detector = ConformalDetector(without_students(), alpha=0.3, calibration="held-out")
    found, expected = (clone(detector).fit(*data).score_samples(new) for data in ((X, y), (images,)))
    np.testing.assert_allclose(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("y, message", [([1, -1], "2 labels for 12"), ([1] + [-1] * 11, "needs 2 normal")])
def test_labels_that_cannot_be_used(images, y, message):
    with pytest.raises(ValueError, match=message):
        without_students().fit(images, y)


@pytest.mark.parametrize("missing", [np.nan, None, pd.NA, pd.NaT])
@pytest.mark.parametrize("form", [list, pd.Series, lambda y: np.array(y, dtype=object)])
def test_a_missing_label_is_refused(images, missing, form):
    with pytest.raises(ValueError, match="y has no label for 1 of 12 samples"):
        without_students().fit(images, form([1] * 6 + [-1] * 5 + [missing]))


@pytest.mark.parametrize("y", [np.ones((12, 2)), iter([1] * 11 + [-1]), 1, [{}] * 12])
def test_a_y_that_cannot_be_used_is_said_not_to_be(images, y):
    with pytest.warns(UserWarning, match="takes all samples as normal"):
        assert (without_students().fit(images, y).training_labels_ == 1).all()


def test_a_useful_space_counts_more(rng):
    normal = rng.normal(size=(200, 3))
    known, new = (np.c_[rng.normal(-1.5, 1, 30), rng.normal(size=(30, 2))] for _ in range(2))
    weights = space_weights(normal, known)
    assert weights[0] > weights[1:].max()
    assert weights.mean() == pytest.approx(1)
    labels = np.r_[np.ones(200), np.zeros(30)]
    everything = np.concatenate([normal, new])
    assert roc_auc_score(labels, everything @ weights) > roc_auc_score(labels, everything.sum(axis=1))


@pytest.mark.parametrize("n_spaces, n_anomalies", [(1, 3), (2, 0)])
def test_weights_that_have_nothing_to_learn_are_equal_without_a_word(n_spaces, n_anomalies, rng):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        weights = space_weights(rng.normal(size=(20, n_spaces)), rng.normal(size=(n_anomalies, n_spaces)))
    assert weights.tolist() == [1.0] * n_spaces


def test_the_strongest_pull_that_helps_is_taken():
    # one space tells all, the other adds so little noise that slightly unequal weights suffice
    normal, known = np.column_stack([np.ones(40), np.resize([1.02, -1.02], 40)]), -np.ones((20, 2))
    known[:, 1] = -normal[:20, 1]
    location, spread = [1, 0], np.array([1, 1.02])  # of the first, which does not vary, 1
    expected = fit_weights((normal - location) / spread, (known - location) / spread, 3.0, spread)
    np.testing.assert_allclose(space_weights(normal, known), expected)


def test_anomalies_where_a_density_is_zero_weigh_as_very_far_ones(rng):
    normal = rng.normal(size=(60, 2))
    far = rng.normal(size=(40, 2)) - [1.5, 0]
    far[:5, 0] = -1e5
    zero = np.where(far < -1e4, -np.inf, far)
    expected = space_weights(normal, far)
    assert expected[0] > expected[1]
    np.testing.assert_allclose(space_weights(normal, zero), expected, rtol=1e-6)


@pytest.mark.parametrize("pull", [0.1, 1.0, 3.0])
def test_weights_minimise_the_logistic_loss_and_the_pull_towards_equal_ones(pull, rng):
    normal, known = rng.normal(size=(50, 2)), rng.normal(size=(10, 2)) - [2, 1]

    def loss(values):
        *weights, shift = values
        errors = (np.logaddexp(0, -(normal @ weights + shift)), np.logaddexp(0, known @ weights + shift))
        return np.mean([part.mean() for part in errors]) + pull * 2 * np.var(weights)

    options = {"xatol": 1e-8, "fatol": 1e-12, "maxiter": 9999}
    best = minimize(loss, [1, 1, 1], method="Nelder-Mead", options=options).x[:2]
    np.testing.assert_allclose(fit_weights(normal, known, pull), best / best.mean(), rtol=1e-4)


@pytest.mark.parametrize("origin", [0.0, -280.0, 900.0])
def test_a_space_of_small_numbers_that_decides_gets_a_large_weight(rng, origin):
    """Log-densities that are added as they are differ from space to space in origin and unit."""
    normal, known = rng.normal(size=(50, 2)), rng.normal(size=(20, 2)) - [0, 3]
    unit = np.array([40.0, 0.5])
    first, second = space_weights(normal * unit + origin, known * unit + origin) * unit
    assert second > 1.5 * first


@pytest.mark.parametrize("seed", range(5))
def test_anomalies_that_all_spaces_see_alike_leave_weights_equal(seed):
    rng = np.random.default_rng(seed)
    weights = space_weights(rng.normal(size=(100, 3)), rng.normal(-1, 1, size=(8, 3)))
    assert weights.max() / weights.min() < 2


# ----- folders that are not clean


def test_the_images_least_like_the_others_are_found(rng):
    Z = rng.normal(size=(60, 4)) + 10
    Z[[7, 20]] = [[-9, 9, -9, 9], [9, -9, 9, -9]]
    assert least_normal({"a": Z}, {}, np.arange(60), 2 / 60, normalize=True).tolist() == [7, 20]


@pytest.mark.parametrize("build", [tiny_detector, trained], ids=["solved students", "trained students"])
def test_a_trimmed_image_may_come_back(build, images, new):
    detector = build(trim=0.2).fit(images)
    trimmed = np.flatnonzero(detector.training_labels_ == 0)
    assert len(trimmed) == 2
    detector.set_params(trim=0.0).forget([], update_students=False)
    assert (detector.training_labels_ == 1).all()
    assert np.isfinite(detector.score_samples(new)).all() and np.isfinite(detector.training_scores_).all()
    np.testing.assert_allclose(detector.training_held_out_[trimmed], detector.training_discrepancies_[trimmed])


def test_discrepancies_alone_do_not_tell_what_to_trim_later(images):
    detector = trained(feature_spaces=["discrepancy"], trim=0.2).fit(images[:8])
    with pytest.warns(UserWarning, match="trim needs features of the teacher itself"):
        detector.partial_fit(images[8:])


def test_trimmed_images_are_not_learned(rng):
    X = rng.integers(100, 156, (20, 20, 24, 3), dtype=np.uint8)
    X[3] = rng.integers(0, 30, X[3].shape)
    detector = without_students(trim=0.05).fit(X)
    assert np.flatnonzero(detector.training_labels_ == 0).tolist() == [3]
    expected = without_students().fit(np.delete(X, 3, axis=0))
    new = rng.integers(0, 256, (3, 20, 24, 3), dtype=np.uint8)
    np.testing.assert_allclose(detector.score_samples(new), expected.score_samples(new), rtol=1e-6, atol=1e-6)
    assert without_students(trim=0.05).fit_predict(X)[3] == -1


def test_a_share_of_less_than_one_image_is_said_to_leave_out_none(images):
    with pytest.warns(UserWarning, match="trim=0.05 of 8 images is less than one image: none is left out. trim=0.12"):
        detector = without_students(trim=0.05).fit(images[:8])
    assert (detector.training_labels_ == 1).all()
    assert (without_students(trim=0.125).fit(images[:8]).training_labels_ == 0).sum() == 1
    with warnings.catch_warnings():  # where nothing was to be left out, nothing is said
        warnings.filterwarnings("error", message="trim=")
        without_students().fit(images[:8]).partial_fit(images[8:10])


@pytest.mark.filterwarnings("ignore:trim=0.05 of 10 images is less than one")
def test_trimming_looks_at_all_images_again_as_more_come(rng):
    X = rng.integers(100, 156, (20, 20, 24, 3), dtype=np.uint8)
    X[12] = rng.integers(0, 30, X[12].shape)
    for detector in (tiny_detector(trim=0.05), without_students(trim=0.05)):
        detector.fit(X[:10]).partial_fit(X[10:])
        assert np.flatnonzero(detector.training_labels_ == 0).tolist() == [12]
        assert_same(detector, clone(detector).fit(X), X[:3] // 2)


def recompressed(image):
    file = io.BytesIO()
    Image.fromarray(image).resize((48, 36), Image.Resampling.BOX).save(file, "JPEG", quality=90)
    return np.asarray(Image.open(file))


def photographs(count):
    rng = np.random.default_rng(5)
    small = rng.integers(0, 256, (count, 3, 4, 3), dtype=np.uint8)
    return [np.asarray(Image.fromarray(image).resize((96, 72), Image.Resampling.BICUBIC)) for image in small]


def test_an_image_that_is_learned_after_all_is_recognised(images):
    detector = without_students(trim=0.1).fit(images[:10])
    (left_out,) = np.flatnonzero(detector.training_labels_ == 0)
    detector.set_params(trim=0.0).partial_fit(images[10:])
    assert (detector.training_labels_ == 1).all()
    assert detector.score_samples(images[left_out : left_out + 1])[0] == detector.training_scores_[left_out]


def test_copies_are_one_image():
    images = photographs(10)
    detector = without_students(contamination=0.3).fit([*images, recompressed(images[4])])
    groups = detector.training_groups_
    assert groups[10] == groups[4] and len(np.unique(groups)) == 10


@pytest.mark.filterwarnings("ignore::UserWarning")  # one known anomaly is few
def test_what_is_not_learned_is_a_copy_of_nothing(images):
    detector = without_students(contamination=0.3).fit(images[:6], [1, 1, 1, 1, 1, -1])
    assert detector.training_groups_[5] == -1 and (detector.training_groups_[:5] >= 0).all()


@pytest.mark.filterwarnings("ignore:1 of ", "ignore:With ")
@pytest.mark.parametrize("change", ["fit", "forget", "partial_fit"])
def test_what_cannot_be_read_is_a_copy_of_nothing(change, images, tmp_path):
    X = [*images[:4], np.full((20, 24, 3), np.nan), *images[4:8]]
    detector = without_students(on_error="skip").fit(X)
    if change == "forget":
        detector.forget([0])
    elif change == "partial_fit":
        detector.partial_fit(images[8:])
    assert detector.training_groups_[4] == -1
    save(detector, tmp_path / "m.tfm")
    np.testing.assert_array_equal(load(tmp_path / "m.tfm").training_groups_, detector.training_groups_)


def test_parts_under_a_fixed_camera_are_no_copies(rng):
    part = rng.integers(0, 256, (1, 48))
    assert len(np.unique(near_duplicates(part + rng.normal(0, 0.5, (30, 48)), np.arange(30)))) == 30


def test_pieces_of_sky_are_no_copies(rng):
    sky = 200 + rng.normal(0, 1, (20, 48))
    photographs = rng.uniform(0, 255, (20, 48))
    assert len(np.unique(near_duplicates(np.concatenate([sky, photographs]), np.arange(40)))) == 40


@given(st.integers(3, 12), st.integers(0, 5))
@settings(max_examples=20, deadline=None)
def test_groups_of_the_same_pixels_stay_together(n, seed):
    rng = np.random.default_rng(seed)
    groups = rng.integers(0, 3, n)
    found = near_duplicates(rng.uniform(0, 255, (3, 48))[groups], groups)
    assert len(np.unique(found)) == len(np.unique(groups))
    assert all(found[i] == found[j] for i in range(n) for j in range(n) if groups[i] == groups[j])


@pytest.mark.parametrize("copied", ["typical", "odd"])
def test_copies_count_once_in_threshold_and_p_values(copied, rng):
    images = photographs(20)
    once = without_students(contamination=0.2).fit(images)
    place = int(np.argsort(once.training_scores_)[0 if copied == "odd" else 15])
    many = without_students(contamination=0.2).fit([*images, *[images[place]] * 10])
    assert len(many.training_scores_) == 30 and len(many.reference_scores_) == 20
    first = np.sort(many.training_scores_[:20])
    np.testing.assert_allclose(many.reference_scores_, first)
    assert many.offset_ == pytest.approx(held_out_threshold(first, 0.2))
    np.testing.assert_allclose(many.p_values(images), interpolated_p_values(many.training_scores_[:20], first))


def test_recompressed_copies_do_not_make_a_space_mute():
    """Held-out scores of copies that differ a little are those of a fit without them, as of any other image."""
    images = photographs(30)
    alone = tiny_detector(contamination=0.2).fit(images)
    copied = tiny_detector(contamination=0.2).fit([*images, *map(recompressed, images[:6])])
    assert len(np.unique(copied.training_groups_)) == 30
    for name, space in alone.spaces_.items():
        assert 0.3 < copied.spaces_[name].spread_ / space.spread_ < 3


def test_an_image_that_has_changed_is_noticed_where_none_is_left_out(tmp_path, images):
    paths = [tmp_path / f"{i}.png" for i in range(len(images))]
    for path, image in zip(paths, images):
        Image.fromarray(image).save(path)
    detector = tiny_detector(students=RidgeStudents(n_blocks=1)).fit(paths)
    Image.fromarray(255 - images[3]).save(paths[3])
    with pytest.raises(ValueError, match="have changed|has changed"):
        detector.forget([])


def test_a_frozen_detector_decides_as_what_it_holds(images):
    """It passes on all attributes, a threshold too, but nothing can be updated in it."""
    detector = without_students().fit(images)
    assert decider(FrozenEstimator(detector)) is detector
