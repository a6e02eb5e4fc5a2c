"""Features that the frozen teacher computes anyway, by feature space."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from skl_transformaly.teacher._architecture import layer_indices
from skl_transformaly.teacher._inside import shown_deviation
from skl_transformaly.teacher._network import BlockVisitor
from skl_transformaly.teacher._protocol import count_classes, count_places, count_prefix_tokens
from skl_transformaly.utils._torch import at_least_float32

__all__ = ["SPACES", "TEACHER_SPACES", "TeacherFeatures", "missing_spaces"]

TEACHER_SPACES = ("pretrained", "classes", "layers", "variation")
# in the order in which they are always listed
SPACES = (*TEACHER_SPACES, "discrepancy")

# Over fewer places, a standard deviation says little.
_LEAST_PLACES = 4


def missing_spaces(extractor: Any) -> dict[str, str]:
    """Return the spaces that a fitted teacher does not have, each with the reason."""
    missing = {}
    if not count_classes(extractor):
        missing["classes"] = "its weights came without a classifier"
    if not layer_indices(len(extractor.blocks_)):
        missing["layers"] = "it has one block"
    if count_places(extractor) < _LEAST_PLACES:
        missing["variation"] = "neither its last layer nor its blocks' MLPs make a map of 4 places or more"
    return missing


class TeacherFeatures:
    """Collects features of `length` images in all, while the teacher runs.

    `features` holds an array (length, D_space) for each space, float32 (float64 of a float64 teacher), NaN for images
    that the teacher did not see; `sizes`, after the first batch, the number of features in each group of a space.
    """

    def __init__(self, extractor: Any, spaces: Sequence[str], length: int):
        self.extractor = extractor
        self.spaces = [space for space in TEACHER_SPACES if space in spaces]
        self.length = length
        self.features: dict[str, np.ndarray] = {}
        self.sizes: dict[str, list[int]] = {}
        self._last = len(extractor.blocks_)
        self._chosen = set(layer_indices(self._last)) if "layers" in self.spaces else set()

    def collect(self, positions: np.ndarray) -> tuple[BlockVisitor | None, Callable[[Tensor], None]]:
        """Begin to watch the teacher run on the images at `positions`.

        Returns a visitor for ``extractor.embed``, or None, and ``finish(z_p)``, which stores the features of these
        images.
        """
        visit, features = self.watch()

        def finish(z_p: Tensor) -> None:
            for space, parts in features(z_p).items():
                rows = torch.cat([at_least_float32(part) for part in parts], dim=1).cpu().numpy()
                if space not in self.features:
                    self.features[space] = np.full((self.length, rows.shape[1]), np.nan, dtype=rows.dtype)
                self.features[space][positions] = rows

        return visit, finish

    def watch(self) -> tuple[BlockVisitor | None, Callable[[Tensor], dict[str, list[Tensor]]]]:
        """Begin to watch one run of the teacher.

        Returns a visitor for ``extractor.embed``, or None, and ``features(z_p)``, which returns the groups of features,
        (B, size), of each space.
        """
        groups: list[Tensor] = []
        variation: list[Tensor] = []

        def visit(index, block, args, kwargs, output):
            if index in self._chosen:
                groups.extend(self._pooled(output, with_class_token=True))
            if "variation" in self.spaces and (inside := shown_deviation()) is not None:
                variation.append(inside)
            if index != self._last:
                return
            if "variation" in self.spaces and (output.ndim == 4 or not variation):
                variation.clear()  # what the last layer returns goes before what blocks show
                variation.append(self._maps(at_least_float32(output)).flatten(2).std(2, unbiased=False))
            if self._chosen and output.ndim == 3 and count_prefix_tokens(output, self.extractor):
                groups.extend(self._pooled(output, with_class_token=False))

        def features(z_p: Tensor) -> dict[str, list[Tensor]]:
            found: dict[str, list[Tensor]] = {}
            if "pretrained" in self.spaces:
                found["pretrained"] = [z_p]
            if "classes" in self.spaces:
                found["classes"] = [self.extractor.classify(z_p)]
            if "layers" in self.spaces:
                found["layers"] = groups
            if "variation" in self.spaces:
                found["variation"] = variation
            self.sizes = {space: [part.shape[1] for part in parts] for space, parts in found.items()}
            return found

        return (visit if self._chosen or "variation" in self.spaces else None), features

    def _pooled(self, output: Tensor, *, with_class_token: bool) -> list[Tensor]:
        """Class token and mean patch token of tokens; mean over places of maps."""
        output = at_least_float32(output)
        if output.ndim == 4:
            return [self._maps(output).mean((2, 3))]
        prefix = count_prefix_tokens(output, self.extractor)
        token = [output[:, 0]] if prefix and with_class_token else []
        return [*token, output[:, prefix:].mean(1)]

    def _maps(self, output: Tensor) -> Tensor:
        to_maps = getattr(self.extractor, "to_maps", None)
        return output if to_maps is None else to_maps(output)
