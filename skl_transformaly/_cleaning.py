"""Cleaning of training images: near-duplicates, and a few images that are not normal."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import numpy as np
from scipy.spatial import KDTree
from scipy.spatial.distance import cdist
from sklearn.decomposition import PCA
from sklearn.metrics import euclidean_distances
from sklearn.preprocessing import normalize as unit_length
from sklearn.utils import gen_batches

from skl_transformaly._gaussian import GaussianDensity
from skl_transformaly._space import FeatureSpace
from skl_transformaly.utils._labels import by_appearance

__all__ = ["COPY_LEVELS", "least_normal", "near_duplicates"]

# The 16 x 16 thumbnails of copies of an image, resized or compressed again, differ by at most about this many of 255
# levels, those of different photographs by 5 or more (benchmarks/accuracy/NOTES.md).
COPY_LEVELS = 3.0
# Where many images are nearly alike, such as those of one kind of parts under a fixed camera, copies must be far closer
# than an image is to the nearest tenth of all others (at least ten); and if an image shows hardly anything, such as a
# piece of sky, far closer than its contrast.
_SHARE = 0.1
_NEAREST, _LEAST_NEAREST = 0.1, 10
# Number of images from which differences are estimated, and number of directions in which close images are sought
_SAMPLE, _DIRECTIONS = 500, 8
# Images that are compared with others at a time; rounding of distances, in levels
_ROWS, _ROUNDING = 256, 1e-4
# Shares that are left out in the first rounds, from half of the images, so that anomalies do not determine the start
_SHRINKING = (0.5, 0.4, 0.3, 0.2, 0.1)
# Factor by which the images left out from the second start must be further away to be preferred
_CLEARLY = 1.2
# Most rounds after the first ones, even if the set of images still changes
_ROUNDS = 5


def near_duplicates(thumbnails: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Join groups of images with the same pixels whose thumbnails (n, k), in levels of 0 to 255, are nearly the same.

    Returns numbers (n,), the same for exact copies and for those that were resized or compressed again. All copies in a
    group are close to one of them: a chain of images, each close to the next, is not one group. All zeros are a copy of
    nothing, since nothing can be seen there.

    >>> thumbnails = np.array([[0.0, 50.0], [100.0, 0.0], [0.0, 100.0], [0.5, 50.5]])
    >>> near_duplicates(thumbnails, np.arange(4)).tolist()
    [0, 1, 2, 0]
    """
    groups = by_appearance(groups)
    first = np.unique(groups, return_index=True)[1]
    rows = np.asarray(thumbnails, dtype=np.float64)[first]  # images of the same pixels are compared once
    if len(rows) < 2 or len(thumbnails) < 3:
        return groups
    sample = rows[np.linspace(0, len(rows) - 1, min(len(rows), _SAMPLE)).round().astype(int)]
    unit = np.sqrt(rows.shape[1])  # root mean square differences are distances in this unit
    radius = np.minimum(COPY_LEVELS, _SHARE * np.minimum(rows.std(axis=1), _usual_distances(rows, sample) / unit))
    radius[~rows.any(axis=1)] = -1.0  # black, or unknown
    if not (radius > 0).any():
        return groups
    # close images are also close in a few directions, in which a tree finds them without comparing all pairs
    projected = np.asarray(
        PCA(min(_DIRECTIONS, *sample.shape), svd_solver="randomized", random_state=0).fit(sample).transform(rows)
    )
    tree = KDTree(projected)

    def copies_of(part: slice) -> tuple[np.ndarray, np.ndarray]:
        found = tree.query_ball_point(projected[part], np.maximum(radius[part], 0) * unit)
        others = np.unique(np.concatenate([np.asarray(near, dtype=np.intp) for near in found]))
        far = euclidean_distances(rows[part], rows[others]) / unit
        return others, far <= np.minimum(radius[part, np.newaxis], radius[others]) + _ROUNDING

    # Counted first, and sought again for the centres alone: of pictures of a few scenes, nearly all pairs are copies.
    count = np.concatenate([copies_of(part)[1].sum(axis=1) for part in gen_batches(len(rows), _ROWS)])
    numbers = np.full(len(rows), -1)
    for centre in np.argsort(-count, kind="stable").tolist():
        if numbers[centre] < 0:
            numbers[centre] = centre
            if count[centre] > 1:
                others, close = copies_of(slice(centre, centre + 1))
                near = others[close[0]]
                numbers[near[numbers[near] < 0]] = centre
    return numbers[groups]


