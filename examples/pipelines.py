"""
Pipelines: before and after the detector
========================================

A detector is a step like any other. A ``FunctionTransformer`` prepares images before it; and since it has
``transform``, which gives all feature spaces side by side, another detector may come after it.
"""

import os
import sys
import tempfile

import matplotlib.pyplot as plt
import numpy as np
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.ensemble import IsolationForest
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer

from skl_transformaly import TimmExtractor, TransformalyDetector
from skl_transformaly.plotting import AnomalyRocCurveDisplay

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv

# %%
# Digits under a lamp that flickers: contrast and brightness differ from image to image, and mean nothing.
rng = np.random.default_rng(0)
digits = load_digits()
contrast = rng.uniform(0.2, 0.7, (len(digits.images), 1, 1))
images = (rng.uniform(0, 0.3, contrast.shape) + contrast * digits.images / 16).astype(np.float32)
y = np.where(digits.target == 2, 1, -1)  # twos are normal
X_train, X_test, y_train, y_test = train_test_split(images, y, test_size=0.5, random_state=0, stratify=y)
if QUICK:
    X_train, y_train, X_test, y_test = X_train[:400], y_train[:400], X_test[:200], y_test[:200]
normal = X_train[y_train == 1]


# %%
# Whatever turns images into images can go before the detector.
def stretch(images):
    """Give each image the whole range from 0 to 1."""
    low, high = images.min(axis=(1, 2), keepdims=True), images.max(axis=(1, 2), keepdims=True)
    return (images - low) / np.maximum(high - low, 1e-6)


cache = tempfile.TemporaryDirectory()
detector = TransformalyDetector(
    TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64),
    memory=cache.name,  # the two pipelines that stretch share one fit of the students
    random_state=0,
)
pipelines = {
    "detector": make_pipeline(clone(detector)),
    "stretched, detector": make_pipeline(FunctionTransformer(stretch), clone(detector)),
    "stretched, detector, forest": make_pipeline(
        FunctionTransformer(stretch), clone(detector), IsolationForest(random_state=0)
    ),
}

# %%
# The pipeline's methods are those of its last step. The forest sees all spaces' features, with names.
figure, ax = plt.subplots(figsize=(5.5, 5))
for name, pipeline in pipelines.items():
    scores = pipeline.fit(normal).score_samples(X_test)
    print(f"{name:<28} AUROC {roc_auc_score(y_test, scores):.3f}")
    AnomalyRocCurveDisplay.from_predictions(y_test, scores, name=name, ax=ax)
features = pipelines["stretched, detector"].named_steps["transformalydetector"].get_feature_names_out()
print(f"{len(features)} features: {features[0]}, {features[1]}, ..., {features[-1]}")
plt.show()

# %%
cache.cleanup()
