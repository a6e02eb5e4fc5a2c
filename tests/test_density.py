"""Densities against scipy and scikit-learn."""

import re
import tracemalloc
import warnings
from typing import ClassVar

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from sklearn.base import BaseEstimator, clone
from sklearn.covariance import LedoitWolf
from sklearn.decomposition import PCA
from sklearn.mixture import BayesianGaussianMixture, GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.pipeline import make_pipeline
from sklearn.svm import OneClassSVM

from skl_transformaly import AutoDensity, GaussianDensity, KNNDensity, LocalKNNDensity, _gaussian
from skl_transformaly._density import fit_density, held_out_scores, on_scale, resolve_density
from skl_transformaly._fusion import interpolated_p_values
from skl_transformaly._space import FeatureSpace
from skl_transformaly.utils._labels import folds


def correlated(seed, n, d):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) + d * np.eye(d)  # far from singular, so that references are exact
    return rng.normal(size=(n, d)) @ mixing + rng.normal(size=d)


def test_the_formula_is_scipys():
    X = correlated(0, 9, 3)
    covariance = np.cov(X, rowvar=False)
    np.testing.assert_allclose(log_normal(X, X[0], covariance), multivariate_normal(X[0], covariance).logpdf(X))


def log_normal(x, mean, covariance):
    """Log-density of a Gaussian by its formula; scipy's own refuses covariances that are far from round."""
    away = np.atleast_2d(x - mean)
    squares = (away * np.linalg.solve(covariance, away.T).T).sum(axis=1)
    return -0.5 * (squares + np.linalg.slogdet(covariance)[1] + away.shape[1] * np.log(2 * np.pi))


def dense(density, X):
    """The covariance that the definition gives, in full."""
    n, d = X.shape
    scale = X.std(axis=0) if density.target == "diagonal" else np.ones(d)
    scale = np.where(scale > 0, scale, 1)
    R = (X - X.mean(axis=0)) / scale
    S = R.T @ R / n
    mean_variance = np.trace(S) / d or 1.0
    shrunk = (1 - density.shrinkage_) * S + (density.shrinkage_ + density.ridge) * mean_variance * np.eye(d)
    return shrunk * np.outer(scale, scale)


DENSITIES = [
    GaussianDensity(),
    GaussianDensity(target="diagonal"),
    GaussianDensity(shrinkage=0.3),
    GaussianDensity(shrinkage=0.0, ridge=1e-3),
    GaussianDensity(shrinkage=1.0, target="diagonal"),
]


@pytest.mark.parametrize("density", DENSITIES)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 60), d=st.integers(1, 40))
def test_gaussian_is_scipys_multivariate_normal_in_any_shape(density, seed, n, d):
    X, new = correlated(seed, n, d), correlated(seed + 1, 5, d)
    fitted = clone(density).fit(X)
    expected = log_normal(new, X.mean(axis=0), dense(fitted, X))
    np.testing.assert_allclose(fitted.score_samples(new), expected, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(fitted.covariance_, dense(fitted, X), rtol=1e-6, atol=1e-6 * np.abs(X).max() ** 2)
    np.testing.assert_allclose(fitted.terms(new).sum(axis=1), fitted.score_samples(new), rtol=1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("n", [300, 2500])
def test_gaussian_is_exact_in_as_many_dimensions_as_teachers_have(n, rng):
    X = rng.normal(size=(n, 2048)) * np.linspace(0.1, 3, 2048) + 1
    fitted = GaussianDensity().fit(X)
    expected = log_normal(X[:2] + 1, X.mean(axis=0), dense(fitted, X))
    np.testing.assert_allclose(fitted.score_samples(X[:2] + 1), expected, rtol=1e-9)
    held_out = fitted.held_out_scores(X)[0]
    np.testing.assert_allclose(held_out, left_out(fitted, X, X, 0, np.arange(n)), rtol=1e-9)


def left_out(density, X, new, i, groups):
    """The definition of a held-out score: mean, covariance and target of the others, with the shrinkage kept."""
    rest = X[groups != groups[i]]
    return log_normal(new[i], rest.mean(axis=0), covariance_left(density, rest))[0]


def covariance_left(density, rest):
    """Where the others have no variance, the target is that of all."""
    scale = density.scale_
    S = np.atleast_2d(np.cov(rest / scale, rowvar=False, bias=True))
    share = density.shrinkage_ + density.ridge
    if density.target == "diagonal":
        varied = np.diag(S) > 1e-12
        target = np.where(varied, np.diag(S), 1) * share * (varied.mean() or 1)
    else:
        target = np.full(len(S), share * np.trace(S) / len(S) if np.ptp(rest, axis=0).any() else density.floor_)
    return ((1 - density.shrinkage_) * S + np.diag(target)) * np.outer(scale, scale)


@pytest.mark.parametrize("orders", [0, 1, 2, 3, 4, 5])
def test_directions_are_orthonormal_however_far_apart_their_variances_are(orders):
    rng = np.random.default_rng(orders)
    X = (rng.normal(size=(60, 60)) * np.logspace(0, -orders, 60)) @ rng.normal(size=(60, 200))
    components = GaussianDensity().fit(X).components_
    assert len(components) > 50
    np.testing.assert_allclose(components @ components.T, np.eye(len(components)), atol=4e-14)


@pytest.mark.parametrize("density", DENSITIES)
@pytest.mark.parametrize("elsewhere", [False, True])
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 30), d=st.integers(1, 20), copies=st.integers(0, 3))
def test_held_out_scores_are_those_of_a_fit_without_the_sample(density, elsewhere, seed, n, d, copies):
    X = correlated(seed, n, d)
    X = np.vstack([X, np.repeat(X[:1], copies, axis=0)])
    groups = np.concatenate([np.arange(n), np.zeros(copies, dtype=int)])
    unseen = X + correlated(seed + 1, len(X), d) if elsewhere else None
    fitted = clone(density).fit(X)
    scores = fitted.held_out_scores(X, groups=groups, unseen=unseen)
    new = X if unseen is None else unseen
    expected = [left_out(fitted, X, new, i, groups) for i in range(len(X))]
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-4)
    terms = fitted.held_out_terms(X, groups=groups, unseen=unseen)
    np.testing.assert_allclose(terms.sum(axis=1), scores, rtol=1e-6)


