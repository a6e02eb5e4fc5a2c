"""Limits of a server, and refusals of requests beyond them."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Limits", "Refusal"]


@dataclass(frozen=True)
class Limits:
    """Limits of one request, and of all requests together."""

    body: int = 32 * 2**20  # bytes of a request's body (else 413)
    images: int = 32  # in a request (422)
    pixels: int = 50_000_000  # of an image, as its header declares; an image with more is unreadable
    queue: int = 256  # accepted images without a score (429)
    timeout: float = 30.0  # seconds to read a request (408) and to score it (504), together
    connections: int = 512  # open at a time (503)
    held: int = 256 * 2**20  # bytes of all bodies that are being read or scored (503)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"The limit {field.name!r} must be positive, got {value!r}.")


class Refusal(Exception):
    """A request is not answered with scores.

    It has an HTTP status, one word for the metrics, a message, and whether the same request may be accepted a second
    later (`retry`). `unread` is whether a part of the body is still to come.
    """

    def __init__(self, status: int, reason: str, message: str, *, retry: bool = False):
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry = retry
        self.unread = False
