"""Run all fault scripts and write ``benchmarks/faults/RESULTS.md`` from what they print.

    python benchmarks/faults/run_all.py [--weights vit_tiny_patch16_224.safetensors] [--logs DIR] [--only NAME ...]

Each script's output is kept in a folder of logs; what is there already is not run again, so a stopped run goes on, and
``RESULTS.md`` is written anew after each script. Tables that other scripts wrote beside it (``fuzz_model_file.md``,
``model_file.md``, ``../export.md``, ``../report.md``) are taken over where they are; the first is made where it is not.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("skl-transformaly", "torch", "timm", "numpy", "scikit-learn", "pillow", "joblib")


def scripts(weights: str | None) -> dict[str, list[str]]:
    """Arguments of each script."""
    return {
        "bad_inputs": ["--out", str(HERE / "BAD_INPUTS.md")],
        "kill": ["--times", "50", "--interrupts", "5", "--seed", "0"],
        "limits": [],
        "determinism": ["--weights", weights] if weights else [],
        "leak": ["--calls", "5000", "--fits", "30"],
    }


def shown(name: str, arguments: list[str]) -> str:
    """The command as it goes into the table: without the places of this machine."""
    words = [os.path.relpath(word, HERE.parents[1]) if word.startswith(str(HERE)) else word for word in arguments]
    words = ["FILE" if i and words[i - 1] == "--weights" else word for i, word in enumerate(words)]
    return " ".join(["python", f"benchmarks/faults/{name}.py", *words])


def machine() -> str:
    import torch

    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    model = names[0] if names else platform.machine()
    return f"{model}, {os.cpu_count()} cores ({torch.backends.cpu.get_cpu_capability()}), {platform.system()}"


def commit() -> str:
    """The commit that is checked out, and whether the package has changed since."""
    git = ["git", "-C", str(HERE.parents[1])]
    found = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "skl_transformaly"]).returncode == 1
    return f"commit {found or 'unknown'}{', changed since' if changed else ''}"


def run(name: str, arguments: list[str], log: Path) -> None:
    """Run one script; its output, below the command and the versions, becomes the log."""
    environment = dict(os.environ)
    if name != "determinism":  # which counts threads itself
        environment["OMP_NUM_THREADS"] = "1"
    command = [sys.executable, str(HERE / f"{name}.py"), *arguments]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, env=environment, cwd=HERE.parents[1])
    versions = ", ".join(f"{package} {version(package)}" for package in PACKAGES)
    when = datetime.now(timezone.utc).strftime("%Y-%m-%d")
    made = f"Python {platform.python_version()}, {versions}; {commit()}; {when}; exit code {done.returncode}"
    log.write_text(f"$ {shown(name, arguments)}\n# {made}\n{done.stdout}")


def read(log: Path) -> dict[str, Any] | None:
    """A log's command, versions, problems and result; None where there is no whole one."""
    if not log.exists():
        return None
    text = log.read_text()
    found = re.search(r"^RESULT (.*)$", text, re.MULTILINE)
    if found is None:
        return None
    command, versions = text.splitlines()[:2]
    problems = [line.removeprefix("WRONG ") for line in text.splitlines() if line.startswith("WRONG ")]
    return {"command": command[2:], "versions": versions[2:], "problems": problems, "result": json.loads(found[1])}


def summary(found: dict[str, dict[str, Any]]) -> list[str]:
    """The counts, a row each."""
    rows: list[tuple[str, str, str]] = []

    def add(name: str, what: str, good: Any, of: Any, script: str) -> None:
        rows.append((what, f"{good} of {of}" if of is not None else str(good), f"`{script}.py`"))

    if "bad_inputs" in found:
        result = found["bad_inputs"]["result"]
        add(
            "",
            "hostile inputs: the right score or a clear error",
            result["inputs"] - result["wrong"],
            result["inputs"],
            "bad_inputs",
        )
        add("", "- of these refused", result["refused"], None, "bad_inputs")
        add(
            "",
            "- of these scored as damaged, since format and Pillow cannot tell",
            result["scored, damage not told"],
            None,
            "bad_inputs",
        )
        add("", "crashes and hangs", result["died or hung"], None, "bad_inputs")
    if "kill" in found:
        result = found["kill"]["result"]
        add(
            "",
            "killed fits with a checkpoint that ended bit for bit alike",
            result.get("ended bit for bit alike", 0),
            result["killed, then resumed"],
            "kill",
        )
        add(
            "",
            "SIGKILLs at random moments (with a checkpoint, without, of two jobs)",
            sum(result.get(k, 0) for k in ("kills with a checkpoint", "kills without", "kills of a fit of two jobs")),
            None,
            "kill",
        )
        for name in [key for key in result if key.startswith("Ctrl-C") and not key.endswith("clean")]:
            add("", f"{name}: clean terminal, nothing left", result.get(f"{name}, clean", 0), result[name], "kill")
        add("", "orphaned processes", result["orphans"], None, "kill")
    if "limits" in found:
        result = found["limits"]["result"]
        told = sum(result.get(k, 0) for k in ("said what is wrong", "warned and went on", "that sufficed"))
        add(
            "",
            f"full disks ({result['disks']}): clear error, or warning and the right result; nothing half-written",
            told,
            result["full disks"],
            "limits",
        )
        told = sum(result.get(k, 0) for k in ("memory limits told", "memory limits that sufficed"))
        add("", "memory limits: clear error or the right result", told, result["memory limits"], "limits")
    if "leak" in found:
        result = found["leak"]["result"]
        add("", f"leaks over {result['scorings']:,} scorings and {result['fits']} fits", result["leaks"], None, "leak")
    if "determinism" in found:
        table = found["determinism"]["result"]["rows"].values()
        add(
            "",
            "teachers with the same bits in another process",
            sum(row["processes"] for row in table),
            len(table),
            "determinism",
        )
    lines = ["| what | count | by |", "|---|---|---|"]
    return lines + [f"| {what} | {count} | {script} |" for what, count, script in rows]


