"""One feature space, by what its parts are made of."""

import tracemalloc
import warnings

import hypothesis
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.decomposition import PCA
from sklearn.neighbors import KernelDensity
from threadpoolctl import threadpool_info, threadpool_limits

from skl_transformaly._density import GaussianDensity, KNNDensity, LocalKNNDensity, usual
from skl_transformaly._fusion import held_out_threshold
from skl_transformaly._space import FeatureSpace
from skl_transformaly.utils._labels import folds


@pytest.fixture
def Z(rng):
    return rng.normal(size=(30, 5)) * [1, 2, 3, 4, 5] + 2


def standardized(scores):
    return (scores - scores.mean()) / scores.std()


def test_each_group_of_features_has_unit_length(Z):
    scaled = FeatureSpace().fit(Z, sizes=[2, 3]).transform(Z)
    lengths = np.linalg.norm(Z[:, :2], axis=1, keepdims=True), np.linalg.norm(Z[:, 2:], axis=1, keepdims=True)
    np.testing.assert_allclose(scaled, np.hstack([Z[:, :2] / lengths[0], Z[:, 2:] / lengths[1]]))


@pytest.mark.parametrize("shape, threads", [((30, 5), 1), ((999, 1100), 1), ((1000, 1000), 2)])
def test_small_matrices_take_one_thread_of_blas(rng, monkeypatch, shape, threads):
    found = []

    def fit(density, X):
        found.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")
        density.mean_ = X.mean(axis=0)
        return density

    monkeypatch.setattr(KernelDensity, "fit", fit)
    monkeypatch.setattr(KernelDensity, "score_samples", lambda density, X: X[:, 0])
    with threadpool_limits(2, user_api="blas"):
        FeatureSpace(KernelDensity(), held_out=False).fit(rng.normal(size=shape))
    assert set(found) == {threads}


@pytest.mark.parametrize("settings", [{"normalize": False}, {"discrepancy": True}])
def test_features_stay_as_they_are(Z, settings):
    np.testing.assert_array_equal(FeatureSpace(**settings).fit(Z).transform(Z), Z)


@pytest.mark.parametrize("density", ["auto", "gaussian", "knn"])
@pytest.mark.slow
def test_many_features_in_float32_need_no_copy_in_float64(rng, density):
    Z = (rng.normal(size=(20_000, 64)) * np.arange(1, 65) + 20).astype(np.float32)
    tracemalloc.start()
    space = FeatureSpace(density).fit(Z)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < {"gaussian": 2, "auto": 3, "knn": 4}[density] * Z.nbytes  # neighbours are kept
    expected = FeatureSpace(density).fit(Z.astype(np.float64))
    np.testing.assert_allclose(space.held_out_parts_, expected.held_out_parts_, atol=1e-5)
    np.testing.assert_allclose(space.score_samples(Z[::99]), expected.score_samples(Z[::99]), atol=1e-5)


@pytest.mark.parametrize("settings", [{}, {"explained_variance": 0.9}])
def test_a_density_of_another_package_computes_in_float64(Z, settings):
    Z = Z.astype(np.float32)
    space = FeatureSpace(KernelDensity(), **settings).fit(Z)
    expected = FeatureSpace(KernelDensity(), **settings).fit(Z.astype(np.float64))
    np.testing.assert_array_equal(space.held_out_parts_, expected.held_out_parts_)


@pytest.mark.parametrize("n, width", [(30, 5), (30, 200), (12, 5)])
def test_held_out_images_have_no_part_in_their_whitening(rng, n, width):
    Z = rng.normal(size=(n, width)) + 3
    scores = np.empty(n)
    kept = PCA(0.8, svd_solver="full").fit(Z).n_components_
    for train, test in folds(None, n, count=20):
        whitening = PCA(kept, whiten=True, svd_solver="full").fit(Z[train])
        density = GaussianDensity().fit(whitening.transform(Z[train]))
        scores[test] = density.score_samples(whitening.transform(Z[test]))
    space = FeatureSpace(normalize=False, explained_variance=0.8).fit(Z)
    np.testing.assert_allclose(space.held_out_parts_, standardized(scores))


def test_whitening_of_held_out_images_needs_three(Z):
    space = FeatureSpace(explained_variance=0.8)
    with pytest.raises(ValueError, match="at least 3 images that differ, got 2"):
        space.fit(Z[:2])
    with pytest.raises(ValueError, match="at least 3 images that differ, got 2"):
        space.fit(Z[[0, 1, 1]], groups=np.array([0, 1, 1]))
    assert np.isfinite(space.fit(Z[:3]).held_out_parts_).all()


