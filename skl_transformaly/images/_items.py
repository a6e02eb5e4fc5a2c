"""One image in any form, as an array."""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
from PIL import Image

from skl_transformaly.images._pixels import decode_file, decode_pil
from skl_transformaly.images._values import ImageError, check_layout, checked

__all__ = ["EXPECTED", "advice", "decode_item", "from_tensor", "is_torch", "refuse_channels_last", "without_mask"]

EXPECTED = (
    "Expected images as: an array (n, H, W) or (n, H, W, C) with C = 1, 3 or 4, uint8 0-255 or float "
    "0-1; rows (n, H*W*C) together with image_shape; a torch tensor (n, C, H, W); a sequence of paths, "
    "PIL images or arrays; the path of a folder; or a map-style torch Dataset."
)


def decode_item(item) -> np.ndarray:
    """Return one image of any kind as an array (H, W, C)."""
    if isinstance(item, (str, os.PathLike)):
        try:
            return decode_file(item)
        except ImageError as error:
            raise ImageError(f"{str(item)!r}: {error}") from error
    if isinstance(item, Image.Image):
        return decode_pil(item)
    if is_torch(item, "Tensor"):
        item = from_tensor(item)
        if item.ndim == 3:  # torch's (C, H, W)
            refuse_channels_last(item.shape, "permute(2, 0, 1)")
            item = np.moveaxis(item, 0, -1)
    elif not isinstance(item, np.ndarray) and hasattr(item, "__array__"):
        item = np.asarray(item)
    if not isinstance(item, np.ndarray):
        raise TypeError(f"an item of X has the type {type(item).__name__}, not an image. {advice(item)}{EXPECTED}")
    item = without_mask(item)
    if item.ndim == 2:
        item = item[..., np.newaxis]
    if item.ndim != 3:
        raise ImageError(f"has shape {item.shape}; expected (H, W) or (H, W, C).")
    check_layout(item.shape)
    return checked(item)


def advice(item: Any) -> str:
    """Return advice about an object that is often passed by mistake; "" for any other."""
    if isinstance(item, (bytes, bytearray, memoryview)):
        return "Pass the content of an image file as PIL.Image.open(io.BytesIO(content)), a path as str. "
    if isinstance(item, dict):
        keys = ", ".join(repr(key) for key in list(item)[:5])
        return f"It has the keys {keys}: pass the images alone, such as [item[key] for item in X]. " if item else ""
    if hasattr(item, "read"):
        return "Pass an open file as PIL.Image.open(file). "
    if is_torch(item, "utils.data.DataLoader"):
        return "Pass the Dataset behind it, loader.dataset. "
    if isinstance(item, Image.Image):
        return "Pass one image as [image]. "
    return ""


def is_torch(X, name: str) -> bool:
    """Return isinstance(X, torch.<name>), without importing torch if nobody has."""
    kind: Any = sys.modules.get("torch")
    for part in name.split("."):
        kind = getattr(kind, part, None)
    return kind is not None and isinstance(X, kind)


def from_tensor(tensor) -> np.ndarray:
    """Return the values of a torch tensor, in a dtype that numpy has."""
    dense = tensor.detach()
    try:
        if dense.is_floating_point() and dense.dtype.itemsize < 4 and str(dense.dtype) != "torch.float16":
            dense = dense.float()  # bfloat16 and float8
        return dense.cpu().resolve_conj().resolve_neg().numpy()
    except (TypeError, RuntimeError) as error:
        raise TypeError(
            f"A tensor of layout {tensor.layout} and dtype {tensor.dtype} on device {tensor.device} cannot be read "
            f"({error}). Expected a dense tensor of uint8 0-255, or float 0-1."
        ) from error


def without_mask(X):
    """Return `X`, or the data of a masked array if it hides none of its values."""
    if not isinstance(X, np.ma.MaskedArray):
        return X
    if np.ma.is_masked(X):
        raise ImageError("holds pixels hidden by a mask; give them a value (X.filled(value)), or drop the image.")
    return X.data


def refuse_channels_last(shape: tuple[int, ...], advice: str) -> None:
    if shape[0] not in (1, 3, 4) and shape[2] in (1, 3, 4):
        raise ImageError(
            f"a tensor of an image has shape {shape}, with channels last; torch's order is (C, H, W): tensor.{advice}."
        )
