"""A full disk and too little memory: each is a clear error or a warning, and nothing half-written stays.

    python benchmarks/faults/limits.py

What writes (activations, `memory=`, `checkpoint=`, `save`, the command line's fit, score and report) is given a disk
with room for none, some and most of what it writes: a small tmpfs, where this may mount one, else a limit on the size
of files (RLIMIT_FSIZE). What needs memory is given little more than it has (RLIMIT_AS, as ``ulimit -v``). Each trial is
a process of its own.
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector, load, save
from skl_transformaly.__main__ import main as transformaly

KIB = 1024
SHARES = (0.0, 0.02, 0.3, 0.6, 0.9)


def detector(**students: Any) -> TransformalyDetector:
    extractor = TimmExtractor("test_vit", weights=None, image_size=64, device="cpu", precision="float32")
    parts = BlockStudents(**{"n_blocks": 3, "max_epochs": 1, "batch_size": 8, **students})
    return TransformalyDetector(extractor, students=parts, random_state=0)


def images(n: int = 32) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)


# ----- one trial in a process of its own

# Seconds after which a trial is killed, which counts as died
_PATIENCE = 60


def apart(work: Callable[[], Any], limit: Callable[[], None]) -> dict[str, Any]:
    """Do `work` in a forked process, after `limit` was set there; say how it ended."""
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        end: dict[str, Any] = {}
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                limit()
                signal.alarm(_PATIENCE)
                end["result"] = work()
            except BaseException as error:
                end["error"], end["text"] = type(error).__name__, str(error)
        with contextlib.suppress(Exception):
            end["warnings"] = sorted({str(warning.message) for warning in caught})
        with contextlib.suppress(BaseException):
            os.write(sender, json.dumps(end).encode())
        os._exit(0)
    os.close(sender)
    with os.fdopen(receiver) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return {"died": signal.Signals(os.WTERMSIG(status)).name}
    return json.loads(text) if text else {"died": f"exit code {os.WEXITSTATUS(status)}"}


# ----- disks


@contextlib.contextmanager
def small_disk(room: int) -> Iterator[tuple[Path, Callable[[], None]]]:
    """A folder with room for so many bytes, and what a process is to do first so that it holds for it."""
    folder = Path(tempfile.mkdtemp(prefix="small-"))
    try:
        if MOUNTS:
            # a tmpfs of size 0 would have no limit; folders and the first page of a file take a page each
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={max(room, 4 * KIB)}", "none", folder], check=True)
            yield folder, lambda: None
        else:
            yield folder, lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (room, resource.RLIM_INFINITY))
    finally:
        if MOUNTS:
            subprocess.run(["umount", folder], check=True)
        shutil.rmtree(folder)


def _may_mount() -> bool:
    folder = tempfile.mkdtemp()
    try:
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4096", "none", folder], capture_output=True)
        if done.returncode == 0:
            subprocess.run(["umount", folder], check=True)
        return done.returncode == 0
    except OSError:
        return False
    finally:
        os.rmdir(folder)


MOUNTS = _may_mount()


@dataclass
class Writing:
    """Something that writes into a folder."""

    name: str
    work: Callable[[Path], Any]  # its result is that of a trial that was well
    # what a trial that ran out of room must have said: an error's text, or a warning's where the work goes on
    says: str
    goes_on: bool = False
    # problems with what the folder holds after a trial, given whether it was well
    inspect: Callable[[Path, bool], list[str]] = field(default=lambda folder, well: [])


def files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file())


def no_file(folder: Path, well: bool) -> list[str]:
    return [] if well else [f"left behind: {path.name}" for path in files(folder)]


def whole_entries(folder: Path, well: bool) -> list[str]:
    """Every result in a cache can be read, and nothing else is there that holds results."""
    problems = []
    for path in files(folder):
        if path.name.startswith("output.pkl"):
            try:
                joblib.load(path)
            except Exception as error:
                problems.append(f"{path.name} cannot be read: {error}")
            if path.name != "output.pkl":
                problems.append(f"left behind: {path.name}")
    return problems


def with_folder_for_activations(folder: Path) -> Any:
    os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
    return detector(storage="disk").fit(images()).score_samples(images()).tolist()


def with_memory(folder: Path) -> Any:
    return detector().set_params(memory=str(folder / "cache")).fit(images()).score_samples(images()).tolist()


def with_checkpoint(folder: Path) -> Any:
    return detector(checkpoint=folder / "checkpoint").fit(images()).score_samples(images()).tolist()


def command(words: str, place: Path) -> dict[str, Any]:
    """Run the command line; its exit code, and what it wrote to stderr."""
    sys.argv = ["transformaly", *words.format(place=place).split()]
    told = io.StringIO()
    code: Any = 0
    with contextlib.redirect_stderr(told), contextlib.redirect_stdout(io.StringIO()):
        try:
            transformaly()
        except SystemExit as end:
            code = end.code
    if code:
        raise RuntimeError(f"exit code {code}: {told.getvalue()}")
    return {"code": code}


class World:
    """What the trials need: images as files, weights, a fitted detector, its model file."""

    def __init__(self, folder: Path):
        self.folder = folder
        (folder / "images").mkdir()
        for i, image in enumerate(images()):
            Image.fromarray(image).save(folder / "images" / f"{i:02}.png")
        save_file(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "weights.safetensors")

    def prepare(self) -> None:
        """Fit and save, in a process of its own: processes are forked from this one, which computes nothing."""

        def work() -> None:
            fitted = detector().fit(images())
            save(fitted, self.folder / "model.tfm")

        end = apart(work, lambda: None)
        if "error" in end or "died" in end:
            raise RuntimeError(f"cannot prepare: {end}")
        self.old = (self.folder / "model.tfm").read_bytes()

    def writings(self) -> list[Writing]:
        """All that writes."""
        place = self.folder
        model, pictures = place / "model.tfm", place / "images"

        def saving(folder: Path) -> str:
            save(load(model), folder / "new.tfm")
            return "saved"

        def scoring(suffix: str) -> Callable[[Path], Any]:
            def work(folder: Path) -> dict[str, Any]:
                command(f"score {model} {pictures} --out {folder}/scores{suffix}", folder)
                return {"rows": count_rows(folder / f"scores{suffix}")}

            return work

        def rows(suffix: str) -> Callable[[Path, bool], list[str]]:
            if suffix == ".parquet":  # written as a whole, when all rows are known
                return no_file

            def inspect(folder: Path, well: bool) -> list[str]:
                """What was written are whole rows; `--resume`, with room, goes on to the same file."""
                problems = []
                there = files(folder)
                if there:
                    with tempfile.TemporaryDirectory() as roomy:
                        for path in there:
                            shutil.copy(path, roomy)
                        words = f"score {model} {pictures} --out {roomy}/scores{suffix} --resume"
                        end = apart(lambda: command(words, Path(roomy)), lambda: None)
                        if "result" not in end:
                            problems.append(f"--resume after the disk was full: {end}")
                        elif (found := count_rows(Path(roomy, f"scores{suffix}"))) != len(images()):
                            problems.append(f"--resume after the disk was full gave {found} rows")
                return problems

            return inspect

        weights = f"--teacher test_vit --weights {place}/weights.safetensors --image-size 64 --blocks 2"
        weights += " --students trained --epochs 1"
        room = r"[Nn]o (room|space)|too large|full"
        cache = "cache cannot be used"
        return [
            Writing("activations on disk", with_folder_for_activations, "No room for .* MiB", inspect=no_file),
            Writing("memory=", with_memory, cache, goes_on=True, inspect=whole_entries),
            Writing("checkpoint=", with_checkpoint, cache, goes_on=True, inspect=whole_entries),
            Writing("save", saving, room, inspect=no_file),
            Writing(
                "transformaly fit",
                lambda folder: command(f"fit {pictures} -o {folder}/new.tfm {weights}", folder),
                room,
                inspect=no_file,
            ),
            *(
                Writing(f"transformaly score, {suffix}", scoring(suffix), room, inspect=rows(suffix))
                for suffix in (".csv", ".jsonl", ".parquet")
            ),
            Writing(
                "transformaly report",
                lambda folder: command(f"report {model} {pictures} --out {folder}/report.html", folder),
                room,
                inspect=no_file,
            ),
        ]


def count_rows(path: Path) -> int:
    if path.suffix == ".parquet":
        import pyarrow.parquet

        return pyarrow.parquet.read_table(path).num_rows
    lines = path.read_text().splitlines()
    return len(lines) - (path.suffix == ".csv")


def used(folder: Path) -> int:
    return sum(path.stat().st_size for path in files(folder))


def fill_disks(world: World, counts: collections.Counter) -> list[str]:
    """Each writing with less room than it needs, in steps; gives what is wrong."""
    problems = []
    for writing in world.writings():
        with tempfile.TemporaryDirectory() as roomy:
            well = apart(partial(writing.work, Path(roomy)), lambda: None)
            needed = max(used(Path(roomy)), 64 * KIB)
        if "result" not in well:
            problems.append(f"{writing.name}: fails with room enough: {well}")
            continue
        for share in SHARES:
            with small_disk(int(share * needed)) as (folder, limit):
                end = apart(partial(writing.work, folder), limit)
                counts["full disks"] += 1
                trial = f"{writing.name}, room for {share:.0%}"
                finished = "result" in end
                told = " | ".join([*end.get("warnings", []), end.get("text", "")])
                if "died" in end:
                    problems.append(f"{trial}: {end['died']}")
                elif finished and not writing.goes_on:
                    counts["that sufficed"] += 1
                elif finished and end["result"] != well["result"]:
                    problems.append(f"{trial}: another result")
                elif not finished and writing.goes_on:
                    problems.append(f"{trial}: stopped: {end}")
                elif not re.search(writing.says, told) or "Traceback" in told:
                    # a cache may have had room for all but its last results
                    problems.append(f"{trial}: said only {told!r}")
                else:
                    counts["warned and went on" if writing.goes_on else "said what is wrong"] += 1
                problems += [f"{trial}: {problem}" for problem in writing.inspect(folder, finished)]
    # an older model under the same name survives a failing save
    with small_disk(len(world.old) + 8 * KIB) as (folder, limit):
        (folder / "new.tfm").write_bytes(world.old)
        end = apart(lambda: save(load(world.folder / "model.tfm"), folder / "new.tfm"), limit)
        counts["full disks"] += 1
        if not MOUNTS:
            counts["that sufficed"] += "result" in end
        elif "error" not in end or (folder / "new.tfm").read_bytes() != world.old or len(files(folder)) != 1:
            problems.append(f"save over an older file: {end}, there are {files(folder)}")
        else:
            counts["said what is wrong"] += 1
    return problems


# ----- memory


def starve(world: World, counts: collections.Counter) -> list[str]:
    """Work with little more memory than the process has."""
    large = world.folder / "large.png"
    Image.new("RGB", (9000, 9000), (10, 200, 30)).save(large)
    many = np.random.default_rng(0).integers(0, 256, (300, 64, 64, 3), dtype=np.uint8)
    fits = detector(storage="ram", max_epochs=1).set_params(extractor__image_size=160)
    works: dict[str, Callable[[], Any]] = {
        "fit on many images": lambda: fits.fit(many).score_samples(many[:2]).tolist(),
        "score a large file": lambda: load(world.folder / "model.tfm").score_samples([large]).tolist(),
        "score a folder": lambda: load(world.folder / "model.tfm").score_samples(world.folder / "images").tolist(),
        "score many images": lambda: load(world.folder / "model.tfm").score_samples(list(many)).tolist(),
        "save": lambda: save(load(world.folder / "model.tfm"), world.folder / "again.tfm"),
        "transformaly score": lambda: command(
            f"score {world.folder}/model.tfm {large} --out {world.folder}/large.csv", world.folder
        ),
    }
    problems = []
    for name, work in works.items():
        well = apart(work, lambda: None)
        if "result" not in well:
            problems.append(f"{name}: fails with memory enough: {well}")
            continue
        for mib in (1, 16, 64, 128, 256, 512):

            def limit(mib: int = mib) -> None:
                size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
                resource.setrlimit(resource.RLIMIT_AS, (size + mib * 2**20, resource.RLIM_INFINITY))

            (world.folder / "again.tfm").unlink(missing_ok=True)
            (world.folder / "large.csv").unlink(missing_ok=True)
            end = apart(work, limit)
            counts["memory limits"] += 1
            trial = f"{name}, {mib} MiB more"
            if "died" in end:
                problems.append(f"{trial}: {end['died']}")
            elif "result" in end:
                counts["memory limits that sufficed"] += 1
                if end["result"] != well["result"]:
                    problems.append(f"{trial}: another result")
            elif end["error"] == "MemoryError" or (name.startswith("transformaly") and "emory" in end["text"]):
                counts["memory limits told"] += 1
                if len(end["text"]) < 20 or "Traceback" in end["text"]:
                    problems.append(f"{trial}: said only {end['text']!r}")
            else:
                problems.append(f"{trial}: {end['error']}: {end['text'][:300]}")
            left = [path.name for path in world.folder.iterdir() if path.name.startswith(("again.tfm", ".again"))]
            if "result" not in end and left:
                problems.append(f"{trial}: left behind: {left}")
    return problems


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.parse_args()
    torch.set_num_threads(1)  # and nothing is computed here: processes are forked from this one
    start = time.monotonic()
    counts: collections.Counter[str] = collections.Counter()
    with tempfile.TemporaryDirectory() as place:
        world = World(Path(place))
        world.prepare()
        problems = fill_disks(world, counts)
        problems += starve(world, counts)
    for problem in problems:
        print("WRONG", problem)
    kind = "tmpfs" if MOUNTS else "RLIMIT_FSIZE"
    result = {"disks": kind, **counts, "problems": len(problems), "seconds": round(time.monotonic() - start, 1)}
    print("RESULT", json.dumps(result))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
