"""Which small changes of the code does no test notice? A random sample of mutants for each group of modules.

    pip install cosmic-ray
    python benchmarks/faults/mutation.py [--groups density drift] [--most 30] [--seed 0] [--out mutants.jsonl]
    python benchmarks/faults/mutation.py --again mutants.jsonl

Mutants come from cosmic-ray's operators: another arithmetic or comparison operator, ``and`` for ``or``, ``not``, a
number one higher or lower, a removed decorator, a loop without a turn. Places are drawn first and then one mutant of
each, so that operators with many alternatives do not crowd out the others. Type hints and texts are left as they are.

cosmic-ray starts Python anew for each mutant, where importing torch takes longer than most tests. Here libraries are
imported once; each mutant is written to a copy of the repository, and its tests run in a forked child. A mutant is
killed by a test that fails, or if the tests take more than four times as long as without it. ``--again`` runs those
that survived an earlier run, with the tests as they are now.
"""

from __future__ import annotations

import argparse
import ast
import difflib
import importlib
import itertools
import json
import os
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from cosmic_ray.ast import get_ast
from cosmic_ray.mutating import mutate_code
from cosmic_ray.operators.provider import OperatorProvider

ROOT = Path(__file__).parents[2]
# Modules in skl_transformaly, and the tests of theirs that run: the quick ones first
GROUPS = {
    "density": ("_density.py", "test_density.py test_frozen.py"),
    "gaussian": ("_gaussian.py", "test_density.py test_frozen.py"),
    "fusion": ("_fusion.py", "test_fusion.py test_detector.py test_calibration.py"),
    "space": ("_space.py", "test_space.py test_detector.py test_learning.py"),
    "calibration": ("_calibration.py", "test_calibration.py test_drift.py"),
    "cleaning": ("_cleaning.py", "test_cleaning.py test_learning.py"),
    "weighting": ("_weighting.py", "test_learning.py"),
    "drift": ("_drift.py", "test_drift.py"),
    "images": (
        "images/*.py",
        "test_images.py test_pixels.py test_folders.py test_nonsquare.py test_ahead.py test_bad_inputs.py "
        "test_columns.py",
    ),
    "regression": ("students/_regression.py", "test_ridge.py"),
    "ridge": ("students/_ridge.py", "test_ridge.py test_recording.py test_frozen.py"),
    "block": (
        "students/_block.py",
        "test_students.py test_checkpoint.py test_activations.py test_memory.py test_frozen.py",
    ),
    "detector": ("_detector.py", "test_detector.py test_frozen.py test_learning.py test_memory.py test_search.py"),
    "learning": ("_learning.py", "test_learning.py test_frozen.py test_detector.py"),
}
# Networks of these families take seconds each to build, and of others to start processes
TOO_SLOW = "vit_medium or swin_tiny or dinov3 or regnetx or eva02 or from_a_process"
LIBRARIES = (
    "torch timm pandas joblib pytest scipy.stats sklearn.ensemble sklearn.mixture sklearn.utils.estimator_checks"
)
MOST_BYTES = 12 << 30


def main() -> None:
    """Print a row for each group."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--groups", nargs="+", default=list(GROUPS), choices=GROUPS)
    options.add_argument("--most", type=int, default=30, help="mutants of each group")
    options.add_argument("--seed", type=int, default=0)
    options.add_argument("--out", type=Path, default=Path("mutants.jsonl"), help="one line for each mutant")
    options.add_argument("--again", type=Path, help="run what survived in this file, and nothing else")
    chosen = options.parse_args()
    earlier = [] if chosen.again is None else [json.loads(line) for line in chosen.again.read_text().splitlines()]
    with tempfile.TemporaryDirectory() as folder, chosen.out.open("w" if chosen.again is None else "a") as out:
        copy = Path(folder) / "copy"
        for name in ("skl_transformaly", "tests"):
            shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", copy)
        warm_up()
        print("group | mutants | killed | seconds without a mutant\n---|---|---|---")
        for group in chosen.groups:
            if chosen.again is None:
                mutants = sample(group, chosen.most, chosen.seed)
            else:
                mutants = [m for m in earlier if m["group"] == group and not m["killed"]]
            if mutants:
                run_group(copy, group, mutants, out)


def sample(group: str, most: int, seed: int) -> list[dict]:
    """Mutants at `most` random places of the group's modules."""
    rng = random.Random(f"{seed} {group}")
    places: dict[tuple, list] = {}
    for path in sorted((ROOT / "skl_transformaly").glob(GROUPS[group][0])):
        for name, occurrence, place in mutations(path.read_text()):
            places.setdefault((path, place), []).append((name, occurrence))
    found = []
    for path, place in rng.sample(list(places), min(most, len(places))):
        name, occurrence = rng.choice(places[path, place])
        module = str(path.relative_to(ROOT))
        found.append({"group": group, "module": module, "operator": name, "occurrence": occurrence, "line": place[0]})
    return found


