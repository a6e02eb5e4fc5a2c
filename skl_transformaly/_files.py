"""What a user names on a command line, as image files: folders, patterns, lists; what is passed over is counted."""

from __future__ import annotations

import glob
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from skl_transformaly._images import image_suffixes

__all__ = ["FoundFiles", "display_path", "find_files", "split_list"]


@dataclass
class FoundFiles:
    """Image files, and how many others were passed over.

    Attributes
    ----------
    paths : list of str
        Each once; those of a folder or a pattern sorted by path.
    hidden : int
        Files and folders passed over because their names begin with a dot.
    other : int
        Files passed over because they are no images.
    """

    paths: list[str] = field(default_factory=list)
    hidden: int = 0
    other: int = 0

    def __str__(self) -> str:
        parts = [f"{self.hidden} hidden"] * bool(self.hidden) + [f"{self.other} that are no images"] * bool(self.other)
        return " and ".join(parts)


def find_files(names: Iterable[str], *, listed: Iterable[str] = ()) -> FoundFiles:
    """Find the image files that `names` and `listed` stand for.

    Parameters
    ----------
    names : iterable of str
        Each a file, a folder, whose files count with those of the folders in it, or a pattern (``*``, ``?``, ``[...]``,
        and ``**`` for folders of any depth). A name that is there is never taken as a pattern.
    listed : iterable of str
        Files from a list that may be out of date: those that are not there are kept, to be reported as unreadable.

    Returns
    -------
    FoundFiles
        Within folders and patterns, hidden files and folders are passed over, and files whose suffix is none that
        Pillow can open. Of files that are named themselves, hidden ones count, and the content decides where the
        suffix is no image's. Links to folders are not followed.

    Raises
    ------
    ValueError
        A name is neither there nor a pattern that matches something, or a folder cannot be listed.

    Examples
    --------
    >>> import tempfile
    >>> from pathlib import Path
    >>> folder = Path(tempfile.mkdtemp())
    >>> for name in ("b.png", "a.jpg", ".hidden.png", "notes.txt"):
    ...     (folder / name).touch()
    >>> found = find_files([str(folder)])
    >>> [Path(path).name for path in found.paths]
    ['a.jpg', 'b.png']
    >>> print(found)
    1 hidden and 1 that are no images
    """
    found = FoundFiles()
    seen: set[str] = set()

    def add(path: str) -> None:
        path = str(Path(path))  # takes out ./ and //, and leaves .., which may lead through a link
        if path not in seen:
            seen.add(path)
            found.paths.append(path)

    for name in names:
        if os.path.isdir(name):
            _walk(name, found, add)
        elif os.path.lexists(name):
            _add_named(name, found, add)
        elif glob.has_magic(name):
            matches = sorted(glob.glob(name, recursive=True))
            if not matches:
                raise ValueError(f"Nothing matches {display_path(name)!r}.")
            for match in matches:
                if os.path.isdir(match):
                    _walk(match, found, add)
                elif _has_image_suffix(match):
                    add(match)
                else:
                    found.other += 1
        else:
            raise ValueError(f"There is no file or folder {display_path(name)!r}.")
    for name in listed:
        if os.path.isdir(name):
            _walk(name, found, add)
        elif os.path.lexists(name):
            _add_named(name, found, add)
        else:
            add(name)
    return found


def _walk(folder: str, found: FoundFiles, add) -> None:
    def refuse(error: OSError) -> None:
        raise ValueError(f"The folder {display_path(str(error.filename))!r} cannot be listed: {error.strerror}.")

    paths = []
    for root, folders, files in os.walk(folder, onerror=refuse):
        found.hidden += sum(name.startswith(".") for name in folders + files)
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.startswith("."):
                continue
            if _has_image_suffix(name):
                paths.append(Path(root, name))
            else:
                found.other += 1
    for path in sorted(paths):
        add(str(path))


def _add_named(path: str, found: FoundFiles, add) -> None:
    if _has_image_suffix(path):
        add(path)
        return
    try:
        with Image.open(path):  # reads the header only
            add(path)
    except Exception:  # Pillow's plugins raise nearly anything
        found.other += 1


def _has_image_suffix(path: str) -> bool:
    return os.path.splitext(path)[1].lower() in image_suffixes()


def split_list(content: bytes) -> list[str]:
    r"""Split a list of paths: one a line, or, where the list holds a NUL, separated by NULs, as ``find -print0`` does.

    Examples
    --------
    >>> split_list(b"a.png\n\nb c.png\r\n")
    ['a.png', 'b c.png']
    >>> split_list(b"two\nlines.png\0b.png\0")
    ['two\nlines.png', 'b.png']
    """
    if b"\0" in content:
        items = content.split(b"\0")
    else:
        items = [line.removesuffix(b"\r") for line in content.split(b"\n")]
    return [os.fsdecode(item) for item in items if item]


def display_path(path: str | os.PathLike) -> str:
    r"""A path as text that is safe to show: what a terminal or a page would act on, or cannot show, as escapes.

    Control characters, line separators, marks that change the direction of text, and bytes that are not UTF-8.

    Examples
    --------
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
