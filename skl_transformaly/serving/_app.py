"""The ASGI application: what each path answers."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import Future
from typing import Any

from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import HTMLResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from skl_transformaly import __version__
from skl_transformaly.images._values import SKIP_ADVICE, ImageError
from skl_transformaly.serving._batcher import Answer, Batcher, Closed, Expired, QueueFull
from skl_transformaly.serving._decoding import decoder
from skl_transformaly.serving._limits import Limits, Refusal
from skl_transformaly.serving._metrics import Metrics
from skl_transformaly.serving._openapi import describe
from skl_transformaly.serving._page import POLICY, page
from skl_transformaly.serving._uploads import Held, Upload, parse, read_body

__all__ = ["create_app"]

_log = logging.getLogger(__name__)

_RETRY_AFTER = "1"
# Bytes, and seconds, of a refused body that are read and dropped, since a client that is cut off sees no answer
_LINGER_BYTES, _LINGER_SECONDS = 2**28, 2.0
_BOOLEANS = {"1": True, "true": True, "0": False, "false": False}


def create_app(
    scorer: Any,
    *,
    limits: Limits | None = None,
    max_batch: int = 16,
    max_wait: float = 0.005,
    decoders: int = 2,
) -> Starlette:
    """Make a server of a scorer; `max_wait` is in seconds. Its lifespan ends when all accepted images are answered."""
    service = _Service(scorer, limits or Limits(), max_batch=max_batch, max_wait=max_wait, decoders=decoders)
    app = Starlette(
        routes=[
            Route("/", service.index),
            Route("/score", service.score, methods=["POST"]),
            Route("/healthz", service.healthz),
            Route("/readyz", service.readyz),
            Route("/metrics", service.metrics_text),
            Route("/openapi.json", service.openapi),
        ],
        exception_handlers={HTTPException: _http_error},
        lifespan=service.lifespan,
    )
    app.router.redirect_slashes = False
    app.add_middleware(_Guard, service=service, paths=frozenset(route.path for route in app.routes))  # type: ignore[attr-defined]
    app.state.service = service
    return app


class _Service:
    """A model, the threads that run it, and the answers."""

    def __init__(self, scorer: Any, limits: Limits, **batching: Any):
        self.scorer = scorer
        self.limits = limits
        self.batching = batching
        self.held = Held(limits.held)
        self.metrics = Metrics(scorer.about, lambda: self.batcher.pending if self.batcher else 0)
        self.batcher: Batcher | None = None

    @contextlib.asynccontextmanager
    async def lifespan(self, app: Starlette) -> AsyncIterator[None]:
        """Run the threads."""
        self.batcher = Batcher(
            self.scorer,
            decoder(self.scorer.prepare, self.limits.pixels, self.scorer.at_least),
            max_queue=self.limits.queue,
            max_pixels=self.limits.pixels,
            observe=self.metrics.observe_batch,
            **self.batching,
        )
        yield
        await run_in_threadpool(self.batcher.close, self.limits.timeout)

    # ----- answers

    async def index(self, request: Request) -> Response:
        """Answer with the page for people."""
        return HTMLResponse(page(self.scorer, self.limits), headers={"content-security-policy": POLICY})

    async def openapi(self, request: Request) -> Response:
        """Answer with the OpenAPI document."""
        return _json(describe(self.limits, __version__))

    async def metrics_text(self, request: Request) -> Response:
        """Answer with counters for Prometheus."""
        return Response(self.metrics.text(), headers={"content-type": self.metrics.content_type})

    async def healthz(self, request: Request) -> Response:
        """Answer whether the threads run; if not, the process should be restarted."""
        alive = self.batcher is not None and self.batcher.alive
        return _json({"status": "ok" if alive else "broken"}, 200 if alive else 503)

    async def readyz(self, request: Request) -> Response:
        """Answer whether images are accepted now."""
        ready = self.batcher is not None and self.batcher.accepts
        answer = {"status": "ready" if ready else "busy", "version": __version__, "model": self.scorer.about}
        return _json(answer, 200 if ready else 503)

    async def score(self, request: Request) -> Response:
        """Answer with scores of the images in a request."""
        start = time.monotonic()
        taken: list[int] = []
        try:
            return await self._score(request, start + self.limits.timeout, taken)
        except Refusal as refusal:
            self.metrics.refused.labels(refusal.reason).inc()
            if refusal.unread:
                await _linger(request)
            return _refused(refusal)
        finally:
            self.held.remove(sum(taken))
            self.metrics.seconds.observe(time.monotonic() - start)

    async def _score(self, request: Request, deadline: float, taken: list[int]) -> Response:
        body = await self._read(request, deadline, taken)
        maps = self._wants_maps(request)
        uploads = await run_in_threadpool(parse, request.headers.get("content-type", ""), body, self.limits)
        del body
        answers = await self._answers(request, self._submit(uploads, maps, deadline), deadline)
        results = [self._entry(upload, answer) for upload, answer in zip(uploads, answers)]
        found = {"model": self.scorer.about.get("sha256", ""), "results": results}
        if all(result["decision"] == "unreadable" for result in results):
            self.metrics.refused.labels("unreadable").inc()
            return _json({"error": "No image could be read.", **found}, 422)
        return _json(found)

    async def _read(self, request: Request, deadline: float, taken: list[int]) -> bytes:
        declared = request.headers.get("content-length")
        reading = read_body(request.receive, declared, self.limits, self.held, taken)
        try:
            body = await asyncio.wait_for(reading, max(0.0, deadline - time.monotonic()))
        except (asyncio.TimeoutError, TimeoutError):
            text = f"The body did not arrive within {self.limits.timeout:g} seconds."
            raise Refusal(408, "slow", text, retry=True) from None
        if body is None:
            raise ClientDisconnect
        return body

    def _wants_maps(self, request: Request) -> bool:
        query = request.query_params.multi_items()
        unknown = sorted({name for name, _ in query} - {"maps"})
        if unknown or len(query) > 1 or not {value for _, value in query} <= set(_BOOLEANS):
            raise Refusal(422, "query", "The only query parameter is maps, with the value 1 or 0: /score?maps=1.")
        maps = any(_BOOLEANS[value] for _, value in query)
        if maps and not self.scorer.has_maps:
            raise Refusal(422, "maps", "This model has no maps: leave out maps=1.")
        return maps

    def _submit(self, uploads: list[Upload], maps: bool, deadline: float) -> list[Future]:
        if self.batcher is None or not self.batcher.alive:
            raise Refusal(503, "down", "The model is not running.")
        try:
            return self.batcher.submit([upload.content for upload in uploads], maps=maps, deadline=deadline)
        except QueueFull:
            raise Refusal(
                429, "queue", f"{self.limits.queue} images are waiting: try again later, or send fewer.", retry=True
            ) from None
        except Closed:
            raise Refusal(503, "closing", "The server is stopping.", retry=True) from None

    async def _answers(self, request: Request, futures: list[Future], deadline: float) -> Sequence[Any]:
        """Return the :class:`Answer` or the exception of each image, unless the client has gone."""
        together = asyncio.gather(*map(asyncio.wrap_future, futures), return_exceptions=True)
        gone: asyncio.Future[Any] = asyncio.ensure_future(_gone(request))
        try:
            await asyncio.wait(
                {together, gone}, timeout=max(0.0, deadline - time.monotonic()), return_when=asyncio.FIRST_COMPLETED
            )
            if together.done():
                return together.result()
            if gone.done():
                raise ClientDisconnect
        finally:
            gone.cancel()
            together.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await together
        raise Refusal(504, "timeout", f"There was no score within {self.limits.timeout:g} seconds.", retry=True)

    def _entry(self, upload: Upload, answer: Any) -> dict[str, Any]:
        if isinstance(answer, ImageError):
            self.metrics.images.labels("unreadable").inc()
            return _entry(upload.name, error=_sentence(str(answer).removesuffix(SKIP_ADVICE)))
        if isinstance(answer, Expired):
            raise Refusal(504, "timeout", f"There was no score within {self.limits.timeout:g} seconds.", retry=True)
        if isinstance(answer, MemoryError):
            raise Refusal(503, "memory", "There is not enough memory for an image: send a smaller one.", retry=True)
        if isinstance(answer, BaseException):
            raise Refusal(500, "fault", "An image could not be scored because of an error of the server; see its log.")
        entry = _entry(upload.name, answer)
        self.metrics.images.labels(entry["decision"]).inc()
        if entry["p_value"] is not None:
            self.metrics.p_values.observe(entry["p_value"])
        return entry


def _entry(name: str, answer: Answer | None = None, *, error: str | None = None) -> dict[str, Any]:
    """Return the entry of one image in a response."""
    if answer is None:
        return {"name": name, "decision": "unreadable", "score": None, "p_value": None, "error": error}
    result = answer.result
    entry: dict[str, Any] = {
        "name": name,
        "decision": "anomaly" if result.margin < 0 else "normal",
        "score": result.score,
        "threshold": result.score - result.margin if result.threshold is None else result.threshold,
        "p_value": result.p_value,
    }
    if result.spaces:
        entry["spaces"] = result.spaces
        entry["reason"] = result.reason
    if result.map is not None:
        entry["map"] = result.map
    if answer.notes:
        entry["notes"] = list(answer.notes)
    return entry


def _sentence(text: str) -> str:
    """Make a sentence of an error about a file, which elsewhere follows its path.

    >>> _sentence("is a PDF."), _sentence("pixels contain NaN.")
    ('The file is a PDF.', 'Pixels contain NaN.')
    """
    if text.partition(" ")[0] in ("is", "has", "holds", "cannot"):
        return f"The file {text}"
    return text[:1].upper() + text[1:]


async def _gone(request: Request) -> None:
    """Return when the client has gone; its body was read before."""
    kind = ""
    while kind != "http.disconnect":
        kind = (await request.receive())["type"]


async def _linger(request: Request) -> None:
    """Read and drop the rest of a refused body, within bounds."""
    if request.headers.get("expect", "").lower() == "100-continue":
        return
    read = 0

    async def drop() -> None:
        nonlocal read
        while read < _LINGER_BYTES:
            message = await request.receive()
            read += len(message.get("body", b""))
            if message["type"] == "http.disconnect" or not message.get("more_body", False):
                return

    with contextlib.suppress(asyncio.TimeoutError, TimeoutError, RuntimeError):
        await asyncio.wait_for(drop(), _LINGER_SECONDS)


def _json(content: Any, status: int = 200, **headers: str) -> Response:
    # ASCII, since names may contain lone surrogates and markup
    body = json.dumps(content, allow_nan=False).encode("ascii")
    return Response(body, status, headers={"content-type": "application/json", **headers})


def _refused(refusal: Refusal) -> Response:
    headers = {"retry-after": _RETRY_AFTER} if refusal.retry else {}
    # or the rest of the body would be taken for the next request
    return _json({"error": str(refusal)}, refusal.status, connection="close", **headers)


async def _http_error(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    headers = dict(error.headers or {})
    texts = {
        404: "There is nothing at this path; /openapi.json lists all paths.",
        405: f"{request.method} is not allowed here; use {headers.get('Allow', 'another method')}.",
    }
    text = texts.get(error.status_code, error.detail)
    return _json({"error": text}, error.status_code, connection="close", **headers)


class _Guard:
    """Around all paths: counts requests, adds headers, and turns unexpected errors into a plain 500."""

    def __init__(self, app: ASGIApp, service: _Service, paths: frozenset[str]):
        self.app = app
        self.service = service
        self.paths = paths

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = scope["path"] if scope["path"] in self.paths else "other"
        started = False

        async def counted(message: Message) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                headers = MutableHeaders(scope=message)
                headers["x-content-type-options"] = "nosniff"
                headers["cache-control"] = "no-store"
                self.service.metrics.requests.labels(path, str(message["status"])).inc()
            await send(message)

        in_progress = self.service.metrics.in_progress
        in_progress.inc()
        try:
            await self.app(scope, receive, counted)
        except ClientDisconnect:
            self.service.metrics.refused.labels("gone").inc()
        except Exception:
            _log.exception("A request could not be answered.")
            if not started:
                response = _json({"error": "This is an error of the server; see its log."}, 500, connection="close")
                await response(scope, receive, counted)
        finally:
            in_progress.dec()
