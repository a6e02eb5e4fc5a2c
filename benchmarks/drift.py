"""False alarms of DriftMonitor over 1,000 streams, and how soon it notices a change of real images.

    python benchmarks/drift.py

writes drift.md beside it. Real images: each class of the natural scenes ("view"), with the ViT-Tiny of
benchmarks/accuracy. A detector is fitted on half of the training images of a class. The other images of the class are
scored as they are and changed, and are shuffled 1,000 times into calibration images, a stream before the change, and a
stream after it. Scores are kept in --scores, so that streams can be drawn anew without scoring again.
"""

from __future__ import annotations

import argparse
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter
from scipy.stats import kstwo

from skl_transformaly import DriftMonitor, TransformalyDetector

sys.path.insert(0, str(Path(__file__).parent / "accuracy"))
from data import load
from run import extractor

CALIBRATION, BEFORE, AFTER = 100, 60, 100
WINDOW, LOOK = 50, 10  # images that the Kolmogorov-Smirnov test compares, and after which it is looked at
CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "10 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.9),
    "40 % darker": lambda image: ImageEnhance.Brightness(image).enhance(0.6),
    "40 % brighter": lambda image: ImageEnhance.Brightness(image).enhance(1.4),
    "blur, 1 pixel": lambda image: image.filter(ImageFilter.GaussianBlur(1)),
    "blur, 2 pixels": lambda image: image.filter(ImageFilter.GaussianBlur(2)),
    "middle 80 % cut out": lambda image: _crop(image, 0.8),
    "middle 50 % cut out": lambda image: _crop(image, 0.5),
}
NEW, SOME = "a new class", "a new class in 3 of 10 images"


def _crop(image: Image.Image, share: float) -> Image.Image:
    width, height = image.size
    x, y = width * (1 - share) / 2, height * (1 - share) / 2
    return image.crop((round(x), round(y), round(width - x), round(height - y))).resize(image.size)


def score(path: Path) -> dict[str, np.ndarray]:
    """Scores of the images that no detector was fitted on, and of each detector's own held-out ones; kept in `path`."""
    kept = dict(np.load(path)) if path.exists() else {}
    data = load("view")
    classes = np.array(data.labels)
    for label, name in enumerate(data.classes):
        if f"{name}/{NEW}" in kept:
            continue
        positions = np.random.default_rng(label).permutation(np.flatnonzero(classes == label))
        training = [p for p in positions if p < data.n_train][:150]
        rest = sorted(set(positions) - set(training))
        other = np.flatnonzero(classes == (label + 1) % len(data.classes))[: len(rest)]
        detector = TransformalyDetector(extractor("vit_tiny", "auto"), random_state=0)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detector.fit([data.images[i] for i in training])
        images = [Image.open(data.images[i]).convert("RGB") for i in rest]
        kept[f"{name}/held-out"] = detector.training_scores_
        kept[f"{name}/none"] = detector.score_samples(images)
        for change, function in CHANGES.items():
            kept[f"{name}/{change}"] = detector.score_samples([function(image) for image in images])
        kept[f"{name}/{NEW}"] = detector.score_samples([data.images[i] for i in other])
        np.savez(path, **kept)
        print("scored", name, flush=True)
    return kept


def by_monitor(reference: np.ndarray, stream: np.ndarray) -> tuple[float, float]:
    """Lowest p-value that the monitor ever shows, and images after which it raises the alarm at 0.01."""
    report = DriftMonitor(reference).update_scores(stream)
    return report.p_value, np.inf if report.alarm is None else report.alarm


def by_window(reference: np.ndarray, stream: np.ndarray) -> tuple[float, float]:
    """The same of the Kolmogorov-Smirnov test of the window, looked at after every tenth image."""
    ends = np.arange(WINDOW, len(stream) + 1, LOOK)
    windows = np.sort(np.lib.stride_tricks.sliding_window_view(stream, WINDOW)[ends - WINDOW], axis=1)
    known = np.sort(reference)
    distances = []
    for window in windows:  # what scipy's ks_2samp(method="asymp") computes, without what it checks each time
        points = np.concatenate([window, known])
        below = np.searchsorted(window, points, side="right") / WINDOW
        distances.append(np.abs(below - np.searchsorted(known, points, side="right") / len(known)).max())
    p = kstwo.sf(distances, np.round(WINDOW * len(known) / (WINDOW + len(known))))
    low = np.flatnonzero(p <= 0.01)
    return p.min(), ends[low[0]] if len(low) else np.inf


def false_alarms(streams: list[tuple[np.ndarray, np.ndarray]]) -> str:
    cells = []
    for test in (by_monitor, by_window):
        p = np.array([test(reference, stream)[0] for reference, stream in streams])
        cells += [f"{100 * np.mean(p <= alpha):.1f} %" for alpha in (0.01, 0.05)]
    return " | ".join(cells)


def simulated(n: int, length: int, count: int, *, anomalies: float = 0.0, values: int | None = None) -> list:
    """Normal scores, or ones that take few values; `anomalies` are far below."""
    rng = np.random.default_rng(0)
    streams = []
    for _ in range(count):
        scores = rng.normal(size=n + length) if values is None else rng.integers(0, values, n + length).astype(float)
        scores[n:][rng.random(length) < anomalies] -= 100
        streams.append((scores[:n], scores[n:]))
    return streams


