"""
Anomaly maps: where in the image?
=================================

``anomaly_map`` says for each place in an image how far the students deviate from the teacher there, in standard
deviations over the training images at the same place. It works best where images are framed alike, as those of parts on
a fixed camera are.
"""

import os
import sys

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image, ImageDraw
from sklearn.metrics import roc_auc_score

from skl_transformaly import TimmExtractor, TransformalyDetector

QUICK = os.environ.get("SKL_TRANSFORMALY_QUICK") == "1" or "--quick" in sys.argv
rng = np.random.default_rng(0)
SIZE = 96


# %%
# A tile has joints around it and a grain; a bad one has a scratch or a stain besides. The mask says where.
def draw_tile():
    grain = rng.normal(0, 9, (SIZE // 4, SIZE // 4)).clip(-40, 40)
    tone = np.array([170, 150, 125]) + rng.integers(-8, 9)
    coarse = Image.fromarray(grain.astype(np.float32)).resize((SIZE, SIZE), Image.Resampling.BICUBIC)
    image = Image.fromarray((tone + np.asarray(coarse)[..., np.newaxis]).clip(0, 255).astype(np.uint8))
    ImageDraw.Draw(image).rectangle((1, 1, SIZE - 2, SIZE - 2), outline=(90, 85, 80), width=4)
    return np.asarray(image)


def damage(tile, kind):
    image, mask = Image.fromarray(tile), Image.new("1", (SIZE, SIZE))
    x, y = rng.integers(20, SIZE - 44, 2)
    for draw, colour in [(ImageDraw.Draw(image), (60, 50, 45)), (ImageDraw.Draw(mask), 1)]:
        if kind == "scratch":
            draw.line((x, y, x + 26, y + 18), fill=colour, width=3)
        else:
            draw.ellipse((x, y, x + 18, y + 14), fill=colour)
    return np.asarray(image), np.asarray(mask)


good = np.stack([draw_tile() for _ in range(30 if QUICK else 100)])
kinds = ["scratch", "stain"] * 3
bad, masks = map(np.stack, zip(*(damage(draw_tile(), kind) for kind in kinds)))

# %%
# Only the students make maps, so the pre-trained space can be left out.
detector = TransformalyDetector(
    TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=SIZE),
    feature_spaces=["discrepancy"],
    random_state=0,
).fit(good)
maps = detector.anomaly_map(bad)

# %%
# Each map has the size of its image. How well it points is the AUROC over pixels, against the masks.
print(f"pixel AUROC, mean over blocks: {roc_auc_score(masks.ravel(), maps.ravel()):.3f}")
for block in detector.students_.block_indices_:
    alone = detector.anomaly_map(bad, block=int(block))
    print(f"pixel AUROC, block {block} alone:   {roc_auc_score(masks.ravel(), alone.ravel()):.3f}")

# %%
# Images, masks and maps, all maps on one scale: 0 is the mean of the training images.
figure, axes = plt.subplots(3, len(bad), figsize=(1.7 * len(bad), 5.2), layout="constrained")
top = np.percentile(maps, 99.8)
for image, mask, anomaly_map, column in zip(bad, masks, maps, axes.T):
    column[0].imshow(image)
    column[1].imshow(mask, cmap="gray")
    drawn = column[2].imshow(anomaly_map, cmap="magma", vmin=0, vmax=top)
    for ax in column:
        ax.set(xticks=[], yticks=[])
for ax, name in zip(axes[:, 0], ["image", "mask", "map"]):
    ax.set_ylabel(name)
figure.colorbar(drawn, ax=axes[2, :].tolist(), label="standard deviations", shrink=0.9)
plt.show()
