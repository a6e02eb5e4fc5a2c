"""DecisionMixin: from scores to decisions and predictions, the same for every detector that has a threshold."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
from sklearn.base import OutlierMixin
from sklearn.utils.validation import check_is_fitted

__all__ = ["DecisionMixin"]


class DecisionMixin(OutlierMixin):
    """Decides by `offset_`, for detectors with `score_samples` and `_p_values_of` scores."""

    offset_: float
    score_samples: Callable[[Any], np.ndarray]
    _p_values_of: Callable[[np.ndarray], np.ndarray]

    def decision_function(self, X: Any) -> np.ndarray:
        """Shift scores so that 0 is the threshold.

        Parameters
        ----------
        X : samples
            In any form that `fit` takes.

        Returns
        -------
        decisions : ndarray of shape (n_samples,), float64
            ``score_samples(X) - offset_``. Negative for anomalies.
        """
        return self._above_offset(self.score_samples(X))

    def predict(self, X: Any) -> np.ndarray:
        """Predict which samples are anomalies.

        Parameters
        ----------
        X : samples
            As for `decision_function`.

        Returns
        -------
        labels : ndarray of shape (n_samples,), int
            -1 if the decision is negative, or the score NaN; else +1.
        """
        return self._labels(self.decision_function(X))

    def score_table(self, X: Any, score: Any = None) -> dict[str, np.ndarray]:
        """Compute score, decision, p-value and prediction of each sample by scoring it once.

        Parameters
        ----------
        X : samples
            As for `decision_function`.
        score : array-like of shape (n_samples,), default=None
            The result of ``score_samples(X)``, if it is known already.

        Returns
        -------
        table : dict of str to ndarray of shape (n_samples,)
            Columns ``score``, ``decision`` and ``p_value``, float64, and ``prediction``, int; ready for
            ``pandas.DataFrame(table)``. p-values are NaN if the detector has none.
        """
        check_is_fitted(self)
        score = np.asarray(self.score_samples(X) if score is None else score, dtype=np.float64)
        decision = self._above_offset(score)
        return {
            "score": score,
            "decision": decision,
            "p_value": self._p_values_of(score),
            "prediction": self._labels(decision),
        }

    def _above_offset(self, scores: Any) -> np.ndarray:
        scores = np.asarray(scores, dtype=np.float64)
        decisions = np.zeros_like(scores)
        # a density may be zero, and -inf - -inf is NaN
        return np.subtract(scores, self.offset_, out=decisions, where=scores != self.offset_)

    @staticmethod
    def _labels(decisions: np.ndarray) -> np.ndarray:
        return np.where(decisions >= 0, 1, -1)  # NaN compares false
