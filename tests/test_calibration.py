"""Conformal p-values against their definition, and their promises against simulation."""

import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from conftest import tiny_detector
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom, chisquare, norm
from sklearn.base import BaseEstimator, OutlierMixin, clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.frozen import FrozenEstimator
from sklearn.model_selection import GridSearchCV, train_test_split
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils.estimator_checks import parametrize_with_checks

from skl_transformaly import ConformalDetector, load, save
from skl_transformaly._fusion import needed
from skl_transformaly.model_selection import NormalOnly


class FirstValue(OutlierMixin, BaseEstimator):
    """Scores a sample by its first value."""

    def fit(self, X, y=None):
        self.n_seen_ = len(X)
        return self

    def score_samples(self, X):
        return np.asarray(X, dtype=float).reshape(len(X), -1)[:, 0]


def with_scores(calibration, **changes):
    """A detector with these calibration scores, whose own score is the value that it is given."""
    own = (np.reshape(np.asarray(calibration, dtype=float), (-1, 1)),)
    return ConformalDetector(FirstValue(), calibration=own, **changes).fit([[0.0], [0.0]])


def column(values):
    return np.reshape(np.asarray(values, dtype=float), (-1, 1))


@parametrize_with_checks(
    [ConformalDetector(IsolationForest(n_estimators=5, random_state=0), alpha=0.2, calibration=0.5)]
)
def test_scikit_learn_check(estimator, check):
    check(estimator)


# p-values

scores = st.lists(st.floats(-1e6, 1e6) | st.integers(-3, 3).map(float), min_size=4, max_size=30)


@settings(max_examples=100, deadline=None)
@given(calibration=scores, new=scores, alpha=st.floats(0.2, 0.9))
def test_p_values_are_the_share_that_scores_as_low(calibration, new, alpha):
    detector = with_scores(calibration, alpha=alpha)
    expected = [(1 + sum(c <= s for c in calibration)) / (len(calibration) + 1) for s in new]
    got = detector.p_values(column(new))
    assert got.dtype == np.float64
    np.testing.assert_allclose(got, expected, rtol=1e-15)
    assert (got > 0).all() and (got <= 1).all()
    counts = got * (len(calibration) + 1)
    np.testing.assert_allclose(counts, np.round(counts))
    assert (np.diff(got[np.argsort(new)]) >= 0).all()


@settings(max_examples=100, deadline=None)
@given(calibration=scores, new=scores, alpha=st.floats(0.2, 0.9) | st.sampled_from([0.2, 0.25, 0.5, 0.6]))
def test_predict_decision_function_and_p_values_agree(calibration, new, alpha):
    detector = with_scores(calibration, alpha=alpha)
    X = column(new + calibration)  # ties with every calibration score
    labels = detector.predict(X)
    np.testing.assert_array_equal(labels, np.where(detector.p_values(X) <= alpha, -1, 1))
    np.testing.assert_array_equal(labels, np.where(detector.decision_function(X) >= 0, 1, -1))
    np.testing.assert_array_equal(detector.decision_function(X), detector.score_samples(X) - detector.offset_)


def test_the_table_is_what_the_four_methods_give(rng):
    new = column([*rng.normal(size=9), np.nan])
    detector = ConformalDetector(FirstValue(), alpha=0.1, calibration=0.3, random_state=0)
    detector.fit(rng.normal(size=(60, 1)))
    table = detector.score_table(new)
    assert list(table) == ["score", "decision", "p_value", "prediction"]
    for name, method in zip(table, ("score_samples", "decision_function", "p_values", "predict")):
        np.testing.assert_array_equal(table[name], getattr(detector, method)(new))


def test_the_table_scores_once(rng, monkeypatch):
    detector = with_scores(rng.normal(size=40))
    calls = []
    score = FirstValue.score_samples
    monkeypatch.setattr(FirstValue, "score_samples", lambda self, X: calls.append(1) or score(self, X))
    detector.score_table(column([0.0]))
    assert calls == [1]