def test_a_new_sample_is_as_far_away_as_held_out_ones_in_units_of_each_features_deviation():
    """In units of deviations that held-out samples are part of, these could not be far, and most new ones would be."""
    flagged = []
    for seed in range(30):
        rng = np.random.default_rng(seed)
        X = rng.standard_t(4, size=(60, 40)) @ np.diag(10.0 ** rng.uniform(-3, 3, 40))
        for n in (15, 30):
            density = GaussianDensity(target="diagonal").fit(X[:n])
            threshold = np.quantile(density.held_out_scores(X[:n]), 0.1, method="inverted_cdf")
            flagged.append(np.mean(density.score_samples(X[30:]) < threshold))
    assert 0.05 < np.mean(flagged) < 0.15


def test_many_features_are_held_out_by_folds_in_units_of_each_features_deviation(monkeypatch):
    X = correlated(0, 12, 5)
    density = GaussianDensity(target="diagonal").fit(X)
    alone, terms = density.held_out_scores(X), density.held_out_terms(X)
    monkeypatch.setattr(_gaussian, "_MOST_RESCALED", 4)  # of 12 samples, folds have one each
    np.testing.assert_allclose(density.held_out_scores(X), alone, rtol=1e-9)
    np.testing.assert_allclose(density.held_out_terms(X), terms, rtol=1e-9)
    with pytest.raises(ValueError, match="must be the 12 samples"):
        density.held_out_scores(X[:5])


def terms_by_formula(x, mean, covariance):
    away = x - mean
    constant = multivariate_normal(mean, covariance).logpdf(mean) / len(x)
    return constant - 0.5 * away * np.linalg.solve(covariance, away)


@pytest.mark.parametrize("density", DENSITIES)
def test_terms_are_what_each_feature_adds(density):
    X, new = correlated(0, 30, 4), correlated(1, 1, 4)
    expected = terms_by_formula(new[0], X.mean(axis=0), dense(density.fit(X), X))
    np.testing.assert_allclose(density.terms(new)[0], expected)


@pytest.mark.parametrize("density", DENSITIES)
def test_held_out_terms_are_what_each_feature_adds_without_the_sample(density):
    X = correlated(0, 30, 4)
    expected = terms_by_formula(X[0], X[1:].mean(axis=0), covariance_left(density.fit(X), X[1:]))
    np.testing.assert_allclose(density.held_out_terms(X)[0], expected)


@pytest.mark.parametrize("target", ["identity", "diagonal"])
@pytest.mark.parametrize("n, d, size", [(60, 20, 2), (60, 20, 25), (30, 60, 5), (300, 4, 7)])
def test_a_group_whose_members_differ_is_left_out_exactly(n, d, size, target):
    X = correlated(0, n, d)
    X[:size] = X[0] + np.linspace(-1, 1, size)[:, np.newaxis] * X[1] * 3  # far apart: copies of one would never be
    groups = np.r_[np.zeros(size, dtype=int), np.arange(1, n - size + 1)]
    density = GaussianDensity(shrinkage=0.1, target=target).fit(X)
    expected = log_normal(X[:size], X[size:].mean(axis=0), covariance_left(density, X[size:]))
    np.testing.assert_allclose(density.held_out_scores(X, groups=groups)[:size], expected, rtol=1e-6)
    np.testing.assert_allclose(density.held_out_terms(X, groups=groups)[:size].sum(axis=1), expected, rtol=1e-6)


