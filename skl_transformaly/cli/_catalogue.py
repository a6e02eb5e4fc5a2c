"""Teachers, and whether their weights are on this machine."""

from __future__ import annotations

import os
from importlib import metadata
from pathlib import PurePosixPath
from urllib.parse import urlparse

import timm
import torch
from huggingface_hub import try_to_load_from_cache

from skl_transformaly.teacher._weights import BUNDLED_FILE, BUNDLED_PACKAGE

__all__ = ["bundled_at_hand", "hub_models"]

# the names that timm gives a model's weights on the hub, in the order in which it looks for them
_HUB_FILES = ("model.safetensors", "pytorch_model.bin")


def bundled_at_hand() -> bool:
    """Whether the package with the bundled teacher's weights is installed."""
    try:
        return os.path.isfile(str(metadata.distribution(BUNDLED_PACKAGE).locate_file(BUNDLED_FILE)))
    except metadata.PackageNotFoundError:
        return False


def hub_models(pattern: str = "*") -> dict[str, bool]:
    """Timm's models with weights that match a pattern of ``*`` and ``?``, and whether the weights are in a cache."""
    return {name: _cached(name) for name in timm.list_models(pattern, pretrained=True)}


def _cached(name: str) -> bool:
    config = timm.models.get_pretrained_cfg(name)
    if config is None:
        return False
    if config.hf_hub_id:
        files = (config.hf_hub_filename,) if config.hf_hub_filename else _HUB_FILES
        # a path if the file is cached; else None, or a mark that the hub has no such file
        if any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files):
            return True
    if config.url:
        file = PurePosixPath(urlparse(str(config.url)).path).name
        return os.path.isfile(os.path.join(torch.hub.get_dir(), "checkpoints", file))
    return False
