"""Training of one student: steps of Adam that reduce the squared error of its imitation."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from skl_transformaly.students._activations import BlockActivations
from skl_transformaly.students._residuals import ResidualStatistics, evenly, most_in_maps
from skl_transformaly.students._tokens import draw_tokens, partial_forward
from skl_transformaly.teacher._protocol import Extractor, find_places
from skl_transformaly.utils._chunks import Chunks
from skl_transformaly.utils._compat import is_batch_norm
from skl_transformaly.utils._torch import at_least_float32, seeded

__all__ = ["StudentTraining", "Train", "TrainedStudent", "TrainingSettings", "finished", "train_student"]

# Peak rates of lr="auto". For transformers, rates of 1e-3 to 2e-3 and 5 to 12 epochs were compared on a quarter of the
# tokens: 8 epochs at 1.5e-3 came within 0.003 of the best mean AUROC on classes of CIFAR-10 (300 images), Fashion-MNIST
# (500) and chest X-rays (70 to 110 images, 24 to 32 steps, which need a lower rate). For EfficientNet-lite0 (90 images
# of a digit, 8 epochs), the discrepancy's mean AUROC over three digits was 0.885 at 1e-3, 0.902 at 1.5e-3 and 0.912 at
# 2e-3.
_LR_PEAK = 1.5e-3
_LR_PEAK_STEPS = 100
_LR_PEAK_BATCH_NORM = 2e-3

# If gradients overflow although the float16 loss is scaled by less than this, the scale is not the cause.
_LEAST_SCALE = 1e-3

# train(student, layer, extractor, seed, progress) trains a student in place and returns its history
Train = Callable[[nn.Module, BlockActivations, Extractor, int, tqdm], dict[str, list[float]]]


@dataclass(frozen=True)
class TrainingSettings:
    """Settings of a training, as in the parameters of :class:`BlockStudents`."""

    max_epochs: int
    lr: float | str
    batch_size: int
    token_share: float
    max_steps: int | None = None

    def plan(self, n_images: int) -> tuple[int, int]:
        """Return the number of steps in an epoch, and in total."""
        epoch = -(-n_images // self.batch_size)
        total = epoch * self.max_epochs
        return epoch, total if self.max_steps is None else min(total, self.max_steps)

    def count_epochs(self, n_images: int) -> int:
        """Return the number of epochs, the last of which may be cut short."""
        epoch, total = self.plan(n_images)
        return -(-total // epoch)


class TrainedStudent(NamedTuple):
    """What is kept of a trained student.

    Attributes
    ----------
    weights : dict of str to Tensor
        Parameters and buffers, on the CPU.
    history : dict of str to list of float
        "loss" by epoch.
    residuals : ResidualStatistics or None
        Statistics of its errors on training images; None if the places of the teacher's outputs are not known.
    """

    weights: dict[str, Tensor]
    history: dict[str, list[float]]
    residuals: ResidualStatistics | None


def train_student(
    student: nn.Module,
    layer: BlockActivations,
    extractor: Extractor,
    seed: int,
    progress: tqdm,
    *,
    settings: TrainingSettings,
) -> dict[str, list[float]]:
    """Train one student in place on one block's activations, and return its loss in each epoch.

    Raises
    ------
    FloatingPointError
        The loss is not finite.
    """
    training = StudentTraining(student, layer, extractor, seed, settings)
    losses = []
    with training.randomness():
        for epoch in range(settings.count_epochs(len(layer.inputs))):
            losses.append(training.epoch())
            if not np.isfinite(losses[-1]):
                raise FloatingPointError(
                    f"The loss of the student of block {layer.index} is {losses[-1]} in epoch {epoch + 1}; expected a "
                    "finite number. Lower lr, or give the extractor precision='float32'."
                )
            progress.set_postfix(block=layer.index, loss=f"{losses[-1]:.3g}", refresh=False)
            progress.update()
        training.settle()
    training.end()
    return {"loss": losses}


def finished(
    student: nn.Module, layer: BlockActivations, history: dict[str, list[float]], extractor: Extractor
) -> TrainedStudent:
    """Return what is kept of a student that was trained on `layer`."""
    residuals = _residual_statistics(student, layer, extractor)
    return TrainedStudent({name: t.cpu() for name, t in student.state_dict().items()}, history, residuals)


class StudentTraining:
    """A student, its training data and its optimizer.

    Parameters
    ----------
    student : nn.Module
        Trained in place.
    layer : BlockActivations
    extractor : extractor
    seed : int
        Determines, with the block's index, the order of images and the drawn tokens.
    settings : TrainingSettings
    n_images : int, default=None
        Train on the first `n_images` images of `layer`; None means all.
    """

    def __init__(
        self,
        student: nn.Module,
        layer: BlockActivations,
        extractor: Extractor,
        seed: int,
        settings: TrainingSettings,
        n_images: int | None = None,
    ):
        self.imitation = Imitation(student, layer, extractor, settings.token_share)
        self._rng = np.random.default_rng([seed, layer.index])
        self._seed = seed
        self._batch_size = settings.batch_size
        self._n_images = len(layer.inputs) if n_images is None else n_images
        self._steps, total = settings.plan(self._n_images)
        self._steps_left = total
        parameters = list(student.parameters())
        one_cycle = settings.lr == "auto"
        lr = _auto_lr(student, total) if one_cycle else float(settings.lr)
        optimizer = torch.optim.Adam(parameters, lr=lr, fused=_can_fuse(parameters))
        self._scheduler = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: _one_cycle(step, total) if one_cycle else 1.0
        )
        self._descent = Descent(self.imitation, optimizer)

    def randomness(self) -> contextlib.AbstractContextManager:
        """Return a context for training, since dropout draws from torch's global generator."""
        return seeded(self._seed) if _drops_out(self.imitation.student) else contextlib.nullcontext()

    def epoch(self) -> float:
        """Train on each image once, in random order, until no steps are left, and return the mean loss."""
        losses, taken = [], 0
        for rows in np.array_split(self._rng.permutation(self._n_images), self._steps)[: self._steps_left]:
            tokens = self.imitation.draw_tokens(self._rng)
            losses.append(self._descent.step(rows, tokens) * len(rows))
            self._scheduler.step()
            taken += len(rows)
        self._steps_left -= len(losses)
        return float(torch.stack(losses).sum() / taken)

    def settle(self) -> None:
        """Replace batch-norm statistics, which lag behind in a short training, with those of all images.

        Does nothing for architectures without batch normalisation.
        """
        self.imitation.settle(np.arange(self._n_images), self._batch_size)

    def end(self) -> None:
        """Prepare the student for use after training."""
        self.imitation.end()


