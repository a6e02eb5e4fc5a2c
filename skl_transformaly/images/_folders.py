"""Image files in folders, and the files that are passed over, counted by reason."""

from __future__ import annotations

import functools
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from skl_transformaly.images._formats import expand_user, register_formats, url_advice, what_else
from skl_transformaly.utils._warnings import warn_user

__all__ = ["FoundFiles", "display_path", "file_identity", "has_image_suffix", "is_image", "list_images", "walk"]

# Pillow identifies files of these formats, but cannot decode them, or only with another program.
_NOT_DECODED = frozenset({"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"})
_HEIF = frozenset({".heic", ".heif", ".hif"})
_MOST_REASONS = 6


@dataclass
class FoundFiles:
    """Image files, each once, and how many others were passed over: hidden ones, and those that are not images."""

    paths: list[str] = field(default_factory=list)
    hidden: int = 0
    # by suffix
    others: Counter[str] = field(default_factory=Counter)

    @property
    def other(self) -> int:
        """Number of files passed over because they are not images."""
        return self.others.total()

    def pass_over(self, name: str) -> None:
        """Count a file that is not an image."""
        self.others[os.path.splitext(name)[1].lower()] += 1

    def reasons(self) -> list[str]:
        """Return what was passed over besides hidden files, the most frequent first."""
        counted = self.others.most_common()
        shown = []
        for suffix, count in counted[:_MOST_REASONS]:
            hint = " (to read these, install pillow-heif)" if suffix in _HEIF else ""
            shown.append(f"{count} {display_path(suffix) or 'without a suffix'}{hint}")
        rest = sum(count for _, count in counted[_MOST_REASONS:])
        return shown + [f"{rest} of other kinds"] * bool(rest)

    def __str__(self) -> str:
        return ", ".join([f"{self.hidden} hidden"] * bool(self.hidden) + self.reasons())

    def __add__(self, more: FoundFiles) -> FoundFiles:
        return FoundFiles(self.paths + more.paths, self.hidden + more.hidden, self.others + more.others)


def list_images(folder: str | os.PathLike) -> list[Path]:
    """List the image files below `folder`, sorted by path, without hidden ones; ValueError if there are none.

    A file is an image if Pillow can decode the format of its suffix, in any case, or, if it has no suffix, its content.
    A warning counts the files that are passed over.
    """
    given, folder = str(folder), Path(expand_user(folder))
    if folder.is_file():
        other = what_else(folder)
        if other is not None and not has_image_suffix(given):
            raise ValueError(f"{str(folder)!r} {other}")
        raise ValueError(f"{str(folder)!r} is one file; expected a folder. For single files pass a list: [path].")
    if not folder.is_dir():
        hint = " For a pattern pass a list: sorted(glob.glob(pattern))." if set("*?[") & set(str(folder)) else ""
        hint = url_advice(given) or hint
        raise ValueError(f"The folder {str(folder)!r} does not exist; expected a folder of images.{hint}")
    found = FoundFiles()
    walk(folder, found, found.paths.append)
    others = ", ".join(found.reasons())
    if not found.paths:
        raise ValueError(
            f"Found no image below {str(folder)!r}: no file there has a format that Pillow can decode (.png, .jpg, ...)"
            + (f"; passed over {others}." if others else ".")
            + "".join(f" A {suffix} file {text}" for suffix, text in _known_others(found))
        )
    if others:
        warn_user(f"Passed over files below {str(folder)!r}: {others}.")
    return [Path(path) for path in found.paths]


def _known_others(found: FoundFiles) -> list[tuple[str, str]]:
    """Return suffixes of files that were passed over, with advice on such files."""
    advice = [(suffix, what_else(f"file{suffix}")) for suffix in found.others]
    return [(suffix, text) for suffix, text in advice if text is not None][:2]


def walk(folder: str | os.PathLike, found: FoundFiles, add: Callable[[str], None]) -> None:
    """Find the images below a folder, sorted by path, and count in `found` what is passed over.

    Links to folders are followed, each folder once.
    """

    def refuse(error: OSError) -> None:
        raise ValueError(f"The folder {display_path(str(error.filename))!r} cannot be listed: {error.strerror}.")

    paths: list[Path] = []
    seen: set[tuple[int, int | str]] = set()
    for root, folders, files in os.walk(os.fspath(folder), onerror=refuse, followlinks=True):
        identity = file_identity(root)
        if identity in seen:
            folders.clear()
            continue
        seen.add(identity)
        found.hidden += sum(name.startswith(".") for name in folders + files)
        # in order, so that of two ways to one folder it is always the same that counts
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in files:
            if name.startswith("."):
                continue
            path = os.path.join(root, name)
            if has_image_suffix(name) or (not os.path.splitext(name)[1] and is_image(path)):
                paths.append(Path(path))
            else:
                found.pass_over(name)
    for found_path in sorted(paths):
        add(str(found_path))


def file_identity(path: str | os.PathLike) -> tuple[int, int | str]:
    """Return what all paths of one file or folder have in common. Raises OSError if there is none."""
    status = os.stat(path)
    # where files have no numbers, as on some network drives of Windows, all of them would be the same
    return status.st_dev, status.st_ino or os.path.realpath(path)


def is_image(path: str) -> bool:
    """Return whether the header of a file is that of an image that can be decoded."""
    register_formats()
    if not os.path.isfile(path):  # a pipe would keep whoever reads it waiting
        return False
    try:
        with Image.open(path) as image:
            return image.format not in _NOT_DECODED
    except MemoryError:
        raise
    except Exception:  # Pillow's plugins raise nearly anything
        return False


def has_image_suffix(path: str) -> bool:
    """Return whether the suffix of a file is that of an image that can be decoded."""
    return os.path.splitext(path)[1].lower() in _image_suffixes()


@functools.cache
def _image_suffixes() -> frozenset[str]:
    """Suffixes, in lower case and with their dot, of the files that Pillow can decode."""
    register_formats()
    return frozenset(
        suffix for suffix, kind in Image.EXTENSION.items() if kind in Image.OPEN and kind not in _NOT_DECODED
    )


def display_path(path: str | os.PathLike) -> str:
    r"""Return a path as text that is safe to show.

    Control characters, line separators, marks that change the direction of text, and bytes that are not UTF-8 are shown
    as escapes.

    >>> print(display_path("red\x1b[31m\u202egpj.png"))
    red\x1b[31m\u202egpj.png
    >>> print(display_path(b"caf\xe9.png".decode("utf-8", "surrogateescape")))
    caf\xe9.png
    """
    return "".join(_show(character) for character in os.fspath(path))


def _show(character: str) -> str:
    code = ord(character)
    if 0xDC80 <= code <= 0xDCFF:  # a byte that is not UTF-8, as os.fsdecode gives it
        return f"\\x{code - 0xDC00:02x}"
    return character if character.isprintable() else character.encode("unicode_escape").decode()
