"""ImageInputMixin: images as the `X` of an estimator."""

from __future__ import annotations

from typing import Any

import numpy as np
from PIL import Image
from sklearn.utils.validation import validate_data

from skl_transformaly.images._columns import settled
from skl_transformaly.images._images import as_images, from_array, is_table
from skl_transformaly.images._items import EXPECTED, without_mask
from skl_transformaly.images._samples import shaped
from skl_transformaly.images._sequence import Images
from skl_transformaly.utils._warnings import warn_user

__all__ = ["ImageInputMixin"]


class ImageInputMixin:
    """For estimators whose ``X`` is images: validates ``X`` and keeps scikit-learn's ``n_features_in_``."""

    image_shape_: tuple[int, ...] | None

    def _check_images(
        self, X, *, reset: bool, image_shape: tuple[int, ...] | None = None, on_error: str = "raise"
    ) -> Images:
        """Return `X` as :class:`Images`, for `fit` if `reset`, else for an estimator that is fitted.

        With ``reset=False``, an array of images must have the shape that `fit` saw, if that saw an array, since another
        shape is mostly a mistake. Large JPEGs are then decoded at a part of their size.
        """
        if on_error not in ("raise", "skip"):
            raise ValueError(f"on_error must be 'raise' or 'skip', got {on_error!r}.")
        X = settled(X)
        if not hasattr(X, "shape") and not isinstance(X, Image.Image) and hasattr(X, "__array__"):
            X = np.asarray(X)
        if isinstance(X, Images):  # from `datasets.load`, or checked by the estimator that holds this one
            images = X
            if on_error == "skip" and X.on_error != on_error:
                images = X.take(range(len(X)))
                images.on_error = on_error
            if reset:
                _forget_features(self)
        elif is_table(X):
            images = self._rows(without_mask(X), image_shape, reset=reset)
        else:
            images = as_images(X, on_error=on_error)
            if reset:
                _forget_features(self)
        if len(images) == 0:
            raise ValueError(
                f"Found array with 0 sample(s), while a minimum of 1 is required: no image in X. {EXPECTED}"
            )
        if reset:
            self._keep_shape(images)
            return images
        self._check_shape(images)
        return images.reduced(getattr(getattr(self, "extractor_", self), "image_size_", None))

    def _rows(self, X: Any, image_shape: tuple[int, ...] | None, *, reset: bool) -> Images:
        """Rows of values as images, after scikit-learn's own validation."""
        if not reset and image_shape is None and np.ndim(X) == 2:
            fitted = self.image_shape_
            if fitted is None:
                raise ValueError(
                    f"Got a 2-D array, but {type(self).__name__} was fitted on images that are not rows. For one image "
                    "pass image[np.newaxis]; for images as rows, X.reshape(n, H, W[, C])."
                )
            if np.shape(X) == fitted[:2] and np.shape(X)[1] != np.prod(fitted):
                raise ValueError(
                    f"Got one image of shape {np.shape(X)}, but {type(self).__name__} expects several: pass "
                    "image[np.newaxis]."
                )
        kinds = [getattr(kind, "numpy_dtype", None) for kind in getattr(X, "dtypes", ())]
        integers = kinds and getattr(kinds[0], "kind", "") in ("i", "u") and len(set(kinds)) == 1
        if integers and not X.isna().any(axis=None):
            X = X.astype(kinds[0])  # pandas' own, which scikit-learn makes floats of
        if np.ndim(X) == 1 and np.asarray(X).dtype.kind in "biufc":  # scikit-learn would advise one column
            raise ValueError(f"Got one row of {len(X)} numbers. Reshape your data. {EXPECTED}")
        rows = validate_data(self, X, reset=reset, dtype="numeric", ensure_min_samples=2 if reset else 1)
        return _from_rows(rows, image_shape, warn=reset)

    def _keep_shape(self, images: Images) -> None:
        if len(images) < 2:
            raise ValueError("fit needs at least 2 images, got n_samples = 1: pass more normal images.")
        self.image_shape_ = images.image_shape
        if self.image_shape_ is not None:
            self.n_features_in_ = int(np.prod(self.image_shape_))

    def _check_shape(self, images: Images) -> None:
        shape = images.image_shape
        if shape is None or self.image_shape_ is None or shape == self.image_shape_:
            return
        rows = shape[0] == shape[2] == 1 and shape[1] == self.n_features_in_
        advice = "Resize them, or pass a list of arrays if sizes are meant to differ."
        if rows:
            advice = f"If they are rows of values, reshape them: X.reshape(-1, *{self.image_shape_})."
        elif shape[:2] == self.image_shape_[:2]:
            advice = "Pass a list of the arrays, list(X), if grey and colour images are meant to mix."
        raise ValueError(
            f"X holds images of shape {shape}, but {type(self).__name__} was fitted on images of shape "
            f"{self.image_shape_} (H, W, C). {advice}"
        )

    def fit_transform(self, X, y=None, **fit_params):
        """Fit to images, and return their features.

        Parameters
        ----------
        X : images
            In any form that `fit` takes.
        y : ignored
        **fit_params
            Passed on to `fit`.

        Returns
        -------
        Z : ndarray of shape (n_samples, n_features)
        """
        # an iterator would be at its end after `fit`
        return super().fit_transform(settled(X), y, **fit_params)  # type: ignore[misc]

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()  # type: ignore[misc]
        tags.input_tags.two_d_array = True
        tags.input_tags.three_d_array = True
        return tags


def _forget_features(estimator) -> None:
    # a fit on a folder after a fit on an array must not keep the array's features
    for name in ("n_features_in_", "feature_names_in_"):
        if hasattr(estimator, name):
            delattr(estimator, name)


def _from_rows(rows: np.ndarray, image_shape: tuple[int, ...] | None, *, warn: bool) -> Images:
    if image_shape is None:
        if warn:
            warn_user(
                f"X is rows of {rows.shape[1]} values and image_shape is None: each row is taken as a grey "
                f"image of 1 x {rows.shape[1]} pixels. Pass image_shape=(H, W) or (H, W, C), or X of shape "
                "(n, H, W[, C])."
            )
        # rows without a shape may be any numbers, as those of scikit-learn's own checks
        return from_array(rows.reshape(-1, 1, rows.shape[1]), lenient=True)
    return from_array(shaped(rows, image_shape))
