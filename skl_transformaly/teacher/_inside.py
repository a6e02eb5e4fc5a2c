"""What a transformer block computes inside: how the hidden units of its MLP vary over the image."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from typing import Any

from torch import Tensor, nn

from skl_transformaly.utils._torch import at_least_float32

__all__ = ["deviation", "last_of_mlp", "shown", "shown_deviation"]

_thread = threading.local()


def last_of_mlp(block: nn.Module) -> nn.Linear | None:
    """The linear layer that a block's MLP ends with, whose input are the hidden units; None without such an MLP."""
    layer = getattr(getattr(block, "mlp", None), "fc2", None)
    return layer if isinstance(layer, nn.Linear) else None


def deviation(hidden: Tensor, to_maps: Callable[[Tensor], Tensor]) -> Tensor | None:
    """Standard deviation (B, K) over places of hidden units (B, T, K); None if they are not tokens that fill a grid."""
    if hidden.ndim != 3:
        return None
    try:
        maps = to_maps(hidden)
    except ValueError:
        return None
    places = at_least_float32(hidden[:, hidden.shape[1] - maps.shape[2] * maps.shape[3] :])
    # many times as fast as `std`, whose running sums go along the rows; in place, since fresh memory costs as much
    return (places - places.mean(1, keepdim=True)).square_().mean(1).sqrt()


def shown_deviation() -> Tensor | None:
    """The deviation in the block that a visitor was called for; None if it has none. To be asked by the visitor."""
    return getattr(_thread, "deviation", None)


@contextlib.contextmanager
def shown(found: Any) -> Iterator[None]:
    """Show `found` to visitors that this thread calls within."""
    _thread.deviation = found
    try:
        yield
    finally:
        _thread.deviation = None
