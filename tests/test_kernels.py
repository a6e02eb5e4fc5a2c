"""How networks compute on a CPU in 16 bits."""

import copy

import pytest
import torch
from timm.layers import Mlp
from timm.models.vision_transformer import Block
from torch import nn
from torch.nn import functional as F

from skl_transformaly.teacher import _kernels


@pytest.fixture(autouse=True)
def needs_the_call():
    if not _kernels._fused_linear_works():
        pytest.skip("this torch has no fused linear layer")


def sixteen_bits():
    return torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False)


def suited(module):
    module = copy.deepcopy(module)
    _kernels.suit_sixteen_bits(module)
    return module


def deviation(found, expected):
    return float((found.float() - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("bias", [True, False])
def test_linear_layer_is_the_product_of_the_rounded_factors(bias):
    layer = nn.Linear(40, 24, bias=bias)
    x = torch.randn(2, 7, 40)
    rounded = x.bfloat16().double() @ layer.weight.bfloat16().double().T + (layer.bias.bfloat16() if bias else 0)
    with torch.no_grad(), sixteen_bits():
        found = suited(layer)(x)
    assert found.dtype == torch.bfloat16
    assert deviation(found, rounded) < 2**-8  # one rounding


@pytest.mark.parametrize("approximate", ["none", "tanh"])
def test_mlp_applies_its_own_gelu(approximate):
    mlp = Mlp(16, 64, act_layer=lambda: nn.GELU(approximate))
    nn.init.normal_(mlp.fc1.weight)  # wide enough that the two forms of GELU differ
    x = torch.randn(5, 9, 16)
    expected = F.linear(F.gelu(F.linear(x, mlp.fc1.weight, mlp.fc1.bias), approximate=approximate), mlp.fc2.weight)
    expected += mlp.fc2.bias
    with torch.no_grad(), sixteen_bits():
        found = suited(mlp.eval())(x)
    assert deviation(found, expected) < 0.02


def test_mlp_with_another_activation_keeps_it():
    mlp = Mlp(16, 32, act_layer=nn.ReLU).eval()
    x = torch.randn(5, 16)
    with torch.no_grad(), sixteen_bits():
        found = suited(mlp)(x)
    assert deviation(found, mlp(x).detach()) < 0.02


def test_mlp_in_training_still_drops_out():
    mlp = suited(Mlp(16, 32, drop=0.5)).train()
    x = torch.ones(1, 16)
    with torch.no_grad(), sixteen_bits():
        assert not torch.equal(mlp(x), mlp(x))


def test_block_has_the_same_parameters():
    block = Block(32, num_heads=2)
    assert list(suited(block).state_dict()) == list(block.state_dict())


def test_block_in_float32_computes_as_before():
    block = Block(32, num_heads=2).eval()
    block.attn.fused_attn = False
    x = torch.randn(2, 10, 32)
    with torch.no_grad():
        assert torch.equal(suited(block)(x), block(x))


def test_gradients_in_16_bits_are_as_before():
    block = Block(32, num_heads=2)
    block.attn.fused_attn = False
    gradients = []
    for module in (block, suited(block)):
        x = torch.linspace(-1, 1, 2 * 10 * 32).view(2, 10, 32)
        with sixteen_bits():
            module(x).square().sum().backward()
        gradients.append([parameter.grad for parameter in module.parameters()])
    assert all(map(torch.equal, *gradients))


def test_a_torch_without_the_call_computes_by_its_own_layers(monkeypatch):
    _kernels._fused_linear_works.cache_clear()
    monkeypatch.setattr(_kernels, "_fused_linear", lambda *args: torch.ops.mkldnn._no_such_call(*args))
    try:
        module = suited(Mlp(8, 16))
    finally:
        _kernels._fused_linear_works.cache_clear()
    assert type(module) is Mlp
    assert type(module.fc1) is nn.Linear


def test_a_call_that_computes_something_else_is_not_used(monkeypatch):
    _kernels._fused_linear_works.cache_clear()
    monkeypatch.setattr(_kernels, "_fused_linear", lambda x, layer, *args: layer(x))  # forgets the GELU
    try:
        module = suited(nn.Linear(8, 16))
    finally:
        _kernels._fused_linear_works.cache_clear()
    assert type(module) is nn.Linear


def test_the_check_draws_no_random_numbers():
    _kernels._fused_linear_works.cache_clear()
    before = torch.random.get_rng_state()
    _kernels._fused_linear_works()
    assert torch.equal(before, torch.random.get_rng_state())


def test_subclasses_are_left_alone():
    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    assert type(suited(Doubled(4, 4))) is Doubled


def test_suited_networks_are_recognised():
    block = Block(32, num_heads=2)
    assert not _kernels.is_suited(block)
    assert _kernels.is_suited(suited(block))
