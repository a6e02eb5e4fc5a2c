"""
Two photographs, and what is unlike the first
=============================================

Pieces of a photograph of a temple are what is normal. Among new pieces of it are some of a photograph of a flower.
Draws normal pieces, the most anomalous ones with their maps, and the scores. The photographs are scikit-learn's sample
images.
"""

import argparse
import os
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_sample_images

from skl_transformaly import TimmExtractor, TransformalyDetector

parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
parser.add_argument("--out", type=Path, default=Path("out/front_page.png"), help="where the picture goes")
options = parser.parse_args()
quick = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1"

rng = np.random.default_rng(0)
temple, flower = load_sample_images().images


def pieces(photograph: np.ndarray, count: int) -> np.ndarray:
    """Cut squares of 128 pixels at random."""
    height, width = photograph.shape[:2]
    corners = np.column_stack([rng.integers(0, height - 128, count), rng.integers(0, width - 128, count)])
    return np.stack([photograph[y : y + 128, x : x + 128] for y, x in corners])


train = pieces(temple, 30 if quick else 100)
new = np.concatenate([pieces(temple, 40), pieces(flower, 6)])
is_flower = np.arange(len(new)) >= 40

# %%
# One fit on normal pieces; scores, decisions and maps of new ones.
detector = TransformalyDetector(TimmExtractor("bundled"), random_state=0).fit(train)
scores = detector.score_samples(new)
flagged = scores < detector.offset_
print(f"flagged: {flagged[is_flower].sum()} of 6 pieces of the flower, {flagged[~is_flower].sum()} of 40 of the temple")
worst = np.argsort(scores)[:6]
maps = detector.anomaly_map(new[worst])

# %%
# Normal pieces, the most anomalous new ones, their maps, and all scores.
figure = plt.figure(figsize=(9, 5.6), layout="constrained")
pictures, below = figure.subfigures(2, 1, height_ratios=[3, 2])
axes = pictures.subplots(3, 6)
for column in range(6):
    axes[0, column].imshow(train[column])
    axes[1, column].imshow(new[worst[column]])
    axes[2, column].imshow(new[worst[column]])
    axes[2, column].imshow(maps[column], cmap="inferno", alpha=0.6, vmin=0, vmax=5)
for row, title in zip(axes, ("learned as normal", "least normal of new", "and where")):
    row[0].set_ylabel(title, rotation=0, ha="right", va="center")
    for ax in row:
        ax.set(xticks=[], yticks=[])
ax = below.subplots()
bins = np.linspace(scores.min(), scores.max(), 40)
ax.hist(scores[~is_flower], bins, label="new pieces of the temple")
ax.hist(scores[is_flower], bins, label="pieces of the flower")
ax.axvline(detector.offset_, color="black", linestyle="--", label="threshold")
ax.set(xlabel="score: higher is more normal", ylabel="images")
ax.legend()
options.out.parent.mkdir(parents=True, exist_ok=True)
figure.savefig(options.out, dpi=110)
