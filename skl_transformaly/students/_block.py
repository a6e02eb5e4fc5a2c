"""BlockStudents: fresh blocks that learn, on normal images only, to imitate the teacher's last blocks."""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, _fit_context
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import Interval, StrOptions
from torch import Tensor, nn
from torch.optim.swa_utils import update_bn
from tqdm.auto import tqdm

from skl_transformaly.images._images import Images
from skl_transformaly.students._activations import BlockActivations, iter_activations
from skl_transformaly.students._imitation import ImitationMixin, at_least_float32, find_places
from skl_transformaly.students._parallel import count_jobs, train_in_waves
from skl_transformaly.students._residuals import ResidualStatistics
from skl_transformaly.students._tokens import draw_tokens, partial_forward
from skl_transformaly.teacher._architecture import blank_copy
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.teacher._kernels import is_suited
from skl_transformaly.utils._cache import Cache, fingerprint, identity
from skl_transformaly.utils._chunks import Halving
from skl_transformaly.utils._fitting import all_or_nothing
from skl_transformaly.utils._progress import Progress
from skl_transformaly.utils._torch import own_settings, seeded

__all__ = ["BlockStudents"]

# What lr="auto" means. Transformers: of 1e-3 to 2e-3 in 5 to 12 epochs on a quarter of the tokens, 8 epochs at 1.5e-3
# came within 0.003 of the best mean AUROC on classes of CIFAR-10 (300 images), Fashion-MNIST (500) and chest X-rays
# (70 to 110 images, 24 to 32 steps, which want a lower rate). EfficientNet-lite0, 90 images of a digit, 8 epochs: the
# discrepancy's mean AUROC over three digits was 0.885 at 1e-3, 0.902 at 1.5e-3 and 0.912 at 2e-3.
_LR_PEAK = 1.5e-3
_LR_PEAK_STEPS = 100
_LR_PEAK_BATCH_NORM = 2e-3

# A scale of losses in float16 below which it is not the scale that lets gradients overflow
_LEAST_SCALE = 1e-3

# Maps compare residuals with those of at most so many training images, and of fewer where those would take more memory.
# With 16, 32, 64 or all of 70 and 111 X-rays and 100 drawn walls, pixel AUROC on defects differed by 0.01.
_MAP_IMAGES = 32
_MAP_BYTES = 2**26