@pytest.mark.parametrize("n, d", [(15, 10), (200, 4), (20, 300), (1500, 4)])
def test_gaussian_shrinks_as_scikit_learns_ledoit_wolf(n, d):
    X = correlated(n, n, d)
    expected = LedoitWolf().fit(X).covariance_
    np.testing.assert_allclose(GaussianDensity(ridge=1e-15).fit(X).covariance_, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("angle", np.linspace(0, 1.5, 7))
@pytest.mark.parametrize(
    "X, expected",
    [
        ([[1, 0], [-1, 0], [0, 1], [0, -1]], 1.0),  # all variances equal: the target is the covariance itself
        ([[1, 0], [0, 1]], 1.0),
        ([[1, 0], [0, 1], [1, 0], [0, 1]], 1.0),  # two samples and their copies
        ([[3, 3], [3, 3], [3, 3], [3, 3], [3, 3]], 0.0),  # none vary
    ],
)
def test_shrinkage_at_its_limits_does_not_depend_on_rounding(X, expected, angle):
    rotation = [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    assert GaussianDensity().fit(np.array(X) @ rotation).shrinkage_ == pytest.approx(expected)


@pytest.mark.parametrize("X, expected", [([[0.1], [0.7]], 1.0), ([[0.1], [0.7], [0.9]], 0.0), ([[0.1]] * 3, 0.0)])
def test_one_feature_has_nothing_to_shrink_but_of_two_samples(X, expected):
    assert GaussianDensity().fit(X).shrinkage_ == expected


def test_many_dimensions_need_no_matrix_of_their_square():
    X = np.random.default_rng(0).normal(size=(10, 200_000))  # its covariance would take 320 GB
    density = GaussianDensity().fit(X)
    assert density.components_.shape == (9, 200_000)
    assert np.isfinite(density.held_out_scores(X)).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("density", DENSITIES)
def test_many_samples_need_no_copy_of_all(density, dtype):
    X = np.random.default_rng(0).normal(size=(20_000, 50)).astype(dtype)
    tracemalloc.start()
    density.fit(X).held_out_scores(X)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < X.nbytes / 2


@pytest.mark.parametrize("density", DENSITIES)
def test_float32_samples_are_computed_with_in_float64(density):
    # far from zero, where a variance in float32 would be off by a tenth
    X, Y = (correlated(seed, 300, 20).astype(np.float32) + 3000 for seed in (0, 1))
    single, double = clone(density).fit(X), clone(density).fit(X.astype(np.float64))
    Z = Y.astype(np.float64)
    np.testing.assert_allclose(single.score_samples(Y), double.score_samples(Z), rtol=1e-9)
    np.testing.assert_allclose(single.held_out_scores(X), double.held_out_scores(X.astype(np.float64)), rtol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.floats(-6, 6), target=st.sampled_from(["identity", "diagonal"]))
def test_gaussian_ranking_does_not_depend_on_units(seed, exponent, target):
    X, Y = correlated(seed, 40, 3), correlated(seed, 10, 3)
    scale = 10.0**exponent
    density = GaussianDensity(target=target)
    shift = clone(density).fit(X * scale).score_samples(Y * scale) - density.fit(X).score_samples(Y)
    # a change of units moves every log-density by the same Jacobian
    np.testing.assert_allclose(shift, -3 * np.log(scale), rtol=1e-7, atol=1e-6)


@pytest.mark.parametrize("constant", [0.0, 5.0, -1e-3])
def test_nor_on_the_unit_of_a_constant_feature(constant, rng):
    X = rng.normal(size=(50, 4))
    X[:, 1] = constant
    new = np.concatenate([X[:2], X[:2] + [0, 0.1, 0, 0]])
    scores = []
    for unit in (1.0, 1000.0, 1e30):
        units = np.array([1, unit if constant else 1, 1, 1])
        density = GaussianDensity(target="diagonal").fit(X * units)
        assert np.isfinite(density.held_out_scores(X * units)).all()
        scores.append(density.score_samples(new * units) - density.score_samples(X[:1] * units))
    np.testing.assert_allclose(scores[1:], [scores[0]] * 2, rtol=1e-6, atol=1e-6)


def test_neighbours_take_no_more_memory_where_most_samples_are_copies(rng):
    X = rng.normal(size=(3000, 16)).astype(np.float32)
    X[:2000] = X[0]
    groups = np.arange(3000)
    groups[:2000] = 0
    density = KNNDensity().fit(X)
    whole = density.held_out_scores(X, groups=groups)
    tracemalloc.start()
    again = density.held_out_scores(X, groups=groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    np.testing.assert_array_equal(again, whole)
    assert peak < 20 * 2**20


def test_nor_do_local_neighbours(rng):
    X = rng.normal(size=(3000, 8)).astype(np.float32)
    groups = np.maximum(np.arange(3000), 1500)
    X[1501:] = X[1500]
    groups[1500:] = 1500
    tracemalloc.start()
    LocalKNNDensity().fit(X, groups=groups).held_out_scores(X, groups=groups)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * 2**20


@pytest.mark.parametrize("density", [KNNDensity(), LocalKNNDensity()])
@pytest.mark.parametrize("offset", [1e6, 1e8])
def test_distances_do_not_depend_on_the_origin(density, offset, rng):
    X, new = rng.normal(size=(200, 20)), rng.normal(size=(5, 20))
    expected = clone(density).fit(X).score_samples(new)
    np.testing.assert_allclose(density.fit(X + offset).score_samples(new + offset), expected, atol=1e-5)


@pytest.mark.parametrize("scale", [1e-82, 1e-70, 1e70, 1e76])
def test_shrinkage_does_not_depend_on_the_unit(scale, rng):
    X = rng.normal(size=(20, 50))
    assert GaussianDensity().fit(X * scale).shrinkage_ == pytest.approx(GaussianDensity().fit(X).shrinkage_)


@pytest.mark.parametrize("target", ["identity", "diagonal"])
@pytest.mark.parametrize("shrinkage", [0.0, 0.3, "ledoit-wolf"])
@pytest.mark.parametrize("n, d", [(5, 40), (50, 10), (50, 70)])
@pytest.mark.parametrize("kind", ["outlier", "beyond rounding", "odd in a constant feature", "near copies"])
def test_what_a_sample_alone_determines_is_unknown_without_it(kind, n, d, shrinkage, target, rng):
    """Held-out scores are those of a refit, also of a sample that most of the variance, or the target, comes from."""
    X, groups = rng.normal(size=(n, d)), np.arange(n)
    if kind == "outlier":
        X[0] *= 20
    elif kind == "beyond rounding":
        X[0, 0] = 1e7
    elif kind == "odd in a constant feature":
        X[:, 0] = 0.5
        X[0, 0] = 0.6
    else:
        X, groups = np.repeat(X, 2, axis=0), np.repeat(groups, 2)
        X[::2] += 1e-3 * rng.normal(size=(n, d))
    density = GaussianDensity(target=target, shrinkage=shrinkage).fit(X)
    refit = GaussianDensity(target=target, shrinkage=density.shrinkage_).fit(X[groups != 0])
    held_out = density.held_out_scores(X, groups=groups)
    folded = target == "diagonal" and d > 64  # others are left out, too
    np.testing.assert_allclose(held_out[0], refit.score_samples(X[:1])[0], rtol=0.3 if folded else 1e-4)
    np.testing.assert_allclose(density.held_out_terms(X, groups=groups).sum(axis=1), held_out, rtol=1e-6)


@pytest.mark.parametrize("covariance_type", ["full", "tied", "diag", "spherical"])
def test_held_out_mixtures_of_few_samples_flag_as_many_as_they_promise(covariance_type):
    flagged = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        X, new = (1 + 0.1 * rng.normal(size=(m, 150)) for m in (60, 500))
        density = fit_density(GaussianMixture(1, covariance_type=covariance_type), X)
        flagged.append((density.score_samples(new) < np.quantile(held_out_scores(density, X), 0.1)).mean())
    assert 0.03 < np.mean(flagged) < 0.2


def test_a_start_of_a_mixture_is_in_the_features_of_its_samples(rng):
    X = rng.normal(size=(20, 30))
    density = fit_density(GaussianMixture(2, means_init=X[:2]), X)
    assert np.isfinite(held_out_scores(density, X)).all()


@pytest.mark.parametrize("mixture", [GaussianMixture, BayesianGaussianMixture])
def test_folds_of_a_mixture_have_as_many_components_as_samples_at_most(mixture, rng):
    X = rng.normal(size=(20, 5))
    assert np.isfinite(held_out_scores(fit_density(mixture(n_components=20), X), X)).all()
    with pytest.raises(ValueError, match=rf"21 components .* got 20.* such as {mixture.__name__}\(n_components=10\)"):
        fit_density(mixture(n_components=21), X)


def test_a_diagonal_target_does_not_depend_on_the_unit_of_any_feature():
    X, Y = correlated(0, 40, 3), correlated(1, 10, 3)
    units = np.array([1e-6, 1.0, 1e6])
    density = GaussianDensity(target="diagonal")
    shift = clone(density).fit(X * units).score_samples(Y * units) - density.fit(X).score_samples(Y)
    np.testing.assert_allclose(shift, -np.log(units).sum(), atol=1e-6)


@pytest.mark.parametrize(
    "density",
    [GaussianDensity(), AutoDensity(), KNNDensity(n_neighbors=1), LocalKNNDensity(n_neighbors=2), GaussianMixture(1)],
)
@pytest.mark.parametrize("n", [2, 3, 9])
def test_fewer_samples_than_features_score_finite(density, n):
    X = correlated(n, n, 10)
    assert np.isfinite(density.fit(X).score_samples(np.vstack([X, X + 100]))).all()
    assert np.isfinite(held_out_scores(density, X)).all()


@pytest.mark.parametrize(
    "density", [GaussianDensity(), AutoDensity(), KNNDensity(n_neighbors=2), LocalKNNDensity(n_neighbors=2)]
)
def test_identical_and_constant_samples_score_finite(density):
    X = np.ones((5, 3))
    assert np.isfinite(density.fit(X).score_samples(np.vstack([X, X * 2]))).all()
    assert np.isfinite(density.held_out_scores(X, groups=np.zeros(5))).all()


@pytest.mark.parametrize(
    "density", [GaussianDensity(), AutoDensity(), KNNDensity(n_neighbors=1), LocalKNNDensity(n_neighbors=1)]
)
def test_one_sample_is_refused(density):
    with pytest.raises(ValueError, match="minimum of 2"):
        density.fit([[1.0, 2.0]])


@pytest.mark.parametrize("density", [GaussianDensity(), KNNDensity(), LocalKNNDensity(n_neighbors=5)])
def test_held_out_scores_of_other_samples_are_refused(density):
    X = correlated(0, 20, 2)
    with pytest.raises(ValueError, match="the 20 samples that fit saw, got 19"):
        density.fit(X).held_out_scores(X[1:])


@pytest.mark.parametrize("density", [GaussianDensity(), AutoDensity(), KNNDensity(), LocalKNNDensity(n_neighbors=5)])
@pytest.mark.parametrize("method", ["score_samples", "held_out_scores"])
def test_samples_of_another_number_of_features_are_refused(density, method):
    X = correlated(0, 20, 2)
    with pytest.raises(ValueError, match="1 features, but .* is expecting 2 features"):
        getattr(density.fit(X), method)(X[:, :1])


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(2, 30), k=st.integers(1, 5), copies=st.integers(0, 3))
def test_neighbours_of_a_held_out_sample_are_no_duplicates_of_it(seed, n, k, copies):
    X = correlated(seed, n, 3)
    X = np.vstack([X, np.repeat(X[:1], copies, axis=0)])
    groups = np.concatenate([np.arange(n), np.zeros(copies, dtype=int)])
    k = min(k, len(X))
    scores = KNNDensity(n_neighbors=k).fit(X).held_out_scores(X, groups=groups)
    for i in range(len(X)):
        rest = X[groups != groups[i]]
        wanted = min(k, len(rest))
        expected = KNNDensity(n_neighbors=wanted).fit(np.vstack([rest, rest[:1]]) if len(rest) < 2 else rest)
        if len(rest) >= 2:
            assert scores[i] == pytest.approx(expected.score_samples(X[i : i + 1])[0])


def local_by_formula(x, X, k, scaling):
    """Of `LocalKNNDensity` fitted to X, by sorting all distances."""

    def nearest(point, others):
        distances = np.linalg.norm(others - point, axis=1)
        order = np.argsort(distances)[:k]
        return order, distances[order].mean()

    near, own = nearest(x, X)
    around = [nearest(X[j], np.delete(X, j, axis=0))[1] for j in near]
    return -X.shape[1] * (np.log(own) - scaling * np.log(around).mean())


@settings(max_examples=50, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1), n=st.integers(2, 30), k=st.integers(1, 8), scaling=st.sampled_from([0, 0.4, 1.0])
)
def test_local_neighbours_by_brute_force(seed, n, k, scaling):
    X, new = correlated(seed, n, 3), correlated(seed + 1, 4, 3)
    density = LocalKNNDensity(n_neighbors=min(k, n), scaling=scaling).fit(X)
    expected = [local_by_formula(x, X, min(k, n), scaling) for x in new]
    np.testing.assert_allclose(density.score_samples(new), expected, rtol=1e-7, atol=1e-9)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(4, 30), k=st.integers(1, 8), copies=st.integers(0, 3))
