"""Describes a fitted detector for a file: its objects, their arrays and their teachers, each once."""

from __future__ import annotations

import warnings
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.frozen import FrozenEstimator
from torch import nn

from skl_transformaly.persistence._codec import encode
from skl_transformaly.persistence._fields import Part, Refused
from skl_transformaly.persistence._schema import LEFT_OUT, PARTS, Spec

__all__ = ["Writer"]


class Writer:
    """Gathers objects, arrays and teachers of a detector, each once.

    Parameters
    ----------
    with_teacher : bool
        Whether the weights of teachers are among the arrays.

    Attributes
    ----------
    objects, teachers : list of dict
        For the document.
    arrays : dict of str to ndarray
    """

    def __init__(self, *, with_teacher: bool):
        self.with_teacher = with_teacher
        self.objects: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.teachers: list[dict[str, Any]] = []
        self._places: dict[Any, int] = {}
        self._kept: list[Any] = []  # keeps ids from being used again

    def add(self, part: Any, *, fitted: bool = True) -> int:
        """Return the position of `part` among the objects.

        Parameters
        ----------
        part : estimator
        fitted : bool, default=True
            False keeps the parameters alone, as ``clone`` does.

        Raises
        ------
        TypeError
            `part` is of a class that a file cannot hold.
        """
        fitted = fitted or isinstance(part, FrozenEstimator)  # clone returns it as it is
        key = (id(part), fitted)
        if key not in self._places:
            name = type(part).__name__
            spec = PARTS.get(name)
            if spec is None or type(part) is not spec.cls:
                raise _unknown(part, PARTS)
            self._kept.append(part)
            params = self._encode_params(part, spec)
            state = self._encode_state(part, spec) if fitted else None
            self.objects.append({"class": name, "params": params, "state": state})
            self._places[key] = len(self.objects) - 1
        return self._places[key]

    def array(self, name: str, value: np.ndarray) -> dict[str, str]:
        """Keep an array under a name of its own, and return its JSON."""
        name = f"arrays.{len(self.arrays)}.{name}"
        # the order of axes in memory is kept, because rounding depends on it
        if value.ndim > 1 and abs(value.strides[0]) < abs(value.strides[-1]):
            self.arrays[name] = np.ascontiguousarray(value.T)
            return {"array": name, "order": "F"}
        self.arrays[name] = np.ascontiguousarray(value).reshape(value.shape)
        return {"array": name, "order": "C"}

    def network(self, name: str, module: nn.Module, dtype: torch.dtype | None = None) -> str:
        """Keep parameters and buffers, floats as `dtype` if given, and return what their names begin with."""
        prefix = f"arrays.{len(self.arrays)}.{name}."
        self.network_at(prefix, module, dtype)
        return prefix

    def network_at(self, prefix: str, module: nn.Module, dtype: torch.dtype | None = None) -> None:
        """Keep parameters and buffers under this prefix."""
        for name, tensor in module.state_dict().items():
            tensor = tensor.detach().cpu()
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            self.arrays[prefix + name] = tensor.contiguous().numpy()

    def teacher(self, teacher: Any, entry: dict[str, Any]) -> int:
        """Keep a teacher, once for all extractors that share it, and return its position."""
        key = id(teacher)
        if key not in self._places:
            self._kept.append(teacher)
            self._places[key] = len(self.teachers)
            self.teachers.append(entry)
            if entry["stored"]:
                self.network_at(f"teachers.{self._places[key]}.", teacher.model, torch.float32)
        return self._places[key]

    def _encode_params(self, part: Any, spec: Spec) -> dict[str, Any]:
        found = {}
        params = {name: value for name, value in part.get_params(deep=False).items() if name not in LEFT_OUT}
        for name, value in spec.portable(params).items():
            try:
                found[name] = encode(value, name, self, fitted=spec.cls is FrozenEstimator)
            except Refused as error:
                raise ValueError(f"A model file cannot hold {spec.cls.__name__}({name}={value!r}): {error}.") from None
        return found

    def _encode_state(self, part: Any, spec: Spec) -> dict[str, Any]:
        own = vars(part)
        state = {name: getattr(part, name) for name in spec.attributes if name in own or name not in spec.optional}
        for name, check in spec.attributes.items():
            if isinstance(check, Part) and name in state and type(state[name]).__name__ not in check.classes:
                raise _unknown(state[name], check.classes)
        state.update(spec.pack(part, self))
        # scikit-learn has no public way to read what set_output was given
        output = own.get("_sklearn_output_config", {}).get("transform")
        if output is not None:
            state["output"] = output
        known = {*spec.attributes, *spec.derived, *part.get_params(deep=False), "_sklearn_output_config"}
        if unknown := sorted(own.keys() - known):
            warnings.warn(
                f"Attributes that {spec.cls.__name__} does not define are not saved: {', '.join(unknown)}.",
                UserWarning,
                stacklevel=5,
            )
        return {name: encode(value, name, self) for name, value in state.items()}


def _unknown(part: Any, allowed: Iterable[str]) -> TypeError:
    return TypeError(
        f"A model file cannot hold a {type(part).__module__}.{type(part).__qualname__} here; it can hold "
        f"{', '.join(allowed)}. joblib.dump can save any of them, as a pickle."
    )
