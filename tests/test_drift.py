"""A stream's drift: the bets are fair, false alarms are as rare as promised, and changes are noticed."""

import pickle
import warnings
from itertools import pairwise, permutations

import numpy as np
import pytest
from conftest import tiny_detector
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import beta, binom, binomtest, chisquare, ks_2samp
from sklearn.ensemble import IsolationForest
from sklearn.exceptions import NotFittedError

from skl_transformaly import ConformalDetector, DriftMonitor
from skl_transformaly._drift import unlike_calibration
from skl_transformaly.model_selection import NormalOnly


def capital_of(scores, n_reference, **settings):
    return np.exp(DriftMonitor(scores[:n_reference], **settings).update_scores(scores[n_reference:]).log_capital)


@pytest.mark.parametrize("n_reference,length", [(1, 5), (3, 3), (5, 1)])
def test_over_all_orders_the_capital_is_one_on_average(n_reference, length):
    orders = [np.array(order, dtype=float) for order in permutations(range(n_reference + length))]
    assert np.mean([capital_of(order, n_reference) for order in orders]) == pytest.approx(1, abs=1e-12)


def test_whatever_came_before_the_next_bet_is_fair():
    """Of all streams that begin with the same ranks, the capital is on average what it was before the last image."""
    before, after = {}, {}
    for order in permutations(range(6)):
        monitor = DriftMonitor(np.array(order[:2], dtype=float))
        log_capital = monitor.update_scores(np.array(order[2:5], dtype=float)).log_capital
        began = tuple(np.argsort(order[:5]))
        before[began] = np.exp(log_capital)
        after.setdefault(began, []).append(np.exp(monitor.update_scores([float(order[5])]).log_capital))
    assert len(before) == 120
    for began, capital in before.items():
        assert np.mean(after[began]) == pytest.approx(capital, rel=1e-12)


def test_capital_is_what_the_bets_make_of_it(rng):
    """Step by step, as the documentation tells it, with the densities of scipy."""
    reference, stream = rng.normal(size=12), rng.normal(size=80) - 0.7
    densities = [beta(1, 2), beta(1, 4), beta(2, 1), beta(4, 1)]
    shares = np.array([0.4, 0.4, 0.1, 0.1])
    bets, reserve, seen = 0.5 * shares, 0.5, list(reference)
    for t, score in enumerate(stream, start=1):
        left = 0.5 * np.log(10) / np.log(t + 10)
        size = len(seen) + 1
        rank = 1 + sum(other < score for other in seen)
        paid = [size * (f.cdf(rank / size) - f.cdf((rank - 1) / size)) for f in densities]
        bets = (bets + shares * (reserve - left)) * paid
        reserve = left
        seen.append(score)
    report = DriftMonitor(reference).update_scores(stream)
    assert np.exp(report.log_capital) == pytest.approx(bets.sum() + reserve, rel=1e-9)


@settings(deadline=None, max_examples=50)
@given(
    scores=st.lists(st.one_of(st.integers(-3, 3), st.floats(-3, 3)), min_size=1, max_size=40),
    cuts=st.lists(st.integers(0, 40), max_size=5),
)
def test_batches_of_any_size_are_one_stream(scores, cuts):
    reference = np.arange(-3, 4)
    whole = DriftMonitor(reference, window=7).update_scores(scores)
    monitor = DriftMonitor(reference, window=7)
    for start, end in pairwise([0, *sorted(min(cut, len(scores)) for cut in cuts), len(scores)]):
        parts = monitor.update_scores(scores[start:end])
    assert parts.log_capital == pytest.approx(whole.log_capital, rel=1e-9, abs=1e-9)
    assert (parts.n_images, parts.alarm) == (whole.n_images, whole.alarm)
    np.testing.assert_equal(parts.window_p_value, whole.window_p_value)


def test_equal_scores_get_every_rank_equally_often():
    ranks = [DriftMonitor([0.0, 0.0, 0.0], random_state=i)._ranks(np.zeros(2))[0] for i in range(2000)]
    first, second = np.transpose(ranks)
    assert chisquare(np.bincount(first)[1:]).pvalue > 1e-3 and first.max() == 4
    assert chisquare(np.bincount(second)[1:]).pvalue > 1e-3 and second.max() == 5