def test_a_held_out_sample_is_no_neighbour_of_its_neighbours(seed, n, k, copies):
    """As scored by a fit without it and its copies."""
    X = correlated(seed, n, 3)
    X = np.vstack([X, np.repeat(X[:1], copies, axis=0), X[1] + np.linspace(0, 0.1, 9 * copies)[:, np.newaxis]])
    groups = np.concatenate([np.arange(n), np.zeros(copies, dtype=int), np.ones(9 * copies, dtype=int)])
    k = min(k, n)
    scores = LocalKNNDensity(n_neighbors=k).fit(X, groups=groups).held_out_scores(X, groups=groups)
    for i in range(len(X)):
        rest = groups != groups[i]
        fit = LocalKNNDensity(n_neighbors=min(k, rest.sum())).fit(X[rest], groups=groups[rest])
        assert scores[i] == pytest.approx(fit.score_samples(X[i : i + 1])[0], rel=1e-9, abs=1e-9)


def test_copies_of_a_sample_do_not_make_its_place_look_crowded():
    X = correlated(0, 20, 3)
    copied = np.vstack([X, X[:1], X[:1]])
    groups = np.concatenate([np.arange(20), [0, 0]])
    plain = LocalKNNDensity(n_neighbors=3).fit(X).distances_
    assert LocalKNNDensity(n_neighbors=3).fit(copied, groups=groups).distances_[0] == pytest.approx(plain[0])


