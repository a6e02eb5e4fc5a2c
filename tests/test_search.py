"""scikit-learn's searches over a detector: what they can vary, and what they must not fit on."""

import warnings

import numpy as np
import pytest
from conftest import on_training
from conftest import tiny_paper as tiny_detector
from sklearn.base import clone
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import (
    GridSearchCV,
    HalvingGridSearchCV,
    RandomizedSearchCV,
    StratifiedKFold,
    cross_val_score,
)
from sklearn.pipeline import Pipeline

from skl_transformaly import BlockStudents, TransformalyDetector
from skl_transformaly.model_selection import NormalOnly, OneClassSplit


@pytest.fixture
def labelled(rng):
    """Sixteen dark images, and eight light ones that are anomalies."""
    X = np.concatenate(
        [rng.integers(20, 120, (16, 20, 24, 3)), rng.integers(140, 250, (8, 20, 24, 3))]
    ).astype(np.uint8)  # fmt: skip
    return X, np.repeat([1, -1], [16, 8])


GRIDS = [
    {"estimator__explained_variance": [0.5, 0.9]},
    {"estimator__density__n_components": [1, 2]},
    {"estimator__students__n_blocks": [1, 2]},
    {"estimator__extractor__model_name": ["test_vit", "test_vit2"]},
]


def detector(**changes):
    from sklearn.mixture import GaussianMixture

    return tiny_detector(density=GaussianMixture(1, random_state=0), **changes)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda grid: next(iter(grid)))
def test_grid_search_varies_every_part_and_refits_on_normal_images(labelled, grid, tmp_path):
    X, y = labelled
    search = GridSearchCV(
        NormalOnly(detector(memory=str(tmp_path))), grid, cv=OneClassSplit(2, random_state=0), scoring="roc_auc"
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        warnings.filterwarnings("ignore", message=".*hardly determine a mixture|.*expect many more false alarms")
        search.fit(X, y)
    best = {name.removeprefix("estimator__"): value for name, value in search.best_params_.items()}
    alone = detector().set_params(**best).fit(X[y == 1])
    np.testing.assert_allclose(search.best_estimator_.score_samples(X), alone.score_samples(X), rtol=1e-9)


def test_a_folds_score_is_that_of_a_fit_on_its_normal_images(labelled):
    X, y = labelled
    cv = OneClassSplit(3, random_state=0)
    scores = cross_val_score(tiny_detector(), X, y, cv=cv, scoring="roc_auc")
    expected = []
    for train, test in cv.split(X, y):
        fold = tiny_detector().fit(X[train][y[train] == 1])
        expected.append(roc_auc_score(y[test], fold.score_samples(X[test])))
    np.testing.assert_allclose(scores, expected)


def test_randomized_and_halving_searches(labelled):
    X, y = labelled
    grid = {"estimator__explained_variance": [0.5, 0.7, 0.9]}
    cv = OneClassSplit(2, random_state=0)
    bare = NormalOnly(TransformalyDetector(tiny_detector().extractor, feature_spaces=["pretrained"]))
    randomized = RandomizedSearchCV(bare, grid, n_iter=2, cv=cv, scoring="roc_auc", random_state=0).fit(X, y)
    halving = HalvingGridSearchCV(
        bare, grid, cv=cv, scoring="roc_auc", min_resources=16, random_state=0, return_train_score=False
    ).fit(X, y)
    assert randomized.best_score_ > 0.5 and halving.best_score_ > 0.5


def test_paths_and_pipelines_can_be_searched(labelled, tmp_path):
    from PIL import Image

    X, y = labelled
    paths = [str(tmp_path / f"{i}.png") for i in range(len(X))]
    for path, image in zip(paths, X):
        Image.fromarray(image).save(path)
    pipeline = Pipeline([("detector", tiny_detector(feature_spaces=["pretrained"]))])
    search = GridSearchCV(
        NormalOnly(pipeline),
        {"estimator__detector__explained_variance": [0.5, 0.9]},
        cv=OneClassSplit(2, random_state=0),
        scoring="roc_auc",
    ).fit(paths, y)
    assert search.best_score_ > 0.5


def test_a_grid_with_memory_trains_once_a_fold(labelled, tmp_path, monkeypatch):
    X, y = labelled
    trained = []
    on_training(monkeypatch, trained.append)
    grid = {"explained_variance": [0.5, 0.7, 0.9]}
    search = GridSearchCV(
        tiny_detector(memory=str(tmp_path)), grid, cv=OneClassSplit(2, random_state=0), scoring="roc_auc", refit=False
    )
    search.fit(X, y)
    assert len(trained) == 2 * 2  # folds by blocks, not by candidates


def test_refitting_learns_from_normal_images_alone(labelled):
    X, y = labelled
    bare = tiny_detector(feature_spaces=["pretrained"])
    cv = OneClassSplit(2, random_state=0)
    search = GridSearchCV(bare, {"explained_variance": [0.5]}, cv=cv, scoring="roc_auc").fit(X, y)
    alone = clone(bare).set_params(explained_variance=0.5).fit(X[y == 1])
    np.testing.assert_allclose(search.best_estimator_.score_samples(X), alone.score_samples(X), rtol=1e-9)


def test_cross_validation_with_labels_of_zero_and_one_says_that_auroc_is_inverted(labelled):
    X, y = labelled
    cv = StratifiedKFold(2, shuffle=True, random_state=0)
    anomalous = (y == -1).astype(int)
    with pytest.warns(UserWarning, match="y holds 0 and 1.*1 - AUROC"):
        scores = cross_val_score(tiny_detector(feature_spaces=["pretrained"]), X, anomalous, cv=cv, scoring="roc_auc")
    assert scores.mean() < 0.5


def test_cross_validation_with_booleans_says_which_labels_to_take(labelled):
    X, y = labelled
    detector = tiny_detector(feature_spaces=["pretrained"])
    with pytest.raises(ValueError, match=r"such as False, True, but numbers are expected"):
        cross_val_score(detector, X, y == -1, cv=2, scoring="roc_auc", error_score="raise")


def test_labels_that_mean_nothing_are_ignored(labelled):
    X, _ = labelled
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        for other in (np.ones(24, int), np.arange(24) % 3):
            tiny_detector(feature_spaces=["pretrained"]).fit(X, other)


@pytest.mark.parametrize(
    "name, value, way",
    [
        ("students__n_blocks", 2, "students=BlockStudents()"),
        ("density__n_components", 2, "GaussianMixture(5)"),
        ("discrepancy_density__shrinkage", 0, "GaussianDensity()"),
        ("extractor__model_name", "test_vit", "TimmExtractor("),
    ],
)
def test_parameters_of_a_part_by_name_are_refused_with_a_way_out(labelled, name, value, way):
    X, y = labelled
    bare = NormalOnly(TransformalyDetector("bundled"))
    search = GridSearchCV(bare, {f"estimator__{name}": [value]}, cv=OneClassSplit(2), scoring="roc_auc")
    with pytest.raises(ValueError, match=f"{name} cannot be set") as caught:
        search.fit(X, y)
    assert way in str(caught.value)


def test_a_part_and_its_parameters_can_be_set_at_once():
    detector = TransformalyDetector().set_params(students=BlockStudents(), students__n_blocks=3)
    assert detector.students.n_blocks == 3
    with pytest.raises(ValueError, match="students__n_blocks cannot be set"):
        detector.set_params(students=None, students__n_blocks=3)
