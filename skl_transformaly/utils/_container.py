"""The container of a saved detector: one safetensors file of arrays and a JSON document, checked before it is believed.

The layout is that of safetensors, so that any tool for it can list and read the arrays: 8 bytes with the length of the
header, the header in JSON, the arrays. The header begins with `_MAGIC`; its metadata hold the format's version, a
SHA-256 and the document. The SHA-256 is that of the whole file with zeros in its own place. It finds damage; it is no
signature.

Nothing in this module knows about detectors, and none of it needs torch.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
import re
import secrets
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

__all__ = ["ModelFile", "ModelFileError", "is_model_file", "parse_json", "read_header", "replacing", "write_model_file"]

VERSION = 2

_MAGIC = b'{"__metadata__":{"format":"skl-transformaly model","version":"'
_START = re.compile(re.escape(_MAGIC) + rb'([1-9]\d{0,8})","sha256":"([0-9a-f]{64})","document":"')
_START_BYTES = 256  # more than _START can match
_DIGEST_BYTES = 64

# A header this large describes some 100,000 training images, or arrays far beyond any network's.
_MAX_HEADER = 32 * 2**20
_MAX_NODES = 1_000_000
_MAX_DEPTH = 32
_MAX_DIGITS = 20

# safetensors' names of the dtypes that a detector is made of
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_CHUNK = 2**20


class ModelFileError(ValueError):
    """A file that is not a model file, is damaged, is of a newer format, or does not hold what it should.

    Its message names the file and says what was found. Files that are not there or may not be read raise
    :class:`OSError`, as everywhere.
    """


@dataclass(frozen=True)
class ArrayInfo:
    """What the header says of one array: its dtype and shape, and its bytes' place after the header."""

    dtype: np.dtype
    shape: tuple[int, ...]
    begin: int
    end: int


class ModelFile:
    """A model file whose checksum, header and document have been checked; gives its arrays one at a time.

    Parameters
    ----------
    path : str or path

    Attributes
    ----------
    document : dict
        What was written, as JSON gives it back.
    arrays : dict of str to ArrayInfo
        What the file holds; none of it is read yet.
    size : int
        Bytes of the file.

    Raises
    ------
    OSError
        The file cannot be read.
    ModelFileError
        It is not a model file, of a newer format, damaged, or its header goes beyond the limits.
    """

    def __init__(self, path: str | os.PathLike):
        self.path = Path(path)
        with _opened(self.path) as (file, size):
            self.size = size
            start = _Start.read(file, size, self.path)
            found = _digest(file, start)
            if found != start.sha256:
                _refuse(self.path, f"is damaged: its SHA-256 is {found}, and {start.sha256} is what was written")
            header = _parse_header(file, start, self.path)
        self.document = _document(header, self.path)
        self.arrays = _array_table(header, size - start.data, self.path)
        self._sha256 = start.sha256
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> ModelFile:
        try:
            # The tensors are not read here: the file is mapped, and what is asked for is copied out.
            self._tensors = self._stack.enter_context(safe_open(str(self.path), framework="np"))
        except SafetensorError as error:
            _refuse(self.path, f"is not laid out as safetensors: {error}")
        if self._tensors.metadata().get("sha256") != self._sha256 or set(self._tensors.keys()) != set(self.arrays):
            self._stack.close()
            _refuse(self.path, "was changed while it was read")
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()
        del self._tensors

    def array(self, name: str) -> np.ndarray:
        """Give an array, in memory of its own."""
        try:
            return np.array(self._tensors.get_tensor(name))
        except SafetensorError as error:
            _refuse(self.path, f"has an array {name!r} that cannot be read: {error}")


def is_model_file(path: str | os.PathLike) -> bool:
    """Whether the file begins as a model file does, of whatever version; False also where it cannot be read."""
    try:
        with _opened(Path(path)) as (file, _):
            return file.read(8 + len(_MAGIC))[8:] == _MAGIC
    except (OSError, ModelFileError):
        return False


def read_header(path: str | os.PathLike) -> dict[str, Any]:
    """Say what a model file holds without building the detector, without torch and without reading the arrays.

    Parameters
    ----------
    path : str or path
        As :func:`skl_transformaly.save` wrote it.

    Returns
    -------
    header : dict
        - ``format_version``, ``sha256``, ``size`` (bytes of the file);
        - ``class``: name of the detector's class;
        - ``made``: when it was saved (``saved_at``, UTC), with which versions of libraries and on what processor
          (``environment``), from how many images (``n_images``, of which ``n_unreadable`` were left out);
        - ``teachers``: each teacher's model name, image size, the SHA-256 of its weights, and whether they are in the
          file;
        - ``metadata``: what was passed to ``save(..., metadata=)``;
        - ``probes``: the scores that `load` replays;
        - ``objects``: parameters and state of all parts.

    Raises
    ------
    OSError
        The file cannot be read.
    ModelFileError
        It is not a model file, of a newer format, shorter than it should be, or its header goes beyond the limits. The
        checksum is not looked at, since that would take reading the whole file: `load` does.
    """
    path = Path(path)
    with _opened(path) as (file, size):
        start = _Start.read(file, size, path)
        header = _parse_header(file, start, path)
    _array_table(header, size - start.data, path)
    return {"format_version": start.version, "sha256": start.sha256, "size": size, **_document(header, path)}


