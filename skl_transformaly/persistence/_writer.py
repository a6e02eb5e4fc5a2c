"""From a fitted detector to a description of its parts in JSON, and their arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.frozen import FrozenEstimator
from torch import nn

from skl_transformaly.persistence._fields import Part, Refused, refuse
from skl_transformaly.persistence._schema import LEFT_OUT, PARTS, Spec
from skl_transformaly.utils._warnings import warn_user

__all__ = ["Writer"]


class Writer:
    """Gathers objects, arrays and teachers of a detector, each once, and the weights of teachers if asked to."""

    def __init__(self, *, with_teacher: bool):
        self.with_teacher = with_teacher
        self.objects: list[dict[str, Any]] = []
        self.arrays: dict[str, np.ndarray] = {}
        self.teachers: list[dict[str, Any]] = []
        self._places: dict[Any, int] = {}
        self._kept: list[Any] = []  # keeps ids from being used again

    def add(self, part: Any, *, fitted: bool = True) -> int:
        """Add an estimator, or only its parameters unless `fitted`, and return its position among the objects."""
        fitted = fitted or isinstance(part, FrozenEstimator)  # clone returns it as it is
        key = (id(part), fitted)
        if key not in self._places:
            name = type(part).__name__
            if name not in PARTS or type(part) is not PARTS[name].cls:
                raise _unknown(part, PARTS)
            self._kept.append(part)
            params = self._params(part, PARTS[name])
            state = self._state(part, PARTS[name]) if fitted else None
            self.objects.append({"class": name, "params": params, "state": state})
            self._places[key] = len(self.objects) - 1
        return self._places[key]

    def encode(self, value: Any, name: str, *, fitted: bool = True) -> Any:
        """Return the JSON of a value after adding its arrays and estimators; `name` goes into the names of arrays."""
        if isinstance(value, np.generic):
            value = value.item()
        if isinstance(value, int) and abs(value) >= 2**63:
            refuse("it is beyond 64 bits")
        if value is None or isinstance(value, (bool, int, str)):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else {"float": repr(value)}
        if isinstance(value, (list, tuple)):
            items = [self.encode(item, name, fitted=fitted) for item in value]
            return {"tuple": items} if isinstance(value, tuple) else items
        if isinstance(value, dict) and all(isinstance(key, str) for key in value):
            return {"dict": {key: self.encode(item, f"{name}.{key}", fitted=fitted) for key, item in value.items()}}
        if isinstance(value, np.ndarray) and value.dtype.kind in "UO" and all(isinstance(v, str) for v in value.flat):
            return {"strings": [str(item) for item in value.reshape(-1)]}
        if isinstance(value, np.ndarray):
            return self._array(value, name)
        if isinstance(value, np.random.RandomState):
            return {"random_state": self._random_state(value, name)}
        if isinstance(value, BaseEstimator):
            return {"object": self.add(value, fitted=fitted)}
        refuse(f"a {type(value).__name__} is not a number, a text, an array or an estimator")

    def network(self, module: nn.Module, name: str) -> str:
        """Add parameters and buffers, and return the prefix of their names."""
        prefix = f"arrays.{len(self.arrays)}.{name}."
        self._network(module, prefix)
        return prefix

    def teacher(self, teacher: Any, entry: dict[str, Any]) -> int:
        """Add a teacher, once for all extractors that share it, and return its position."""
        key = id(teacher)
        if key not in self._places:
            self._kept.append(teacher)
            self._places[key] = len(self.teachers)
            self.teachers.append(entry)
            if entry["stored"]:
                self._network(teacher.model, f"teachers.{self._places[key]}.", torch.float32)
        return self._places[key]

    def _network(self, module: nn.Module, prefix: str, dtype: torch.dtype | None = None) -> None:
        for name, tensor in module.state_dict().items():
            tensor = tensor.detach().cpu()
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            self.arrays[prefix + name] = tensor.contiguous().numpy()

    def _array(self, value: np.ndarray, name: str) -> dict[str, str]:
        name = f"arrays.{len(self.arrays)}.{name}"
        # the order of axes in memory is kept, because rounding depends on it
        if value.ndim > 1 and abs(value.strides[0]) < abs(value.strides[-1]):
            self.arrays[name] = np.ascontiguousarray(value.T)
            return {"array": name, "order": "F"}
        self.arrays[name] = np.ascontiguousarray(value).reshape(value.shape)
        return {"array": name, "order": "C"}

    def _random_state(self, random_state: np.random.RandomState, name: str) -> Any:
        state: Any = random_state.get_state(legacy=False)
        if state["bit_generator"] != "MT19937":
            refuse(f"its bit generator {state['bit_generator']} is not MT19937")
        flat = {"key": state["state"]["key"].astype(np.int64), "pos": state["state"]["pos"]}
        return self.encode({**flat, "has_gauss": state["has_gauss"], "gauss": state["gauss"]}, name)["dict"]

    def _params(self, part: Any, spec: Spec) -> dict[str, Any]:
        found = {}
        params = {name: value for name, value in part.get_params(deep=False).items() if name not in LEFT_OUT}
        for name, value in spec.portable(params).items():
            try:
                found[name] = self.encode(value, name, fitted=spec.cls is FrozenEstimator)
            except Refused as error:
                raise ValueError(f"A model file cannot hold {spec.cls.__name__}({name}={value!r}): {error}.") from None
        return found

    def _state(self, part: Any, spec: Spec) -> dict[str, Any]:
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
            warn_user(f"Attributes that {spec.cls.__name__} does not define are not saved: {', '.join(unknown)}.")
        return {name: self.encode(value, name) for name, value in state.items()}


def _unknown(part: Any, allowed: Iterable[str]) -> TypeError:
    return TypeError(
        f"A model file cannot hold a {type(part).__module__}.{type(part).__qualname__} here; it can hold "
        f"{', '.join(allowed)}. joblib.dump can save any of them, as a pickle."
    )
