"""What the speed benchmarks share: floating-point operations, alternating timings, the machine's description."""

from __future__ import annotations

import math
import os
import platform
import re
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from skl_transformaly import TimmExtractor, __version__

REPEATS = 5  # of every timing; a table shows median, minimum and maximum


@dataclass
class Timing:
    """Seconds of several repeats."""

    seconds: list[float]

    @property
    def median(self) -> float:
        """Median of the repeats, in seconds."""
        return statistics.median(self.seconds)

    def show(self, scale: float = 1e3, unit: str = "ms", digits: int = 2) -> str:
        """Median (minimum to maximum), in `unit`."""
        low, high = min(self.seconds) * scale, max(self.seconds) * scale
        return f"{self.median * scale:.{digits}f} {unit} ({low:.{digits}f} to {high:.{digits}f})"


def interleaved(actions: dict[str, Callable[[], Any]], repeats: int = REPEATS) -> dict[str, Timing]:
    """Time the actions in turn, `repeats` times after a warm-up, so that all see the same drift of the machine."""
    times: dict[str, list[float]] = {name: [] for name in actions}
    for round_ in range(repeats + 1):
        for name, action in actions.items():
            start = time.perf_counter()
            action()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if round_:
                times[name].append(time.perf_counter() - start)
    return {name: Timing(seconds) for name, seconds in times.items()}


def ratio(one: Timing, other: Timing) -> Timing:
    """Quotients of two interleaved timings, round by round."""
    return Timing([a / b for a, b in zip(one.seconds, other.seconds)])


def matrix_product(dtype: torch.dtype, device: str = "cpu", size: int = 2048) -> tuple[Callable[[], Any], float]:
    """One large matrix product, and its floating-point operations."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    return lambda: a @ b, 2.0 * size**3


@register_flop_formula(torch.ops.mkldnn._linear_pointwise)  # which torch's counter does not know
def _linear_flops(x_shape: Any, weight_shape: Any, *args: Any, out_shape: Any = None, **kwargs: Any) -> int:
    return 2 * math.prod(x_shape) * weight_shape[0]


def flops(function: Callable[..., Any], *args: Any) -> float:
    """Floating-point operations of the matrix products in one call."""
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        function(*args)
    return float(counter.get_total_flops())


def teacher(model: str, weights: str | None = None, **parameters: Any) -> TimmExtractor:
    """A fitted teacher, on noise; "bundled" has its own weights."""
    if model == "bundled":
        return TimmExtractor(model, **parameters).fit(noise(2))
    return TimmExtractor(model, weights=weights, **parameters).fit(noise(2))


def noise(n: int, size: int = 32, seed: int = 0) -> np.ndarray:
    """`n` images of coloured noise, uint8."""
    return np.random.default_rng(seed).integers(0, 256, (n, size, size, 3), dtype=np.uint8)


def block_flops(extractor: TimmExtractor) -> tuple[list[float], float]:
    """Floating-point operations for one image: of each block, and of the whole teacher."""
    kept: list[tuple[Any, tuple, dict]] = []

    def visit(index: int, block: Any, args: tuple, kwargs: dict, output: Tensor) -> None:
        if index < len(extractor.blocks_):
            kept.append((block, args, kwargs))

    batch = extractor.preprocess(noise(1))
    total = flops(extractor.embed, batch, visit)
    with extractor.compute():
        return [flops(partial(block, *args, **kwargs)) for block, args, kwargs in kept], total


# What keeps libraries from the processor's newer instructions
_RESTRICTIONS = ("ONEDNN_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY", "MKL_ENABLE_INSTRUCTIONS", "OPENBLAS_CORETYPE")


def restriction() -> str:
    """Variables of the environment by which libraries use fewer instructions than the processor has, as a shell's."""
    return " ".join(f"{name}={os.environ[name]}" for name in _RESTRICTIONS if os.environ.get(name))


def machine() -> str:
    """Processor, cores, memory, system and versions."""
    name = platform.processor() or platform.machine()
    memory = ""
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        text = cpuinfo.read_text()
        found = re.search(r"model name\s*: (.+)", text)
        name = found.group(1) if found else name
        known = [flag for flag in ("avx512f", "avx512_bf16", "amx_bf16") if flag in text]
        name += f" ({', '.join(known)})" if known else ""
        name += f", restricted by {restriction()}" if restriction() else ""
        total = int(re.search(r"MemTotal:\s*(\d+)", Path("/proc/meminfo").read_text()).group(1))
        memory = f", {total / 2**20:.0f} GiB"
    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    packages = ", ".join(f"{package} {version(package)}" for package in ("torch", "timm", "scikit-learn", "numpy"))
    return (
        f"{name}, {os.cpu_count()} cores, {torch.get_num_threads()} threads{memory}, {gpu}, {platform.system()}; "
        f"skl-transformaly {__version__}, {packages}, Python {platform.python_version()}"
    )


def table(header: list[str], rows: list[list[str]]) -> str:
    """A Markdown table."""
    lines = ["| " + " | ".join(header) + " |", "|---" * len(header) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])
