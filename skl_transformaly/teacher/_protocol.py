"""What an extractor is, and what is assumed of one that lacks an optional member."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol

import numpy as np
from torch import Tensor, nn

from skl_transformaly.teacher._network import BlockVisitor

__all__ = [
    "Extractor",
    "chunk_size",
    "count_classes",
    "count_prefix_tokens",
    "count_places",
    "find_places",
    "missing_members",
]


class Extractor(Protocol):
    """A frozen teacher, as students and detectors use it.

    :class:`TimmExtractor` is one. A class of your own can stand in for it if it has the members below, with the same
    meanings, and can be cloned by scikit-learn.

    Attributes
    ----------
    batch_size : int
        How many images are decoded and run at a time.
    blocks_ : sequence of nn.Module
        The teacher's blocks, in order of depth; after `fit`.

    Notes
    -----
    These members are optional:

    - ``to_maps(activations)`` turns what a block gets or returns into maps (B, C, h, w). Without it there are no
      anomaly maps, and no token is known to be a class token.
    - ``places_known_``: whether `to_maps` is right; True if absent.
    - ``chunk_size_``: the most images that should run at a time, whatever `batch_size`; None or absent for no limit.
    - ``n_classes_`` and ``classify(z_p)``: the number of classes of the teacher's classifier, and square roots (B, K)
      of their probabilities. Without them there is no feature space "classes".
    - ``n_places_``: the number of places in the map that the teacher ends with; absent or 0 if there is no map. `visit`
      is called with this map last, and the index is then the number of blocks. The feature space "variation" needs at
      least 4 places.
    - ``image_size_``: (height, width) to which `preprocess` resizes images, for which large JPEGs can be decoded at a
      part of their size.
    - ``precision_``: "float64" if everything is computed in it.
    - ``identity()``: what distinguishes this fitted teacher from others, as nests of numbers and strings, for caches.
      Without it the whole object is hashed.
    """

    batch_size: int

    @property
    def blocks_(self) -> Sequence[nn.Module]: ...

    def fit(self, X: Any, y: Any = None) -> Any:
        """Load the teacher; `X` are the images that a detector or students are fitted on."""

    def preprocess(self, pixels: np.ndarray | list[np.ndarray]) -> Tensor:
        """Turn decoded images, (B, H, W, C) or a list of (H, W, C), into the batch that `embed` takes."""

    def embed(self, batch: Tensor, visit: BlockVisitor | None = None) -> Tensor:
        """Run the teacher and return embeddings (B, D).

        ``visit(index, block, args, kwargs, output)`` is called as each block finishes, and may raise to end the run.
        """

    def new_blocks(self, seed: int) -> list[nn.Module]:
        """All blocks with weights drawn anew from `seed`, in training mode, on the teacher's device."""

    def compute(self) -> AbstractContextManager:
        """Context in which teacher and students compute, such as ``torch.autocast``."""


# attributes that end in _ may be there only after fit
_REQUIRED = [
    name for name in (*Extractor.__annotations__, *vars(Extractor)) if name[0] != "_" and not name.endswith("_")
]


def missing_members(extractor: Any) -> list[str]:
    """Names of the required members that an extractor, perhaps not fitted yet, lacks."""
    return [name for name in _REQUIRED if not hasattr(extractor, name)]


def chunk_size(extractor: Extractor) -> int | None:
    """The most images that the extractor should run at a time; None means no limit."""
    return getattr(extractor, "chunk_size_", None)


def count_classes(extractor: Extractor) -> int:
    """Number of classes that the teacher's classifier knows; 0 without a classifier."""
    return getattr(extractor, "n_classes_", 0)


def count_places(extractor: Extractor) -> int:
    """Number of places that the feature space "variation" is computed over; 0 if the teacher lacks this space."""
    return getattr(extractor, "n_places_", 0)


def find_places(extractor: Extractor) -> Callable[[Tensor], Tensor] | None:
    """The extractor's `to_maps`; None if it has none, or is known not to find the right places."""
    to_maps = getattr(extractor, "to_maps", None)
    return to_maps if to_maps is not None and getattr(extractor, "places_known_", True) else None


def count_prefix_tokens(tokens: Tensor, extractor: Extractor) -> int:
    """How many of the tokens (B, T, C) belong to no place; 0 if the extractor cannot tell."""
    to_maps = getattr(extractor, "to_maps", None)
    if to_maps is None:
        return 0
    try:
        maps = to_maps(tokens)
    except ValueError:
        return 0
    return tokens.shape[1] - maps.shape[2] * maps.shape[3]
