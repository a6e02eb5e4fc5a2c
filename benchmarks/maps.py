"""Do anomaly maps point at the anomaly? Pixel AUROC on pasted and drawn defects whose places are known.

    python benchmarks/maps.py --covid19 DIR --weights FILE --memory DIR

Normal images are chest X-rays, each class of the data set in turn (fitted on its training images; defects in its test
images), and drawn ceramic tiles (100 to fit, 20 with defects). Every test image gets one defect of each kind:

- cutpaste: a rectangle of the image itself, pasted elsewhere (``synthetic_outliers``);
- spot: a dark or bright ellipse with a soft edge;
- crack: a thin dark or bright line.

Three maps, all of the same teacher, bilinear from its grid of tokens to the image: ``anomaly_map``; attention rollout
[1]_, of the class token; and the distance of each token's features to the nearest token of the normal training images,
as in PatchCore [2]_, of the output of block 6, the middle one. Figures are the AUROC of the pixels of one image, defect
against the rest, averaged over images, with the 95 % interval of that mean. With --details also block by block. Writes
maps.md beside this file, and with --picture a picture.

References
----------
.. [1] S. Abnar and W. Zuidema, "Quantifying Attention Flow in Transformers", ACL 2020.
.. [2] K. Roth et al., "Towards Total Recall in Industrial Anomaly Detection", CVPR 2022.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from scipy import stats
from sklearn.metrics import roc_auc_score
from sklearn.neighbors import NearestNeighbors
from tqdm import tqdm

from skl_transformaly import TransformalyDetector
from skl_transformaly.model_selection import synthetic_outliers

sys.path.append(str(Path(__file__).with_name("selection")))
import held_out

SIZE = 224
N_TILES = (100, 20)
MIDDLE = 5

Defect = Callable[[np.ndarray, np.random.Generator], tuple[np.ndarray, np.ndarray]]


# What is normal, and what is wrong with it


def draw_tiles(rng: np.random.Generator) -> np.ndarray:
    """A wall of tiles (SIZE, SIZE, 3): its own offset, a shade for each tile, grout, grain and uneven light."""
    pitch, joint = 56, 4
    y, x = np.mgrid[:SIZE, :SIZE]
    dy, dx = rng.integers(0, pitch, 2)
    count = SIZE // pitch + 2
    shade = rng.normal(0, 6, (count, count, 1)) + rng.normal(0, 2, (count, count, 3))
    wall = np.array([176, 150, 120]) + shade[(y + dy) // pitch, (x + dx) // pitch]
    wall[((y + dy) % pitch < joint) | ((x + dx) % pitch < joint)] = (96, 92, 88)
    wall += 7 * rng.normal(size=(SIZE, SIZE, 1))
    slope = rng.normal(0, 10, 2)
    wall += (slope[0] * (x / SIZE - 0.5) + slope[1] * (y / SIZE - 0.5))[..., np.newaxis]
    wall = Image.fromarray(np.clip(wall, 0, 255).astype(np.uint8))
    return np.asarray(wall.filter(ImageFilter.GaussianBlur(0.7)))


def chest_xrays(root: Path, name: str) -> tuple[np.ndarray, np.ndarray]:
    return tuple(
        np.stack([_load(path) for path in sorted((root / part / name).iterdir())]) for part in ("train", "test")
    )


def _load(path: Path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB").resize((SIZE, SIZE), Image.Resampling.BILINEAR))


def spot(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Lay a dark or bright ellipse with a soft edge over the image."""
    radius, aspect = SIZE * rng.uniform(0.04, 0.1), rng.uniform(0.6, 1.6)
    y, x = SIZE * rng.uniform(0.15, 0.85, 2)
    mask = Image.new("L", (SIZE, SIZE))
    box = [x - radius * aspect, y - radius / aspect, x + radius * aspect, y + radius / aspect]
    ImageDraw.Draw(mask).ellipse(box, fill=255)
    return _paint(image, mask, radius / 6, rng.choice([20, 235]), rng.uniform(0.5, 0.8))


