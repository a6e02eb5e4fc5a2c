"""Splits, wrappers, scorers and synthetic anomalies for one-class problems."""

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
from scipy.stats import rankdata
from sklearn import config_context
from sklearn.base import clone, is_outlier_detector
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import get_scorer, roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    GroupKFold,
    HalvingGridSearchCV,
    KFold,
    LeaveOneOut,
    PredefinedSplit,
    RandomizedSearchCV,
    RepeatedStratifiedKFold,
    StratifiedGroupKFold,
    StratifiedKFold,
    StratifiedShuffleSplit,
    cross_val_predict,
    cross_val_score,
)
from sklearn.neighbors import KernelDensity, LocalOutlierFactor
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import OneClassSVM
from sklearn.utils import get_tags

from skl_transformaly import (
    AutoDensity,
    ConformalDetector,
    GaussianDensity,
    ImageError,
    LocalKNNDensity,
    persistence,
)
from skl_transformaly.model_selection import (
    NormalOnly,
    OneClassSplit,
    SyntheticOutlierScorer,
    held_out_log_likelihood,
    synthetic_outliers,
)
from skl_transformaly.utils._labels import normal_samples


@pytest.fixture
def data(rng):
    """40 normal rows around 0 and 12 anomalies around 5, shuffled, with 10 groups."""
    X = np.vstack([rng.normal(size=(40, 2)), rng.normal(5, 1, size=(12, 2))])
    y = np.repeat([1, -1], [40, 12])
    order = rng.permutation(52)
    return X[order], y[order], np.arange(52) % 10


def forest(**changes):
    return IsolationForest(**{"n_estimators": 20, "random_state": 0, **changes})


class Recorder(OneClassSVM):
    """Remembers what it was fitted on."""

    def fit(self, X, y=None):
        self.seen_ = X
        return super().fit(X)


# OneClassSplit


def pairs(y):
    return list(StratifiedKFold(3).split(y, y))


@pytest.mark.filterwarnings("ignore:The groups parameter is ignored")
@pytest.mark.parametrize(
    "make, n_splits",
    [
        (lambda y, groups: 4, 4),
        (lambda y, groups: StratifiedGroupKFold(2), 2),
        (lambda y, groups: GroupKFold(2), 2),
        (lambda y, groups: RepeatedStratifiedKFold(n_splits=3, n_repeats=2, random_state=0), 6),
        (lambda y, groups: StratifiedShuffleSplit(3, random_state=0), 3),
        (lambda y, groups: PredefinedSplit(groups % 2), 2),
        (lambda y, groups: pairs(y), 3),
        (lambda y, groups: iter(pairs(y)), 3),
    ],
)
def test_training_folds_are_normal_and_test_folds_are_both(data, make, n_splits):
    X, y, groups = data
    cv = OneClassSplit(make(y, groups))
    for _ in range(2):
        folds = list(cv.split(X, y, groups))
        assert len(folds) == n_splits == cv.get_n_splits(X, y, groups)
        for train, test in folds:
            assert (y[train] == 1).all()
            assert set(y[test]) == {1, -1}
            assert not set(train) & set(test)


def test_folds_are_the_wrapped_splitters_less_the_anomalies(data):
    X, y, _ = data
    cv = StratifiedKFold(3, shuffle=True, random_state=7)
    for (train, test), (full, expected) in zip(OneClassSplit(3, random_state=7).split(X, y), cv.split(X, y)):
        assert train.tolist() == [i for i in full if y[i] == 1]
        np.testing.assert_array_equal(test, expected)


def test_groups_stay_whole(data):
    X, y, groups = data
    for train, test in OneClassSplit(StratifiedGroupKFold(3)).split(X, y, groups):
        assert not set(groups[train]) & set(groups[test])


def test_masks_in_an_iterable_are_positions_too(data):
    X, y, _ = data
    half = np.arange(len(y)) < 26
    ((train, test),) = OneClassSplit([(half, ~half)]).split(X, y)
    assert train.tolist() == [i for i in range(26) if y[i] == 1]
    assert test.tolist() == list(range(26, 52))


def test_repr_shows_what_it_was_made_of():
    assert " ".join(repr(OneClassSplit(LeaveOneOut())).split()) == "OneClassSplit(cv=LeaveOneOut(), random_state=None)"


@pytest.mark.parametrize("cv", [1, 0, -3, None, True, 2.5, "5"])
def test_bad_cv_is_refused(cv):
    with pytest.raises(ValueError, match="cv must be a number of folds of at least 2"):
        OneClassSplit(cv)


