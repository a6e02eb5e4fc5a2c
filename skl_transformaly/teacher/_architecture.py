"""Networks of timm as torch modules: built at any size, with drawn weights or none yet, and their classifier."""

from __future__ import annotations

import contextlib
import copy
import functools
from collections.abc import Iterator
from numbers import Integral
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skl_transformaly.utils._compat import clear_forward_hooks
from skl_transformaly.utils._torch import seeded

__all__ = [
    "BUNDLED_MODEL",
    "CLASS_HEAD",
    "ImageSize",
    "Sides",
    "add_classifier",
    "architecture_name",
    "blank_copy",
    "building",
    "count_bytes",
    "empty_model",
    "find_blocks",
    "head_size",
    "image_sides",
    "layer_indices",
    "new_blocks",
    "outline",
    "random_model",
    "set_image_size",
    "shown_sides",
    "variation_indices",
]

# Pixels a side, or height and width; None is that of the weights.
ImageSize = int | tuple[int, int] | None
Sides = tuple[int, int] | None

# What "bundled" is short for.
BUNDLED_MODEL = "tf_efficientnet_lite0"
# Name, within a teacher, of the classifier that its weights came with.
CLASS_HEAD = "class_head"
# At most this many of the blocks before the last one make features, by their outputs and by what they compute inside.
_MOST_LAYERS, _MOST_INSIDE = 4, 2


def architecture_name(model_name: str) -> str:
    """Timm's name of a model that may be called "bundled"."""
    return BUNDLED_MODEL if model_name == "bundled" else model_name


def image_sides(image_size: Any) -> Sides:
    """(height, width) of images that `image_size`, a number of pixels for both or the pair, stands for.

    >>> image_sides(224), image_sides([32, 64]), image_sides(None)
    ((224, 224), (32, 64), None)
    """
    if image_size is None:
        return None
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, Integral) or s < 1 for s in sides):
        raise ValueError(f"image_size must be a number of pixels or (height, width), got {image_size!r}.")
    return int(sides[0]), int(sides[1])


