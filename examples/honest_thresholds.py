"""
Honest thresholds
=================

A threshold below which 5 % of the training images fall flags another share of new normal images: densities and students
have seen the training images. :class:`~skl_transformaly.ConformalDetector` sets normal images aside, and turns scores
into p-values whose false-positive rate is a promise.
"""

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

from skl_transformaly import BlockStudents, ConformalDetector, TimmExtractor, TransformalyDetector
from skl_transformaly.plotting import ScoreHistogramDisplay

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv

# %%
# Zeros, ones and sixes are normal; half of them are new at test time. Forty sevens are the anomalies.
rng = np.random.default_rng(0)
digits = load_digits()
images = (digits.images / 16).astype(np.float32)
normal = images[rng.permutation(np.flatnonzero(np.isin(digits.target, [0, 1, 6])))]
known, new = np.array_split(normal[: 160 if QUICK else None], 2)
X = np.concatenate([new, images[digits.target == 7][:40]])
y = np.repeat([1, -1], [len(new), 40])

# %%
# Of the normal images 40 % are kept out of the fit, and calibrate. At least ``1 / alpha - 1`` must be.
detector = ConformalDetector(
    TransformalyDetector(
        TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64),
        students=BlockStudents(max_epochs=1 if QUICK else 8),
        contamination=0.05,
        random_state=0,
    ),
    alpha=0.05,
    calibration=0.4,
    random_state=0,
).fit(known)
print(f"{len(detector.calibration_scores_)} calibration images")

# %%
# The promise, and what a quantile of the training scores gives, on new normal images. The promised rate is one on
# average: with one calibration set it varies around it.
p_values = detector.p_values(X)
by_quantile = detector.estimator_.predict(X)
print(f"promised rate of false positives:  {detector.alpha:.1%}")
print(f"by p-values at most alpha:         {np.mean(p_values[y == 1] <= detector.alpha):.1%}")
print(f"by a quantile of training scores:  {np.mean(by_quantile[y == 1] == -1):.1%}")

# %%
# With a whole batch at hand, Benjamini-Hochberg bounds the share of false alarms among all alarms instead. No p-value
# is below 1 / (n + 1), so with few calibration images only a batch with several clear anomalies gives alarms.
flagged = detector.select(X, fdr=0.2)
print(f"alarms at fdr=0.2: {flagged.sum()}, false ones among them: {(flagged & (y == 1)).sum()}")

# %%
# Scores with the threshold and p-values. On the right the p-values of new normal images, which follow the diagonal.
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 4.5), layout="constrained")
ScoreHistogramDisplay.from_estimator(detector, X, y, ax=left)
for label, name in [(1, "normal"), (-1, "anomaly")]:
    right.ecdf(p_values[y == label], label=name, color={1: "tab:blue", -1: "tab:orange"}[label])
right.axline((0, 0), slope=1, color="k", linestyle="--", linewidth=1, label="what is promised: at most this")
right.set(xlabel="alpha", ylabel="share of images with a p-value at most alpha", xlim=(0, 1), ylim=(0, 1.02))
right.legend(loc="lower right")
plt.show()
