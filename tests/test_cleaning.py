"""Trimming: where it begins, and which of its two ends is taken."""

import numpy as np
import pytest

from skl_transformaly import _cleaning


@pytest.mark.parametrize(("depth", "found"), [(-10.0, "planted"), (-3.3, "decoys")])
def test_the_clearly_better_of_two_ends_is_taken(monkeypatch, depth, found):
    # Planted images are seen only once they have no part in the fit; until then decoys seem the least normal.
    n, rng = 40, np.random.default_rng(0)
    sets = {"decoys": np.arange(4), "planted": np.arange(36, 40)}
    Z = rng.normal(size=(n, 5)) + 20 * np.eye(5)[0]
    Z[sets["planted"]] += 40 * np.eye(5)[1]  # among the outer half

    def scored(features, sizes, groups, left_out, *, normalize):
        scores = np.linspace(0, 0.1, n)
        if np.isin(sets["planted"], left_out).all():
            scores[sets["planted"]] = depth
        else:
            scores[sets["decoys"]] = -3.0
        return scores

    monkeypatch.setattr(_cleaning, "_scored_without", scored)
    left_out = _cleaning.least_normal({"a": Z}, {}, np.arange(n), 0.1, True)
    assert left_out.tolist() == sets[found].tolist()


def test_copies_that_fill_the_central_half_leave_one_start():
    # the central half is one image many times: nothing can be fitted to it
    rng = np.random.default_rng(0)
    Z = np.vstack([np.tile(rng.normal(size=(1, 6)), (10, 1)), rng.normal(size=(8, 6))])
    groups = np.concatenate([np.zeros(10, dtype=int), np.arange(1, 9)])
    assert len(_cleaning.least_normal({"a": Z}, {}, groups, 0.1, True)) == 2
