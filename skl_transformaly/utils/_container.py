"""The container of a saved detector: a safetensors file of arrays and a JSON document, checked before it is used.

Any tool for safetensors can list and read the arrays. The header begins with `_MAGIC`; its metadata hold the format's
version, a SHA-256 and the document. The SHA-256 is that of the whole file, with zeros in its own place. It finds damage
and is not a signature.

This module does not import torch, and knows nothing about detectors.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import math
import os
import re
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, NoReturn

import numpy as np
from safetensors import SafetensorError, safe_open

from skl_transformaly.utils._files import replacing

__all__ = [
    "DOCUMENT_KEYS",
    "DescriptionTooLarge",
    "ModelFile",
    "ModelFileError",
    "is_model_file",
    "read_header",
    "write_model_file",
]

VERSION = 3
DOCUMENT_KEYS = frozenset({"class", "made", "teachers", "metadata", "probes", "objects"})

_MAGIC = b'{"__metadata__":{"format":"skl-transformaly model","version":"'
_START = re.compile(re.escape(_MAGIC) + rb'([1-9]\d{0,8})","sha256":"([0-9a-f]{64})","document":"')
_START_BYTES = 256  # more than _START can match
_DIGEST_BYTES = 64
# Code points that UTF-8 cannot encode, such as of file names that are not text
_SURROGATES = re.compile("[\ud800-\udfff]")

# A header of this size describes some 100,000 training images, or far more arrays than any network has.
_MAX_HEADER = 32 * 2**20
_MAX_NODES = 1_000_000
_MAX_AXES = 32

# safetensors' names of the dtypes that a detector consists of
_DTYPES: dict[str, np.dtype] = {
    "F64": np.dtype(np.float64),
    "F32": np.dtype(np.float32),
    "I64": np.dtype(np.int64),
    "I32": np.dtype(np.int32),
    "I8": np.dtype(np.int8),
    "U8": np.dtype(np.uint8),
    "BOOL": np.dtype(np.bool_),
}
_DTYPE_NAMES = {dtype: name for name, dtype in _DTYPES.items()}

_CHUNK = 2**20

_OTHER_KINDS = {
    b"PK\x03\x04": "a zip archive (perhaps a .pth file of torch, a .npz file, or a file of skops)",
    b"\x80": "a pickle (joblib.load reads pickles, and runs any code in them)",
}


class ModelFileError(ValueError):
    """A file is not a model file, is damaged, is of another format, or has content that :func:`load` refuses.

    The message names the file and what was found in it. A file that does not exist or cannot be read raises
    :class:`OSError` instead.
    """


class DescriptionTooLarge(ValueError):
    """The description of a detector is larger than a model file may hold."""


@dataclass(frozen=True)
class ArrayInfo:
    """Dtype and shape of an array in a file."""

    dtype: np.dtype
    shape: tuple[int, ...]


class ModelFile:
    """An open model file whose checksum, header and document have been checked. It reads one array at a time.

    With ``check_sum=False`` the file is not read as a whole. What is wrong with it is a :class:`ModelFileError`; one
    that cannot be read is an OSError.
    """

    def __init__(self, path: str | os.PathLike, *, check_sum: bool = True):
        self.path = Path(path)
        with _opened(self.path) as (file, self.size):
            self.version, self.sha256, digest_at = _read_start(file, self.size, self.path)
            found = _digest(file, digest_at) if check_sum else self.sha256
        if found != self.sha256:
            _refuse(self.path, f"is damaged: its SHA-256 is {found}, and {self.sha256} was written")
        with self._layout_errors(), contextlib.ExitStack() as stack:
            self._tensors = stack.enter_context(safe_open(self.path, "numpy"))
            metadata = self._tensors.metadata() or {}
            if metadata.get("sha256") != self.sha256:
                _refuse(self.path, "was changed while it was read")
            self.document = _parse_document(metadata["document"], self.path)
            self.arrays = {name: self._info(name) for name in set(self._tensors.keys())}
            self._stack = stack.pop_all()

    def __enter__(self) -> ModelFile:
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.close()
        del self._tensors

    def array(self, name: str) -> np.ndarray:
        """Read an array into memory of its own."""
        with self._layout_errors():
            return np.array(self._tensors.get_tensor(name))

    def _info(self, name: str) -> ArrayInfo:
        entry = self._tensors.get_slice(name)
        dtype, shape = entry.get_dtype(), tuple(entry.get_shape())
        if dtype not in _DTYPES:
            _refuse(self.path, f"holds an array {name!r} of dtype {dtype}; expected one of {', '.join(_DTYPES)}")
        if len(shape) > _MAX_AXES:
            _refuse(self.path, f"holds an array {name!r} of {len(shape)} axes; at most {_MAX_AXES} are allowed")
        return ArrayInfo(_DTYPES[dtype], shape)

    @contextlib.contextmanager
    def _layout_errors(self) -> Iterator[None]:
        """Report what safetensors refuses: arrays that overlap, leave gaps or do not fill the file, and bad headers."""
        try:
            yield
        except SafetensorError as error:
            _refuse(self.path, f"is not laid out as safetensors: {error}")


def is_model_file(path: str | os.PathLike) -> bool:
    """Return whether a file begins as model files of any version do; False if it cannot be read."""
    try:
        with _opened(Path(path)) as (file, _):
            return file.read(8 + len(_MAGIC))[8:] == _MAGIC
    except (OSError, ModelFileError):
        return False


def read_header(path: str | os.PathLike, *, check_sum: bool = False) -> dict[str, Any]:
    """Read the description of a detector from a model file, without building the detector or importing torch.

    Parameters
    ----------
    path : str or path
        A file that :func:`skl_transformaly.save` wrote.
    check_sum : bool, default=False
        Whether to compare the checksum, as `load` does, which takes reading the whole file.

    Returns
    -------
    header : dict
        - ``format_version``, ``sha256``, ``size`` (bytes of the file);
        - ``class``: name of the detector's class;
        - ``made``: when the file was saved (``saved_at``, UTC), the versions of libraries and the processor
          (``environment``), and the number of images of the fit (``n_images``, of which ``n_unreadable`` could
          not be read and ``n_trimmed`` were left out by `trim`);
        - ``teachers``: each teacher's model name, image size, the SHA-256 of its weights, and whether they are in the
          file;
        - ``metadata``: the argument of ``save(..., metadata=)``;
        - ``probes``: the scores that `load` compares with;
        - ``objects``: parameters and state of all parts.

    Raises
    ------
    OSError
        The file cannot be read.
    ModelFileError
        The file is not a model file, is of another format, is cut off, does not describe a detector, or has a header
        beyond the limits; with `check_sum`, it is damaged.
    """
    with ModelFile(path, check_sum=check_sum) as file:
        if set(file.document) != DOCUMENT_KEYS:
            _refuse(file.path, "does not describe a detector")
        return {"format_version": file.version, "sha256": file.sha256, "size": file.size, **file.document}


def write_model_file(path: str | os.PathLike, document: dict[str, Any], arrays: Mapping[str, np.ndarray]) -> None:
    """Write document and arrays to `path`, whole or not at all; the same input gives the same bytes."""
    # Not by safetensors.save_file: it orders metadata at random, its files are readable by their owner alone, it does
    # not sync, a full disk is not an OSError, and before 0.8 it holds a copy of all arrays.
    ordered = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))  # keeps items aligned
    text = _to_json(document)
    fields = {"format": "skl-transformaly model", "version": str(VERSION), "sha256": "0" * 64, "document": text}
    table: dict[str, Any] = {"__metadata__": fields}
    end = 0
    for name, array in ordered:
        if array.dtype not in _DTYPE_NAMES:
            raise TypeError(f"{name} has dtype {array.dtype}; a model file holds {', '.join(map(str, _DTYPE_NAMES))}.")
        begin, end = end, end + array.nbytes
        table[name] = {"dtype": _DTYPE_NAMES[array.dtype], "shape": list(array.shape), "data_offsets": [begin, end]}
    header = _to_json(table).encode()
    header += b" " * (-len(header) % 8)
    problem = _too_large(text.encode()) or (len(header) > _MAX_HEADER and f"takes {len(header)} bytes")
    if problem:
        raise DescriptionTooLarge(
            f"{os.fspath(path)} was not saved: the description of the detector {problem}. Pass less metadata."
        )
    digest = hashlib.sha256()
    with replacing(path) as file:
        for piece in _pieces(header, [array for _, array in ordered]):
            file.write(piece)
            digest.update(piece)
        file.seek(8 + len(_MAGIC) + len(f'{VERSION}","sha256":"'))
        file.write(digest.hexdigest().encode())


def _to_json(content: Any) -> str:
    """Write JSON that UTF-8 can encode, in which text of any language is short: only surrogates are escaped."""
    text = json.dumps(content, allow_nan=False, ensure_ascii=False, separators=(",", ":"))
    return _SURROGATES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _pieces(header: bytes, arrays: list[np.ndarray]) -> Iterator[Any]:
    """Yield the bytes of a file, in pieces that stay in the processor's cache between writing and hashing."""
    yield len(header).to_bytes(8, "little")
    yield header
    for array in arrays:
        flat = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        for place in range(0, len(flat), _CHUNK):
            yield flat[place : place + _CHUNK].data


