"""Trimming: where it begins, and which of its two ends is taken."""

import tracemalloc

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


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("seed", range(4))
def test_copies_in_the_middle_of_the_others_change_no_share(seed):
    # without the half that is least like the others, copies of one image alone would be left
    Z = np.vstack([np.zeros((15, 6)), np.random.default_rng(seed).normal(size=(5, 6))]) + 20 * np.eye(6)[0]
    groups = np.concatenate([np.zeros(15, dtype=int), np.arange(1, 6)])
    left_out = _cleaning.least_normal({"a": Z}, {}, groups, 0.1, True)
    assert len(left_out) == 2 and left_out.min() >= 15


def test_nothing_is_left_out_if_copies_of_one_image_would_be_left():
    groups, scores = np.array([0, 0, 0, 0, 0, 0, 1, 2]), np.array([1.0] * 6 + [-1.0] * 2)
    found, depth = _cleaning._concentrate(lambda left_out: scores, groups, np.arange(0), [3, 2, 2], 2)
    assert len(found) == 0 and depth == 0


@pytest.mark.parametrize(("n", "left_out"), [(2, 0), (3, 1), (4, 2)])
def test_two_images_are_always_kept(n, left_out):
    Z = np.random.default_rng(0).normal(size=(n, 6))
    assert len(_cleaning.least_normal({"a": Z}, {}, np.arange(n), 0.49, True)) == left_out


def test_the_outer_half_is_furthest_from_the_other_images_by_the_median():
    Z = np.random.default_rng(0).normal(size=(9, 3)) + [2, 0, 0]
    unit = Z / np.linalg.norm(Z, axis=1, keepdims=True)
    far = np.median(np.linalg.norm(unit[:, None] - unit, axis=-1), axis=1)
    assert _cleaning._outer_half(Z).tolist() == sorted(np.argsort(far)[-4:])


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("n", [1, 2, 5])
def test_images_of_the_same_pixels_alone_are_one_group(n):
    assert _cleaning.near_duplicates(np.full((n, 48), 7.0), np.zeros(n, dtype=int)).tolist() == [0] * n


def test_thumbnails_that_are_equal_are_copies_even_if_they_show_nothing(rng):
    thumbnails = np.vstack([np.full((2, 48), 7.0), rng.uniform(0, 255, (3, 48))])
    found = _cleaning.near_duplicates(thumbnails, np.arange(5))
    assert found[0] == found[1] and len(np.unique(found)) == 4


@pytest.mark.parametrize("kinds", [1, 2, 3, 5])
def test_parts_of_several_kinds_are_no_copies_of_each_other(kinds, rng):
    parts = rng.uniform(0, 255, (kinds, 1, 192)) + rng.normal(0, 2, (kinds, 30, 192))
    thumbnails = np.concatenate([*parts, parts[:, 0] + rng.normal(0, 0.1, (kinds, 192))])
    found = _cleaning.near_duplicates(thumbnails, np.arange(len(thumbnails)))
    assert len(np.unique(found)) == 30 * kinds
    assert found[30 * kinds :].tolist() == found[: 30 * kinds : 30].tolist()  # real copies


def test_a_chain_of_images_is_not_one_group(rng):
    thumbnails = rng.uniform(0, 150, 192) + np.linspace(0, 100, 60)[:, np.newaxis]  # slowly brighter
    thumbnails = np.concatenate([thumbnails, rng.uniform(0, 255, (60, 192))])
    found = _cleaning.near_duplicates(thumbnails, np.arange(120))
    for group in np.unique(found):
        members = thumbnails[found == group]
        assert np.sqrt(((members[:, np.newaxis] - members) ** 2).mean(axis=2)).max() <= 2 * _cleaning.COPY_LEVELS


def test_all_copies_are_found_where_images_are_compared_in_parts(rng, monkeypatch):
    thumbnails = rng.uniform(0, 255, (50, 192))
    thumbnails = np.concatenate([thumbnails, thumbnails[::-1] + rng.normal(0, 1, (50, 192))])
    whole = _cleaning.near_duplicates(thumbnails, np.arange(100))
    monkeypatch.setattr(_cleaning, "_ROWS", 7)
    np.testing.assert_array_equal(_cleaning.near_duplicates(thumbnails, np.arange(100)), whole)
    assert whole[:50].tolist() == whole[:49:-1].tolist() and len(np.unique(whole)) == 50


def test_pictures_of_a_few_scenes_take_no_memory_for_all_their_pairs(rng):
    base = rng.integers(2, 250, (15, 48))
    thumbnails = np.clip(base[np.arange(6000) % 15] + rng.integers(-1, 2, (6000, 48)), 0, 255)
    tracemalloc.start()
    found = _cleaning.near_duplicates(thumbnails, np.arange(6000))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(found)) == 15 and (found == found[np.arange(6000) % 15]).all()
    assert peak < 45 * 2**20  # 2.4 million pairs would take 38 MB, twice


def test_all_copies_of_an_image_are_left_out_or_none(rng):
    Z = rng.normal(size=(40, 4)) + 5
    Z[[3, 17, 30]] = [-5.0, 5.0, 20.0, 0.0]  # three copies of what is least like the others
    groups = np.where(np.isin(np.arange(40), [3, 17, 30]), 3, np.arange(40))
    found = _cleaning.least_normal({"a": Z}, {}, groups, 0.05, False)
    assert found.tolist() == [3, 17, 30]


def test_what_has_no_thumbnail_is_a_copy_of_nothing(rng):
    thumbnails = np.vstack([np.zeros((3, 48)), rng.uniform(0, 255, (4, 48))])
    found = _cleaning.near_duplicates(thumbnails, np.array([0, 1, 1, 2, 3, 4, 5]))
    assert found[1] == found[2] and len(np.unique(found)) == 6
