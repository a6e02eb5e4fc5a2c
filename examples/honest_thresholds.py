"""
Honest thresholds
=================

``contamination`` is the share of new normal images that may be flagged: the threshold comes from scores that each
training image has without its own part in the fit. :class:`~skl_transformaly.ConformalDetector` sets normal images
aside instead, at the price of fewer for the fit, and its rate is a proven promise for any detector.
"""

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits

from skl_transformaly import ConformalDetector, TimmExtractor, TransformalyDetector
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
        contamination=0.05,
        random_state=0,
    ),
    alpha=0.05,
    calibration=0.4,
    random_state=0,
).fit(known)
print(f"{len(detector.calibration_scores_)} calibration images")

# %%
# The promise, and what a detector that uses all images for both gives, on new normal images. Either rate is one on
# average: with one set of normal images it varies around it.
p_values = detector.p_values(X)
by_itself = clone(detector.estimator).fit(known).predict(X)
print(f"promised rate of false positives:  {detector.alpha:.1%}")
print(f"by p-values at most alpha:         {np.mean(p_values[y == 1] <= detector.alpha):.1%}")
print(f"by held-out training scores:       {np.mean(by_itself[y == 1] == -1):.1%}")

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
