"""What ``torch.compile`` would add: a teacher's block as the package computes it, and compiled.

    python benchmarks/speed/compiled.py

Forward, in 16 bits on a CPU, without gradients, 32 images of 197 tokens. Needs a C++ compiler, as compiling does for
everyone; how long that takes is printed, too. The package does not compile.
"""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timm.models.vision_transformer import Block

sys.path.insert(0, str(Path(__file__).parent))

from harness import interleaved, machine, ratio, table

from skl_transformaly.teacher._kernels import keep_memory, suit_sixteen_bits


def main() -> None:
    """Print the table."""
    print(f"{machine()}\n\n    python benchmarks/speed/compiled.py\n")
    keep_memory()
    rows = []
    for width in (192, 768):
        x = torch.randn(32, 197, width)
        block = Block(width, num_heads=width // 64, qkv_bias=True).eval().requires_grad_(False)
        plain = copy.deepcopy(block)
        plain.attn.fused_attn = False
        compiled = torch.compile(plain)
        suit_sixteen_bits(block)

        def run(block: Callable[..., Any], x: torch.Tensor = x) -> None:
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
                for _ in range(4):
                    block(x)

        start = time.perf_counter()
        run(compiled)
        seconds = time.perf_counter() - start
        times = interleaved({"block": partial(run, block), "compiled": partial(run, compiled)})
        quotient = ratio(times["compiled"], times["block"]).show(1, "", 2)
        shown = [times[name].show(1e3 / 4) for name in ("block", "compiled")]
        rows.append([str(width), *shown, quotient, f"{seconds:.0f} s"])
    print(table(["channels", "as it is", "compiled", "compiled / as it is", "first call"], rows))


if __name__ == "__main__":
    main()
