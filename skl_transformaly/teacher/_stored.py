"""The teacher in a model file: its description and its weights, checked before they are used."""

from __future__ import annotations

import copy
import os
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import nn

from skl_transformaly.teacher._architecture import (
    CLASS_HEAD,
    Sides,
    add_classifier,
    empty_model,
    image_sides,
    outline,
    shown_sides,
)
from skl_transformaly.utils._container import ModelFile, ModelFileError
from skl_transformaly.utils._warnings import warn_user

__all__ = ["MAX_IMAGE_SIZE", "load_stored", "read_state", "stated_sha256", "stored_teachers"]

MAX_IMAGE_SIZE = 2048  # pixels a side, of a teacher in a model file
# How images may be resized and scaled for a teacher in a model file; all of timm's weights are within these limits.
_INTERPOLATIONS = ("bilinear", "bicubic", "nearest", "box", "hamming", "lanczos", "random")
_MOST_SCALE = 1e4


def read_state(file: ModelFile, prefix: str, like: nn.Module, dtype: torch.dtype) -> dict[str, np.ndarray]:
    """Read parameters and buffers from a model file, after checking their names and shapes against those of `like`."""
    found = {name.removeprefix(prefix): info for name, info in file.arrays.items() if name.startswith(prefix)}
    own = like.state_dict()
    problems = [f"{name} is missing" for name in own if name not in found]
    problems += [f"{name} is not a part of it" for name in found if name not in own]
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
    """Read and check a model file's description of its teachers, whose weights are ``teachers.<place>.<name>``."""
    entries = file.document.get("teachers")
    if not isinstance(entries, list):
        raise ModelFileError(f"{os.fspath(file.path)!r} has no list of teachers.")
    for place, entry in enumerate(entries):
        if not _is_teacher_entry(entry):
            raise ModelFileError(f"{os.fspath(file.path)!r} describes teacher {place} in another form than expected.")
        if odd := _odd_setting(entry["data_config"]):
            raise ModelFileError(f"{os.fspath(file.path)!r} describes teacher {place} by a data_config with {odd}.")
    return entries


def _odd_setting(config: dict[str, Any]) -> str | None:
    """The first of mean, std and interpolation that no weights ask for, in words; None if all are sound."""
    if config["interpolation"] not in _INTERPOLATIONS:
        return f"interpolation {config['interpolation'][:40]!r}; expected one of {', '.join(_INTERPOLATIONS)}"
    for name, low in (("mean", -_MOST_SCALE), ("std", 1 / _MOST_SCALE)):
        if not all(low <= value <= _MOST_SCALE for value in config[name]):
            return f"{name} {config[name]}; expected numbers from {low:g} to {_MOST_SCALE:g}"
    return None


def _is_teacher_entry(entry: Any) -> bool:
    def numbers(values: Any) -> bool:
        return isinstance(values, list) and len(values) == 3 and all(type(v) in (int, float) for v in values)

    keys = {"model_name", "image_size", "sha256", "content_sha256", "stored", "weights", "data_config"}
    if not isinstance(entry, dict) or set(entry) != keys:
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
        and isinstance(entry["content_sha256"], str)
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


def load_stored(model_name: str, path: Path, image_size: Sides) -> tuple[nn.Module, dict[str, Any]]:
    """Load the teacher in a saved detector, at its final size, and what the file states of it."""
    with ModelFile(path) as file:
        held = {
            (entry["model_name"], image_sides(entry["image_size"])): (place, entry)
            for place, entry in enumerate(stored_teachers(file))
            if entry["stored"]
        }
        if (model_name, image_size) not in held:
            raise ModelFileError(
                f"{os.fspath(path)!r} does not hold the weights of {model_name!r} at "
                f"image_size={shown_sides(image_size)}; it holds "
                f"{', '.join(f'{name!r} at image_size={shown_sides(size)}' for name, size in held) or 'none'}."
            )
        place, entry = held[model_name, image_size]
        # the outline first: a file that only claims to hold a large network takes no memory for one
        try:
            like: Any = outline(model_name, image_size)
        except ValueError as error:
            raise ModelFileError(
                f"{os.fspath(path)!r} needs an architecture that cannot be built here: {error}"
            ) from error
        prefix = f"teachers.{place}."
        head = file.arrays.get(f"{prefix}{CLASS_HEAD}.weight")
        n_classes = head.shape[0] if head is not None and len(head.shape) == 2 else 0
        if n_classes:
            like = copy.copy(like)  # the outline is shared
            like._modules = {**like._modules}
            with torch.device("meta"):
                add_classifier(like, n_classes)
        state = read_state(file, prefix, like, torch.float32)
    model: Any = empty_model(model_name, image_size)
    if n_classes:
        add_classifier(model, n_classes)
    model.load_state_dict({name: torch.from_numpy(array) for name, array in state.items()})
    return model, entry


def stated_sha256(entry: dict[str, Any], content: str, path: str | os.PathLike) -> str:
    """The SHA-256 that a model file states of its teacher, if the weights in it have the stated `content`; else that.

    The SHA-256 at the native image size cannot be computed from resampled weights, so the file states both.

    Warns
    -----
    UserWarning
        The file holds other weights than it states.
    """
    if content in (entry["sha256"], entry["content_sha256"]):
        return entry["sha256"]
    warn_user(
        f"{os.fspath(path)!r} holds other weights of {entry['model_name']!r} than it states: their SHA-256 is "
        f"{content}, but {entry['content_sha256']} is stated. Scores are those of the weights in the file; take "
        "the file from whoever saved it first."
    )
    return content