@pytest.mark.parametrize("draw", ["normal", "few values"])
def test_false_alarms_are_as_rare_as_promised(draw):
    rng = np.random.default_rng(0)
    alarms = 0
    for _ in range(300):
        scores = rng.normal(size=320) if draw == "normal" else rng.integers(0, 3, 320)
        alarms += (
            DriftMonitor(scores[:20], alpha=0.05, random_state=rng.integers(2**31)).update_scores(scores[20:]).drifted
        )
    assert binomtest(alarms, 300, 0.05, alternative="greater").pvalue > 1e-3


@pytest.mark.parametrize("shift", [-3, 3])
def test_a_shift_is_noticed_at_once_and_late(shift):
    rng = np.random.default_rng(0)
    reference = rng.normal(size=100)
    assert DriftMonitor(reference).update_scores(rng.normal(size=30) + shift).alarm <= 15
    late = DriftMonitor(reference).update_scores(np.concatenate([rng.normal(size=5000), rng.normal(size=60) + shift]))
    assert 5000 < late.alarm <= 5040


def test_a_few_anomalies_are_not_a_drift(rng):
    stream = rng.normal(size=1000)
    stream[::33] -= 100
    report = DriftMonitor(rng.normal(size=100)).update_scores(stream)
    assert not report.drifted and str(report).startswith("no drift in 1000 images")


def test_an_alarm_stays_until_reset(rng):
    monitor = DriftMonitor(rng.normal(size=50))
    alarm = monitor.update_scores(np.full(30, -9.0)).alarm
    report = monitor.update_scores(rng.normal(size=300))
    assert report.drifted and report.alarm == alarm and report.p_value <= 0.01
    report = monitor.reset().report()
    assert not report.drifted and report.n_images == 0 and len(monitor.scores_) == 50


def test_a_pickled_monitor_goes_on_where_it_was(rng):
    reference, stream = rng.integers(0, 9, 30), rng.integers(0, 9, 200)
    whole = DriftMonitor(reference).update_scores(stream)
    monitor = DriftMonitor(reference)
    monitor.update_scores(stream[:100])
    state = pickle.dumps(monitor)
    assert len(state) < 10_000
    assert pickle.loads(state).update_scores(stream[100:]).log_capital == pytest.approx(whole.log_capital)


def test_unreadable_images_are_counted_and_passed_over(rng):
    reference, stream = rng.normal(size=30), rng.normal(size=20)
    report = DriftMonitor(reference).update_scores(np.insert(stream, [0, 7], np.nan))
    assert (report.n_images, report.n_unreadable) == (20, 2)
    assert report.log_capital == DriftMonitor(reference).update_scores(stream).log_capital
    assert DriftMonitor(reference).update_scores([np.nan]).p_value == 1


def test_the_window_is_compared_by_kolmogorov_and_smirnov(rng):
    reference, stream = rng.normal(size=40), rng.normal(size=30)
    monitor = DriftMonitor(reference, window=25)
    assert np.isnan(monitor.update_scores(stream[:24]).window_p_value)
    assert monitor.update_scores(stream[24:]).window_p_value == ks_2samp(stream[-25:], reference, method="asymp").pvalue


def test_detectors_are_tested_by_their_own_scores(rng):
    X = rng.normal(size=(300, 2))
    detector = ConformalDetector(IsolationForest(n_estimators=20, random_state=0), random_state=0).fit(X)
    new = rng.normal(size=(120, 2)) + 4
    by_scores = DriftMonitor(detector.calibration_scores_).update_scores(detector.score_samples(new))
    assert DriftMonitor(detector).update(new) == by_scores == detector.drift(new)
    assert by_scores.drifted and by_scores.window_p_value < 1e-6
    assert detector.drift(new, alpha=1e-9).alarm > by_scores.alarm