def real(kept: dict[str, np.ndarray], change: str, count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Calibration scores and a stream each, from all classes in turn; `change` sets in after BEFORE images."""
    names = sorted({key.split("/")[0] for key in kept})
    rng = np.random.default_rng(0)
    streams = []
    for i in range(count):
        name = names[i % len(names)]
        usual = kept[f"{name}/none"]
        changed = kept[f"{name}/{NEW if change == SOME else change}"]
        order = rng.permutation(len(usual))
        reference, before, after = np.split(order[: CALIBRATION + BEFORE + AFTER], [CALIBRATION, CALIBRATION + BEFORE])
        late = changed[after]
        if change == SOME:
            late = np.where(rng.random(AFTER) < 0.3, late, usual[after])
        streams.append((usual[reference], np.concatenate([usual[before], late])))
    return streams


def delay_row(name: str, streams: list[tuple[np.ndarray, np.ndarray]]) -> str:
    cells = []
    for test in (by_monitor, by_window):
        delays = np.array([test(reference, stream)[1] for reference, stream in streams]) - BEFORE
        delays = delays[delays > 0]  # the others were false alarms before the change
        middle = np.quantile(delays, 0.5, method="inverted_cdf")
        late = np.quantile(delays, 0.9, method="inverted_cdf")
        cells.append(f"{100 * np.mean(np.isfinite(delays)):.0f} %")
        cells += [f"{value:.0f}" if np.isfinite(value) else "-" for value in (middle, late)]
    low = np.mean([np.mean(_low(reference, stream[BEFORE:])) for reference, stream in streams])
    return f"| {name} | {100 * low:.0f} % | " + " | ".join(cells) + " |"


def _low(reference: np.ndarray, scores: np.ndarray) -> np.ndarray:
    return (1 + np.searchsorted(np.sort(reference), scores, side="right")) / (len(reference) + 1) <= 0.05


def own_scores(kept: dict[str, np.ndarray], count: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """A detector's held-out training scores as the reference, and the other images as a stream."""
    names = sorted({key.split("/")[0] for key in kept})
    rng = np.random.default_rng(0)
    pairs = [(kept[f"{name}/held-out"], kept[f"{name}/none"]) for name in names]
    return [(pairs[i % len(pairs)][0], rng.permutation(pairs[i % len(pairs)][1])) for i in range(count)]


def report(kept: dict[str, np.ndarray], count: int) -> str:
    length = BEFORE + AFTER
    rows = {
        "normal scores, 20 for calibration, streams of 1,000": simulated(20, 1000, count),
        "normal scores, 100 for calibration, streams of 1,000": simulated(100, 1000, count),
        "normal scores, 500 for calibration, streams of 5,000": simulated(500, 5000, count),
        "scores with 5 values, 100 for calibration, streams of 1,000": simulated(100, 1000, count, values=5),
        f"real scores, {CALIBRATION} for calibration, streams of {length}": real(kept, "none", count),
        "real scores, 150 training images that calibrate themselves, streams of 270": own_scores(kept, count),
        "beyond the promise: 2 % anomalies, 100 for calibration, 1,000": simulated(100, 1000, count, anomalies=0.02),
        "beyond the promise: 5 % anomalies, 100 for calibration, 1,000": simulated(100, 1000, count, anomalies=0.05),
        "beyond the promise: 10 % anomalies, 100 for calibration, 1,000": simulated(100, 1000, count, anomalies=0.1),
    }
    lines = [
        "# Drift: false alarms, and how soon a change is noticed",
        "",
        f"Written by `python benchmarks/drift.py`. {count:,} streams a row.",
        "",
        "## Streams in which nothing changes",
        "",
        "Share of streams that ever raise an alarm. `DriftMonitor(alpha=...)` promises at most alpha. The p-value of a "
        f"window of {WINDOW} images (Kolmogorov-Smirnov), looked at after every tenth image, promises nothing.",
        "",
        "| scores | monitor, 0.01 | monitor, 0.05 | window, 0.01 | window, 0.05 |",
        "|---|---|---|---|---|",
    ]
    for name, streams in rows.items():
        lines.append(f"| {name} | {false_alarms(streams)} |")
        print(lines[-1], flush=True)
    lines += [
        "",
        "## Streams in which something changes",
        "",
        f"Natural scenes of one class, ViT-Tiny: {CALIBRATION} images for calibration, {BEFORE} like these, then "
        f"{AFTER} changed ones; classes in turn. Noticed: share of streams with an alarm at 0.01 after the change. "
        "Delay: changed images until the alarm, median and 90 % quantile over all streams; - if fewer were "
        "noticed. False alarms before the change, more frequent with the window, are left out.",
        "",
        "| change | images with p <= 0.05 | noticed | delay | 90 % | by window: noticed | delay | 90 % |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for change in (*CHANGES, NEW, SOME):
        lines.append(delay_row(change, real(kept, change, count)))
        print(lines[-1], flush=True)
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scores", type=Path, default=Path("drift_scores.npz"), help="file to keep scores in")
    parser.add_argument("--streams", type=int, default=1000)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    os.environ.setdefault("TQDM_DISABLE", "1")
    options.out.write_text(report(score(options.scores), options.streams))


if __name__ == "__main__":
    main()
