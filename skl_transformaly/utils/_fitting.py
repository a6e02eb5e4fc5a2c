"""What every `fit` does: it succeeds or leaves the estimator as it was, and refuses classes for objects."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, TypeVar

__all__ = ["all_or_nothing", "refuse_class"]

F = TypeVar("F", bound=Callable[..., Any])


def all_or_nothing(fit: F) -> F:
    """Decorate `fit` so that the estimator's attributes stay as they were if it raises.

    A mixture of a new and an old fit would silently return wrong scores. `fit` must replace fitted attributes, never
    change them in place.
    """

    @functools.wraps(fit)
    def wrapper(self: Any, *args: Any, **kwargs: Any) -> Any:
        before = dict(vars(self))
        try:
            return fit(self, *args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    return wrapper  # type: ignore[return-value]


def refuse_class(value: Any, parameter: str) -> None:
    """Raise TypeError if the value of a parameter is a class where an object is expected."""
    if isinstance(value, type):
        name = value.__name__
        raise TypeError(f"{parameter} must be an object, got the class {name}: write {name}(...).")