def test_a_seed_beside_a_splitter_is_refused():
    with pytest.raises(ValueError, match="no effect"):
        OneClassSplit(KFold(3), random_state=0)


BAD_LABELS = [
    np.array([0, 1] * 26),
    np.array([False, True] * 26),
    np.array(["1", "-1"] * 26),
    np.array([1, -1, 2, 1] * 13),
    np.array([1.0, -1.0, np.nan, 1.0] * 13),
    [True, False] * 26,
]


@pytest.mark.parametrize("y", BAD_LABELS)
@pytest.mark.parametrize("use", [lambda X, y: next(OneClassSplit(2).split(X, y)), NormalOnly(forest()).fit])
def test_other_labels_are_refused_with_a_way_out(data, y, use):
    with pytest.raises(ValueError, match=r"np\.where\(y_is_anomaly, -1, 1\)"):
        use(data[0], y)


@pytest.mark.parametrize("use", [lambda X, y: next(OneClassSplit(2).split(X, y)), NormalOnly(forest()).fit])
def test_missing_labels_are_refused(data, use):
    with pytest.raises(ValueError, match="needs y"):
        use(data[0], None)


@pytest.mark.parametrize(
    "kind",
    [list, pd.Series, lambda y: y.astype(float), lambda y: y.astype(object), lambda y: pd.Series(y, dtype="Int64")],
)
def test_labels_of_any_container(data, kind):
    X, y, _ = data
    for (train, _), (expected, _) in zip(
        OneClassSplit(2, random_state=0).split(X, kind(y)), OneClassSplit(2, random_state=0).split(X, y)
    ):
        np.testing.assert_array_equal(train, expected)


@pytest.mark.parametrize("cv", [LeaveOneOut(), KFold(4), [([0, 1], [])]])
def test_test_folds_of_one_kind_are_refused(cv):
    y = np.repeat([1, -1], 10)
    with pytest.raises(ValueError, match="StratifiedGroupKFold"):
        list(OneClassSplit(cv).split(y, y))


def test_no_anomaly_at_all_points_to_the_synthetic_scorer():
    with pytest.raises(ValueError, match=r"SyntheticOutlierScorer\(\)"):
        list(OneClassSplit(2).split(np.ones(10), np.ones(10)))


def test_training_folds_without_normal_samples_are_refused():
    y = np.array([1, 1, -1, -1, -1])
    with pytest.raises(ValueError, match="Training fold 0 holds no normal"):
        list(OneClassSplit([([2, 3], [0, 4])]).split(y, y))


def test_cross_val_score_fits_on_normal_samples(data):
    X, y, groups = data
    cv = OneClassSplit(StratifiedGroupKFold(2))
    got = cross_val_score(forest(), X, y, cv=cv, groups=groups, scoring="roc_auc")
    expected = []
    for train, test in StratifiedGroupKFold(2).split(X, y, groups):
        detector = forest().fit(X[train][y[train] == 1])
        expected.append(roc_auc_score(y[test] == 1, detector.score_samples(X[test])))
    np.testing.assert_allclose(got, expected)


def test_groups_are_routed(data):
    X, y, groups = data
    with config_context(enable_metadata_routing=True):
        search = GridSearchCV(
            NormalOnly(forest()), {}, cv=OneClassSplit(StratifiedGroupKFold(2)), scoring="roc_auc", error_score="raise"
        )
        search.fit(X, y, groups=groups)
    assert search.best_score_ > 0.9


@pytest.mark.parametrize(
    "cv",
    [OneClassSplit(2, random_state=0), OneClassSplit(StratifiedKFold(2)), OneClassSplit(PredefinedSplit([0, 1] * 26))],
)
def test_successive_halving_takes_splits_that_repeat(data, cv):
    X, y, _ = data
    search = HalvingGridSearchCV(
        NormalOnly(forest()),
        {"estimator__max_samples": [0.5, 1.0]},
        resource="estimator__n_estimators",
        max_resources=30,
        min_resources=10,
        cv=cv,
        scoring="roc_auc",
        return_train_score=False,
        error_score="raise",
    )
    assert search.fit(X, y).best_score_ > 0.8


def test_successive_halving_over_samples(data):
    X, y, _ = data
    search = HalvingGridSearchCV(
        NormalOnly(forest()),
        {"estimator__max_samples": [0.5, 1.0]},
        min_resources=26,
        cv=OneClassSplit(2, random_state=0),
        scoring="roc_auc",
        return_train_score=False,
        error_score="raise",
        random_state=0,
    )
    assert search.fit(X, y).best_score_ > 0.8


