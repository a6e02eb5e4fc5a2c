"""Losses of the students' training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from sklearn.utils.validation import check_is_fitted

from skl_transformaly._wrappers import innermost
from skl_transformaly.plotting._base import Display, pyplot

__all__ = ["TrainingHistoryDisplay"]


@dataclass(kw_only=True, eq=False, repr=False)
class TrainingHistoryDisplay(Display):
    """Loss of each block's student, epoch by epoch, drawn by ``Axes.plot``.

    Parameters
    ----------
    history : dict of int to dict of str to list of float
        Per block index: "loss" per epoch, as in `history_` of :class:`BlockStudents`.

    Attributes
    ----------
    lines_ : dict of (int, str) to matplotlib Line2D
        By block and loss.

    Examples
    --------
    >>> from skl_transformaly.plotting import TrainingHistoryDisplay
    >>> display = TrainingHistoryDisplay.from_history({10: {"loss": [0.5, 0.2]}, 11: {"loss": [0.9, 0.4]}})
    >>> sorted(display.lines_)
    [(10, 'loss'), (11, 'loss')]
    """

    history: Mapping[int, Mapping[str, Sequence[float]]]

    @classmethod
    def from_estimator(cls, estimator: Any, **kwargs: Any) -> TrainingHistoryDisplay:
        """Draw the training of a detector's students.

        Parameters
        ----------
        estimator : fitted TransformalyDetector or BlockStudents
            Or a Pipeline, search or wrapper that ends in one.
        **kwargs
            `ax` and others, passed to :meth:`plot`.

        Returns
        -------
        display : TrainingHistoryDisplay

        Raises
        ------
        NotFittedError
            The estimator is not fitted.
        TypeError
            It has no students, or they were not trained by gradient.
        """
        check_is_fitted(estimator)
        detector = innermost(estimator)
        students = detector if hasattr(detector, "block_indices_") else getattr(detector, "students_", None)
        if students is None:
            raise TypeError(
                f"There are no students in {type(detector).__name__}: expected a BlockStudents, or a "
                "TransformalyDetector fitted with 'discrepancy' among feature_spaces."
            )
        if not hasattr(students, "history_"):
            raise TypeError(
                f"{type(students).__name__} has no training history to draw: its students are not trained by gradient."
            )
        return cls.from_history(students.history_, **kwargs)

    @classmethod
    def from_history(
        cls, history: Mapping[int, Mapping[str, Sequence[float]]], **kwargs: Any
    ) -> TrainingHistoryDisplay:
        """Draw a given history.

        Parameters
        ----------
        history : dict of int to dict of str to list of float
            Per block index: "loss" per epoch.
        **kwargs
            `ax` and others, passed to :meth:`plot`.

        Returns
        -------
        display : TrainingHistoryDisplay
        """
        return cls(history=history).plot(**kwargs)

    def _draw(self, ax: Any, style: dict[str, Any]) -> None:
        self.lines_ = {}
        colors = pyplot().get_cmap("viridis")(np.linspace(0, 0.9, len(self.history)))
        for color, (index, losses) in zip(colors, sorted(self.history.items())):
            for name, values in losses.items():
                label = str(index) if name == "loss" else f"{index}, {name}"
                look = {"color": color, "linestyle": "-" if name == "loss" else "--", "marker": ".", "label": label}
                look |= style
                (self.lines_[index, name],) = ax.plot(np.arange(1, len(values) + 1), values, **look)
        ax.set(xlabel="epoch", ylabel="mean squared error", yscale="log")
        ax.xaxis.get_major_locator().set_params(integer=True)
        ax.legend(title="block", loc="center left", bbox_to_anchor=(1, 0.5))
