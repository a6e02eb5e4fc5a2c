"""The package as a whole."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import skl_transformaly
from skl_transformaly.__main__ import _wait_briefly


def test_importing_the_package_loads_no_torch():
    code = "import sys, skl_transformaly; print(any(m in sys.modules for m in ('torch', 'timm', 'sklearn', 'PIL')))"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.strip() == "False"


@pytest.mark.parametrize("name", skl_transformaly.__all__)
def test_public_names_are_there(name):
    assert getattr(skl_transformaly, name) is not None
    assert name in dir(skl_transformaly)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        skl_transformaly.Nothing  # noqa: B018


@pytest.mark.parametrize("name, pattern", [("CHANGELOG.md", r"^## (\S+)"), ("CITATION.cff", r"^version: (\S+)")])
def test_other_files_name_the_version(name, pattern):
    text = (Path(__file__).parent.parent / name).read_text(encoding="utf-8")
    assert re.search(pattern, text, flags=re.MULTILINE)[1] == skl_transformaly.__version__


# What each room may import besides itself; the files beside the rooms, the core and its tools, import all but these.
ROOMS = {
    "utils": set(),
    "images": {"utils"},
    "teacher": {"utils", "images"},
    "students": {"utils", "images", "teacher"},
}
LAST = {"cli", "serving"}


@pytest.mark.parametrize(
    "said, expected",
    [
        ({}, {"GOMP_SPINCOUNT": "3000"}),
        ({"GOMP_SPINCOUNT": "7"}, {"GOMP_SPINCOUNT": "7"}),
        ({"OMP_WAIT_POLICY": "ACTIVE"}, {"OMP_WAIT_POLICY": "ACTIVE"}),
    ],
)
def test_the_command_lets_threads_wait_briefly_unless_the_user_says_how(said, expected):
    _wait_briefly(said)
    assert said == expected


def test_imports_point_one_way():
    package = Path(skl_transformaly.__file__).parent
    wrong = []
    for path in package.rglob("*.py"):
        room = path.relative_to(package).parts[0]
        if room in LAST or path.name in ("__init__.py", "__main__.py"):
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            module = node.module if isinstance(node, ast.ImportFrom) and node.module else ""
            if module.startswith("skl_transformaly."):
                imported = module.split(".")[1]
                allowed = imported in ROOMS[room] | {room} if room in ROOMS else imported not in LAST
                wrong += [] if allowed else [f"{path.name} imports {module}"]
    assert not wrong
