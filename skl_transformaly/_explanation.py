"""Explanations of scores: by parts, by maps, and by the nearest training images."""

from __future__ import annotations

from collections.abc import Callable
from numbers import Integral
from typing import Any

import numpy as np
from sklearn.neighbors import NearestNeighbors
from sklearn.preprocessing import StandardScaler, normalize
from sklearn.utils import check_scalar
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._measuring import Measurer, enlarge
from skl_transformaly._reasons import reason_column
from skl_transformaly._space import FeatureSpace
from skl_transformaly.images._sequence import Images
from skl_transformaly.students._imitation import Comparer
from skl_transformaly.teacher._protocol import find_places

__all__ = ["ExplanationMixin", "has_maps", "nearest", "scatter", "where_readable"]


class ExplanationMixin:
    """Explanations, for :class:`TransformalyDetector`."""

    extractor_: Any
    feature_spaces_: list[str]
    students_: Any
    spaces_: dict[str, FeatureSpace]
    offset_: float

    _new_images: Callable[..., Images]
    _measurer: Callable[[], Measurer]
    _parts: Callable[..., tuple[np.ndarray, np.ndarray]]
    training_embeddings_: Any  # properties of arrays
    training_discrepancies_: Any

    def anomaly_map(self, X: Any, *, block: int | None = None) -> np.ndarray | list[np.ndarray]:
        """Compute where in each image the students deviate from the teacher more than on normal images.

        Parameters
        ----------
        X : images
            See Notes for their forms.
        block : int, default=None
            Index, in ``students_.block_indices_``, of the block to map; None is the mean over blocks.

        Returns
        -------
        maps : ndarray of shape (n_samples, H, W), float32; or list of such (H, W)
            One map per image, at the image's own size (a list if sizes differ): the log of the distance from normal
            residuals, less its mean at that place and in standard deviations there, of training images that had no
            part in the estimate. 0 is usual of new normal images, higher is less normal. NaN for unreadable images
            with ``on_error="skip"`` (a 1 x 1 map in lists).

        Raises
        ------
        ValueError
            There are no students (``feature_spaces`` without "discrepancy"), or there is none of `block`.
        TypeError
            The extractor does not know the places of a block's output in the image.

        Notes
        -----
        The squared difference itself shows what is hard to imitate in any image, such as edges and outlying tokens. So
        each token's difference is compared with those of training images at the same place: their mean, their
        covariance over channels, and the mean and standard deviation of the log of the distance. ``benchmarks/maps.py``
        measures the effect, which is largest if all images are framed alike.
        """
        check_is_fitted(self)
        self._check_maps()
        indices = self.students_.block_indices_.tolist()
        if block is not None and block not in indices:
            raise ValueError(f"block={block!r} has no student; those with one are {indices}.")
        chosen = [indices.index(block)] if block is not None else list(range(len(indices)))
        images = self._new_images(X)
        blank = np.full(images.image_shape[:2] if images.image_shape else (1, 1), np.nan, dtype=np.float32)
        maps = [blank] * len(images)
        compare = Comparer(self.extractor_, self.students_, maps=True)
        for positions, pixels in images.batches(self.extractor_.batch_size):
            coarse = compare(self.extractor_.preprocess(pixels)).maps
            for position, image, single in zip(positions, pixels, coarse):
                maps[position] = enlarge(single[chosen].mean(axis=0), images.size(position, image))
        same_size = len({single.shape for single in maps}) == 1
        return np.stack(maps) if same_size else maps

    def explain(self, X: Any, *, n_neighbors: int = 3, maps: bool = False) -> dict[str, np.ndarray]:
        """Take each image's score apart.

        Parameters
        ----------
        X : images
            See Notes for their forms.
        n_neighbors : int, default=3
            Number of nearest training images to name; 0 skips the search.
        maps : bool, default=False
            Whether to compute `anomaly_map` as well, in the same pass.

        Returns
        -------
        table : dict of str to ndarray of shape (n_samples,)
            Columns, ready for ``pandas.DataFrame(table)``. For unreadable images the numbers are NaN (neighbours -1):

            - ``score``: the sum of
            - ``pretrained``, ``classes``, ``layers``, ``variation`` and ``discrepancy``: the parts of the spaces in
              use;
            - ``block2``, ...: each student's part in ``discrepancy``, which is their sum; a part can be positive if it
              compensates for others. Only with :class:`GaussianDensity`;
            - ``times_pretrained``, ...: distance of the part below the median of the training images' held-out parts,
              relative to that of their 1 % quantile (with fewer than 100 images, about the lowest): 14 is 14 times as
              far as 99 % of normal images; negative above the median;
            - ``reason``: the space in which a flagged image is most unusual (of the discrepancy the block, too), and
              others in which it is farther than 99 % of normal images, or "normal" or "unreadable"; of dtype object;
            - ``neighbor0``, ...: positions in the training images of the nearest ones, nearest first (of a training
              image itself, this very image), and ``distance0``, ...: their Euclidean distances, between embeddings of
              unit length if "pretrained" is in use, else between standardised discrepancies; without both spaces there
              are none;
            - ``map``: only with `maps`, of dtype object: each image's map as from `anomaly_map`, None where unreadable.

        Raises
        ------
        ValueError, TypeError
            `n_neighbors` is negative or no integer; with `maps`, as for `anomaly_map`.
        """
        check_is_fitted(self)
        check_scalar(n_neighbors, "n_neighbors", Integral, min_val=0)
        images = self._new_images(X)
        drawn: list[np.ndarray | None] = [None] * len(images)
        if maps:
            self._check_maps()
            features, _ = self._measurer().run(images, drawn)
        else:
            features = self._measurer().measure(images)
        parts, terms = self._parts(images, features)
        table = {"score": parts.sum(axis=1), **dict(zip(self.feature_spaces_, parts.T))}
        blocks = self.students_.block_indices_.tolist() if terms.shape[1] else []
        table.update({f"block{index}": column for index, column in zip(blocks, terms.T)})
        times = np.column_stack([self.spaces_[name].times_usual(table[name]) for name in self.feature_spaces_])
        table.update({f"times_{name}": column for name, column in zip(self.feature_spaces_, times.T)})
        table["reason"] = reason_column(table, table["score"] - self.offset_)
        if n_neighbors:
            table.update(
                nearest(
                    features,
                    {"pretrained": self.training_embeddings_, "discrepancy": self.training_discrepancies_},
                    n_neighbors,
                )
            )
        if maps:
            table["map"] = np.empty(len(images), dtype=object)
            table["map"][:] = drawn
        return table

    def _check_maps(self) -> None:
        if "discrepancy" not in self.feature_spaces_:
            raise ValueError("Anomaly maps need students: fit with 'discrepancy' among feature_spaces.")


def has_maps(detector: Any) -> bool:
    """Whether a fitted detector has students, and knows where in the image the outputs of their blocks belong."""
    return "discrepancy" in detector.feature_spaces_ and find_places(detector.extractor_) is not None


def nearest(
    features: dict[str, np.ndarray], training: dict[str, np.ndarray], n_neighbors: int
) -> dict[str, np.ndarray]:
    """Return positions and distances of the nearest training images, as columns "neighbor0", ..., "distance0", ...

    They are -1 and NaN for rows of NaN. Distances are those between embeddings of unit length or, without embeddings,
    between standardised discrepancies; there are no columns without either.
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
    """Return an array with `values` in `rows` and NaN elsewhere."""
    out = np.full((length, *values.shape[1:]), np.nan, dtype=np.result_type(values, np.float32))
    out[rows] = values
    return out
