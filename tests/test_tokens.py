import numpy as np
import pytest
import timm
import torch

from skl_transformaly import BlockStudents, TimmExtractor
from skl_transformaly.students._tokens import draw_tokens, partial_forward

VARIANTS = {
    "plain": {},
    "layer scale": {"init_values": 0.3},
    "norms of queries and keys": {"qk_norm": True},
    "no bias": {"qkv_bias": False},
    "norms of scale": {"scale_attn_norm": True, "scale_mlp_norm": True},
}


def strong_block(**changes):
    """A block whose attention is far from uniform, so that a mistake in it shows."""
    block = timm.models.vision_transformer.Block(32, 4, **{"qkv_bias": True, **changes})
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * (0.7 if parameter.ndim > 1 else 0.5))
    return block


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS.keys())
def test_part_is_that_of_the_whole(changes, fused):
    block = strong_block(**changes)
    block.attn.fused_attn = fused
    x = torch.randn(3, 40, 32, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([0, 3, 17, 39])
    partial = partial_forward(block, x)
    torch.testing.assert_close(partial(x, tokens), block(x)[:, tokens], rtol=1e-4, atol=1e-4)


def test_gradients_are_those_of_the_whole():
    block = strong_block()
    x = torch.randn(2, 40, 32, generator=torch.Generator().manual_seed(1))
    tokens = torch.tensor([1, 5, 30])
    gradients = []
    for output in (block(x)[:, tokens], partial_forward(block, x)(x, tokens)):
        gradients.append(torch.autograd.grad(output.square().sum(), list(block.parameters())))
    for whole, part in zip(*gradients):
        torch.testing.assert_close(part, whole, rtol=1e-3, atol=1e-2)


def test_training_mode_is_left_as_it_was():
    block = strong_block().train()
    partial_forward(block, torch.zeros(1, 40, 32))
    assert block.training


class OtherBlock(timm.models.vision_transformer.Block):
    """Overrides forward: nothing is known of what it needs."""


def test_other_blocks_are_left_whole():
    assert partial_forward(OtherBlock(32, 4), torch.zeros(1, 40, 32)) is None
    assert partial_forward(torch.nn.Linear(32, 32), torch.zeros(1, 40, 32)) is None


def test_a_block_that_computes_otherwise_is_left_whole(monkeypatch):
    block = strong_block()
    x = torch.randn(1, 40, 32, generator=torch.Generator().manual_seed(1))
    monkeypatch.setattr(type(block), "forward", lambda self, x: x + self.mlp(self.norm2(x)))
    assert partial_forward(block, x) is None


@pytest.mark.parametrize("total, share, number", [(197, 0.25, 49), (197, 0.01, 32), (40, 0.5, 32), (64, 0.75, 48)])
def test_so_many_tokens_are_drawn(total, share, number):
    drawn = draw_tokens(total, share, np.random.default_rng(0))
    assert len(drawn) == number == len(set(drawn)) and drawn.min() >= 0 and drawn.max() < total


@pytest.mark.parametrize("total, share", [(32, 0.25), (5, 0.25), (197, 1.0)])
def test_all_tokens_are_not_drawn_but_taken(total, share):
    assert draw_tokens(total, share, np.random.default_rng(0)) is None


def test_every_token_has_its_turn():
    rng = np.random.default_rng(0)
    counts = sum(np.bincount(draw_tokens(64, 0.5, rng), minlength=64) for _ in range(400))
    assert abs(counts - 200).max() < 60  # 6 standard deviations of a binomial


def test_a_quarter_of_the_tokens_learns_as_all_do():
    images = np.random.default_rng(0).integers(0, 256, (24, 32, 32, 3), dtype=np.uint8)
    teacher = TimmExtractor("test_vit", weights=None, image_size=160, precision="float32").fit(images)
    losses = {}
    for share in (1.0, 0.4):
        students = BlockStudents(n_blocks=1, max_epochs=30, lr=3e-3, token_share=share, random_state=0)
        losses[share] = students.fit(images, extractor=teacher).transform(images).mean()
    fresh = BlockStudents(n_blocks=1, max_epochs=1, lr=1e-9, random_state=0)
    untrained = fresh.fit(images, extractor=teacher).transform(images).mean()
    assert losses[0.4] < 0.2 * untrained
    assert losses[0.4] < 1.5 * losses[1.0]
