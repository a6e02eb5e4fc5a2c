"""Kill `fit` at random moments: with a checkpoint its successor ends bit for bit alike, without one nothing is left.

    python benchmarks/faults/kill.py [--times 50] [--seed 0] [--interrupts 5]

Each fit is a process of its own, with a temporary folder of its own, and is killed (SIGKILL) after a random share of
the time that an undisturbed one takes.

- With ``checkpoint=``: the next fit goes on there, and must give the very bits of the undisturbed one; every third one
  is killed a second time.
- Without: the temporary folder must be empty after the kill, and no process left.

Then Ctrl-C, typed at a terminal, at random moments: the fit must end as one that was interrupted, with the terminal's
settings as they were, the cursor visible and at the start of a line, and no process left; likewise a fit whose
students are trained two at a time, a search in two processes, and the command line's ``fit``, which must leave no model
file, and nothing else but the students that it has trained. What joblib's worker processes print is kept from the
terminal: Ctrl-C reaches them too, and one that is still importing ends with a traceback amid the lines of others. A fit
of two jobs is not killed: its activations lie in files with names (see `BlockStudents`), which stay behind.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import pty
import re
import select
import shutil
import signal
import sys
import tempfile
import termios
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.model_selection import GridSearchCV

from skl_transformaly import BlockStudents, TimmExtractor, TransformalyDetector
from skl_transformaly.model_selection import NormalOnly, OneClassSplit
from skl_transformaly.students import _block

BLOCKS = 4


def detector(checkpoint: Path | None, **changes) -> TransformalyDetector:
    """A small detector whose activations go to disk."""
    extractor = TimmExtractor("test_vit", weights=None, image_size=64, device="cpu", precision="float32")
    students = BlockStudents(n_blocks=BLOCKS, max_epochs=12, batch_size=8, storage="disk", checkpoint=checkpoint)
    return TransformalyDetector.paper(extractor, students=students, random_state=0, **changes)


def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (48, 32, 32, 3), dtype=np.uint8)


def fit(checkpoint: Path | None) -> dict:
    """Fit; give the bits of the scores, and how many students were trained in this process."""
    trained: list[int] = []
    train = _block.train_student

    def counted(student, layer, *rest, **settings):
        trained.append(layer.index)
        return train(student, layer, *rest, **settings)

    _block.train_student = counted
    scores = detector(checkpoint).fit(images()).score_samples(images())
    return {"scores": scores.tobytes().hex(), "trained": len(trained)}


def command_line(folder: Path) -> Callable[[], object]:
    """The command that fits on the images in `folder`."""
    for i, image in enumerate(images()):
        Image.fromarray(image).save(folder / f"{i}.png")
    save_file(timm.create_model("test_vit", num_classes=0).state_dict(), folder / "weights.safetensors")
    teacher = f"--teacher test_vit --weights {folder / 'weights.safetensors'} --image-size 64"
    words = f"transformaly fit {folder} -o {folder / 'model.tfm'} {teacher} --students trained --blocks {BLOCKS}"
    words += " --epochs 12"

    def work() -> None:
        from skl_transformaly.cli._commands import run

        sys.argv = words.split()
        run()

    return work


def search() -> None:
    """Fits in two worker processes."""
    y = np.ones(48, dtype=int)
    y[40:] = -1
    grid = {"estimator__explained_variance": [0.5, 0.6, 0.7, 0.8, 0.9, 0.95]}
    GridSearchCV(NormalOnly(detector(None)), grid, cv=OneClassSplit(3), scoring="roc_auc", n_jobs=2).fit(images(), y)


@dataclass
class End:
    """How a fit's process ended."""

    signal: int  # that it died of; 0 where it ended by itself
    result: dict  # of `fit`, if it got there
    left: list[str]  # files in its temporary folder
    orphans: int  # processes of its session that go on
    seconds: float


