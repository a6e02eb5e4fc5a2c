"""All commands of ``transformaly``, in the order in which ``--help`` lists them; each registers itself on `app`."""

# isort: off
import skl_transformaly.cli._fit
import skl_transformaly.cli._score
import skl_transformaly.cli._watch
import skl_transformaly.cli._report
import skl_transformaly.cli._update
import skl_transformaly.cli._evaluate
import skl_transformaly.cli._export
import skl_transformaly.cli._serve
import skl_transformaly.cli._demo
import skl_transformaly.cli._info  # noqa: F401
from skl_transformaly.cli._app import app, run

# isort: on

__all__ = ["app", "run"]
