"""
Is the camera still the same?
=============================

Scores and p-values are right as long as new normal images come from the source that calibrated the detector. After a
change of the camera or of the light, most of what is flagged is not anomalous.
:class:`~skl_transformaly.DriftMonitor` watches the scores of a stream and notices such a change. The probability of a
false alarm is at most ``alpha``, however long the stream is and however often one looks.
"""

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
from scipy.ndimage import gaussian_filter
from sklearn.datasets import load_digits

from skl_transformaly import ConformalDetector, DriftMonitor, TimmExtractor, TransformalyDetector

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv

# %%
# Zeros and sixes are normal. Some fit the detector, some calibrate it, and the others come later, one after the other.
rng = np.random.default_rng(0)
digits = load_digits()
images = (digits.images / 16).astype(np.float32)
normal = images[rng.permutation(np.flatnonzero(np.isin(digits.target, [0, 6])))]
known, stream = normal[: 120 if QUICK else 200], normal[200:]
detector = ConformalDetector(
    TransformalyDetector(
        TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64),
        feature_spaces=["pretrained", "layers"],
        random_state=0,
    ),
    calibration=0.5,
    random_state=0,
).fit(known)

# %%
# Four streams begin in the same way. After 80 images nothing changes, or the light fades, or the lens loses its focus,
# or every fourth image is a seven: anomalies that are many, from a camera that is the same.
usual, later = stream[:80], stream[80:160]
sevens = later.copy()
sevens[::4] = images[digits.target == 7][: len(sevens[::4])]
streams = {
    "no change": later,
    "60 % of the light": 0.6 * later,
    "out of focus": np.stack([gaussian_filter(image, 0.8) for image in later]),
    "every fourth a seven": sevens,
}

# %%
# The monitor takes images batch by batch, as they come, and keeps what it needs of them: their scores.
figure, axes = plt.subplots(figsize=(9, 5), layout="constrained")
for name, changed in streams.items():
    monitor = DriftMonitor(detector, alpha=0.01)
    capital = []
    for batch in np.array_split(np.concatenate([usual, changed]), 32):
        report = monitor.update(batch)
        capital.append((report.n_images, report.log_capital))
    print(f"{name:<22} {report}")
    axes.plot(*np.transpose(capital), marker=".", label=name)
axes.axhline(-np.log(0.01), color="k", linestyle="--", linewidth=1, label="alarm at alpha = 0.01")
axes.axvline(80, color="grey", linewidth=1)
axes.set(xlabel="images", ylabel="logarithm of the capital", ylim=(-5, 40))
axes.legend(loc="upper left")
plt.show()

# %%
# With scores at hand, ``monitor.update_scores(scores)`` does the same. A monitor of ``detector.calibration_scores_``
# alone, without the detector, is small enough to be kept between batches with ``pickle``.