def shown_sides(sides: Sides) -> int | tuple[int, int] | None:
    """`sides` as a user writes them: one number for a square."""
    return sides[0] if sides is not None and sides[0] == sides[1] else sides


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The parts of `model` that students imitate, in order of depth, found by structure.

    Transformer blocks (``blocks`` of ViT, DeiT, EVA, DINOv3, BEiT, mixers); stages (``blocks`` of EfficientNet and
    MobileNet, ``stages`` of ConvNeXt and MetaFormer, ``layers`` of Swin, ``layer1``... of ResNet); elsewhere the
    modules that timm's ``feature_info`` names.
    """
    found = _block_candidates(model)
    if any(isinstance(block, nn.ModuleList) for block in found):
        raise ValueError(
            f"{type(model).__name__} runs its stages block by block, with other layers in between, which students do "
            "not imitate. Choose another teacher."
        )
    if not found:
        children = [name for name, _ in model.named_children()]
        raise ValueError(
            f"{type(model).__name__} has no blocks to imitate: no blocks, stages or layers, no layer1 and layer2, and "
            f"timm lists no two features for it. Its parts are {children}. Choose another teacher."
        )
    return found


def _block_candidates(model: nn.Module) -> list[nn.Module]:
    for name in ("blocks", "stages", "layers"):
        container = getattr(model, name, None)
        if isinstance(container, (nn.Sequential, nn.ModuleList)) and len(container):
            return list(container)
    numbered = [module for name, module in model.named_children() if name.startswith("layer") and name[5:].isdigit()]
    if len(numbered) > 1:  # a single one is the stem of a larger network
        return numbered
    info = getattr(model, "feature_info", None)
    names = [entry["module"] for entry in (getattr(info, "info", info) or [])]
    modules = dict(model.named_modules())
    found = [modules[name] for name in dict.fromkeys(names) if name in modules]
    found = [module for module in found if any(p.ndim > 1 for p in module.parameters())]
    return found if len(found) > 1 else []


def layer_indices(total: int) -> list[int]:
    """Return the positions of the blocks, of `total`, whose pooled outputs make the space "layers".

    These are a third of the blocks, at most 4, just before the last one, from whose output the embedding is made.
    """
    count = min(_MOST_LAYERS, max(1, total // 3), total - 1)
    return list(range(total - 1 - count, total - 1))


def variation_indices(total: int) -> list[int]:
    """Return the positions of the blocks whose hidden units make a transformer's space "variation".

    These are the last two of :func:`layer_indices`.
    """
    return layer_indices(total)[-_MOST_INSIDE:]


def random_model(model_name: str, seed: int) -> nn.Module:
    """A timm model without a classifier, with weights drawn from `seed`, in float32 at its native size."""
    with building(seed):
        return timm.create_model(architecture_name(model_name), pretrained=False, num_classes=0)


@contextlib.contextmanager
def building(seed: int) -> Iterator[None]:
    """Seed torch and set its default dtype while timm builds a model, since timm uses both."""
    with seeded(seed):  # one thread at a time, or a thread would restore another's dtype
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def new_blocks(model_name: str, image_size: ImageSize, seed: int) -> list[nn.Module]:
    """All blocks of the architecture, trainable, with fresh weights from timm's own initialisation.

    The whole network is drawn, since bare parameters (layer scales, relative position tables) have no initialiser of
    their own. Thus a block's weights depend on `seed` and its depth only, not on the number of blocks that are used.
    """
    model = random_model(model_name, seed)
    sides = image_sides(image_size)
    if sides is not None:
        set_image_size(model, sides)
    return find_blocks(model)


def blank_copy(block: nn.Module) -> nn.Module:
    """A copy of `block` without its hooks, whose parameters are still to be loaded."""
    blank: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p), requires_grad=False) for p in block.parameters()}
    twin = copy.deepcopy(block, blank)
    clear_forward_hooks(twin)
    return twin


def set_image_size(model: Any, image_size: tuple[int, int]) -> None:
    """Change height and width of the input, and resample position embeddings; fully convolutional models take any."""
    native = tuple(model.pretrained_cfg["input_size"][1:])
    if model.pretrained_cfg.get("fixed_input_size") and not hasattr(model, "set_input_size") and native != image_size:
        raise ValueError(
            f"timm {timm.__version__} cannot change the input size of {type(model).__name__}, which is "
            f"{shown_sides(native)}; got image_size={shown_sides(image_size)}. Use image_size=None."
        )
    if hasattr(model, "set_input_size"):
        try:
            model.set_input_size(img_size=image_size)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ValueError(
                f"image_size={shown_sides(image_size)} does not fit {type(model).__name__}: {error}"
            ) from error
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
        if patch is not None and any(side % step for side, step in zip(image_size, patch)):
            step = patch[0] if patch[0] == patch[1] else tuple(patch)
            raise ValueError(f"image_size={shown_sides(image_size)} must be a multiple of the patch size {step}.")


class _LeaveUnfilled(TorchFunctionMode):
    """Leaves tensors as they were allocated: weights that are loaded next need no random values first."""

    _FILLING = frozenset(("uniform_", "normal_", "trunc_normal_", "erfinv_"))
    # on the meta device there are no values to change
    _ON_META = _FILLING | {"mul_", "add_", "sub_", "div_", "clamp_", "fill_", "zero_", "copy_"}

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], Tensor):
            left_out = self._ON_META if args[0].is_meta else self._FILLING
            if getattr(func, "__name__", "") in left_out:
                return args[0]
        return func(*args, **(kwargs or {}))


def empty_model(model_name: str, image_size: ImageSize) -> nn.Module:
    """A timm model at its final size, all of whose weights are still to be loaded."""
    # timm would read a folder or ask a hub for other names
    if not timm.is_model(architecture_name(model_name)) or ":" in model_name:
        raise ValueError(f"timm {timm.__version__} has no model {model_name[:100]!r}; another version may have it.")
    sides = image_sides(image_size)
    try:
        with _LeaveUnfilled():
            model = random_model(model_name, seed=0)
        if sides is not None:
            set_image_size(model, sides)
    except Exception as error:  # which depends on the architecture
        raise ValueError(
            f"timm {timm.__version__} cannot build {model_name!r} at image_size={shown_sides(sides)}: {error}"
        ) from error
    return model


@functools.lru_cache(maxsize=4)
def outline(model_name: str, image_size: Sides) -> nn.Module:
    """The model of :func:`empty_model` on torch's meta device: names and shapes, without memory for weights."""
    with torch.device("meta"):
        return empty_model(model_name, image_size)


def count_bytes(model_name: str, image_size: ImageSize) -> int:
    """Bytes of an architecture's weights in float32; nothing is built."""
    return sum(tensor.numel() * 4 for tensor in outline(model_name, image_sides(image_size)).state_dict().values())


def head_size(model: Any) -> int:
    """Length of the embedding that a classifier takes."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)


def add_classifier(model: Any, n_classes: int) -> nn.Linear:
    """Give `model` a classifier of its embedding, whose weights are still to be loaded."""
    head = nn.utils.skip_init(nn.Linear, head_size(model), n_classes, dtype=torch.float32)
    model.add_module(CLASS_HEAD, head)
    return head
