"""How long it takes from nothing to a report: install, fit, score, report, each timed, in a new environment.

    python -m build --wheel
    python benchmarks/first_minutes.py PHOTOS --package dist/*.whl --out benchmarks/first_minutes.md

PHOTOS is a folder of photographs: the first ones are learned, the next ones are scored. `--first` is what pip installs
before the package, such as a build of torch for processors; with `--only-install` the environment is made and measured,
and not used. `--environment` takes one that is there, for trials. Results are added to the file if there is one. The
script itself needs no package, only Python and what pip can reach.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

SUFFIXES = {".jpg", ".jpeg", ".png"}
PACKAGES = ("skl-transformaly", "torch", "timm")
STEPS = (
    "fit good -o parts.tfm",
    "score parts.tfm new --out scores.csv",
    "report parts.tfm new --normal good",
)
DECISIONS = (
    "which build of torch: the default one, or that for processors alone",
    "which images are normal: a folder",
    "which images are new: a folder",
)
HEAD = f"""\
# The first minutes

From nothing to a report, with the default teacher of the command line, "bundled". The time of `pip install` is that of
the network and disk of the machine, without pip's cache, and a user's may be many times longer. The other steps need
no network.

{len(DECISIONS)} decisions:

{"".join(f"- {decision}{chr(10)}" for decision in DECISIONS)}"""
SECTION = """
## {title}

    {command}

{images}{machine}; load of the machine, by all that ran on it: {load:.1f}.

| step | command | seconds |
|---|---|---|
{rows}| together | {count} commands | {seconds:.0f} |

{sizes}
"""


def photographs(folder: Path, normal: int, new: int, work: Path) -> tuple[int, int]:
    """Copy photographs into `work`/good and `work`/new; returns how many."""
    files = sorted(path for path in folder.rglob("*") if path.suffix.lower() in SUFFIXES)
    chosen = {"good": files[:normal], "new": files[normal : normal + new]}
    if not chosen["new"]:
        raise SystemExit(f"{folder} has {len(files)} photographs: {normal + 1} or more are needed.")
    for name, paths in chosen.items():
        (work / name).mkdir()
        for number, path in enumerate(paths):
            shutil.copy(path, work / name / f"{number:04}{path.suffix.lower()}")
    return len(chosen["good"]), len(chosen["new"])


def without_folders(words: str) -> str:
    """Words of a command line, files without their folders."""
    return shlex.join(Path(word).name if Path(word).exists() else word for word in shlex.split(words))


def timed(command: list[str], work: Path) -> float:
    """Seconds of a command, whose output goes to stderr."""
    start = time.perf_counter()
    subprocess.run(command, cwd=work, check=True, stdout=sys.stderr)
    return time.perf_counter() - start


def install(options: argparse.Namespace, environment: Path) -> list[tuple[str, list[str], str]]:
    """Steps until the package is installed, with what a table shows of each."""
    pip = [str(environment / "bin" / "pip"), "install", "--no-cache-dir", "--quiet"]
    package = f"{options.package.resolve()}[offline,cli]"
    steps = [("environment", [sys.executable, "-m", "venv", str(environment)], "python -m venv .venv")]
    if options.first:
        steps.append(("torch", [*pip, *shlex.split(options.first)], f"pip install {without_folders(options.first)}"))
    steps.append(("install", [*pip, package], f"pip install '{options.package.name or '.'}[offline,cli]'"))
    return steps


def machine(environment: Path) -> tuple[str, str]:
    """Processor, cores, restrictions and versions; and torch's version."""
    cpuinfo = Path("/proc/cpuinfo")
    found = re.search(r"model name\s*: (.+)", cpuinfo.read_text()) if cpuinfo.exists() else None
    code = f"from importlib.metadata import version\nfor name in {PACKAGES}: print(version(name))"
    python = str(environment / "bin" / "python")
    # from the environment: a checkout as the working directory would come first
    asked = subprocess.run([python, "-c", code], cwd=environment, capture_output=True, text=True, check=True)
    versions = asked.stdout.split()
    limits = [
        f"{name}={os.environ[name]}"
        for name in ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "OMP_NUM_THREADS")
        if name in os.environ
    ]
    processor = found.group(1) if found else platform.machine()
    named = [f"{name} {version}" for name, version in zip(PACKAGES, versions)]
    described = [processor, f"{os.cpu_count()} cores", *limits, f"Python {platform.python_version()}", *named]
    return ", ".join(described), versions[PACKAGES.index("torch")]


def command_line(options: argparse.Namespace) -> str:
    """How this script was called, without the folders of this machine."""
    words = ["python benchmarks/first_minutes.py PHOTOS"]
    words.append("" if options.only_install else f"--images {options.images} --new {options.new}")
    words.append(f"--environment {options.environment.name}" if options.environment else "")
    words.append("" if options.environment else f"--package {options.package.name or '.'}")
    words.append(f"--first '{without_folders(options.first)}'" if options.first else "")
    words.append("--only-install" if options.only_install else "")
    return " ".join(word for word in words if word)


def size(folder: Path) -> int:
    """Bytes of all files."""
    return sum(path.lstat().st_size for path in folder.rglob("*") if not path.is_dir())


def measure(options: argparse.Namespace, work: Path) -> str:
    """Take the steps in the folder `work`; returns a section of the results."""
    normal, new = photographs(options.photos, options.images, options.new, work)
    environment = (options.environment or work / ".venv").absolute()
    steps = [] if options.environment else install(options, environment)
    if not options.only_install:
        program = str(environment / "bin" / "transformaly")
        steps += [(words.split()[0], [program, *words.split()], f"transformaly {words}") for words in STEPS]
    load = os.getloadavg()[0]
    seconds = [timed(command, work) for _, command, _ in steps]
    rows = [f"| {name} | `{shown}` | {took:.1f} |\n" for (name, _, shown), took in zip(steps, seconds)]
    sizes = [f"The environment takes {size(environment) / 1e9:.1f} GB on disk."]
    if not options.only_install:
        sizes.append(f"The model file is {(work / 'parts.tfm').stat().st_size / 1e6:.0f} MB,")
        sizes.append(f"the report {(work / 'report.html').stat().st_size / 1e6:.1f} MB.")
    described, torch = machine(environment)
    return SECTION.format(
        title=f"torch {torch}",
        command=command_line(options),
        images="" if options.only_install else f"{normal} photographs learned, {new} others scored and shown.\n",
        machine=described,
        load=load,
        rows="".join(rows),
        count=len(steps),
        seconds=sum(seconds),
        sizes=" ".join(sizes),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photos", type=Path)
    parser.add_argument("--package", type=Path, default=Path(), help="a wheel, or the folder of the source")
    parser.add_argument("--first", default="", help="arguments of a `pip install` before the package's")
    parser.add_argument("--environment", type=Path, help="an environment in which the package is installed already")
    parser.add_argument("--only-install", action="store_true")
    parser.add_argument("--images", type=int, default=284)
    parser.add_argument("--new", type=int, default=60)
    parser.add_argument("--out", type=Path, default=Path(__file__).with_suffix(".md"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        text = measure(options, Path(folder))
    if not options.out.exists():
        options.out.write_text(HEAD, encoding="utf-8")
    with options.out.open("a", encoding="utf-8") as file:
        file.write(text)


if __name__ == "__main__":
    main()
