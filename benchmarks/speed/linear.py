"""Linear layers of a Vision Transformer on this processor: torch's own in 16 bits, and with bias and GELU fused.

    python benchmarks/speed/linear.py

Layers of a ViT-Tiny/16 and a ViT-B/16 for a batch of 32 images of 197 tokens, forward, without gradients, as in scoring
(``skl_transformaly.teacher._kernels.suit_sixteen_bits``).
"""

from __future__ import annotations

import copy
import sys
from functools import partial
from pathlib import Path

import torch
from timm.layers import Mlp
from torch import nn

sys.path.insert(0, str(Path(__file__).parent))

from harness import interleaved, machine, ratio, table

from skl_transformaly.teacher._kernels import is_suited, keep_memory, suit_sixteen_bits


def main() -> None:
    """Print the table."""
    print(f"{machine()}\n\n    python benchmarks/speed/linear.py\n")
    keep_memory()
    rows = []
    for width in (192, 768):
        x = torch.randn(32, 197, width)
        for name, layer in (("queries, keys, values", nn.Linear(width, 3 * width)), ("MLP", Mlp(width, 4 * width))):
            suited = copy.deepcopy(layer.eval())
            suit_sixteen_bits(suited)
            if not is_suited(suited):
                raise SystemExit("this torch has no fused linear layer")
            with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
                times = interleaved({"plain": partial(layer, x), "fused": partial(suited, x)})
            quotient = ratio(times["fused"], times["plain"])
            rows.append([str(width), name, times["plain"].show(), times["fused"].show(), quotient.show(1, "", 2)])
    print(table(["channels", "layer", "torch's own", "fused", "fused / torch's own"], rows))


if __name__ == "__main__":
    main()