def test_zero_densities_are_no_trouble():
    X = column(np.r_[np.linspace(0, 1, 30), 5, 9])
    density = KernelDensity(kernel="tophat", bandwidth=0.2)
    detector = ConformalDetector(density, alpha=0.3, calibration=(column([-50, -20, 50, 0.5]),)).fit(X)
    assert detector.offset_ == -np.inf  # three of four calibration scores
    got = detector.decision_function(column([99, 0.5]))
    assert not np.isnan(got).any()
    np.testing.assert_array_equal(np.where(got >= 0, 1, -1), detector.predict(column([99, 0.5])))


def test_what_calibrates_is_not_fitted_on(rng):
    X = rng.normal(size=(50, 2))
    detector = ConformalDetector(OneClassSVM(nu=0.1), alpha=0.2, calibration=0.3, random_state=0).fit(X)
    train, test = train_test_split(X, test_size=0.3, random_state=0)
    inner = OneClassSVM(nu=0.1).fit(train)
    np.testing.assert_allclose(detector.calibration_scores_, np.sort(inner.score_samples(test)))
    np.testing.assert_allclose(detector.score_samples(X), inner.score_samples(X))


def test_own_calibration_images_leave_all_of_X_to_the_fit():
    assert with_scores(np.arange(19)).estimator_.n_seen_ == 2


def test_a_fitted_detector_is_calibrated_as_it_is(rng):
    X, X_cal = rng.normal(size=(40, 2)), rng.normal(size=(40, 2))
    inner = OneClassSVM().fit(X)
    detector = ConformalDetector(FrozenEstimator(inner), calibration=(X_cal,)).fit(X[:5])
    np.testing.assert_array_equal(detector.score_samples(X_cal), inner.score_samples(X_cal))


def test_seed_decides_the_split(rng):
    X = rng.normal(size=(100, 2))

    def calibrate(seed):
        return ConformalDetector(FirstValue(), random_state=seed).fit(X).calibration_scores_

    np.testing.assert_array_equal(calibrate(0), calibrate(0))
    assert not np.array_equal(calibrate(0), calibrate(1))


def test_a_fit_forgets_the_one_before(rng):
    X = rng.normal(size=(100, 2))
    detector = ConformalDetector(OneClassSVM(), calibration=0.5, random_state=0).fit(X)
    assert len(detector.fitted_positions_) < len(X)
    detector.set_params(calibration=(X[:40],)).fit(X[40:])
    assert detector.fitted_positions_ is None


# Promises


def test_p_values_of_normal_samples_are_uniform():
    rng = np.random.default_rng(0)
    ranks = []
    for _ in range(800):
        detector = with_scores(rng.normal(size=9), alpha=0.3)
        ranks.append(round(10 * detector.p_values(rng.normal(size=(1, 1)))[0]))
    assert chisquare(np.bincount(ranks, minlength=11)[1:]).pvalue > 1e-4


def test_false_positive_rate_is_the_promised_one():
    rng = np.random.default_rng(1)
    # floor(0.25 * 10) of 10 ranks are flagged: a rate of 0.2, where quantiles without the + 1 would give 0.3
    flagged = sum(
        with_scores(rng.normal(size=9), alpha=0.25).predict(rng.normal(size=(1, 1)))[0] == -1 for _ in range(800)
    )
    low, high = binom.interval(0.9999, 800, 0.2)
    assert low <= flagged <= high


def test_rate_holds_where_the_training_quantile_fails():
    # nearest neighbours of 30 points in 8 dimensions: training scores are far too good
    rng = np.random.default_rng(2)
    kept, optimistic = [], []
    for _ in range(60):
        X, new = rng.normal(size=(60, 8)), rng.normal(size=(20, 8))
        inner = KernelDensity(bandwidth=0.5)
        detector = ConformalDetector(inner, alpha=0.1, calibration=0.5, random_state=0).fit(X)
        kept.append(np.mean(detector.predict(new) == -1))
        fitted = clone(inner).fit(X)
        optimistic.append(np.mean(fitted.score_samples(new) < np.quantile(fitted.score_samples(X), 0.1)))
    assert np.mean(kept) <= 0.1 + 4 * np.std(kept) / np.sqrt(60)
    assert np.mean(optimistic) > 0.5


