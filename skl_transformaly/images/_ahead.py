"""Results computed ahead of whoever takes them, on threads, in order and within bounds."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from itertools import islice

import numpy as np

__all__ = ["ahead"]

# The most results that wait to be taken, and, beyond one for each thread, the most bytes of these.
_MOST = 64
_MOST_BYTES = 2**26


def ahead(
    function: Callable[[int], np.ndarray], items: Iterable[int], *, threads: int
) -> Iterator[tuple[int, Callable[[], np.ndarray]]]:
    """Yield each item and a callable that returns ``function(item)``, or raises what that raised.

    The error of an item is raised when that item is taken, so that the others can still be taken. `function` is called
    on threads, which end when the generator is closed. In a process that is forked between two items, where the threads
    do not exist, the callables compute their results themselves.

    >>> [(i, result()) for i, result in ahead(lambda i: np.array(i * i), range(3), threads=2)]
    [(0, array(0)), (1, array(1)), (2, array(4))]
    """
    process = os.getpid()
    pool = ThreadPoolExecutor(threads, thread_name_prefix="skl-transformaly-decode")
    rest = iter(items)
    waiting: deque[tuple[int, Future[np.ndarray]]] = deque()
    room = threads
    try:
        while True:
            waiting.extend((item, pool.submit(function, item)) for item in islice(rest, max(0, room - len(waiting))))
            if not waiting:
                return
            item, future = waiting.popleft()
            yield item, future.result
            if os.getpid() != process:
                break
            if future.done() and future.exception() is None:
                room = max(threads, min(_MOST, _MOST_BYTES // max(1, future.result().nbytes)))
            del future  # the next result may take long, and this one much memory
        for item in (*(item for item, _ in waiting), *rest):
            yield item, partial(function, item)
    finally:
        if os.getpid() == process:
            pool.shutdown(cancel_futures=True)
