"""Choose settings of a one-class detector: splits, scorers and synthetic anomalies.

scikit-learn's searches fit on all samples of a fold. A one-class detector must be fitted on normal samples only, and
measured on both kinds. Labels are +1 for normal and -1 for anomaly, as in scikit-learn's outlier detectors::

    search = GridSearchCV(NormalOnly(detector), grid, cv=OneClassSplit(5, random_state=0), scoring="roc_auc")
    search.fit(X, y)

Without known anomalies::

    search = GridSearchCV(detector, grid, cv=5, scoring=SyntheticOutlierScorer())
    search.fit(X)
"""

from skl_transformaly.model_selection._normal_only import NormalOnly
from skl_transformaly.model_selection._outliers import synthetic_outliers
from skl_transformaly.model_selection._scorers import SyntheticOutlierScorer, held_out_log_likelihood
from skl_transformaly.model_selection._split import OneClassSplit

__all__ = ["NormalOnly", "OneClassSplit", "SyntheticOutlierScorer", "held_out_log_likelihood", "synthetic_outliers"]
