"""Paths and formats of image files; files that are mistaken for images, and what to do with them instead."""

from __future__ import annotations

import contextlib
import functools
import os
import re
from dataclasses import dataclass

from PIL import Image

from skl_transformaly.utils._files import absolute_path

__all__ = ["absolute", "expand_user", "missing_advice", "register_formats", "url_advice", "what_else"]

_HEAD = 512  # bytes that hold every signature below


@dataclass(frozen=True)
class _Kind:
    """A kind of file: how it is recognised, and the message about it."""

    suffixes: tuple[str, ...]
    signatures: tuple[tuple[int, bytes], ...]
    text: str


_KINDS = (
    _Kind((".npy", ".npz"), ((0, b"\x93NUMPY"),), "holds NumPy arrays: pass the array itself, numpy.load(path)."),
    _Kind(
        (".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".xz", ".txz", ".zst", ".7z", ".rar"),
        (
            (0, b"PK\x03\x04"),
            (0, b"PK\x05\x06"),
            (257, b"ustar"),
            (0, b"\x1f\x8b"),
            (0, b"BZh"),
            (0, b"\xfd7zXZ\0"),
            (0, b"\x28\xb5\x2f\xfd"),
            (0, b"7z\xbc\xaf\x27\x1c"),
            (0, b"Rar!"),
        ),
        "is an archive: unpack it first, such as with shutil.unpack_archive, and pass the folder.",
    ),
    _Kind(
        (".mp4", ".m4v", ".mov", ".avi", ".mkv", ".webm", ".mpg", ".mpeg", ".wmv", ".flv", ".3gp", ".ogv", ".mts"),
        (
            *((4, b"ftyp" + brand) for brand in (b"isom", b"iso2", b"iso5", b"mp4", b"avc1", b"qt  ", b"M4V", b"3gp")),
            (8, b"AVI "),
            (0, b"\x1a\x45\xdf\xa3"),
            (0, b"\0\0\1\xba"),
            (0, b"\0\0\1\xb3"),
            (0, b"FLV\1"),
        ),
        "is a video: save its frames as images first, such as with ffmpeg -i video frame%06d.png, and pass these.",
    ),
    _Kind(
        (".pdf",),
        ((0, b"%PDF"),),
        "is a PDF: save its pages as images first, such as with pdftoppm -png, and pass these.",
    ),
    _Kind(
        (".svg", ".svgz", ".eps", ".ps", ".ai", ".wmf", ".emf"),
        ((0, b"<svg"), (0, b"%!PS"), (0, b"\xd7\xcd\xc6\x9a")),
        "is a vector drawing: save it as a PNG first, and pass that.",
    ),
    _Kind(
        (".dcm", ".dicom"),
        ((128, b"DICM"),),
        "is a DICOM file: read its pixels with pydicom, scale them to 0-1, and pass them as an array.",
    ),
    _Kind(
        (".h5", ".hdf5"),
        ((0, b"\x89HDF\r\n\x1a\n"),),
        "holds arrays in HDF5: read them with h5py, and pass the array.",
    ),
    _Kind(
        (".csv", ".tsv", ".parquet", ".xlsx", ".feather"),
        ((0, b"PAR1"),),
        "is a table: read it, such as with pandas, and pass its column of paths.",
    ),
    _Kind(
        (".cr2", ".cr3", ".nef", ".arw", ".dng", ".orf", ".rw2", ".raf"),
        (),
        "is the raw file of a camera: develop it to TIFF or PNG first, such as with rawpy, and pass that.",
    ),
    _Kind(
        (".heic", ".heif", ".hif"),
        ((4, b"ftyphei"), (4, b"ftypmif1")),
        "is a HEIF image, and either the package pillow-heif is not installed, or the file is broken.",
    ),
)

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/+")


def what_else(path: str | os.PathLike, content: bytes | None = None) -> str | None:
    """Return the kind of a file that is not an image, and what to do with it; None if it is not known.

    The suffix counts before the content, since many formats are zip files inside. With `content`, no file is opened.
    """
    suffix = os.path.splitext(os.fspath(path))[1].lower()
    named = next((kind for kind in _KINDS if suffix in kind.suffixes), None)
    head = (content or b"")[:_HEAD]
    with contextlib.suppress(OSError, ValueError):
        if content is None and os.path.isfile(path):  # a pipe would keep whoever reads it waiting
            with open(path, "rb") as file:
                head = file.read(_HEAD)
    fits = [kind for kind in _KINDS if any(head.startswith(mark, place) for place, mark in kind.signatures)]
    kind = named or next(iter(fits), None)
    return None if kind is None else kind.text


def url_advice(path: str | os.PathLike) -> str:
    """Return what to do about a path that is a URL; "" if it is not."""
    if not _URL.match(os.fspath(path)):
        return ""
    return " It is a URL: download the file first, such as with urllib.request.urlretrieve, and pass its path."


def missing_advice(path: str | os.PathLike) -> str:
    """Return what to do about a path that does not exist, beside looking for it; "" if nothing is known."""
    if not (advice := url_advice(path)) and len(os.path.basename(path)) == 1:
        return (
            " If it is a letter of a folder's name, a split or search has taken that apart: pass the folder's files, "
            "such as sorted(pathlib.Path(folder).glob('*.jpg'))."
        )
    return advice


@functools.cache
def register_formats() -> None:
    """Let Pillow read all that it can, HEIC of iPhones as well if pillow-heif is installed."""
    with contextlib.suppress(ImportError):
        from pillow_heif import register_heif_opener

        register_heif_opener()
    Image.init()


def absolute(path: str | os.PathLike) -> str:
    """Return a path that still holds if the process goes to another folder; a URL or nothing as it is."""
    path = os.fspath(expand_user(path))
    return path if not path or _URL.match(path) else absolute_path(path)


def expand_user(path: str | os.PathLike) -> str | os.PathLike:
    """Return `path` with ~ replaced by the home folder, unless a file of that very name exists."""
    if not str(path).startswith("~"):
        return path
    with contextlib.suppress(OSError, ValueError):
        if os.path.lexists(path):
            return path
    return os.path.expanduser(path)
