"""What a transformer computes inside its blocks, as one more feature space beside embedding, classes and layers.

    python benchmarks/accuracy/inside.py

The teacher is the ViT-Tiny of run.py, and runs once over a data set; its classes with even numbers, on which defaults
are chosen, take turns. For each block and pooling: mean AUROC of a density of these features alone, and of its part
added to those of the three spaces. Over the places of the image are pooled

- hidden units of the MLP, after their activation: "mean", "deviation" (standard deviation), "power mean" (of the third
  power, without what is negative) and "maximum";
- "MLP": what the MLP adds to the tokens, their mean;
- "keys", "values" and "queries" of attention: mean, deviation or maximum;

and "attention, class token" is what attention adds to the class token.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np
import torch
from data import NAMES, Data, load
from run import SETTINGS, extractor
from sklearn.metrics import roc_auc_score
from torch import Tensor
from tried import some_of_each

from skl_transformaly._space import FeatureSpace
from skl_transformaly.images._images import as_images
from skl_transformaly.students._imitation import Comparer
from skl_transformaly.teacher._features import TeacherFeatures

BESIDE = ["pretrained", "classes", "layers"]
Groups = dict[str, list[np.ndarray]]


def mean(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].mean(1)


def deviation(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].std(1, unbiased=False)


def power_mean(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].clamp_min(0).pow(3).mean(1).pow(1 / 3)


def maximum(tokens: Tensor) -> Tensor:
    return tokens[:, 1:].amax(1)


def class_token(tokens: Tensor) -> Tensor:
    return tokens[:, 0]


# what is looked at, and how it is pooled
KINDS: dict[str, tuple[str, Callable[[Tensor], Tensor]]] = {
    "hidden units, mean": ("hidden", mean),
    "hidden units, deviation": ("hidden", deviation),
    "hidden units, power mean": ("hidden", power_mean),
    "hidden units, maximum": ("hidden", maximum),
    "MLP, mean": ("mlp", mean),
    "keys, mean": ("keys", mean),
    "keys, deviation": ("keys", deviation),
    "values, mean": ("values", mean),
    "queries, maximum": ("queries", maximum),
    "attention, class token": ("attention", class_token),
}


def look_inside(teacher, indices: Iterable[int], keep: Callable[[str, int, Tensor], None]) -> None:
    """Call `keep(what, index, tokens)` with what these blocks compute, whenever the teacher runs."""
    for index in indices:
        block = teacher.blocks_[index]

        def of_attention(layer, args, output, index=index):
            for what, tokens in zip(("queries", "keys", "values"), output.chunk(3, dim=-1)):
                keep(what, index, tokens)

        block.attn.qkv.register_forward_hook(of_attention)
        block.attn.register_forward_hook(lambda _, args, output, index=index: keep("attention", index, output))
        block.mlp.act.register_forward_hook(lambda _, args, output, index=index: keep("hidden", index, output))
        block.mlp.register_forward_hook(lambda _, args, output, index=index: keep("mlp", index, output))


def features(data: Data, blocks: list[list[int]], precision: str) -> tuple[Groups, dict[str, Groups]]:
    """Groups of features of all images: of the three spaces, and by kind of those inside each set of blocks."""
    images = as_images(data.images)
    teacher = extractor("vit_tiny", precision).fit(data.images[:2])
    collected = TeacherFeatures(teacher, BESIDE, len(images))
    found: dict[tuple[str, int], list[Tensor]] = defaultdict(list)

    def keep(what: str, index: int, tokens: Tensor) -> None:
        for kind, (of, pool) in KINDS.items():
            if of == what:
                found[kind, index].append(pool(tokens.float()))

    look_inside(teacher, sorted({index for several in blocks for index in several}), keep)
    found.clear()  # what `fit` showed
    compare = Comparer(teacher, None, collect=collected.collect)
    for positions, pixels in images.batches(teacher.batch_size):
        compare(teacher.preprocess(pixels), positions)
    pooled = {key: torch.cat(parts).numpy() for key, parts in found.items()}
    beside = {
        name: np.split(z, np.cumsum(collected.sizes[name])[:-1], axis=1) for name, z in collected.features.items()
    }
    inside = {
        " ".join(map(str, several)): {kind: [pooled[kind, index] for index in several] for kind in KINDS}
        for several in blocks
    }
    return beside, inside


def score(groups: list[np.ndarray], known: np.ndarray, new: np.ndarray) -> np.ndarray:
    """The part in the scores of `new` images that a space of these features has after `known` ones."""
    z, sizes = np.hstack(groups), [group.shape[1] for group in groups]
    return FeatureSpace("auto").fit(z[known], sizes=sizes).score_samples(z[new])


def study(
    data: Data, setting: str, labels: Sequence[int], samples: int | None, beside: Groups, inside: dict[str, Groups]
) -> dict[tuple[str, str], list[tuple[float, float]]]:
    """AUROC of each kind of features in each set of blocks, alone and with the three spaces, a pair for each class."""
    new = np.arange(data.n_train, len(data.labels))
    aurocs: dict[tuple[str, str], list[tuple[float, float]]] = defaultdict(list)
    for label in labels:
        known, normal = data.task(setting, label)
        known = some_of_each(known, data.labels[known], samples)
        base = sum(score(groups, known, new) for groups in beside.values())
        aurocs["nothing", "-"].append((np.nan, roc_auc_score(normal, base)))
        for several, kinds in inside.items():
            for kind, groups in kinds.items():
                part = score(groups, known, new)
                aurocs[kind, several].append((roc_auc_score(normal, part), roc_auc_score(normal, base + part)))
    return aurocs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=["view", "cifar10", "fashion_mnist"])
    parser.add_argument("--setting", nargs="+", choices=list(SETTINGS), default=list(SETTINGS))
    parser.add_argument("--classes", nargs="+", type=int, help="their positions (default: the even ones)")
    parser.add_argument("--samples", type=int, default=60, help="training images of each of several normal classes")
    parser.add_argument("--blocks", nargs="+", default=["9 10"], help="sets of positions from 0")
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    blocks = [[int(index) for index in several.split()] for several in options.blocks]
    for name in options.data:
        data = load(name, fashion_train=300, fashion_test=100)
        beside, inside = features(data, blocks, options.precision)
        for setting in options.setting:
            labels = options.classes or range(0, len(data.classes), 2)
            samples = None if setting == "one" else options.samples
            found = study(data, SETTINGS[setting], labels, samples, beside, inside)
            print(f"\n{name}, {SETTINGS[setting]}, {len(labels)} classes\n")
            print("| features | blocks | alone | with the three spaces |\n|---|---|---|---|")
            for (kind, several), values in found.items():
                alone, both = 100 * np.mean(values, axis=0)
                print(f"| {kind} | {several} | {'-' if np.isnan(alone) else f'{alone:.1f}'} | {both:.1f} |", flush=True)


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    warnings.simplefilter("ignore")
    main()