def test_false_discovery_rate_is_kept():
    rng = np.random.default_rng(4)
    false, found = [], []
    anomalous = np.arange(50) < 10
    for _ in range(200):
        detector = with_scores(rng.normal(size=300))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            selected = detector.select(column(rng.normal(size=50) - 4 * anomalous), fdr=0.2)
        false.append(np.sum(selected & ~anomalous) / max(selected.sum(), 1))
        found.append(selected[anomalous].mean())
    # with independent p-values the rate is fdr times the share of normal images, 0.16
    error = 4 * np.std(false) / np.sqrt(200)
    assert 0.16 - error - 0.01 < np.mean(false) < 0.16 + error
    assert np.mean(found) > 0.9


# select


@pytest.mark.filterwarnings("ignore:.*score below all 100 calibration images")
@pytest.mark.parametrize("fdr", [0.0501, 0.123, 0.31, 0.77])
@pytest.mark.parametrize("seed", range(5))
def test_select_is_benjamini_and_hochberg(fdr, seed):
    rng = np.random.default_rng(seed)
    detector = with_scores(rng.normal(size=100))
    X = column(np.r_[rng.normal(size=15), rng.normal(-3, 1, size=5)])
    p = detector.p_values(X)
    ordered = np.sort(p)
    passing = [k for k in range(1, 21) if ordered[k - 1] <= k * fdr / 20]
    expected = p <= ordered[max(passing) - 1] if passing else np.zeros(20, dtype=bool)
    got = detector.select(X, fdr=fdr)
    assert got.dtype == bool
    np.testing.assert_array_equal(got, expected)


def test_select_needs_no_more_than_one_over_the_rate():
    detector = with_scores(np.arange(19))
    # a batch of anomalies only: all p-values are 1/20
    assert detector.select(column([-1.0] * 30), fdr=0.05).all()
    # 0.05 * 6 / 1 is 0.30000000000000004
    assert detector.select(column([-1.0] + [50.0] * 5), fdr=0.3).tolist() == [True] + [False] * 5
    with pytest.raises(ValueError, match="at least 24 calibration images, this detector has 19"):
        detector.select(column([-1.0] * 30), fdr=0.04)


def test_select_warns_where_calibration_images_are_too_few_for_the_batch():
    detector = with_scores(np.arange(19))
    # one p-value of 1/20 among 10 is compared to 0.1/10: it would take 5 of them, or 99 calibration images
    with pytest.warns(UserWarning, match=r"1 of 10 images score below all 19.*takes 5 such images, or about 99"):
        assert not detector.select(column([-1] + [9] * 9), fdr=0.1).any()
    assert detector.select(column([-1] * 5 + [9] * 5), fdr=0.1).sum() == 5
    assert with_scores(np.arange(99)).select(column([-1] + [50] * 9), fdr=0.1).sum() == 1


def test_select_is_silent_where_nothing_stands_out():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not with_scores(np.arange(19)).select(column([9] * 10)).any()


@pytest.mark.parametrize("fdr", [0, 1, -0.1, 1.5, np.nan])
def test_select_checks_its_rate(fdr):
    with pytest.raises(ValueError, match=r"fdr must be in \(0, 1\)"):
        with_scores(np.arange(19)).select(column([0]), fdr=fdr)


# Unreadable images


def test_nan_scores_are_anomalies_without_p_value():
    detector = with_scores(np.arange(99))
    X = column([np.nan, 50, -1])
    np.testing.assert_array_equal(detector.p_values(X), [np.nan, 0.52, 0.01])
    assert detector.predict(X).tolist() == [-1, 1, -1]
    assert np.isnan(detector.decision_function(X)[0])
    # one of two tested: 0.01 <= 0.02 / 2, which three tested would not allow
    assert detector.select(X, fdr=0.02).tolist() == [True, False, True]
    assert detector.select(X[:1]).tolist() == [True]


def test_nan_calibration_scores_are_left_out():
    with pytest.warns(UserWarning, match="2 of 21 calibration images scored NaN"):
        detector = with_scores([np.nan, *range(19), np.nan])
    assert detector.p_values(column([-1])) == 1 / 20


def test_what_is_left_must_suffice():
    with (
        pytest.warns(UserWarning, match="1 of 19 calibration images"),
        pytest.raises(ValueError, match="at least 19 calibration images, got 18"),
    ):
        with_scores([np.nan, *range(18)])


