"""How fast `transformaly serve` is beside the direct call, and whether hostile requests harm it.

    python benchmarks/serve.py --root DIR --out benchmarks/serve.md

--root is a folder of photographs, ``train/CLASS`` and ``test/CLASS``. A detector with the bundled teacher learns one
class; test images of all classes are sent. Servers are processes of their own on 127.0.0.1. Their clients are threads
of this process, which takes its share of the processor, too; each client sends one image, waits for its score, and
sends the next. All kinds of calls take turns, round by round, so that other work on the machine slows all alike.

Hostile requests are those of ``hostile.py``, from 8 threads; every tenth request is an honest one, whose score must be
the detector's.
"""

from __future__ import annotations

import argparse
import contextlib
import http.client
import json
import os
import platform
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch
from hostile import KINDS, exchange, form
from page import publish

from skl_transformaly import TransformalyDetector, load, save
from skl_transformaly.export import to_onnx

_HONEST_EVERY, _THREADS = 10, 8
_PACKAGES = ("skl-transformaly", "torch", "timm", "onnxruntime", "starlette", "uvicorn", "pillow")


@contextlib.contextmanager
def server(model: Path, log: Path) -> Iterator[tuple[subprocess.Popen, int]]:
    """A server, and its port; it must end well."""
    command = [sys.executable, "-m", "skl_transformaly", "serve", str(model), "--port", "0"]
    with log.open("w") as file:
        process = subprocess.Popen(command, stderr=file)
    try:
        while not (found := re.search(r":(\d+)/", log.read_text())):
            assert process.poll() is None, log.read_text()
            time.sleep(0.1)
        port = int(found[1])
        while exchange(port, b"GET /readyz HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n") != 200:
            time.sleep(0.1)
        yield process, port
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.wait()


class Client:
    """One client with a connection that stays open."""

    def __init__(self, port: int):
        self.connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)

    def score(self, content: bytes) -> tuple[int, float | None]:
        """Status, and the image's score."""
        header, body = form(("a.jpg", content))
        self.connection.request("POST", "/score", body, {"Content-Type": header.partition(": ")[2]})
        answer = self.connection.getresponse()
        text = json.loads(answer.read())
        return answer.status, text["results"][0]["score"] if answer.status == 200 else None


def timed(call: Callable[[int], int], seconds: float) -> tuple[list[float], int, float]:
    """Seconds of each call, how many went wrong, and seconds in all."""
    times, wrong, i = [], 0, 0
    start = time.perf_counter()
    while time.perf_counter() < start + seconds:
        before = time.perf_counter()
        wrong += call(i) != 200
        times.append(time.perf_counter() - before)
        i += 1
    return times, wrong, time.perf_counter() - start


def clients(port: int, contents: list[bytes], count: int, seconds: float) -> tuple[list[float], int, float]:
    """As `timed`, of so many clients at once."""

    def one(k: int) -> tuple[list[float], int, float]:
        client = Client(port)
        return timed(lambda i: client.score(contents[(i * count + k) % len(contents)])[0], seconds)

    start = time.perf_counter()
    with ThreadPoolExecutor(count) as pool:
        found = list(pool.map(one, range(count)))
    passed = time.perf_counter() - start
    return [t for times, _, _ in found for t in times], sum(wrong for _, wrong, _ in found), passed


def load_table(model: Path, onnx: Path, paths: list[Path], folder: Path, options: argparse.Namespace) -> list[str]:
    """Requests a second and times of all kinds of calls."""
    detector = load(model)
    contents = [path.read_bytes() for path in paths]

    def direct(i: int) -> int:
        detector.score_samples([paths[i % len(paths)]])
        return 200

    def batch(i: int) -> int:
        detector.score_samples([paths[(16 * i + k) % len(paths)] for k in range(16)])
        return 200

    with server(model, folder / "torch.log") as (_, torch_port), server(onnx, folder / "onnx.log") as (_, onnx_port):
        ways: dict[str, Callable[[float], tuple[list[float], int, float]]] = {
            "direct call, 1 image": lambda s: timed(direct, s),
            "direct call, 16 images": lambda s: timed(batch, s),
        }
        for name, port in (("server", torch_port), ("server, ONNX", onnx_port)):
            for count in (1, 8, 64):
                ways[f"{name}, {count} client{'s' * (count > 1)}"] = lambda s, port=port, count=count: clients(
                    port, contents, count, s
                )
        found: dict[str, list] = {name: [] for name in ways}
        for way in ways.values():
            way(1.0)  # warm
        for _ in range(options.rounds):
            for name, way in ways.items():
                found[name].append(way(options.seconds))
    rows = []
    for name, rounds in found.items():
        times = np.concatenate([times for times, _, _ in rounds]) * 1000
        images = len(times) * (16 if "16 images" in name else 1)
        rate = images / sum(passed for _, _, passed in rounds)
        p50, p99 = np.percentile(times, [50, 99])
        rows.append(f"| {name} | {rate:.1f} | {p50:.0f} | {p99:.0f} | {sum(wrong for _, wrong, _ in rounds)} |")
    return ["| | images a second | p50, ms | p99, ms | refused |", "|---|---|---|---|---|", *rows]


