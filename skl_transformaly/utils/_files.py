"""Write files whole or not at all, and tell files apart."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

__all__ = ["file_sha256", "replacing"]


def file_sha256(path: str | os.PathLike) -> str:
    """Return the SHA-256 of a file's content, in hexadecimal digits."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while piece := file.read(2**20):
            digest.update(piece)
    return digest.hexdigest()


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a binary file that replaces `path` if the block succeeds, and leaves no trace if it fails.

    The file is written under a temporary name in the same folder, synced to the disk, and moved. At any moment, and
    after a crash, `path` is either the old file or the new one. Links are followed, as by ``open``. Raises OSError if
    the file cannot be written.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
        # tempfile would make a file that only its owner can read, whatever the umask
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0), 0o666)
        try:
            with open(descriptor, "wb") as file:
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


def _sync_folder(folder: Path) -> None:
    """Write the new name itself to the disk. On Windows, where folders cannot be opened, the system does it."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