@pytest.mark.parametrize("density", ["gaussian", "knn", "auto"])
@pytest.mark.parametrize("n, share", [(20, 0.9), (40, 0.5), (40, 0.99)])
def test_a_whitened_space_flags_as_many_new_images_as_it_promises(density, n, share):
    """Folds with fewer components than the whole fit would make new images look far less normal than those held out."""
    mixing = np.random.default_rng(0).normal(size=(64, 64)) * np.logspace(0, -1.5, 64)
    flagged = []
    for seed in range(8):
        rng = np.random.default_rng(seed)
        Z, new = (3 + rng.normal(size=(k, 64)) @ mixing for k in (n, 200))
        space = FeatureSpace(density, explained_variance=share).fit(Z)
        flagged.append(np.mean(space.score_samples(new) < held_out_threshold(np.sort(space.held_out_parts_), 0.1)))
    assert 0.01 < np.mean(flagged) < 0.18


def test_nearly_as_many_components_as_images_are_warned_of():
    Z = np.random.default_rng(0).normal(size=(60, 200)) + 3
    with pytest.warns(UserWarning, match=r"keeps 53 components of 60 images. About twice as many false alarms"):
        FeatureSpace(explained_variance=0.97).fit(Z)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        FeatureSpace(explained_variance=0.8).fit(Z)


def test_whitened_embeddings_of_few_images_flag_as_many_as_promised():
    """Of many more features than images, folds of a fifth of the images would let a third of new ones be flagged."""
    flagged = []
    for seed in range(4):
        rng = np.random.default_rng(seed)
        Z, new = (3 + rng.normal(size=(k, 600)) * np.linspace(1.0, 0.3, 600) for k in (40, 150))
        space = FeatureSpace("auto", explained_variance=0.8).fit(Z)
        flagged.append(np.mean(space.score_samples(new) < held_out_threshold(np.sort(space.held_out_parts_), 0.1)))
    assert np.mean(flagged) < 0.2


def test_components_that_folds_do_not_determine_are_left_out_with_a_warning():
    Z = np.random.default_rng(0).normal(size=(10, 50))
    with pytest.warns(UserWarning, match=r"takes 9 components, of which .* determine 7: 7 are kept"):
        space = FeatureSpace(explained_variance=0.999).fit(Z)
    assert space.whitening_.n_components_ == 7
    assert FeatureSpace(explained_variance=0.999, held_out=False, standardize=False).fit(Z).n_features_out_ == 9


@pytest.mark.parametrize("density", ["gmm", KNNDensity(n_neighbors=5)])
def test_a_whitened_fold_may_have_fewer_images_than_its_density_asks_for(Z, density):
    assert np.isfinite(FeatureSpace(density, explained_variance=0.5).fit(Z[:5]).held_out_parts_).all()


def test_parts_are_deviations_from_held_out_scores(Z, rng):
    density, new = GaussianDensity(target="diagonal").fit(Z), rng.normal(size=(4, 5))
    held_out = density.held_out_scores(Z)
    space = FeatureSpace(discrepancy=True).fit(Z)
    np.testing.assert_allclose(space.held_out_parts_, standardized(held_out))
    np.testing.assert_allclose(
        space.score_samples(new), (density.score_samples(new) - held_out.mean()) / held_out.std()
    )


@pytest.mark.parametrize("density", ["auto", "gaussian"])
def test_of_two_images_parts_are_told_in_units_that_rounding_does_not_set(density, rng):
    Z = rng.normal(size=(2, 6)) + 5
    space = FeatureSpace(density).fit(Z)
    parts = space.score_samples(Z + rng.normal(size=(2, 6)))
    assert (np.abs(space.times_usual(parts)) < 1e6).all()


@pytest.mark.parametrize("density", ["auto", "gaussian"])
@pytest.mark.parametrize("n_odd", [1, 3])
@pytest.mark.parametrize("times", [30, 1000])
def test_a_few_odd_images_do_not_silence_a_space(times, n_odd, density):
    """Anomalies are as unusual as without them, within a factor of three."""
    parts = []
    for odd in (0, n_odd):
        rng = np.random.default_rng(0)
        Z = np.exp(0.3 * rng.normal(size=(100, 20)))
        Z[np.arange(odd), np.arange(odd)] += 0.3 * times
        anomalies = np.exp(0.3 * rng.normal(size=(200, 20)))
        anomalies[:, 5:10] += 1.8
        space = FeatureSpace(density, discrepancy=True).fit(Z)
        parts.append(-np.median(space.score_samples(anomalies)))
        if space.held_out_terms_ is not None:
            np.testing.assert_allclose(space.held_out_terms_.sum(axis=1), space.held_out_parts_, rtol=1e-6)
    assert parts[0] / 3 < parts[1] < parts[0] * 3


