"""Save a fitted detector in one file, and load it, without pickle: no code in the file, none run from it.

The command line, `distributed` and users import it; it imports the estimators, and nothing imports it from below.
"""

from skl_transformaly.persistence._model import SKOPS_TYPES, DriftWarning, load, read_header, save

__all__ = ["SKOPS_TYPES", "DriftWarning", "load", "read_header", "save"]