def _read_start(file: BinaryIO, size: int, path: Path) -> tuple[int, str, int]:
    """Return the version and the SHA-256 in the first bytes, and the position of the latter."""
    head = file.read(8 + _START_BYTES)
    match = _START.match(head, 8)
    if match is None:
        _refuse(path, f"is not a model file of skl-transformaly{_looks_like(head)}")
    version = int(match[1])
    if version != VERSION:
        advice = "upgrade skl-transformaly" if version > VERSION else "fit and save the detector again"
        _refuse(path, f"is of format {version}, and this version of skl-transformaly reads format {VERSION}: {advice}")
    length = int.from_bytes(head[:8], "little")
    if length > _MAX_HEADER:
        _refuse(path, f"has a header of {length} bytes; at most {_MAX_HEADER} are allowed")
    if 8 + length > size:
        _refuse(path, f"is cut off: its header alone takes {8 + length} bytes, and the file has {size}")
    return version, match[2].decode(), match.start(2)


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[BinaryIO, int]]:
    """Open a regular file, and yield it with its size; never wait for a pipe or read a device."""
    if not os.path.lexists(path):
        raise FileNotFoundError(errno.ENOENT, "The model file does not exist (`save` makes one)", str(path))
    if path.is_dir():
        _refuse(path, "is a folder; expected a file that skl_transformaly.save wrote")
    if path.exists() and not path.is_file():
        _refuse(path, "is not a regular file")
    with open(path, "rb") as file:
        status = os.fstat(file.fileno())
        if not stat.S_ISREG(status.st_mode):
            _refuse(path, "is not a regular file")
        yield file, status.st_size