@pytest.mark.parametrize("spread", [0.0, 1e-3])
def test_most_images_are_no_outliers_of_many_copies(spread, rng):
    """Whose parts are all the same: in units of these, all others would be unusual."""
    scores = np.concatenate([-1 + spread * rng.normal(size=95), np.linspace(-9, -5, 10)])
    assert usual(scores, np.maximum(np.arange(105), 94)).all()


def test_terms_sum_to_the_parts_and_are_zero_on_average(Z, rng):
    space = FeatureSpace(discrepancy=True).fit(Z)
    np.testing.assert_allclose(space.held_out_terms_.sum(axis=1), space.held_out_parts_)
    np.testing.assert_allclose(space.held_out_terms_.mean(axis=0), 0, atol=1e-12)
    new = rng.normal(size=(4, 5))
    np.testing.assert_allclose(space.terms(new).sum(axis=1), space.score_samples(new))


@pytest.mark.parametrize("held_out", [True, False])
def test_without_standardization_parts_and_terms_are_log_densities(Z, held_out):
    density = GaussianDensity(target="diagonal").fit(Z)
    space = FeatureSpace(discrepancy=True, standardize=False, held_out=held_out).fit(Z)
    expected = density.held_out_scores(Z) if held_out else density.score_samples(Z)
    np.testing.assert_allclose(space.held_out_parts_, expected)
    np.testing.assert_allclose(space.held_out_terms_.sum(axis=1), expected)
    np.testing.assert_allclose(space.terms(Z), density.terms(Z))


def test_parts_are_told_in_units_of_the_lowest_of_normal_images(Z):
    space = FeatureSpace().fit(Z)
    low, usual = np.quantile(space.held_out_parts_, 0.01), np.median(space.held_out_parts_)
    np.testing.assert_allclose(space.times_usual(np.array([usual, low, 2 * low - usual])), [0, 1, 2], atol=1e-12)


@pytest.mark.parametrize("density", ["auto", "gaussian", "gmm", "knn", LocalKNNDensity()])
@pytest.mark.parametrize("settings", [{}, {"discrepancy": True}, {"explained_variance": 0.9}, {"held_out": False}])
@hypothesis.settings(max_examples=4, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(20, 30), d=st.integers(20, 60), copies=st.integers(1, 20))
def test_copies_of_an_image_have_the_same_part_to_the_bit(density, settings, seed, n, d, copies):
    X = np.random.default_rng(seed).normal(size=(n, d))
    X, groups = np.vstack([X, np.repeat(X[:1], copies, axis=0)]), np.concatenate([np.arange(n), np.zeros(copies)])
    space = FeatureSpace(density, **settings).fit(X, groups=groups)
    assert len(set(space.held_out_parts_[groups == 0])) == 1
    if space.held_out_terms_ is not None:
        assert len(np.unique(space.held_out_terms_[groups == 0], axis=0)) == 1


def test_a_weight_multiplies_the_part_and_its_usual_values(Z):
    plain, heavy = FeatureSpace().fit(Z), FeatureSpace().fit(Z)
    heavy.scale(2.5)
    parts = heavy.score_samples(Z)
    np.testing.assert_allclose(parts, 2.5 * plain.score_samples(Z))
    np.testing.assert_allclose(heavy.times_usual(parts), plain.times_usual(parts / 2.5))


@pytest.mark.parametrize("settings", [{}, {"normalize": False}, {"discrepancy": True}])
def test_images_that_do_not_differ_are_refused(settings):
    with pytest.raises(ValueError, match="All 4 training images look the same"):
        FeatureSpace(**settings).fit(np.full((4, 3), 7.0))


def test_images_that_differ_in_one_feature_alone_are_learned():
    Z = np.ones((4, 3))
    Z[1, 2] += 1e-6
    assert np.isfinite(FeatureSpace(normalize=False).fit(Z).score_samples(Z)).all()


def test_a_refit_that_fails_leaves_the_space_as_it_was(Z):
    space = FeatureSpace(explained_variance=0.5).fit(Z)
    expected = space.score_samples(Z)
    with pytest.raises(ValueError, match="at least 3 images"):
        space.fit(Z[:2])
    np.testing.assert_array_equal(space.score_samples(Z), expected)


def test_all_of_the_variance_is_no_share_to_whiten_by(Z):
    with pytest.raises(ValueError, match="The 'explained_variance' parameter"):
        FeatureSpace(explained_variance=1.0).fit(Z)


def test_a_fit_takes_a_few_copies_of_the_features(rng):
    """Of thousands of images, an embedding is larger than the network."""
    Z = rng.normal(size=(3000, 200)).astype(np.float32)
    tracemalloc.start()
    FeatureSpace("auto").fit(Z)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 4 * Z.astype(np.float64).nbytes