def test_held_out_training_scores_are_a_reference(fitted):
    detector, X = fitted
    monitor = DriftMonitor(detector)
    np.testing.assert_array_equal(monitor.scores_, np.sort(detector.training_scores_))
    assert monitor.update(X[:3]).n_images == 3


def test_what_cannot_be_a_reference_is_refused(rng):
    forest = IsolationForest(n_estimators=5).fit(rng.normal(size=(30, 2)))
    with pytest.raises(ValueError, match="IsolationForest has no scores"):
        DriftMonitor(forest)
    with pytest.raises(NotFittedError):
        DriftMonitor(ConformalDetector(forest))
    with pytest.raises(ValueError, match=r"one dimension, got shape \(2, 3\)"):
        DriftMonitor(np.zeros((2, 3)))
    with pytest.raises(ValueError, match="holds no scores"):
        DriftMonitor([np.nan])
    with pytest.raises(ValueError, match="alpha"):
        DriftMonitor([0.0], alpha=1)
    with pytest.raises(ValueError, match=r"scores must have one dimension, got shape \(1, 1\)"):
        DriftMonitor([0.0]).update_scores([[1.0]])
    with pytest.raises(TypeError, match="pass scores to update_scores"):
        DriftMonitor([0.0]).update([[1.0]])


# ----- one batch


@settings(deadline=None)
@given(images=st.integers(1, 400), n=st.integers(5, 500), data=st.data())
def test_a_batch_is_named_where_three_in_four_cannot_be_normal(images, n, data):
    """Averaged over the sets of `n` images that the p-values may come from."""
    low = data.draw(st.integers(0, images))
    p = np.repeat([0.05, 0.2], [low, images - low])
    limit = max(1, (n + 1) // 20)

    def chance(rate):
        return binom.sf(low - 1, images, 0.25 + 0.75 * rate) * beta.pdf(rate, limit, n + 1 - limit)

    rarity = quad(chance, 0, 1, points=[limit / (n + 1)], limit=200)[0]
    assume(not 0.9e-6 < rarity < 1.1e-6)
    assert (unlike_calibration(p, n) is not None) == (rarity <= 1e-6)


@pytest.mark.parametrize("n", [20, 60, 300])
def test_a_batch_of_three_quarters_of_normal_images_is_not_named(n):
    """With 20 images behind the p-values, one in twenty batches was, when these counted as exact."""
    rng = np.random.default_rng(n)
    for _ in range(300):
        reference, normal = rng.normal(size=n), rng.normal(size=750)
        ranks = (1 + (reference <= normal[:, np.newaxis]).sum(axis=1)) / (n + 1)
        assert unlike_calibration(np.r_[ranks, np.zeros(250)], n) is None


def test_the_sentence_says_how_many():
    p = np.r_[np.full(63, 0.01), np.full(37, 0.5), np.nan]
    expected = "63 % of these images have p <= 0.05: that many anomalies, another camera, or another model?"
    assert unlike_calibration(p, 300) == expected
    assert unlike_calibration([], 300) is None and unlike_calibration([np.nan], 300) is None


def test_a_monitor_of_a_detector_that_learned_begins_anew(images, rng):
    detector = tiny_detector(feature_spaces=["pretrained"], contamination=0.2).fit(images)
    monitor = DriftMonitor(detector)
    more = rng.integers(0, 256, (4, *images.shape[1:]), dtype=np.uint8)
    detector.partial_fit(more)
    with pytest.warns(UserWarning, match="has learned since"):
        monitor.update(more)
    monitor.reset()
    np.testing.assert_array_equal(monitor.scores_, detector.reference_scores_)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        monitor.update(more)


def test_the_reference_of_a_wrapped_detector_is_found(images):
    detector = tiny_detector(feature_spaces=["pretrained"], contamination=0.2)
    conformal = ConformalDetector(detector, alpha=0.4, calibration=0.5, random_state=0)
    y = np.ones(len(images))
    for wrapped, inner in ((NormalOnly(conformal), "calibration_scores_"), (NormalOnly(detector), "reference_scores_")):
        wrapped.fit(images, y)
        np.testing.assert_array_equal(DriftMonitor(wrapped).scores_, getattr(wrapped.estimator_, inner))
