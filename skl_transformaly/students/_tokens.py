"""Output of a transformer block for some of its tokens, without computing the others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from timm.models.vision_transformer import Attention, Block
from torch import Tensor, nn
from torch.nn import functional as F

__all__ = ["draw_tokens", "partial_forward"]

# A loss over fewer tokens is a poor estimate of the loss over all tokens, and saves little time.
_FEWEST = 32

PartialForward = Callable[[Tensor, Tensor], Tensor]


def partial_forward(block: nn.Module, example: Tensor) -> PartialForward | None:
    """Return a function ``(x, tokens) -> block(x)[:, tokens]`` that computes only what is needed.

    In a pre-norm block with self-attention, an output token depends on other tokens only through their keys and values:
    queries, projection and MLP, three quarters of the arithmetic, are needed only for the output tokens.

    Parameters
    ----------
    block : nn.Module
        In the state in which it will be trained.
    example : Tensor of shape (B, T, D)
        An input, on which the function is compared with the block itself.

    Returns
    -------
    function : callable or None
        None if `block` is not timm's plain ViT block, or if the comparison fails, as it would if another version of
        timm computed the block differently.
    """
    if type(block) is not Block or type(block.attn) is not Attention or example.ndim != 3:
        return None

    def forward(x: Tensor, tokens: Tensor) -> Tensor:
        y = x[:, tokens] + block.drop_path1(block.ls1(_attend(block.attn, block.norm1(x), tokens)))
        return y + block.drop_path2(block.ls2(block.mlp(block.norm2(y))))

    training = block.training
    tokens = torch.arange(0, example.shape[1], 2, device=example.device)
    device = example.device.type
    try:
        # without dropout and in the weights' own precision, so that the two agree up to rounding
        block.eval()
        with torch.no_grad(), torch.autocast(device, enabled=False):
            whole, part = block(example)[:, tokens], forward(example, tokens)
    except (AttributeError, RuntimeError, TypeError):
        return None
    finally:
        block.train(training)
    scale = float((whole - example[:, tokens]).abs().max())
    same = whole.shape == part.shape and float((whole - part).abs().max()) <= 1e-3 * scale
    return forward if same else None


def _attend(attention: Any, x: Tensor, tokens: Tensor) -> Tensor:
    """``attention(x)[:, tokens]`` of timm's plain attention."""
    B, T, D = x.shape
    heads, width = attention.num_heads, attention.head_dim
    inner = heads * width
    weight, bias = attention.qkv.weight, attention.qkv.bias
    if bias is None:
        q, kv = F.linear(x[:, tokens], weight[:inner]), F.linear(x, weight[inner:])
    else:
        q, kv = F.linear(x[:, tokens], weight[:inner], bias[:inner]), F.linear(x, weight[inner:], bias[inner:])
    q = attention.q_norm(q.view(B, len(tokens), heads, width).transpose(1, 2))
    k, v = kv.view(B, T, 2, heads, width).permute(2, 0, 3, 1, 4).unbind(0)
    k = attention.k_norm(k)
    if attention.fused_attn:
        mixed = F.scaled_dot_product_attention(q, k, v, dropout_p=attention.attn_drop.p if attention.training else 0.0)
    else:
        mixed = attention.attn_drop((q * attention.scale @ k.transpose(-2, -1)).softmax(dim=-1)) @ v
    mixed = attention.norm(mixed.transpose(1, 2).reshape(B, len(tokens), inner))
    if getattr(attention, "gate", None) is not None:
        mixed = mixed * attention.gate(x[:, tokens]).sigmoid()
    return attention.proj_drop(attention.proj(mixed))


def draw_tokens(total: int, share: float, rng: np.random.Generator) -> np.ndarray | None:
    """Draw ascending indices of about `share` of `total` tokens; None means all tokens."""
    number = max(round(share * total), min(_FEWEST, total))
    return None if number >= total else np.sort(rng.choice(total, number, replace=False))
