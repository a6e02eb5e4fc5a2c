"""One-class detectors that the benchmark compares TransformalyDetector with.

All are scikit-learn outlier detectors with the same first parameter, `extractor`, so that methods which build
on a pre-trained network build on the same one. ``RIVALS`` maps display names to classes.
"""

from rivals.deep_svdd import DeepSVDD
from rivals.dn2 import DN2
from rivals.mahalanobis import Mahalanobis
from rivals.msad import MSAD
from rivals.oc_svm import OCSVM, OCSVMPixels
from rivals.panda import PANDA
from rivals.simple import Forest, UnitMahalanobis, UnitNeighbours

__all__ = [
    "DN2",
    "MSAD",
    "OCSVM",
    "OCSVMPixels",
    "PANDA",
    "RIVALS",
    "TRAINED_RIVALS",
    "DeepSVDD",
    "Forest",
    "Mahalanobis",
    "UnitMahalanobis",
    "UnitNeighbours",
]

RIVALS = {
    "OC-SVM (pixels)": OCSVMPixels,
    "Deep SVDD": DeepSVDD,
    "OC-SVM": OCSVM,
    "Mahalanobis": Mahalanobis,
    "Mahalanobis, shrunk, unit length": UnitMahalanobis,
    "DN2": DN2,
    "kNN, unit length": UnitNeighbours,
    "IsolationForest": Forest,
    "PANDA": PANDA,
    "MSAD": MSAD,
}

# These train a network; the others fit in seconds.
TRAINED_RIVALS = ("Deep SVDD", "PANDA", "MSAD")