class BlockStudents(ImitationMixin, BaseEstimator):
    """Students of the teacher's last blocks; how far each deviates is the discrepancy z_f.

    For each chosen teacher block a student block of the same architecture is drawn anew and trained, on
    normal images only, to give the teacher block's output for the teacher block's own input, with the
    mean squared error as its loss [1]_ (Section 3.2). No gradient crosses blocks: students are trained
    one after another, each on what the frozen teacher stored. A student that has seen only normal images
    deviates on others.

    Parameters
    ----------
    n_blocks : int, sequence of int or None, default=10
        Which teacher blocks get a student: an int takes the last n (all, where there are fewer), a
        sequence their places (negative ones count from the end), None all.
    max_epochs : int, default=8
        Passes over the training images for each student.
    lr : float or "auto", default="auto"
        Learning rate; with ``schedule="one-cycle"`` its peak. "auto" is 2e-3 for
        blocks with batch normalisation; for others (transformers) 1.5e-3, and less in trainings of under 100 steps, in
        proportion.
    batch_size : int, default=32
        Images in a training step, at most: an epoch's batches are of even size.
    token_share : float, default=0.25
        Share of a transformer block's tokens, in (0, 1], that a training step takes its loss on: drawn anew in each
        step, the same for the images of a batch, at least 32. Tokens of one image resemble each other, so a quarter of
        them tells a step nearly what all would, at two fifths of the time. 1 takes all, as do blocks other than timm's
        plain ViT block, and the measuring of discrepancies in any case.
    schedule : {"one-cycle", "constant"}, default="one-cycle"
        How the learning rate goes: up and then down to nothing over all steps, or not at all.
    early_stopping : bool, default=False
        Hold out `validation_fraction` of the training images (of the images given to `fit`, and nothing
        else), stop a student's training when its loss on them has not fallen for `n_iter_no_change`
        epochs, and keep its best epoch.
    validation_fraction : float, default=0.1
        Share of the images that is held out; at least one image is.
    n_iter_no_change : int, default=3
        Epochs without a new best that early stopping waits for.
    cache : {"auto", "memory", "disk"}, default="auto"
        Where the activations that enter and leave the block in training are kept. "auto" is memory up to
        `cache_size`, then a nameless temporary file that goes with the process, however that ends.
    cache_size : float, default=512
        MiB that the activations of the two layers may take in memory with ``cache="auto"``.
    checkpoint : str, path or None, default=None
        A folder in which each student is kept as soon as it is trained, until `fit` ends. Where a fit was killed, the
        next one with the same images, teacher, parameters and versions of libraries goes on after the last trained
        student, and ends with the very same students; with ``random_state=None`` the seed is kept as well. Like any
        pickle, a checkpoint is for your own files only.
    n_jobs : int or None, default=None
        Students trained at a time, by joblib: None is 1, or what ``joblib.parallel_config`` says, whose backends
        "dask" and "ray" spread them over a cluster; -1 is as many as there are cores. See Notes.
    extractor : str, extractor or None, default=None
        The teacher, for use outside a :class:`TransformalyDetector`: a timm name, "bundled", or an
        extractor; None is ``TimmExtractor()``. Inside a detector it must be None: the detector's is used.
    random_state : int, RandomState or None, default=None
        Seeds the students' weights, the order of images, and what is held out.
    verbose : int, default=0
        1 shows a progress bar with the loss.

    Attributes
    ----------
    students_ : list of nn.Module
        The trained blocks, in order of depth.
    block_indices_ : ndarray of shape (m,), int
        Places of their teacher blocks, counted from 0.
    history_ : dict of int to dict of str to list of float
        Per block index: "loss" per epoch (mean squared error over the epoch's batches, in squared units of
        the teacher's activations) and, with early stopping, "validation_loss".
    extractor_ : extractor
        The fitted teacher.
    n_features_in_ : int
        H * W * C, where `fit` saw one array.

    See Also
    --------
    TransformalyDetector : Adds the density of the discrepancies to that of the embedding.

    Notes
    -----
    Memory holds two layers' activations, whatever the number of blocks. In bfloat16 or float16 precision
    the products of matrices are computed in it; weights, residual sums and losses are float32.

    *In parallel* (`n_jobs`), as many students as there are workers are trained at a time, and besides those two as many
    layers and one more are kept, in memory while all that is held here and by the workers fits in `cache_size`, else in
    files of a temporary folder, which goes when `fit` ends (if the process is killed, it stays). Workers on this
    machine map the files; to others joblib sends the two layers of a student by value, so each needs memory for them.
    Workers need no weights of the teacher. The cores are shared out among workers of one machine, and on clusters each
    has the threads that the engine gives it. Students are bit for bit those of one after another, on the same kind of
    processor with the same number of torch's threads; another number may add in another order, and so round otherwise.
    Where a worker dies, the engine's own error ends `fit`; with `checkpoint` the next one goes on after the last wave.

    References
    ----------
    .. [1] M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR
       Workshops 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly import BlockStudents, TimmExtractor
    >>> images = np.random.default_rng(0).integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    >>> teacher = TimmExtractor("vit_tiny_patch16_224", weights=None, image_size=32)
    >>> students = BlockStudents(n_blocks=2, max_epochs=1, extractor=teacher, random_state=0)
    >>> students.fit_transform(images).shape
    (8, 2)
    """

    _parameter_constraints: dict = {
        "n_blocks": [Interval(Integral, 1, None, closed="left"), "array-like", None],
        "max_epochs": [Interval(Integral, 1, None, closed="left")],
        "lr": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "token_share": [Interval(Real, 0, 1, closed="right")],
        "schedule": [StrOptions({"one-cycle", "constant"})],
        "early_stopping": ["boolean"],
        "validation_fraction": [Interval(Real, 0, 1, closed="neither")],
        "n_iter_no_change": [Interval(Integral, 1, None, closed="left")],
        "cache": [StrOptions({"auto", "memory", "disk"})],
        "cache_size": [Interval(Real, 0, None, closed="left")],
        "checkpoint": [str, os.PathLike, None],
        "n_jobs": [Integral, None],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }

    def __init__(
        self,
        *,
        n_blocks: int | Sequence[int] | None = 10,
        max_epochs: int = 8,
        lr: float | str = "auto",
        batch_size: int = 32,
        token_share: float = 0.25,
        schedule: str = "one-cycle",
        early_stopping: bool = False,
        validation_fraction: float = 0.1,
        n_iter_no_change: int = 3,
        cache: str = "auto",
        cache_size: float = 512,
        checkpoint: str | os.PathLike | None = None,
        n_jobs: int | None = None,
        extractor: Any = None,
        random_state: Any = None,
        verbose: int = 0,
    ):
        self.n_blocks = n_blocks
        self.max_epochs = max_epochs
        self.lr = lr
        self.batch_size = batch_size
        self.token_share = token_share
        self.schedule = schedule
        self.early_stopping = early_stopping
        self.validation_fraction = validation_fraction
        self.n_iter_no_change = n_iter_no_change
        self.cache = cache
        self.cache_size = cache_size
        self.checkpoint = checkpoint
        self.n_jobs = n_jobs
        self.extractor = extractor
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def paper(cls, **changes: Any) -> BlockStudents:
        """The paper's own training: Adam at a constant 1e-4, 30 epochs, batches of 32 (its Section 4).

        The paper trains in float32: give the teacher ``precision="float32"`` as well.

        Parameters
        ----------
        **changes
            Parameters that differ all the same.

        Examples
        --------
        >>> from skl_transformaly import BlockStudents
        >>> BlockStudents.paper(n_blocks=3).max_epochs
        30
        """
        training = {"max_epochs": 30, "lr": 1e-4, "batch_size": 32, "token_share": 1.0, "schedule": "constant"}
        return cls(**{**training, **changes})

    @all_or_nothing
    @_fit_context(prefer_skip_nested_validation=False)
    @own_settings()
    def fit(self, X: Any, y: Any = None, *, extractor: Any = None, cache: Cache | None = None) -> BlockStudents:
        """Train a student for each chosen block.

        Parameters
        ----------
        X : images
            Normal images only, in any form that :class:`TransformalyDetector` takes.
        y : ignored
        extractor : fitted extractor, default=None
            The teacher to use instead of a fresh one; how a detector hands over its own.
        cache : Cache, default=None
            Where trained students are kept and found again; how a detector hands over its `memory`.

        Returns
        -------
        self : BlockStudents

        Raises
        ------
        ValueError
            `X` is not images, or `n_blocks` names a block that is not there.
        TypeError
            The teacher's blocks cannot be imitated one by one.
        FloatingPointError
            A student's loss is not finite.
        OSError
            No room on disk for activations.
        """
        images, extractor = self._begin(X, extractor)
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        cache = Cache(None) if cache is None else cache
        checkpoint = Cache(self.checkpoint, parameter="checkpoint")
        key = self._cache_key(images, extractor) if cache.active or checkpoint.active else {}
        if self.random_state is None:
            seed = checkpoint("seed", key, partial(int, seed))

        indices = self.block_indices_.tolist()

        @functools.cache
        def fresh() -> dict[int, nn.Module]:
            blocks = extractor.new_blocks(seed)
            return {index: blocks[index] for index in indices}

        self.history_: dict[int, dict[str, list[float]]] = {}
        self._residuals: list[ResidualStatistics | None] = []
        self.cache_keys_ = {index: {**key, "seed": seed, "block": index} for index in indices} if key else {}
        # a generator: the teacher runs when the first student is trained, and never where all are found
        layers = iter_activations(
            images, extractor, indices, cache=self.cache, cache_bytes=int(self.cache_size * 2**20)
        )
        done: dict[int, tuple[dict, dict, Any]] = {}

        def named(index: int) -> tuple[str, dict[str, Any]]:
            return f"student of block {index}", self.cache_keys_.get(index, {})

        def keep(index: int, train: Callable[[], tuple[dict, dict, Any]]) -> None:
            done[index] = cache(*named(index), partial(checkpoint, *named(index), train))

        total = len(indices) * self.max_epochs
        with Progress("Training students", total, unit="epoch", show=self.verbose) as progress:
            if count_jobs(self.n_jobs, len(indices)) > 1:
                missing = [i for i in indices if not (cache.has(*named(i)) or checkpoint.has(*named(i)))]
                students = {index: fresh()[index] for index in missing}
                for layer, history in self._train_in_waves(students, images, extractor, seed):
                    keep(layer.index, partial(_result, students[layer.index], layer, history, extractor))
                    progress.set_postfix(block=layer.index, loss=f"{history['loss'][-1]:.3g}", refresh=False)
                    progress.update(self.max_epochs)
            for index in indices:

                def train(index: int = index) -> tuple[dict, dict, Any]:
                    student = fresh()[index]
                    layer = next(layers)
                    while layer.index != index:
                        layer = next(layers)
                    history = self._train(student, layer, extractor, seed, progress)
                    return _result(student, layer, history, extractor)

                if index not in done:
                    keep(index, train)
                    # of students that were found, too
                    progress.update((len(self.history_) + 1) * self.max_epochs - progress.n)
                _, history, residuals = done[index]
                self.history_[index] = history
                self._residuals.append(residuals)
        layers.close()
        self.students_ = self._assemble({index: done[index][0] for index in indices}, fresh, extractor)
        self._halving = self._new_halving()
        for index, kept in self.cache_keys_.items():
            checkpoint.forget(f"student of block {index}", kept)
        checkpoint.forget("seed", key)
        return self

    @staticmethod
    def _assemble(states: dict[int, dict], fresh: Any, extractor: Any) -> list[nn.Module]:
        """Students with these weights."""
        if _is_restorable(extractor) and not fresh.cache_info().currsize:
            # All were found: to draw weights for a whole network only to replace them would take longer than all else.
            students = {index: blank_copy(extractor.blocks_[index]) for index in states}
            for index, state in states.items():
                students[index].load_state_dict(state)
            return list(students.values())
        for index, state in states.items():
            fresh()[index].load_state_dict(state)
        return [student.eval().requires_grad_(False) for student in fresh().values()]

    def _train_in_waves(
        self, students: dict[int, nn.Module], images: Images, extractor: Any, seed: int
    ) -> Iterator[tuple[BlockActivations, dict]]:
        """Train several students at a time; yields each one's layer and history."""
        if not students:
            return
        limits: dict[str, Any] = {"cache": self.cache, "cache_bytes": int(self.cache_size * 2**20)}
        layers = iter_activations(images, extractor, list(students), **limits)
        settings = self.get_params(deep=False)
        settings.update(checkpoint=None, extractor=None, n_jobs=None, random_state=None, verbose=0)
        train = type(self)(**settings)._train  # of an object that a worker can be sent
        yield from train_in_waves(train, students, layers, extractor, seed, n_jobs=self.n_jobs, **limits)
        layers.close()

    def _cache_key(self, images: Images, extractor: Any) -> dict[str, Any]:
        """All that a student depends on, beside seed and block: one trained with these may stand in for it."""
        elsewhere = ("n_blocks", "cache", "cache_size", "checkpoint", "n_jobs", "extractor", "random_state", "verbose")
        training = {name: value for name, value in self.get_params(deep=False).items() if name not in elsewhere}
        return {
            "images": fingerprint(images),
            "teacher": identity(extractor),
            "training": training,
            "kept": "weights, history, residuals",
        }

    def _train(self, student: nn.Module, layer: BlockActivations, extractor: Any, seed: int, progress: tqdm) -> dict:
        """Train one student on one layer's activations; gives its history."""
        rng = np.random.default_rng([seed, layer.index])
        rows, held_out = self._split(len(layer.inputs), rng)
        steps = -(-len(rows) // self.batch_size)
        imitate = _Imitation(student, layer, self.token_share)
        parameters = list(student.parameters())
        lr = _auto_lr(student, steps * self.max_epochs) if self.lr == "auto" else float(self.lr)
        optimizer = torch.optim.Adam(parameters, lr=lr, fused=_can_fuse(parameters))
        total = steps * self.max_epochs if self.schedule == "one-cycle" else None
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _lr_factor(step, total))
        descent = _Descent(imitate, optimizer, extractor)
        history: dict[str, list[float]] = {"loss": []}
        best, best_state, waited = np.inf, None, 0
        # architectures that drop out while training draw from torch's generator
        with seeded(seed) if _drops_out(student) else contextlib.nullcontext():
            for epoch in range(self.max_epochs):
                losses = []
                for batch in np.array_split(rng.permutation(rows), steps):
                    tokens = imitate.draw_tokens(rng)
                    loss = descent.step(batch, tokens)
                    scheduler.step()
                    losses.append(loss * len(batch))
                history["loss"].append(float(torch.stack(losses).sum() / len(rows)))
                if self.early_stopping:
                    imitate.settle(rows, self.batch_size, extractor)
                    history.setdefault("validation_loss", []).append(
                        imitate.mean_loss(held_out, self.batch_size, extractor)
                    )
                if not np.isfinite([values[-1] for values in history.values()]).all():
                    raise FloatingPointError(
                        f"The loss of the student of block {layer.index} is {history['loss'][-1]} in epoch {epoch + 1}"
                        "; expected a finite number. Lower lr, or give the extractor precision='float32'."
                    )
                progress.set_postfix(block=layer.index, loss=f"{history['loss'][-1]:.3g}", refresh=False)
                progress.update()
                if self.early_stopping:
                    if history["validation_loss"][-1] < best:
                        best, best_state, waited = (
                            history["validation_loss"][-1],
                            copy.deepcopy(student.state_dict()),
                            0,
                        )
                    else:
                        waited += 1
                    if waited >= self.n_iter_no_change:
                        progress.update(self.max_epochs - epoch - 1)
                        break
            if best_state is not None:
                student.load_state_dict(best_state)
            else:
                imitate.settle(rows, self.batch_size, extractor)
        return history

    def _split(self, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
        """Places of `n` images to train on, and of those held out for early stopping."""
        rows = np.arange(n)
        if not self.early_stopping:
            return rows, rows[:0]
        rng.shuffle(rows)
        n_held_out = max(1, round(self.validation_fraction * n))
        if n_held_out >= n:
            raise ValueError(f"validation_fraction={self.validation_fraction} of {n} images leaves none to train on.")
        return rows[n_held_out:], rows[:n_held_out]

    def __getstate__(self) -> dict:
        # students trained on a GPU must unpickle on a machine without one
        state = dict(super().__getstate__())  # which from Python 3.11 on is the object's own
        state.pop("_halving", None)  # another machine has another memory
        if "students_" in state:
            students = state["students_"]
            if _is_restorable(self.extractor_):
                # weights alone: modules are bound to one version of timm, and skops cannot hold them
                states = [student.state_dict() for student in students]
                state["students_"] = [{name: tensor.cpu().numpy() for name, tensor in s.items()} for s in states]
                state["_sixteen_bits"] = any(map(is_suited, students))
            else:
                state["students_"] = [copy.deepcopy(student).cpu() for student in students]
        return state

    def __setstate__(self, state: dict) -> None:
        sixteen_bits = state.pop("_sixteen_bits", None)
        super().__setstate__(state)
        if sixteen_bits is not None:
            states = dict(zip(self.block_indices_.tolist(), self.students_))
            self.students_ = self.extractor_.restore_blocks(states, sixteen_bits=sixteen_bits)

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "students_")


