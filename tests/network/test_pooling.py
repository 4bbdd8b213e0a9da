"""Pooling has the limits it should, and finite gradients everywhere."""

from __future__ import annotations

import pytest
import torch
from torch.autograd import gradcheck

from cryoforum_plugin.network.pooling import GeneralisedMean, make_pooling


def generalised_mean(excess: float | None = None) -> GeneralisedMean:
    pooling = GeneralisedMean(3)
    if excess is not None:
        torch.nn.init.constant_(pooling.excess, excess)
    return pooling


@pytest.fixture
def maps() -> torch.Tensor:
    return torch.rand(2, 3, 5, 4, generator=torch.Generator().manual_seed(0))


def test_generalised_mean_is_the_formula_and_starts_at_three(maps: torch.Tensor) -> None:
    pooling = generalised_mean()
    assert torch.allclose(pooling.p, torch.full((3,), 3.0))
    assert torch.allclose(pooling(maps), maps.pow(3).mean((2, 3)).pow(1 / 3), rtol=1e-4)


def test_generalised_mean_lies_between_average_and_maximum(maps: torch.Tensor) -> None:
    assert torch.allclose(generalised_mean(-100)(maps), maps.mean((2, 3)), rtol=1e-5)
    assert torch.allclose(generalised_mean(1e4)(maps), maps.amax((2, 3)), rtol=1e-3)
    assert generalised_mean(-100).p.min() >= 1


@pytest.mark.parametrize("excess", [None, 50.0])
@pytest.mark.parametrize("scale", [0.0, -1.0, 1e-6, 1e4])
def test_generalised_mean_has_finite_gradients(maps: torch.Tensor, scale: float, excess: float) -> None:
    pooling = generalised_mean(excess)
    x = (scale * maps).requires_grad_()
    pooled = pooling(x)
    pooled.sum().backward()
    for tensor in (pooled, x.grad, pooling.excess.grad):
        assert torch.isfinite(tensor).all()


def test_generalised_mean_gradients_are_right() -> None:
    pooling = generalised_mean().double()
    x = (torch.rand(2, 3, 2, 2, dtype=torch.float64) + 0.1).requires_grad_()
    assert gradcheck(lambda x, _: pooling(x), (x, pooling.excess))


def test_single_pixel_maps_and_bfloat16(maps: torch.Tensor) -> None:
    pooling = generalised_mean()
    assert torch.allclose(pooling(maps[..., :1, :1]), maps[..., 0, 0])
    with torch.autocast("cpu", torch.bfloat16):
        half = pooling(maps.bfloat16())
    assert half.dtype == torch.float32
    assert torch.allclose(half, pooling(maps), rtol=0.02)


def test_maximum_and_average(maps: torch.Tensor) -> None:
    pooling, features = make_pooling("max", 3)
    assert features == 3
    assert torch.equal(pooling(maps), maps.amax((2, 3)))
    pooling, features = make_pooling("max_average", 3)
    assert features == 6
    assert torch.equal(pooling(maps), torch.cat([maps.amax((2, 3)), maps.mean((2, 3))], 1))