def test_neighbours_in_a_sparse_place_allow_for_more_distance():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(-50, 0.1, (40, 2)), rng.normal(50, 5, (40, 2))])
    far_from_close, far_from_sparse = np.full((1, 2), -55.0), np.full((1, 2), 65.0)
    alike, apart = (LocalKNNDensity(n_neighbors=5, scaling=s).fit(X) for s in (0, 0.75))
    assert alike.score_samples(far_from_close) > alike.score_samples(far_from_sparse)
    assert apart.score_samples(far_from_close) < apart.score_samples(far_from_sparse)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_local_neighbours_of_duplicates_follow_the_unit(unit):
    X = np.repeat(correlated(0, 4, 2), 3, axis=0)
    plain, scaled = (LocalKNNDensity(n_neighbors=2).fit(X * factor).score_samples(X * factor) for factor in (1, unit))
    np.testing.assert_allclose(scaled, plain - 2 * 0.5 * np.log(unit))


def test_local_neighbours_among_some_of_the_samples():
    """A sample that is not kept is held out by itself: what was kept stays as it is."""
    X = correlated(0, 30, 3)
    density = LocalKNNDensity(n_neighbors=3, max_samples=10).fit(X)
    scores = density.held_out_scores(X)
    left_out = np.setdiff1d(np.arange(30), density.positions_)
    np.testing.assert_allclose(scores[left_out], density.score_samples(X[left_out]))
    rest = np.delete(density.samples_, 4, axis=0)
    expected = local_by_formula(density.samples_[4], rest, 3, 0.5)
    assert scores[density.positions_[4]] == pytest.approx(expected)


