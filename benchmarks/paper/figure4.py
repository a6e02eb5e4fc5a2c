"""Pre-training confusion: what it is, where it is on a data set, and which runs it predicts to fail.

    python benchmarks/paper/figure4.py --data cifar10 --root DIR --weights FILE

Draws OUT/figure4_DATA.png. (a) Four shapes, seen by a small network that was trained to tell round or square ones from
pointed ones: shapes of one label end up in the same place, and no detector on these features can tell them apart. (b)
t-SNE of the teacher's embeddings of the test images, coloured by class. (c) The chance that an image of one class is
nearer to another class than that class's own images are.

Writes OUT/confusion_DATA.md: the pairs of classes that the teacher confuses most, and, where tables.py has computed
multimodal figures into the same OUT, how well a class's confusion predicts them.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

import torch
from confusion import class_confusion, class_distances, pair_confusion, ranked_pairs
from options import command, complete, guarded
from options import parser as common_options
from PIL import Image, ImageDraw
from scipy.stats import spearmanr
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import roc_auc_score
from study import Study
from torch import nn

from skl_transformaly import GaussianDensity
from skl_transformaly.utils._torch import seeded

SHAPES = ("circle", "square", "triangle", "star")
LABEL = {"circle": 0, "square": 0, "triangle": 1, "star": 1}


def draw_shapes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`n` grey images of each shape, (4 n, 32, 32) float32 in 0-1, at random places and sizes; and which shape."""
    rng = np.random.default_rng(seed)
    images = np.empty((4 * n, 32, 32), dtype=np.float32)
    shapes = np.repeat(np.arange(4), n)
    for image, shape in zip(images, shapes):
        x, y, r = *rng.uniform(12, 20, 2), rng.uniform(6, 10)
        canvas = Image.new("L", (32, 32), 0)
        pen = ImageDraw.Draw(canvas)
        turn = rng.uniform(-0.3, 0.3)
        if SHAPES[shape] == "circle":
            pen.ellipse((x - r, y - r, x + r, y + r), fill=255)
        else:
            corners = {"square": 4, "triangle": 3, "star": 10}[SHAPES[shape]]
            angles = turn + 2 * np.pi * np.arange(corners) / corners + np.pi / 4
            radii = np.where(np.arange(corners) % 2, 0.45, 1.0) * r if corners == 10 else np.full(corners, r)
            pen.polygon(list(zip(x + radii * np.cos(angles), y + radii * np.sin(angles))), fill=255)
        image[:] = np.clip(np.asarray(canvas) / 255 + rng.normal(0, 0.05, (32, 32)), 0, 1)
    return images, shapes


