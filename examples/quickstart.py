"""
Quick start: find the digits that do not belong
===============================================

Real handwritten digits, real ImageNet weights, no network: each digit in turn is what is normal, the detector
sees images of it alone, and all test images are scored. Prints the AUROC of each feature space and of all, and
draws the images that the detector finds most and least normal.
"""

import argparse
import os
import time
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skl_transformaly import TimmExtractor, TransformalyDetector

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--quick", action="store_true", help="two digits: does it run?")
parser.add_argument("--out", type=Path, default=Path("out/quickstart.png"), help="where the picture goes")
options = parser.parse_args()
options.quick = options.quick or os.environ.get("SKL_TRANSFORMALY_QUICK") == "1"

# %%
# 1,797 digits of 8 x 8 pixels, values 0-16. Half are for testing.
digits = load_digits()
images = (digits.images / 16).astype(np.float32)
X_train, X_test, y_train, y_test = train_test_split(
    images, digits.target, test_size=0.5, random_state=0, stratify=digits.target
)
normal_digits = [0, 8] if options.quick else range(10)

# %%
# A detector for each digit. The teacher's weights come from the package index, with the extra ``offline``.
start = time.perf_counter()
aurocs, scores = [], {}
SPACES = ("pretrained", "classes", "layers", "variation", "discrepancy", "score")
print(f"{'normal':>8}", *(f"{name:>12}" for name in (*SPACES[:-1], "all")))
for digit in normal_digits:
    detector = TransformalyDetector(
        TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64),
        random_state=0,
    ).fit(X_train[y_train == digit])

    # the score, and what each space alone would say, from one pass
    parts = detector.explain(X_test, n_neighbors=1)
    scores[digit] = parts["score"]
    aurocs.append([roc_auc_score(y_test == digit, parts[name]) for name in SPACES])
    print(f"{digit:>8}", *(f"{auroc:>12.3f}" for auroc in aurocs[-1]), flush=True)
print(f"{'mean':>8}", *(f"{auroc:>12.3f}" for auroc in np.mean(aurocs, axis=0)))

# %%
# The most and the least normal test images of each detector.
figure, axes = plt.subplots(
    len(aurocs), 17, figsize=(12, 0.75 * len(aurocs) + 0.5), squeeze=False, width_ratios=[1] * 8 + [0.5] + [1] * 8
)
for ax in axes[:, 8]:
    ax.set_axis_off()
for row, (digit, score) in zip(axes, scores.items()):
    order = np.argsort(score)
    for ax, i in zip(np.delete(row, 8), np.concatenate([order[::-1][:8], order[:8][::-1]])):
        ax.imshow(X_test[i], cmap="gray_r")
        ax.set(xticks=[], yticks=[])
        right = (y_test[i] == digit) == (i in order[-8:])
        for spine in ax.spines.values():
            spine.set(color="tab:green" if right else "tab:red", linewidth=1.5)
    row[0].set_ylabel(str(digit), rotation=0, labelpad=12, va="center")
axes[0, 0].set_title("most normal", loc="left")
axes[0, 9].set_title("least normal", loc="left")
figure.text(0.5, 0.05, "Each row: one digit is normal. Green: the detector is right; red: it is not.", ha="center")
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=150, bbox_inches="tight")
print(f"Wrote {options.out} after {time.perf_counter() - start:.0f} s")