class Attack:
    """Hostile requests, with honest ones among them."""

    def __init__(self, process: subprocess.Popen, port: int, contents: list[bytes], expected: np.ndarray):
        self.process, self.port, self.contents, self.expected = process, port, contents, expected
        self.lock = threading.Lock()
        self.statuses: Counter[tuple[str, int]] = Counter()
        self.honest, self.refused, self.deviation, self.slowest = 0, 0, 0.0, 0.0

    def run(self, numbers: range) -> None:
        """Send requests, by their numbers."""
        with ThreadPoolExecutor(_THREADS) as pool:
            list(pool.map(self.one, numbers))

    def one(self, number: int) -> None:
        """Send one."""
        rng = np.random.default_rng(number)
        kind = KINDS[number % len(KINDS)]
        start = time.perf_counter()
        wait = kind.__name__ not in ("cut_request", "wrong_length", "impatient")
        # what lacks its end has its answer at the server's timeout only
        status = exchange(self.port, kind(rng), wait=wait, timeout=2 if kind.__name__ == "not_http" else 60)
        passed = time.perf_counter() - start
        with self.lock:
            self.statuses[kind.__name__, status] += 1
            self.slowest = max(self.slowest, passed)
        if number % _HONEST_EVERY == 0:
            self.ask(number // _HONEST_EVERY % len(self.contents))

    def ask(self, i: int) -> None:
        """Send an honest request."""
        status, score = Client(self.port).score(self.contents[i])
        with self.lock:
            self.honest += 1
            if score is None:
                assert status in (429, 503), status
                self.refused += 1
            else:
                self.deviation = max(self.deviation, abs(score - self.expected[i]))

    def memory(self) -> float:
        """The server's resident memory, in MB."""
        return int(re.search(r"VmRSS:\s*(\d+)", Path(f"/proc/{self.process.pid}/status").read_text())[1]) / 1000


def attack_report(model: Path, paths: list[Path], folder: Path, options: argparse.Namespace) -> list[str]:
    """What hostile requests did."""
    expected = load(model).score_samples(paths)
    log = folder / "attack.log"
    with server(model, log) as (process, port):
        attack = Attack(process, port, [path.read_bytes() for path in paths], expected)
        sizes = {0: attack.memory()}
        parts = np.linspace(0, options.hostile, 6).astype(int).tolist()
        start = time.perf_counter()
        for first, last in pairwise(parts):
            attack.run(range(first, last))
            sizes[last] = attack.memory()
        seconds = time.perf_counter() - start
        assert process.poll() is None
    text = log.read_text()
    kinds = [kind.__name__ for kind in KINDS]
    found = {kind: {s: n for (k, s), n in sorted(attack.statuses.items()) if k == kind} for kind in kinds}
    faults = sum(n for (_, status), n in attack.statuses.items() if status == 500)
    return [
        f"{options.hostile} hostile requests and {attack.honest} honest ones in {seconds:.0f} s. Of the hostile ones "
        f"{faults} were answered with 500; the server's log holds {text.count('Traceback')} tracebacks in "
        f"{len(text.splitlines())} lines; the longest that one of them was waited for is {attack.slowest:.1f} s. "
        f"{attack.refused} honest ones were refused (429 or 503); the scores of the others differ from the direct "
        f"call's by {attack.deviation:.1e} at most. SIGTERM ended the server with 0.",
        "",
        "| hostile requests so far | " + " | ".join(map(str, sizes)) + " |",
        "|---" * (len(sizes) + 1) + "|",
        "| resident memory, MB | " + " | ".join(f"{size:.0f}" for size in sizes.values()) + " |",
        "",
        "Answers by kind (0: nobody waited for the answer, or none came):",
        "",
        "| kind | what | answers |",
        "|---|---|---|",
        *(
            f"| {kind.__name__} | {kind.__doc__} | "
            + ", ".join(f"{status}: {n}" for status, n in found[kind.__name__].items())
            + " |"
            for kind in KINDS
        ),
    ]


def machine() -> str:
    """Processor and versions."""
    name = platform.machine()
    with contextlib.suppress(OSError):
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]
    packages = ", ".join(f"{package} {version(package)}" for package in _PACKAGES)
    threads = f"{os.cpu_count()} cores, torch on {torch.get_num_threads()}"
    return f"{name}, {threads}, Python {platform.python_version()}, {packages}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--root", type=Path, required=True, help="folder with train/CLASS and test/CLASS")
    parser.add_argument("--normal", default="street", help="the class to learn")
    parser.add_argument("--train", type=int, default=150, help="images to learn from, at most")
    parser.add_argument("--seconds", type=float, default=5.0, help="of each kind of call in a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--hostile", type=int, default=10_000, help="hostile requests")
    parser.add_argument("--out", type=Path, help="Markdown file to write")
    options = parser.parse_args()
    paths = sorted(options.root.glob("test/*/*"))[::6]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, onnx = folder / "photographs.tfm", folder / "photographs.onnx"
        training = sorted((options.root / "train" / options.normal).iterdir())[: options.train]
        detector = TransformalyDetector("bundled", random_state=0).fit(training)
        save(detector, model)
        to_onnx(detector, onnx)
        table = load_table(model, onnx, paths, folder, options)
        print("\n".join(table))
        before = os.getloadavg()[0]
        attack = attack_report(model, paths, folder, options)
    lines = [
        "# transformaly serve",
        "",
        f"`python benchmarks/serve.py --root DIR`: {len(training)} photographs of the class "
        f"{options.normal!r} learned with the bundled teacher, {len(paths)} of all classes sent. {machine()}. "
        f"Load of the machine, by all that ran on it: {before:.1f}.",
        "",
        "## Speed",
        "",
        "Each client sends one image, waits for its score, and sends the next. Clients share the processor with the "
        "server. Times are those of a call: of 16 images in the second row.",
        "",
        *table,
        "",
        "## Hostile requests",
        "",
        *attack,
    ]
    publish(lines, options.out)


if __name__ == "__main__":
    main()
