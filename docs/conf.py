"""How Sphinx builds the documentation: ``sphinx-build -W --keep-going -b html docs docs/_build/html``.

The gallery shows the examples without running them, unless the environment variable SKL_TRANSFORMALY_DOCS_GALLERY is 1.
With SKL_TRANSFORMALY_QUICK=1 as well they run on their quick setting.
"""

import os
import sys
from pathlib import Path

import skl_transformaly

sys.path.insert(0, str(Path(__file__).parent))  # gallery_arguments

project = "skl-transformaly"
author = "skl-transformaly developers"
project_copyright = author
version = release = skl_transformaly.__version__

extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.intersphinx",
    "numpydoc",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build"]
html_theme = "alabaster"
html_theme_options = {"description": "Images that do not belong", "page_width": "1100px"}
default_role = "literal"  # `name` in docstrings is a parameter or an attribute

autosummary_generate = True
autodoc_inherit_docstrings = False
autodoc_typehints = "none"  # docstrings say the types
numpydoc_class_members_toctree = False
numpydoc_show_class_members = False  # the templates of autodoc list them
templates_path = ["templates"]

# Links to other libraries' pages are made only where asked for: the build itself needs no network.
intersphinx_mapping = (
    {
        "python": ("https://docs.python.org/3", None),
        "sklearn": ("https://scikit-learn.org/stable", None),
    }
    if os.environ.get("SKL_TRANSFORMALY_DOCS_LINKS") == "1"
    else {}
)

RUN = os.environ.get("SKL_TRANSFORMALY_DOCS_GALLERY") == "1"

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "auto_examples",
    "filename_pattern": r"\.py$",
    "ignore_pattern": r"run_all\.py$",
    "plot_gallery": RUN,
    "abort_on_example_error": True,
    "reset_argv": "gallery_arguments.example_arguments",
    "within_subsection_order": "ExampleTitleSortKey",
    "download_all_examples": False,
    "show_memory": False,
    "min_reported_time": 1e9,
}