def _usual_distances(rows: np.ndarray, sample: np.ndarray) -> np.ndarray:
    """How far each row is from the farthest of the nearest tenth of a sample of all."""
    place = min(max(_LEAST_NEAREST, round(_NEAREST * len(sample))), len(sample) - 1)
    usual = np.empty(len(rows))
    for part in gen_batches(len(rows), _ROWS):
        usual[part] = np.partition(euclidean_distances(rows[part], sample), place, axis=1)[:, place]
    return usual


def least_normal(
    features: dict[str, np.ndarray],
    sizes: Mapping[str, Sequence[int]],
    groups: np.ndarray,
    share: float,
    normalize: bool,
) -> np.ndarray:
    """Return positions, ascending, of a share of the images that are least like the others, by a fit without them.

    Copies of an image are all among them or none is, so that there may be a few more.

    As in the concentration steps of FAST-MCD [1]_, Gaussians are fitted to the images that seemed most normal, all
    images are scored by these, each without itself, fewer are left out, and so on until the same images are left out
    again. Neighbours are not suitable, since a few anomalies of one kind are neighbours of each other.

    There are two starts: with all images, and with the most central half, by the median of distances to the others in
    the first space. The second result is taken if the images that it leaves out are clearly further from the rest.

    `features` and the `sizes` of their groups are by space; duplicates have the same number in `groups`.

    .. [1] P. J. Rousseeuw and K. Van Driessen, "A Fast Algorithm for the Minimum Covariance Determinant Estimator",
       Technometrics 41(3), 1999.
    """
    n = len(groups)
    count = min(round(share * n), n - 2)
    if count < 1:
        return np.empty(0, dtype=np.intp)
    scored = partial(_scored_without, features, sizes, groups, normalize=normalize)
    everything = [max(count, int(n * part)) for part in _SHRINKING]
    found, depth = _concentrate(scored, groups, np.arange(0), everything + [count] * _ROUNDS, count)
    outer = _outer_half(next(iter(features.values())))
    if len(np.unique(np.delete(groups, outer))) < 2:
        return found
    central, central_depth = _concentrate(scored, groups, outer, [count] * _ROUNDS, count)
    return central if central_depth < _CLEARLY * min(depth, 0.0) else found


def _concentrate(
    scored: Callable[[np.ndarray], np.ndarray],
    groups: np.ndarray,
    left_out: np.ndarray,
    rounds: Sequence[int],
    count: int,
) -> tuple[np.ndarray, float]:
    """Leave out numbers of images in `rounds`, finally `count`, and return these and their mean score.

    All copies of an image are left out with it. Leaves out no image, with a score of 0, if the rest would always be
    copies of one image.
    """
    scores, reached = scored(left_out), False
    for most in rounds:
        found = _lowest(scores, groups, most)
        if len(np.unique(np.delete(groups, found))) < 2:
            continue
        reached = most == count
        if reached and np.array_equal(found, left_out):
            break
        left_out, scores = found, scored(found)
    if not reached:
        return left_out[:0], 0.0
    return left_out, float(scores[left_out].mean())


def _lowest(scores: np.ndarray, groups: np.ndarray, count: int) -> np.ndarray:
    """Return the images with the lowest scores, ascending: `count`, and the other copies of those among them."""
    _, groups = np.unique(groups, return_inverse=True)
    sizes = np.bincount(groups)
    order = np.argsort(np.bincount(groups, scores) / sizes, kind="stable")
    enough = int(np.searchsorted(np.cumsum(sizes[order]), count)) + 1
    return np.flatnonzero(np.isin(groups, order[:enough]))


def _scored_without(
    features: Mapping[str, np.ndarray],
    sizes: Mapping[str, Sequence[int]],
    groups: np.ndarray,
    left_out: np.ndarray,
    *,
    normalize: bool,
) -> np.ndarray:
    """Score all images by Gaussians of all but those left out, and the images of the fit each without itself."""
    kept = np.setdiff1d(np.arange(len(groups)), left_out)
    scores = np.zeros(len(groups))
    for name, Z in features.items():
        space = FeatureSpace(GaussianDensity(), normalize=normalize)
        space.fit(Z[kept], sizes=sizes.get(name), groups=groups[kept])
        parts = space.score_samples(Z)
        parts[kept] = space.held_out_parts_
        scores += parts
    return scores


def _outer_half(Z: np.ndarray) -> np.ndarray:
    """Return the half of the images that is furthest from the others, in ascending order."""
    unit = unit_length(Z)
    sample = unit[np.linspace(0, len(Z) - 1, min(len(Z), _SAMPLE)).round().astype(int)]
    far = np.median(cdist(unit, sample), axis=1)
    return np.sort(np.argsort(-far, kind="stable")[: len(Z) // 2])
