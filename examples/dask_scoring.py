"""
Scoring with dask
=================

Once a detector is fitted, images are independent of each other, so a folder can be scored in parts, on the threads of
one machine or on many machines. :func:`~skl_transformaly.distributed.map_detector` makes the graph, dask runs it. Needs
the extra ``dask``.
"""

import os
import sys
import tempfile
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from dask.distributed import Client
from PIL import Image
from sklearn.datasets import load_digits

from skl_transformaly import TimmExtractor, TransformalyDetector
from skl_transformaly.distributed import map_detector
from skl_transformaly.plotting import ScoreHistogramDisplay

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv

# %%
# A folder of digits to score, and a detector that knows fives.
digits = load_digits()
pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
known, new = pixels[:900], pixels[900 : 1020 if QUICK else 1500]
is_five = digits.target[900 : 900 + len(new)] == 5
folder = tempfile.TemporaryDirectory()
for i, image in enumerate(new):
    Image.fromarray(image).save(Path(folder.name, f"{i:04}.png"))

detector = TransformalyDetector(
    TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=64),
    random_state=0,
).fit(known[digits.target[:900] == 5])

# %%
# Two threads of this process stand for a cluster here; ``Client("tcp://scheduler:8786")`` is a real one, whose workers
# must see the same files. Nothing is read until ``compute``.
with Client(processes=False, n_workers=1, threads_per_worker=2, dashboard_address=None):
    lazy = map_detector(detector, folder.name, partition_size=60)
    print(lazy)
    scores = lazy.compute()

# %%
# The order is that of the sorted file names, and the scores are those of ``score_samples``, up to rounding.
few = sorted(Path(folder.name).iterdir())[:60]
difference = np.abs(scores[:60] - detector.score_samples(few)).max()
print(f"{len(scores)} scores; the first 60 differ from score_samples by {difference:.1e} at most")

# %%
ScoreHistogramDisplay.from_predictions(scores, np.where(is_five, 1, -1), threshold=detector.offset_)
plt.show()

# %%
folder.cleanup()