def write_model_file(path: str | os.PathLike, document: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write document and arrays to `path`, whole or not at all.

    safetensors' own writer knows no fsync, and reports a full disk as an error of its own kind; the layout is simple.

    Raises
    ------
    OSError
        The file cannot be written; nothing is left behind, and a file that was there before is as it was.
    ValueError
        The document is too large.
    TypeError
        The document is not plain JSON, or an array's dtype is not among those that a file can hold.
    """
    # large items first, so that each array's place is a multiple of its item size
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    text = json.dumps(document, allow_nan=False, separators=(",", ":"))
    table: dict[str, Any] = {
        "__metadata__": {
            "format": "skl-transformaly model",
            "version": str(VERSION),
            "sha256": "0" * _DIGEST_BYTES,
            "document": text,
        }
    }
    end = 0
    for name, array in ordered:
        if array.dtype not in _DTYPE_NAMES:
            raise TypeError(f"{name} has dtype {array.dtype}; a model file holds {', '.join(map(str, _DTYPE_NAMES))}.")
        begin, end = end, end + array.nbytes
        table[name] = {
            "dtype": _DTYPE_NAMES[array.dtype],
            "shape": list(array.shape),
            "data_offsets": [begin, end],
        }
    header = json.dumps(table, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    problem = _too_large(text.encode()) or _too_large(header)
    if problem:
        raise ValueError(f"{os.fspath(path)} was not saved: what describes the detector {problem}. Pass less metadata.")
    with replacing(path) as file:
        digest = hashlib.sha256()

        def write(data: Any) -> None:
            file.write(data)
            digest.update(data)

        write(len(header).to_bytes(8, "little"))
        write(header)
        for _, array in ordered:
            # in pieces, so that the disk and the digest work side by side on what is in the processor's cache
            flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
            for place in range(0, len(flat), _CHUNK):
                write(flat[place : place + _CHUNK].data)
        file.seek(8 + header.index(b'"sha256":"') + len(b'"sha256":"'))
        file.write(digest.hexdigest().encode())


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Open a file that takes the place of `path` when the block ends well, and leaves no trace when it does not.

    It is written under a temporary name in the same folder, synced, and moved: at any moment, and after a crash, `path`
    is the old file or the new one.

    Raises
    ------
    OSError
        The file cannot be written, or moved.
    """
    target = Path(os.path.realpath(path))  # through a link, as open() would write
    temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
    try:
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
    """Make the new name itself last; where folders cannot be opened (Windows), the system does."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class _Start:
    """What the first bytes say: where the header ends, and the version and checksum in it."""

    version: int
    sha256: str
    digest_at: int
    data: int

    @classmethod
    def read(cls, file: BinaryIO, size: int, path: Path) -> _Start:
        head = file.read(8 + _START_BYTES)
        match = _START.match(head, 8)
        if match is None:
            _refuse(path, f"is not a model file of skl-transformaly{_looks_like(head)}")
        version = int(match[1])
        if version > VERSION:
            _refuse(
                path,
                f"is of format {version}, and this skl-transformaly reads formats up to {VERSION}: upgrade it",
            )
        if version != VERSION:
            _refuse(
                path, f"is of format {version}, and this skl-transformaly reads format {VERSION}: fit and save again"
            )
        length = int.from_bytes(head[:8], "little")
        if length > _MAX_HEADER:
            _refuse(path, f"has a header of {length} bytes; at most {_MAX_HEADER} are allowed")
        if 8 + length > size:
            _refuse(path, f"is cut off: its header alone takes {8 + length} bytes, the file has {size}")
        return cls(version, match[2].decode(), match.start(2), 8 + length)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, and give its size; never wait for a pipe or read a device."""
    if path.is_dir():
        _refuse(path, "is a folder; expected a file that skl_transformaly.save wrote")
    if path.exists() and not path.is_file():
        _refuse(path, "is no regular file")
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, "is no regular file")
        yield file, status.st_size


def _digest(file: BinaryIO, start: _Start) -> str:
    """SHA-256 of the file, zeros standing in the place of its own."""
    file.seek(0)
    digest = hashlib.sha256(file.read(start.digest_at))
    digest.update(b"0" * _DIGEST_BYTES)
    file.seek(start.digest_at + _DIGEST_BYTES)
    while piece := file.read(_CHUNK):
        digest.update(piece)
    return digest.hexdigest()


def _parse_header(file: BinaryIO, start: _Start, path: Path) -> dict[str, Any]:
    file.seek(8)
    raw = file.read(start.data - 8)
    if len(raw) != start.data - 8:
        _refuse(path, "is cut off within its header")
    header = parse_json(raw, path)
    if not isinstance(header, dict):
        _refuse(path, "has a header that is not a JSON object")
    return header


