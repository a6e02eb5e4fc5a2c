"""BlockStudents: fresh blocks that learn, on normal images only, to imitate the teacher's last blocks."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from numbers import Integral, Real
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, clone
from sklearn.utils import check_random_state
from torch import nn
from tqdm.auto import tqdm

from skl_transformaly.images._sequence import Images
from skl_transformaly.students._activations import LayerWalk
from skl_transformaly.students._imitation import ImitationMixin
from skl_transformaly.students._parallel import count_jobs, train_in_waves
from skl_transformaly.students._residuals import ResidualStatistics
from skl_transformaly.students._training import Train, TrainedStudent, TrainingSettings, finished, train_student
from skl_transformaly.teacher._architecture import blank_copy
from skl_transformaly.teacher._extractor import TimmExtractor
from skl_transformaly.teacher._kernels import is_suited, own_memory
from skl_transformaly.teacher._protocol import Extractor
from skl_transformaly.utils._cache import Cache, fingerprint, identity
from skl_transformaly.utils._compat import Interval, StrOptions, fit_context
from skl_transformaly.utils._fitting import all_or_nothing
from skl_transformaly.utils._progress import Progress
from skl_transformaly.utils._torch import own_settings

__all__ = ["BlockStudents"]


class BlockStudents(ImitationMixin, BaseEstimator):
    """Blocks trained to imitate the teacher's last blocks; their deviations are the discrepancies z_f.

    For each chosen teacher block, a student block of the same architecture is initialised at random and trained, on
    normal images only, to return the teacher block's output for the teacher block's input, with the mean squared error
    as its loss [1]_ (Section 3.2). No gradient crosses blocks: students are trained one after another, each on stored
    activations of the frozen teacher. A student that has seen only normal images deviates on others.

    Parameters
    ----------
    n_blocks : int, sequence of int or None, default=10
        Which teacher blocks get a student: an int selects the last n (all, if there are fewer), a sequence selects
        blocks by index (negative ones count from the end), and None selects all.
    max_epochs : int, default=8
        Passes over the training images for each student. The paper uses 30, at a constant learning rate.
    max_steps : int or None, default=1000
        Maximum number of training steps of each student; 1000 is 8 epochs of 4,000 images in batches of 32. With more
        images, there are fewer epochs, and the last one may be cut short. None sets no limit, as in the paper.
    lr : float or "auto", default="auto"
        Learning rate of Adam. A positive number sets a constant rate, as in the paper. With "auto", the rate rises over
        a fifth of all steps and then falls to 0. Its peak is 2e-3 for blocks with batch normalisation and 1.5e-3 for
        others (transformers), proportionally less with fewer than 100 steps. "auto" needs a quarter of the paper's
        epochs.
    batch_size : int, default=32
        Maximum number of images in a training step; the batches of an epoch have about the same size. The default is
        the paper's.
    token_share : float, default=0.25
        Share of a transformer block's tokens, in (0, 1], on which a training step computes its loss. At least 32 tokens
        are drawn anew in each step, the same for all images of a batch. Tokens of one image resemble each other, so a
        quarter of them is nearly as informative as all, in two fifths of the time. 1 uses all tokens, as blocks other
        than timm's plain ViT block always do. Discrepancies are always measured on all tokens.
    storage : {"auto", "ram", "disk"}, default="auto"
        Where the inputs and outputs of the block in training are kept. "auto" uses memory up to 512 MiB, and above that
        an unnamed temporary file that is deleted however the process ends. Choose "disk" if even that much memory is
        not available, and "ram" if there is enough memory but no room on disk.
    checkpoint : str, path or None, default=None
        Folder in which each student is stored once it is trained, until `fit` ends. If a fit is killed, the next one
        with the same images, teacher, parameters and library versions resumes after the last trained student and ends
        with exactly the same students; with ``random_state=None``, the seed is stored as well. Checkpoints are pickles:
        use only folders that you trust.
    n_jobs : int or None, default=None
        Number of students that joblib trains at a time. None means 1 unless in a ``joblib.parallel_config`` context,
        whose backends "dask" and "ray" spread students over a cluster; -1 means using all processors. See Notes.
    extractor : str, extractor or None, default=None
        The teacher, for use outside a :class:`TransformalyDetector`: the name of a timm model, "bundled", or an
        extractor; None means ``TimmExtractor()``. It must be None inside a detector, which passes its own extractor.
    random_state : int, RandomState or None, default=None
        Determines the students' initial weights, the order of images and the drawn tokens. Pass an int for reproducible
        results.
    verbose : int, default=0
        1 shows a progress bar with the loss.

    Attributes
    ----------
    students_ : list of nn.Module
        The trained blocks, in order of depth.
    block_indices_ : ndarray of shape (m,), int
        Indices of the imitated teacher blocks, counted from 0, ascending.
    history_ : dict of int to dict of str to list of float
        For each block index, "loss" by epoch: the mean squared error over the epoch's batches, in squared units of the
        teacher's activations.
    residuals_ : list of ResidualStatistics or None
        Statistics of each student's errors on training images, for anomaly maps; None if it is not known where in the
        image the outputs of the teacher's blocks belong.
    cache_keys_ : dict
        Keys under which a cache stores the students; empty without a cache.
    extractor_ : extractor
        The fitted teacher.
    n_features_in_ : int
        H * W * C, if `X` was one array in `fit`.

    See Also
    --------
    TransformalyDetector : Adds the density of the discrepancies to that of the embedding.
    RidgeStudents : Students in closed form, without training.

    Notes
    -----
    Memory holds the activations of two layers, whatever the number of blocks. In bfloat16 or float16 precision, only
    products of matrices are computed in 16 bits; weights, residual sums and losses are float32.

    *In parallel* (`n_jobs`), students are trained in waves, one student for each worker. Besides those two layers, one
    for each worker and one more are kept: in memory if everything held here and by the workers takes at most 512 MiB,
    and otherwise in files of a temporary folder, which is deleted when `fit` ends (but not if the process is killed).
    Workers on this machine map the files; to other machines, joblib sends the two layers of a student by value, so each
    worker there needs memory for them. Workers do not need the teacher's weights. Workers on one machine share its
    cores; on a cluster, each has the threads that its engine assigns. Students are bit for bit the same as if trained
    one after another, on the same kind of processor with the same number of torch threads; with another number, sums
    may be taken in another order and rounded differently. If a worker dies, `fit` raises the engine's own error; with
    `checkpoint`, the next fit resumes after the last complete wave.

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
        "max_steps": [Interval(Integral, 1, None, closed="left"), None],
        "lr": [StrOptions({"auto"}), Interval(Real, 0, None, closed="neither")],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "token_share": [Interval(Real, 0, 1, closed="right")],
        "storage": [StrOptions({"auto", "ram", "disk"})],
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
        max_steps: int | None = 1000,
        lr: float | str = "auto",
        batch_size: int = 32,
        token_share: float = 0.25,
        storage: str = "auto",
        checkpoint: str | os.PathLike | None = None,
        n_jobs: int | None = None,
        extractor: str | Extractor | None = None,
        random_state: int | np.random.RandomState | None = None,
        verbose: int = 0,
    ):
        self.n_blocks = n_blocks
        self.max_epochs = max_epochs
        self.max_steps = max_steps
        self.lr = lr
        self.batch_size = batch_size
        self.token_share = token_share
        self.storage = storage
        self.checkpoint = checkpoint
        self.n_jobs = n_jobs
        self.extractor = extractor
        self.random_state = random_state
        self.verbose = verbose

    @classmethod
    def paper(cls, **changes: Any) -> BlockStudents:
        """Return untrained students with the paper's settings: Adam at a constant 1e-4, 30 epochs, batches of 32.

        See its Section 4. The paper trains in float32, so set ``precision="float32"`` in the teacher too.

        Parameters
        ----------
        **changes
            Parameters that override the paper's.

        Returns
        -------
        students : BlockStudents

        Examples
        --------
        >>> from skl_transformaly import BlockStudents
        >>> BlockStudents.paper(n_blocks=3).max_epochs
        30
        """
        paper = {"max_epochs": 30, "max_steps": None, "lr": 1e-4, "batch_size": 32, "token_share": 1.0}
        return cls(**{**paper, **changes})

    def fit(self, X: Any, y: Any = None, *, extractor: Extractor | None = None) -> BlockStudents:
        """Train a student for each chosen block.

        Parameters
        ----------
        X : images
            Normal images only, in any form that :class:`TransformalyDetector` takes.
        y : ignored
        extractor : fitted extractor, default=None
            The teacher to use instead of fitting a new one.

        Returns
        -------
        self : BlockStudents

        Raises
        ------
        ValueError
            `X` does not hold images, or `n_blocks` names a block that does not exist.
        TypeError
            The teacher's blocks cannot be imitated one by one.
        FloatingPointError
            A student's loss is not finite.
        OSError
            The disk has no room for the activations.
        """
        self._fit(X, extractor, Cache(None))
        self.release_checkpoint()
        return self

    def release_checkpoint(self) -> None:
        """Delete what the fit has kept in `checkpoint`, once nothing is left that could be killed."""
        checkpoint = Cache(self.checkpoint, parameter="checkpoint")
        _KeptStudents(Cache(None), checkpoint, self.cache_keys_).release()
        for key in list(self.cache_keys_.values())[:1]:
            checkpoint.forget("seed", {name: value for name, value in key.items() if name not in ("seed", "block")})

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=False)
    @own_settings()
    def _fit(self, X: Any, extractor: Extractor | None, cache: Cache) -> BlockStudents:
        """Fit, with students stored in `cache`; a detector passes its teacher and its `memory`.

        What is in the checkpoint stays there until `release_checkpoint`.
        """
        images, extractor = self._begin(X, extractor)
        indices = self.block_indices_.tolist()
        seed = int(check_random_state(self.random_state).randint(np.iinfo(np.int32).max))
        checkpoint = Cache(self.checkpoint, parameter="checkpoint")
        key = self._cache_key(images, extractor) if cache.active or checkpoint.active else {}
        if self.random_state is None:  # a fit that was killed resumes with the same seed
            seed = checkpoint("seed", key, partial(int, seed))
        self.cache_keys_ = {index: {**key, "seed": seed, "block": index} for index in indices} if key else {}

        kept = _KeptStudents(cache, checkpoint, self.cache_keys_)
        trainer = _StudentTrainer(images, extractor, indices, seed, self._train_function(), self.storage)
        trained: dict[int, TrainedStudent] = {}
        epochs = self._settings().count_epochs(len(images))
        with (
            own_memory(),
            Progress("Training students", len(indices) * epochs, unit="epoch", show=self.verbose) as progress,
        ):
            if count_jobs(self.n_jobs, len(indices)) > 1:
                missing = [index for index in indices if not kept.has(index)]
                for index, student in trainer.train_several(missing, self.n_jobs):
                    trained[index] = kept.get(index, partial(_same, student))
                    progress.set_postfix(block=index, loss=f"{student.history['loss'][-1]:.3g}", refresh=False)
                    progress.update(epochs)
            for index in indices:
                if index not in trained:
                    trained[index] = kept.get(index, partial(trainer.train, index, progress))
                    progress.update(len(trained) * epochs - progress.n)  # counts stored students too

        self.history_ = {index: trained[index].history for index in indices}
        self.residuals_: list[ResidualStatistics | None] = [trained[index].residuals for index in indices]
        self.students_ = [_assembled(index, trained[index], trainer) for index in indices]
        return self

    def _train_function(self) -> Train:
        """Return the function that trains one student; it can be pickled."""
        return partial(train_student, settings=self._settings())

    def _settings(self) -> TrainingSettings:
        return TrainingSettings(self.max_epochs, self.lr, self.batch_size, self.token_share, self.max_steps)

    def for_fold(self, n: int, n_fold: int) -> BlockStudents:
        """Return unfitted students that take as many steps on a fold of the images as these do on all `n` of them.

        Students are usually still learning when their training ends: after fewer steps they would deviate more from the
        teacher than those that score new images, whose false alarms would then be too few.
        """
        _, steps = self._settings().plan(n)
        epoch, _ = self._settings().plan(n_fold)
        return clone(self).set_params(max_epochs=-(-steps // epoch), max_steps=steps)

    def _cache_key(self, images: Images, extractor: Extractor) -> dict[str, Any]:
        """Return everything that a student depends on besides its seed and block."""
        elsewhere = ("n_blocks", "storage", "checkpoint", "n_jobs", "extractor", "random_state", "verbose")
        return {
            "images": fingerprint(images),
            "teacher": identity(extractor),
            "training": {name: value for name, value in self.get_params(deep=False).items() if name not in elsewhere},
            "kept": TrainedStudent._fields,
        }

    def __getstate__(self) -> dict:
        # students trained on a GPU must unpickle on a machine without one
        state = dict(super().__getstate__())  # from Python 3.11 on, the object's own
        if "students_" in state:
            students = state["students_"]
            if _is_restorable(self.extractor_):
                # only weights: modules depend on the version of timm, and skops cannot store them
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


class _KeptStudents:
    """Trained students, stored permanently in a cache and until the fit ends in a checkpoint."""

    def __init__(self, cache: Cache, checkpoint: Cache, keys: dict[int, dict[str, Any]]):
        self._cache, self._checkpoint, self._keys = cache, checkpoint, keys

    def has(self, index: int) -> bool:
        return self._cache.has(*self._named(index)) or self._checkpoint.has(*self._named(index))

    def get(self, index: int, train: Callable[[], TrainedStudent]) -> TrainedStudent:
        """Return the student of a block; if it is not stored yet, `train` creates it."""
        return self._cache(*self._named(index), partial(self._checkpoint, *self._named(index), train))

    def release(self) -> None:
        """Delete the students from the checkpoint."""
        for index in self._keys:
            self._checkpoint.forget(*self._named(index))

    def _named(self, index: int) -> tuple[str, dict[str, Any]]:
        return f"student of block {index}", self._keys.get(index, {})


class _StudentTrainer:
    """Trains the students of one fit; weights are drawn and the teacher runs only when they are needed."""

    def __init__(self, images: Images, extractor: Extractor, indices: list[int], seed: int, train: Train, storage: str):
        self.extractor = extractor
        self._images, self._indices = images, indices
        self._seed, self._train, self._storage = seed, train, storage

    @property
    def has_begun(self) -> bool:
        """Whether any student's weights were drawn."""
        return "fresh" in vars(self)

    @functools.cached_property
    def fresh(self) -> dict[int, nn.Module]:
        """Students by block index; until they are trained, their weights are those drawn from the seed."""
        blocks = self.extractor.new_blocks(self._seed)
        return {index: blocks[index] for index in self._indices}

    @functools.cached_property
    def _walk(self) -> LayerWalk:
        return LayerWalk(self._images, self.extractor, self._storage)

    def train(self, index: int, progress: tqdm) -> TrainedStudent:
        """Train the student of one block; calls in order of depth are fastest."""
        student = self.fresh[index]
        self._walk.move_to(index)
        history = self._train(student, self._walk, self.extractor, self._seed, progress)
        return finished(student, self._walk, history, self.extractor)

    def train_several(self, indices: list[int], n_jobs: int | None) -> Iterator[tuple[int, TrainedStudent]]:
        """Train as many students at a time as there are workers, and yield each block's index and student."""
        students = {index: self.fresh[index] for index in indices}
        if students:
            yield from train_in_waves(
                self._train, students, self._walk, self.extractor, self._seed, n_jobs=n_jobs, storage=self._storage
            )


def _same(student: TrainedStudent) -> TrainedStudent:
    return student


def _assembled(index: int, trained: TrainedStudent, trainer: _StudentTrainer) -> nn.Module:
    """Return a module with the trained weights."""
    if trainer.has_begun or not _is_restorable(trainer.extractor):
        student = trainer.fresh[index]
    else:
        # All were stored: drawing weights of a whole network only to replace them would take longer than all else.
        student = blank_copy(trainer.extractor.blocks_[index])
    student.load_state_dict(trained.weights)
    return student.eval().requires_grad_(False)


def _is_restorable(extractor: Extractor) -> bool:
    """Whether students can be rebuilt from the teacher's name and their weights."""
    return type(extractor) is TimmExtractor and ":" not in extractor.model_name
