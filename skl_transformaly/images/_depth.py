"""Images of more than 8 bits per channel, which Pillow reduces to 8 bits: decoded in full, or with a warning."""

from __future__ import annotations

import io
import re
from typing import Any

import numpy as np
from PIL import ExifTags, Image, ImageFile, ImageOps

from skl_transformaly.images._values import ImageError
from skl_transformaly.utils._warnings import warn_user

__all__ = ["decode_deep", "deep_tiles", "exif_orientation", "upright"]

# Pillow has no mode for colour of 16 bits per channel, and decodes the high byte of each value. Decoded once more by
# the raw mode of the other byte order, the same file yields the low bytes.
_DEEP = re.compile(r"(RGB|RGBA|RGBa|RGBX|CMYK);16([BLN])")
_OTHER_ORDER = {"B": "L", "L": "B", "N": "B" if np.little_endian else "L"}

# Bytes in which the header of an AVIF or JPEG 2000 file ends.
_HEADER = 2**16


def deep_tiles(image: Image.Image) -> tuple[list, list, int] | None:
    """Return tiles that decode to the high and the low bytes, and the largest value; None for images of 8 bits.

    Warns
    -----
    UserWarning
        The image has more than 8 bits per channel, and Pillow cannot be made to decode more than 8.
    """
    _warn_if_cut(image)
    tiles = [tuple(tile) for tile in getattr(image, "tile", None) or []]
    if not tiles or getattr(image, "fp", None) is None:
        return None
    codec, extents, offset, args = tiles[0]
    raw = args if isinstance(args, str) else args[0] if args else None
    if image.format == "TIFF" and raw in ("R", "G", "B", "A") and 16 in image.tag_v2.get(258, ()):  # type: ignore[attr-defined]
        raise ImageError("is a TIFF of 16-bit planes, which Pillow cannot decode: save it with interleaved channels.")
    if codec == "ppm" and image.mode == "RGB" and args[1] > 255:
        high, low = ([("raw", extents, offset, (f"RGB;16{order}", 0, 1))] for order in "BL")
        return high, low, args[1]
    if raw == "LA;16B":  # which Pillow shows as RGBA
        return tiles, [_with_raw_mode(tile, "RGBA") for tile in tiles], 65535
    found = _DEEP.fullmatch(raw) if isinstance(raw, str) else None
    if found is None:
        return None
    # premultiplied colours are divided by their opacity below, in 16 bits
    channels, order = found[1].replace("a", "A"), found[2]
    high, low = (
        [_with_raw_mode(tile, f"{channels};16{each}") for tile in tiles] for each in (order, _OTHER_ORDER[order])
    )
    return high, low, 65535


def _with_raw_mode(tile: tuple, raw: str) -> tuple:
    codec, extents, offset, args = tile
    return codec, extents, offset, raw if isinstance(args, str) else (raw, *args[1:])


def _warn_if_cut(image: Image.Image) -> None:
    bits = _cut_bits(image)
    if bits > 8:
        warn_user(
            f"Pillow reduces {image.format} images of {bits} bits per channel to 8 bits: save them as PNG or TIFF to "
            "keep their depth."
        )


def _cut_bits(image: Image.Image) -> int:
    """Return the bits per channel of a file of which Pillow silently decodes 8; 8 for any other image."""
    tiles = getattr(image, "tile", None)
    codec = tiles[0][0] if tiles else ""
    if image.format == "SGI" and codec == "SGI16":
        return 16
    if tiles and codec == "ppm_plain" and image.mode != "I":
        return int(tiles[0][3][-1]).bit_length()
    if image.format == "DDS" and getattr(image, "pixel_format", None) == "BC6H":
        return 16
    if image.format == "HEIF":  # of pillow-heif
        return int(image.info.get("bit_depth") or 8)
    if image.format == "JPEG2000" and image.mode != "I;16":
        return _jpeg_2000_bits(_head(image))
    if image.format == "AVIF":
        return _avif_bits(_head(image))
    return 8


