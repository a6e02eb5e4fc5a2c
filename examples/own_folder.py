"""
Your own folder of images
=========================

The detector takes the path of a folder: it finds the images in it, decodes them batch by batch, and learns what they
have in common. Here the folder holds drawn washers; put the path of yours in its place.
"""

import os
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw

from skl_transformaly import TimmExtractor, TransformalyDetector
from skl_transformaly.plotting import ExtremeImagesDisplay

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv
rng = np.random.default_rng(0)


# %%
# A washer is a grey ring on a dark table, a little off the middle. Three things go wrong: no hole, a notch, or an oval.
def draw_washer(fault=None):
    size, (x, y) = 64, 32 + rng.integers(-3, 4, 2)
    image = Image.fromarray(rng.normal(50, 4, (size, size, 3)).clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    grey = int(rng.integers(150, 190))
    outer = int(rng.integers(20, 23))
    height = outer - 7 if fault == "oval" else outer
    draw.ellipse((x - outer, y - height, x + outer, y + height), fill=(grey, grey, grey))
    if fault != "filled":
        draw.ellipse((x - 9, y - 9, x + 9, y + 9), fill=(50, 50, 50))
    if fault == "notch":
        draw.pieslice((x - 24, y - 24, x + 24, y + 24), -35, 0, fill=(50, 50, 50))
    return image


folder = tempfile.TemporaryDirectory()
good, new = Path(folder.name, "good"), Path(folder.name, "new")
good.mkdir()
new.mkdir()
for i in range(40 if QUICK else 150):
    draw_washer().save(good / f"{i:03}.png")
for i, fault in enumerate([None] * 18 + ["filled", "notch", "oval"] * 2):
    draw_washer(fault).save(new / f"{i:02}-{fault or 'good'}.png")

# %%
# Fit on the folder. Nothing is labelled: all that is in it counts as normal.
detector = TransformalyDetector(
    TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64),
    random_state=0,
)
detector.fit(good)

# %%
# A list of paths is scored in its order, so that scores keep their names. +1 is normal, -1 an anomaly; the threshold
# leaves 5 % of the training images below it.
paths = sorted(new.iterdir())
scores = detector.score_samples(paths)
labels = np.where(scores >= detector.offset_, 1, -1)  # what detector.predict(paths) gives
for i in np.argsort(scores):
    print(f"{paths[i].name:<16} {scores[i]:>10.1f} {labels[i]:+d}")

# %%
# The extremes, with maps of where the students deviate. Frames show the truth, which the file names tell.
truth = np.array([1 if "good" in path.name else -1 for path in paths])
ExtremeImagesDisplay.from_estimator(detector, paths, truth, n_images=6)
plt.show()

# %%
folder.cleanup()
