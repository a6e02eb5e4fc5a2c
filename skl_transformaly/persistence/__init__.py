"""Save a fitted detector in one file and load it, without pickle: the file holds no code, and none is run.

The command line, `distributed` and users import this room. It imports the estimators, and they do not import it.
"""

from skl_transformaly.persistence._model import SKOPS_TYPES, DriftWarning, load, read_header, save

__all__ = ["SKOPS_TYPES", "DriftWarning", "load", "read_header", "save"]
