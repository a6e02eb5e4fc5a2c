"""Semantic anomaly detection for images, as a scikit-learn estimator."""

from importlib import import_module
from typing import TYPE_CHECKING

__version__ = "0.2.0"

if TYPE_CHECKING:
    from skl_transformaly._calibration import ConformalDetector
    from skl_transformaly._density import AutoDensity
    from skl_transformaly._detector import TransformalyDetector
    from skl_transformaly._drift import DriftMonitor, DriftReport
    from skl_transformaly._gaussian import GaussianDensity
    from skl_transformaly._neighbors import KNNDensity, LocalKNNDensity
    from skl_transformaly.images._values import ImageError
    from skl_transformaly.persistence import load, save
    from skl_transformaly.students._block import BlockStudents
    from skl_transformaly.students._ridge import RidgeStudents
    from skl_transformaly.teacher._extractor import TimmExtractor
    from skl_transformaly.teacher._protocol import Extractor
    from skl_transformaly.utils._container import ModelFileError

__all__ = [
    "AutoDensity",
    "BlockStudents",
    "ConformalDetector",
    "DriftMonitor",
    "DriftReport",
    "Extractor",
    "GaussianDensity",
    "ImageError",
    "KNNDensity",
    "LocalKNNDensity",
    "ModelFileError",
    "RidgeStudents",
    "TimmExtractor",
    "TransformalyDetector",
    "__version__",
    "load",
    "save",
]

# Names are imported when they are first used: `import skl_transformaly` loads no torch.
_HOMES = {
    "AutoDensity": "_density",
    "BlockStudents": "students._block",
    "ConformalDetector": "_calibration",
    "DriftMonitor": "_drift",
    "DriftReport": "_drift",
    "GaussianDensity": "_gaussian",
    "Extractor": "teacher._protocol",
    "ImageError": "images._values",
    "KNNDensity": "_neighbors",
    "LocalKNNDensity": "_neighbors",
    "ModelFileError": "utils._container",
    "RidgeStudents": "students._ridge",
    "TimmExtractor": "teacher._extractor",
    "TransformalyDetector": "_detector",
    "load": "persistence",
    "save": "persistence",
}


def __getattr__(name: str):
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        home = import_module(f"{__name__}.{_HOMES[name]}")
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        from skl_transformaly.utils._compat import torchvision_advice

        raise ImportError(torchvision_advice(error)) from error
    return getattr(home, name)


def __dir__() -> list[str]:
    return sorted(__all__)
