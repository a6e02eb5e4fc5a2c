"""A tiny random Vision Transformer, a few images, and the real assets where they are at hand."""

from __future__ import annotations

import os
from pathlib import Path

# scikit-learn's array-API checks skip unless scipy was imported with this set
os.environ.setdefault("SCIPY_ARRAY_API", "1")
# Threads wait for each other longer than they calculate where arrays are as small as here; tests of threads set theirs
os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from skl_transformaly import BlockStudents, RidgeStudents, TimmExtractor, TransformalyDetector
from skl_transformaly.students import _block

SLOW_DOCTESTS = {"skl_transformaly.export._export.to_onnx"}  # a second trace of a network, besides test_export's


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark the docstrings' examples that take more than a few seconds, which cannot carry a marker themselves."""
    for item in items:
        if item.name in SLOW_DOCTESTS:
            item.add_marker(pytest.mark.slow)


def tiny_extractor(model_name: str = "test_vit", **changes) -> TimmExtractor:
    """A random transformer of timm's own test models: 4 tokens of 64 channels, 6 blocks."""
    return TimmExtractor(
        model_name, **{"weights": None, "image_size": 32, "precision": "float64", "device": "cpu", **changes}
    )


def tiny_students(**changes) -> BlockStudents:
    return BlockStudents(**{"n_blocks": 2, "max_epochs": 1, "random_state": 0, **changes})


def tiny_detector(**changes) -> TransformalyDetector:
    """A detector with two solved students, whose twelve images are few for its default contamination."""
    settings = {"extractor": tiny_extractor(), "students": RidgeStudents(n_blocks=2), "contamination": 0.25}
    return TransformalyDetector(**{**settings, "random_state": 0, **changes})


def tiny_paper(**changes) -> TransformalyDetector:
    """The paper's two spaces, with two trained students."""
    return TransformalyDetector.paper(
        **{"extractor": tiny_extractor(), "students": tiny_students(), "random_state": 0, **changes}
    )


def pictures_of(digit: int) -> np.ndarray:
    """scikit-learn's pictures of a digit, uint8 (n, 8, 8)."""
    digits = load_digits()
    return (digits.images[digits.target == digit] / 16 * 255).astype(np.uint8)


def write_images(folder: Path, images) -> None:
    """Write images to a new folder, as 000.png and so on."""
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{i:03}.png")


def on_training(monkeypatch, notice) -> None:
    """Have ``notice(layer)`` called before each student is trained, in this process."""
    train = _block.train_student

    def watched(student, layer, *rest, **settings):
        notice(layer)
        return train(student, layer, *rest, **settings)

    monkeypatch.setattr(_block, "train_student", watched)


@pytest.fixture
def rng():
    return np.random.default_rng(0)


@pytest.fixture
def images(rng):
    """Twelve small colour images."""
    return rng.integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)


@pytest.fixture(scope="session")
def fitted():
    """A fitted tiny detector and its training images; not to be changed."""
    X = np.random.default_rng(1).integers(0, 256, (12, 20, 24, 3), dtype=np.uint8)
    return tiny_detector().fit(X), X


@pytest.fixture(scope="session")
def assets() -> Path:
    """Folder of real weights and images."""
    folder = os.environ.get("SKL_TRANSFORMALY_ASSETS")
    if not folder:
        pytest.skip("SKL_TRANSFORMALY_ASSETS names no folder of real weights and images")
    path = Path(folder)
    if not (path / "weights").is_dir():
        pytest.skip(f"{path} holds no weights")
    return path
