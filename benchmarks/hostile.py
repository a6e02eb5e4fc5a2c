"""Requests that a server should survive, of many kinds."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import struct
import zlib
from collections.abc import Callable

import numpy as np
from PIL import Image

__all__ = ["KINDS", "closing", "exchange", "form"]

Random = np.random.Generator
_NAMES = (
    "../../etc/passwd",
    "/etc/shadow",
    "C:\\boot.ini",
    "\\\\host\\share\\a",
    "a\0.png",
    "%2e%2e%2f",
    "a" * 900,
    "\u202e",
)
_HEADS = (
    b"%PDF-1.7\n", b"PK\3\4", b"<svg xmlns='http://www.w3.org/2000/svg'/>", b"%!PS-Adobe-3.0 EPSF-3.0\n", b"GIF89a",
    b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff\xe0", b"II*\0", b"MM\0*", b"RIFF\xff\xff\xff\xffWEBP", b"BM", b"P6 9 9 255\n",
    b"\0\0\0\x1cftypavif", b"\0\0\0\x0cjP  \r\n\x87\n", b"", b"\x1f\x8b",
)  # fmt: skip


def closing(head: str, *headers: str, body: bytes = b"", length: int | None = None) -> bytes:
    """A request on a connection of its own."""
    lines = [
        head,
        "Host: a",
        "Connection: close",
        *headers,
        f"Content-Length: {len(body) if length is None else length}",
    ]
    return "\r\n".join([*lines, "", ""]).encode("utf-8", "surrogateescape") + body


def form(*files: tuple[str, bytes], last: bool = True) -> tuple[str, bytes]:
    """Header and body of a form that holds files."""
    parts = [
        b'--xyz\r\nContent-Disposition: form-data; name="image"; filename="%s"\r\n\r\n%s\r\n'
        % (name.encode("utf-8", "replace").replace(b'"', b"%22"), content)
        for name, content in files
    ]
    return "Content-Type: multipart/form-data; boundary=xyz", b"".join(parts) + b"--xyz--\r\n" * last


def exchange(port: int, request: bytes, *, wait: bool = True, timeout: float = 60) -> int:
    """Send bytes, and return the status of the answer; 0 if the connection is closed without one."""
    answer = b""
    with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), timeout=timeout) as connection:
        with contextlib.suppress(ConnectionError):
            connection.sendall(request)
        while wait and b"\r\n" not in answer and (piece := connection.recv(4096)):
            answer += piece
    return int(answer[9:12]) if answer.startswith(b"HTTP/1.1 ") else 0


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def _png(width: int, height: int, rows: bytes, *others: bytes, depth: int = 8, colour: int = 0) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    chunks = [_chunk(b"IHDR", header), *others, _chunk(b"IDAT", zlib.compress(rows)), _chunk(b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


_ZEROS = zlib.compress(bytes(10**8), 9)
_BOMB = _png(6000, 6000, bytes(6000 * 6001))
_PHOTOS = []
for _kind in ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "PPM"):
    _file = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(_file, _kind)
    _PHOTOS.append(_file.getvalue())


def _score(*files: tuple[str, bytes], query: str = "", cut: int | None = None, last: bool = True) -> bytes:
    header, body = form(*files, last=last)
    return closing(f"POST /score{query} HTTP/1.1", header, body=body[:cut])


def _json(body: bytes) -> bytes:
    return closing("POST /score HTTP/1.1", "Content-Type: application/json", body=body)


def _photo(rng: Random) -> bytes:
    return _PHOTOS[rng.integers(len(_PHOTOS))]


def cut_form(rng: Random) -> bytes:
    """A form that ends somewhere."""
    return _score(("a.png", _photo(rng)), cut=int(rng.integers(200)), last=False)


def cut_request(rng: Random) -> bytes:
    """A request that is shorter than it says, on a connection that then ends."""
    return closing(
        "POST /score HTTP/1.1", "Content-Type: application/json", body=b"{", length=int(rng.integers(2, 10**9))
    )


def wrong_length(rng: Random) -> bytes:
    """A length that is not one."""
    value = ("-1", "1e9", "0x10", "99999999999999999999", "5, 6", "")[rng.integers(6)]
    return f"POST /score HTTP/1.1\r\nHost: a\r\nContent-Length: {value}\r\n\r\nabc".encode()


def declared_bomb(rng: Random) -> bytes:
    """PNGs of a few bytes that say they have up to 2^62 pixels."""
    side = int(2 ** rng.uniform(13, 31)) - 1
    return _score(("a.png", _png(side, side, b"", depth=(8, 16)[rng.integers(2)], colour=(0, 2, 6)[rng.integers(3)])))


def hollow_png(rng: Random) -> bytes:
    """PNGs within the limit of pixels that hold hardly any."""
    return _score(("a.png", _png(int(rng.integers(1, 2000)), int(rng.integers(1, 2000)), bytes(9), colour=2)))


def text_bomb(rng: Random) -> bytes:
    """PNGs with a text, or a colour profile, of 100 MB in 100 kB."""
    kind = (b"zTXt", b"iCCP", b"iTXt")[rng.integers(3)]
    content = b"a\0\1\0\0\0" + _ZEROS if kind == b"iTXt" else b"a\0\0" + _ZEROS
    return _score(("a.png", _png(4, 4, bytes(20), _chunk(kind, content))))


def pixel_bomb(rng: Random) -> bytes:
    """PNGs of 36 million black pixels in 35 kB; one in fifty, else truncated."""
    return _score(("a.png", _BOMB if rng.random() < 0.02 else _BOMB[: rng.integers(len(_BOMB))]))


def wrong_kind(rng: Random) -> bytes:
    """What is not an image, or only its first bytes."""
    return _score(("a.jpg", _HEADS[rng.integers(len(_HEADS))] + rng.bytes(rng.integers(2000))))


def damaged(rng: Random) -> bytes:
    """Image files with bytes changed."""
    content = bytearray(_photo(rng))
    for place in rng.integers(len(content), size=rng.integers(1, 30)):
        content[place] = rng.integers(256)
    return _score(("a", bytes(content)), query="?maps=1")


def paths(rng: Random) -> bytes:
    """Paths of the server, wherever a request has room for one."""
    name = str(rng.choice(_NAMES))
    where = rng.integers(4)
    if where == 0:
        return closing(f"GET /{('../' * 5)}etc/passwd HTTP/1.1")
    if where == 1:
        return closing("POST /score?path=/etc/passwd HTTP/1.1", *form((name, b"file:///etc/passwd"))[:1])
    if where == 2:
        return _json(json.dumps({"images": [{"name": name, "path": "/etc/passwd"}]}).encode())
    return _score((name, b"/etc/passwd"))


def odd_json(rng: Random) -> bytes:
    """JSON that is not, or is too deep, too long, or of other things."""
    deep, wide = b"[" * int(rng.integers(1, 5000)), b"[" + b"{}," * int(rng.integers(1, 20000)) + b"{}]"
    bodies = (
        b'{"images": [NaN]}', b'{"images": [{"data": Infinity}]}', b'{"images": ["\\ud800"]}', b"\xff\xfe{", deep, wide,
        b"9" * 5000, b"1e999", b'{"images": {"a": 1}}', b'{"images": [null]}', b'{"images": [{"data": "' + b"A" * 99999,
        b'{"images": [{"name": "\\ud800", "data": "AAAA"}]}', b'{"images": ["' + b"!" * 999 + b'"]}', b"", b"null",
        b'{"images": [' + b",".join([b'"QUFB"'] * 99) + b"]}",
    )  # fmt: skip
    return _json(bodies[rng.integers(len(bodies))])


def large_headers(rng: Random) -> bytes:
    """Headers of up to 1 MB, one or thousands."""
    if rng.random() < 0.5:
        return closing("GET / HTTP/1.1", "X: " + "a" * int(2 ** rng.uniform(10, 20)))
    return closing("GET / HTTP/1.1", *(f"X{i}: a" for i in range(rng.integers(10, 5000))))


def odd_form(rng: Random) -> bytes:
    """Forms with fields, endless part headers, too many files, other boundaries."""
    bodies = (
        b'--xyz\r\nContent-Disposition: form-data; name="a"\r\n\r\nx\r\n--xyz--\r\n', b"--xyz\r\n\r\n\r\n--xyz--\r\n",
        b"--xyz\r\n" + b"X: " + b"a" * 99999, b"--xyz\r\n" * 999, b"--abc--\r\n", b"\r\n" * 9999, b"--xyz--\r\n",
        form(*[("a", b"x")] * 99)[1], b"--xyz\r\n" + b"a: b\r\n" * 9999 + b"\r\n--xyz--\r\n", rng.bytes(999),
    )  # fmt: skip
    header = (
        "Content-Type: multipart/form-data; boundary=xyz",
        "Content-Type: multipart/form-data; boundary=" + "x" * 999,
    )
    return closing("POST /score HTTP/1.1", header[int(rng.random() < 0.1)], body=bodies[rng.integers(len(bodies))])


def not_http(rng: Random) -> bytes:
    """Bytes, TLS, HTTP/2, other methods, WebSockets, wrong chunks."""
    requests = (
        rng.bytes(rng.integers(1, 999)), b"\x16\x03\x01\x02\x00\x01\x00", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"GET / HTTP/1.1\r\n\r\n", b"GET  HTTP/1.1\r\nHost: a\r\n\r\n", closing("TRACE /score HTTP/1.1"), b"\r\n" * 99,
        closing("GET /score HTTP/1.1", "Upgrade: websocket", "Connection: Upgrade"), closing("PUT /score HTTP/1.1"),
        b"POST /score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nffffffffff\r\nabc",
        b"POST /score HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\nabc",
    )  # fmt: skip
    return requests[rng.integers(len(requests))]


def impatient(rng: Random) -> bytes:
    """Images of somebody who leaves before the answer."""
    return _score(*[("a", _photo(rng))] * int(rng.integers(1, 8)))


KINDS: tuple[Callable[[Random], bytes], ...] = (
    cut_form, cut_request, wrong_length, declared_bomb, hollow_png, text_bomb, pixel_bomb, wrong_kind, damaged, paths,
    odd_json, large_headers, odd_form, not_http, impatient,
)  # fmt: skip