# Errors


@settings(max_examples=200, deadline=None)
@given(rate=st.floats(1e-4, 0.999) | st.integers(2, 5000).map(lambda n: 1 / n))
def test_needed_is_the_smallest_number_that_can_reach_the_rate(rate):
    n = needed(rate)
    assert 1 / (n + 1) <= rate < (1 / n if n else np.inf)


def test_just_enough_calibration_images_suffice(rng):
    detector = ConformalDetector(FirstValue(), calibration=0.2, random_state=0)
    assert len(detector.fit(rng.normal(size=(94, 1))).calibration_scores_) == 19
    with pytest.raises(ValueError, match="at least 19 calibration images, got 18"):
        detector.fit(rng.normal(size=(90, 1)))


@pytest.mark.parametrize("n, helps", [(30, True), (18, False)])
def test_held_out_scores_are_advised_only_where_they_would_be_enough(rng, n, helps):
    with pytest.raises(ValueError, match="at least 19 calibration images") as caught:
        ConformalDetector(FirstValue(), calibration=0.2).fit(rng.normal(size=(n, 1)))
    assert (f"calibration='held-out', by which all {n} images calibrate" in str(caught.value)) == helps


def test_a_detectors_own_held_out_scores_calibrate_without_another_fit(images, rng):
    new = rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8)
    alone = tiny_detector(feature_spaces=["pretrained"]).fit(images)
    detector = ConformalDetector(tiny_detector(feature_spaces=["pretrained"]), alpha=0.3, calibration="held-out")
    detector.fit(images)
    np.testing.assert_array_equal(detector.calibration_scores_, np.sort(alone.training_scores_))
    as_low = [sum(held_out <= score for held_out in alone.training_scores_) for score in alone.score_samples(new)]
    np.testing.assert_allclose(detector.p_values(new), (1 + np.array(as_low)) / 13)


class KeepsScores(FirstValue):
    """Has training scores, and says nothing about how they came about."""

    def fit(self, X, y=None):
        self.training_scores_ = self.score_samples(X) - 1
        return self


def test_the_last_step_of_a_pipeline_calibrates_with_its_own_held_out_scores(images, rng):
    detector = tiny_detector(feature_spaces=["pretrained"])
    mirrored = FunctionTransformer(lambda X: X[:, :, ::-1])
    whole = ConformalDetector(make_pipeline(mirrored, detector), alpha=0.3, calibration="held-out").fit(images)
    alone = ConformalDetector(clone(detector), alpha=0.3, calibration="held-out").fit(images[:, :, ::-1])
    np.testing.assert_array_equal(whole.calibration_scores_, alone.calibration_scores_)
    trimmed = make_pipeline(mirrored, clone(detector).set_params(trim=0.2))
    with pytest.raises(ValueError, match=r"with trim=0.2"):
        ConformalDetector(trimmed, alpha=0.3, calibration="held-out").fit(images)


def test_training_scores_of_another_detector_are_taken_as_held_out(rng):
    X = rng.normal(size=(20, 1))
    detector = ConformalDetector(KeepsScores(), calibration="held-out").fit(X)
    np.testing.assert_array_equal(detector.calibration_scores_, np.sort(X[:, 0] - 1))


@pytest.mark.parametrize(
    "estimator", [FirstValue(), tiny_detector(threshold="training", feature_spaces=["pretrained"])]
)
def test_without_held_out_scores_there_are_none_to_take(estimator, images):
    X = images if hasattr(estimator, "extractor") else images.reshape(12, -1)[:, :1].astype(float)
    with pytest.raises(ValueError, match="needs a detector with held-out training_scores_"):
        ConformalDetector(estimator, alpha=0.3, calibration="held-out").fit(X)


def test_held_out_scores_of_what_trim_left_are_refused(images):
    # a share of the least normal images would be missing in the calibration
    detector = tiny_detector(trim=0.1, feature_spaces=["pretrained"])
    search = GridSearchCV(detector, {"normalize": [True]}, scoring=lambda *_: 0.0, cv=2)  # whose detector comes later
    for estimator in (detector, search):
        with pytest.raises(ValueError, match="calibration='held-out' with trim=0.1 .* Set trim=0"):
            ConformalDetector(estimator, alpha=0.3, calibration="held-out").fit(images)
    ConformalDetector(detector, alpha=0.3, calibration=0.5).fit(images)


