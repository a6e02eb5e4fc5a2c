"""Values of parameters and fitted attributes as JSON and arrays, and back.

Numbers, texts, lists, tuples, dicts, arrays, random states and objects of the schema's classes can be written; anything
else is refused, and so is any JSON that is not written here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator

from skl_transformaly.persistence._fields import Scope, array, brief, count, fields, number, refuse

if TYPE_CHECKING:
    from skl_transformaly.persistence._reader import Reader
    from skl_transformaly.persistence._writer import Writer

__all__ = ["decode", "encode"]

_RANDOM_STATE = fields(
    key=array(624, dtypes=("int64",)), pos=count(high=624), has_gauss=count(high=1), gauss=number(finite=True)
)


def encode(value: Any, name: str, writer: Writer, *, fitted: bool = True) -> Any:
    """Return the JSON of a value, whose arrays and objects go to `writer`.

    Parameters
    ----------
    value : object
    name : str
        Goes into the names of arrays.
    writer : Writer
    fitted : bool, default=True
        Whether to keep what objects were fitted to; else their parameters alone.

    Raises
    ------
    Refused
        A file cannot hold the value.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, int) and abs(value) >= 2**63:
        refuse("it is beyond 64 bits")
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else {"float": repr(value)}
    if isinstance(value, (list, tuple)):
        items = [encode(item, name, writer, fitted=fitted) for item in value]
        return {"tuple": items} if isinstance(value, tuple) else items
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {"dict": {key: encode(item, f"{name}.{key}", writer, fitted=fitted) for key, item in value.items()}}
    if isinstance(value, np.ndarray) and value.dtype.kind in "UO" and all(isinstance(v, str) for v in value.flat):
        return {"strings": [str(item) for item in value.reshape(-1)]}
    if isinstance(value, np.ndarray):
        return writer.array(name, value)
    if isinstance(value, np.random.RandomState):
        return {"random_state": _encode_random_state(value, name, writer)}
    if isinstance(value, BaseEstimator):
        return {"object": writer.add(value, fitted=fitted)}
    refuse(f"a {type(value).__name__} is not a number, a text, an array or an estimator")


def decode(value: Any, reader: Reader) -> Any:
    """Return the value that :func:`encode` wrote.

    Raises
    ------
    Refused
        `value` is not JSON that it writes.
    """
    if value is None or type(value) in (bool, int, float, str):
        return value
    if isinstance(value, list):
        return [decode(item, reader) for item in value]
    if set(value) == {"array", "order"}:
        return reader.array(value["array"], value["order"])
    kind, content = next(iter(value.items())) if len(value) == 1 else (None, None)
    if kind == "float" and content in ("nan", "inf", "-inf"):
        return float(content)
    if kind == "tuple" and isinstance(content, list):
        return tuple(decode(content, reader))
    if kind == "dict" and isinstance(content, dict):
        return {key: decode(item, reader) for key, item in content.items()}
    if kind == "strings" and isinstance(content, list) and all(type(item) is str for item in content):
        return np.array(content, dtype=object)
    if kind == "object":
        return reader.object(content)
    if kind == "random_state" and isinstance(content, dict):
        return _decode_random_state(content, reader)
    refuse(f"is {brief(value)}; expected a value as files hold it")


def _encode_random_state(random_state: np.random.RandomState, name: str, writer: Writer) -> Any:
    state: Any = random_state.get_state(legacy=False)
    if state["bit_generator"] != "MT19937":
        refuse(f"its bit generator {state['bit_generator']} is not MT19937")
    flat = {"key": state["state"]["key"].astype(np.int64), "pos": state["state"]["pos"]}
    return encode({**flat, "has_gauss": state["has_gauss"], "gauss": state["gauss"]}, name, writer)["dict"]


def _decode_random_state(content: dict[str, Any], reader: Reader) -> np.random.RandomState:
    state = decode({"dict": content}, reader)
    _RANDOM_STATE(state, Scope({}))
    key = state["key"]
    if key.min() < 0 or key.max() >= 2**32:
        refuse("is a random state whose key is not of 32 bits")
    random_state = np.random.RandomState()
    inner = {"key": key.astype(np.uint32), "pos": state["pos"]}
    random_state.set_state({**state, "bit_generator": "MT19937", "state": inner})
    return random_state
