"""Published one-class detectors that the benchmark compares TransformalyDetector with.

All are scikit-learn outlier detectors with the same first parameter, `extractor`, so that methods which build
on a pre-trained network build on the same one. ``RIVALS`` maps display names to classes.
"""

from rivals.deep_svdd import DeepSVDD
from rivals.dn2 import DN2
from rivals.mahalanobis import Mahalanobis
from rivals.msad import MSAD
from rivals.oc_svm import OCSVM, OCSVMPixels
from rivals.panda import PANDA

__all__ = ["DN2", "MSAD", "OCSVM", "OCSVMPixels", "PANDA", "RIVALS", "DeepSVDD", "Mahalanobis"]

RIVALS = {
    "OC-SVM (pixels)": OCSVMPixels,
    "Deep SVDD": DeepSVDD,
    "OC-SVM": OCSVM,
    "Mahalanobis": Mahalanobis,
    "DN2": DN2,
    "PANDA": PANDA,
    "MSAD": MSAD,
}