def shape_embeddings(seed: int = 0) -> dict[str, np.ndarray]:
    """Train the small network on two labels; embed new images of all four shapes."""
    with seeded(seed):
        network = nn.Sequential(
            nn.Conv2d(1, 16, 5, stride=2), nn.ReLU(), nn.Conv2d(16, 32, 3, stride=2), nn.ReLU(),
            nn.Conv2d(32, 32, 3, stride=2), nn.ReLU(), nn.Flatten(), nn.LazyLinear(16), nn.ReLU(), nn.Linear(16, 2),
        )  # fmt: skip
        images, shapes = draw_shapes(200, seed)
        x = torch.from_numpy(images)[:, None]
        y = torch.tensor([LABEL[SHAPES[shape]] for shape in shapes])
        network(x[:2])
        optimizer = torch.optim.Adam(network.parameters(), 2e-3)
        for _ in range(40):
            for batch in torch.randperm(len(x)).split(64):
                loss = nn.functional.cross_entropy(network(x[batch]), y[batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
    images, shapes = draw_shapes(100, seed + 1)
    with torch.no_grad():
        x = torch.from_numpy(images)[:, None]
        accuracy = float((network(x).argmax(1).numpy() == [LABEL[SHAPES[s]] for s in shapes]).mean())
        Z = network[:-1](x).double().numpy()
    return {"images": images, "shapes": shapes, "Z": Z, "accuracy": accuracy}


def shape_aurocs(Z: np.ndarray, shapes: np.ndarray) -> np.ndarray:
    """``[a, b]``: AUROC of telling shape b from shape a by a Gaussian fitted on half of a's images."""
    table = np.full((4, 4), np.nan)
    for a in range(4):
        own = Z[shapes == a]
        density = GaussianDensity(shrinkage=0, ridge=1e-3).fit(own[::2])
        for b in range(4):
            if a != b:
                test = np.concatenate([own[1::2], Z[shapes == b]])
                normal = np.arange(len(test)) < len(own[1::2])
                table[a, b] = roc_auc_score(normal, density.score_samples(test))
    return table


def report(study: Study, confused: np.ndarray, pairs: np.ndarray, synthetic: dict, shown: str) -> str:
    """The confusion report as Markdown."""
    names = study.data.class_names
    table = shape_aurocs(synthetic["Z"], synthetic["shapes"])
    twins = np.mean([table[0, 1], table[1, 0], table[2, 3], table[3, 2]])
    others = np.mean([table[a, b] for a in (0, 1) for b in (2, 3)] + [table[b, a] for a in (0, 1) for b in (2, 3)])
    lines = [
        f"### Pre-training confusion: {study.data.name}",
        "",
        f"Four shapes: a network trained to tell circles and squares from triangles and stars "
        f"({synthetic['accuracy']:.0%} right) gives features in which shapes of the other label are anomalies, AUROC "
        f"{others:.3f}, those of the same label with {twins:.3f}.",
        "",
        f"{study.data.name}: chance that a test image of the first class is nearer to the second, in the embedding, "
        "than an image of the second is to the rest of its class; 0.5 is the same place.",
        "",
        "| hides in | chance |",
        "|---|---|",
    ]
    lines += [f"| {names[a]} in {names[b]} | {chance:.3f} |" for a, b, chance in ranked_pairs(pairs)[:10]]
    lines += [
        "",
        "Confusion of a class: the same chance against all other classes together. The more, the worse a multimodal "
        "run will do in which it is the anomaly.",
    ]
    turns = study.labels()
    columns = {"confusion": confused[turns]}
    for title, group, method in (("embedding", "embedding", "embedding"), ("both", "students", "Transformaly")):
        values = study.values("multimodal", group, method)
        if not np.isnan(values).all(axis=1).any():
            columns[title] = np.nanmean(values, axis=1)
    lines += ["", "| class | " + " | ".join(
        title if title == "confusion" else f"multimodal AUROC, {title}" for title in columns) + " |"]  # fmt: skip
    lines.append("|---" * (len(columns) + 1) + "|")
    for place in np.argsort(-columns["confusion"]):
        lines.append(f"| {names[turns[place]]} | " + " | ".join(f"{c[place]:.3f}" for c in columns.values()) + " |")
    for title in list(columns)[1:]:
        if len(turns) > 2:
            rho = spearmanr(columns["confusion"], columns[title]).statistic
            lines += [
                "",
                f"Rank correlation of confusion with multimodal AUROC ({title}) over {len(turns)} classes: {rho:+.2f}.",
            ]
    if len(columns) == 1:
        lines += ["", "Multimodal AUROC beside it: run table 5 before, with the same options and the same --out."]
    return "\n".join([*lines, "", f"    {shown}", ""])


def figure(study: Study, pairs: np.ndarray, synthetic: dict, path: Path) -> None:
    """Draw panels a to c."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(1, 3, figsize=(16, 5), layout="constrained")
    points = PCA(2).fit_transform(synthetic["Z"])
    for shape, marker in enumerate("os^*"):
        rows = synthetic["shapes"] == shape
        axes[0].scatter(*points[rows].T, marker=marker, s=30, alpha=0.7, label=SHAPES[shape])
    axes[0].set(title="(a) four shapes, two labels", xlabel="first component", ylabel="second component")
    axes[0].legend()
    names = study.data.class_names
    rng = np.random.default_rng(0)
    rows = np.sort(rng.permutation(len(study.z_p_test))[:2000])
    perplexity = min(30, (len(rows) - 1) / 3)
    points = TSNE(perplexity=perplexity, random_state=0, init="pca").fit_transform(study.z_p_test[rows])
    colours = plt.get_cmap("tab10" if len(names) <= 10 else "tab20")
    for label, name in enumerate(names):
        own = study.data.y_test[rows] == label
        axes[1].scatter(*points[own].T, s=8, color=colours(label % colours.N), label=name)
    axes[1].set(title=f"(b) {study.data.name}: t-SNE of embeddings", xticks=[], yticks=[])
    axes[1].legend(fontsize=8, markerscale=2, loc="upper left", bbox_to_anchor=(1, 1))
    shown = axes[2].imshow(pairs, vmin=0, vmax=0.5, cmap="Blues")
    axes[2].set(
        title="(c) chance to be nearer than their own", xticks=range(len(names)), yticks=range(len(names)),
        yticklabels=names, ylabel="an image of", xlabel="is nearer to",
    )  # fmt: skip
    axes[2].set_xticklabels(names, rotation=45, ha="right")
    if len(names) <= 12:
        for (a, b), chance in np.ndenumerate(pairs):
            if a != b:
                colour = "w" if chance > 0.3 else "k"
                axes[2].text(b, a, f"{chance:.2f}", ha="center", va="center", fontsize=7, color=colour)
    fig.colorbar(shown, ax=axes[2], label="chance", extend="max")
    fig.savefig(path, dpi=110)
    plt.close(fig)


def main(arguments: list[str] | None = None) -> None:
    parser = common_options(__doc__)
    options = complete(parser, parser.parse_args(arguments))
    shown = command("figure4.py", sys.argv[1:] if arguments is None else arguments)
    study = Study(options, record=False)
    synthetic = shape_embeddings()
    y = study.data.y_test
    distances = class_distances(study.z_p_test, y)
    pairs = pair_confusion(distances, y)
    text = report(study, class_confusion(distances, y), pairs, synthetic, shown)
    (options.out / f"confusion_{study.data.name}.md").write_text(text)
    figure(study, pairs, synthetic, options.out / f"figure4_{study.data.name}.png")
    print(text)
    print(f"# Written to {options.out}: confusion_{study.data.name}.md, figure4_{study.data.name}.png", file=sys.stderr)


if __name__ == "__main__":
    guarded(main)
