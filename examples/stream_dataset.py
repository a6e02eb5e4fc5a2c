"""
A stream from a Dataset
=======================

Images that are not files, from a camera or a data base, come through a torch ``Dataset``: the detector asks it for one
image after another, and holds no more than a batch. Here a belt is watched, and from some frame on something is wrong.
"""

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits
from torch.utils.data import Dataset, Subset

from skl_transformaly import TimmExtractor, TransformalyDetector

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv


# %%
# A map-style Dataset has ``__len__`` and ``__getitem__``, which gives an image, or an image and its label.
class Belt(Dataset):
    """Digits that pass by; `decoded` counts what was asked for."""

    def __init__(self, frames):
        self.frames = frames
        self.decoded = 0

    def __len__(self):
        return len(self.frames)

    def __getitem__(self, i):
        self.decoded += 1
        return np.rint(self.frames[i] * (255 / 16)).astype(np.uint8)


digits = load_digits()
ones = digits.images[digits.target == 1]
n_fit, n_window = (60, 20) if QUICK else (100, 20)
belt = Belt(ones[:n_fit])

# %%
# Learn from the first frames.
detector = TransformalyDetector(
    TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64),
    random_state=0,
).fit(belt)

# %%
# Then watch, window by window. Ones go on for a while; then more and more fours come between them.
rng = np.random.default_rng(0)
fours = digits.images[digits.target == 4]
share = np.repeat([0, 0, 0.3, 0.6], n_window)
is_four = rng.uniform(size=len(share)) < share
rest = ones[n_fit:]
stream = Belt([fours[i] if four else rest[i % len(rest)] for i, four in enumerate(is_four)])
scores = []
for start in range(0, len(stream), n_window):
    before = stream.decoded
    window = Subset(stream, range(start, start + n_window))
    decisions = detector.decision_function(window)
    scores.extend(decisions)
    print(
        f"frames {start:>3}-{start + n_window - 1:>3}: {np.mean(decisions < 0):>4.0%} flagged, "
        f"{is_four[start : start + n_window].mean():>4.0%} are fours ({stream.decoded - before} images decoded)"
    )

# %%
# Scores over time. Single frames are noisy; their running median tells that something has changed.
scores = np.array(scores)
median = [np.median(scores[max(0, i - 9) : i + 1]) for i in range(len(scores))]
frames = np.arange(len(scores))
figure, ax = plt.subplots(figsize=(9, 3.8), layout="constrained")
ax.plot(frames[~is_four], scores[~is_four], "o", markersize=4, color="tab:blue", label="one")
ax.plot(frames[is_four], scores[is_four], "o", markersize=4, color="tab:orange", label="four")
ax.plot(frames, median, color="0.4", label="median of the last 10")
ax.axhline(0, color="k", linestyle="--", label="threshold")
ax.set(xlabel="frame", ylabel="decision (higher is more normal)")
ax.set_yscale("symlog", linthresh=10)
ax.legend(loc="lower left", ncols=2)
plt.show()
