"""
Grid search over the explained variance
=======================================

How many components of the embedding to keep depends on the data. With a few known anomalies scikit-learn's
``GridSearchCV`` finds out, if two things are seen to: training folds hold normal images only
(:class:`~skl_transformaly.model_selection.OneClassSplit`), and so does the last fit on all images
(:class:`~skl_transformaly.model_selection.NormalOnly`).
"""

import os
import sys
import tempfile
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import GridSearchCV, train_test_split

from skl_transformaly import TimmExtractor, TransformalyDetector
from skl_transformaly.model_selection import NormalOnly, OneClassSplit

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv

# %%
# Eights are normal, all other digits are anomalies. Labels are +1 and -1, as everywhere in scikit-learn's outlier
# detection.
digits = load_digits()
images, y = (digits.images / 16).astype(np.float32), np.where(digits.target == 8, 1, -1)
rng = np.random.default_rng(0)
chosen = np.concatenate([np.flatnonzero(y == 1), rng.choice(np.flatnonzero(y == -1), 174, replace=False)])
X_train, X_test, y_train, y_test = train_test_split(
    images[chosen], y[chosen], test_size=0.7 if QUICK else 0.3, random_state=0, stratify=y[chosen]
)

# %%
# With ``memory=`` the teacher's pass and the students are done once for each fold, and found again for every
# other setting. The cache goes by content; here it lies in a temporary folder, a path of your own keeps it.
cache = tempfile.TemporaryDirectory()
detector = TransformalyDetector(
    TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64),
    memory=cache.name,
    random_state=0,
)
shares = [0.5, 0.7, 0.8, 0.9, 0.95, 0.99]
search = GridSearchCV(
    NormalOnly(detector),
    {"estimator__explained_variance": shares},
    cv=OneClassSplit(2 if QUICK else 3, random_state=0),
    scoring="roc_auc",
)
start = time.perf_counter()
search.fit(X_train, y_train)
fit_times = search.cv_results_["mean_fit_time"]
print(f"best: {search.best_params_}, after {time.perf_counter() - start:.0f} s")
print(f"a fold's fit for the first setting: {fit_times[0]:.1f} s, for each other: {fit_times[1:].mean():.1f} s")

# %%
# ``refit=True`` has fitted the best setting on all normal images, so the search is a detector itself. The anomalies
# that chose the setting are not those that it is tested on.
print(f"AUROC on test images: {roc_auc_score(y_test, search.decision_function(X_test)):.3f}")

# %%
# Means over folds, with their standard deviations.
mean, std = search.cv_results_["mean_test_score"], search.cv_results_["std_test_score"]
figure, ax = plt.subplots(figsize=(6, 4))
ax.errorbar(range(len(shares)), mean, yerr=std, marker="o", capsize=3)
ax.plot(search.best_index_, mean[search.best_index_], "o", color="tab:red", zorder=3, label="chosen")
ax.set(xticks=range(len(shares)), xticklabels=shares, xlabel="explained_variance", ylabel="AUROC on held-out folds")
ax.legend()
plt.show()

# %%
cache.cleanup()