@pytest.mark.parametrize("cv", [OneClassSplit(2), OneClassSplit(StratifiedKFold(2, shuffle=True))])
def test_successive_halving_refuses_splits_that_do_not(data, cv):
    X, y, _ = data
    with pytest.raises(ValueError, match="consistent folds"):
        HalvingGridSearchCV(NormalOnly(forest()), {}, cv=cv, scoring="roc_auc").fit(X, y)


def test_randomized_search(data):
    X, y, _ = data
    search = RandomizedSearchCV(
        NormalOnly(forest()),
        {"estimator__n_estimators": [10, 20]},
        n_iter=1,
        cv=OneClassSplit(3, random_state=0),
        scoring="roc_auc",
        random_state=0,
    )
    assert search.fit(X, y).best_score_ > 0.9


# NormalOnly


def test_refit_after_a_search_is_on_normal_samples(data):
    X, y, _ = data
    search = GridSearchCV(
        NormalOnly(Recorder()), {"estimator__nu": [0.1, 0.2]}, cv=OneClassSplit(2, random_state=0), scoring="roc_auc"
    )
    search.fit(X, y)
    np.testing.assert_array_equal(search.best_estimator_.estimator_.seen_, X[y == 1])


@pytest.mark.parametrize(
    "detector", [forest(), LocalOutlierFactor(novelty=True), make_pipeline(StandardScaler(), forest())]
)
def test_answers_are_those_of_a_fit_on_the_normal_rows(data, detector):
    X, y, _ = data
    wrapped, bare = NormalOnly(detector).fit(X, y), clone(detector).fit(X[y == 1])
    for method in ("score_samples", "decision_function", "predict"):
        np.testing.assert_array_equal(getattr(wrapped, method)(X), getattr(bare, method)(X))
    np.testing.assert_array_equal(NormalOnly(detector).fit_predict(X, y), bare.predict(X))


def test_roc_auc_is_of_the_decision_function_with_normal_as_positive(data):
    X, y, _ = data
    wrapped = NormalOnly(forest()).fit(X, y)
    assert is_outlier_detector(wrapped)
    assert get_scorer("roc_auc")(wrapped, X, y) == roc_auc_score(y == 1, wrapped.decision_function(X)) > 0.9


def test_clone_and_parameters(data):
    wrapped = clone(NormalOnly(forest())).set_params(estimator__n_estimators=3)
    assert wrapped.get_params()["estimator__n_estimators"] == 3
    assert wrapped.fit(*data[:2]).estimator_.n_estimators == 3
    assert not hasattr(wrapped.estimator, "estimators_")  # what was given is left alone


def test_tags_are_the_estimators_with_y_required():
    tags, inner = get_tags(NormalOnly(forest())), get_tags(forest())
    assert tags.target_tags.required and not inner.target_tags.required
    assert tags.input_tags == inner.input_tags
    assert tags.estimator_type == "outlier_detector"


def test_feature_names_are_the_estimators(data):
    X = pd.DataFrame(data[0], columns=["a", "b"])
    wrapped = NormalOnly(forest())
    assert not hasattr(wrapped, "n_features_in_")
    wrapped.fit(X, data[1])
    assert wrapped.n_features_in_ == 2 and wrapped.feature_names_in_.tolist() == ["a", "b"]


def test_methods_are_there_where_the_estimator_has_them():
    assert not hasattr(NormalOnly(forest()), "transform")
    assert hasattr(NormalOnly(tiny_detector()), "transform")
    assert not hasattr(NormalOnly(GaussianDensity()), "predict")


def test_unfitted_says_so():
    with pytest.raises(NotFittedError):
        NormalOnly(forest()).predict([[0, 0]])


def test_no_normal_sample_is_refused():
    with pytest.raises(ValueError, match="no normal sample"):
        NormalOnly(forest()).fit([[0], [1]], [-1, -1])


def test_labels_of_another_length_are_refused():
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        NormalOnly(forest()).fit([[0], [1]], [1, 1, -1])


def save(images, folder):
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:02}.png")
    return sorted(folder.iterdir())


