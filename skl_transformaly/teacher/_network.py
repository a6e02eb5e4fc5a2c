"""The frozen network: it embeds and classifies, and its blocks can be watched while it runs."""

from __future__ import annotations

import contextlib
import functools
import itertools
import math
import threading
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from skl_transformaly.teacher._architecture import CLASS_HEAD, find_blocks, variation_indices
from skl_transformaly.teacher._inside import deviation, last_of_mlp, shown, shown_deviation

__all__ = ["BlockVisitor", "Teacher"]

# visitor(index, block, args, kwargs, output): called as each block of a running teacher has finished
BlockVisitor = Callable[[int, nn.Module, tuple, dict, Tensor], None]

# Temperature of class probabilities. Of 1, 2, 4 and 8, with a Gaussian in them alone, the best or within 0.1 points of
# AUROC of it where one class is normal (benchmarks/accuracy/DENSITIES.md).
_TEMPERATURE = 2.0


class _Seen(Exception):
    """Ends a run of the teacher early."""


def _quarters(height: int, width: int) -> list[tuple[slice, slice]]:
    """The corners of an image or map, row by row."""
    halves = [[slice(0, max(length // 2, 1)), slice(length // 2, None)] for length in (height, width)]
    return list(itertools.product(*halves))


class Teacher:
    """A frozen timm model in eval mode, at its final input size, whose blocks can be watched while it runs.

    `weights_sha256` is that of the weights at their native image size, `content_sha256` that of the weights in `model`,
    whose position embeddings may be resampled; None if they are not.
    """

    def __init__(
        self, model: nn.Module, data_config: dict[str, Any], weights_sha256: str, content_sha256: str | None = None
    ):
        self.model: Any = model.eval().requires_grad_(False)
        self.data_config = data_config
        self.weights_sha256 = weights_sha256
        self.content_sha256 = weights_sha256 if content_sha256 is None else content_sha256
        self.blocks = find_blocks(model)
        # Hooks are set once and look up the visitor of their own thread, since threads share this teacher.
        self._watching = threading.local()
        self._probed: dict[Any, tuple[int, int, int]] = {}
        for index, block in enumerate(self.blocks):
            block.register_forward_hook(self._hook(index), with_kwargs=True)
        for index in variation_indices(len(self.blocks)):
            layer = last_of_mlp(self.blocks[index])
            if layer is not None:
                layer.register_forward_pre_hook(self._inner_hook())

    def _hook(self, index: int):
        def hook(block, args, kwargs, output):
            visit = getattr(self._watching, "visit", None)
            if visit is not None:
                found, self._watching.inside = getattr(self._watching, "inside", None), None
                with shown(found):
                    visit(index, block, args, kwargs, output)

        return hook

    def _inner_hook(self):
        # a function, not a method: copies of a block would copy a method's object, this teacher
        def hook(layer, args):
            if getattr(self._watching, "visit", None) is not None:
                self._watching.inside = deviation(args[0], self.to_maps)

        return hook

    @torch.no_grad()
    def embed(self, pixels: Tensor, visit: BlockVisitor | None = None) -> Tensor:
        """Pooled pre-logits embedding (B, D) of normalised `pixels` (B, C, H, W).

        `visit` is called as each block finishes, in order, and at last, under the number of blocks, with what
        ``forward_features`` returns; an exception that it raises ends the run.
        """
        self._watching.visit = visit
        try:
            features = self.model.forward_features(pixels)
            if visit is not None:
                visit(len(self.blocks), self.model, (features,), {}, features)
            # a copy: a class token is a view, and whoever keeps it would keep all tokens of the batch
            return self.model.forward_head(features, pre_logits=True).flatten(1).clone()
        finally:
            self._watching.visit = self._watching.inside = None

    @property
    def n_classes(self) -> int:
        """Number of classes that the teacher was trained on; 0 if its classifier is not known."""
        head = getattr(self.model, CLASS_HEAD, None)
        return 0 if head is None else head.out_features

    @torch.no_grad()
    def classify(self, z_p: Tensor) -> Tensor:
        """Square roots (B, n_classes) of the softened class probabilities of embeddings (B, D); rows of length 1.

        Their Euclidean distance is the Hellinger distance of the distributions, but for a factor.
        """
        head = getattr(self.model, CLASS_HEAD)
        with torch.autocast(z_p.device.type, enabled=False):
            logits = head(z_p.to(head.weight.dtype))
            return (logits / _TEMPERATURE).softmax(dim=1).sqrt()

    def probe(self, pixels: Tensor) -> tuple[int, int, int]:
        """Length of the embedding, bytes of the largest tensor that any layer returns for one image, and places.

        The places are those that the space "variation" is computed over; 0 if the teacher lacks this space.

        By a run on `pixels` (1, C, H, W), once for each precision.
        """
        device = pixels.device.type
        key = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else pixels.dtype
        if key not in self._probed:
            here, sizes, places = threading.get_ident(), [0], [0]

            def note(module, args, output):
                # another thread may be at work with larger batches
                if threading.get_ident() == here and isinstance(output, Tensor):
                    sizes.append(output.numel() * output.element_size())

            def visit(index, block, args, kwargs, output):
                ends_with_map = index == len(self.blocks) and isinstance(output, Tensor) and output.ndim == 4
                if ends_with_map or shown_deviation() is not None:
                    places[0] = self.to_maps(output)[0, 0].numel()

            leaves = [module for module in self.model.modules() if not any(True for _ in module.children())]
            handles = [module.register_forward_hook(note) for module in leaves]
            try:
                length = self.embed(pixels, visit).shape[1]
            finally:
                for handle in handles:
                    handle.remove()
            self._probed[key] = length, max(sizes), places[0]
        return self._probed[key]

    @functools.cached_property
    def places_known(self) -> bool:
        """Whether `to_maps` finds the right places.

        Networks may reorder tokens, which no shape shows. So each quarter of a noisy image is drawn anew in turn, and
        the same quarter of the map of the first block's output must change the most.
        """
        parameter = next(self.model.parameters())
        channels, *size = self.data_config["input_size"]
        plain, other = torch.rand(2, channels, *size, generator=torch.Generator().manual_seed(0)) * 2 - 1
        pixels = plain.repeat(5, 1, 1, 1)
        for image, (rows, columns) in zip(pixels[1:], _quarters(*size)):
            image[:, rows, columns] = other[:, rows, columns]
        first: list[Tensor] = []

        def visit(index, block, args, kwargs, output):
            first.append(output)
            raise _Seen

        with contextlib.suppress(_Seen), torch.no_grad():
            self.embed(pixels.to(parameter), visit)
        try:
            maps = self.to_maps(first[0])
        except ValueError:
            return False
        change = (maps[1:] - maps[:1]).abs().mean(1)
        quarters = _quarters(*change.shape[1:])
        means = torch.stack([change[:, rows, columns].mean((1, 2)) for rows, columns in quarters], dim=1)
        return bool((means.argmax(1) == torch.arange(4, device=means.device)).all()) or change[0].numel() == 1

    def to_maps(self, activations: Tensor) -> Tensor:
        """Tokens (B, T, C) or maps as (B, C, h, w), without the tokens that stand for no place."""
        if activations.ndim == 4:
            return activations.permute(0, 3, 1, 2) if self._channels_last(activations.shape) else activations
        if activations.ndim != 3:
            raise ValueError(
                f"Activations of shape {tuple(activations.shape)} have no places; expected tokens (B, T, C) or maps."
            )
        # Hiera keeps the tokens of a mask unit together; which block it was does not matter, only its resolution
        for block, (_, size) in getattr(getattr(self.model, "reroll", None), "schedule", {}).items():
            if math.prod(size) == activations.shape[1]:
                return self.model.reroll(activations, block).permute(0, 3, 1, 2)
        grid = getattr(getattr(self.model, "patch_embed", None), "grid_size", None)
        total = activations.shape[1]
        # some networks join the class token late (CaiT): their blocks have patch tokens alone
        alone = grid is not None and grid[0] * grid[1] == total
        tokens = activations if alone else activations[:, getattr(self.model, "num_prefix_tokens", 0) :]
        count = tokens.shape[1]
        if grid is None or grid[0] * grid[1] != count:
            # blocks that merge tokens keep the shape of the image
            height, width = self.data_config["input_size"][1:]
            grid = (round((count * height / width) ** 0.5), round((count * width / height) ** 0.5))
        if grid[0] * grid[1] != count:
            raise ValueError(f"{count} tokens of {type(self.model).__name__} do not fill a grid.")
        return tokens.transpose(1, 2).unflatten(2, grid)  # no length read: an exported graph takes any batch

    def _channels_last(self, shape: torch.Size) -> bool:
        """Whether maps of this shape are (B, H, W, C), as in SAM and VOLO, which have no `output_fmt`."""
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return True
        known = {info["num_chs"] for info in getattr(self.model, "feature_info", None) or []}
        if shape[3] not in known or shape[1] in known:
            return False
        height, width = self.data_config["input_size"][1:]
        return abs(shape[1] * width - shape[2] * height) < max(height, width)