def test_held_out_local_scores_of_what_unseen_measured():
    X, unseen = correlated(0, 20, 3), correlated(1, 20, 3)
    density = LocalKNNDensity(n_neighbors=4).fit(X)
    scores = density.held_out_scores(X, unseen=unseen)
    expected = [local_by_formula(unseen[i], np.delete(X, i, axis=0), 4, 0.5) for i in range(20)]
    np.testing.assert_allclose(scores, expected)


def test_auto_is_the_mean_of_both_on_the_scale_of_held_out_samples():
    X, new = correlated(0, 40, 3), correlated(1, 7, 3)
    expected = np.zeros(7)
    for density, share in ((GaussianDensity(), 0.2), (LocalKNNDensity(n_neighbors=6), 0.8)):
        held_out = density.fit(X).held_out_scores(X)
        expected += share * (density.score_samples(new) - held_out.mean()) / held_out.std()
    auto = AutoDensity().fit(X)
    np.testing.assert_allclose(auto.score_samples(new), expected)
    np.testing.assert_array_equal(auto.held_out_scores_, auto.held_out_scores(X))


@pytest.mark.parametrize("n, count", [(2, 1), (3, 1), (4, 2), (9, 3), (100, 10), (399, 20), (900, 20)])
def test_auto_takes_the_root_of_the_samples_as_neighbours_up_to_20(n, count):
    assert AutoDensity().fit(correlated(0, n, 2)).neighbors_.n_neighbors == count


def test_auto_takes_as_many_neighbours_as_are_asked_for_if_there_are():
    assert AutoDensity(n_neighbors=7).fit(correlated(0, 50, 2)).neighbors_.n_neighbors == 7
    assert AutoDensity(n_neighbors=7).fit(correlated(0, 5, 2)).neighbors_.n_neighbors == 3


def test_auto_takes_differences_as_they_are_where_held_out_samples_score_alike():
    auto = AutoDensity().fit([[0.0], [1.0]])
    held_out = [part.held_out_scores([[0.0], [1.0]])[0] for part in (auto.gaussian_, auto.neighbors_)]
    new = [part.score_samples([[3.0]])[0] for part in (auto.gaussian_, auto.neighbors_)]
    assert auto.score_samples([[3.0]])[0] == pytest.approx(np.subtract(new, held_out) @ [0.2, 0.8])


def test_auto_finds_what_lies_between_two_kinds_of_normal():
    rng = np.random.default_rng(0)
    X = np.vstack([rng.normal(-9, 1, (50, 2)), rng.normal(9, 1, (50, 2))])
    between, within = np.zeros((1, 2)), np.full((1, 2), 9.0)
    gaussian, auto = GaussianDensity().fit(X), AutoDensity().fit(X)
    assert gaussian.score_samples(between) > gaussian.score_samples(within)
    assert auto.score_samples(between) < np.quantile(auto.held_out_scores(X), 0.05)


@settings(max_examples=30, deadline=None)
@given(n=st.integers(2, 40), seed=st.integers(0, 1000), copies=st.integers(0, 5))
def test_folds_hold_each_sample_out_once_and_never_split_a_group(n, seed, copies):
    groups = np.concatenate([np.arange(n), np.zeros(copies, dtype=int)])
    groups = np.random.default_rng(seed).permutation(groups)
    splits = folds(groups, len(groups))
    assert sorted(np.concatenate([test for _, test in splits]).tolist()) == list(range(len(groups)))
    for train, test in splits:
        assert not set(groups[train]) & set(groups[test]) and len(train)


def test_densities_without_a_closed_form_are_held_out_by_folds():
    X = correlated(0, 23, 2)
    density = KernelDensity().fit(X)
    expected = np.empty(23)
    for train, test in folds(None, 23):
        part = KernelDensity().fit(X[train])
        level = np.median(density.score_samples(X[train]) - part.score_samples(X[train]))
        expected[test] = part.score_samples(X[test]) + level
    np.testing.assert_array_equal(held_out_scores(density, X), expected)


class Levelled(BaseEstimator):
    """Scores by the first feature, at a level that depends on the number of samples of the fit."""

    fitted: ClassVar[list] = []

    def fit(self, X, y=None):
        self.count_ = len(X)
        self.fitted.append(self.count_)
        return self

    def score_samples(self, X):
        return X[:, 0] + 1000 * self.count_


@pytest.mark.parametrize("n, counts", [(2, {2}), (3, {2}), (10, {9}), (40, {38}), (50, {47, 48})])
def test_each_of_twenty_folds_is_fitted_on_the_rest_or_on_two_copies_of_one(n, counts):
    X = correlated(0, n, 2)
    density = Levelled().fit(X)
    Levelled.fitted.clear()
    scores = held_out_scores(density, X)
    assert set(Levelled.fitted) == counts and len(Levelled.fitted) == min(n, 20)
    np.testing.assert_allclose(scores, density.score_samples(X))  # on the scale of the density of all


