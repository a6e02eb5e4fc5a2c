"""Synthetic anomalies, made from normal images."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.utils import check_random_state

from skl_transformaly.images._images import Images, as_images, is_table
from skl_transformaly.images._samples import rows_as_images

__all__ = ["KINDS", "corrupter", "synthetic_outliers"]

KINDS = ("cutpaste", "channels", "patches")
_GRID = 3  # patches per side, as in the first jigsaw puzzles (Noroozi and Favaro, ECCV 2016)
_TRIES = 20


def synthetic_outliers(
    X: Any,
    kind: str = "all",
    *,
    image_shape: tuple[int, ...] | None = None,
    return_masks: bool = False,
    random_state: Any = None,
) -> Any:
    """Make one anomaly from each normal image.

    Parameters
    ----------
    X : images
        An array (n, H, W) or (n, H, W, C); a sequence of paths, PIL images or arrays; a folder; or a map-style torch
        Dataset. Rows (n, H*W*C) together with `image_shape`.
    kind : {"cutpaste", "channels", "patches", "all"}, default="all"
        - "cutpaste": a rectangle of 2-15 % of the area and of aspect ratio 0.3-3.3 is pasted elsewhere in the image
          [1]_, a local defect;
        - "channels": red, green and blue are permuted, or, in an image without colour, values are inverted within their
          range: wrong colours;
        - "patches": a grid of 3 x 3 patches is permuted [2]_: wrong places;
        - "all": the three in turn.
    image_shape : tuple of int, default=None
        (H, W) or (H, W, C) of images that come as rows.
    return_masks : bool, default=False
        Whether to return the masks as well; only for "cutpaste".
    random_state : int, RandomState or None, default=None
        Seeds all draws.

    Returns
    -------
    outliers : ndarray or list of ndarray
        For an array, one of the same shape; for rows, rows; else a list of arrays (H, W, C). The dtype is that of
        the decoded images: uint8 stays uint8, float stays float.
    masks : ndarray of shape (n, H, W), or list of ndarray of shape (H, W), bool
        True where the rectangle was pasted. Only with ``return_masks=True``.

    Raises
    ------
    ValueError
        `kind` is unknown; `X` is rows and `image_shape` is None; masks are requested for a `kind` other than
        "cutpaste"; or an image has a single pixel.

    Notes
    -----
    A draw that does not change an image is repeated, up to 20 times; an image of one colour stays as it is.

    References
    ----------
    .. [1] C.-L. Li, K. Sohn, J. Yoon and T. Pfister, "CutPaste: Self-Supervised Learning for Anomaly Detection and
       Localization", CVPR 2021.
    .. [2] M. Noroozi and P. Favaro, "Unsupervised Learning of Visual Representations by Solving Jigsaw Puzzles",
       ECCV 2016.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly.model_selection import synthetic_outliers
    >>> X = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    >>> outliers, masks = synthetic_outliers(X, "cutpaste", return_masks=True, random_state=0)
    >>> outliers.shape, outliers.dtype, masks.shape
    ((4, 32, 32, 3), dtype('uint8'), (4, 32, 32))
    >>> bool((outliers == X)[~masks].all())
    True
    """
    if kind not in (*KINDS, "all"):
        raise ValueError(f"kind must be one of {(*KINDS, 'all')}, got {kind!r}.")
    if return_masks and kind != "cutpaste":
        raise ValueError(f"return_masks=True needs kind='cutpaste': {kind!r} changes the image as a whole.")
    images = rows_as_images(X, image_shape) if is_table(X) else as_images(X)
    corrupt = corrupter(images, kind, random_state)
    pairs = [corrupt(i) for i in range(len(images))]
    outliers: Any = [outlier for outlier, _ in pairs]
    masks: Any = [mask for _, mask in pairs]
    if images.stack is not None:
        outliers = np.array(outliers, dtype=images.stack.dtype).reshape(images.stack.shape)
        masks = np.array(masks).reshape(images.stack.shape[:3]) if return_masks else None
        if is_table(X) or isinstance(X, np.ndarray):
            outliers = outliers.reshape(X.shape if isinstance(X, np.ndarray) else (len(images), -1))
    return (outliers, masks) if return_masks else outliers


def corrupter(images: Images, kind: str, random_state: Any) -> Callable[[int], tuple[np.ndarray, np.ndarray | None]]:
    """Return a function that makes an outlier of image `i`, always the same one."""
    seeds = check_random_state(random_state).randint(np.iinfo(np.int32).max, size=len(images))
    kinds = KINDS if kind == "all" else (kind,)
    make = {"cutpaste": _cutpaste, "channels": _channels, "patches": _patches}

    def corrupt(i: int) -> tuple[np.ndarray, np.ndarray | None]:
        image = images[i]
        rng = np.random.RandomState(seeds[i])
        for _ in range(_TRIES):
            outlier, mask = make[kinds[i % len(kinds)]](image, rng)
            if not np.array_equal(outlier, image):
                break
        return outlier, mask

    return corrupt


def _cutpaste(image: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, np.ndarray]:
    height, width = image.shape[:2]
    _check_size(height, width)
    area = rng.uniform(0.02, 0.15) * height * width
    aspect = np.exp(rng.uniform(np.log(0.3), np.log(3.3)))
    h = int(np.clip(np.round(np.sqrt(area * aspect)), 1, height))
    # from the rounded height, so that the area holds in small and in elongated images as well
    w = int(np.clip(np.round(area / h), 1, width))
    h = int(np.clip(np.round(area / w), 1, height))
    columns = width - w + 1
    places = (height - h + 1) * columns
    source = rng.randint(places)
    target = (source + rng.randint(1, places)) % places  # any place but the source
    (top, left), (to_top, to_left) = divmod(source, columns), divmod(target, columns)
    outlier = image.copy()
    outlier[to_top : to_top + h, to_left : to_left + w] = image[top : top + h, left : left + w]
    mask = np.zeros((height, width), dtype=bool)
    mask[to_top : to_top + h, to_left : to_left + w] = True
    return outlier, mask


def _channels(image: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, None]:
    colours = image[..., :3]  # opacity, if any, stays
    outlier = image.copy()
    if image.shape[-1] >= 3:
        orders = np.array([(0, 2, 1), (1, 0, 2), (1, 2, 0), (2, 0, 1), (2, 1, 0)])
        for order in rng.permutation(orders):
            outlier[..., :3] = colours[..., order]
            if not np.array_equal(outlier, image):  # two channels may be equal
                return outlier, None
    # the sum of the extremes would overflow small integers
    wide = np.float64 if image.dtype.kind == "f" else np.int64
    low, high = colours.min().astype(wide), colours.max().astype(wide)
    outlier[..., :3] = low + (high - colours.astype(wide))
    return outlier, None


def _patches(image: np.ndarray, rng: np.random.RandomState) -> tuple[np.ndarray, None]:
    height, width = image.shape[:2]
    _check_size(height, width)
    rows, columns = min(_GRID, height), min(_GRID, width)
    h, w = height // rows, width // columns
    order = rng.permutation(rows * columns)
    while (order == np.arange(rows * columns)).all():
        order = rng.permutation(rows * columns)
    outlier = image.copy()  # pixels beyond a whole number of patches stay
    for target, source in enumerate(order):
        (i, j), (k, m) = divmod(target, columns), divmod(int(source), columns)
        outlier[i * h : (i + 1) * h, j * w : (j + 1) * w] = image[k * h : (k + 1) * h, m * w : (m + 1) * w]
    return outlier, None


def _check_size(height: int, width: int) -> None:
    if height * width < 2:
        raise ValueError("An image of 1 x 1 pixels has no parts to move; use kind='channels', or larger images.")
