"""Thresholds and p-values by hand, from a few held-out scores."""

import numpy as np
import pytest

from skl_transformaly._fusion import can_promise, held_out_threshold, interpolated_p_values, p_values, quantile_knots

SCORES = np.array([1.0, 3.0, 4.0, 8.0])
KNOTS = [1.1, 3.05, 4.2, 8.0]  # a twentieth of the way to the next


def test_shares_lie_just_above_each_score():
    np.testing.assert_allclose(quantile_knots(SCORES), KNOTS)


@pytest.mark.parametrize(
    ("rate", "threshold"), [(0.2, 1.1), (0.3, (1.1 + 3.05) / 2), (0.4, 3.05), (0.8, 8.0), (0.9, 8.0)]
)
def test_a_threshold_is_interpolated_between_shares_of_n_plus_one(rate, threshold):
    assert held_out_threshold(SCORES, rate) == pytest.approx(threshold)


@pytest.mark.parametrize(
    ("scores", "below"),
    [([1.0, 3.0, 4.0], 0.1), ([-2.0, -2.0, 5.0], 1e-7), ([0.0, 0.0], 5e-8), ([0.0], 5e-8), ([-4.0], 2e-7)],
)
def test_a_rate_that_no_share_reaches_is_just_below_the_lowest_score(scores, below):
    rate = 0.99 / (len(scores) + 1)
    assert scores[0] - held_out_threshold(np.array(scores), rate) == pytest.approx(below, rel=1e-6)


def test_p_values_are_interpolated_between_the_same_knots():
    scores = [-9.0, 1.1, (1.1 + 3.05) / 2, 4.2, 7.9999, 8.0, 9.0, np.nan]
    found = interpolated_p_values(np.array(scores), np.r_[SCORES[::-1], np.nan])
    np.testing.assert_allclose(found, [0.2, 0.2, 0.3, 0.6, 0.8, 1.0, 1.0, np.nan], atol=1e-5)


def test_p_values_count_the_score_among_those_as_low():
    found = p_values(np.array([0.0, 1.0, 3.5, 9.0, np.nan]), np.r_[SCORES[::-1], np.nan])
    np.testing.assert_allclose(found, [0.2, 0.4, 0.6, 1.0, np.nan])


@pytest.mark.parametrize("n", [*range(2, 120), 999, 20_000])
def test_a_rate_that_n_scores_just_keep_is_promised_however_it_is_rounded(n):
    assert can_promise(1 / (n + 1), n) and not can_promise(0.999 / (n + 1), n)
    threshold = held_out_threshold(np.arange(n, dtype=float), 1 / (n + 1))
    assert threshold > 0  # above the lowest score: one of n + 1 is flagged