def test_too_few_are_refused_before_anything_is_fitted(rng):
    class Never(FirstValue):
        def fit(self, X, y=None):
            raise AssertionError("fitted")

    for calibration in (0.2, (rng.normal(size=(10, 1)),)):
        with pytest.raises(ValueError, match="at least 19"):
            ConformalDetector(Never(), calibration=calibration).fit(rng.normal(size=(10, 1)))


def test_training_images_are_no_calibration_images(rng):
    X = rng.normal(size=(30, 1))
    with pytest.raises(ValueError, match="Got X itself"):
        ConformalDetector(FirstValue(), calibration=(X,)).fit(X)
    with pytest.raises(ValueError, match="Got 2 items"):
        ConformalDetector(FirstValue(), calibration=(X, X)).fit(X)
    with pytest.raises(ValueError, match="Got X itself"):
        ConformalDetector(FirstValue(), calibration=(X,)).fit(X, np.r_[-np.ones(2), np.ones(len(X) - 2)])


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 0},
        {"alpha": 1.0},
        {"alpha": "auto"},
        {"calibration": 1},
        {"calibration": 1.0},
        {"calibration": 0.0},
        {"calibration": None},
        {"estimator": StandardScaler()},
        {"estimator": LocalOutlierFactor(novelty=False)},
    ],
)
def test_bad_parameters_are_refused(rng, changes):
    detector = ConformalDetector(**{"estimator": OneClassSVM(), **changes})
    with pytest.raises(ValueError, match=f"The '{next(iter(changes))}' parameter of ConformalDetector"):
        detector.fit(rng.normal(size=(100, 2)))


def test_known_anomalies_are_left_out(rng):
    X, y = rng.normal(size=(200, 2)), np.tile([1, -1], 100)
    detector = ConformalDetector(OneClassSVM(), random_state=0).fit(X, y)
    alone = ConformalDetector(OneClassSVM(), random_state=0).fit(X[y == 1])
    np.testing.assert_array_equal(detector.calibration_scores_, alone.calibration_scores_)
    np.testing.assert_array_equal(detector.fitted_positions_, 2 * alone.fitted_positions_)


def test_unfitted_says_so():
    for method in ("p_values", "predict", "decision_function", "score_samples", "select"):
        with pytest.raises(NotFittedError):
            getattr(ConformalDetector(OneClassSVM()), method)([[0]])


# End to end


@pytest.mark.parametrize(
    "inner", [IsolationForest(n_estimators=10, random_state=0), OneClassSVM(), LocalOutlierFactor(novelty=True)]
)
def test_scikit_learns_detectors(inner):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(400, 2))
    detector = ConformalDetector(inner, calibration=0.2, random_state=0).fit(X)
    assert np.mean(detector.predict(rng.normal(size=(400, 2))) == -1) < 0.12
    outside = rng.normal(size=(20, 2)) + 9
    assert (detector.predict(outside) == -1).all()
    assert detector.select(np.vstack([rng.normal(size=(20, 2)), outside]), fdr=0.2)[20:].all()


def test_anomalies_of_labelled_data_are_kept_out(rng):
    X, y = np.vstack([rng.normal(size=(100, 2)), rng.normal(9, 1, size=(20, 2))]), np.repeat([1, -1], [100, 20])
    wrapped = NormalOnly(ConformalDetector(OneClassSVM(), random_state=0)).fit(X, y)
    expected = ConformalDetector(OneClassSVM(), random_state=0).fit(X[:100])
    np.testing.assert_array_equal(wrapped.p_values(X), expected.p_values(X))
    np.testing.assert_array_equal(wrapped.select(X, fdr=0.3), expected.select(X, fdr=0.3))


def test_feature_names_are_the_estimators(rng):
    X = pd.DataFrame(rng.normal(size=(100, 2)), columns=["a", "b"])
    detector = ConformalDetector(OneClassSVM()).fit(X)
    assert detector.n_features_in_ == 2 and detector.feature_names_in_.tolist() == ["a", "b"]


