"""ONNX: a fitted detector as one file that scores images without torch, timm or scikit-learn.

The command line and users import it; it imports the estimators.
"""

from skl_transformaly.export._export import ParityError, to_onnx

__all__ = ["ParityError", "to_onnx"]
