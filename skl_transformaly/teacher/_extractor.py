"""TimmExtractor: the frozen teacher as a scikit-learn transformer."""

from __future__ import annotations

import contextlib
import os
from numbers import Integral
from typing import Any, overload

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import check_is_fitted
from torch import Tensor, nn
from torch.nn import functional as F

from skl_transformaly.images._input import ImageInputMixin
from skl_transformaly.images._pixels import eight_bits
from skl_transformaly.teacher import _architecture, _weights
from skl_transformaly.teacher._kernels import REUSED_BYTES, releasing, suit_sixteen_bits
from skl_transformaly.teacher._network import BlockVisitor, Teacher
from skl_transformaly.teacher._protocol import Extractor, missing_members
from skl_transformaly.utils._chunks import Chunks
from skl_transformaly.utils._compat import Interval, StrOptions, fit_context
from skl_transformaly.utils._fitting import all_or_nothing, refuse_class
from skl_transformaly.utils._torch import (
    PRECISIONS,
    autocast,
    own_settings,
    resolve_device,
    resolve_precision,
    weights_dtype,
)

__all__ = ["TimmExtractor", "resolve_extractor"]


class TimmExtractor(ImageInputMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """Frozen, pre-trained teacher: any timm model, with its embeddings and its blocks to watch.

    The embedding is the pooled pre-logits one, ``forward_head(forward_features(x), pre_logits=True)``:
    for a Vision Transformer with a class token that is the normalised class token [1]_ (Section 3.1).
    The teacher is always in eval mode, and none of its parameters is ever trained.

    Parameters
    ----------
    model_name : str, default="vit_base_patch16_224.augreg_in21k_ft_in1k"
        A model of timm, with or without a tag; ``timm.list_models()`` lists them. "bundled" is timm's
        "tf_efficientnet_lite0" with the bundled weights.
    weights : "hub", "bundled", str, path or None, default="hub"
        Where the weights come from:

        - "hub": timm's own download, kept in its cache; for ``model_name="bundled"`` the same as "bundled";
        - "bundled": ImageNet weights of EfficientNet-lite0 from a package (extra ``offline``); only with
          ``model_name="bundled"`` or "tf_efficientnet_lite0";
        - a path: a ``.safetensors`` file, or a ``.pth`` file of tensors, with timm's names, whose
          classifier gives the feature space "classes";
        - None: random weights, the same ones each time, for tests.
    image_size : int or (int, int), default=None
        Height and width in pixels that images are resized to, position embeddings being resampled: one number for both,
        or (height, width) for images that are not square. None takes that of the weights.
    interpolation : {"bilinear", "bicubic"} or None, default=None
        How images are resized (always antialiased); None takes that of the weights. The authors' code
        resizes bilinearly whatever the weights.
    batch_size : int, default=32
        Images that go through the teacher at a time. Changes memory and speed, not scores.
    device : str or torch.device, default="auto"
        "auto" takes CUDA, else MPS, else the CPU.
    precision : {"auto", "float32", "float64", "bfloat16", "float16"}, default="auto"
        What matrix products are computed in. "auto" is bfloat16 for transformers on processors that have
        instructions for it, bfloat16 or else float16 on CUDA, and float32 elsewhere. Sums along the residual stream
        stay in float32.

    Attributes
    ----------
    embedding_size_ : int
        D, the number of values in an embedding.
    image_size_ : tuple of (int, int)
        Height and width that images are resized to.
    interpolation_ : {"bilinear", "bicubic"}
        How images are resized.
    places_known_ : bool
        Whether `to_maps` finds the right places, which anomaly maps need.
    precision_ : str
        The precision in use.
    settings_ : dict
        The parameters that `fit` saw. Parameters that are set later take effect at the next `fit`, except `batch_size`
        and, for a pickle, `device` and where the `weights` are.
    weights_sha256_ : str
        SHA-256 over the teacher's parameters and buffers. A pickle holds this instead of the weights: they are loaded
        again on the first use after unpickling, and must have this hash.
    image_shape_ : tuple or None
        (H, W, C) of the images that `fit` saw, if they were one array.
    n_features_in_ : int
        H * W * C, if `image_shape_` is not None.

    See Also
    --------
    TransformalyDetector : Scores images by this and by what students fail to imitate.

    Notes
    -----
    Images are resized whole, without cropping and without keeping the aspect ratio, with the weights' own
    interpolation (antialiased), then normalised with the weights' own mean and standard deviation, per
    ``pretrained_cfg``. Grey images fill all channels; transparent ones are laid on white.

    A class of your own can stand in for this one, if it has the members of :class:`Extractor`.

    References
    ----------
    .. [1] M. J. Cohen and S. Avidan, "Transformaly - Two (Feature Spaces) Are Better Than One", CVPR
       Workshops 2022.

    Examples
    --------
    >>> import numpy as np
    >>> from skl_transformaly import TimmExtractor
    >>> images = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    >>> extractor = TimmExtractor("vit_tiny_patch16_224", weights=None, image_size=32)
    >>> extractor.fit_transform(images).shape
    (4, 192)
    """

    _parameter_constraints: dict = {
        "model_name": [str],
        "weights": [str, os.PathLike, None],
        "image_size": [Interval(Integral, 1, None, closed="left"), tuple, list, None],
        "interpolation": [StrOptions({"bilinear", "bicubic"}), None],
        "batch_size": [Interval(Integral, 1, None, closed="left")],
        "device": [str, torch.device],
        "precision": [StrOptions({"auto", *PRECISIONS})],
    }

    def __init__(
        self,
        model_name: str = "vit_base_patch16_224.augreg_in21k_ft_in1k",
        *,
        weights: str | os.PathLike | None = "hub",
        image_size: int | tuple[int, int] | None = None,
        interpolation: str | None = None,
        batch_size: int = 32,
        device: str | torch.device = "auto",
        precision: str = "auto",
    ):
        self.model_name = model_name
        self.weights = weights
        self.image_size = image_size
        self.interpolation = interpolation
        self.batch_size = batch_size
        self.device = device
        self.precision = precision

    @all_or_nothing
    @fit_context(prefer_skip_nested_validation=True)
    @own_settings()
    def fit(self, X: Any, y: Any = None) -> TimmExtractor:
        """Load the teacher. Of the images, only the form is checked.

        Parameters
        ----------
        X : images
            Any form that :class:`TransformalyDetector` takes.
        y : ignored

        Returns
        -------
        self : TimmExtractor

        Raises
        ------
        ValueError
            The model or the weights are unknown, or the weights do not fit the model, or `X` is not images.
        ConnectionError
            ``weights="hub"`` and the hub cannot be reached.
        FileNotFoundError
            `weights` is the path of a file that does not exist.
        ModuleNotFoundError
            ``weights="bundled"`` and the extra ``offline`` is not installed.
        """
        self._check_images(X, reset=True)
        self.keep_settings()
        device = resolve_device(self.device)
        teacher = self._load(device)
        attention = any(isinstance(module, nn.Linear) for module in teacher.blocks[-1].modules())
        self.precision_ = resolve_precision(self.precision, device, attention=attention)
        self.weights_sha256_ = teacher.weights_sha256
        self.image_size_ = tuple(teacher.data_config["input_size"][1:])
        self._teacher = teacher
        self.embedding_size_ = self.probe()[0]
        return self

    def transform(self, X: Any) -> np.ndarray:
        """Embed images.

        Parameters
        ----------
        X : images
            Any form that :class:`TransformalyDetector` takes.

        Returns
        -------
        Z : ndarray of shape (n_samples, D), float32 (float64 with ``precision="float64"``)

        Raises
        ------
        NotFittedError
            `fit` was not called.
        ValueError
            `X` is not images, or an image cannot be read.
        """
        check_is_fitted(self)
        images = self._check_images(X, reset=False)
        Z = np.full((len(images), self.embedding_size_), np.nan, dtype=np.float64)
        chunks = Chunks("running the teacher on", self.chunk_size_)
        for positions, pixels in releasing(images.batches(self.batch_size)):
            Z[positions] = torch.cat(chunks(self.embed, self.preprocess(pixels))).cpu().double().numpy()
        return Z if self.precision_ == "float64" else Z.astype(np.float32)

    def keep_settings(self) -> None:
        """Keep the parameters on which embeddings depend in `settings_`."""
        names = ("model_name", "image_size", "interpolation", "precision")
        self.settings_ = {name: getattr(self, name) for name in names}

    @property
    def interpolation_(self) -> str:
        """How images are resized: "bilinear" or "bicubic"."""
        return self.settings_["interpolation"] or self.teacher_.data_config["interpolation"]

    # The protocol of an extractor

    @property
    def blocks_(self) -> list[nn.Module]:
        """The teacher's blocks, in order of depth (stages, for models in stages)."""
        return self.teacher_.blocks

    @own_settings()
    def preprocess(self, pixels: np.ndarray | list[np.ndarray]) -> Tensor:
        """Resize and normalise decoded images.

        Parameters
        ----------
        pixels : ndarray of shape (B, H, W, C) or list of ndarray of shape (H, W, C)
            uint8, uint16, or float in 0-1; C = 1, 3 or 4.

        Returns
        -------
        batch : Tensor of shape (B, C_model, H_model, W_model)
            On the teacher's device, in the dtype of its parameters.
        """
        config = self.teacher_.data_config
        parameter = self._parameter()
        size, mode = self.image_size_, self.interpolation_
        if mode not in ("bicubic", "bilinear"):
            raise ValueError(
                f"The weights of {self.model_name!r} ask for interpolation {mode!r}, which is not supported; set "
                "interpolation='bicubic' or 'bilinear'."
            )
        if not (isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8):
            pixels = [eight_bits(image) for image in pixels]
        stacks = [pixels] if isinstance(pixels, np.ndarray) else [image[np.newaxis] for image in pixels]
        resized = [_unit_range(_resize(stack, size, mode), parameter) for stack in stacks]
        batch = resized[0] if len(resized) == 1 else torch.cat(resized)
        mean, std = (torch.as_tensor(config[key]).to(batch).view(-1, 1, 1) for key in ("mean", "std"))
        return torch.sub(batch, mean).div_(std)

    @own_settings()
    def embed(self, batch: Tensor, visit: BlockVisitor | None = None) -> Tensor:
        """Run the teacher.

        Parameters
        ----------
        batch : Tensor of shape (B, C_model, H_model, W_model)
            From `preprocess`.
        visit : callable, default=None
            ``visit(index, block, args, kwargs, output)`` is called as each block finishes: `args` and `kwargs` are the
            block's arguments, its input tokens or feature maps first. Finally it is called with the number of blocks as
            index, and the last tokens or maps as output. An exception that it raises ends the run.

        Returns
        -------
        z_p : Tensor of shape (B, D)
        """
        with self.compute():
            return self.teacher_.embed(batch, visit)

    @property
    def n_classes_(self) -> int:
        """Number of classes that the teacher's weights were trained on; 0 if they came without a classifier."""
        return self.teacher_.n_classes

    @property
    def n_places_(self) -> int:
        """Number of places that the feature space "variation" is computed over; 0 if the teacher lacks this space."""
        return self.probe()[2]

    @own_settings()
    def classify(self, z_p: Tensor) -> Tensor:
        """Classify embeddings by the classifier that the teacher's weights came with.

        Parameters
        ----------
        z_p : Tensor of shape (B, D)
            From `embed`.

        Returns
        -------
        roots : Tensor of shape (B, K)
            Square roots of the probabilities of the K classes at temperature 2; rows have length 1.
        """
        return self.teacher_.classify(z_p)

    @own_settings()
    def new_blocks(self, seed: int) -> list[nn.Module]:
        """Build all blocks of the architecture with weights drawn from `seed`, in training mode, on the device.

        A block's weights depend on `seed` and on its depth alone.
        """
        blocks = _architecture.new_blocks(self.settings_["model_name"], self.settings_["image_size"], seed)
        return [self.adapt(block).to(self._parameter()).train() for block in blocks]

    def adapt(self, block: nn.Module) -> nn.Module:
        """Make a block of the architecture compute by the same kernels as the teacher's, and return it."""
        if self.sixteen_bits(self._parameter().device):
            suit_sixteen_bits(block)
        return block

    def restore_blocks(self, states: dict[int, dict[str, np.ndarray]], *, sixteen_bits: bool) -> list[nn.Module]:
        """Build blocks of the architecture with the given weights and buffers, on the CPU, in eval mode.

        The teacher's own weights are not needed. With `sixteen_bits`, blocks compute by the kernels of :meth:`adapt`.
        """
        model = _architecture.empty_model(self.settings_["model_name"], self.settings_["image_size"])
        fresh = _architecture.find_blocks(model)
        blocks = []
        for index, state in states.items():
            block = fresh[index].to(weights_dtype(self.precision_))
            block.load_state_dict({name: torch.from_numpy(np.array(array)) for name, array in state.items()})
            if sixteen_bits:
                suit_sixteen_bits(block)
            blocks.append(block.eval().requires_grad_(False))
        return blocks

    def compute(self) -> contextlib.AbstractContextManager:
        """Context manager in which teacher and students compute, in the precision in use."""
        # workers that train students have a copy without the network
        loaded = getattr(self, "_teacher", None) is not None
        return autocast(self._parameter().device if loaded else resolve_device(self.device), self.precision_)

    @property
    def chunk_size_(self) -> int | None:
        """The most images that the teacher runs on at a time, whatever `batch_size`; None means no limit.

        On a CPU, the output of no layer exceeds the size up to which C libraries reuse freed memory. Beyond that size,
        each layer of each batch would wait for the system to find, clear and map fresh pages
        (``benchmarks/speed/chunks.py``).
        """
        if self._parameter().device.type != "cpu":
            return None
        return max(1, REUSED_BYTES // max(1, self.probe()[1]))

    def identity(self) -> dict[str, Any]:
        """Return what distinguishes this fitted teacher from those that compute other values, for caches."""
        config = self.teacher_.data_config
        known = TimmExtractor._get_param_names()
        own = {name: value for name, value in self.get_params(deep=False).items() if name not in known}
        return {
            **({"parameters": own} if own else {}),  # of a subclass, which may compute otherwise by them
            "model": _architecture.architecture_name(self.settings_["model_name"]),
            # of the network that runs, whatever the file that it was loaded from states
            "weights": self.teacher_.content_sha256,
            "size": tuple(int(side) for side in self.image_size_),
            "mean": tuple(float(value) for value in config["mean"]),
            "std": tuple(float(value) for value in config["std"]),
            "interpolation": self.interpolation_,
            "precision": self.precision_,
            "device": self._parameter().device.type,
            "processor": torch.backends.cpu.get_cpu_capability(),
        }

    def to_maps(self, activations: Tensor) -> Tensor:
        """Arrange a block's tokens or feature maps by their places in the image.

        Parameters
        ----------
        activations : Tensor of shape (B, T, ...) or (B, C, H, W) or (B, H, W, C)
            Input or output of a block: tokens, with class token and registers first if the model has any, or maps, with
            channels first or last as in the model.

        Returns
        -------
        maps : Tensor of shape (B, C, h, w)
            Tokens that stand for no place are left out.

        Raises
        ------
        ValueError
            The tokens do not fill a grid.
        """
        return self.teacher_.to_maps(activations)

    @property
    @own_settings()
    def places_known_(self) -> bool:
        """Whether `to_maps` finds the right places, as tested by changing each quarter of an image."""
        return self.teacher_.places_known

    @property
    def teacher_(self) -> Teacher:
        """The loaded network. After unpickling, the first access loads the weights again."""
        check_is_fitted(self, "weights_sha256_")
        if getattr(self, "_teacher", None) is None:
            teacher = self._load(resolve_device(self.device))
            if teacher.weights_sha256 != self.weights_sha256_:
                raise ValueError(
                    f"The weights of {self.model_name!r} from {str(self.weights)!r} are not those that this estimator "
                    f"was fitted with: SHA-256 {teacher.weights_sha256}, expected "
                    f"{self.weights_sha256_}. Give it the same weights (set its parameter `weights` to their path), or "
                    "fit again."
                )
            self._teacher = teacher
        return self._teacher

    def restore_teacher(self) -> None:
        """Load the weights from a model file, and compute their SHA-256 instead of trusting the one in the file."""
        self._teacher = self._load(resolve_device(self.device))
        self.weights_sha256_ = self._teacher.weights_sha256

    @own_settings()
    def _load(self, device: torch.device) -> Teacher:
        model_name, image_size = self.settings_["model_name"], self.settings_["image_size"]
        dtype = weights_dtype(self.settings_["precision"])
        return _weights.load_teacher(model_name, self.weights, image_size, device, dtype, self.sixteen_bits(device))

    def _validate_params(self) -> None:
        super()._validate_params()
        _architecture.image_sides(self.image_size)

    def sixteen_bits(self, device: torch.device) -> bool:
        """Whether `device` is a CPU on which networks compute in 16 bits, for which :meth:`adapt` prepares them."""
        return device.type == "cpu" and PRECISIONS[resolve_precision(self.settings_["precision"], device)].itemsize == 2

    def _parameter(self) -> Tensor:
        """Any parameter of the teacher: it carries device and dtype."""
        return next(self.teacher_.model.parameters())

    @own_settings()
    def probe(self) -> tuple[int, int, int]:
        """What a run on one image tells: see `Teacher.probe`."""
        with self.compute():
            return self.teacher_.probe(torch.zeros(1, *self.teacher_.data_config["input_size"]).to(self._parameter()))

    @property
    def _n_features_out(self) -> int:
        return self.embedding_size_

    def __getstate__(self) -> dict:
        # the teacher can be loaded again by name or path, and is far larger than everything else
        state = dict(super().__getstate__())  # which from Python 3.11 on is the object's own
        state.pop("_teacher", None)
        return state

    def __sklearn_is_fitted__(self) -> bool:
        return hasattr(self, "weights_sha256_")


@overload
def resolve_extractor(extractor: str | None) -> TimmExtractor: ...


@overload
def resolve_extractor(extractor: str | Extractor | None) -> Extractor: ...


def resolve_extractor(extractor: str | Extractor | None) -> Extractor:
    """Turn None or a name into an extractor; refuse objects that lack what is needed."""
    if extractor is None:
        return TimmExtractor()
    if isinstance(extractor, str):
        return TimmExtractor(extractor)
    refuse_class(extractor, "extractor")
    missing = missing_members(extractor)
    if missing:
        raise TypeError(
            "extractor must be a timm name, 'bundled', or an object with the members of skl_transformaly.Extractor; "
            f"{type(extractor).__name__} lacks {', '.join(missing)}."
        )
    return extractor


def _resize(pixels: np.ndarray, size: tuple[int, ...], mode: str) -> Tensor:
    """Resize (B, H, W, C), C = 1, 3 or 4, to (B, 3, *size), of the range that the images are in; alpha laid on white.

    8-bit images are resized in 8 bits, which agrees with Pillow and so with what networks are trained on.
    """
    # A copy, since torch wants memory that it may write; with channels last, where resizing is 3 to 5 times as fast.
    batch = torch.from_numpy(np.array(pixels, order="C")).permute(0, 3, 1, 2)
    white = 255 if batch.dtype == torch.uint8 else 1
    if batch.dtype == torch.float16:
        batch = batch.float()
    if batch.shape[1] == 4:
        alpha = batch[:, 3:].double() / white
        flat = batch[:, :3] * alpha + white * (1 - alpha)
        batch = (flat.round() if white == 255 else flat).to(batch.dtype)
    if tuple(batch.shape[2:]) != size:
        low, high = (f(batch.flatten(1), 1).view(-1, 1, 1, 1) for f in (torch.amin, torch.amax))
        batch = F.interpolate(batch, size=list(size), mode=mode, antialias=True, align_corners=False)
        # cubic interpolation overshoots; keep floats to the image's own range, at least 0-1, as bytes keep to theirs
        if white == 1:
            batch = batch.clamp(low.clamp(max=0), high.clamp(min=1))
    return batch.expand(-1, 3, -1, -1)


def _unit_range(batch: Tensor, like: Tensor) -> Tensor:
    """Bytes as numbers in 0-1, others as they are, on the device and in the dtype of `like`."""
    if batch.dtype != torch.uint8:
        return batch.to(like)
    return batch.to(device=like.device).to(like.dtype, memory_format=torch.contiguous_format).div_(255)
