"""Images of all clients, decoded by a few threads and scored in batches by the one thread that owns the model."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple, Protocol

import numpy as np

__all__ = ["Answer", "Batcher", "Closed", "Expired", "QueueFull", "Scorer"]

_log = logging.getLogger(__name__)


class Scorer(Protocol):
    """Scores a batch of decoded images."""

    def score(self, images: list[np.ndarray], maps: list[bool]) -> Sequence[Any]:
        """Return one result for each image, with a map if `maps` is True for it."""


class Answer(NamedTuple):
    """The scorer's result for an image, and notes on the image."""

    result: Any
    notes: Sequence[str]


class QueueFull(Exception):
    """Too many images are waiting."""


class Closed(Exception):
    """No image is accepted any more."""


class Expired(Exception):
    """An image was not scored in time."""


@dataclass(eq=False)
class _Job:
    """One image to be scored before `deadline`, in seconds of ``time.monotonic``."""

    content: bytes
    maps: bool
    deadline: float
    future: Future = field(default_factory=Future)
    pixels: np.ndarray | None = None
    size: int = 0  # in pixels
    notes: Sequence[str] = ()


class Batcher:
    """Decodes and scores images from several threads, in their order.

    A batch is scored as soon as it is full, no other image is being decoded, or `max_wait` seconds have passed since
    its first image was ready: a single client never waits, and many clients fill a batch while the last one is scored.

    The scorer is called from one thread only. ``decode(content)`` returns the pixels (H, W, C) and a list of notes on
    them; its error is the image's answer. At most `max_queue` images wait for a result, and at most `max_pixels` pixels
    of decoded images, unless a single image has more. ``observe(n_images, seconds)`` is called after each batch.
    """

    def __init__(
        self,
        scorer: Scorer,
        decode: Callable[[bytes], tuple[np.ndarray, Sequence[str]]],
        *,
        max_batch: int = 16,
        max_wait: float = 0.005,
        max_queue: int = 256,
        max_pixels: int = 50_000_000,
        decoders: int = 2,
        observe: Callable[[int, float], None] | None = None,
    ):
        self.scorer = scorer
        self.decode = decode
        self.max_batch = max_batch
        self.max_wait = max_wait
        self.max_queue = max_queue
        self.max_pixels = max_pixels
        self.observe = observe or (lambda n, seconds: None)
        self._changed = threading.Condition()
        self._encoded: deque[_Job] = deque()
        self._ready: deque[_Job] = deque()
        self._decoding = 0
        self._held = 0  # pixels
        self._pending = 0
        self._closing = False
        self._worker = threading.Thread(target=self._work, name="scorer", daemon=True)
        self._decoders = [
            threading.Thread(target=self._decode_all, name=f"decoder {i}", daemon=True) for i in range(decoders)
        ]
        for thread in (self._worker, *self._decoders):
            thread.start()

    @property
    def pending(self) -> int:
        """Number of accepted images without a result."""
        return self._pending

    @property
    def alive(self) -> bool:
        """Whether images that are accepted will be scored."""
        return all(thread.is_alive() for thread in (self._worker, *self._decoders))

    @property
    def accepts(self) -> bool:
        """Whether another image would be accepted."""
        return not self._closing and self.alive and self._pending < self.max_queue

    def submit(self, contents: Sequence[bytes], *, maps: bool, deadline: float) -> list[Future]:
        """Accept the contents of image files, all or none, until a deadline in the seconds of ``time.monotonic``.

        Returns futures of :class:`Answer`; cancelling one takes its image out of the queue.
        """
        jobs = [_Job(content, maps, deadline) for content in contents]
        with self._changed:
            if self._closing:
                raise Closed
            if self._pending + len(jobs) > self.max_queue:
                raise QueueFull
            self._pending += len(jobs)
            self._encoded.extend(jobs)
            self._changed.notify_all()
        for job in jobs:
            job.future.add_done_callback(partial(self._take_out, job))
        return [job.future for job in jobs]

    def _take_out(self, job: _Job, future: Future) -> None:
        """Drop a cancelled image that waits to be decoded, whose place and bytes others need."""
        if not future.cancelled():
            return
        with self._changed, contextlib.suppress(ValueError):  # a decoder has it
            self._encoded.remove(job)
            self._pending -= 1
            self._changed.notify_all()

    def close(self, timeout: float | None = None) -> bool:
        """Accept no more images, wait until all accepted ones are answered, and return whether that was in time."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        end = None if timeout is None else time.monotonic() + timeout
        for thread in (self._worker, *self._decoders):
            thread.join(None if end is None else max(0.0, end - time.monotonic()))
        return not any(thread.is_alive() for thread in (self._worker, *self._decoders))

    # ----- decoding

    def _decode_all(self) -> None:
        while (job := self._next_encoded()) is not None:
            try:
                if not self._gone(job):
                    job.pixels, job.notes = self.decode(job.content)
                    job.size = job.pixels.shape[0] * job.pixels.shape[1]
            except Exception as error:
                self._finish(job, error=error)
            job.content = b""
            self._hand_over(job)

    def _hand_over(self, job: _Job) -> None:
        """Give an image to the worker once there is room for its pixels."""
        with self._changed:
            if job.pixels is not None:
                self._changed.wait_for(lambda: not self._held or self._held + job.size <= self.max_pixels)
                self._held += job.size
                self._ready.append(job)
            self._decoding -= 1
            self._changed.notify_all()

    def _next_encoded(self) -> _Job | None:
        with self._changed:
            self._changed.wait_for(lambda: self._encoded or (self._closing and not self._pending))
            if not self._encoded:
                return None
            self._decoding += 1
            return self._encoded.popleft()

    # ----- scoring

    def _work(self) -> None:
        while batch := self._next_batch():
            start = time.monotonic()
            jobs = [job for job in batch if not self._gone(job)]
            if jobs:
                self._score(jobs)
                self.observe(len(jobs), time.monotonic() - start)
            for job in batch:
                job.pixels = None  # or the last batch would stay in memory until the next one
            with self._changed:
                self._held -= sum(job.size for job in batch)
                self._changed.notify_all()

    def _next_batch(self) -> list[_Job]:
        """Return the next images; none when the batcher is closed and all images are answered."""
        with self._changed:
            self._changed.wait_for(lambda: self._ready or (self._closing and not self._pending))
            self._changed.wait_for(self._batch_is_full, timeout=self.max_wait)
            return [self._ready.popleft() for _ in range(min(len(self._ready), self.max_batch))]

    def _batch_is_full(self) -> bool:
        on_their_way = len(self._encoded) + self._decoding
        return not on_their_way or len(self._ready) >= self.max_batch or self._held >= self.max_pixels

    def _score(self, jobs: list[_Job]) -> None:
        try:
            results = self.scorer.score([job.pixels for job in jobs], [job.maps for job in jobs])  # type: ignore[misc]
            if len(results) != len(jobs):
                raise RuntimeError(f"{len(results)} results of {len(jobs)} images.")
        except Exception as error:
            if len(jobs) > 1:  # one image must not spoil the others
                for job in jobs:
                    self._score([job])
                return
            _log.exception("An image could not be scored.")
            self._finish(jobs[0], error=error)
            return
        for job, result in zip(jobs, results):
            self._finish(job, Answer(result, job.notes))

    def _gone(self, job: _Job) -> bool:
        """Whether nobody waits for the image any more; it is answered in that case."""
        if job.future.cancelled() or time.monotonic() > job.deadline:
            self._finish(job, error=Expired())
            return True
        return False

    def _finish(self, job: _Job, result: Any = None, *, error: Exception | None = None) -> None:
        with self._changed:
            self._pending -= 1
            self._changed.notify_all()
        with contextlib.suppress(InvalidStateError):  # cancelled
            if error is None:
                job.future.set_result(result)
            else:
                job.future.set_exception(error)
