"""
Comparing teachers
==================

Which teacher, at which image size? Fit one detector each, and look at each feature space apart. A teacher with random
weights is the floor: what a comparison gives without any knowledge of images, from the architecture alone. Where it
comes close to the others, as it may with images as plain as digits, the comparison says little of the teachers.
"""

import os
import sys
import time

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skl_transformaly import TimmExtractor, TransformalyDetector

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv

# %%
# Nines are normal.
digits = load_digits()
images, y = (digits.images / 16).astype(np.float32), np.where(digits.target == 9, 1, -1)
X_train, X_test, y_train, y_test = train_test_split(images, y, test_size=0.5, random_state=0, stratify=y)
normal = X_train[y_train == 1]
X_test, y_test = (X_test[:150], y_test[:150]) if QUICK else (X_test[:500], y_test[:500])

# %%
# Any timm model can be a teacher; with ``weights="hub"``, the default, timm downloads its trained weights. These three
# need no download.
model = "tf_efficientnet_lite0"
teachers = {
    "ImageNet, 32 px": TimmExtractor(model, weights="bundled", image_size=32),
    "ImageNet, 64 px": TimmExtractor(model, weights="bundled", image_size=64),
    "random, 64 px": TimmExtractor(model, weights=None, image_size=64),
}

# %%
# ``explain`` gives the score and its parts from one pass.
columns = {"pretrained": "embedding", "discrepancy": "discrepancy", "score": "all"}
aurocs = {}
print(f"{'teacher':<16} {'embedding':>10} {'discrepancy':>12} {'all':>6} {'seconds':>8}")
for name, teacher in teachers.items():
    start = time.perf_counter()
    detector = TransformalyDetector(teacher, random_state=0).fit(normal)
    table = detector.explain(X_test)
    aurocs[name] = [roc_auc_score(y_test, table[column]) for column in columns]
    print("{:<16} {:>10.3f} {:>12.3f} {:>6.3f} {:>8.0f}".format(name, *aurocs[name], time.perf_counter() - start))

# %%
# One digit is one task: average over several before you choose a teacher for good.
figure, ax = plt.subplots(figsize=(7, 4))
for i, label in enumerate(columns.values()):
    bars = ax.bar(np.arange(len(teachers)) + 0.27 * (i - 1), [row[i] for row in aurocs.values()], 0.25, label=label)
    ax.bar_label(bars, fmt="%.2f", fontsize=8)
ax.axhline(0.5, color="k", linestyle="--", linewidth=1, label="chance")
ax.set(xticks=range(len(teachers)), xticklabels=teachers, ylabel="AUROC", ylim=(0.3, 1.12))
ax.legend(ncols=4, loc="upper center", fontsize=8)
plt.show()
