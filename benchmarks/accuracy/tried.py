"""Ideas for a better discrepancy that did not become the default, beside the default.

    python benchmarks/accuracy/tried.py --data view
    python benchmarks/accuracy/tried.py --data view --setting all-but-one --samples 60 --no-noise

Three classes in turn are normal, or all others; the teacher is that of run.py: mean AUROC of each idea alone, and of
the teacher's spaces with the idea as one more. Each idea is scaled by images that it has not seen.

- rank k: students of which each block's prediction keeps the k directions that it varies in most; they see less.
- class token alone: discrepancies of the class token, by the default's students.
- difficulty taken out: the log discrepancy less what a ridge regression foretells of it from the embedding.
- noise: a small network tells the tokens after the last block from the same tokens with Gaussian noise, of so many
  standard deviations ("any": drawn for each token from 0.1 to 2); its mean logit over patches is the score. This is
  GeneralAD's idea (arXiv 2407.12427) with a smaller teacher. "attention" puts a layer of it first.
"""

from __future__ import annotations

import argparse
import os
import warnings
from collections import defaultdict
from collections.abc import Iterator

import numpy as np
import torch
from data import NAMES, Data, load
from run import SETTINGS, extractor
from sklearn.linear_model import RidgeCV
from sklearn.metrics import roc_auc_score
from sklearn.model_selection import KFold, cross_val_predict
from torch import Tensor, nn

from skl_transformaly import RidgeStudents, TransformalyDetector
from skl_transformaly._density import resolve_density
from skl_transformaly.images._images import as_images
from skl_transformaly.students._imitation import residual_of

RANKS = (8, 32, 64)
NOISES = {"noise 0.25": (0.25, 0.25), "noise 1": (1, 1), "noise, any": (0.1, 2)}
FOLDS = 5
ALPHAS = np.logspace(-3, 3, 13)


def passes(teacher, images) -> Iterator[tuple[np.ndarray, dict[int, tuple[Tensor, Tensor]]]]:
    """Positions, and input and output of each block, a batch at a time."""
    for positions, pixels in images.batches(teacher.batch_size):
        seen = {}
        with torch.no_grad():
            teacher.embed(
                teacher.preprocess(pixels),
                lambda index, block, args, kwargs, output, seen=seen: seen.update({index: (args[0], output)}),
            )
        yield np.asarray(positions), seen


class Students:
    """Students of some images, and the directions that their predictions vary in most."""

    def __init__(self, teacher, images):
        self.teacher = teacher
        self.fitted = RidgeStudents().fit(images, extractor=teacher)
        products = defaultdict(float)
        for _, seen in passes(teacher, images):
            for index, update, residual in self._residuals(self.fitted, seen):
                predicted = (update + residual).flatten(0, 1).double()
                products[index] = products[index] + predicted.T @ predicted
        self.directions = {index: torch.linalg.eigh(found)[1].flip(1).float() for index, found in products.items()}

    @staticmethod
    def _residuals(students, seen):
        for index, student in zip(students.block_indices_.tolist(), students.students_):
            x, output = seen[index]
            yield index, output - x, residual_of(student, (x,), {}, output)

    def features(self, seen, students=None) -> dict[str, Tensor]:
        """Features of one batch by idea."""
        found = defaultdict(list)
        for index, update, residual in self._residuals(students or self.fitted, seen):
            found["default"].append(residual)
            for rank in RANKS:
                kept = self.directions[index][:, :rank]
                found[f"rank {rank}"].append((update + residual) @ kept @ kept.T - update)
            found["class token alone"].append(residual[:, :1])
            found["update"].append(update)
        squares = {name: torch.stack([r.square().mean((1, 2)) for r in rs], 1) for name, rs in found.items()}
        update = squares.pop("update")
        return {name: torch.cat([z, update], 1) for name, z in squares.items()}

    def training(self, images) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """Features of the training images, by these students and by students that have not seen them."""
        seen_by, unseen = _gather(self.features(seen) for _, seen in passes(self.teacher, images)), {}
        for _, fold in KFold(FOLDS, shuffle=True, random_state=0).split(np.empty(len(images))):
            part = images.take(fold)
            students = self.fitted.without(self.fitted.add_sums(part, self.fitted.empty_sums()))
            for name, z in _gather(self.features(seen, students) for _, seen in passes(self.teacher, part)).items():
                unseen.setdefault(name, np.empty((len(images), z.shape[1])))[fold] = z
        return seen_by, unseen


def _gather(batches) -> dict[str, np.ndarray]:
    parts = defaultdict(list)
    for found in batches:
        for name, z in found.items():
            parts[name].append(z.double().numpy())
    return {name: np.concatenate(zs) for name, zs in parts.items()}


class Discriminator(nn.Module):
    """Tells tokens of normal images from the same with noise."""

    def __init__(self, tokens: Tensor, noise: tuple[float, float], attention: bool, epochs: int = 12):
        super().__init__()
        torch.manual_seed(0)
        width = tokens.shape[-1]
        self.mean, self.std = tokens.float().mean((0, 1)), tokens.float().std((0, 1))
        self.attention = nn.TransformerEncoderLayer(width, 4, width, batch_first=True) if attention else nn.Identity()
        self.head = nn.Sequential(nn.Linear(width, 128), nn.GELU(), nn.Linear(128, 1))
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-3, weight_decay=1e-2)
        for _ in range(epochs):
            for rows in torch.randperm(len(tokens)).split(32):
                x = (tokens[rows].float() - self.mean) / self.std
                size = torch.empty(*x.shape[:2], 1).uniform_(*noise)
                logits = torch.cat([self.logits(x), self.logits(x + size * torch.randn_like(x))])
                target = torch.arange(2).repeat_interleave(len(x))[:, None].expand_as(logits).float()
                optimizer.zero_grad()
                nn.functional.binary_cross_entropy_with_logits(logits, 1 - target).backward()
                optimizer.step()
        self.eval()

    def logits(self, x: Tensor) -> Tensor:
        """Logit of each standardised token (n, patches) for having no noise."""
        return self.head(self.attention(x))[..., 0]

    @torch.no_grad()
    def score(self, tokens: Tensor) -> np.ndarray:
        """Mean logit of each image, (n,)."""
        parts = (self.logits((part.float() - self.mean) / self.std).mean(1) for part in tokens.split(64))
        return torch.cat(list(parts)).double().numpy()