class Imitation(nn.Module):
    """A student together with the layer to imitate; as a module, it is ``x -> student(x, *args)``."""

    def __init__(self, student: nn.Module, layer: BlockActivations, extractor: Extractor, token_share: float = 1.0):
        super().__init__()
        self.student = student
        self.layer = layer
        self.extractor = extractor
        self._like = next(student.parameters())
        self._share = token_share
        # channels last saved a quarter of the processor time of a fit with EfficientNet-lite0 at 224 pixels (AVX2)
        maps = layer.inputs.ndim == 4 and any(isinstance(module, nn.Conv2d) for module in student.modules())
        self._memory_format = torch.channels_last if maps else torch.preserve_format
        if maps:
            student.to(memory_format=torch.channels_last)
        # if gradients are computed, torch copies a tensor before it is overwritten
        self._in_place: list[Any] = [module for module in student.modules() if getattr(module, "inplace", None) is True]
        self._set_in_place(False)
        plain = token_share < 1 and not layer.args and not layer.kwargs
        self._partial = partial_forward(student, layer.inputs[:1].to(self._like)) if plain else None

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        if tokens is None or self._partial is None:
            return self.student(x, *self.layer.args, **self.layer.kwargs)
        return self._partial(x, tokens)

    def draw_tokens(self, rng: np.random.Generator) -> Tensor | None:
        """Draw the indices of the tokens on which a step computes its loss; None means all tokens."""
        drawn = draw_tokens(self.layer.inputs.shape[1], self._share, rng) if self._partial else None
        return None if drawn is None else torch.from_numpy(drawn).to(self._like.device)

    def loss(self, rows: np.ndarray, tokens: Tensor | None = None) -> Tensor:
        """Mean squared error over the images `rows`, their tokens (or those of `tokens`) and channels (Eq. 1)."""
        picked = torch.from_numpy(rows)
        inputs, targets = self._inputs(picked), self.layer.outputs[picked]
        if tokens is not None:
            targets = targets[:, tokens.to(targets.device)]
        with self.extractor.compute():
            outputs = self(inputs, tokens)
        return nn.functional.mse_loss(at_least_float32(outputs), targets.to(self._like))

    def settle(self, rows: np.ndarray, batch_size: int) -> None:
        """Set batch-norm statistics to those of the images `rows`."""
        batches = np.array_split(rows, -(-len(rows) // batch_size))
        with self.extractor.compute():
            update_bn((self._inputs(torch.from_numpy(batch)) for batch in batches), self)

    def end(self) -> None:
        """Lay out the student's weights like those of a loaded student, so that both compute the same bits."""
        if self._memory_format is torch.channels_last:
            self.student.to(memory_format=torch.contiguous_format)
        self._set_in_place(True)

    def _set_in_place(self, value: bool) -> None:
        for module in self._in_place:
            module.inplace = value

    def _inputs(self, picked: Tensor) -> Tensor:
        return self.layer.inputs[picked].to(self._like, memory_format=self._memory_format)


class Descent:
    """Steps of an optimizer that reduce the loss of an imitation.

    In float16, gradients below 6e-8 are zero, so losses are scaled up before the backward pass, as far as nothing
    overflows [Micikevicius et al., "Mixed Precision Training", ICLR 2018]; other precisions need no scaling.
    """

    def __init__(self, imitation: Imitation, optimizer: torch.optim.Optimizer):
        self._imitation, self._optimizer = imitation, optimizer
        self._chunks = Chunks("training a student on")
        device = next(imitation.student.parameters()).device.type
        with imitation.extractor.compute():
            half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        self.scaler = torch.amp.GradScaler(device, enabled=half)

    def step(self, rows: np.ndarray, tokens: Tensor | None) -> Tensor:
        """Take one step and return the loss. If scaled gradients overflow, repeat the step with a lower scale."""

        def backward(part: np.ndarray) -> Tensor:
            if part[0] == rows[0]:  # also if a pass that ran out of memory is repeated
                self._optimizer.zero_grad(set_to_none=True)
            loss = self._imitation.loss(part, tokens) * (len(part) / len(rows))
            self.scaler.scale(loss).backward()
            return loss.detach()

        while True:
            loss = torch.stack(self._chunks(backward, rows)).sum()
            scale = self.scaler.get_scale()
            self.scaler.step(self._optimizer)
            self.scaler.update()
            # without overflow the scale stays or grows; a loss that is not finite overflows at any scale
            if self.scaler.get_scale() >= scale or scale < _LEAST_SCALE or not torch.isfinite(loss):
                return loss


def _auto_lr(student: nn.Module, steps: int) -> float:
    """Peak learning rate of a training with `steps` steps."""
    if any(map(is_batch_norm, student.modules())):
        return _LR_PEAK_BATCH_NORM
    return _LR_PEAK * min(1, steps / _LR_PEAK_STEPS)


def _one_cycle(step: int, total: int) -> float:
    """Share of the peak learning rate at `step`: linear up over a fifth of `total`, then half a cosine down."""
    warm = max(1, total // 5)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _drops_out(student: nn.Module) -> bool:
    """Whether `student` draws random numbers in training: dropout layers of timm and torch are found by name."""
    drops = [module for module in student.modules() if "drop" in type(module).__name__.lower()]
    return any(getattr(module, name, None) for module in drops for name in ("p", "prob", "drop_prob"))


def _can_fuse(parameters: list[nn.Parameter]) -> bool:
    """Whether torch has a fused kernel for Adam's step on these parameters."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)


@torch.no_grad()
def _residual_statistics(
    student: nn.Module, layer: BlockActivations, extractor: Extractor
) -> ResidualStatistics | None:
    """Statistics of residuals on some of the training images; None if the places of outputs are not known."""
    to_maps = find_places(extractor)
    if to_maps is None:
        return None
    rows = torch.from_numpy(evenly(len(layer.outputs), most_in_maps(layer.outputs[0])).astype(np.int64))
    like = next(student.parameters())
    student.eval()

    def run(batch: Tensor) -> Tensor:
        inputs, targets = (t[batch].to(like) for t in (layer.inputs, layer.outputs))
        with extractor.compute():
            outputs = student(inputs, *layer.args, **layer.kwargs)
        return to_maps(at_least_float32(outputs) - targets)

    residuals, chunks = [], Chunks("running a student on")
    for batch in rows.split(int(extractor.batch_size)):  # torch does not accept NumPy integers
        try:
            residuals += chunks(run, batch)
        except ValueError:  # tokens do not fill a grid; a request for a map raises the error
            return None
    return ResidualStatistics.fit(torch.cat(residuals))
