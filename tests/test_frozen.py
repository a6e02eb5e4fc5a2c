"""What was fitted stays as it is, whatever is set afterwards."""

import copy
import inspect
import pickle
import sys

import numpy as np
import pytest
from conftest import tiny_detector, tiny_extractor, tiny_students
from sklearn.base import clone
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError

from skl_transformaly import (
    AutoDensity,
    BlockStudents,
    ConformalDetector,
    GaussianDensity,
    KNNDensity,
    LocalKNNDensity,
    RidgeStudents,
)
from skl_transformaly._space import FeatureSpace
from skl_transformaly.model_selection import NormalOnly

# What may be set on a fitted estimator, because it changes how it runs and not what comes out
RUN_TIME = {"batch_size", "memory", "verbose", "n_jobs", "device", "on_error", "weights"}


class Poison:
    """A value that cannot be used: whoever looks at it fails."""

    def refuse(self, *_):
        raise AssertionError("A parameter was looked at after fit.")

    __eq__ = __bool__ = __len__ = __iter__ = __call__ = __float__ = __int__ = __index__ = __fspath__ = refuse
    __lt__ = __gt__ = __le__ = __ge__ = __add__ = __radd__ = __mul__ = __rmul__ = __getitem__ = __contains__ = refuse
    __hash__ = object.__hash__


ESTIMATORS = {
    "detector": (tiny_detector, ("score_samples", "predict", "p_values", "anomaly_map", "transform", "explain")),
    "paper's threshold": (
        lambda: tiny_detector(threshold="training", fusion="sum", density=GaussianDensity(), students=tiny_students()),
        ("score_samples", "predict", "transform"),
    ),
    "extractor": (tiny_extractor, ("transform",)),
    "16 bits": (lambda: tiny_extractor(precision="bfloat16", interpolation="bicubic"), ("transform",)),
    "solved students": (lambda: RidgeStudents(n_blocks=2, extractor=tiny_extractor()), ("transform",)),
    "trained students": (
        lambda: BlockStudents(n_blocks=2, max_epochs=1, extractor=tiny_extractor(), random_state=0),
        ("transform",),
    ),
    "conformal": (
        lambda: ConformalDetector(tiny_detector(), alpha=0.3, calibration=0.5, random_state=0),
        ("score_samples", "predict", "p_values"),
    ),
    "held-out": (
        lambda: ConformalDetector(tiny_detector(), alpha=0.3, calibration="held-out"),
        ("score_samples", "predict", "p_values"),
    ),
}
ROWS = {
    "Gaussian": (GaussianDensity, ("score_samples",)),
    "truncated": (lambda: GaussianDensity(shrinkage=0.1), ("score_samples",)),
    "neighbours": (lambda: KNNDensity(n_neighbors=2, max_samples=9), ("score_samples",)),
    "local neighbours": (lambda: LocalKNNDensity(n_neighbors=2, max_samples=9), ("score_samples",)),
    "auto": (AutoDensity, ("score_samples",)),
    "feature space": (FeatureSpace, ("score_samples", "transform")),
    "feature space, paper's": (
        lambda: FeatureSpace(explained_variance=0.9, standardize=False, held_out=False),
        ("score_samples", "transform"),
    ),
    "discrepancies": (lambda: FeatureSpace(discrepancy=True), ("score_samples", "terms")),
    "normal only": (
        lambda: NormalOnly(IsolationForest(n_estimators=5, random_state=0)),
        ("score_samples", "predict", "decision_function"),
    ),
}


def results(estimator, methods, X):
    found = {}
    for method in methods:
        result = getattr(estimator, method)(X)
        columns = result.items() if isinstance(result, dict) else [("", result)]
        found.update({f"{method} {name}": np.asarray(column) for name, column in columns})
    return found


def check_frozen(estimator, methods, X):
    expected = results(estimator, methods, X)
    estimator = copy.deepcopy(estimator)
    names = [name for name in estimator.get_params(deep=False) if name not in RUN_TIME]
    estimator.set_params(**{name: Poison() for name in names})
    for changed in (estimator, pickle.loads(pickle.dumps(estimator))):
        for name, value in results(changed, methods, X).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)


@pytest.mark.parametrize("kind", ESTIMATORS)
@pytest.mark.filterwarnings("ignore:With .* images a false-positive rate")
def test_no_parameter_of_a_fitted_estimator_is_looked_at(kind, images, rng):
    build, methods = ESTIMATORS[kind]
    check_frozen(build().fit(images), methods, rng.integers(0, 256, (5, 20, 24, 3), dtype=np.uint8))


@pytest.mark.parametrize("kind", ROWS)
def test_no_parameter_of_a_fitted_density_is_looked_at(kind, rng):
    build, methods = ROWS[kind]
    estimator, X = build(), rng.normal(size=(20, 3))
    estimator.fit(X, np.ones(20)) if isinstance(estimator, NormalOnly) else estimator.fit(X)
    check_frozen(estimator, methods, rng.normal(size=(5, 3)))