def patch_tokens(teacher, images) -> Tensor:
    """Patch tokens after the last block, (n, patches, width), float16."""
    return torch.cat([seen[max(seen)][1][:, 1:].half() for _, seen in passes(teacher, images)])


def some_of_each(positions: np.ndarray, labels: np.ndarray, number: int | None) -> np.ndarray:
    """At most so many positions of each label."""
    rng = np.random.default_rng(0)
    return np.sort(
        np.concatenate([rng.permutation(positions[labels == label])[:number] for label in np.unique(labels)])
    )


def standardised(of_test: np.ndarray, held_out: np.ndarray) -> np.ndarray:
    return (of_test - held_out.mean()) / held_out.std()


def by_noise(known: Tensor, tokens: Tensor) -> dict[str, np.ndarray]:
    """Scores of test images by networks that learn from four fifths of the `known` images, scaled by the rest."""
    shuffled = torch.from_numpy(np.random.default_rng(0).permutation(len(known)))
    fifth, rest = shuffled.tensor_split([len(known) // FOLDS])
    scores = {}
    for name, noise in NOISES.items():
        for attention in (False, True):
            network = Discriminator(known[rest], noise, attention)
            scores[name + ", attention" * attention] = standardised(network.score(tokens), network.score(known[fifth]))
    return scores


def study(data: Data, options: argparse.Namespace) -> dict[str, list[tuple[float, float]]]:
    """AUROC of each idea alone and beside the teacher's spaces, a pair for each class."""
    test = as_images(data.images[data.n_train :])
    models, result = [], defaultdict(list)
    for label in options.classes:
        positions, _ = data.task(SETTINGS[options.setting], label)
        positions = some_of_each(positions, data.labels[positions], options.samples)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            detector = TransformalyDetector(
                extractor("vit_tiny", options.precision), feature_spaces="teacher", random_state=0
            )
            detector.fit([data.images[i] for i in positions])
        images = as_images([data.images[i] for i in positions])
        models.append((detector, images, Students(detector.extractor_, images)))
    teacher = models[0][0].extractor_
    batches = [[model[2].features(seen) for model in models] for _, seen in passes(teacher, test)]
    embeddings = teacher.transform(test)
    tokens = patch_tokens(teacher, test) if options.noise else None
    for number, (label, (detector, images, students)) in enumerate(zip(options.classes, models)):
        _, normal = data.task(SETTINGS[options.setting], label)
        of_test = _gather(batch[number] for batch in batches)
        training, unseen = students.training(images)
        base = detector.score_samples(test)
        found = {"nothing": np.zeros(len(base))}
        for name, z in training.items():
            density = resolve_density("gaussian", discrepancy=True).fit(z)
            found[name] = standardised(density.score_samples(of_test[name]), density.score_samples(unseen[name]))
        z, own = np.log(unseen["default"]), detector.training_embeddings_
        residual = z - cross_val_predict(RidgeCV(ALPHAS), own, z, cv=FOLDS)
        density = resolve_density("gaussian", discrepancy=True).fit(residual)
        new = np.log(of_test["default"]) - RidgeCV(ALPHAS).fit(own, z).predict(embeddings)
        found["difficulty taken out"] = standardised(density.score_samples(new), density.held_out_scores(residual))
        if tokens is not None:
            found.update(by_noise(patch_tokens(teacher, images), tokens))
        for name, score in found.items():
            both = (roc_auc_score(normal, score), roc_auc_score(normal, base + score))
            result[name].append(tuple(100 * value for value in both))
        print(data.classes[label], {k: f"{v[-1][0]:.1f} {v[-1][1]:.1f}" for k, v in result.items()}, flush=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", nargs="+", choices=NAMES, default=["cifar10", "view"])
    parser.add_argument("--classes", nargs="+", type=int, default=[0, 2, 4], help="positions of the normal classes")
    parser.add_argument("--setting", choices=list(SETTINGS), default="one")
    parser.add_argument("--samples", type=int, default=None, help="training images of each normal class (default: all)")
    parser.add_argument(
        "--no-noise", dest="noise", action="store_false", help="without the networks, which take longest"
    )
    parser.add_argument("--precision", default="float32")
    options = parser.parse_args()
    columns = {}
    for name in options.data:
        data = load(name, fashion_test=200)
        columns[name] = study(data, options)
    print("\n| idea | " + " | ".join(f"{name}: alone | with the teacher's spaces" for name in columns) + " |")
    print("|---" * (2 * len(columns) + 1) + "|")
    for idea in next(iter(columns.values())):
        means = [value for found in columns.values() for value in np.mean(found[idea], axis=0)]
        print(f"| {idea} | " + " | ".join(f"{value:.1f}" for value in means) + " |")


if __name__ == "__main__":
    os.environ.setdefault("TQDM_DISABLE", "1")
    main()