def _document(header: dict[str, Any], path: Path) -> dict[str, Any]:
    metadata = header["__metadata__"]  # there, since the header begins so
    if not all(isinstance(value, str) for value in metadata.values()):
        _refuse(path, "has metadata that are not text")
    document = parse_json(metadata["document"].encode("utf-8", "surrogatepass"), path)
    if not isinstance(document, dict):
        _refuse(path, "has a document that is not a JSON object")
    return document


def _array_table(header: dict[str, Any], data_bytes: int, path: Path) -> dict[str, ArrayInfo]:
    """What the header says of the arrays, which must fill the rest of the file without gap or overlap."""
    table: dict[str, ArrayInfo] = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            _refuse(path, f"describes the array {name!r} in an unknown way")
        shape, offsets = entry["shape"], entry["data_offsets"]
        if not (isinstance(entry["dtype"], str) and entry["dtype"] in _DTYPES):
            _refuse(
                path, f"holds an array {name!r} of dtype {str(entry['dtype'])[:40]}; expected one of {list(_DTYPES)}"
            )
        if not (_are_counts(shape) and len(shape) <= _MAX_DEPTH and _are_counts(offsets) and len(offsets) == 2):
            _refuse(path, f"describes the array {name!r} by numbers that are not sizes")
        info = ArrayInfo(_DTYPES[entry["dtype"]], tuple(shape), *offsets)
        if math.prod(info.shape) * info.dtype.itemsize != info.end - info.begin:
            _refuse(
                path, f"holds an array {name!r} whose shape {info.shape} does not fit its {info.end - info.begin} bytes"
            )
        table[name] = info
    place = 0
    for info in sorted(table.values(), key=lambda info: (info.begin, info.end)):
        if info.begin != place:
            _refuse(path, f"has arrays that overlap or leave a gap at byte {place}")
        place = info.end
    if place != data_bytes:
        _refuse(path, f"is cut off or has something appended: its arrays take {place} bytes, {data_bytes} are there")
    return table


def parse_json(text: bytes, path: Path) -> Any:
    """Parse strict JSON within limits of size, depth and length of numbers; each key of an object once.

    Raises
    ------
    ModelFileError
    """
    problem = _too_large(text)
    if problem:
        _refuse(path, f"has a header that {problem}")

    def whole(digits: str) -> int:
        if len(digits) > _MAX_DIGITS:
            raise ValueError(f"a number of {len(digits)} digits")
        return int(digits)

    def real(digits: str) -> float:
        value = float(digits)
        if not math.isfinite(value):
            raise ValueError("a number too large for float64")
        return value

    def constant(name: str) -> NoReturn:
        raise ValueError(f"{name}, which is not JSON")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("an object with a key that stands twice")
        return found

    try:
        return json.loads(
            text.decode("utf-8", "surrogatepass"),
            parse_int=whole,
            parse_float=real,
            parse_constant=constant,
            object_pairs_hook=unique,
        )
    except (ValueError, RecursionError) as error:
        _refuse(path, f"has a header that cannot be read as JSON: {str(error)[:200]}")


def _too_large(text: bytes) -> str | None:
    """Say which limit `text` goes beyond, before anything parses it."""
    if len(text) > _MAX_HEADER:
        return f"takes {len(text)} bytes; at most {_MAX_HEADER} are allowed"
    nodes = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if nodes > _MAX_NODES:
        return f"has {nodes} values; at most {_MAX_NODES} are allowed"
    # without escaped characters, then without strings, brackets are structure; both patterns take linear time
    bare = re.sub(rb'"[^"]*"', b"", re.sub(rb"\\.", b"", text, flags=re.DOTALL))
    marks = np.frombuffer(bare, dtype=np.uint8)
    steps = np.isin(marks, list(b"[{")).astype(np.int32) - np.isin(marks, list(b"]}"))
    depth = int(np.cumsum(steps).max(initial=0))
    if depth > _MAX_DEPTH:
        return f"is nested {depth} deep; at most {_MAX_DEPTH} levels are allowed"
    return None


def _are_counts(values: Any) -> bool:
    return isinstance(values, list) and all(type(value) is int and value >= 0 for value in values)


def _looks_like(head: bytes) -> str:
    """What kind of file it seems to be instead, for the message."""
    kinds = {
        b"PK\x03\x04": "a zip archive (a .pth file of torch, a .npz file, or one of skops, perhaps)",
        b"\x80": "a pickle (joblib.load reads those, and runs whatever code is in them)",
        b"\x89PNG": "a PNG image",
        b"\xff\xd8\xff": "a JPEG image",
        b"\x08": "an ONNX model, perhaps",
        b"\x1f\x8b": "a gzip archive",
    }
    if not head:
        return ": it is empty"
    if head[8:9] == b"{":
        return ": it looks like a safetensors file, such as a network's weights"
    for mark, kind in kinds.items():
        if head.startswith(mark):
            return f": it looks like {kind}"
    return ""


def _refuse(path: Path, what: str) -> NoReturn:
    raise ModelFileError(f"{os.fspath(path)!r} {what}.")
