"""Image files from the command line: folders, patterns and lists. Files that are passed over are counted."""

from __future__ import annotations

import contextlib
import functools
import glob
import os
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from skl_transformaly.images._folders import (
    FoundFiles,
    display_path,
    file_identity,
    has_image_suffix,
    is_image,
    walk,
)
from skl_transformaly.images._formats import expand_user

__all__ = ["find_files", "split_list"]

# Encoding of consoles on Windows, which differs from that of the locale
_CONSOLE = "oem"


def find_files(names: Iterable[str], *, listed: Iterable[str] = ()) -> FoundFiles:
    """Find the image files of `names` and `listed`.

    A name is a file, a folder (with subfolders), or a pattern (``*``, ``?``, ``[...]``, and ``**`` for folders of any
    depth); an existing path is never taken as a pattern. Raises ValueError for a name that leads to nothing. Listed
    files that do not exist are kept, to be reported as unreadable.

    In folders and patterns, hidden files and folders are passed over, and files that are not images by their suffix or,
    without one, by their content. Files that are named themselves may be hidden, and their content decides if the
    suffix is not that of an image. Each file counts once, also if links to folders lead a pattern to it more than once.
    """
    found = FoundFiles()
    seen: dict[str, bool] = {}  # paths, and whether only patterns lead to them

    def add(path: str, matched: bool) -> None:
        path = str(Path(path))  # without ./ and //, but with .., which may lead through a link
        seen[path] = seen.get(path, True) and matched

    given: list[tuple[str, bool]] = []  # paths, and whether they match a pattern
    for name in [os.fspath(expand_user(name)) for name in names]:
        if os.path.lexists(name):
            given.append((name, False))
        elif glob.has_magic(name):
            matches = sorted(set(_matches(name)))
            if not matches:
                raise ValueError(f"Nothing matches {display_path(name)!r}.")
            given += [(match, True) for match in matches]
        else:
            raise ValueError(f"{display_path(name)!r} does not exist.")
    given += [(os.fspath(expand_user(name)), False) for name in listed]
    folders = {os.path.realpath(path) for path, _ in given if os.path.isdir(path)}
    counted: set[str] = set()

    def count(path: str) -> FoundFiles:
        """Return where to count what is passed over at `path`: nowhere if it is counted already."""
        place = os.path.realpath(path)
        if place in counted or _is_below(place, folders):
            return FoundFiles()
        counted.add(place)
        return found

    for path, matched in given:
        if os.path.isdir(path):
            walk(path, count(path), functools.partial(add, matched=matched))
        elif not os.path.lexists(path) or has_image_suffix(path) or (not matched and is_image(path)):
            add(path, matched)
        else:
            count(path).pass_over(path)
    found.paths = _without_detours(seen)
    return found


def _matches(pattern: str) -> Iterator[str]:
    """Yield the paths that a pattern matches.

    ``**`` follows links to folders but visits each folder once, since links that lead back would make paths endless.
    """
    head, between, tail = _split(pattern)
    if not between:
        yield from glob.glob(pattern)
        return
    for start in glob.glob(head) if head else [""]:
        if not tail:
            yield start or os.curdir
            continue
        for folder in _folders(start):
            yield from _matches(os.path.join(glob.escape(folder), tail))


def _split(pattern: str) -> tuple[str, str, str]:
    """Split a pattern at its first ``**``; the last two parts are empty if there is none."""
    parts = re.split(r"([\\/]+)" if os.name == "nt" else "(/+)", pattern)  # names at even places
    for i in range(0, len(parts), 2):
        if parts[i] == "**":
            return "".join(parts[:i]), "**", "".join(parts[i + 2 :])
    return pattern, "", ""


def _folders(start: str) -> Iterator[str]:
    """Yield a folder and those below it, without hidden ones, each by its shortest path."""
    seen: set[tuple[int, int | str]] = set()
    folders = [start] if os.path.isdir(start or os.curdir) else []
    while folders:
        below = []
        for folder in folders:
            try:
                identity = file_identity(folder or os.curdir)
            except OSError:  # gone since
                continue
            if identity in seen:
                continue
            seen.add(identity)
            yield folder
            # as glob does, a folder that may not be listed is passed over
            with contextlib.suppress(OSError), os.scandir(folder or os.curdir) as entries:
                below += [
                    os.path.join(folder, entry.name)
                    for entry in sorted(entries, key=lambda entry: (entry.is_symlink(), entry.name))
                    if not entry.name.startswith(".") and entry.is_dir()
                ]
        folders = below


def _without_detours(paths: dict[str, bool]) -> list[str]:
    """Leave out paths that patterns matched if another leads to the same place: one that was named, or the shortest.

    `paths` says of each path whether only patterns lead to it.
    """
    real_folder = functools.cache(os.path.realpath)
    places = {path: os.path.join(real_folder(os.path.dirname(path)), os.path.basename(path)) for path in paths}
    best: dict[str, str] = {}
    for path in sorted(paths, key=lambda path: (paths[path], len(path), path)):
        best.setdefault(places[path], path)
    return [path for path, matched in paths.items() if not matched or best[places[path]] == path]


def _is_below(place: str, folders: set[str]) -> bool:
    """Return whether a search of one of `folders` comes to `place`."""
    path = Path(place)
    for part, above in zip([path, *path.parents], path.parents):
        if part.name.startswith("."):
            return False
        if str(above) in folders:
            return True
    return False


def split_list(content: bytes) -> list[str]:
    r"""Split a list of paths: one per line, or separated by NULs, as by ``find -print0``.

    >>> split_list(b"a.png\n\nb c.png\r\n")
    ['a.png', 'b c.png']
    >>> split_list(b"two\nlines.png\0b.png\0")
    ['two\nlines.png', 'b.png']
    """
    text = _decoded(content)
    items = text.split("\0") if "\0" in text else [line.removesuffix("\r") for line in text.split("\n")]
    return [item for item in items if item]


def _decoded(content: bytes) -> str:
    if os.name != "nt":
        return os.fsdecode(content)
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError:  # `dir /b` writes what consoles read
        return content.decode(_CONSOLE)
