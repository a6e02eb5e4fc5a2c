"""
Folders to try the command line on
==================================

Writes handwritten digits as image files: a folder of zeros to fit on, and a folder to test on with one folder a class.
"""

import sys
from pathlib import Path

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

root = Path(sys.argv[1] if len(sys.argv) > 1 else "out/digits")

# %%
# 1,797 digits of 8 x 8 pixels, values 0-16. Zeros are what is normal.
digits = load_digits()
pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
zeros = pixels[digits.target == 0]
folders = {
    "train": zeros[:130],
    "test/good": zeros[130:],
    "test/six": pixels[digits.target == 6][:40],
    "test/eight": pixels[digits.target == 8][:40],
}
for name, images in folders.items():
    (root / name).mkdir(parents=True, exist_ok=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(root / name / f"{i:03}.png")
    print(f"{root / name}: {len(images)} images")
