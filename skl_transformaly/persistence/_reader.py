"""From the description in a file to a detector; everything that a writer does not write is refused."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import nn

from skl_transformaly.images._formats import expand_user
from skl_transformaly.persistence import _fields as f
from skl_transformaly.persistence._fields import Refused, Scope, brief, naming, refuse
from skl_transformaly.persistence._networks import localise
from skl_transformaly.persistence._schema import DETECTORS, LEFT_OUT, PARTS, Spec
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.teacher._stored import read_state, stored_teachers
from skl_transformaly.utils._container import ModelFile

__all__ = ["Reader"]

_MAX_OBJECTS = 10_000
_MAX_JOBS = 1024
_OUTPUT = {"output": f.optional(f.text("default", "pandas", "polars"))}
_RANDOM_STATE = f.fields(
    key=f.array(624, dtypes=("int64",)), pos=f.count(high=624), has_gauss=f.count(high=1), gauss=f.number()
)


class Reader:
    """Makes objects from the description in an open, checked file; `device` and `weights` are those of `load`.

    All methods raise :class:`Refused` if something is wrong with the file. `teachers` describes the teachers in it.
    """

    def __init__(self, file: ModelFile, *, device: Any, weights: Any):
        self.file = file
        self.device = device
        self.weights = weights if weights is None else expand_user(weights)
        self.teachers = stored_teachers(file)
        self._made: list[Any] = []
        self._fitted: dict[int, dict[str, int]] = {}  # sizes of axes, by id
        self._used: set[str] = set()

    def read(self) -> Any:
        """Make all objects in their order, and return the last, the detector."""
        document = self.file.document
        if not isinstance(objects := document.get("objects"), list) or not 1 <= len(objects) <= _MAX_OBJECTS:
            refuse(f"has no list of 1 to {_MAX_OBJECTS} objects")
        for place, entry in enumerate(objects):
            if not isinstance(entry, dict) or set(entry) != {"class", "params", "state"}:
                refuse(f"does not describe its object {place} by class, params and state")
            name = entry["class"]
            if not isinstance(name, str) or name not in PARTS:
                refuse(f"names the class {brief(name)}; allowed are {', '.join(PARTS)}")
            try:
                self._made.append(self._make(PARTS[name], entry))
            except Refused as error:
                refuse(f"holds a {name} that {error}")
        detector = self._made[-1]
        name = type(detector).__name__
        if name not in DETECTORS or id(detector) not in self._fitted:
            refuse(f"ends with a {name}; expected a fitted {' or '.join(DETECTORS)}")
        if name != document.get("class"):
            refuse(f"says that it holds a {brief(document.get('class'))}, but holds a {name}")
        return detector

    def finish(self) -> None:
        """Refuse arrays that nothing has asked for."""
        if unused := sorted(set(self.file.arrays) - self._used):
            refuse(f"holds arrays that are not used: {brief(unused)}")

    def decode(self, value: Any) -> Any:
        """Return the value that JSON of the file stands for."""
        if type(value) is int and abs(value) >= 2**63:
            refuse(f"is {brief(value)}; expected at most 64 bits")
        if value is None or type(value) in (bool, int, float, str):
            return value
        if isinstance(value, list):
            return [self.decode(item) for item in value]
        if set(value) == {"array", "order"}:
            return self._array(value["array"], value["order"])
        kind, content = next(iter(value.items())) if len(value) == 1 else (None, None)
        if kind == "float" and content in ("nan", "inf", "-inf"):
            return float(content)
        if kind == "tuple" and isinstance(content, list):
            return tuple(self.decode(content))
        if kind == "dict" and isinstance(content, dict):
            return {key: self.decode(item) for key, item in content.items()}
        if kind == "strings" and isinstance(content, list) and all(type(item) is str for item in content):
            return np.array(content, dtype=object)
        if kind == "object":
            return self._object(content)
        if kind == "random_state" and isinstance(content, dict):
            return self._random_state(content)
        refuse(f"is {brief(value)}; expected a value as files hold it")

    def use_teacher(self, place: int) -> None:
        """Note that the weights of a teacher are read, which all extractors share."""
        self._used.update(name for name in self.file.arrays if name.startswith(f"teachers.{place}."))

    def network(self, prefix: str, outline: nn.Module, dtype: torch.dtype) -> dict[str, np.ndarray]:
        """Read parameters and buffers, once their shapes are known to be those of `outline`."""
        if not prefix.startswith("arrays."):
            refuse(f"has weights under {brief(prefix)}")
        self._use([name for name in self.file.arrays if name.startswith(prefix)])
        return read_state(self.file, prefix, outline, dtype)

    def _object(self, place: Any) -> Any:
        if type(place) is not int or not 0 <= place < len(self._made):
            refuse(f"names an object {brief(place)} that does not come before it")
        return self._made[place]

    def _array(self, name: Any, order: Any) -> np.ndarray:
        if not isinstance(name, str) or name not in self.file.arrays or order not in ("C", "F"):
            refuse(f"is an array {brief(name)} that is not in the file")
        self._use([name])
        array = self.file.array(name)
        return array.T if order == "F" else array

    def _random_state(self, content: dict[str, Any]) -> np.random.RandomState:
        state = self.decode({"dict": content})
        _RANDOM_STATE(state, Scope({}))
        key = state["key"]
        if key.min() < 0 or key.max() >= 2**32:
            refuse("is a random state whose key is not of 32 bits")
        random_state = np.random.RandomState()
        inner = {"key": key.astype(np.uint32), "pos": state["pos"]}
        random_state.set_state({**state, "bit_generator": "MT19937", "state": inner})
        return random_state

    def _use(self, names: Sequence[str]) -> None:
        """Note that arrays are read; each once, so that they take no more memory than the file has bytes."""
        if not self._used.isdisjoint(names):
            refuse(f"asks for arrays that belong to something else: {brief(sorted(self._used.intersection(names)))}")
        self._used.update(names)

    def _make(self, spec: Spec, entry: dict[str, Any]) -> Any:
        part = self._construct(spec, entry["params"])
        state = entry["state"]
        if state is None:
            return part
        checks = {**spec.attributes, **spec.packed, **_OUTPUT}
        required = {*spec.attributes, *spec.packed} - spec.optional
        if not isinstance(state, dict) or not required <= state.keys() <= checks.keys():
            refuse("does not have the attributes of its class")
        scope = Scope(self._fitted)
        values = {}
        for name in [name for name in checks if name in state]:
            with naming(name):
                values[name] = self.decode(state[name])
                checks[name](values[name], scope)
        output = values.pop("output", None)
        packed = {name: values.pop(name) for name in spec.packed}
        vars(part).update(values)
        spec.restore(part, packed, self)
        spec.check(part, scope.sizes)
        if output is not None:
            part.set_output(transform=output)
        self._fitted[id(part)] = scope.sizes
        return part

    def _construct(self, spec: Spec, params: Any) -> Any:
        """Make the unfitted object, by its own rules for parameters."""
        # LEFT_OUT: a folder of pickles above all
        if not isinstance(params, dict) or not params.keys() <= set(inspect.signature(spec.cls).parameters) - LEFT_OUT:
            refuse(f"has parameters that its class does not have here: {brief(params)}")
        values = {}
        for name, value in params.items():
            with naming(name):
                values[name] = self.decode(value)
        try:
            part = spec.cls(**values)
            if spec.cls is TimmExtractor:
                localise(part, self)
            if hasattr(part, "_parameter_constraints"):
                part._validate_params()
        except Refused:
            raise
        except (TypeError, ValueError) as error:
            refuse(f"cannot have its parameters: {str(error)[:300]}")
        jobs = values.get("n_jobs")
        if jobs is not None and abs(jobs) > _MAX_JOBS:
            refuse(f"has n_jobs={jobs}")
        return part