def _digest(file: BinaryIO, digest_at: int) -> str:
    """SHA-256 of the file, with zeros in the place of its own."""
    file.seek(0)
    digest = hashlib.sha256(file.read(digest_at))
    digest.update(b"0" * _DIGEST_BYTES)
    file.seek(digest_at + _DIGEST_BYTES)
    while piece := file.read(_CHUNK):
        digest.update(piece)
    return digest.hexdigest()


def _parse_document(text: str, path: Path) -> dict[str, Any]:
    """Parse strict JSON: finite numbers, and each key of an object once."""
    if problem := _too_large(text.encode()):
        _refuse(path, f"has a document that {problem}")
    try:
        document = json.loads(text, parse_float=_finite, parse_constant=_finite, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        _refuse(path, f"has a document that cannot be read as JSON: {str(error)[:200]}")
    if not isinstance(document, dict):
        _refuse(path, "has a document that is not a JSON object")
    return document


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number[:20]} is not a finite number")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _too_large(text: bytes) -> str | None:
    """Return which limit `text` exceeds, if any, before it is parsed."""
    if len(text) > _MAX_HEADER:
        return f"takes {len(text)} bytes; at most {_MAX_HEADER} are allowed"
    nodes = sum(text.count(mark) for mark in (b",", b"[", b"{"))
    if nodes > _MAX_NODES:
        return f"has {nodes} values; at most {_MAX_NODES} are allowed"
    return None


def _looks_like(head: bytes) -> str:
    """Return, for a message, what other kind of file this seems to be."""
    if not head:
        return ": it is empty"
    if head[8:9] == b"{":
        return ": it looks like a safetensors file, such as a network's weights"
    for mark, kind in _OTHER_KINDS.items():
        if head.startswith(mark):
            return f": it looks like {kind}"
    return ""


def _refuse(path: Path, what: str) -> NoReturn:
    raise ModelFileError(f"{os.fspath(path)!r} {what}.")
