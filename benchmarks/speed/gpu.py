"""Images a second on a GPU: the teacher alone in plain timm, scoring and fitting with the whole method."""

from __future__ import annotations

import argparse
import sys
from functools import partial
from typing import Any

import numpy as np
import torch
from harness import Timing, interleaved, noise, table, teacher
from sklearn.base import clone
from times import BLOCKS, students_of

__all__ = ["gpu"]

DEVICE = "cuda"
STUDIES = (
    ("vit_base_patch16_224", 224),
    ("vit_base_patch16_224", 384),
    ("vit_tiny_patch16_224", 224),
    ("bundled", 224),
)
IMAGES, BATCH, ROUNDS = 512, 128, 4


def gpu(options: argparse.Namespace) -> str:
    """Scoring and fitting against timm's forward pass, on a GPU."""
    rows = []
    for model, size in STUDIES:
        if model in options.models:
            rows.append(_rates(model, size, options))
    header = ["teacher", "pixels", "precision", "timm's forward pass", "score, images on the GPU",
              "score, uint8 arrays", "fit"]  # fmt: skip
    return (
        f"### On a GPU, images a second\n\n{table(header, rows)}\n\nMedian (minimum to maximum) of {options.repeats}. "
        f"Batches of {BATCH}; timm's pass and the first scoring take {ROUNDS} batches that lie on the GPU already, the "
        f"others {IMAGES} uint8 images of the teacher's size in main memory. {BLOCKS} solved students; "
        "the fit includes held-out scores of the training images."
    )


def _rates(model: str, size: int, options: argparse.Namespace) -> list[str]:
    """A row of the table."""
    from skl_transformaly import TransformalyDetector
    from skl_transformaly.students._imitation import Comparer

    extractor = teacher(model, precision=options.precision, device=DEVICE, batch_size=BATCH, image_size=size)
    images = noise(IMAGES, size)
    batch = extractor.preprocess(images[:BATCH])
    detector = TransformalyDetector(extractor, students=students_of("solved"), random_state=0)
    fitted = clone(detector).fit(images)
    compare = Comparer(fitted.extractor_, fitted.students_)
    times = interleaved(
        {
            "timm": partial(_passes, extractor, batch),
            "score": lambda: [compare(batch) for _ in range(ROUNDS)],
            "arrays": partial(fitted.score_as_new, images),
            "solved": partial(detector.fit, images),
        },
        options.repeats,
    )
    counts = {"timm": ROUNDS * BATCH, "score": ROUNDS * BATCH}
    shown = [_rate(timing, counts.get(name, IMAGES)) for name, timing in times.items()]
    row = [model, str(size), extractor.precision_, *shown]
    print("# " + ", ".join(row), file=sys.stderr)  # a stopped run has measured something
    return row


def _rate(timing: Timing, n: int) -> str:
    rates = np.array([n / s for s in timing.seconds])
    return f"{np.median(rates):,.0f} ({rates.min():,.0f} to {rates.max():,.0f})"


@torch.no_grad()
def _passes(extractor: Any, batch: torch.Tensor) -> None:
    with extractor.compute():
        for _ in range(ROUNDS):
            extractor.teacher_.model.forward_features(batch)