@pytest.mark.parametrize("calibration", [0.5, "held-out"])
def test_images_of_any_origin(images, tmp_path, calibration):
    from torch.utils.data import Dataset

    from skl_transformaly.images._images import as_images

    class Pairs(Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return images[i], "label"

    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    paths = sorted(tmp_path.iterdir())
    inner = tiny_detector(feature_spaces=["pretrained"])
    detector = ConformalDetector(inner, alpha=0.3, calibration=calibration, random_state=0)
    expected = clone(detector).fit(images).calibration_scores_
    assert len(expected) == (6 if calibration == 0.5 else 12)
    pil = [Image.open(path) for path in paths]
    for X in (
        list(images),
        paths,
        [str(path) for path in paths],
        str(tmp_path),
        tmp_path,
        pil,
        Pairs(),
        as_images(paths),
    ):
        got = clone(detector).fit(X)
        np.testing.assert_allclose(got.calibration_scores_, expected)
        assert got.p_values(X).shape == (12,)


def test_own_calibration_images_may_be_a_folder(images, tmp_path):
    for i, image in enumerate(images[:6]):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
    inner = tiny_detector(feature_spaces=["pretrained"])
    got = ConformalDetector(inner, alpha=0.3, calibration=(str(tmp_path),)).fit(images[6:])
    expected = ConformalDetector(inner, alpha=0.3, calibration=(images[:6],)).fit(images[6:])
    np.testing.assert_allclose(got.calibration_scores_, expected.calibration_scores_)


@pytest.mark.filterwarnings("ignore:.*could not be read")
@pytest.mark.parametrize("kind", ["paths", "dataset"])
def test_unreadable_files_are_skipped_where_the_detector_skips(images, tmp_path, kind):
    from torch.utils.data import Dataset

    for i, image in enumerate(images):
        Image.fromarray(image).save(tmp_path / f"{i:02}.png")
    paths = sorted(tmp_path.iterdir())
    paths[4].write_bytes(b"not an image")

    class Paths(Dataset):
        def __len__(self):
            return len(paths)

        def __getitem__(self, i):
            return paths[i]

    X = paths if kind == "paths" else Paths()
    detector = ConformalDetector(
        tiny_detector(feature_spaces=["pretrained"], on_error="skip"), alpha=0.3, calibration="held-out"
    )
    with pytest.warns(UserWarning, match="1 of 12 images could not be read: they are left out"):
        detector.fit(X)
    assert len(detector.calibration_scores_) == 11
    labelled = clone(detector)
    with pytest.warns(UserWarning, match="1 of 11 images could not be read: they are left out"):
        labelled.fit(X, [-1] + [1] * 11)
    assert len(labelled.calibration_scores_) == 10
    p, labels = detector.p_values(paths), detector.predict(paths)
    assert np.flatnonzero(np.isnan(p)).tolist() == [4] and labels[4] == -1


def test_what_the_detector_can_do_is_there(images):
    detector = ConformalDetector(tiny_detector(feature_spaces=["pretrained"]), alpha=0.3, calibration=0.5).fit(images)
    np.testing.assert_array_equal(detector.transform(images), detector.estimator_.transform(images))
    assert list(detector.get_feature_names_out()) == list(detector.estimator_.get_feature_names_out())
    assert not hasattr(ConformalDetector(OneClassSVM()), "transform")
    assert not hasattr(ConformalDetector(OneClassSVM()), "anomaly_map")


def test_maps_are_passed_on_with_their_options(rng):
    class Maps(FirstValue):
        def anomaly_map(self, X, *, size):
            return np.zeros((len(X), size, size))

        def explain(self, X, space):
            return [space] * len(X)

    detector = ConformalDetector(Maps(), alpha=0.3).fit(rng.normal(size=(20, 2)))
    assert detector.anomaly_map([[0], [1]], size=3).shape == (2, 3, 3)
    assert detector.explain([[0], [1]], "pretrained") == ["pretrained"] * 2


def test_p_value_is_the_normal_tail(rng):
    detector = with_scores(rng.normal(size=20_000))
    z = np.linspace(-3, 3, 13)
    np.testing.assert_allclose(detector.p_values(column(z)), norm.cdf(z), atol=0.015)


def test_importing_loads_no_torch():
    code = "import sys; import skl_transformaly._calibration; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


class Nearest(OutlierMixin, BaseEstimator):
    """Knows its samples by heart."""

    def fit(self, X, y=None):
        self.X_ = np.asarray(X)
        return self

    def score_samples(self, X):
        return -np.abs(np.asarray(X)[:, :1] - self.X_[:, 0]).min(axis=1)

    def explain(self, X, n_neighbors=1):
        away = np.abs(np.asarray(X)[:, :1] - self.X_[:, 0])
        return {"neighbor0": away.argmin(axis=1), "distance0": away.min(axis=1)}


@pytest.mark.parametrize("calibration", [0.2, "own"])
def test_neighbours_are_positions_in_what_fit_was_given(calibration, rng):
    X = rng.permutation(100.0 * np.arange(60))[:, None]
    own = (rng.normal(size=(20, 1)),) if calibration == "own" else calibration
    detector = ConformalDetector(Nearest(), alpha=0.2, calibration=own, random_state=0).fit(X)
    table = detector.explain(X)
    there = table["distance0"] == 0
    assert there.sum() == (48 if calibration == 0.2 else 60)
    np.testing.assert_array_equal(table["neighbor0"][there], np.flatnonzero(there))


def test_neighbours_survive_saving(images, tmp_path):
    from skl_transformaly import load, save

    X = np.concatenate([images, 255 - images, images[:, ::-1]])
    detector = ConformalDetector(tiny_detector(), alpha=0.3, random_state=0).fit(X)
    save(detector, tmp_path / "a.tfm")
    before, after = detector.explain(X), load(tmp_path / "a.tfm").explain(X)
    np.testing.assert_array_equal(after["neighbor0"], before["neighbor0"])
    exact = before["distance0"] < 1e-6
    assert exact.any() and (before["neighbor0"][exact] == np.flatnonzero(exact)).all()


def test_mistakes_that_look_alike_say_what_to_write(rng):
    X = rng.normal(size=(60, 2))
    with pytest.raises(TypeError, match=r"got the class IsolationForest: write IsolationForest\(\.\.\.\)"):
        ConformalDetector(IsolationForest).fit(X)
    with pytest.raises(ValueError, match=r"pass calibration images as calibration=\(X_cal,\)"):
        ConformalDetector(IsolationForest(), calibration=X).fit(X)


def test_a_frozen_detector_is_calibrated_on_all_images(images, rng, tmp_path):
    """Its own images are elsewhere: those that calibrate are no neighbours, and no part of the fit."""
    frozen = FrozenEstimator(tiny_detector().fit(images))
    more = rng.integers(0, 256, (15, *images.shape[1:]), dtype=np.uint8)
    expected = frozen.estimator.explain(more)["neighbor0"]
    for detector, y in ((ConformalDetector(frozen, alpha=0.3), None), (NormalOnly(frozen), np.repeat([1, -1], [9, 6]))):
        detector.fit(more, y)
        np.testing.assert_array_equal(detector.explain(more)["neighbor0"], expected)
    detector = ConformalDetector(frozen, alpha=0.3).fit(more)
    assert len(detector.calibration_scores_) == 15
    save(detector, tmp_path / "m.tfm")
    np.testing.assert_allclose(load(tmp_path / "m.tfm").p_values(more), detector.p_values(more))


def test_a_detector_that_learned_more_is_explained_and_saved(images, rng, tmp_path):
    detector = ConformalDetector(tiny_detector(), alpha=0.4, calibration=0.5, random_state=0).fit(images)
    more = rng.integers(0, 256, (3, *images.shape[1:]), dtype=np.uint8)
    detector.estimator_.partial_fit(more)
    assert detector.explain(more, n_neighbors=2)["neighbor0"].tolist() == [-1, -1, -1]
    save(detector, tmp_path / "m.tfm")
    np.testing.assert_allclose(load(tmp_path / "m.tfm").p_values(more), detector.p_values(more))
