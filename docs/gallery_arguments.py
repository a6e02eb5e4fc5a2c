"""Command lines of examples that write files, when the gallery runs them."""

import tempfile
from pathlib import Path
from typing import Any

_scratch = tempfile.TemporaryDirectory()  # goes with the build


def example_arguments(gallery_conf: dict, script_vars: dict[str, Any]) -> list[str]:
    """Give what an example gets as ``sys.argv[1:]``."""
    return {
        "quickstart": ["--out", f"{_scratch.name}/quickstart.png"],
        "folders_of_digits": [f"{_scratch.name}/digits"],
    }.get(Path(script_vars["src_file"]).stem, [])