@pytest.mark.parametrize("kind", [*ESTIMATORS, *ROWS])
def test_no_parameter_of_the_wrong_kind_is_taken(kind, images, rng):
    build, _ = {**ESTIMATORS, **ROWS}[kind]
    X = images if kind in ESTIMATORS else rng.normal(size=(20, 3))
    for name in build().get_params(deep=False):
        if "students" in kind and name == "extractor":  # has an error of its own
            continue
        with pytest.raises(ValueError, match=f"The '{name}' parameter of .* must be"):
            build().set_params(**{name: object()}).fit(X, np.ones(len(X)))


class Fault(Exception):
    """Raised in the middle of a fit."""


def calls_in(action, *, fail_at=None):
    """Number of calls of this package's functions while `action` runs; at the one numbered `fail_at`, a fault.

    Or at the next one, if that is a generator's: it may be its end, of which Python ignores faults.
    """
    count = 0

    def profile(frame, event, argument):
        nonlocal count
        if event == "call" and "skl_transformaly" in frame.f_code.co_filename:
            count += 1
            if fail_at is not None and count >= fail_at and not frame.f_code.co_flags & inspect.CO_GENERATOR:
                raise Fault

    sys.setprofile(profile)
    try:
        action()
    finally:
        sys.setprofile(None)
    return count


def check_all_or_nothing(build, methods, first, second, X, **changes):
    """Refit with other parameters; after a fault, attributes must be the objects that they were before."""
    estimator = build().fit(*first)
    expected = results(estimator, methods, X)
    total = calls_in(lambda: build().set_params(**changes).fit(*second))
    for fail_at in np.unique(np.linspace(1, total, 6).round().astype(int)):
        estimator.set_params(**changes)
        before = dict(vars(estimator))
        try:
            calls_in(lambda: estimator.fit(*second), fail_at=fail_at)
        except Fault:
            after = vars(estimator)
            assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
        else:  # a fault may be caught where something may fail
            estimator.set_params(**{name: value for name, value in build().get_params().items() if name in changes})
            estimator.fit(*first)
        for name, value in results(estimator, methods, X).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=f"{name}, fault at call {fail_at} of {total}")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=pytest.mark.slow if kind in ("conformal", "held-out") else ()) for kind in ESTIMATORS],
)
@pytest.mark.filterwarnings("ignore:With .* images a false-positive rate")
def test_a_refit_that_fails_leaves_what_was_fitted(kind, images, rng):
    build, methods = ESTIMATORS[kind]
    first, second = rng.integers(0, 256, (2, 12, 20, 24, 3), dtype=np.uint8)
    changes = {"n_blocks": [0]} if "students" in kind else {}
    check_all_or_nothing(build, methods[:1], (first,), (second,), images[:2], **changes)


@pytest.mark.parametrize("kind", ROWS)
def test_a_refit_of_a_density_that_fails_leaves_what_was_fitted(kind, rng):
    build, methods = ROWS[kind]
    first, second = ((rng.normal(size=(20, 3)), *[np.ones(20)] * (kind == "normal only")) for _ in range(2))
    check_all_or_nothing(build, methods[:1], first, second, rng.normal(size=(5, 3)))


@pytest.mark.parametrize("kind", ["detector", "solved students", "trained students"])
def test_a_first_fit_that_fails_leaves_nothing(kind, images):
    build, methods = ESTIMATORS[kind]
    estimator = build()
    for share in (0.3, 0.6, 0.9):
        fail_at = int(share * calls_in(lambda: build().fit(images)))
        with pytest.raises(Fault):
            calls_in(lambda: estimator.fit(images), fail_at=fail_at)
        with pytest.raises(NotFittedError):
            getattr(estimator, methods[0])(images)


@pytest.mark.parametrize("kind", ["detector", "solved students"])
def test_learning_more_that_fails_leaves_what_was_fitted(kind, images, rng):
    build, methods = ESTIMATORS[kind]
    more = rng.integers(0, 256, (4, 20, 24, 3), dtype=np.uint8)
    estimator = build().partial_fit(images)
    expected = results(estimator, methods[:1], more)
    total = calls_in(lambda: clone(estimator).partial_fit(images).partial_fit(more))
    total -= calls_in(lambda: clone(estimator).partial_fit(images))
    for share in (0.3, 0.6, 0.95):
        before = dict(vars(estimator))
        with pytest.raises(Fault):
            calls_in(lambda: estimator.partial_fit(more), fail_at=int(share * total))
        after = vars(estimator)
        assert after.keys() == before.keys() and all(after[name] is before[name] for name in before)
        for name, value in results(estimator, methods[:1], more).items():
            np.testing.assert_array_equal(value, expected[name], err_msg=name)
