"""Progress of long work: a bar on the terminal, or calls of a watcher."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from typing import Any

from tqdm.auto import tqdm

__all__ = ["Progress", "watched"]

# watcher(phase, done, total), called when a phase begins and whenever it moves on
Watcher = Callable[[str, float, float], None]

_WATCHER: ContextVar[Watcher | None] = ContextVar("watcher", default=None)


@contextlib.contextmanager
def watched(watcher: Watcher) -> Iterator[None]:
    """Report all progress within the block to `watcher`, instead of drawing bars.

    >>> with watched(print), Progress("Reading", 2) as progress:
    ...     progress.update()
    Reading 0 2
    Reading 1 2
    """
    token = _WATCHER.set(watcher)
    try:
        yield
    finally:
        _WATCHER.reset(token)


class Progress(tqdm):
    """A bar for one phase of some work; drawn if `show`, unless somebody watches."""

    monitor_interval = 0  # no thread of tqdm's own, which would outlive the work

    def __init__(self, phase: str, total: float, *, unit: str = "image", show: Any = False):
        self._phase = phase
        self._watcher = _WATCHER.get()
        super().__init__(total=total, desc=phase, unit=unit, disable=not show or self._watcher is not None)
        self._tell()

    def update(self, n: float = 1) -> Any:
        """Move on by `n`."""
        if self.disable:
            self.n += n
        shown = super().update(n)
        self._tell()
        return shown

    def _tell(self) -> None:
        if self._watcher is not None:
            self._watcher(self._phase, self.n, self.total)
