"""What saving and loading a detector costs, and how far scores drift where something else computes them.

    python benchmarks/faults/model_file.py --weights FILE --out benchmarks/faults/model_file.md

Detectors, with default settings, are fitted on 64 of scikit-learn's digits. Drift is that of the probes that `load`
replays, in its unit: the score's distance from the threshold plus the standard deviation of the training scores.
"""

from __future__ import annotations

import argparse
import pickle
import platform
import sys
import tempfile
import timeit
import warnings
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from sklearn.datasets import load_digits

from skl_transformaly import TimmExtractor, TransformalyDetector, __version__, load, save
from skl_transformaly.persistence import read_header


def seconds(work: Callable[[], object], repeat: int = 3) -> float:
    """The least of a few times."""
    return min(timeit.repeat(work, number=1, repeat=repeat))


def probe_images() -> list[np.ndarray]:
    """Four digits that no detector here was fitted on, and a picture of noise."""
    digits = load_digits().images[-4:].astype(np.float32) / 16
    noise = np.random.RandomState(0).randint(0, 256, (64, 64, 3)).astype(np.uint8)
    return [*digits[..., np.newaxis], noise]


def drift(detector: TransformalyDetector, before: np.ndarray) -> float:
    """Largest drift of the probes' scores, as `load` counts it."""
    after = np.array([detector.score_samples([image])[0] for image in probe_images()])
    unit = np.abs(before - detector.offset_) + np.nanstd(detector.training_scores_)
    return float((np.abs(after - before) / unit).max())


def measure(name: str, extractor: TimmExtractor, folder: Path) -> list[str]:
    """A row of each table."""
    X = (load_digits().images[:64] * 15.9375).astype(np.uint8)
    detector = TransformalyDetector(extractor, random_state=0).fit(X)
    path = folder / "detector.tfm"
    saving = seconds(lambda: save(detector, path, probes=probe_images()))
    loading = [seconds(lambda verify=verify: load(path, verify=verify)) for verify in (False, True)]
    header = seconds(lambda: read_header(path))
    save(detector, folder / "without.tfm", teacher=False)
    size, without = path.stat().st_size / 2**20, (folder / "without.tfm").stat().st_size / 2**20
    pickled = len(pickle.dumps(detector)) / 2**20
    loaded = load(path)
    same = bool((loaded.score_samples(X) == detector.score_samples(X)).all())

    before = np.array([detector.score_samples([image])[0] for image in probe_images()])
    threads = torch.get_num_threads()
    torch.set_num_threads(1 if threads > 1 else 2)
    other_threads = drift(detector, before)
    torch.set_num_threads(threads)
    other = "float32" if detector.extractor_.precision_ == "bfloat16" else "bfloat16"
    used, detector.extractor_.precision_ = detector.extractor_.precision_, other
    other_precision = drift(detector, before)
    return [
        f"| {name} | {size:.1f} | {without:.1f} | {pickled:.1f} | {saving:.2f} | {loading[0]:.2f} | {loading[1]:.2f} "
        f"| {1000 * header:.1f} | {'yes' if same else 'NO'} |",
        f"| {name} | {drift(loaded, before):.1g} | {other_threads:.1g} | {used} to {other}: {other_precision:.2g} |",
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--weights", help="weights of vit_tiny_patch16_224, for rows on a trained transformer")
    parser.add_argument("--large", action="store_true", help="a ViT-B/16 as well")
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    teachers = {"bundled EfficientNet-lite0": TimmExtractor("tf_efficientnet_lite0", weights="bundled")}
    if arguments.weights:
        for precision in ("auto", "float32"):
            teachers[f"ViT-Tiny/16, {precision}"] = TimmExtractor(
                "vit_tiny_patch16_224", weights=arguments.weights, precision=precision
            )
    if arguments.large:
        teachers["ViT-B/16, random"] = TimmExtractor("vit_base_patch16_224", weights=None)
    with tempfile.TemporaryDirectory() as folder:
        rows = []
        for name, extractor in teachers.items():
            rows.append(measure(name, extractor, Path(folder)))
            print(*rows[-1], sep="\n", file=sys.stderr, flush=True)
    lines = [
        "# Model files: sizes, times, drift",
        "",
        f"`python benchmarks/faults/model_file.py{' --weights FILE' if arguments.weights else ''}"
        f"{' --large' if arguments.large else ''}`; Python "
        f"{platform.python_version()}, skl-transformaly {__version__}, torch {version('torch')}, timm "
        f"{version('timm')}, {torch.get_num_threads()} threads on {platform.machine()} "
        f"{torch.backends.cpu.get_cpu_capability()}. Times are the least of three.",
        "",
        "| teacher | file, MiB | without teacher | pickle | save, s | load, s | load and verify, s | header, ms "
        "| same bits |",
        "|---|---|---|---|---|---|---|---|---|",
        *(row[0] for row in rows),
        "",
        "Largest drift of five probes, in the unit of `tolerance`, whose default is 1e-3:",
        "",
        "| teacher | loaded | another number of threads | another precision |",
        "|---|---|---|---|",
        *(row[1] for row in rows),
    ]
    print("\n".join(lines))
    if arguments.out:
        arguments.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
