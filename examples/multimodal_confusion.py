"""
Many kinds of normal, and pre-training confusion
================================================

Where nine classes are normal and the tenth is not, much is normal, and the embedding may not help: the
teacher learned to tell classes of photographs apart, and may lay images whose difference it was never asked for side by
side. The paper calls this pre-training confusion. The discrepancy depends on what the students have seen, and can
see a difference that the embedding does not.
"""

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split

from skl_transformaly import TimmExtractor, TransformalyDetector
from skl_transformaly.datasets import multimodal
from skl_transformaly.plotting import EmbeddingDisplay

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv
ANOMALY = 6

# %%
# :func:`~skl_transformaly.datasets.multimodal` declares all classes but one normal; the test labels are +1 and -1.
digits = load_digits()
images = (digits.images / 16).astype(np.float32)
X_train, X_test, y_train, y_test = train_test_split(
    images,
    digits.target,
    train_size=200 if QUICK else 500,
    test_size=200 if QUICK else 500,
    random_state=0,
    stratify=digits.target,
)
normal, X, y = multimodal((X_train, y_train, X_test, y_test), ANOMALY)
print(f"{len(normal)} normal images of 9 classes; to test {np.sum(y == 1)} normal ones, {np.sum(y == -1)} anomalies")

# %%
# The default density is for one kind of normal or many: a Gaussian and the nearest neighbours together.
detector = TransformalyDetector(
    TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64),
    random_state=0,
).fit(normal)
table = detector.explain(X)
for column, name in [("pretrained", "embedding"), ("discrepancy", "discrepancy"), ("score", "all")]:
    print(f"AUROC, {name:<12} {roc_auc_score(y, table[column]):.3f}")

# %%
# Left: the embedding's first two principal axes, where the anomalies lie among the normal images. Right: what each
# space says of each image; anomalies that are likely in one space may still be unlikely in the other.
figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
EmbeddingDisplay.from_estimator(detector, X, y, space="pretrained", method="pca", random_state=0, ax=left)
for label, name, colour in [(1, "normal", "tab:blue"), (-1, f"anomaly: {ANOMALY}", "tab:orange")]:
    right.plot(
        table["pretrained"][y == label], table["discrepancy"][y == label], "o", color=colour, markersize=4, label=name
    )
right.set(xlabel="part of the embedding", ylabel="part of the discrepancy")
right.legend()
plt.show()
