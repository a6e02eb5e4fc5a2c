"""Some hundred hostile inputs: what comes of each is the score of its pixels or an error that says what is wrong.

    python benchmarks/faults/bad_inputs.py [--out BAD_INPUTS.md] [--only WORD]

Each input is scored by a fitted detector in another process (one that is started again where an input kills it), within
a time limit. A score must be that of the same pixels given as a plain array, made without the package; an error must be
of the expected type and text, from `score_samples` and from `fit` alike. The inputs are the table :data:`CASES`; the
suite goes through it as well.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import functools
import gzip
import io
import json
import multiprocessing
import os
import re
import shutil
import socket
import struct
import sys
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from skl_transformaly import BlockStudents, ImageError, TimmExtractor, TransformalyDetector

_RNG = np.random.default_rng(0)
PICTURE = _RNG.integers(0, 256, (20, 24, 3), dtype=np.uint8)
GREY = PICTURE[..., 0].copy()
DEEP = _RNG.integers(0, 65536, (20, 24), dtype=np.uint16)
ALPHA = np.where(_RNG.random((20, 24, 1)) < 0.5, 0, 255).astype(np.uint8)


@dataclass(frozen=True)
class Same:
    """The input is to score as these arrays do, one by one (after a warning that matches `warns`)."""

    arrays: list[np.ndarray]
    warns: str | None = None
    # of the score, relative; float64 arithmetic in another order, unless the input itself was rounded
    tolerance: float = 1e-9


@dataclass(frozen=True)
class Refused:
    """The input is to raise an error of this type whose text matches."""

    kind: type[Exception] | tuple[type[Exception], ...]
    message: str
    fit_too: bool = True  # whether `fit` refuses it as well


@dataclass(frozen=True)
class AsDecoded(Same):
    """Damaged in a way that Pillow does not see, and its format has no checksum for: scores as Pillow shows it."""


@dataclass(frozen=True)
class Case:
    """One row of the table: ``make(folder)`` gives the input, `folder` being empty and its own."""

    name: str
    make: Callable[[Path], Any]
    expected: Same | Refused
    slow: bool = False


def same(*arrays: np.ndarray, **details: Any) -> Same:
    return Same([np.ascontiguousarray(array) for array in arrays], **details)


def refused(message: str, kind: type[Exception] | tuple[type[Exception], ...] = ImageError, **details: Any) -> Refused:
    return Refused(kind, message, **details)


_MISSING = refused("is missing.*NoneType")
_OUT_OF_RANGE = refused("pixels are expected in 0-")


def file(content: bytes | Callable[[], bytes], name: str = "input.png") -> Callable[[Path], Any]:
    """A maker of a list of one path, of a file with this content."""

    def make(folder: Path) -> list[Path]:
        (folder / name).write_bytes(content() if callable(content) else content)
        return [folder / name]

    return make


def saved(picture: np.ndarray | Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    image = picture if isinstance(picture, Image.Image) else Image.fromarray(picture)
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def pillow_says(content: bytes, mode: str = "RGB") -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert(mode))


# Files


def chunk(kind: bytes, data: bytes, *, crc: int | None = None) -> bytes:
    return (
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data) if crc is None else crc)
    )


def png(
    size: tuple[int, int] = (24, 20),
    depth: int = 8,
    colour: int = 2,
    rows: bytes | None = None,
    *,
    before: bytes = b"",
    after: bytes = b"",
    wrong_crc: str = "",
    end: bool = True,
) -> bytes:
    """A PNG file made by hand: `colour` 0 grey, 2 RGB, 3 palette, 6 RGBA; `before` and `after` the image data."""
    if rows is None:
        rows = b"".join(b"\0" + row.tobytes() for row in PICTURE)
    header = struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0)
    parts = [("IHDR", header), ("IDAT", zlib.compress(rows))]
    chunks = [chunk(kind.encode(), data, crc=0 if kind == wrong_crc else None) for kind, data in parts]
    tail = chunk(b"IEND", b"", crc=0 if wrong_crc == "IEND" else None) if end else b""
    return b"\x89PNG\r\n\x1a\n" + chunks[0] + before + chunks[1] + after + tail


def with_flipped_data(content: bytes) -> bytes:
    """Change one byte of the compressed pixels of a PNG whose data are stored, not compressed, so that it inflates."""
    rows = b"".join(b"\0" + row.tobytes() for row in PICTURE)
    stored = bytearray(zlib.compress(rows, 0))
    stored[40] ^= 0xFF
    data = struct.pack(">I", len(stored)) + b"IDAT" + bytes(stored)
    crc = struct.pack(">I", zlib.crc32(b"IDAT" + zlib.compress(rows, 0)))
    start = content.index(b"IDAT") - 4
    length = struct.unpack(">I", content[start : start + 4])[0]
    return content[:start] + data + crc + content[start + 12 + length :]


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place] ^= 0x55
    return bytes(changed)


def bits(values: np.ndarray, depth: int) -> bytes:
    """Rows of a PNG of less than 8 bits a pixel."""
    rows = []
    for row in values:
        binary = "".join(f"{value:0{depth}b}" for value in row)
        binary += "0" * (-len(binary) % 8)
        rows.append(b"\0" + int(binary, 2).to_bytes(len(binary) // 8, "big"))
    return b"".join(rows)


def patched(content: bytes, place: int, layout: str, *values: int) -> bytes:
    changed = bytearray(content)
    struct.pack_into(layout, changed, place, *values)
    return bytes(changed)


def tiff_with(content: bytes, changes: dict[int, int]) -> bytes:
    """A little-endian TIFF with other values of some tags."""
    start = struct.unpack_from("<I", content, 4)[0]
    changed = bytearray(content)
    for entry in range(struct.unpack_from("<H", content, start)[0]):
        place = start + 2 + 12 * entry
        tag = struct.unpack_from("<H", content, place)[0]
        if tag in changes:
            struct.pack_into("<HHII", changed, place, tag, 4, 1, changes[tag])
    return bytes(changed)


def claims(kind: str) -> bytes:
    """A small file that claims to hold 65,535 x 65,535 pixels (WebP: its most, 16,383 x 16,383)."""
    big = 65535
    if kind == "PNG":
        return png((big, big))
    if kind == "PSD":
        return b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, big, big, 8, 3) + bytes(14)
    if kind == "FITS":
        cards = ["SIMPLE  =                    T", "BITPIX  =                    8", "NAXIS   =                    2"]
        cards += [f"NAXIS1  = {big:20}", f"NAXIS2  = {big:20}", "END"]
        return "".join(card.ljust(80) for card in cards).ljust(2880).encode() + bytes(2880)
    whole = saved(Image.fromarray(GREY > 127) if kind == "XBM" else PICTURE, kind)
    if kind == "JPEG":
        return patched(whole, whole.index(b"\xff\xc0") + 5, ">HH", big, big)
    if kind == "TIFF":
        return tiff_with(whole, {256: big, 257: big})
    if kind == "JPEG2000":
        return patched(whole, whole.index(b"ihdr") + 4, ">II", big, big)
    if kind == "AVIF":
        return patched(whole, whole.index(b"ispe") + 8, ">II", big, big)
    if kind in ("PPM", "XBM"):
        old = {"PPM": b"24 20", "XBM": b"width 24"}[kind]
        return whole.replace(old, old.replace(b"24", b"65535").replace(b"20", b"65535"))
    place, layout, values = {
        "BMP": (18, "<ii", (big, big)),
        "GIF": (6, "<HH", (big, big)),
        "WEBP": (26, "<HH", (0x3FFF, 0x3FFF)),
        "TGA": (12, "<HH", (big, big)),
        "QOI": (4, ">II", (big, big)),
        "PCX": (8, "<HH", (big - 1, big - 1)),
        "SGI": (6, ">HH", (big, big)),
        "DDS": (12, "<II", (big, big)),
    }[kind]
    return patched(whole, place, layout, *values)


def with_orientation(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(PICTURE, "PNG", exif=exif)


def with_exif(raw: bytes) -> bytes:
    return saved(PICTURE, "PNG", exif=b"Exif\0\0" + raw)


def sixteen_bit_png(transparent: int | None = None) -> bytes:
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in DEEP)
    before = b"" if transparent is None else chunk(b"tRNS", struct.pack(">H", transparent))
    return png(depth=16, colour=0, rows=rows, before=before)


def deep_with_hole() -> np.ndarray:
    """What a 16-bit grey file whose first pixel's value is transparent shows on white."""
    return np.where(DEEP[0, 0] == DEEP, 1.0, DEEP / 65535)[..., np.newaxis]