def run(checkpoint: Path | None, kill_after: float | None) -> End:
    """Fit in a forked process, and kill it after so many seconds."""
    folder = Path(tempfile.mkdtemp(prefix="kill-"))
    receiver, sender = os.pipe()
    start = time.monotonic()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.setsid()
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            os.write(sender, json.dumps(fit(checkpoint)).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(sender)
    if kill_after is not None:
        select.select([receiver], [], [], kill_after)
        os.kill(child, signal.SIGKILL)
    with os.fdopen(receiver) as pipe:
        text = pipe.read()
    _, status = os.waitpid(child, 0)
    end = End(
        os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0,
        json.loads(text) if text else {},
        sorted(os.listdir(folder)),
        orphans(child),
        time.monotonic() - start,
    )
    shutil.rmtree(folder)
    return end


def orphans(session: int, patience: float = 5.0) -> int:
    """Processes of a session that are still there, once they had the time to notice that its leader is gone."""
    deadline = time.monotonic() + patience
    while True:
        count = 0
        for entry in os.listdir("/proc"):
            if entry.isdigit():
                try:
                    # pid (name) state ppid pgrp session ...; names may hold spaces and brackets
                    fields = Path("/proc", entry, "stat").read_text().rpartition(")")[2].split()
                except OSError:
                    continue
                count += int(fields[3]) == session and fields[0] != "Z"
        if count == 0 or time.monotonic() > deadline:
            return count
        time.sleep(0.2)


@dataclass
class Terminal:
    """What an interrupted process left of its terminal."""

    finished: bool  # before it could be interrupted
    interrupted: bool
    settings_kept: bool
    cursor_visible: bool
    line_begun: bool
    orphans: int
    left: list[str]
    printed: bytes  # the end of it
    workers: str  # the end of what its worker processes printed

    @property
    def clean(self) -> bool:
        """Whether nothing is to be seen of the interruption but its report."""
        kept = self.settings_kept and self.cursor_visible and self.line_begun
        return self.interrupted and kept and not self.orphans and not self.left


def interrupt(work: Callable[[], object], after: float) -> Terminal:
    """Do `work` in a process at a terminal of its own, and type Ctrl-C after so many seconds."""
    folder = Path(tempfile.mkdtemp(prefix="interrupt-"))
    workers = Path(f"{folder}.workers")
    workers.touch()
    child, terminal = pty.fork()
    if child == 0:
        code = 1
        try:
            os.environ["TMPDIR"] = tempfile.tempdir = str(folder)
            sys.stdout, sys.stderr = (os.fdopen(os.dup(1), "w"), os.fdopen(os.dup(2), "w"))
            with workers.open("wb") as file:  # of what follows, only other processes write to 1 and 2
                for inherited in (1, 2):
                    os.dup2(file.fileno(), inherited)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            try:
                work()
                code = 0
            except KeyboardInterrupt:
                print("interrupted", flush=True)
                code = 130
            except SystemExit as end:  # the command line's own
                code = int(end.code or 0)
            except BaseException:  # not as an interrupted program ends: `Terminal.printed` says what happened
                traceback.print_exc()
                sys.stderr.flush()
        finally:
            # as at the end of a program: what was registered for it runs, joblib's workers and folders among it
            import atexit

            atexit._run_exitfuncs()
            os._exit(code)
    before = termios.tcgetattr(terminal)
    printed = _read(terminal, after)
    os.write(terminal, b"\x03")
    printed += _read(terminal, 120)
    _, status = os.waitpid(child, 0)
    after_settings = termios.tcgetattr(terminal)
    os.close(terminal)
    shown, hidden = printed.rfind(b"\x1b[?25h"), printed.rfind(b"\x1b[?25l")
    begun = printed.partition(b"nterrupted")[0].rstrip(b"iI").replace(b"^C", b"")
    begun = re.sub(rb"\x1b\[[0-9;?]*[A-Za-z]", b"", begun).rstrip(b" ")  # without colours and the like
    end = Terminal(
        status == 0,
        os.WIFEXITED(status) and os.WEXITSTATUS(status) == 130,
        before == after_settings,
        shown >= hidden,
        not begun or begun.endswith((b"\n", b"\r")),
        orphans(child),
        sorted(os.listdir(folder)),
        printed[-2000:],
        workers.read_bytes()[-2000:].decode(errors="replace"),
    )
    workers.unlink()
    shutil.rmtree(folder)
    return end


def _read(terminal: int, seconds: float) -> bytes:
    """What comes from the terminal within so many seconds, or until its process has gone."""
    text, deadline = b"", time.monotonic() + seconds
    while (rest := deadline - time.monotonic()) > 0:
        if select.select([terminal], [], [], rest)[0]:
            try:
                piece = os.read(terminal, 65536)
            except OSError:  # the other end is closed
                break
            if not piece:
                break
            text += piece
    return text


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--times", type=int, default=50, help="fits killed with a checkpoint, and as many without")
    parser.add_argument("--interrupts", type=int, default=5, help="of a fit, and as many of a search in two processes")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)  # and nothing is computed here: processes are forked from this one
    rng = np.random.default_rng(options.seed)
    start = time.monotonic()
    undisturbed = run(None, None)
    if not undisturbed.result or undisturbed.left:
        print(f"the undisturbed fit failed: {undisturbed}")
        return 1
    duration = undisturbed.seconds
    counts: collections.Counter[str] = collections.Counter()
    blocks: collections.Counter[int] = collections.Counter()
    problems: list[str] = []
    while counts["killed, then resumed"] < options.times:
        folder = Path(tempfile.mkdtemp(prefix="checkpoint-"))
        kills, before = 2 if counts["killed, then resumed"] % 3 == 2 else 1, counts["kills with a checkpoint"]
        for _ in range(kills):
            end = run(folder, float(rng.uniform(0, duration)))
            counts["kills with a checkpoint"] += end.signal == signal.SIGKILL
            counts["orphans"] += end.orphans
            if end.left:
                problems.append(f"with a checkpoint, left in the temporary folder: {end.left}")
        if counts["kills with a checkpoint"] == before:  # it had finished before
            shutil.rmtree(folder)
            continue
        resumed = run(folder, None)
        duration = 0.8 * duration + 0.2 * max(
            resumed.seconds, 0.5 * duration
        )  # other work on the machine comes and goes
        kept = BLOCKS - resumed.result.get("trained", 0)
        blocks[kept] += 1
        if resumed.result.get("scores") == undisturbed.result["scores"]:
            counts["ended bit for bit alike"] += 1
        else:
            problems.append(f"resumed with {kept} of {BLOCKS} blocks: other scores, {resumed.signal=}")
        counts["killed, then resumed"] += 1
        remains = [str(path) for path in folder.rglob("output.pkl*")]
        if remains:
            problems.append(f"left in the checkpoint after the fit: {remains}")
        shutil.rmtree(folder)
    while counts["kills without"] < options.times:
        end = run(None, float(rng.uniform(0, duration)))
        counts["kills without"] += end.signal == signal.SIGKILL
        counts["orphans"] += end.orphans
        if end.left:
            problems.append(f"without a checkpoint, left in the temporary folder: {end.left}")
    place = Path(tempfile.mkdtemp(prefix="images-"))
    fitting = detector(None, verbose=1)
    in_jobs = detector(None, verbose=1).set_params(students__n_jobs=2)
    for name, work, latest in (
        ("Ctrl-C in a fit", lambda: fitting.fit(images()), 0.9),
        ("Ctrl-C in a fit of two jobs", lambda: in_jobs.fit(images()), 3),
        ("Ctrl-C in a search of two processes", search, 3),
        ("Ctrl-C in the command line's fit", command_line(place), 3),
    ):
        there = set(os.listdir(place))
        while counts[name] < options.interrupts:
            terminal = interrupt(work, float(rng.uniform(0.1, latest)) * duration)
            # the command line keeps the students that are trained, beside the model that is not there yet
            shutil.rmtree(place / "model.tfm.students", ignore_errors=True)
            more = sorted(set(os.listdir(place)) - there)
            if terminal.finished:
                latest *= 0.8
                for path in more:
                    (place / path).unlink()
                continue
            counts[name] += 1
            if terminal.clean and not more:
                counts[f"{name}, clean"] += 1
            else:
                problems.append(f"{name}: {terminal}, left beside the images: {more}")
    shutil.rmtree(place)
    for problem in problems:
        print("WRONG", problem)
    result = {
        **counts,
        "resumed with so many blocks of 4": dict(sorted(blocks.items())),
        "problems": len(problems),
        "seconds": round(time.monotonic() - start, 1),
    }
    print("RESULT", json.dumps(result))
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
