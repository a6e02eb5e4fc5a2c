"""The body of a request as named files, within limits; nothing in it is used as a path."""

from __future__ import annotations

import base64
import binascii
import json
from typing import Any, NamedTuple, NoReturn

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import Field, File, FormParser, parse_options_header
from starlette.types import Receive

from skl_transformaly.serving._limits import Limits, Refusal

__all__ = ["Held", "Upload", "parse", "read_body"]

_MULTIPART = "multipart/form-data"
# A multipart body is parsed in pieces of this many bytes
_PIECE = 2**16
# Most characters of the name of an image
_MOST_NAME = 1024
# Most commas, brackets and braces per image in a JSON body: base64 has none of these characters, and a document of
# nothing else would take 30 times its size in memory
_MOST_MARKS = 64

_EXPECTED = (
    "Expected multipart/form-data with one file an image (curl -F image=@photo.jpg), or application/json "
    '{"images": [{"name": "photo.jpg", "data": "<base64>"}]}'
)


class Upload(NamedTuple):
    """An uploaded image file."""

    name: str
    content: bytes


class Held:
    """Bytes of all bodies that are in memory."""

    def __init__(self, most: int):
        self.most = most
        self.count = 0

    def add(self, n: int) -> bool:
        """Count `n` bytes more if there is room for them, and return whether there is."""
        if self.count + n > self.most:
            return False
        self.count += n
        return True

    def remove(self, n: int) -> None:
        """Count `n` bytes less."""
        self.count -= n


async def read_body(
    receive: Receive, declared: str | None, limits: Limits, held: Held, taken: list[int]
) -> bytes | None:
    """Read a body of at most ``limits.body`` bytes; None if the client has gone.

    `declared` is the header Content-Length. The bytes that are read are counted by `held`, and their numbers appended
    to `taken`, even if the body is refused.
    """
    body = bytearray()
    more = True
    try:
        if declared is not None and declared.isdecimal() and int(declared) > limits.body:
            raise _too_large(limits)
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return None
            chunk = message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) + len(chunk) > limits.body:
                raise _too_large(limits)
            if not held.add(len(chunk)):
                raise Refusal(503, "memory", "Too many bytes of other requests are waiting: try again.", retry=True)
            taken.append(len(chunk))
            body += chunk
    except Refusal as refusal:
        refusal.unread = more
        raise
    return bytes(body)


def _too_large(limits: Limits) -> Refusal:
    return Refusal(413, "body", f"The body is larger than {limits.body} bytes: send fewer or smaller images.")


def parse(content_type: str, body: bytes, limits: Limits) -> list[Upload]:
    """Return the images of a body, at least one; those without a name are called "image 0", ...

    >>> parse("application/json", b'{"images": [{"name": "a.png", "data": "UE5H"}]}', Limits())
    [Upload(name='a.png', content=b'PNG')]
    """
    kind, options = parse_options_header(content_type)
    if kind == _MULTIPART.encode():
        uploads = _parse_multipart(options.get(b"boundary", b""), body, limits)
    elif kind == b"application/json":
        uploads = _parse_json(body, limits)
    else:
        raise Refusal(415, "type", f"The Content-Type is not supported. {_EXPECTED}.")
    if not uploads:
        raise Refusal(422, "empty", f"There is no image in the request. {_EXPECTED}.")
    named = [Upload(name or f"image {i}", content) for i, (name, content) in enumerate(uploads)]
    if any(len(upload.name) > _MOST_NAME for upload in named):
        raise Refusal(422, "name", f"A name is longer than {_MOST_NAME} characters.")
    return named


def _too_many(limits: Limits) -> NoReturn:
    raise Refusal(422, "count", f"The request has more than {limits.images} images: send them in several requests.")


# ----- multipart


def _parse_multipart(boundary: bytes, body: bytes, limits: Limits) -> list[Upload]:
    """Return the files of a multipart body, which must be complete."""
    if not boundary:
        raise Refusal(400, "multipart", "The header Content-Type of a multipart body lacks its boundary.")
    uploads: list[Upload] = []
    ends: list[bool] = []

    def take(file: File) -> None:
        if len(uploads) >= limits.images:
            _too_many(limits)
        file.file_object.seek(0)
        uploads.append(Upload((file.file_name or b"").decode("utf-8", "replace"), file.file_object.read()))

    def refuse(field: Field) -> None:
        raise Refusal(422, "field", f"A field of the form is not a file. {_EXPECTED}.")

    in_memory = {"MAX_MEMORY_FILE_SIZE": len(body)}
    try:
        parser = FormParser(_MULTIPART, refuse, take, lambda: ends.append(True), boundary, config=in_memory)
        for start in range(0, len(body), _PIECE):
            parser.write(body[start : start + _PIECE])
        parser.finalize()
    except FormParserError as error:
        raise Refusal(400, "multipart", f"The multipart body is malformed: {error}.") from None
    if not ends:
        raise Refusal(400, "multipart", "The multipart body is cut off: its last boundary is missing.")
    return uploads


# ----- JSON


def _parse_json(body: bytes, limits: Limits) -> list[Upload]:
    if max(body.count(mark) for mark in (b",", b"[", b"{")) > _MOST_MARKS * (limits.images + 1):
        _too_many(limits)
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        text = "it is nested too deeply" if isinstance(error, RecursionError) else str(error)[:200]
        raise Refusal(400, "json", f"The body is not JSON: {text}.") from None
    images = document.get("images") if isinstance(document, dict) and len(document) == 1 else None
    if not isinstance(images, list):
        raise Refusal(422, "json", f"The JSON is not an object with the one key 'images', a list. {_EXPECTED}.")
    if len(images) > limits.images:
        _too_many(limits)
    return [_json_upload(i, image) for i, image in enumerate(images)]


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a value of JSON")


def _json_upload(i: int, image: Any) -> Upload:
    if isinstance(image, str):
        image = {"data": image}
    if not isinstance(image, dict) or not {"data"} <= set(image) <= {"name", "data"}:
        raise Refusal(
            422, "json", f"Image {i} of the JSON is not an object with the keys 'name' and 'data'. {_EXPECTED}."
        )
    name, data = image.get("name"), image["data"]
    name = "" if name is None else name
    if not isinstance(name, str) or not isinstance(data, str):
        raise Refusal(422, "json", f"'name' and 'data' of image {i} of the JSON must be strings.")
    if data.startswith("data:"):  # as browsers write files
        _, encoded, data = data.partition(";base64,")
        data = data if encoded else "?"  # which is not base64 either
    try:
        return Upload(name, base64.b64decode(data, validate=True))
    except (binascii.Error, ValueError):
        raise Refusal(422, "base64", f"'data' of image {i} of the JSON is not base64.") from None
