"""The guide and the README: every Python snippet runs, and every line of shell names commands and options that exist.

A block that cannot run here has a line ``.. not run: REASON`` before it, and one that takes long ``.. slow: REASON``.
In Markdown they are comments, ``<!-- not run: REASON -->``.
"""

from __future__ import annotations

import copy
import re
import shlex
import shutil
import textwrap
import warnings
from pathlib import Path

import matplotlib
import numpy as np
import pytest
import timm
import typer
from conftest import write_images
from safetensors.torch import save_file

from skl_transformaly import TimmExtractor, TransformalyDetector, save

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").glob("*.rst") if path.stem != "sg_execution_times"),
]
NOT_RUN = {"many_machines.rst": 2, "coming_from.rst": 2}
_RST = (
    r"(?:^\.\. (?P<note>(?:not run|slow): [^\n]+)\n+)?^\.\. code-block:: {language}\n\n(?P<code>(?: {{4}}[^\n]*\n|\n)+)"
)
_MARKDOWN = r"(?:^<!-- (?P<note>(?:not run|slow): [^\n]+) -->\n+)?^```{language}\n(?P<code>.*?)^```"


def blocks(page: Path, language: str) -> list[tuple[str, str | None]]:
    """Code blocks of a page, and what is noted before each: ``not run: REASON``, ``slow: REASON`` or None."""
    pattern = (_MARKDOWN if page.suffix == ".md" else _RST).format(language=language)
    text = page.read_text(encoding="utf-8") + "\n"
    found = re.finditer(pattern, text, flags=re.MULTILINE | re.DOTALL if page.suffix == ".md" else re.MULTILINE)
    return [(textwrap.dedent(match["code"]), match["note"]) for match in found]


def pages_with(language: str) -> list:
    return [pytest.param(page, id=page.name) for page in PAGES if blocks(page, language)]


def commands(page: Path) -> list[list[str]]:
    """Arguments of each call of ``transformaly`` in the page's shell blocks."""
    calls = []
    for code, _ in blocks(page, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            while "transformaly" in words:
                words = words[words.index("transformaly") + 1 :]
                end = next((i for i, word in enumerate(words) if word in ("|", "&&", ";", ">", "&")), len(words))
                calls.append(words[:end])
    return calls


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """Random weights of a tiny transformer, with a classifier."""
    path = tmp_path_factory.mktemp("weights") / "tiny.safetensors"
    save_file(timm.create_model("test_vit", num_classes=10).state_dict(), path)
    return path


@pytest.fixture(scope="module", autouse=True)
def tiny_teachers(weights):
    """Whatever teacher a page names, a tiny random one is loaded."""
    load = TimmExtractor.fit

    def fit(self, X, y=None):
        self.set_params(model_name="test_vit", weights=str(weights), image_size=32, device="cpu", precision="float32")
        return load(self, X, y)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(TimmExtractor, "fit", fit)
        yield


@pytest.fixture(scope="module")
def originals(tmp_path_factory, tiny_teachers):
    """A folder with what the pages name, and the variables that they name."""
    folder = tmp_path_factory.mktemp("originals")
    rng = np.random.default_rng(0)
    normal, new, odd = (
        rng.integers(0, top, (n, 16, 16, 3), dtype=np.uint8) for n, top in ((100, 200), (8, 200), (6, 256))
    )
    write_images(folder / "photos" / "good", normal[:40])
    write_images(folder / "photos" / "new", np.concatenate([new, odd]))
    write_images(folder / "photos" / "more", normal[40:50])
    write_images(folder / "test" / "good", new)
    write_images(folder / "test" / "bad", odd)
    write_images(folder / "parts" / "screws", normal[50:75])
    write_images(folder / "parts" / "nuts", normal[75:])
    rows = [f"photos/new/{i:03}.png,{1 if i < 8 else -1}" for i in range(14)]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows, ""]))
    detector = TransformalyDetector("bundled", random_state=0).fit(normal[:40])
    save(detector, folder / "parts.tfm")
    return folder, {
        "detector": detector,
        "normal_images": normal,
        "new_images": np.concatenate([new, odd]),
        "known_anomalies": odd,
        "images": np.concatenate([normal[:20], odd]),
        "y": np.repeat([1, -1], [20, len(odd)]),
    }


@pytest.fixture
def place(tmp_path, monkeypatch, originals):
    """Copies of them: the folder is the working directory."""
    folder, variables = originals
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    matplotlib.use("Agg")
    return copy.deepcopy(variables)


