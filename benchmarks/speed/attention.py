"""Ways to compute attention on this processor: torch's fused kernel, and the matrix products one by one.

    python benchmarks/speed/attention.py

For batches of 32 images of 197 tokens and heads of 64 channels, as in Vision Transformers at 224 pixels; forward, and
forward with backward. The package takes the products one by one in 16 bits on a CPU
(``skl_transformaly.teacher._kernels.suit_sixteen_bits``).
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parent))

from harness import interleaved, machine, ratio, table


def explicit(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """As timm's attention does without the fused kernel."""
    return ((q * q.shape[-1] ** -0.5) @ k.transpose(-2, -1)).softmax(dim=-1) @ v


def main() -> None:
    """Print the table."""
    print(f"{machine()}\n\n    python benchmarks/speed/attention.py\n")
    rows = []
    for heads in (3, 12):
        for dtype in (torch.float32, torch.bfloat16):
            qkv = torch.randn(32, 197, 3, heads, 64).permute(2, 0, 3, 1, 4).requires_grad_(True)

            def forward(attend: Callable[..., Tensor], qkv: Tensor = qkv, dtype: torch.dtype = dtype) -> Tensor:
                with torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype != torch.float32):
                    return attend(*qkv.to(dtype).unbind(0))

            def backward(attend: Callable[..., Tensor], forward: Any = forward) -> None:
                output = forward(attend)
                output.backward(output.detach())

            ways = {"fused": F.scaled_dot_product_attention, "explicit": explicit}
            with torch.no_grad():
                ahead = interleaved({name: partial(forward, way) for name, way in ways.items()})
            both = interleaved({name: partial(backward, way) for name, way in ways.items()})
            for name, times in (("forward", ahead), ("forward and backward", both)):
                quotient = ratio(times["fused"], times["explicit"])
                rows.append([str(heads), str(dtype).removeprefix("torch."), name, times["fused"].show(),
                             times["explicit"].show(), quotient.show(1, "", 2)])  # fmt: skip
    print(table(["heads", "precision", "", "fused", "one by one", "fused / one by one"], rows))


if __name__ == "__main__":
    main()