@pytest.mark.parametrize("explained_variance", [None, 0.9])
@pytest.mark.parametrize(
    "density",
    [
        make_pipeline(PCA(0.8, whiten=True), GaussianMixture(1, reg_covar=1e-3)),
        make_pipeline(PCA(5), GaussianMixture(1)),
        OneClassSVM(),
        OneClassSVM(nu=0.1),
        KernelDensity(bandwidth="scott"),
        PCA(5),
        GaussianMixture(2, reg_covar=1e-4, random_state=0),
    ],
    ids=["whitening", "pca-gaussian", "svm", "svm-0.1", "kernels", "pca", "mixture"],
)
@pytest.mark.slow
def test_densities_of_others_flag_what_they_promise(density, explained_variance):
    """Of 60 samples of 100 features, whose variances fall as those of embeddings do."""
    low, half = [], []
    features = np.arange(1, 101)
    for seed in range(12):
        X = np.random.default_rng(seed).normal(size=(260, 100)) / features**0.7 + 2 / features**0.5
        space = FeatureSpace(density, explained_variance=explained_variance).fit(X[:60])
        p = interpolated_p_values(space.score_samples(X[60:]), space.held_out_parts_)
        low.append(np.mean(p < 0.1))
        half.append(np.mean(p < 0.5))
    assert np.mean(low) == pytest.approx(0.1, abs=0.04)
    assert np.mean(half) == pytest.approx(0.5, abs=0.1)


class Wrong(BaseEstimator):
    """Scores in a shape that is not (n,)."""

    def __init__(self, shape=lambda scores: scores.mean()):
        self.shape = shape

    def fit(self, X, y=None):
        return self

    def score_samples(self, X):
        return self.shape(X[:, 0])


@pytest.mark.parametrize("shape", [np.mean, lambda s: s[:, None], lambda s: s[:-1], lambda s: s[:0]])
@pytest.mark.parametrize("held_out", [True, False])
@pytest.mark.parametrize("explained_variance", [None, 0.8])
def test_one_number_for_each_sample_is_expected(shape, held_out, explained_variance):
    space = FeatureSpace(Wrong(shape), held_out=held_out, standardize=held_out, explained_variance=explained_variance)
    with pytest.raises(ValueError, match=r"Wrong.score_samples returned an array of shape \(.*; expected \(\d+,\)"):
        space.fit(correlated(0, 12, 3))


def test_mixtures_of_more_features_than_samples_are_held_out_as_they_are():
    """Folds are fitted in the samples' own span, which changes nothing."""
    X = correlated(0, 12, 30)
    density = GaussianMixture(2, random_state=0, reg_covar=1e-2).fit(X)
    expected = np.empty(12)
    for train, test in folds(None, 12):
        part = clone(density).fit(X[train])
        expected[test] = on_scale(part.score_samples(X[test]), *(d.score_samples(X[train]) for d in (density, part)))
    np.testing.assert_allclose(held_out_scores(density, X), expected, rtol=1e-6)


@pytest.mark.parametrize("unit", [1e-6, 1e6])
def test_knn_of_duplicates_follows_the_unit(unit):
    X = np.repeat(correlated(0, 4, 2), 3, axis=0)
    plain, scaled = (KNNDensity(n_neighbors=2).fit(X * factor).score_samples(X * factor) for factor in (1, unit))
    np.testing.assert_allclose(scaled, plain - 2 * np.log(unit))


def test_knn_formula_by_brute_force():
    X, Y = correlated(0, 50, 3), correlated(1, 7, 3)
    radius = np.sort(np.linalg.norm(Y[:, None] - X[None], axis=-1), axis=1)[:, 3]
    ball = 4 / 3 * np.pi * radius**3
    np.testing.assert_allclose(KNNDensity(n_neighbors=4).fit(X).score_samples(Y), np.log(4 / (50 * ball)))


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 1000), n=st.integers(4, 30), most=st.integers(3, 12), copies=st.integers(0, 2))
@example(seed=0, n=4, most=3, copies=2)
def test_among_at_most_so_many_samples_each_is_held_out_from_those_that_are_kept(seed, n, most, copies):
    """Its distance to the nearest kept sample of another group."""
    X = np.random.default_rng(seed).normal(size=(n, 3))
    groups = np.arange(n)
    X[n - copies :], groups[n - copies :] = X[0], 0
    density = KNNDensity(n_neighbors=1, max_samples=most).fit(X)
    kept = density.positions_
    assert len(kept) == min(n, most) and np.array_equal(density.samples_, X[kept])
    ball = 4 / 3 * np.pi
    for i, score in enumerate(density.held_out_scores(X, groups=groups)):
        rest = [j for j in kept if groups[j] != groups[i]]
        # if all that was kept is the same image, it has itself alone to be compared with
        distance = min((np.linalg.norm(X[i] - X[j]) for j in rest), default=density.floor_)
        assert score == pytest.approx(-np.log(max(len(rest), 1)) - np.log(ball * distance**3))


def test_many_samples_cost_the_neighbours_among_5000():
    X = np.random.default_rng(0).normal(size=(6000, 2))
    density = AutoDensity().fit(X)
    assert density.neighbors_.samples_.shape == (5000, 2) and density.held_out_scores_.shape == (6000,)
    np.testing.assert_array_equal(density.held_out_scores(X), density.held_out_scores_)


def test_knn_approaches_the_true_density():
    X = np.random.default_rng(0).normal(size=(20000, 1))
    grid = np.linspace(-1.5, 1.5, 7)[:, None]
    expected = multivariate_normal(0, 1).logpdf(grid)
    np.testing.assert_allclose(KNNDensity(n_neighbors=500).fit(X).score_samples(grid), expected, atol=0.15)


