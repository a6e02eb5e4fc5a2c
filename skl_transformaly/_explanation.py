"""Why a score is what it is: in words, and by the training images that are nearest."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize

__all__ = ["nearest", "reasons", "scatter", "where_readable"]

# What the spaces describe, for people.
_PLAINLY = {
    "pretrained": "the teacher's description of the whole image",
    "classes": "what the teacher takes it for",
    "layers": "the teacher's later layers",
    "discrepancy": "what students of normal images cannot imitate",
}


def reasons(
    decisions: np.ndarray, times: np.ndarray, spaces: Sequence[str], terms: np.ndarray, blocks: Sequence[int]
) -> np.ndarray:
    """Say in words why images are flagged.

    Parameters
    ----------
    decisions : ndarray of shape (n,)
        Negative for anomalies, NaN for unreadable images.
    times : ndarray of shape (n, S)
        How far each space's part lies from the usual; see :meth:`FeatureSpace.times_usual`.
    spaces : sequence of str, of length S
    terms : ndarray of shape (n, m)
        What each block adds to "discrepancy"; m may be 0.
    blocks : sequence of int, of length m
        The blocks' indices.

    Returns
    -------
    reasons : ndarray of shape (n,), object
    """
    found = np.empty(len(times), dtype=object)
    for i, row in enumerate(times):
        if np.isnan(row).any():
            found[i] = "unreadable"
        elif decisions[i] >= 0:
            found[i] = "normal"
        else:
            name = spaces[int(row.argmax())]
            where = _PLAINLY[name]
            if name == "discrepancy" and len(blocks):
                where = f"{where}, block {blocks[int(terms[i].argmin())]}"
            found[i] = (
                f"unusual in {name} ({where}): {row.max():.2g} times as far from the usual as 99 % of normal images"
            )
    return found


def nearest(
    features: dict[str, np.ndarray], training: dict[str, np.ndarray], n_neighbors: int
) -> dict[str, np.ndarray]:
    """Positions and distances of the nearest training images, as columns.

    Parameters
    ----------
    features, training : dict of str to ndarray of shape (n, D_space)
        Features of images and of training images; rows of NaN have no neighbours, and are none.
    n_neighbors : int
        At most as many as there are training images are named.

    Returns
    -------
    columns : dict of str to ndarray of shape (n,)
        "neighbor0", ..., -1 without neighbours, and "distance0", ..., NaN without: between embeddings of unit length,
        or, without embeddings, between standardised discrepancies. Empty if there are neither.
    """
    if "pretrained" in features:
        z, known = (where_readable(side["pretrained"], normalize) for side in (features, training))
    elif "discrepancy" in features:
        scaler = StandardScaler().fit(training["discrepancy"])
        # arrays, whatever sklearn.set_config(transform_output=) says
        z, known = (np.asarray(scaler.transform(side["discrepancy"])) for side in (features, training))
    else:
        return {}
    places = np.flatnonzero(~np.isnan(known).any(axis=1))
    readable = ~np.isnan(z).any(axis=1)
    k = min(n_neighbors, len(places))
    distances, positions = np.full((len(z), k), np.nan), np.full((len(z), k), -1)
    if readable.any():
        distances[readable], found = NearestNeighbors(n_neighbors=k).fit(known[places]).kneighbors(z[readable])
        positions[readable] = places[found]
    named = {f"neighbor{i}": column for i, column in enumerate(positions.T)}
    return {**named, **{f"distance{i}": column for i, column in enumerate(distances.T)}}


def where_readable(rows: np.ndarray, function: Callable[[np.ndarray], np.ndarray]) -> np.ndarray:
    """Apply `function` to the rows without NaN; the others get NaN."""
    readable = ~np.isnan(rows).any(axis=1)
    if not readable.any():
        shape = function(np.zeros((1, rows.shape[1]))).shape[1:]
        return np.full((len(rows), *shape), np.nan)
    return scatter(len(rows), np.flatnonzero(readable), function(rows[readable]))


def scatter(length: int, rows: np.ndarray, values: np.ndarray) -> np.ndarray:
    """`values` at their `rows`, NaN elsewhere."""
    out = np.full((length, *values.shape[1:]), np.nan)
    out[rows] = values
    return out
