"""
After the first fit
===================

More normal images, images that turned out to be bad, anomalies that are known by now, and a set of images that was not
clean to begin with: what a detector of handwritten digits learns after its first fit. Prints the AUROC after each step.
"""

import os

import numpy as np
from sklearn.datasets import load_digits
from sklearn.metrics import roc_auc_score

from skl_transformaly import TimmExtractor, TransformalyDetector

quick = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1"
digits = load_digits()
images = (digits.images / 16).astype(np.float32)
rng = np.random.default_rng(0)
eights, others = (rng.permutation(np.flatnonzero(chosen)) for chosen in (digits.target == 8, digits.target != 8))
n = 20 if quick else 60
train, new = images[eights[: 2 * n]], np.concatenate([images[eights[-40:]], images[others[-40:]]])
is_normal = np.repeat([True, False], 40)
teacher = TimmExtractor("bundled", image_size=64)


def show(what: str, detector: TransformalyDetector) -> None:
    """Print how well new eights are told from other digits."""
    auroc = roc_auc_score(is_normal, detector.score_samples(new))
    learned = int((detector.training_labels_ == 1).sum())
    print(f"{what:42} {learned:4} images, AUROC {auroc:.3f}, threshold {detector.offset_:.2f}")


# %%
# More normal images. Densities, threshold and p-values are those of a fit on all images at once.
detector = TransformalyDetector(teacher, feature_spaces=["pretrained", "layers"], random_state=0).fit(train[:n])
show("a first fit", detector)
detector.partial_fit(train[n:])
show("twice as many images", detector)

# %%
# Images that should not have been there are taken back, by their positions.
detector.partial_fit(images[others[:3]])
show("three other digits slipped in", detector)
detector.forget(range(2 * n, 2 * n + 3))
show("and are taken back", detector)

# %%
# A few known anomalies are not learned; they tell how much each feature space counts.
known = images[others[3:23]]
y = np.repeat([1, -1], [len(train), len(known)])
weighed = TransformalyDetector(teacher, feature_spaces=["pretrained", "layers"], random_state=0)
weighed.fit(np.concatenate([train, known]), y)
weights = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(weighed.feature_spaces_, weighed.weights_))
show(f"20 known anomalies ({weights})", weighed)

# %%
# A set that is not clean: a tenth of it are other digits. `trim` leaves out what is the least like the rest.
mixed = np.concatenate([train, images[others[23 : 23 + n // 5]]])
for trim in (0.0, 0.1):
    unclean = TransformalyDetector(teacher, feature_spaces=["pretrained", "layers"], trim=trim, random_state=0)
    show(f"a set that is not clean, trim={trim}", unclean.fit(mixed))
