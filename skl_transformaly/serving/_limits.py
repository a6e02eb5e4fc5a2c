"""What a server accepts, and how it refuses what is more."""

from __future__ import annotations

from dataclasses import dataclass, fields

__all__ = ["Limits", "Refusal"]


@dataclass(frozen=True)
class Limits:
    """How much one request, and all of them together, may ask for.

    Parameters
    ----------
    body : int
        Bytes of a request's body. More is answered with 413.
    images : int
        Images in a request. More is answered with 422.
    pixels : int
        Pixels of an image, by what it declares. More makes it unreadable.
    queue : int
        Images that were accepted and have no score yet. More is answered with 429.
    timeout : float
        Seconds to read a request (408) and to score it (504), together.
    connections : int
        Open connections. More is answered with 503.
    held : int
        Bytes of all bodies that are being read or wait for their scores. More is answered with 503.

    Raises
    ------
    ValueError
        A limit is not positive.
    """

    body: int = 32 * 2**20
    images: int = 32
    pixels: int = 50_000_000
    queue: int = 256
    timeout: float = 30.0
    connections: int = 512
    held: int = 256 * 2**20

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if not value > 0:
                raise ValueError(f"The limit {field.name!r} must be positive, got {value!r}.")


class Refusal(Exception):
    """Why a request is not answered with scores.

    Parameters
    ----------
    status : int
        HTTP status.
    reason : str
        One word for the metrics.
    message : str
        What was expected, what came, what to do.
    retry : bool, default=False
        Whether the same request may be accepted a second later.

    Attributes
    ----------
    unread : bool
        Whether a part of the body is still to come.
    """

    def __init__(self, status: int, reason: str, message: str, *, retry: bool = False):
        super().__init__(message)
        self.status = status
        self.reason = reason
        self.retry = retry
        self.unread = False