def _head(image: Image.Image) -> bytes:
    file: Any = getattr(image, "fp", None)
    if file is None:  # decoded already
        return b""
    position = file.tell()
    file.seek(0)
    head = file.read(_HEADER)
    file.seek(position)
    return head


def _jpeg_2000_bits(head: bytes) -> int:
    """Largest depth of a component, from the segment SIZ (ISO/IEC 15444-1, A.5.1)."""
    start = head.find(b"\xff\x4f\xff\x51")
    count = int.from_bytes(head[start + 40 : start + 42], "big")
    depths = head[start + 42 : start + 42 + 3 * count : 3] if start >= 0 else b""
    return max(((depth & 0x7F) + 1 for depth in depths), default=8)


def _avif_bits(head: bytes) -> int:
    """Largest depth of a channel, from the boxes "pixi" (ISO/IEC 23008-12, 6.5.6)."""
    found = re.finditer(rb"pixi\0{4}([\1-\4])", head)
    return max((depth for box in found for depth in head[box.end() : box.end() + box[1][0]]), default=8)


def decode_deep(image: Any, high_tiles: list, low_tiles: list, largest: int) -> np.ndarray:
    """Decode an image of 16 bits per channel as uint16 (H, W, C), from the tiles of `deep_tiles`."""
    position = image.fp.tell()
    image.fp.seek(0)
    content = image.fp.read()
    image.fp.seek(position)
    halves = []
    for tiles in (high_tiles, low_tiles):
        with Image.open(io.BytesIO(content)) as half:
            half.tile = [ImageFile._Tile(*tile) if hasattr(ImageFile, "_Tile") else tile for tile in tiles]
            half.load()
            half.info.pop("transparency", None)
            halves.append(np.asarray(upright(half)).astype(np.uint16))
    high, low = halves
    if image.mode == "RGBA" and tuple(high_tiles[0])[3] == "LA;16B":
        # bytes of the low half are grey high, grey low, alpha high, alpha low
        grey, alpha = (low[..., place] << 8 | low[..., place + 1] for place in (0, 2))
        return np.stack([grey, grey, grey, alpha], axis=-1)
    array = high << 8 | low
    if largest < 65535:
        array = np.rint(array * (65535 / largest)).clip(max=65535).astype(np.uint16)
    hole = image.info.get("transparency")
    if array.shape[-1] == 3 and isinstance(hole, tuple):  # the colour that is transparent
        seen = (array != np.array(hole)).any(axis=-1, keepdims=True)
        array = np.concatenate([array, seen.astype(np.uint16) * 65535], axis=-1)
    if image.mode == "CMYK":
        return _cmyk_to_rgb(array)
    if "RGBa" in str(image.tile[0]):
        return _divided_by_opacity(array)
    return array


def _divided_by_opacity(array: np.ndarray) -> np.ndarray:
    alpha = np.maximum(array[..., 3:], 1) / 65535
    colours = np.rint(array[..., :3] / alpha).clip(max=65535).astype(np.uint16)
    return np.concatenate([colours, array[..., 3:]], axis=-1)


def _cmyk_to_rgb(array: np.ndarray) -> np.ndarray:
    inks = array / 65535
    return np.rint((1 - inks[..., :3]) * (1 - inks[..., 3:]) * 65535).astype(np.uint16)


def exif_orientation(image: Image.Image) -> int:
    """Return the orientation in the EXIF data, 1 to 8; beyond 4, the image is turned on its side."""
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except MemoryError:
        raise
    except Exception:  # of any kind, as the parser stumbles on it
        return 1


def upright(image: Image.Image) -> Image.Image:
    """Return the image turned as its EXIF data asks for."""
    try:
        return ImageOps.exif_transpose(image)
    except MemoryError:  # which says nothing about the image
        raise
    except Exception as error:  # of any kind, as the parser stumbles on it
        warn_user(
            f"The EXIF data of an image cannot be read ({type(error).__name__}: {error}): it is taken as upright."
        )
        return image
