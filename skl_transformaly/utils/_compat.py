"""All private APIs of scikit-learn, joblib and torch that the package uses, in one place.

torch is imported inside functions, so that tools without torch stay light.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from joblib._store_backends import FileSystemStoreBackend  # what joblib.register_store_backend is to be given
from sklearn.base import _fit_context as fit_context
from sklearn.utils._param_validation import HasMethods, Interval, RealNotInt, StrOptions, validate_params

if TYPE_CHECKING:
    from torch import Tensor, nn

__all__ = [
    "FileSystemStoreBackend",
    "HasMethods",
    "Interval",
    "RealNotInt",
    "StrOptions",
    "clear_forward_hooks",
    "cpu_has_bfloat16",
    "fit_context",
    "is_batch_norm",
    "linear_pointwise",
    "torchvision_advice",
    "validate_params",
]


def cpu_has_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16, if torch is new enough to tell."""
    import torch

    probes = ("_is_amx_tile_supported", "_is_avx512_bf16_supported")
    return any(getattr(torch.cpu, name, lambda: False)() for name in probes)


def is_batch_norm(module: nn.Module) -> bool:
    """Whether `module` is a batch normalisation of any kind, as ``torch.optim.swa_utils.update_bn`` tells."""
    from torch.nn.modules.batchnorm import _BatchNorm

    return isinstance(module, _BatchNorm)


def clear_forward_hooks(module: nn.Module) -> None:
    """Remove the forward hooks of `module` and its parts."""
    names = ("_forward_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called", "_forward_pre_hooks")
    for part in module.modules():
        for name in names:
            getattr(part, name).clear()


def linear_pointwise(x: Tensor, weight: Any, bias: Any, activation: str, algorithm: str) -> Tensor:
    """``activation(linear(x))`` by one call of oneDNN; raises AttributeError, RuntimeError or TypeError without it."""
    import torch

    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], algorithm)


def torchvision_advice(error: RuntimeError) -> str:
    """What to do about a torchvision that was built for another torch, which timm cannot be imported with."""
    return (
        "torch and torchvision are not compatible: install both from the same source, in one command "
        "(pip install --force-reinstall torch torchvision; with --index-url, if torch is to come from an index of its "
        f"own, such as that of builds without CUDA). {error}"
    )