def mutations(source: str) -> Iterator[tuple[str, int, tuple[int, int]]]:
    """Operator, number of the occurrence and place (line, column) of all mutations of code."""
    fixed = fixed_places(source)
    nodes = list(walk(get_ast(source)))
    for name in filter(is_wanted, OperatorProvider()):
        operator = OperatorProvider()[name]()
        positions = itertools.chain.from_iterable(map(operator.mutation_positions, nodes))
        for occurrence, (start, _) in enumerate(positions):
            if not any(first <= start < last for first, last in fixed):
                yield name, occurrence, start


def walk(node) -> Iterator:
    """All nodes of a tree, in the order in which cosmic-ray counts them."""
    yield node
    for child in getattr(node, "children", ()):
        yield from walk(child)


def is_wanted(name: str) -> bool:
    """Leave out what needs arguments, and what hardly any operands can take."""
    if name.startswith("Variable"):
        return False
    kind, _, change = name.partition("Operator_")
    before, _, after = change.partition("_")
    if kind == "ReplaceBinary":
        bits = {"BitOr", "BitAnd"}
        return after in (bits if before in bits else {"Add", "Sub", "Mul", "Div"})
    if kind == "ReplaceComparison":
        return before.startswith("Is") or not after.startswith("Is")
    return True


def fixed_places(source: str) -> list[tuple]:
    """Begin and end of type hints and of texts with values in them."""
    places = []
    for node in ast.walk(ast.parse(source)):
        hints = (getattr(node, name, None) for name in ("annotation", "returns"))
        for part in (*hints, node if isinstance(node, ast.JoinedStr) else None):
            if part is not None:
                places.append(((part.lineno, part.col_offset), (part.end_lineno, part.end_col_offset)))
    return places


def warm_up() -> None:
    """Import, once for all children, what the package and its tests import, but not the package."""
    os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1", SCIPY_ARRAY_API="1")
    for name in LIBRARIES.split():
        importlib.import_module(name)
    from hypothesis import Phase, settings

    # the same examples for each mutant, and a failing one is not made simpler
    settings.register_profile("mutants", derandomize=True, database=None, phases=[Phase.explicit, Phase.generate])
    settings.load_profile("mutants")


def run_group(copy: Path, group: str, mutants: list[dict], out) -> None:
    """Run the group's tests on each mutant, write a line for each, and print the group's row."""
    modules, names = GROUPS[group]
    tests = [f"tests/{name}" for name in names.split()]
    tests += [str(path.relative_to(copy)) for path in (copy / "skl_transformaly").glob(modules)]  # their examples
    started = time.monotonic()
    if run_tests(copy, tests, None):  # a first run also compiles all modules
        raise SystemExit(f"The tests of {group} fail without a mutant.\n{log_of(copy).read_text()[-4000:]}")
    seconds = time.monotonic() - started
    for mutant in mutants:
        path = copy / mutant["module"]
        source = path.read_text()
        operator = OperatorProvider()[mutant["operator"]]()
        changed = mutate_code(source, operator, mutant["occurrence"])
        lines = difflib.unified_diff(source.splitlines(), changed.splitlines(), lineterm="", n=0)
        change = [line for line in lines if line[0] in "+-" and line[:3] not in ("+++", "---")]
        if mutant.setdefault("change", change) != change:
            raise SystemExit(f"{mutant['module']} is not what it was when its mutants were listed: list them anew.")
        for stale in path.parent.glob(f"__pycache__/{path.stem}.*"):
            stale.unlink()
        path.write_text(changed)
        mutant["killed"] = run_tests(copy, tests, 10 + 4 * seconds) != 0
        path.write_text(source)
        out.write(json.dumps(mutant) + "\n")
        out.flush()
    killed = sum(mutant["killed"] for mutant in mutants)
    print(f"{group} | {len(mutants)} | {killed} | {seconds:.0f}", flush=True)


def log_of(copy: Path) -> Path:
    """Where the output of the last tests is."""
    return copy.with_name("log.txt")


def run_tests(copy: Path, tests: list[str], limit: float | None) -> int:
    """Exit code of the tests in a forked child, negative if they took longer than `limit` seconds."""
    child = os.fork()
    if not child:
        code = 1
        try:
            os.setsid()
            resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
            log = os.open(log_of(copy), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(log, 1)
            os.dup2(log, 2)
            os.chdir(copy)
            sys.path.insert(0, str(copy))
            sys.dont_write_bytecode = limit is not None
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1" * sys.dont_write_bytecode
            import pytest

            code = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", "-k", f"not ({TOO_SLOW})", *tests]))
        finally:
            os._exit(code)
    deadline = time.monotonic() + (limit or 3600)
    while time.monotonic() < deadline:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.05)
    os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return -signal.SIGKILL


if __name__ == "__main__":
    main()
