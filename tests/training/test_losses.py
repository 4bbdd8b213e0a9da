"""Losses: exact gradients, degenerate input, and that they are minimal at the truth."""

from __future__ import annotations

import torch
from torch.autograd import gradcheck

from cryoforum_plugin.geometry import random_quaternions, symmetry_group
from cryoforum_plugin.network import NetworkOutput
from cryoforum_plugin.posterior import matrix_from_upper
from cryoforum_plugin.training.losses import pose_loss, shift_negative_log_likelihood


def test_shift_likelihood_gradient_and_minimum() -> None:
    shift, target = torch.randn(4, 2).double().requires_grad_(), torch.randn(4, 2).double()
    log_variance = torch.randn(4).double().requires_grad_()
    assert gradcheck(lambda s, v: shift_negative_log_likelihood(s, v, target), (shift, log_variance))
    assert (
        shift_negative_log_likelihood(target, log_variance, target)
        <= shift_negative_log_likelihood(shift, log_variance, target)
    ).all()
    # the best variance of each of two components is half the squared distance
    best = ((shift - target).square().sum(1) / 2).log().detach().requires_grad_()
    shift_negative_log_likelihood(shift.detach(), best, target).sum().backward()
    assert best.grad.abs().max() < 1e-9


def test_shift_likelihood_at_coincidence_is_finite() -> None:
    zero = torch.zeros(1, 2, requires_grad=True)
    loss = shift_negative_log_likelihood(zero, torch.full((1,), -20.0), torch.zeros(1, 2))
    loss.sum().backward()
    assert torch.isfinite(loss).all()
    assert torch.isfinite(zero.grad).all()


def test_pose_loss_gradient_in_float64() -> None:
    q = random_quaternions(3, torch.Generator().manual_seed(0)).double()
    group = torch.from_numpy(symmetry_group("C3"))
    inputs = tuple(
        torch.randn(*shape, dtype=torch.float64, requires_grad=True) for shape in ((3, 10), (3, 2), (3,))
    )
    target = torch.randn(3, 2, dtype=torch.float64)

    def loss(theta: torch.Tensor, shift: torch.Tensor, log_variance: torch.Tensor) -> torch.Tensor:
        output = NetworkOutput(matrix_from_upper(theta), shift, log_variance, torch.zeros(3, 1))
        return pose_loss(output, q, target, group, 0.3)[0]

    assert gradcheck(loss, inputs)


def test_pose_loss_gradient_for_flat_and_sharp_posteriors() -> None:
    q = random_quaternions(3, torch.Generator().manual_seed(0))
    for scale in (0.0, 1.0, 1e4):
        theta = (torch.randn(3, 10) * scale).requires_grad_()
        shift = torch.zeros(3, 2, requires_grad=True)
        output = NetworkOutput(matrix_from_upper(theta), shift, torch.zeros(3), torch.zeros(3, 1))
        loss, orientation = pose_loss(output, q, torch.ones(3, 2), None, 0.1)
        loss.backward()
        assert torch.isfinite(theta.grad).all()
        assert torch.isfinite(orientation)
        assert shift.grad.abs().sum() > 0