def test_images_of_any_origin(images, tmp_path):
    from torch.utils.data import Dataset

    class Pairs(Dataset):
        def __len__(self):
            return len(images)

        def __getitem__(self, i):
            return images[i], "label"

    y = np.tile([1, 1, -1], 4)
    expected = tiny_detector().fit(images[y == 1]).score_samples(images)
    paths = save(images, tmp_path)
    pil = [Image.open(path) for path in paths]
    for X in (images, list(images), paths, [str(path) for path in paths], str(tmp_path), tmp_path, pil, Pairs()):
        np.testing.assert_allclose(NormalOnly(tiny_detector()).fit(X, y).score_samples(X), expected)


def test_search_over_a_detector_of_images(images):
    y = np.tile([1, 1, -1], 4)
    search = GridSearchCV(
        NormalOnly(tiny_detector(feature_spaces=["pretrained"])),
        {"estimator__explained_variance": [0.5, 0.9]},
        cv=OneClassSplit(2, random_state=0),
        scoring="roc_auc",
        error_score="raise",
    )
    search.fit(images, y)
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


# normal_samples


@pytest.mark.parametrize(
    "y",
    [
        [0, -1, 0, -1, 0],
        [3.0, -1.0, 1.0, -1.0, 2.0],
        np.array([3, -1, 1, -1, 2], object),
        [[1], [-1], [0], [-1], [1]],
    ],
)
def test_anomalies_in_a_fit_are_warned_of(y):
    with pytest.warns(UserWarning, match=r"marks 2 of 5 samples as anomalies.*NormalOnly"):
        assert normal_samples(y, 5) is None


@pytest.mark.parametrize("y", [[0, 1, 1], [0.0, 1.0], np.array([1, 0], np.uint8)])
def test_labels_of_zero_and_one_in_a_fit_are_warned_of(y):
    with pytest.warns(UserWarning, match=r"y holds 0 and 1.*1 - AUROC.*np\.where"):
        assert normal_samples(y, len(y)) is None


@pytest.mark.parametrize(
    "y",
    [
        None,
        [1, 1, 1],
        [0, 0],
        [0.0, np.nan],
        [0, 1, 2],
        [0.3, -1.0, 2.5],
    ],
)
def test_any_other_y_is_ignored(y):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert normal_samples(y, 3) is None


@pytest.mark.parametrize("y", [[[1, -1]], 3, [[1], [1, 2]], [{}, {}, {}], [np.nan] * 3, [None, None, None]])
def test_what_cannot_be_labels_is_said_to_be_ignored(y):
    with pytest.warns(UserWarning, match="takes all (samples )?as normal"):
        assert normal_samples(y, 3) is None


@pytest.mark.parametrize("y", [[1, -1, np.nan], [1, None, 1], np.array([1, None, -1], dtype=object)], ids=str)
def test_a_label_that_is_missing_is_refused(y):
    with pytest.raises(ValueError, match="no label for 1 of 3 samples"):
        normal_samples(y, 3)


