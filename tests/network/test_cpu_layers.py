"""Layers that train faster on a CPU do what torch's do."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from cryoforum_plugin.network.cpu_layers import Dropout, PReLU
from cryoforum_plugin.network.encoder import CircularConv2d
from cryoforum_plugin.network.memory import freed_memory_kept

CHANNELS_LAST = torch.channels_last


def test_prelu_and_its_gradients_are_torchs() -> None:
    torch.manual_seed(0)
    ours, theirs = PReLU(3).double(), torch.nn.PReLU(3).double()
    slopes = torch.tensor([0.25, -0.5, 1.5], dtype=torch.float64)
    for layer in (ours, theirs):
        layer.weight.data.copy_(slopes)
    x = torch.randn(2, 3, 5, 4, dtype=torch.float64)
    found = []
    for layer in (ours, theirs):
        given = x.clone().requires_grad_()
        output = layer(given)
        (output * x.roll(1)).sum().backward()
        found.append((output.detach(), given.grad, layer.weight.grad))
    for a, b in zip(*found, strict=True):
        assert torch.allclose(a, b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, CHANNELS_LAST])
@pytest.mark.parametrize("p", [0.3, 0.5])
def test_dropout_drops_its_part_of_the_numbers(p: float, layout: torch.memory_format) -> None:
    torch.manual_seed(0)
    x = torch.full((7, 31, 33, 35), 2.0).contiguous(memory_format=layout).requires_grad_()
    output = Dropout(p)(x)
    kept = output != 0
    # three standard deviations of a binomial; of channels, rows and images too
    for dims in ((0, 1, 2, 3), (0, 2, 3), (0, 1, 3), (1, 2, 3)):
        share = kept.float().mean(dims)
        n = x.numel() / share.numel()
        assert (share - (1 - p)).abs().max() < 4.5 * (p * (1 - p) / n) ** 0.5
    assert torch.allclose(output[kept], torch.tensor(2 / (1 - p)))
    output.sum().backward()
    assert torch.equal(x.grad != 0, kept)
    assert not torch.equal(Dropout(p)(x) != 0, kept)
    torch.manual_seed(0)
    assert torch.equal(Dropout(p)(x), output)


@pytest.mark.parametrize("p", [0.0, 1.0])
def test_dropout_of_nothing_and_of_all(p: float) -> None:
    x = torch.ones(1, 2, 3, 3)
    assert torch.equal(Dropout(p)(x), x * (1 - p))
    assert torch.equal(Dropout(p).eval()(x), x)


def test_a_convolution_round_the_ring_has_the_gradients_of_the_sum() -> None:
    torch.manual_seed(0)
    layer = CircularConv2d(2, 3, kernel=5, stride=2).double()
    x = torch.randn(2, 2, 6, 8, dtype=torch.float64, requires_grad=True)
    assert gradcheck(layer, (x,))
    wrapped = torch.nn.functional.pad(x, (2, 2, 0, 0), mode="circular")
    assert torch.allclose(layer(x), layer.conv(wrapped))


def test_freed_memory_can_be_kept_twice() -> None:
    for _ in range(2):
        with freed_memory_kept():
            assert torch.ones(2**24).sum() == 2**24