def determinism(result: dict[str, Any]) -> list[str]:
    """How far scores depend on threads and batches."""
    lines = [
        "Largest difference of a score, in nats, of 40 images, and beside it the images whose prediction changes:",
        "",
        "| teacher, precision | spread of scores (s. d.) | same bits: again, other process | threads of a score "
        "| threads of a fit | batch size |",
        "|---|---|---|---|---|---|",
    ]
    for name, row in result["rows"].items():
        cells = [f"{row[k][0]:.1e}, {row[k][1]}" for k in ("threads of a score", "threads of a fit", "batch size")]
        same = f"{'yes' if row['same process'] else 'NO'}, {'yes' if row['processes'] else 'NO'}"
        lines.append("| " + " | ".join([name, f"{row['spread of scores']:.1f}", same, *cells]) + " |")
    return lines


def write(logs: Path, asked: dict[str, list[str]]) -> int:
    """Write RESULTS.md from the logs; give the number of problems."""
    found = {name: entry for name in asked if (entry := read(logs / f"{name}.log")) is not None}
    missing = [name for name in asked if name not in found]
    lines = [
        "# Faults",
        "",
        f"Written by `python benchmarks/faults/run_all.py`, on {machine()}.",
        "",
        *summary(found),
        "",
    ]
    if missing:
        lines += [f"Not run yet: {', '.join(missing)}.", ""]
    for name, entry in found.items():
        result = entry["result"]
        lines += [f"## {name}", "", f"`{entry['command']}`", "", f"{entry['versions']}; {result['seconds']:.0f} s.", ""]
        if name == "determinism":
            lines += determinism(result)
        else:
            flat = {key: value for key, value in result.items() if key != "seconds"}
            lines += [f"- {key}: {json.dumps(value).strip(chr(34))}" for key, value in flat.items()]
        if name == "bad_inputs":
            lines += ["", "[Each input, and what comes of it](BAD_INPUTS.md)."]
        lines += ["", *([f"- WRONG: {problem}" for problem in entry["problems"]] + [""] if entry["problems"] else [])]
    others = (HERE / "fuzz_model_file.md", HERE / "model_file.md", HERE.parent / "export.md", HERE.parent / "report.md")
    for path in others:
        if path.exists():
            text = path.read_text().strip()
            lines += [re.sub(r"^#", "##", text, flags=re.MULTILINE), ""]
    (HERE / "RESULTS.md").write_text("\n".join(lines).rstrip() + "\n")
    return sum(len(entry["problems"]) for entry in found.values()) + len(missing)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", help="file of timm's vit_tiny_patch16_224, for two rows of determinism")
    parser.add_argument("--logs", type=Path, default=HERE.parents[1] / "out" / "faults")
    parser.add_argument("--only", nargs="*", help="run these, and write what there is")
    options = parser.parse_args()
    options.logs.mkdir(parents=True, exist_ok=True)
    asked = scripts(options.weights)
    for name, arguments in asked.items():
        log = options.logs / f"{name}.log"
        if (options.only is None or name in options.only) and read(log) is None:
            print(shown(name, arguments), flush=True)
            run(name, arguments, log)
            write(options.logs, asked)
    fuzz, table = HERE / "fuzz_model_file.py", HERE / "fuzz_model_file.md"
    if fuzz.exists() and not table.exists() and options.only is None:
        subprocess.run([sys.executable, str(fuzz), "--files", "12000", "--out", str(table)], cwd=HERE.parents[1])
    return int(write(options.logs, asked) > 0)


if __name__ == "__main__":
    sys.exit(main())
