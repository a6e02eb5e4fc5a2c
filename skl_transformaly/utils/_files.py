"""Write files whole or not at all, tell files apart, and name them from any folder."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["absolute_path", "common_folder", "file_sha256", "replacing"]


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


def absolute_path(path: str | os.PathLike) -> str:
    """Return an absolute path, normalised, of the file that ``open(path)`` opens.

    Behind a link to a folder, ``..`` is the folder above that folder, which normalising alone would not find.
    """
    plain = os.path.abspath(path)
    if ".." not in Path(path).parts or os.path.realpath(path) == os.path.realpath(plain):
        return plain
    folder, name = os.path.split(path)
    if name in ("", os.curdir, os.pardir):
        return os.path.realpath(path)
    return os.path.join(os.path.realpath(folder), name)


def common_folder(paths: Iterable[str]) -> str:
    """Return the deepest folder that holds all files, by absolute paths; "" without files, or if drives differ."""
    folders = [os.path.dirname(absolute_path(path)) for path in paths]
    try:
        return os.path.commonpath(folders)
    except ValueError:
        return ""


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` if the block succeeds, and leaves no trace if it fails.

    The file is written under a temporary name in the same folder, synced to the disk, and moved. At any moment, and
    after a crash, `path` is either the old file or the new one, with the old one's permissions. Links are followed, as
    by ``open``. A device or a pipe, such as /dev/stdout, is written to as it is. Raises OSError if the file cannot be
    written.
    """
    before = _status(path)
    if before is not None and not stat.S_ISREG(before.st_mode) and not stat.S_ISDIR(before.st_mode):
        with open(path, "wb") as file:
            yield file
        return
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        # tempfile would make a file that only its owner can read, whatever the umask
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with open(descriptor, "wb") as file:
                if before is not None and hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), stat.S_IMODE(before.st_mode))
                yield file
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, target)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary)
            raise
        _sync_folder(target.parent)
    except OSError as error:
        raise OSError(
            error.errno,
            f"{os.fspath(path)} was not saved ({error.strerror}); nothing was left behind. Make room, or choose a "
            "folder that exists and can be written",
        ) from error


def _status(path: str | os.PathLike) -> os.stat_result | None:
    """Return what the system knows of an existing file, None if there is none."""
    with contextlib.suppress(OSError):
        return os.stat(path)
    return None


def _sync_folder(folder: Path) -> None:
    """Write the new name itself to the disk. On Windows, where folders cannot be opened, the system does it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
