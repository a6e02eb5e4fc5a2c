"""How far do scores depend on processes, threads and batch sizes? Fits with one seed, compared bit for bit.

    python benchmarks/faults/determinism.py [--weights vit_tiny_patch16_224.safetensors]

Each row is a teacher in a precision. "Processes": bits of scores of two fits with one thread, in processes of their own
with other hash seeds. "Threads of a fit", "threads of a score": the greatest difference of scores, in nats, between 1
and 2 (and 3) threads within torch, in fitting or in scoring alone. "Batch size": between batches of 1, 5 and 64 in
scoring. Beside each difference stand the images whose prediction changes.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time

import numpy as np
import torch

from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector


def images() -> np.ndarray:
    """Pictures with some structure: gradients, and noise upon them."""
    rng = np.random.default_rng(0)
    slopes = rng.normal(size=(40, 2, 3))
    y, x = np.mgrid[-1:1:64j, -1:1:64j]
    smooth = 128 + 60 * (y[None, ..., None] * slopes[:, None, None, 0] + x[None, ..., None] * slopes[:, None, None, 1])
    return np.clip(smooth + rng.normal(scale=20, size=smooth.shape), 0, 255).astype(np.uint8)


def extractors(weights: str | None) -> dict[str, TimmExtractor]:
    found = {
        f"{model}, {precision}": TimmExtractor(model, weights=None, image_size=64, precision=precision, device="cpu")
        for model, precision in (
            ("test_vit", "float64"),
            ("test_vit", "float32"),
            ("test_vit", "bfloat16"),
            ("test_efficientnet", "float32"),
        )
    }
    found["bundled, auto"] = TimmExtractor("tf_efficientnet_lite0", weights="bundled", image_size=96, device="cpu")
    if weights is not None:
        for precision in ("float32", "auto"):
            found[f"ViT-Tiny, {precision}"] = TimmExtractor(
                "vit_tiny_patch16_224", weights=weights, image_size=96, precision=precision, device="cpu"
            )
    return found


def fit(extractor: TimmExtractor, threads: int) -> TransformalyDetector:
    torch.set_num_threads(threads)
    students = BlockStudents(n_blocks=4, max_epochs=4)
    return TransformalyDetector(extractor, students=students, random_state=0).fit(images()[:30])


def process(name: str, weights: str | None, hash_seed: int) -> str:
    """Bits of the scores of a process of its own."""
    command = [sys.executable, __file__, "--one", name, *(["--weights", weights] if weights else [])]
    environment = {**os.environ, "PYTHONHASHSEED": str(hash_seed), "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, check=True, capture_output=True, text=True, env=environment).stdout


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="file of timm's vit_tiny_patch16_224")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one:
        scores = fit(extractors(options.weights)[options.one], 1).score_samples(images())
        print(scores.tobytes().hex())
        return 0
    start = time.monotonic()
    result: dict = {"rows": {}}
    problems = 0
    for name, extractor in extractors(options.weights).items():
        detector = fit(extractor, 1)
        scores, spread = detector.score_samples(images()), detector.score_samples(images()).std()
        again = fit(extractor, 1).score_samples(images())

        def apart(others: list[np.ndarray], scores: np.ndarray = scores, offset: float = detector.offset_) -> list:
            changed = sum(int(((other >= offset) != (scores >= offset)).sum()) for other in others)
            return [float(max(np.abs(other - scores).max() for other in others)), changed]

        row: dict = {"spread of scores": float(spread), "same process": bool(np.array_equal(again, scores))}
        bits = {process(name, options.weights, seed) for seed in (1, 2)}
        row["processes"] = bits == {scores.tobytes().hex() + "\n"}
        within = []
        for threads in (2, 3):
            torch.set_num_threads(threads)
            within.append(detector.score_samples(images()))
        row["threads of a score"] = apart(within)
        row["threads of a fit"] = apart([fit(extractor, 2).score_samples(images())])
        torch.set_num_threads(1)
        batches = []
        for size in (1, 5, 64):
            detector.extractor_.batch_size = size
            batches.append(detector.score_samples(images()))
        row["batch size"] = apart(batches)
        problems += not (row["same process"] and row["processes"])
        result["rows"][name] = row
        print(name, row, flush=True)
    result.update(problems=problems, seconds=round(time.monotonic() - start, 1))
    print("RESULT", json.dumps(result))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