class _Imitation(nn.Module):
    """A student together with what it is to imitate; as a module it is ``x -> student(x, *args)``."""

    def __init__(self, student: nn.Module, layer: BlockActivations, token_share: float = 1.0):
        super().__init__()
        self.student = student
        self.layer = layer
        self._like = next(student.parameters())
        self._share = token_share
        plain = token_share < 1 and not layer.args and not layer.kwargs
        self._partial = partial_forward(student, layer.inputs[:1].to(self._like)) if plain else None

    def forward(self, x: Tensor, tokens: Tensor | None = None) -> Tensor:
        if tokens is None or self._partial is None:
            return self.student(x, *self.layer.args, **self.layer.kwargs)
        return self._partial(x, tokens)

    def draw_tokens(self, rng: np.random.Generator) -> Tensor | None:
        """Places of the tokens that a step's loss is taken on; None for all."""
        drawn = draw_tokens(self.layer.inputs.shape[1], self._share, rng) if self._partial else None
        return None if drawn is None else torch.from_numpy(drawn).to(self._like.device)

    def loss(self, rows: np.ndarray, extractor: Any, tokens: Tensor | None = None) -> Tensor:
        """Mean squared error over images, tokens and channels (Eq. 1), of `tokens` where they are given."""
        picked = torch.from_numpy(rows)
        inputs, targets = self.layer.inputs[picked].to(self._like), self.layer.outputs[picked]
        if tokens is not None:
            targets = targets[:, tokens.to(targets.device)]
        with extractor.compute():
            outputs = self(inputs, tokens)
        return nn.functional.mse_loss(at_least_float32(outputs), targets.to(self._like))

    @torch.no_grad()
    def mean_loss(self, rows: np.ndarray, batch_size: int, extractor: Any) -> float:
        """Loss in eval mode over all `rows`."""
        self.eval()
        batches = np.array_split(rows, -(-len(rows) // batch_size))
        total = sum(float(self.loss(batch, extractor)) * len(batch) for batch in batches)
        self.train()
        return total / len(rows)

    def settle(self, rows: np.ndarray, batch_size: int, extractor: Any) -> None:
        """Replace batch-norm statistics, which lag behind a short training, by those of all `rows`.

        Does nothing for architectures without batch normalisation.
        """
        batches = np.array_split(rows, -(-len(rows) // batch_size))
        with extractor.compute():
            update_bn((self.layer.inputs[torch.from_numpy(batch)].to(self._like) for batch in batches), self)


class _Descent:
    """Steps of an optimizer down the loss of an imitation.

    In float16 gradients below 6e-8 are zero, so losses are scaled up before they go backward, as far as nothing
    overflows [Micikevicius et al., "Mixed Precision Training", ICLR 2018]; other precisions go without.
    """

    def __init__(self, imitate: _Imitation, optimizer: torch.optim.Optimizer, extractor: Any):
        self._imitate, self._optimizer, self._extractor = imitate, optimizer, extractor
        self._halving = Halving("training a student on")
        device = next(imitate.student.parameters()).device.type
        with extractor.compute():
            half = torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.float16
        self._scaler = torch.amp.GradScaler(device, enabled=half)

    def step(self, batch: np.ndarray, tokens: Tensor | None) -> Tensor:
        """Descend once; gives the loss. If scaled gradients overflow, the batch is taken again with a lower scale."""

        def descend(part: np.ndarray) -> Tensor:
            if part[0] == batch[0]:  # also when a pass that ran out of memory is done again
                self._optimizer.zero_grad(set_to_none=True)
            loss = self._imitate.loss(part, self._extractor, tokens) * (len(part) / len(batch))
            self._scaler.scale(loss).backward()
            return loss.detach()

        while True:
            loss = torch.stack(self._halving(descend, batch)).sum()
            scale = self._scaler.get_scale()
            self._scaler.step(self._optimizer)
            self._scaler.update()
            # without overflow the scale stays or grows; a loss that is not finite overflows at any scale
            if self._scaler.get_scale() >= scale or scale < _LEAST_SCALE or not torch.isfinite(loss):
                return loss


def _is_restorable(extractor: Any) -> bool:
    """Whether students can be built again from the teacher's name and their weights."""
    return type(extractor) is TimmExtractor and ":" not in extractor.model_name


def _auto_lr(student: nn.Module, steps: int) -> float:
    """Peak learning rate for a training of so many steps."""
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in student.modules()):
        return _LR_PEAK_BATCH_NORM
    return _LR_PEAK * min(1, steps / _LR_PEAK_STEPS)


def _lr_factor(step: int, total: int | None) -> float:
    """Share of the peak learning rate at `step`: up in a line over a fifth of `total`, down in half a cosine."""
    if total is None:
        return 1.0
    warm = max(1, total // 5)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, total - warm)))


def _result(student: nn.Module, layer: BlockActivations, history: dict, extractor: Any) -> tuple[dict, dict, Any]:
    """What is kept of a trained student: weights, history, and how it errs."""
    residuals = _residual_statistics(student, layer, extractor)
    return {name: tensor.cpu() for name, tensor in student.state_dict().items()}, history, residuals


@torch.no_grad()
def _residual_statistics(student: nn.Module, layer: BlockActivations, extractor: Any) -> ResidualStatistics | None:
    """How the trained student errs on some of its training images; None where outputs have no places in the image."""
    to_maps = find_places(extractor)
    if to_maps is None:
        return None
    fit_in = _MAP_BYTES // (4 * layer.outputs[0].numel())
    count = min(len(layer.outputs), _MAP_IMAGES, max(8, fit_in))
    rows = torch.from_numpy(np.linspace(0, len(layer.outputs) - 1, count).round().astype(np.int64))
    like = next(student.parameters())
    student.eval()

    def run(batch: Tensor) -> Tensor:
        inputs, targets = (t[batch].to(like) for t in (layer.inputs, layer.outputs))
        with extractor.compute():
            outputs = student(inputs, *layer.args, **layer.kwargs)
        return to_maps(at_least_float32(outputs) - targets)

    residuals, halving = [], Halving("running a student on")
    for batch in rows.split(int(extractor.batch_size)):  # torch takes no integer of numpy's
        try:
            residuals += halving(run, batch)
        except ValueError:  # tokens that fill no grid: who asks for a map is told
            return None
    return ResidualStatistics.fit(torch.cat(residuals))


def _drops_out(student: nn.Module) -> bool:
    """Whether `student` draws random numbers in training: layers of timm and torch that drop out, by their names."""
    drops = [module for module in student.modules() if "drop" in type(module).__name__.lower()]
    return any(getattr(module, name, None) for module in drops for name in ("p", "prob", "drop_prob"))


def _can_fuse(parameters: list[nn.Parameter]) -> bool:
    """Whether torch has one kernel for Adam's whole step on these parameters."""
    return all(p.is_floating_point() and p.device.type in ("cpu", "cuda") for p in parameters)