def run_snippets(page: Path, place: dict, *, slow: bool) -> int:
    """Run a page's snippets in order; returns how many are not run."""
    skipped = 0
    for i, (code, note) in enumerate(blocks(page, "python")):
        snippet = compile(code, f"{page.name}, block {i}", "exec")
        if note is None or (slow and note.startswith("slow")):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of few images
                exec(snippet, place)
        skipped += note is not None and note.startswith("not run")
    return skipped


@pytest.mark.parametrize("page", pages_with("python"))
def test_snippets_run_in_the_order_of_the_page(page, place):
    assert run_snippets(page, place, slow=False) == NOT_RUN.get(page.name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with("python"))
def test_slow_snippets_run(page, place):
    if any(note and note.startswith("slow") for _, note in blocks(page, "python")):
        run_snippets(page, place, slow=True)


def parsed(call: list[str]) -> None:
    """Parse a command line as `transformaly` does, without running it."""
    from skl_transformaly.cli._commands import app

    group = typer.main.get_command(app)
    outer = group.make_context("transformaly", [*call])
    name, command, rest = group.resolve_command(outer, [*call])
    command.make_context(name, rest, parent=outer)


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if commands(page)])
def test_lines_of_shell_name_commands_and_options_that_exist(page):
    for call in commands(page):
        parsed(call)


def test_command_lines_with_a_mistake_are_found():
    for call in (["fit", "photos/good", "-o", "parts.tfm", "--wrong"], ["wrong"], ["score", "parts.tfm"]):
        with pytest.raises(Exception, match="No such option|No such command|Missing parameter"):
            parsed(call)


@pytest.mark.slow
@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if commands(page)])
def test_lines_of_shell_run(page, place):
    """In the order of the page; without the server, which does not end, and what other tests run."""
    from typer.testing import CliRunner

    from skl_transformaly.cli._commands import app

    paths = "\n".join(map(str, sorted(Path("photos/new").glob("*.png"))))
    for call in commands(page):
        if call[0] not in ("serve", "teachers", "export"):
            result = CliRunner().invoke(app, call, input=paths if "-" in call else None)
            assert result.exit_code in ((0, 1) if "--fail-on-anomaly" in call else (0,)), (call, result.output)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text(encoding="utf-8")
    for name in re.findall(r"\b((?:benchmarks|examples|docs|docker)/[\w/]+\.\w+)", text):
        assert (ROOT / name).is_file(), name


def script_calls(page: Path) -> list[tuple[Path, list[str]]]:
    """Scripts of this repository that a page calls, in blocks and in the text, and the options that it names."""
    text = page.read_text(encoding="utf-8")
    lines = [line for code, _ in blocks(page, "bash") for line in code.splitlines()]
    lines += [" ".join(words.split()) for words in re.findall(r"`+([^`]+)`+", text)]
    called = [re.search(r"\bpython ((?:benchmarks|examples)/[\w/]+\.py)(.*?)(?: # |$)", line) for line in lines]
    return [(ROOT / call[1], re.findall(r"(?<!\S)--[\w-]+", call[2])) for call in called if call]


@pytest.mark.parametrize("page", [pytest.param(page, id=page.name) for page in PAGES if script_calls(page)])
def test_commands_of_figures_name_options_that_exist(page):
    for script, options in script_calls(page):
        # scripts share parsers across folders
        sources = "".join(
            path.read_text(encoding="utf-8") for path in (ROOT / script.relative_to(ROOT).parts[0]).rglob("*.py")
        )
        assert [option for option in options if f'"{option}"' not in sources] == [], script


def test_no_page_is_left_out_of_the_contents():
    listed = set(re.findall(r"^   (\w+)$", (ROOT / "docs" / "index.rst").read_text(), flags=re.MULTILINE))
    assert listed == {page.stem for page in PAGES if page.suffix == ".rst"} - {"index"}


def test_kinds_of_faults_name_tests_that_exist():
    rows = [row for row in (ROOT / "benchmarks/faults/KINDS.md").read_text().splitlines() if row.startswith("| ")][1:]
    for row in rows:
        names = re.findall(r"`(test_\w+\.py)::(test_\w+)`", row)
        assert names, row
        for file, name in names:
            assert f"def {name}(" in (ROOT / "tests" / file).read_text(), name
