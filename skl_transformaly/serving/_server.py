"""The process of a server: its socket, its signals, and connections that are too slow."""

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

# Seconds in which the headers of a request are to arrive, an answer is to be taken on, and an idle connection is closed
_HEADERS, _IDLE = 10.0, 5
_MOST_HEADERS = 2**14


def listen(host: str, port: int) -> socket.socket:
    """A socket that waits for connections; port 0 is any that is free."""
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        return socket.create_server(address[:2], family=family, backlog=1024)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise OSError(f"Cannot listen on {host}:{port}: {reason}. Choose another --host or --port.") from error


def run(app: ASGIApp, listener: socket.socket, limits: Limits) -> None:
    """Serve until SIGTERM or Ctrl-C, then answer what was accepted, close the listener, and return."""
    for name in ("uvicorn", "python_multipart"):  # malformed requests are counted, and not worth a line each
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
    # uvicorn raises the signals that stopped it once more, when it is done; a server is stopped by them, not killed
    before = {number: signal.signal(number, _ignore) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        uvicorn.Server(config).run(sockets=[listener])
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        listener.close()


def _ignore(*_: Any) -> None:
    pass


class _Protocol(H11Protocol):
    """HTTP whose clients cannot keep a connection by sending headers, or taking answers, slower than anybody would."""

    def connection_made(self, transport: Any) -> None:
        """Watch the connection."""
        super().connection_made(transport)
        self._idle_since: float = self.loop.time()
        self._unsent = 0
        self._watch: asyncio.TimerHandle = self.loop.call_later(_HEADERS, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        """Watch no longer."""
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