def test_knn_agrees_with_kernel_density_on_what_is_far():
    X = correlated(0, 200, 2)
    Y = np.vstack([X[:5], X[:5] + 30])
    kernel = KernelDensity(bandwidth=1.0).fit(X).score_samples(Y)
    ours = KNNDensity().fit(X).score_samples(Y)
    assert set(np.argsort(ours)[:5]) == set(np.argsort(kernel)[:5])


def test_knn_with_more_neighbours_than_samples_is_refused():
    with pytest.raises(ValueError, match="n_neighbors=5.*n_samples=3"):
        KNNDensity().fit(np.eye(3))


def test_local_neighbours_that_are_more_than_samples_are_refused():
    with pytest.raises(ValueError, match="n_neighbors=20.*n_samples=3"):
        LocalKNNDensity().fit(np.eye(3))


@pytest.mark.parametrize(
    "n, kind, warns", [(30, "full", True), (30, "diag", False), (90, "full", False), (4, "full", False)]
)
def test_a_mixture_that_samples_hardly_determine_warns(n, kind, warns):
    X = np.random.default_rng(0).normal(size=(n, 10))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit_density(GaussianMixture(4 if n > 4 else 2, covariance_type=kind), X)
        fit_density(GaussianMixture(2, covariance_type=kind), X, fold=True)
    assert [("hardly determine" in str(one.message)) for one in caught] == [True] * warns


@pytest.mark.parametrize("density", [GaussianDensity(), KNNDensity(), LocalKNNDensity(n_neighbors=3), AutoDensity()])
def test_unseen_samples_are_as_many_as_were_learned(density):
    X = correlated(0, 10, 2)
    with pytest.raises(ValueError, match=r"inconsistent numbers of samples: \[10, 20\]"):
        density.fit(X).held_out_scores(X, unseen=np.vstack([X, X]))


def test_score_is_the_mean_log_density():
    X = correlated(0, 30, 2)
    density = GaussianDensity().fit(X)
    assert density.score(X) == pytest.approx(density.score_samples(X).mean())


def test_gaussian_density_integrates_to_one():
    density = GaussianDensity().fit(correlated(0, 30, 1))
    mass, _ = quad(lambda x: float(np.exp(density.score_samples([[x]])[0])), -50, 50, points=[density.mean_[0]])
    assert mass == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize(
    "name, kind", [("auto", AutoDensity), ("gaussian", GaussianDensity), ("gmm", GaussianMixture), ("knn", KNNDensity)]
)
def test_densities_by_name(name, kind):
    assert isinstance(resolve_density(name), kind)


@pytest.mark.parametrize("components, n", [(5, 4), (3, 2)])
def test_a_mixture_of_more_components_than_samples_is_refused_with_advice_that_works(components, n):
    X = correlated(0, n, 3)
    with pytest.raises(ValueError, match=f"{components} components needs as many images at least, got {n}") as error:
        fit_density(GaussianMixture(components), X)
    fewer = int(re.search(r"GaussianMixture\(n_components=(\d+)\)", str(error.value))[1])
    fit_density(GaussianMixture(fewer), X)
    assert fit_density(GaussianMixture(components), X, fold=True).n_components == n


@pytest.mark.parametrize("value", [0.1, 0.3, 0.7, 1e6 + 0.1, -1e-9 / 3])
@pytest.mark.parametrize("n", [3, 10, 49, 20_000])
def test_a_constant_feature_whose_mean_is_rounded_is_constant(value, n, rng):
    X = rng.normal(size=(n, 1))
    constant = np.full((n, 1), value)
    fitted = GaussianDensity(target="diagonal").fit(np.hstack([X, constant]))
    assert fitted.scale_[1] == pytest.approx(abs(value))
    assert GaussianDensity().fit(constant).floor_ >= 1e-6


@pytest.mark.parametrize("density", [GaussianDensity(), KNNDensity(), LocalKNNDensity(), AutoDensity()], ids=str)
@pytest.mark.parametrize("count", [5, 40])
def test_groups_of_another_length_are_refused(density, count, rng):
    X = rng.normal(size=(20, 3))
    with pytest.raises(ValueError, match=f"(20|{count}).*(20|{count})"):
        density.fit(X).held_out_scores(X, groups=np.arange(count))


def test_a_density_is_an_object():
    expected = r"density must be an object, got the class GaussianMixture: write GaussianMixture\(\.\.\.\)"
    with pytest.raises(TypeError, match=expected):
        FeatureSpace(GaussianMixture).fit(correlated(0, 9, 3))


@pytest.mark.parametrize("density", ["auto", "gaussian", "knn"])
def test_rounding_of_copies_is_no_difference(density):
    """Of two images, one many times, as float32 has them at different places of a batch."""
    rng = np.random.default_rng(0)
    one, other = rng.normal(size=(2, 200))
    X = np.vstack([np.repeat(one[None], 20, axis=0), other]) * (1 + 1e-7 * rng.normal(size=(21, 200)))
    groups = np.repeat([0, 1], [20, 1])
    parts = FeatureSpace(density).fit(X.astype(np.float32), groups=groups).held_out_parts_
    assert np.ptp(parts[:20]) < 0.1
