"""What a server accepts, and how it refuses what is more."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Limits", "Refusal"]


@dataclass(frozen=True)
class Limits:
    """How much one request, and all of them together, may ask for."""

    body: int = 32 * 2**20  # bytes of a request's body (else 413)
    images: int = 32  # in a request (422)
    pixels: int = 50_000_000  # of an image, by what it declares; more makes it unreadable
    queue: int = 256  # images that were accepted and have no score yet (429)
    timeout: float = 30.0  # seconds to read a request (408) and to score it (504), together
    connections: int = 512  # that are open (503)
    held: int = 256 * 2**20  # bytes of all bodies that are being read or wait for their scores (503)

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"The limit {field.name!r} must be positive, got {value!r}.")


class Refusal(Exception):
    """Why a request is not answered with scores.

    An HTTP status, one word for the metrics, what came and what to do, and whether the same request may be accepted a
    second later (`retry`). `unread` is whether a part of the body is still to come.
    """

    def __init__(self, status: int, reason: str, message: str, *, retry: bool = False):
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry = retry
        self.unread = False
