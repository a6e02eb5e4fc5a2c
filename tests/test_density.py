"""Densities against scipy and scikit-learn."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import multivariate_normal
from sklearn.covariance import LedoitWolf
from sklearn.mixture import GaussianMixture
from sklearn.neighbors import KernelDensity
from sklearn.preprocessing import StandardScaler

from skl_transformaly import GaussianDensity, KNNDensity
from skl_transformaly._density import resolve_density


def correlated(seed, n, d):
    rng = np.random.default_rng(seed)
    mixing = rng.normal(size=(d, d)) + d * np.eye(d)  # far from singular, so that references are exact
    return rng.normal(size=(n, d)) @ mixing + rng.normal(size=d)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), d=st.integers(1, 12), extra=st.integers(20, 200))
def test_gaussian_is_scipys_multivariate_normal(seed, d, extra):
    X = correlated(seed, d + extra, d)
    expected = multivariate_normal(X.mean(axis=0), np.cov(X, rowvar=False)).logpdf(X)
    np.testing.assert_allclose(
        GaussianDensity(shrinkage=0, ridge=1e-12).fit(X).score_samples(X), expected, rtol=1e-5, atol=1e-5
    )


def test_gaussian_is_one_component_of_scikit_learns_mixture():
    X = correlated(0, 500, 4)
    expected = GaussianMixture(1, reg_covar=0).fit(X).score_samples(X)
    # the mixture divides by n, the Gaussian by n - 1
    np.testing.assert_allclose(GaussianDensity(shrinkage=0).fit(X).score_samples(X), expected, atol=0.05)


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), exponent=st.floats(-6, 6))
def test_gaussian_ranking_does_not_depend_on_units(seed, exponent):
    X, Y = correlated(seed, 40, 3), correlated(seed, 10, 3)
    scale = 10.0**exponent
    shift = GaussianDensity().fit(X * scale).score_samples(Y * scale) - GaussianDensity().fit(X).score_samples(Y)
    # a change of units moves every log-density by the same Jacobian
    np.testing.assert_allclose(shift, -3 * np.log(scale), rtol=1e-7, atol=1e-6)


def test_gaussian_reports_the_covariance_of_the_data():
    X = correlated(0, 300, 3)
    density = GaussianDensity(shrinkage=0, ridge=1e-12).fit(X)
    np.testing.assert_allclose(density.covariance_, np.cov(X, rowvar=False), rtol=1e-8)
    np.testing.assert_allclose(density.mean_, X.mean(axis=0))


def test_shrinkage_draws_correlations_towards_none():
    X = correlated(0, 300, 4)
    got = GaussianDensity(shrinkage=0.6, ridge=1e-12).fit(X).covariance_
    deviation = np.sqrt(np.diag(got))
    expected = 0.4 * np.corrcoef(X, rowvar=False) + 0.6 * np.eye(4)
    np.testing.assert_allclose(got / np.outer(deviation, deviation), expected, rtol=1e-6)


@pytest.mark.parametrize("n, d", [(15, 10), (200, 4)])
def test_gaussian_shrinks_as_scikit_learns_ledoit_wolf(n, d):
    X = StandardScaler().fit_transform(correlated(n, n, d))
    expected = LedoitWolf().fit(X).covariance_ * n / (n - 1)
    np.testing.assert_allclose(
        GaussianDensity(shrinkage="ledoit-wolf", ridge=1e-12).fit(X).covariance_, expected, rtol=1e-6
    )


@pytest.mark.parametrize("density", [GaussianDensity(), KNNDensity(n_neighbors=2), GaussianMixture(1)])
@pytest.mark.parametrize("n", [2, 3, 9])
def test_fewer_samples_than_features_score_finite(density, n):
    X = correlated(n, n, 10)
    assert np.isfinite(density.fit(X).score_samples(np.vstack([X, X + 100]))).all()


@pytest.mark.parametrize("density", [GaussianDensity(), KNNDensity(n_neighbors=2)])
def test_identical_and_constant_samples_score_finite(density):
    X = np.ones((5, 3))
    assert np.isfinite(density.fit(X).score_samples(np.vstack([X, X * 2]))).all()


@pytest.mark.parametrize("density", [GaussianDensity(), KNNDensity(n_neighbors=1)])
def test_one_sample_is_refused(density):
    with pytest.raises(ValueError, match="minimum of 2"):
        density.fit([[1.0, 2.0]])


def test_knn_formula_by_brute_force():
    X, Y = correlated(0, 50, 3), correlated(1, 7, 3)
    radius = np.sort(np.linalg.norm(Y[:, None] - X[None], axis=-1), axis=1)[:, 3]
    ball = 4 / 3 * np.pi * radius**3
    np.testing.assert_allclose(KNNDensity(n_neighbors=4).fit(X).score_samples(Y), np.log(4 / (50 * ball)))


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


def test_score_is_the_mean_log_density():
    X = correlated(0, 30, 2)
    density = GaussianDensity().fit(X)
    assert density.score(X) == pytest.approx(density.score_samples(X).mean())


def test_gaussian_density_integrates_to_one():
    density = GaussianDensity().fit(correlated(0, 30, 1))
    mass, _ = quad(lambda x: float(np.exp(density.score_samples([[x]])[0])), -50, 50, points=[density.mean_[0]])
    assert mass == pytest.approx(1, rel=1e-6)


@pytest.mark.parametrize("name, kind", [("gaussian", GaussianDensity), ("gmm", GaussianMixture), ("knn", KNNDensity)])
def test_densities_by_name(name, kind):
    assert isinstance(resolve_density(name), kind)
