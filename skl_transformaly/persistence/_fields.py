"""Checks of kind, range and shape of a fitted attribute, from which the schema is composed.

A check takes a value that was read from a file and the scope of its object, and raises :class:`Refused` with a reason.
The schema uses this module as a namespace.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

import numpy as np


class Refused(ValueError):
    """Why the content of a file, or for one, is refused. Callers add the part and the file to the message."""


def refuse(reason: str) -> NoReturn:
    """Raise :class:`Refused`, as an expression."""
    raise Refused(reason)


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Add the name of an attribute or parameter to what refuses its value."""
    try:
        yield
    except Refused as error:
        refuse(f"has {name}, which {error}")


def brief(value: Any) -> str:
    """Shortened text of a value."""
    shown = repr(value)
    return shown if len(shown) <= 60 else f"{shown[:57]}..."


@dataclass
class Scope:
    """The axes of one object, by letter, whose sizes must agree between its attributes.

    `fitted` holds, by ``id``, the axes of fitted objects that were read before.
    """

    fitted: Mapping[int, dict[str, int]]
    sizes: dict[str, int] = field(default_factory=dict)

    def bind(self, axis: str | int | None, size: int) -> None:
        """Set the size of an axis, or check it against the one that is set, or against `axis` if that is a number."""
        if axis is None:
            return
        expected = axis if isinstance(axis, int) else self.sizes.setdefault(axis, size)
        if expected != size:
            refuse(f"has size {size} where {expected} was expected")


Check = Callable[[Any, Scope], None]


def array(*axes: str | int | None, dtypes: tuple[str, ...] = ("float64",), nan: bool = False) -> Check:
    """An array with these axes (without any, of any shape); without NaN and infinity unless `nan`."""

    def check(value: Any, scope: Scope) -> None:
        if not isinstance(value, np.ndarray) or value.dtype == object:
            refuse(f"is {brief(value)}; expected an array")
        if value.dtype.name not in dtypes:
            refuse(f"is an array of {value.dtype.name}; expected {' or '.join(dtypes)}")
        if axes and value.ndim != len(axes):
            refuse(f"is an array of shape {value.shape}; expected {len(axes)} axes")
        for axis, size in zip(axes, value.shape):
            scope.bind(axis, size)
        if value.dtype.kind == "f" and not nan and not np.isfinite(value).all():
            refuse("is an array with NaN or infinity")

    return check


def count(low: int = 0, *, high: int = 2**63 - 1, axis: str | None = None) -> Check:
    """A whole number, perhaps the size of an axis."""

    def check(value: Any, scope: Scope) -> None:
        if type(value) is not int or not low <= value <= high:
            refuse(f"is {brief(value)}; expected a whole number from {low}" + (f" to {high}" if high < 2**31 else ""))
        if axis is not None:
            scope.bind(axis, value)

    return check


def number(*, finite: bool = True) -> Check:
    """A float."""

    def check(value: Any, scope: Scope) -> None:
        if type(value) not in (int, float) or (finite and not math.isfinite(value)):
            refuse(f"is {brief(value)}; expected a number")

    return check


def flag(value: Any, scope: Scope) -> None:
    """True or false."""
    if type(value) is not bool:
        refuse(f"is {brief(value)}; expected true or false")


def text(*words: str, length: int | None = None) -> Check:
    """One of `words`, or any text without them."""

    def check(value: Any, scope: Scope) -> None:
        if type(value) is not str or (words and value not in words):
            refuse(f"is {brief(value)}; expected {' or '.join(words) or 'text'}")
        if length is not None and len(value) != length:
            refuse(f"is {brief(value)}; expected {length} characters")

    return check


def sides(number: int, *, low: int = 1, high: int = 2**31) -> Check:
    """A tuple of `number` sizes."""

    def check(value: Any, scope: Scope) -> None:
        whole = isinstance(value, tuple) and len(value) == number and all(type(size) is int for size in value)
        if not whole or not all(low <= size <= high for size in value):
            refuse(f"is {brief(value)}; expected {number} whole numbers from {low} to {high}")

    return check


def names(axis: str) -> Check:
    """Names of columns, an array of str."""

    def check(value: Any, scope: Scope) -> None:
        if not isinstance(value, np.ndarray) or value.dtype != object:
            refuse(f"is {brief(value)}; expected an array of names")
        scope.bind(axis, len(value))

    return check


@dataclass(frozen=True)
class Part:
    """A check for a fitted object of one of these classes; `axes` maps the names of its axes to those of its owner."""

    classes: tuple[str, ...]
    axes: Mapping[str, str]

    def __call__(self, value: Any, scope: Scope) -> None:
        sizes = scope.fitted.get(id(value))
        if sizes is None or type(value).__name__ not in self.classes:
            what = "an unfitted" if sizes is None else "a"
            refuse(f"is {what} {type(value).__name__}; expected a fitted {' or '.join(self.classes)}")
        for theirs, ours in self.axes.items():
            if theirs in sizes:
                scope.bind(ours, sizes[theirs])


def part(*classes: str, **axes: str) -> Part:
    """A fitted object of one of these classes; ``theirs="ours"`` names axes that it shares with its owner."""
    return Part(classes, axes)


def optional(inner: Check) -> Check:
    """None, or what `inner` accepts."""

    def check(value: Any, scope: Scope) -> None:
        if value is not None:
            inner(value, scope)

    return check


def each(inner: Check) -> Check:
    """A list; each item is checked in a scope of its own."""

    def check(value: Any, scope: Scope) -> None:
        if not isinstance(value, list):
            refuse(f"is {brief(value)}; expected a list")
        for item in value:
            inner(item, Scope(scope.fitted))

    return check


def fields(**checks: Check) -> Check:
    """A dict with these keys, whose values share a scope of their own."""

    def check(value: Any, scope: Scope) -> None:
        if not isinstance(value, dict) or set(value) != set(checks):
            refuse(f"is {brief(value)}; expected the entries {', '.join(checks)}")
        own = Scope(scope.fitted)
        for name, inner in checks.items():
            with naming(name):
                inner(value[name], own)

    return check


def table(key: Check, inner: Check) -> Check:
    """A dict of texts, whose items share the axes of their owner."""

    def check(value: Any, scope: Scope) -> None:
        if not isinstance(value, dict):
            refuse(f"is {brief(value)}; expected a table")
        for name, item in value.items():
            key(name, scope)
            inner(item, scope)

    return check