WORDS = {
    "list of texts": lambda n: ["good", "bad"] * (n // 2),
    "texts of one kind": lambda n: ["good"] * n,
    "array of texts": lambda n: np.array(["good", "bad"] * (n // 2)),
    "texts as objects": lambda n: np.array(["good", None] * (n // 2), dtype=object),
    "numbers as texts": lambda n: ["1", "-1"] * (n // 2),
    "bytes": lambda n: np.array([b"good", b"bad"] * (n // 2)),
    "column of texts": lambda n: np.array([["good"], ["bad"]] * (n // 2)),
    "booleans": lambda n: [True, False] * (n // 2),
    "array of booleans": lambda n: np.ones(n, dtype=bool),
    "booleans as objects": lambda n: np.array([True, None] * (n // 2), dtype=object),
    "Series of texts": lambda n: pd.Series(["good", "bad"] * (n // 2)),
    "Series of categories": lambda n: pd.Series(["good", "bad"] * (n // 2), dtype="category"),
    "Series of booleans": lambda n: pd.Series([True, False] * (n // 2), dtype="boolean"),
}


@pytest.mark.parametrize("words", WORDS)
@pytest.mark.parametrize("method", ["fit", "fit_predict"])
def test_texts_and_booleans_as_labels_are_refused(words, method, images):
    y = WORDS[words](len(images))
    convention = r"\+1 for normal samples and -1 for anomalies.*y=None.*NormalOnly"
    for detector in (tiny_detector(), ConformalDetector(IsolationForest(), alpha=0.4)):
        with pytest.raises(ValueError, match=convention):
            getattr(detector, method)(images if isinstance(detector, type(tiny_detector())) else images[:, 0, 0], y)
    with pytest.raises(ValueError, match=r"y must be \+1 for normal"):
        getattr(NormalOnly(IsolationForest()), method)(images[:, 0, 0], y)


def test_decisions_can_be_cross_validated(data):
    X, y, _ = data
    cv = OneClassSplit(4, random_state=0)
    detector = NormalOnly(IsolationForest(random_state=0))
    found = cross_val_predict(detector, X, y, cv=cv, method="decision_function")
    for train, test in cv.split(X, y):
        expected = IsolationForest(random_state=0).fit(X[train]).decision_function(X[test])
        np.testing.assert_allclose(found[test], expected)
    assert roc_auc_score(y, found) > 0.9


def test_labels_that_cross_validation_encodes_say_which_folds_to_take(data):
    X, y, _ = data
    with pytest.raises(ValueError, match=r"cross_val_predict.*cv=OneClassSplit\(\)"):
        cross_val_predict(NormalOnly(IsolationForest()), X, y, cv=3, method="decision_function")


# held_out_log_likelihood


def test_log_likelihood_is_the_mean_over_normal_rows(data):
    X, y, _ = data
    density = GaussianDensity().fit(X[y == 1])
    assert held_out_log_likelihood(density, X, y) == pytest.approx(np.mean(density.score_samples(X[y == 1])))
    assert held_out_log_likelihood(density, X) == pytest.approx(np.mean(density.score_samples(X)))


def test_log_likelihood_finds_the_true_covariance(rng):
    X = rng.multivariate_normal([0, 0], [[1, 0.95], [0.95, 1]], size=200)
    search = GridSearchCV(GaussianDensity(), {"shrinkage": [0.0, 1.0]}, scoring=held_out_log_likelihood, cv=3)
    assert search.fit(X).best_params_ == {"shrinkage": 0.0}


def test_unreadable_images_do_not_count(images, tmp_path):
    paths = save(images, tmp_path)
    detector = tiny_detector(on_error="skip", fusion="sum", density="gaussian").fit(images)
    expected = detector.score_samples(images[1:]).mean()
    paths[0].write_bytes(b"not an image")
    with pytest.warns(UserWarning, match="could not be read"):
        assert held_out_log_likelihood(detector, paths) == pytest.approx(expected)


@pytest.mark.parametrize("wrap", [lambda d: d, NormalOnly, make_pipeline])
def test_log_likelihood_refuses_scores_on_each_fits_own_scale(images, wrap):
    with pytest.raises(ValueError, match='Set fusion="sum" and density="gaussian"'):
        held_out_log_likelihood(wrap(tiny_detector()).fit(images, np.ones(len(images))), images)


@pytest.mark.parametrize("density", [AutoDensity(), LocalKNNDensity(n_neighbors=2)])
def test_log_likelihood_refuses_a_density_on_its_own_scale(data, images, density):
    """Alone, and in the only space of a detector, where ``fusion="sum"`` does not put it on another scale."""
    name = type(density).__name__
    with pytest.raises(ValueError, match=f"scores of {name} have an origin or a unit"):
        held_out_log_likelihood(clone(density).fit(data[0]), data[0])
    detector = tiny_detector(feature_spaces=["pretrained"], fusion="sum", density=density).fit(images)
    with pytest.raises(ValueError, match=f'scores of {name} .* Set fusion="sum" and density="gaussian"'):
        held_out_log_likelihood(detector, images)


@pytest.mark.parametrize("density", [AutoDensity(), LocalKNNDensity(n_neighbors=2)])
def test_a_search_refuses_a_density_on_its_own_scale_without_a_scorer(data, density):
    with pytest.raises(TypeError, match="should have a 'score' method"):
        GridSearchCV(density, {"n_neighbors": [1, 2]}).fit(data[0])


def test_log_likelihood_refuses_other_labels(data):
    with pytest.raises(ValueError, match=r"np\.where"):
        held_out_log_likelihood(GaussianDensity().fit(data[0]), data[0], data[1] > 0)


# synthetic_outliers

SHAPES = st.tuples(st.integers(2, 40), st.integers(2, 40), st.sampled_from([1, 3, 4]))


def noise(seed, shape, n=3):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


@settings(max_examples=100, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**31 - 1))
def test_cutpaste_changes_the_mask_alone_and_pastes_what_the_image_holds(shape, seed):
    X = noise(seed, shape)
    outliers, masks = synthetic_outliers(X, "cutpaste", return_masks=True, random_state=seed)
    assert outliers.shape == X.shape and outliers.dtype == X.dtype and masks.dtype == bool
    for image, outlier, mask in zip(X, outliers, masks):
        np.testing.assert_array_equal(outlier[~mask], image[~mask])
        assert (outlier != image).any()
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        h, w = np.ptp(rows) + 1, np.ptp(columns) + 1
        assert mask.sum() == h * w  # one full rectangle
        pasted = outlier[rows[0] : rows[0] + h, columns[0] : columns[0] + w]
        windows = np.lib.stride_tricks.sliding_window_view(image, (h, w), axis=(0, 1))
        assert (np.moveaxis(windows, 2, -1) == pasted).all(axis=(2, 3, 4)).any()


def test_cutpaste_keeps_the_papers_areas_and_aspects():
    X = np.zeros((300, 200, 200), dtype=np.uint8)
    X[:] = np.arange(200 * 200).reshape(200, 200) % 251
    _, masks = synthetic_outliers(X, "cutpaste", return_masks=True, random_state=0)
    area = masks.mean(axis=(1, 2))
    aspect = masks.any(axis=2).sum(axis=1) / masks.any(axis=1).sum(axis=1)
    assert 0.0195 < area.min() < 0.03 and 0.14 < area.max() < 0.1525
    assert 0.28 < aspect.min() < 0.4 and 2.7 < aspect.max() < 3.5
    assert (aspect > 1).mean() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("shape", [(1, 784, 1), (784, 1, 1)])
def test_cutpaste_of_a_single_line_keeps_its_area(shape):
    _, masks = synthetic_outliers(noise(0, shape, 50), "cutpaste", return_masks=True, random_state=0)
    assert masks.mean(axis=(1, 2)).min() > 0.019 and masks.mean(axis=(1, 2)).max() < 0.152


@settings(max_examples=50, deadline=None)
@given(shape=SHAPES, seed=st.integers(0, 2**31 - 1))
def test_patches_are_moved_and_none_is_lost(shape, seed):
    for image, outlier in zip(X := noise(seed, shape), synthetic_outliers(X, "patches", random_state=seed)):
        assert (outlier != image).any()
        h, w = shape[0] // min(3, shape[0]), shape[1] // min(3, shape[1])
        assert patches(outlier, h, w) == patches(image, h, w)


def patches(image, h, w):
    return sorted(
        image[i : i + h, j : j + w].tobytes()
        for i in range(0, h * min(3, image.shape[0]), h)
        for j in range(0, w * min(3, image.shape[1]), w)
    )


def test_channels_are_permuted():
    X = noise(0, (8, 8, 3), 60)
    orders = set()
    for image, outlier in zip(X, synthetic_outliers(X, "channels", random_state=0)):
        orders.add(tuple(next(k for k in range(3) if (outlier[..., c] == image[..., k]).all()) for c in range(3)))
    assert orders == {(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)}


def test_channels_keep_opacity():
    X = noise(0, (8, 8, 4))
    outliers = synthetic_outliers(X, "channels", random_state=0)
    np.testing.assert_array_equal(outliers[..., 3], X[..., 3])
    assert (outliers[..., :3] != X[..., :3]).any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("dtype, scale", [(np.uint8, 1), (np.uint16, 257), (np.float32, 1 / 255)])
def test_images_without_colour_are_inverted_in_their_range(channels, dtype, scale):
    X = np.repeat((noise(0, (8, 8, 1)) * np.float64(scale)).astype(dtype), channels, axis=-1)
    got = synthetic_outliers(X, "channels", random_state=0)
    assert got.dtype == dtype
    wide = X.astype(float)
    expected = wide.min(axis=(1, 2, 3), keepdims=True) + wide.max(axis=(1, 2, 3), keepdims=True) - wide
    np.testing.assert_allclose(got, expected, atol=1e-6)


def test_two_equal_channels_still_make_an_outlier():
    X = noise(0, (8, 8, 3), 40)
    X[..., 1] = X[..., 0]
    outliers = synthetic_outliers(X, "channels", random_state=0)
    assert (outliers != X).any(axis=(1, 2, 3)).all()


def test_all_kinds_take_turns():
    X = noise(0, (12, 12, 3), 6)
    outliers = synthetic_outliers(X, random_state=0)
    same_pixels = [np.array_equal(*(np.sort(x.reshape(-1, 3), axis=0) for x in pair)) for pair in zip(X, outliers)]
    same_values = [np.array_equal(*(np.sort(x, axis=None) for x in pair)) for pair in zip(X, outliers)]
    assert same_pixels == [False, False, True] * 2
    assert same_values == [False, True, True] * 2


def test_mostly_empty_images_change_as_well():
    X = load_digits().images[:60].astype(np.uint8)
    for kind in ("cutpaste", "patches"):
        assert (synthetic_outliers(X, kind, random_state=0) != X).any(axis=(1, 2)).all()


def test_shape_and_seed(rng):
    X = noise(0, (10, 12))
    got = synthetic_outliers(X, random_state=3)
    assert got.shape == X.shape
    np.testing.assert_array_equal(got, synthetic_outliers(X, random_state=3))
    assert (got != synthetic_outliers(X, random_state=4)).any()


def test_images_given_are_left_alone():
    X = noise(0, (10, 12, 3), 6)
    before = X.copy()
    synthetic_outliers(X, random_state=0)
    np.testing.assert_array_equal(X, before)


def test_files_become_a_list_of_arrays(images, tmp_path):
    save(images, tmp_path)
    outliers, masks = synthetic_outliers(tmp_path, "cutpaste", return_masks=True, random_state=0)
    expected, expected_masks = synthetic_outliers(images, "cutpaste", return_masks=True, random_state=0)
    assert isinstance(outliers, list) and isinstance(masks, list)
    np.testing.assert_array_equal(outliers, expected)
    np.testing.assert_array_equal(masks, expected_masks)


def test_sizes_may_differ():
    X = [noise(0, (10, 12, 3))[0], noise(0, (20, 8, 1))[0], noise(0, (9, 9))[0]]
    assert [o.shape for o in synthetic_outliers(X, random_state=0)] == [(10, 12, 3), (20, 8, 1), (9, 9, 1)]


@pytest.mark.parametrize("as_rows", [np.asarray, pd.DataFrame, lambda X: X.tolist()])
def test_rows_are_images_with_a_shape(as_rows):
    X = noise(0, (6, 7), 4)
    got = synthetic_outliers(as_rows(X.reshape(4, -1)), image_shape=(6, 7), random_state=0)
    np.testing.assert_array_equal(got, synthetic_outliers(X, random_state=0).reshape(4, -1))


@pytest.mark.parametrize("image_shape, message", [(None, "Pass image_shape"), ((6, 8), "must be"), ((42,), "must be")])
def test_rows_without_their_shape_are_refused(image_shape, message):
    with pytest.raises(ValueError, match=message):
        synthetic_outliers(np.zeros((4, 42)), image_shape=image_shape)


def test_unknown_kinds_are_refused():
    with pytest.raises(ValueError, match="kind must be one of"):
        synthetic_outliers(noise(0, (8, 8)), "blur")


@pytest.mark.parametrize("kind", ["channels", "patches", "all"])
def test_masks_of_the_whole_image_are_refused(kind):
    with pytest.raises(ValueError, match="needs kind='cutpaste'"):
        synthetic_outliers(noise(0, (8, 8)), kind, return_masks=True)


@pytest.mark.parametrize("kind", ["cutpaste", "patches"])
def test_single_pixels_are_refused(kind):
    with pytest.raises(ValueError, match="1 x 1"):
        synthetic_outliers(noise(0, (1, 1)), kind)


# SyntheticOutlierScorer


@pytest.fixture(scope="module")
def digits():
    return load_digits().data[:150]


def test_scorer_is_the_auroc_of_images_against_their_twins(digits):
    detector = OneClassSVM().fit(digits)
    twins = synthetic_outliers(digits, "patches", image_shape=(8, 8), random_state=5)
    inside, outside = detector.decision_function(digits), detector.decision_function(twins)
    expected = np.mean(inside[:, None] > outside) + np.mean(inside[:, None] == outside) / 2  # Mann-Whitney
    scorer = SyntheticOutlierScorer("patches", random_state=5, image_shape=(8, 8))
    assert scorer(detector, digits) == pytest.approx(expected)


def test_scorer_leaves_anomalies_out(digits):
    detector = OneClassSVM().fit(digits)
    y = np.repeat([1, -1], [100, 50])
    scorer = SyntheticOutlierScorer(image_shape=(8, 8))
    assert scorer(detector, digits, y) == scorer(detector, digits[:100]) == scorer(detector, digits[:100], y[:100])


def test_scorer_ranks_a_blind_detector_at_chance(digits):
    class Blind(OneClassSVM):
        def decision_function(self, X):
            return np.zeros(len(X))

    assert SyntheticOutlierScorer(image_shape=(8, 8))(Blind().fit(digits), digits) == 0.5


def test_scorer_drives_a_search(digits):
    search = GridSearchCV(
        OneClassSVM(), {"gamma": [1e-9, 1e-3]}, cv=2, scoring=SyntheticOutlierScorer("patches", image_shape=(8, 8))
    )
    assert search.fit(digits).best_params_ == {"gamma": 1e-3}


def test_scorer_refuses_rows(digits):
    with pytest.raises(ValueError, match="Pass image_shape"):
        SyntheticOutlierScorer()(OneClassSVM().fit(digits), digits)


def test_scorer_refuses_a_batch_without_normal_images(digits):
    with pytest.raises(ValueError, match="no normal sample"):
        SyntheticOutlierScorer(image_shape=(8, 8))(OneClassSVM().fit(digits), digits, -np.ones(150, dtype=int))


def test_scorer_checks_its_parameters(digits):
    with pytest.raises(ValueError, match="'kind' parameter"):
        SyntheticOutlierScorer("blur")(OneClassSVM().fit(digits), digits)


def test_scorer_is_cloned_and_shown():
    assert repr(clone(SyntheticOutlierScorer("patches"))) == "SyntheticOutlierScorer(kind='patches')"


def test_scorer_gives_files_the_value_of_their_pixels(fitted, tmp_path):
    detector, X = fitted
    paths = save(X, tmp_path)
    scorer = SyntheticOutlierScorer()
    assert (
        scorer(detector, paths) == scorer(detector, str(tmp_path)) == scorer(detector, X) == scorer(detector, list(X))
    )


@pytest.mark.filterwarnings("ignore:1 of 12 images could not be read")
def test_scorer_leaves_unreadable_images_of_an_array_out(images):
    detector = tiny_detector(on_error="skip").fit(images)
    X = images / 255
    X[5] = np.nan
    scorer = SyntheticOutlierScorer("channels")
    assert scorer(detector, X) == scorer(detector, list(X))


def test_scorer_takes_infinite_scores(digits):
    class Sure:
        def fit(self, X):
            self.mean = X.mean(axis=0)
            return self

        def decision_function(self, X):
            far = np.abs(np.asarray(X) - self.mean).sum(axis=1)
            return np.where(far > np.median(far), -np.inf, -far)

    detector = Sure().fit(digits)
    scorer = SyntheticOutlierScorer("patches", random_state=5, image_shape=(8, 8))
    outliers = synthetic_outliers(digits, "patches", image_shape=(8, 8), random_state=5)
    ranks = rankdata(np.concatenate([detector.decision_function(digits), detector.decision_function(outliers)]))
    expected = roc_auc_score(np.repeat([1, 0], len(digits)), ranks)
    assert scorer(detector, digits) == pytest.approx(expected)


@pytest.mark.parametrize("scorer", [SyntheticOutlierScorer(image_shape=(8, 8)), held_out_log_likelihood])
@pytest.mark.parametrize("y", [[1, -1, 1], [1, 1], np.ones(151, int)])
def test_scorers_want_a_label_for_each_sample(digits, scorer, y):
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        scorer(KernelDensity().fit(digits), digits, y)


def test_scorer_leaves_unreadable_images_out(images, tmp_path):
    detector = NormalOnly(tiny_detector(on_error="skip")).fit(images, np.ones(12))
    paths = save(images, tmp_path)
    without = SyntheticOutlierScorer("channels")(detector, paths[:-1])
    paths[-1].write_bytes(b"not an image")
    with pytest.warns(UserWarning, match="could not be read"):
        assert SyntheticOutlierScorer("channels")(detector, paths) == without
    with pytest.raises(ImageError):
        SyntheticOutlierScorer()(tiny_detector().fit(images), paths)


def test_importing_loads_no_torch():
    code = "import sys; import skl_transformaly.model_selection; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.filterwarnings("ignore:With .* images a false-positive rate")
def test_neighbours_are_positions_in_what_the_user_gave(images, tmp_path):
    """Not among the normal samples alone; in a file, too."""
    y = np.where(np.arange(12) % 3 == 0, -1, 1)
    detector = NormalOnly(tiny_detector()).fit(images, y)
    persistence.save(detector, tmp_path / "model.tfm")
    for found in (detector, persistence.load(tmp_path / "model.tfm")):
        table = found.explain(images[y == 1])
        np.testing.assert_array_equal(table["neighbor0"], np.flatnonzero(y == 1))
