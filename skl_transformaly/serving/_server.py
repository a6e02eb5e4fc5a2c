"""The process of a server: its socket, its signals, and slow connections."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from typing import Any

import uvicorn
from starlette.types import ASGIApp
from uvicorn.protocols.http.h11_impl import H11Protocol

from skl_transformaly.serving._limits import Limits

__all__ = ["listen", "run"]

# Seconds until the headers of a request must arrive and an answer must be read, and until an idle connection is closed
_HEADERS, _IDLE = 10.0, 5
_MOST_HEADERS = 2**14


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens for connections; port 0 is any free one."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"Cannot listen on {host}:{port}: {reason}. Choose another --host or --port.") from error


def run(app: ASGIApp, listener: socket.socket, limits: Limits) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer accepted requests, close the listener, and return."""
    for name in ("uvicorn", "python_multipart"):  # malformed requests are only counted
        logging.getLogger(name).setLevel(logging.ERROR)
    config = uvicorn.Config(
        app,
        http=_Protocol,
        ws="none",
        lifespan="on",
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        limit_concurrency=limits.connections,
        timeout_keep_alive=_IDLE,
        timeout_graceful_shutdown=int(limits.timeout) + 5,
        h11_max_incomplete_event_size=_MOST_HEADERS,
    )
    # uvicorn raises the signals that stopped it again when it is done, which would kill the process
    numbers = [getattr(signal, name, None) for name in ("SIGTERM", "SIGINT", "SIGBREAK")]  # the last of Windows only
    before = {number: signal.signal(number, _ignore) for number in numbers if number is not None}
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()


def _ignore(*_: Any) -> None:
    """Handle a signal by doing nothing."""


class _Protocol(H11Protocol):
    """HTTP that closes connections on which headers arrive, or answers are read, too slowly."""

    def connection_made(self, transport: Any) -> None:
        """Watch the connection."""
        super().connection_made(transport)
        self._idle_since: float = self.loop.time()
        self._unsent = 0
        self._watch: asyncio.TimerHandle = self.loop.call_later(_HEADERS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop watching the connection."""
        self._watch.cancel()
        super().connection_lost(exc)

    def on_response_complete(self) -> None:
        """Give the next request's headers their own time."""
        self._idle_since = self.loop.time()
        super().on_response_complete()

    def _look(self) -> None:
        unsent = self.transport.get_write_buffer_size()
        stuck = 0 < self._unsent <= unsent
        idle = self.cycle is None or self.cycle.response_complete
        if stuck or (idle and not unsent and self.loop.time() - self._idle_since >= _HEADERS):
            self.transport.abort()
            return
        self._unsent = unsent
        self._watch = self.loop.call_later(_HEADERS, self._look)