def upright(orientation: int) -> np.ndarray:
    """EXIF 2.32, tag 0x0112, with numpy."""
    turn = {
        2: lambda a: a[:, ::-1],
        3: lambda a: a[::-1, ::-1],
        4: lambda a: a[::-1],
        5: lambda a: a.transpose(1, 0, 2),
        6: lambda a: np.rot90(a, -1),
        7: lambda a: a[::-1, ::-1].transpose(1, 0, 2),
        8: lambda a: np.rot90(a, 1),
    }
    return turn.get(orientation, lambda a: a)(PICTURE)


def tiff_loop() -> bytes:
    """A directory whose next directory is itself, and no pixels."""
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<HHHIII", 1, 254, 4, 1, 0, 8)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("picture.png", png())
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, PICTURE)
    return buffer.getvalue()


def animation(kind: str) -> bytes:
    frames = [Image.new("L", (24, 20), value) for value in (10, 200)]
    return saved(
        frames[0], kind, save_all=True, append_images=frames[1:], **({"lossless": True} if kind == "WEBP" else {})
    )


def file_cases() -> Iterator[Case]:
    named = refused(r"input\.")
    for kind, options in {
        "AVIF": {}, "BMP": {}, "DDS": {}, "GIF": {}, "ICO": {}, "JPEG": {}, "JPEG2000": {}, "PNG": {},
        "PPM": {}, "QOI": {}, "SGI": {}, "TGA": {}, "TIFF": {}, "WEBP": {},
        "progressive JPEG": {"progressive": True}, "deflated TIFF": {"compression": "tiff_adobe_deflate"},
        "LZW TIFF": {"compression": "tiff_lzw"}, "lossless WEBP": {"lossless": True},
    }.items():  # fmt: skip
        whole = functools.partial(saved, PICTURE, kind.split()[-1], **options)
        yield Case(f"{kind} file", file(whole), same(pillow_says(whole())))
        for share in (0.75, 0.3):
            cut = functools.partial(lambda whole, share: whole()[: int(share * len(whole()))], whole, share)
            yield Case(f"{kind} file, first {share:.0%}", file(cut), named)
    whole = saved(PICTURE)
    yield Case("PNG file, its last byte missing", file(whole[:-1]), same(PICTURE))
    yield Case("PNG file, all after its header missing", file(whole[:33]), named)
    yield Case("PNG file, its end chunk missing", file(png(end=False)), named)
    yield Case("PNG file, wrong CRC of its end", file(png(wrong_crc="IEND")), same(PICTURE))
    for name in ("IHDR", "IDAT"):
        yield Case(f"PNG file, wrong CRC of {name}", file(png(wrong_crc=name)), named)
    yield Case("PNG file, wrong CRC of a text", file(png(before=chunk(b"tEXt", b"a\0b", crc=1))), named)
    yield Case("PNG file, wrong CRC after the pixels", file(png(after=chunk(b"tIME", bytes(7), crc=1))), named)
    yield Case("PNG file, a byte of its pixels changed", file(with_flipped_data(png())), named)
    yield Case("PNG file, no image data", file(b"\x89PNG\r\n\x1a\n" + png()[8:33] + chunk(b"IEND", b"")), named)
    for name, content in {
        "PNG file, too few rows in a stream that is whole": png(
            rows=b"".join(b"\0" + row.tobytes() for row in PICTURE[:9])
        ),
        "PNG file, its palette missing": png(colour=3, rows=bits(GREY, 8)),
        "PCX file, its palette missing": saved(Image.fromarray(PICTURE).quantize(16), "PCX")[:-1],
        "JPEG file, a byte of its pixels changed": flipped(saved(PICTURE, "JPEG"), -100),
        "WEBP file, a byte of its pixels changed": flipped(saved(PICTURE, "WEBP"), -100),
        "BMP file, a byte of its pixels changed": flipped(saved(PICTURE, "BMP"), -100),
    }.items():
        yield Case(name, file(content), AsDecoded([pillow_says(content)]))
    yield Case("PNG file, image data that are no zlib stream", file(png().replace(b"IDAT\x78", b"IDAT\x00")), named)
    yield Case("PNG file, two headers", file(png(before=png()[8:33])), same(PICTURE))
    yield Case("PNG file, an unknown critical chunk", file(png(before=chunk(b"ABCD", b"x"))), same(PICTURE))
    yield Case("PNG file, an unknown ancillary chunk", file(png(before=chunk(b"abCd", b"x"))), same(PICTURE))
    bomb = zlib.compress(bytes(2**26))
    yield Case("PNG file, 64 MiB of text in 64 KiB", file(png(before=chunk(b"zTXt", b"a\0\0" + bomb))), named)
    yield Case("PNG file, a broken colour profile", file(png(before=chunk(b"iCCP", b"a\0\0broken"))), same(PICTURE))
    yield Case("PNG file, bytes after its end", file(png() + b"\0trailing" * 50), same(PICTURE))
    yield Case(
        "JPEG file, bytes after its end",
        file(saved(PICTURE, "JPEG") + b"\0trailing"),
        same(pillow_says(saved(PICTURE, "JPEG"))),
    )
    yield Case("PNG file, depth 3", file(png(depth=3)), named)
    yield Case("PNG file, 0 x 0", file(png((0, 0))), named)
    yield Case("PNG file, 0 wide", file(png((0, 20))), named)
    yield Case("PNG file, 0 high", file(png((24, 0))), named)
    yield Case("PNG file, 2,147,483,647 x 2", file(png((2**31 - 1, 2))), named)
    yield Case("PNG file, 4,294,967,295 wide", file(png((2**32 - 1, 1))), named)
    yield Case("BMP file, 0 x 0", file(patched(saved(PICTURE, "BMP"), 18, "<ii", 0, 0)), named)
    grey_gif = saved(GREY, "GIF")
    yield Case("GIF file, 0 x 0, its frame not", file(patched(grey_gif, 6, "<HH", 0, 0)), same(GREY))
    yield Case(
        "JPEG file, 0 high",
        file(patched(saved(PICTURE, "JPEG"), saved(PICTURE, "JPEG").index(b"\xff\xc0") + 5, ">H", 0)),
        named,
    )
    yield Case("TIFF file, 0 wide", file(tiff_with(saved(PICTURE, "TIFF"), {256: 0})), named)
    for kind in (
        "PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "TGA", "QOI", "PCX", "SGI", "DDS", "PPM", "XBM", "PSD", "FITS",
        "JPEG2000", "AVIF",
    ):  # fmt: skip
        yield Case(f"{kind} file that claims 65,535 x 65,535 pixels", file(functools.partial(claims, kind)), named)
    almost = lambda: png((13000, 13000), rows=bytes(100))  # noqa: E731
    yield Case("PNG file that claims 13,000 x 13,000 pixels", file(almost), named)
    yield Case("PNG file, 1 x 1", file(saved(PICTURE[:1, :1])), same(PICTURE[:1, :1]))
    yield Case("PNG file, 1 x 20", file(saved(PICTURE[:, :1])), same(PICTURE[:, :1]))
    wide = np.resize(PICTURE, (3, 30000, 3))
    yield Case("PNG file, 30,000 wide", file(lambda: saved(wide)), same(wide))
    yield Case("PNG file, 30,000 high", file(lambda: saved(wide.transpose(1, 0, 2))), same(wide.transpose(1, 0, 2)))
    yield Case("JPEG file, 30,000 wide", file(lambda: saved(wide, "JPEG")), same(pillow_says(saved(wide, "JPEG"))))
    large = np.zeros((8000, 11000), np.uint8)
    yield Case("PNG file of 88 million pixels", file(lambda: saved(large)), same(large), slow=True)
    for depth in (1, 2, 4):
        values = GREY >> (8 - depth)
        shown = (values.astype(int) * 255 // (2**depth - 1)).astype(np.uint8)
        yield Case(
            f"PNG file, {depth}-bit grey", file(png(depth=depth, colour=0, rows=bits(values, depth))), same(shown)
        )
        colours = PICTURE.reshape(-1, 3)[: 2**depth]
        content = png(depth=depth, colour=3, rows=bits(values, depth), before=chunk(b"PLTE", colours.tobytes()))
        yield Case(f"PNG file, {depth}-bit palette", file(content), same(colours[values]))
    content = png(depth=8, colour=3, rows=bits(GREY, 8), before=chunk(b"PLTE", bytes(range(30))))
    yield Case("PNG file, palette shorter than its pixels ask for", file(content), same(pillow_says(content)))
    yield Case("PNG file, 16-bit grey", file(sixteen_bit_png()), same(DEEP))
    hole = sixteen_bit_png(transparent=int(DEEP[0, 0]))
    yield Case("PNG file, 16-bit grey, one value transparent", file(hole), same(deep_with_hole()))
    colour = tuple(int(value) for value in PICTURE[0, 0])
    shown = np.where((PICTURE[0, 0] == PICTURE).all(-1, keepdims=True), 255, PICTURE).astype(np.uint8)
    yield Case("PNG file, one colour transparent", file(saved(PICTURE, transparency=colour)), same(shown))
    shown = np.where(GREY[0, 0] == GREY, 255, GREY).astype(np.uint8)
    yield Case("PNG file, one grey transparent", file(saved(GREY, transparency=int(GREY[0, 0]))), same(shown))
    rgba = np.concatenate([PICTURE, ALPHA], axis=-1)
    shown = np.where(ALPHA == 255, PICTURE, 255).astype(np.uint8)
    yield Case("PNG file with transparency", file(saved(rgba)), same(shown))
    yield Case("WEBP file with transparency", file(saved(rgba, "WEBP", lossless=True)), same(shown))
    eight = (np.arange(480).reshape(20, 24) % 250).astype(np.uint8)
    yield Case(
        "TIFF file, 8-bit values in 16 bits",
        file(saved(eight.astype(np.uint16), "TIFF")),
        same(eight.astype(np.uint16), warns="cast 8-bit"),
    )
    yield Case("TIFF file, 16-bit", file(saved(DEEP, "TIFF")), same(DEEP))
    yield Case(
        "TIFF file, 16-bit big-endian",
        file(saved(Image.frombytes("I;16B", (24, 20), DEEP.astype(">u2").tobytes()), "TIFF")),
        same(DEEP),
    )
    yield Case("TIFF file, 32-bit integers to 65,535", file(saved(DEEP.astype(np.int32), "TIFF")), same(DEEP))
    yield Case(
        "TIFF file, 32-bit integers to 70,000",
        file(saved(DEEP.astype(np.int32) + 70000, "TIFF")),
        refused("input.*0-65535"),
    )
    unit = (DEEP / 65535).astype(np.float32)
    yield Case("TIFF file, float 0-1", file(saved(unit, "TIFF")), same(unit))
    yield Case("TIFF file, float 0-255", file(saved(unit * 255, "TIFF")), refused("input.*divide by 255"))
    yield Case(
        "TIFF file, float with NaN",
        file(saved(np.where(unit > 0.5, np.nan, unit).astype(np.float32), "TIFF")),
        refused("input.*NaN"),
    )
    yield Case(
        "TIFF file, CMYK",
        file(saved(Image.fromarray(PICTURE).convert("CMYK"), "TIFF")),
        same(np.asarray(Image.fromarray(PICTURE).convert("CMYK").convert("RGB"))),
    )
    yield Case(
        "TIFF file, three pages",
        file(saved(PICTURE, "TIFF", save_all=True, append_images=[Image.new("RGB", (9, 9))] * 2)),
        same(PICTURE),
    )
    yield Case("TIFF file, a directory that leads to itself", file(tiff_loop()), named)
    yield Case("TIFF file, directory after its end", file(b"II*\0" + struct.pack("<I", 10**9)), named)
    yield Case("TIFF file, strips after its end", file(tiff_with(saved(PICTURE, "TIFF"), {273: 2**31})), named)
    yield Case("TIFF file, 63 bits a sample", file(tiff_with(saved(GREY, "TIFF"), {258: 63})), named)
    yield Case("BMP file, bottom row last", file(patched(saved(PICTURE[::-1], "BMP"), 22, "<i", -20)), same(PICTURE))
    yield Case("BMP file, 7 bits a pixel", file(patched(saved(PICTURE, "BMP"), 28, "<H", 7)), named)
    yield Case("JPEG file, grey", file(saved(GREY, "JPEG")), same(pillow_says(saved(GREY, "JPEG"), "L")))
    cmyk = saved(Image.fromarray(PICTURE).convert("CMYK"), "JPEG")
    yield Case("JPEG file, CMYK", file(cmyk), same(pillow_says(cmyk)))
    for kind in ("GIF", "WEBP", "TIFF", "PNG"):
        yield Case(
            f"{kind} file, an animation",
            file(functools.partial(animation, kind)),
            same(np.full((20, 24), 10, np.uint8)),
        )
    for orientation in range(10):
        yield Case(f"EXIF orientation {orientation}", file(with_orientation(orientation)), same(upright(orientation)))
    yield Case(
        "EXIF orientation that is a text",
        file(with_exif(b"II*\0" + struct.pack("<IHHHI4sI", 8, 1, 0x0112, 2, 4, b"top", 0))),
        same(PICTURE),
    )
    yield Case("EXIF of random bytes", file(with_exif(_RNG.bytes(60))), same(PICTURE, warns="EXIF"))
    yield Case("EXIF cut off", file(with_exif(b"II*\0\x08\0\0\0\x05\0\x12\x01")), same(PICTURE))
    for name, content in {
        "nothing": b"",
        "one byte": b"\x89",
        "zeros": bytes(1000),
        "ones": b"\xff" * 1000,
        "random bytes": _RNG.bytes(1000),
        "a text": b"this is no image",
        "HTML": b"<html><script>alert(1)</script></html>",
        "SVG": b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        "PDF": b"%PDF-1.4\n%%EOF\n",
        "a zip of a PNG": zipped(),
        "gzip of a PNG": gzip.compress(png()),
        "npy": npy(),
        "a PNG signature": png()[:8],
        "a PNG header": png()[:33],
        "a JPEG's start": b"\xff\xd8\xff",
        "a JPEG's start and end": b"\xff\xd8\xff\xd9",
        "a GIF header": saved(PICTURE, "GIF")[:13],
        "a GIF without frames": b"GIF89a" + struct.pack("<HHBBB", 24, 20, 0, 0, 0) + b";",
        "an ICO of no images": bytes([0, 0, 1, 0, 0, 0]),
        "a HEIC header": struct.pack(">I", 24) + b"ftypheic" + bytes(12),
        "a RIFF of no images": b"RIFF\x04\0\0\0WEBP",
        "an EPS": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n",
        "an HDF5 header": b"\x89HDF\r\n\x1a\n" + bytes(50),
        "a WMF": b"\xd7\xcd\xc6\x9a" + bytes(40),
        "an MPEG": b"\0\0\1\xb3" + bytes(20),
    }.items():
        yield Case(f"file of {name}", file(content), named)
    yield Case("JPEG named .png", file(saved(PICTURE, "JPEG")), same(pillow_says(saved(PICTURE, "JPEG"))))
    yield Case("PNG without a suffix", file(png(), "input"), same(PICTURE))
    yield Case("PNG named .txt", file(png(), "input.txt"), same(PICTURE))


def path_cases() -> Iterator[Case]:
    def link(target: str) -> Callable[[Path], list[Path]]:
        def make(folder: Path) -> list[Path]:
            (folder / "whole.png").write_bytes(png())
            (folder / "input.png").symlink_to(folder / target)
            return [folder / "input.png"]

        return make

    def pipe(folder: Path) -> list[Path]:
        os.mkfifo(folder / "input.png")
        return [folder / "input.png"]

    def unix_socket(folder: Path) -> list[Path]:
        place = os.getcwd()
        os.chdir(folder)  # the names of sockets must be short
        with socket.socket(socket.AF_UNIX) as server:
            server.bind("input.png")
        os.chdir(place)
        return [folder / "input.png"]

    def folder_of(files: dict[str, bytes]) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            for name, content in files.items():
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_bytes(content)
            return folder

        return make

    yield Case("path of a missing file", lambda folder: [folder / "input.png"], refused("input.png.*does not exist"))
    yield Case("path of a folder in a list", lambda folder: [folder], refused("regular file"))
    yield Case("path of a broken link", link("missing.png"), refused("input.png.*does not exist"))
    yield Case("path of a link to itself", link("input.png"), refused("input.png"))
    yield Case("path of a link", link("whole.png"), same(PICTURE))
    yield Case("path of a pipe that nobody writes to", pipe, refused("input.png.*regular file"))
    yield Case("path of a socket", unix_socket, refused("input.png.*regular file"))
    yield Case("path /dev/zero", lambda folder: ["/dev/zero"], refused("regular file"))
    yield Case("path /dev/null", lambda folder: ["/dev/null"], refused("regular file"))
    yield Case("path with a NUL", lambda folder: ["in\0put.png"], refused("NUL|null"))
    yield Case("path of 5,000 letters", lambda folder: ["a" * 5000], refused("too long"))
    yield Case("path of no letters", lambda folder: [""], refused("does not exist"))
    yield Case("path that is a URL", lambda folder: ["https://example.org/a.png"], refused("does not exist"))
    yield Case(
        "path as bytes", lambda folder: [os.fsencode(file(png())(folder)[0])], refused("image 0.*bytes", TypeError)
    )
    for name in (
        "a b.png",
        "new\nline.png",
        "ümläut 🙂.png",
        "<script>.png",
        os.fsdecode(b"\xff\xfe.png"),
        "-.png",
        "%s.png",
    ):
        yield Case(f"file named {name!r}", file(png(), name), same(PICTURE))
    yield Case("folder that is empty", lambda folder: folder, refused("no image below", ValueError))
    yield Case("folder without images", folder_of({"a.txt": b"no"}), refused("no image below", ValueError))
    yield Case(
        "folder of hidden files", folder_of({".a.png": png(), ".b/c.png": png()}), refused("no image below", ValueError)
    )
    yield Case(
        "folder that is missing", lambda folder: str(folder / "none"), refused("folder.*does not exist", ValueError)
    )
    yield Case("folder that is a file", lambda folder: file(png())(folder)[0], refused("pass a list", ValueError))
    yield Case("folder with a broken file", folder_of({"a.png": png(), "input.png": b""}), refused("input.png"))
    yield Case(
        "folder of folders", folder_of({"b/a.PNG": saved(GREY), "a.png": png(), "c.txt": b""}), same(PICTURE, GREY)
    )


# PIL images


def pil_cases() -> Iterator[Case]:
    picture = Image.fromarray(PICTURE)
    rgb = lambda image: np.asarray(image.convert("RGB"))  # noqa: E731
    on_white = np.where(ALPHA == 255, PICTURE, 255).astype(np.uint8)
    rgba = Image.fromarray(np.concatenate([PICTURE, ALPHA], axis=-1))
    grey_on_white = np.where(ALPHA[..., 0] == 255, GREY, 255).astype(np.uint8)
    la = Image.merge("LA", [Image.fromarray(GREY), Image.fromarray(ALPHA[..., 0])])
    palette = picture.quantize(16)
    holes = palette.copy()
    holes.info["transparency"] = 0
    holes_on_white = np.where((np.asarray(palette) == 0)[..., np.newaxis], 255, rgb(palette)).astype(np.uint8)
    pa = palette.convert("PA")
    pa.putalpha(Image.fromarray(ALPHA[..., 0]))
    rgba_palette = palette.copy()
    table = np.concatenate(
        [np.array(palette.getpalette()[:48]).reshape(16, 3), np.arange(16)[:, None] % 2 * 255], axis=1
    )
    rgba_palette.putpalette(table.astype(np.uint8).tobytes(), "RGBA")
    rgba_palette_on_white = np.where((np.asarray(palette) % 2 == 1)[..., np.newaxis], rgb(palette), 255).astype(
        np.uint8
    )
    lab = Image.frombytes("LAB", (24, 20), PICTURE.tobytes())
    modes = {
        "1": (picture.convert("1"), same(np.asarray(picture.convert("1")).astype(np.uint8) * 255)),
        "L": (Image.fromarray(GREY), same(GREY)),
        "P": (palette, same(rgb(palette))),
        "P, one place transparent": (holes, same(holes_on_white)),
        "P, transparency in its palette": (rgba_palette, same(rgba_palette_on_white)),
        "PA": (pa, same(np.where(ALPHA == 255, rgb(palette), 255).astype(np.uint8))),
        "LA": (la, same(grey_on_white)),
        "La": (la.convert("La"), same(grey_on_white)),
        "RGB": (picture, same(PICTURE)),
        "RGBA": (rgba, same(on_white)),
        "RGBa": (rgba.convert("RGBa"), same(on_white)),
        "RGBX": (picture.convert("RGBX"), same(PICTURE)),
        "CMYK": (picture.convert("CMYK"), same(rgb(picture.convert("CMYK")))),
        "YCbCr": (picture.convert("YCbCr"), same(rgb(picture.convert("YCbCr")))),
        "HSV": (picture.convert("HSV"), same(rgb(picture.convert("HSV")))),
        "LAB": (lab, same(rgb(lab))),
        "I": (Image.fromarray(DEEP.astype(np.int32)), same(DEEP)),
        "I, beyond 65,535": (Image.fromarray(DEEP.astype(np.int32) + 9999), refused("image 0.*0-65535")),
        "I, negative": (Image.fromarray(DEEP.astype(np.int32) - 9999), refused("image 0.*0-65535")),
        "I;16": (Image.fromarray(DEEP), same(DEEP)),
        "I;16L": (Image.frombytes("I;16L", (24, 20), DEEP.astype("<u2").tobytes()), same(DEEP)),
        "I;16B": (Image.frombytes("I;16B", (24, 20), DEEP.astype(">u2").tobytes()), same(DEEP)),
        "I;16N": (Image.frombytes("I;16N", (24, 20), DEEP.astype("=u2").tobytes()), same(DEEP)),
        "F": (Image.fromarray((DEEP / 65535).astype(np.float32)), same((DEEP / 65535).astype(np.float32))),
        "F, NaN": (Image.new("F", (24, 20), float("nan")), refused("image 0.*NaN")),
        "F, 0-255": (Image.fromarray(GREY.astype(np.float32)), refused("image 0.*divide by 255")),
    }
    for mode, (image, expected) in modes.items():
        yield Case(f"PIL image of mode {mode}", lambda folder, image=image: [image.copy()], expected)
    for mode in ("L", "RGB", "RGBA", "P", "1", "I", "F", "I;16"):
        yield Case(
            f"PIL image of mode {mode}, 0 x 0",
            lambda folder, mode=mode: [Image.new(mode, (0, 0))],
            refused("image 0.*no pixels"),
        )
    yield Case("PIL image, 0 wide", lambda folder: [Image.new("RGB", (0, 20))], refused("no pixels"))
    yield Case("PIL image, 1 x 1", lambda folder: [Image.fromarray(PICTURE[:1, :1])], same(PICTURE[:1, :1]))
    yield Case(
        "PIL image, 30,000 wide",
        lambda folder: [Image.new("L", (30000, 2), 77)],
        same(np.full((2, 30000), 77, np.uint8)),
    )

    def closed(folder: Path) -> list[Image.Image]:
        image = Image.open(file(png())(folder)[0])
        image.close()
        return [image]

    def lazy(content: bytes, *, after_failure: bool = False) -> Callable[[Path], list[Image.Image]]:
        def make(folder: Path) -> list[Image.Image]:
            image = Image.open(io.BytesIO(content))
            if after_failure:
                with contextlib.suppress(OSError):
                    image.load()
            return [image]

        return make

    yield Case("PIL image, closed", closed, refused("image 0"))
    yield Case("PIL image, opened and not loaded", lazy(png()), same(PICTURE))
    for kind in ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP"):
        cut = saved(np.resize(PICTURE, (200, 240, 3)), kind)
        cut = cut[: len(cut) // 2]
        if kind != "WEBP":  # cannot even be opened
            yield Case(f"PIL image of half a {kind} file", lazy(cut), refused("image 0"))
            yield Case(
                f"PIL image of half a {kind} file, tried before", lazy(cut, after_failure=True), refused("image 0")
            )
    yield Case("a PIL image alone", lambda folder: picture, refused("Cannot read images from Image", TypeError))


# Arrays and tensors


DTYPES = (
    "bool",
    "u1",
    "i1",
    "<u2",
    ">u2",
    "<i2",
    ">i2",
    "<i4",
    ">i4",
    "<u4",
    "<i8",
    ">i8",
    "<u8",
    ">u8",
    "f2",
    ">f2",
    "<f4",
    ">f4",
    "<f8",
    ">f8",
    "g",
)


def values_of(dtype: np.dtype) -> tuple[np.ndarray, np.ndarray]:
    """A picture in `dtype`, and the same picture plain: uint8, or what the dtype cannot round to it."""
    if dtype.kind == "b":
        return PICTURE > 127, (PICTURE > 127).astype(np.uint8) * 255
    if dtype.kind == "f":
        unit = (PICTURE / 255).astype(dtype)
        return unit, PICTURE
    if dtype.kind == "u" and dtype.itemsize == 2:
        return (PICTURE.astype(np.uint16) * 257).astype(dtype), PICTURE
    if dtype == np.int8:
        return (PICTURE >> 1).astype(dtype), PICTURE >> 1
    return PICTURE.astype(dtype), PICTURE


def memory_map(folder: Path, mode: str) -> np.ndarray:
    np.save(folder / "images.npy", PICTURE[np.newaxis])
    return np.load(folder / "images.npy", mmap_mode=mode)


class Subclass(np.ndarray):
    """An array of another type, with nothing of its own."""


class ByProtocol:
    """Not an array, but can be made one."""

    def __init__(self, array: np.ndarray):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        return self.array


def strange_layouts() -> dict[str, tuple[Callable[[Path], Any], Same]]:
    images = np.stack([PICTURE, PICTURE[::-1]])
    raw = b"\0" * 3 + (images / 255).tobytes()
    structure = np.zeros((2, 20, 24, 3), dtype=[("pad", "u1"), ("pixel", "u1")])
    structure["pixel"] = images
    both = same(*images)
    return {
        "Fortran order": (lambda folder: np.asfortranarray(images), both),
        "transposed twice": (lambda folder: images.transpose(3, 2, 1, 0).copy().transpose(3, 2, 1, 0), both),
        "backwards in every axis": (lambda folder: images[::-1, ::-1, ::-1, ::-1].copy()[::-1, ::-1, ::-1, ::-1], both),
        "every second of everything": (
            lambda folder: images.repeat(2, 0).repeat(2, 1).repeat(2, 2)[::2, ::2, ::2],
            both,
        ),
        "one field of a structure": (lambda folder: structure["pixel"], both),
        "a structure": (lambda folder: structure, refused("dtype")),
        "broadcast from one image": (lambda folder: np.broadcast_to(PICTURE, (2, 20, 24, 3)), same(PICTURE, PICTURE)),
        "broadcast from one pixel": (
            lambda folder: np.broadcast_to(PICTURE[0, 0], (1, 20, 24, 3)),
            same(np.tile(PICTURE[0, 0], (20, 24, 1))),
        ),
        "windows that overlap": (
            lambda folder: np.lib.stride_tricks.sliding_window_view(GREY, (19, 24))[:, 0],
            same(GREY[:19], GREY[1:]),
        ),
        "not aligned": (lambda folder: np.frombuffer(raw, np.float64, offset=3).reshape(images.shape), both),
        "read-only": (lambda folder: np.frombuffer(images.tobytes(), np.uint8).reshape(images.shape), both),
        "memory-mapped, reading": (lambda folder: memory_map(folder, "r"), same(PICTURE)),
        "memory-mapped, read and write": (lambda folder: memory_map(folder, "r+"), same(PICTURE)),
        "memory-mapped, copy on write": (lambda folder: memory_map(folder, "c"), same(PICTURE)),
        "a subclass": (lambda folder: images.view(Subclass), both),
        "an array by protocol": (lambda folder: ByProtocol(images), both),
        "a list of arrays by protocol": (lambda folder: [ByProtocol(image) for image in images], both),
        "masked, nothing hidden": (lambda folder: np.ma.MaskedArray(images), both),
        "masked, a pixel hidden": (
            lambda folder: np.ma.MaskedArray(images, images == images[0, 0, 0, 0]),
            refused("mask"),
        ),
        "a list with a masked image": (
            lambda folder: [np.ma.MaskedArray(PICTURE, PICTURE > 200)],
            refused("image 0.*mask"),
        ),
        "a matrix": (lambda folder: np.asmatrix(GREY), refused("matrix|2-D", (TypeError, ValueError))),
    }


def array_cases() -> Iterator[Case]:
    for name in DTYPES:
        dtype = np.dtype(name)
        array, plain = values_of(dtype)
        label = dtype.str.lstrip("|=") if dtype.kind != "b" else "bool"
        yield Case(f"array of {label}", lambda folder, array=array: array[np.newaxis], same(plain))
        yield Case(f"list of arrays of {label}", lambda folder, array=array: [array], same(plain))
        if dtype.kind in "iu" and dtype.itemsize > 1:
            info = np.iinfo(dtype)
            extreme = np.array([[info.min, info.max]] * 3, dtype=dtype)
            wide = _OUT_OF_RANGE if dtype.itemsize == 2 and dtype.kind == "i" else refused("too large")
            if dtype.kind == "u" and dtype.itemsize == 2:
                wide = same(np.array([[0, 255]] * 3, np.uint8))
            yield Case(f"array of {label}, its extreme values", lambda folder, a=extreme: a[np.newaxis], wide)
    for name in ("c8", "c16", "M8[s]", "m8[s]", "S1", "U1", "V2"):
        array = (
            np.zeros((2, 20, 24), dtype=np.int64).astype(name) if name not in ("V2",) else np.zeros((2, 20, 24), name)
        )
        message = "real numbers|1-D"
        yield Case(f"array of {name}", lambda folder, array=array: array, refused(message, ValueError))
        yield Case(
            f"list of arrays of {name}", lambda folder, array=array: list(array), refused("image 0.*real numbers")
        )
    for name, (make, expected) in strange_layouts().items():
        yield Case(f"array, {name}", make, expected)
    for name in (">f4", ">f8", "g"):
        exact = (DEEP / 65535).astype(name)
        yield Case(
            f"array of {np.dtype(name).str}, more than 8 bits",
            lambda folder, a=exact: a[np.newaxis],
            same(exact.astype(float), tolerance=1e-4),
        )
    objects = PICTURE.astype(object)
    yield Case("array of objects", lambda folder: objects[np.newaxis], refused("1-D|dtype", ValueError))
    yield Case("list of arrays of objects", lambda folder: [objects], refused("image 0.*object"))
    ragged = np.empty(2, dtype=object)
    ragged[:] = [PICTURE, GREY[:9]]
    yield Case("array of arrays of different sizes", lambda folder: ragged, same(PICTURE, GREY[:9]))
    yield Case("array of None", lambda folder: np.array([None, None]), _MISSING)
    shapes: dict[tuple[int, ...], str] = {
        (): "Expected 2D",
        (5,): r"one row of \d+ numbers",
        (2, 3, 4, 5, 3): "shape",
        (0, 20, 24, 3): "0 sample",
        (0, 20, 24): "0 sample",
        (2, 0, 24, 3): "no pixels",
        (2, 20, 0, 3): "no pixels",
        (2, 0, 0, 3): "no pixels",
        (2, 20, 24, 0): "0 channels",
        (2, 20, 24, 2): "2 channels",
        (2, 20, 24, 5): "5 channels",
        (2, 3, 20, 24): "moveaxis",
        (0, 0): "2-D|0 sample",
    }
    yield Case("one grey image as an array", lambda folder: GREY, refused("newaxis", ValueError, fit_too=False))
    for shape, message in shapes.items():
        yield Case(
            f"array of shape {shape}",
            lambda folder, shape=shape: np.zeros(shape, np.uint8),
            refused(message, ValueError),
        )
        if len(shape) > 3:
            yield Case(
                f"list of arrays of shape {shape[1:]}",
                lambda folder, shape=shape: [np.zeros(shape[1:], np.uint8)],
                refused("image 0", ValueError)
                if shape[1:] not in ((20, 24, 3),)
                else same(np.zeros(shape[1:], np.uint8)),
            )
    yield Case("one colour image as an array", lambda folder: PICTURE, refused("pass image.np.newaxis", ValueError))
    yield Case("array, 1 x 1", lambda folder: PICTURE[np.newaxis, :1, :1], same(PICTURE[:1, :1]))
    wide = np.resize(GREY, (1, 2, 30000))
    yield Case("array, 30,000 wide", lambda folder: wide, same(wide[0]))
    yield Case("array, 30,000 high", lambda folder: wide.transpose(0, 2, 1), same(wide[0].T))
    unit = PICTURE / 255
    broken = {"NaN": np.nan, "infinity": np.inf, "minus infinity": -np.inf}
    for name, value in broken.items():
        for place in (0, -1):
            changed = np.stack([unit, unit])
            changed.flat[place] = value
            where = "first" if place == 0 else "last"
            yield Case(f"array, {name} in its {where} place", lambda folder, a=changed: a, refused("NaN or infinity"))
            yield Case(
                f"list, {name} in its {where} place",
                lambda folder, a=changed: list(a),
                refused(f"image {0 if place == 0 else 1}.*NaN or infinity"),
            )
    for value in (1e308, -1e308, 1e39, 1e38, -1e38, 1e20, 1e6):
        changed = unit.copy()
        changed[3, 4] = value
        yield Case(f"array, a pixel of {value:g}", lambda folder, a=changed: a[np.newaxis], refused("too large"))
    yield Case(
        "array of float16, a pixel of 65,504",
        lambda folder: np.full((1, 9, 9), 65504, np.float16) - np.eye(9, dtype=np.float16),
        _OUT_OF_RANGE,
    )
    yield Case(
        "array of floats 0-255",
        lambda folder: PICTURE[np.newaxis].astype(float),
        refused("divide by 255"),
    )
    yield Case("array of negative floats", lambda folder: -unit[np.newaxis], _OUT_OF_RANGE)
    yield Case("array of negative zeros", lambda folder: np.full((1, 9, 9), -0.0), same(np.zeros((9, 9))))
    tiny = np.full((1, 9, 9), 5e-324)
    yield Case("array of the smallest floats", lambda folder: tiny, same(np.zeros((9, 9))))
    yield Case(
        "array of floats a rounding above 1",
        lambda folder: np.nextafter(unit, 2)[np.newaxis],
        same(PICTURE, warns=None, tolerance=1e-6),
    )
    yield Case("array of int32 in 0-65535", lambda folder: DEEP[np.newaxis].astype(np.int32), refused("uint16"))
    yield Case(
        "array of uint16 in 0-255",
        lambda folder: PICTURE[np.newaxis].astype(np.uint16),
        same(PICTURE / 65535, warns="cast 8-bit"),
    )
    yield Case(
        "list of different dtypes and sizes",
        lambda folder: [PICTURE, unit[:9], (PICTURE > 0)[..., :1]],
        same(PICTURE, PICTURE[:9], (PICTURE[..., 0] > 0) * np.uint8(255)),
    )


def tensor_cases() -> Iterator[Case]:
    first = torch.from_numpy(np.moveaxis(PICTURE, -1, 0).copy())
    for name in (
        "uint8",
        "int8",
        "int16",
        "int32",
        "int64",
        "bool",
        "float32",
        "float64",
        "uint16",
        "uint32",
        "uint64",
    ):
        dtype = getattr(torch, name)
        if name == "uint16":
            tensor, plain = (first.to(torch.int32) * 257).to(dtype), PICTURE
        elif name == "int8":
            tensor, plain = (first >> 1).to(dtype), PICTURE >> 1
        elif name == "bool":
            tensor, plain = first > 127, (PICTURE > 127) * np.uint8(255)
        elif dtype.is_floating_point:
            tensor, plain = first.to(dtype) / 255, PICTURE
        else:
            tensor, plain = first.to(dtype), PICTURE
        yield Case(f"tensor of {name}", lambda folder, t=tensor: t[None], same(plain))
        yield Case(f"list of tensors of {name}", lambda folder, t=tensor: [t], same(plain))
    unit = first.double() / 255
    for name in ("float16", "bfloat16", "float8_e4m3fn"):
        rounded = unit.to(getattr(torch, name))
        plain = PICTURE if name == "float16" else np.moveaxis(rounded.double().numpy(), 0, -1)
        yield Case(f"tensor of {name}", lambda folder, t=rounded: t[None], same(plain, tolerance=1e-4))
        yield Case(f"list of tensors of {name}", lambda folder, t=rounded: [t], same(plain, tolerance=1e-4))
    for name in ("complex64", "complex128"):
        yield Case(
            f"tensor of {name}", lambda folder, name=name: unit.to(getattr(torch, name))[None], refused("real numbers")
        )
    quantize = torch.quantize_per_tensor
    yield Case(
        "tensor, quantized",
        lambda folder: quantize(unit.float(), 1 / 255, 0, torch.quint8)[None],
        refused("dense tensor", TypeError),
    )
    yield Case("tensor, sparse", lambda folder: unit[None].to_sparse(), refused("dense tensor", TypeError))
    yield Case(
        "tensor without data",
        lambda folder: torch.empty(1, 3, 20, 24, device="meta"),
        refused("dense tensor", TypeError),
    )
    yield Case(
        "list with a tensor without data",
        lambda folder: [torch.empty(3, 20, 24, device="meta")],
        refused("image 0.*dense tensor", TypeError),
    )
    yield Case("tensor that wants a gradient", lambda folder: unit[None].clone().requires_grad_(), same(PICTURE))
    yield Case(
        "tensor, channels last in memory",
        lambda folder: unit[None].to(memory_format=torch.channels_last),
        same(PICTURE),
    )
    yield Case("tensor, expanded", lambda folder: first[None].expand(2, -1, -1, -1), same(PICTURE, PICTURE))
    yield Case("tensor, a view of negative values", lambda folder: torch._neg_view(-unit)[None], same(PICTURE))
    yield Case(
        "tensor, the imaginary part of a complex one",
        lambda folder: torch.complex(unit, unit).conj().conj().imag[None],
        same(PICTURE),
    )
    yield Case("tensor with channels last", lambda folder: first.permute(1, 2, 0)[None], refused("channels"))
    yield Case("tensor of grey images", lambda folder: torch.from_numpy(GREY)[None], same(GREY))
    yield Case("tensor of no dimension", lambda folder: torch.tensor(1.0), refused("Expected 2D", ValueError))
    yield Case("tensor of no images", lambda folder: first[None][:0], refused("0 sample", ValueError))
    yield Case("tensor with NaN", lambda folder: torch.full((1, 3, 9, 9), float("nan")), refused("NaN"))
    yield Case("one colour image as a tensor", lambda folder: first, refused("pass image.unsqueeze", ValueError))


# Everything else


class Items(torch.utils.data.Dataset):
    """A map-style Dataset of these items; an exception among them is raised."""

    def __init__(self, *items: Any, length: int | None = None):
        self.items = items
        self.length = len(items) if length is None else length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, i: int) -> Any:
        if isinstance(self.items[i], Exception):
            raise self.items[i]
        return self.items[i]


class Stream(torch.utils.data.IterableDataset):
    """A Dataset without places."""

    def __iter__(self):
        return iter([PICTURE])


def container_cases() -> Iterator[Case]:
    import pandas as pd
    import scipy.sparse

    for value in (
        None,
        3,
        2.5,
        True,
        b"a.png",
        {0: PICTURE},
        {1, 2},
        frozenset(),
        slice(3),
        object,
        print,
        Exception("a"),
        1j,
    ):
        name = f"{type(value).__name__} {str(value)[:30]!r}".replace("\n", " ")
        yield Case(name, lambda folder, value=value: value, refused("Cannot read images", TypeError))
    yield Case("a generator", lambda folder: (x for x in [PICTURE]), same(PICTURE))
    # a map's items are gone once it was fitted
    yield Case("a map", lambda folder: map(str, [1]), refused("does not exist", fit_too=False))
    yield Case("an open file", lambda folder: open(file(png())(folder)[0], "rb"), refused("BufferedReader", TypeError))  # noqa: SIM115
    yield Case("a list of open files", lambda folder: [io.BytesIO(png())], refused("image 0.*BytesIO", TypeError))
    yield Case("a bytearray", lambda folder: bytearray(b"abc"), refused("bytearray", TypeError))
    yield Case("a memoryview", lambda folder: memoryview(PICTURE[np.newaxis]), refused("memoryview", TypeError))
    yield Case("a range", lambda folder: range(5), refused("int", TypeError))
    yield Case("an empty list", lambda folder: [], refused("no image", ValueError))
    yield Case("an empty tuple", lambda folder: (), refused("no image", ValueError))
    yield Case("a list of None", lambda folder: [None, None], _MISSING)
    yield Case("a list of numbers", lambda folder: [1, 2, 3], refused(r"one row of \d numbers", ValueError))
    yield Case("a list of images and None", lambda folder: [PICTURE, None], _MISSING)
    yield Case("a list of images and numbers", lambda folder: [PICTURE, 3], refused("image 1.*int", TypeError))
    yield Case("a list of paths and None", lambda folder: [*file(png())(folder), None], _MISSING)
    yield Case(
        "numbers in lists in lists", lambda folder: GREY[np.newaxis].tolist(), refused("image 0.*list", TypeError)
    )
    yield Case(
        "numbers in lists, four deep", lambda folder: PICTURE[np.newaxis].tolist(), refused("image 0.*list", TypeError)
    )
    yield Case(
        "rows of different lengths", lambda folder: [[1, 2], [3]], refused("inhomogeneous|sequence|row", ValueError)
    )
    yield Case("a list of texts in lists", lambda folder: [["a", "b"]], refused("image 0.*does not exist"))

    def itself(folder: Path) -> list:
        items: list = []
        items += [items, items]
        return items

    yield Case("a list that holds itself", itself, refused("list|depth|dimension|sequence", (TypeError, ValueError)))
    yield Case("a deque of images", lambda folder: collections.deque([PICTURE, GREY]), same(PICTURE, GREY))
    yield Case("a tuple of images", lambda folder: (PICTURE, GREY), same(PICTURE, GREY))
    yield Case(
        "paths, PIL images and arrays",
        lambda folder: [*file(png())(folder), Image.fromarray(GREY), PICTURE[:9]],
        same(PICTURE, GREY, PICTURE[:9]),
    )
    yield Case("a Dataset of (image, label)", lambda folder: Items((PICTURE, 1), (GREY, 0)), same(PICTURE, GREY))
    yield Case(
        "a Dataset of dicts", lambda folder: Items(*[{"image": PICTURE}] * 2), refused("image 0.*dict", TypeError)
    )
    yield Case("a Dataset of None", lambda folder: Items(None, None), _MISSING)
    yield Case("a Dataset of nothing", lambda folder: Items(), refused("no image", ValueError))
    yield Case("a Dataset of empty tuples", lambda folder: Items((), ()), refused("image 0.*tuple", TypeError))
    yield Case(
        "a Dataset that raises",
        lambda folder: Items(*[KeyError("the user's own")] * 2),
        refused("the user's own", KeyError),
    )
    yield Case(
        "a Dataset that claims too much", lambda folder: Items(PICTURE, length=3), refused("out of range", IndexError)
    )
    yield Case(
        "a Dataset with a truncated image",
        lambda folder: Items(PICTURE, Image.open(io.BytesIO(saved(PICTURE, "BMP")[:999]))),
        refused("image 1"),
    )
    yield Case("an IterableDataset", lambda folder: Stream(), refused("map-style", TypeError))
    yield Case("a Series of paths", lambda folder: pd.Series(file(png())(folder), index=[7]), same(PICTURE))
    yield Case(
        "a Series of numbers", lambda folder: pd.Series([1.0, 2.0]), refused("float|1D", (TypeError, ValueError))
    )
    yield Case("a data frame of numbers", lambda folder: pd.DataFrame(GREY), refused("2-D", ValueError, fit_too=False))
    yield Case(
        "a data frame of paths",
        lambda folder: pd.DataFrame({"path": file(png())(folder)}),
        same(PICTURE),
    )
    yield Case(
        "a sparse matrix",
        lambda folder: scipy.sparse.csr_matrix(GREY),
        refused("2-D|[Ss]parse", (TypeError, ValueError)),
    )


CASES = [*file_cases(), *path_cases(), *pil_cases(), *array_cases(), *tensor_cases(), *container_cases()]


def detector() -> TransformalyDetector:
    """A small detector of random weights in float64, fitted on images of no common size."""
    rng = np.random.default_rng(1)
    images = [rng.integers(0, 256, (20, 20 + i, 3), dtype=np.uint8) for i in range(12)]
    extractor = TimmExtractor("test_vit", weights=None, image_size=32, precision="float64", device="cpu")
    students = BlockStudents(n_blocks=2, max_epochs=1)
    return TransformalyDetector(extractor, students=students, random_state=0).fit(images)


def judge(case: Case, fitted: TransformalyDetector, folder: Path) -> tuple[str, str]:
    """Score the input of `case`; give what came of it, and what is wrong with that ("" where nothing is)."""

    def attempt(method: str, X: Any) -> tuple[Any, str]:
        try:
            return getattr(
                fitted if method == "score_samples" else TransformalyDetector(**fitted.get_params(False)), method
            )(X), ""
        except Exception as error:
            right = isinstance(case.expected, Refused) and isinstance(error, case.expected.kind)
            right = right and re.search(case.expected.message, str(error), re.DOTALL) is not None  # type: ignore[union-attr]
            return error, "" if right else f"{method} raised {type(error).__name__}: {error}"

    X = case.make(folder)
    before = X.copy() if isinstance(X, np.ndarray) and X.dtype.kind in "uif" else None
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome, problem = attempt("score_samples", X)
    told = " | ".join(str(warning.message) for warning in caught)
    if before is not None and not np.array_equal(X, before, equal_nan=True):
        problem += " changed its input"
    if isinstance(outcome, Exception):
        if isinstance(case.expected, Refused) and case.expected.fit_too and not problem:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                fit_outcome, problem = attempt("fit", X + X if isinstance(X, list) and X and X[0] is not X else X)
            if not isinstance(fit_outcome, Exception):
                problem = "fit took what score_samples refuses"
        return f"{type(outcome).__name__}: {outcome}", problem
    if isinstance(case.expected, Refused):
        return f"{len(outcome)} scores", problem or "was to be refused"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        expected = np.array([fitted.score_samples([array])[0] for array in case.expected.arrays])
    if outcome.shape != expected.shape:
        problem += f" gave {outcome.shape[0]} scores, expected {expected.shape[0]}"
    elif not np.allclose(outcome, expected, rtol=case.expected.tolerance, atol=0):
        problem += f" silently wrong: {outcome} instead of {expected}"
    if case.expected.warns is not None and not re.search(case.expected.warns, told):
        problem += f" no warning {case.expected.warns!r}"
    text = "score of its pixels" if len(outcome) == 1 else f"scores of its {len(outcome)} images"
    if isinstance(case.expected, AsDecoded):
        text = "score of what Pillow decodes: the damage cannot be told"
    return text + (f"; warns: {told}" if case.expected.warns else ""), problem.strip()


def _work(connection) -> None:
    """Judge the cases whose places come in, until None does."""
    torch.set_num_threads(1)
    fitted = detector()
    connection.send("ready")
    while (place := connection.recv()) is not None:
        folder = Path(tempfile.mkdtemp())
        try:
            outcome, problem = judge(CASES[place], fitted, folder)
            connection.send((outcome.replace(f"{folder}{os.sep}", ""), problem))
        finally:
            shutil.rmtree(folder)


class Judge:
    """A process that judges; another takes its place when it dies or hangs."""

    def __init__(self, limit: float):
        self.limit = limit
        self.context = multiprocessing.get_context("spawn")
        self.start()

    def start(self) -> None:
        """Start the process, and wait until it can judge."""
        self.connection, theirs = self.context.Pipe()
        self.process = self.context.Process(target=_work, args=(theirs,), daemon=True)
        self.process.start()
        theirs.close()
        self.connection.recv()  # its first word, whatever the time that imports take

    def __call__(self, place: int) -> tuple[str, str]:
        """Outcome and problem of the case at `place`."""
        self.connection.send(place)
        try:
            if self.connection.poll(self.limit):
                return self.connection.recv()
            what = f"no answer after {self.limit:.0f} s"
        except EOFError:
            self.process.join()
            what = f"the process died, exit code {self.process.exitcode}"
        self.process.kill()
        self.process.join()
        self.start()
        return what, what

    def close(self) -> None:
        """Let the process end."""
        self.connection.send(None)
        self.process.join()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="write the table here (Markdown)")
    parser.add_argument("--only", default="", help="inputs with this word in their name")
    parser.add_argument("--limit", type=float, default=120, help="seconds for an input")
    options = parser.parse_args()
    start = time.monotonic()
    asked = Judge(options.limit)
    rows, problems, counts = [], [], collections.Counter()
    for place, case in enumerate(CASES):
        if options.only not in case.name:
            continue
        outcome, problem = asked(place)
        counts["inputs"] += 1
        counts["scored"] += outcome.startswith("score")
        counts["refused"] += not outcome.startswith("score")
        counts["scored, damage not told"] += isinstance(case.expected, AsDecoded)
        counts["died or hung"] += outcome.startswith(("the process died", "no answer"))
        if problem:
            problems.append(f"{case.name}: {problem}")
            print("WRONG", problems[-1], flush=True)
        rows.append((case.name, outcome))
    asked.close()
    if options.out is not None:
        clean = lambda text: " ".join(text.replace("|", "\\|").split())  # noqa: E731
        lines = ["| input | what comes of it |", "|---|---|", *(f"| {clean(a)} | {clean(b)[:300]} |" for a, b in rows)]
        options.out.write_text("\n".join(lines) + "\n", encoding="utf-8", errors="backslashreplace")
    result = {**counts, "wrong": len(problems), "seconds": round(time.monotonic() - start, 1)}
    print("RESULT", json.dumps(result))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
