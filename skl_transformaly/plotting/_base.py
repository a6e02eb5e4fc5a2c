"""The base of all displays: axes, colours and scores."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted, column_or_1d

__all__ = ["COLORS", "Display", "pyplot", "scores_of"]

# The same colours in all displays
COLORS = {"normal": "tab:blue", "anomaly": "tab:orange", "all": "tab:blue", "training": "0.6"}


class Display(ABC):
    """A picture whose numbers are attributes, which `plot` draws.

    It is made by the class methods; `plot` sets `ax_` and `figure_`, of matplotlib.
    """

    def plot(self, ax: Any = None, **kwargs: Any) -> Any:
        """Draw.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Where to draw; None makes a new figure.
        **kwargs
            Passed to the method of matplotlib's Axes that draws the data, named in the description of the class.

        Returns
        -------
        display : object of this class
            Itself.
        """
        self.ax_ = self._new_axes() if ax is None else ax
        self.figure_ = self.ax_.figure
        self._draw(self.ax_, kwargs)
        return self

    def _new_axes(self) -> Any:
        return pyplot().subplots(layout="constrained")[1]

    @abstractmethod
    def _draw(self, ax: Any, style: dict[str, Any]) -> None:
        """Draw the data on `ax`, with `style` for the method of matplotlib that does so."""


def pyplot() -> Any:
    """Return matplotlib.pyplot, imported only for drawing."""
    try:
        import matplotlib.pyplot as plt
    except ImportError as error:
        raise ImportError(
            "Displays are drawn with matplotlib, which is not installed: pip install 'skl-transformaly[plot]'."
        ) from error
    return plt


def scores_of(estimator: Any, X: Any, method: str | None = None) -> np.ndarray:
    """Return one score for each sample, higher is more normal; by `score_samples` rather than `decision_function`."""
    check_is_fitted(estimator)
    if method is None:
        method = "score_samples" if hasattr(estimator, "score_samples") else "decision_function"
    if not hasattr(estimator, method):
        raise TypeError(f"Expected an outlier detector with {method}, got {type(estimator).__name__}.")
    return column_or_1d(np.asarray(getattr(estimator, method)(X), dtype=np.float64))