def crack(image: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Draw a thin, bent, dark or bright line on the image."""
    width = round(SIZE * rng.uniform(0.01, 0.022))
    angles = rng.uniform(0, 2 * np.pi) + np.cumsum(rng.normal(0, 0.5, 6))
    steps = 0.06 * SIZE * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    points = np.cumsum(np.vstack([SIZE * rng.uniform(0.2, 0.8, 2), steps]), axis=0)
    mask = Image.new("L", (SIZE, SIZE))
    ImageDraw.Draw(mask).line([tuple(point) for point in points], fill=255, width=width, joint="curve")
    return _paint(image, mask, width / 5, rng.choice([15, 240]), 0.85)


def _paint(image: np.ndarray, mask: Image.Image, blur: float, value: float, opacity: float):
    soft = opacity * np.asarray(mask.filter(ImageFilter.GaussianBlur(blur)))[..., np.newaxis] / 255
    return (image * (1 - soft) + value * soft).round().astype(np.uint8), np.asarray(mask) > 0


def with_defects(X: np.ndarray, seed: int) -> Iterator[tuple[str, np.ndarray, np.ndarray]]:
    """Yield kind, images with one defect each, and masks of the defects."""
    yield "cutpaste", *synthetic_outliers(X, "cutpaste", return_masks=True, random_state=seed)
    for defect in (spot, crack):
        rng = np.random.default_rng(seed)
        images, masks = zip(*[defect(image, rng) for image in X])
        yield defect.__name__, np.stack(images), np.stack(masks)


# The two rivals


def attention_rollout(detector: TransformalyDetector, X: np.ndarray) -> np.ndarray:
    """How much of each token has flowed into the class token by the last block (Abnar and Zuidema, Section 3)."""
    extractor = detector.extractor_
    attentions = [block.attn for block in extractor.blocks_]
    seen: list[torch.Tensor] = []
    handles = [a.attn_drop.register_forward_hook(lambda module, args, output: seen.append(args[0])) for a in attentions]
    fused = [attention.fused_attn for attention in attentions]
    coarse = []
    try:
        for attention in attentions:
            attention.fused_attn = False  # only the plain code has the attention weights at hand
        for batch in _batches(extractor, X):
            seen.clear()
            extractor.embed(batch)
            rollout = None
            for weights in seen:
                weights = weights.float().mean(dim=1)  # over heads
                # the skip connection passes each token on as it is; rows sum to one
                weights = (weights + torch.eye(weights.shape[-1])) / 2
                rollout = weights if rollout is None else weights @ rollout
            coarse.append(extractor.to_maps(rollout[:, 0, :, None]).numpy()[:, 0])
    finally:
        for attention, was in zip(attentions, fused):
            attention.fused_attn = was
        for handle in handles:
            handle.remove()
    return enlarge(np.concatenate(coarse))


def nearest_features(detector: TransformalyDetector, X_train: np.ndarray, block: int = MIDDLE) -> Callable:
    """Give the function that maps each token's distance to the nearest one of the training images."""
    train = _tokens(detector.extractor_, X_train, block)
    mean, scale = train.mean(axis=(0, 2, 3)), train.std(axis=(0, 2, 3))

    def rows(maps: np.ndarray) -> np.ndarray:
        return (np.moveaxis(maps, 1, -1).reshape(-1, maps.shape[1]) - mean) / scale

    neighbors = NearestNeighbors(n_neighbors=1, algorithm="brute").fit(rows(train))

    def maps(X: np.ndarray) -> np.ndarray:
        tokens = _tokens(detector.extractor_, X, block)
        distance = neighbors.kneighbors(rows(tokens))[0]
        return enlarge(distance.reshape(len(X), *tokens.shape[2:]))

    return maps


def _tokens(extractor: Any, X: np.ndarray, block: int) -> np.ndarray:
    found = []

    def visit(index, module, args, kwargs, output):
        if index == block:
            found.append(extractor.to_maps(output).float().numpy())

    for batch in _batches(extractor, X):
        extractor.embed(batch, visit)
    return np.concatenate(found)


def _batches(extractor: Any, X: np.ndarray) -> Iterator[torch.Tensor]:
    for start in range(0, len(X), extractor.batch_size):
        yield extractor.preprocess(X[start : start + extractor.batch_size])


def enlarge(coarse: np.ndarray) -> np.ndarray:
    """Maps (n, h, w) at the size of the images, bilinear."""
    images = [Image.fromarray(single.astype(np.float32)) for single in coarse]
    return np.stack([np.asarray(image.resize((SIZE, SIZE), Image.Resampling.BILINEAR)) for image in images])


# Figures and picture


def cell(masks: np.ndarray, maps: np.ndarray) -> tuple[np.ndarray, str]:
    """AUROC of each image, and its mean with interval as text."""
    each = np.array([roc_auc_score(mask.ravel(), single.ravel()) for mask, single in zip(masks, maps)])
    half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
    return each, f"{each.mean():.3f} ± {half:.3f}"


def picture(path: Path, shown: list[tuple[str, np.ndarray, np.ndarray, dict[str, np.ndarray]]]) -> None:
    """Image with the defect's outline, then each map over the image, darkest red its own maximum."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = list(shown[0][3])
    figure, axes = plt.subplots(len(shown), 1 + len(names), figsize=(2.2 * (1 + len(names)), 2.3 * len(shown)))
    for row, (title, image, mask, maps) in zip(np.atleast_2d(axes), shown):
        for ax in row:
            ax.imshow(image)
            ax.contour(mask, levels=[0.5], colors="cyan", linewidths=0.8)
            ax.set_axis_off()
        row[0].set_title(title, fontsize=8)
        for ax, name in zip(row[1:], names):
            ax.imshow(maps[name], cmap="inferno", alpha=0.7)
            ax.set_title(name, fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    held_out.add_options(parser)
    parser.add_argument("--details", action="store_true", help="also each block's map, and features of each block")
    parser.add_argument("--picture", type=Path, help="a .png to draw two images of each kind in")
    options = parser.parse_args()
    sets = {"tiles": lambda: _tiles(options.seed)}
    if options.covid19:
        for folder in sorted((options.covid19 / "train").iterdir()):
            sets[f"X-rays, {folder.name}"] = lambda name=folder.name: chest_xrays(options.covid19, name)
    rows = ["| normal images | defect | map | pixel AUROC |", "|---|---|---|---|"]
    means: dict[tuple[str, str], list[np.ndarray]] = {}
    shown = []
    for name, load in tqdm(sets.items()):
        X_train, X_test = load()
        detector = held_out.detector(options).fit(X_train)
        methods: dict[str, Callable] = {
            "anomaly_map": detector.anomaly_map,
            "attention rollout": lambda X, d=detector: attention_rollout(d, X),
            "nearest features": nearest_features(detector, X_train),
        }
        if options.details:
            for block in detector.students_.block_indices_.tolist():
                methods[f"anomaly_map, block={block}"] = lambda X, d=detector, b=block: d.anomaly_map(X, block=b)
            for block in range(len(detector.extractor_.blocks_)):
                methods[f"nearest features, block {block}"] = nearest_features(detector, X_train, block)
        for kind, images, masks in with_defects(X_test, options.seed):
            maps = {method: of(images) for method, of in methods.items()}
            for method, of in maps.items():
                each, text = cell(masks, of)
                means.setdefault((name.partition(",")[0], method), []).append(each)
                rows.append(f"| {name} | {kind} | {method} | {text} |")
            for i in (0, 1):
                shown.append((f"{name}, {kind}", images[i], masks[i], {m: maps[m][i] for m in list(methods)[:3]}))
    summary = ["| normal images | map | pixel AUROC, mean over images and kinds |", "|---|---|---|"]
    for (name, method), parts in means.items():
        each = np.concatenate(parts)
        half = stats.t.ppf(0.975, len(each) - 1) * each.std(ddof=1) / np.sqrt(len(each))
        summary.append(f"| {name} | {method} | {each.mean():.3f} ± {half:.3f} |")
    lines = ["# Pixel AUROC of anomaly maps", "", *summary, "", "By kind of defect:", "", *rows]
    if options.picture:
        picture(options.picture, shown)
    held_out.report(Path(__file__).with_suffix(".md"), lines, options)


def _tiles(seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    return tuple(np.stack([draw_tiles(rng) for _ in range(n)]) for n in N_TILES)


if __name__ == "__main__":
    main()
