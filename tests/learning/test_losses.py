"""Losses: exact gradients, degenerate input, and that they are minimal at the truth."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

from cryoforum_plugin.geometry import in_plane_quaternion, random_quaternions, symmetry_group
from cryoforum_plugin.learning.losses import (
    curriculum,
    distance_loss,
    orientation_loss,
    shift_negative_log_likelihood,
)
from cryoforum_plugin.network import PoseNetwork
from cryoforum_plugin.posterior import matrix_from_upper
from cryoforum_plugin.settings import LossSettings, NetworkSettings


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


WEIGHTS = {
    "likelihood": LossSettings(),
    "geodesic": LossSettings(likelihood=0.0, geodesic=1.0),
    "chordal": LossSettings(likelihood=0.0, chordal=1.0),
    "mixture": LossSettings(likelihood=0.3, geodesic=0.5, chordal=0.7),
}


@pytest.mark.parametrize("name", WEIGHTS)
@pytest.mark.parametrize("symmetry", ["C1", "C3"])
def test_orientation_loss_gradient_in_float64(name: str, symmetry: str) -> None:
    q = random_quaternions(3, torch.Generator().manual_seed(0)).double()
    group = torch.from_numpy(symmetry_group(symmetry))
    theta = torch.randn(3, 10, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    theta.requires_grad_()
    # roma damps the gradient of the mode by 1e-5
    assert gradcheck(
        lambda t: orientation_loss(matrix_from_upper(t), q, group, WEIGHTS[name]), theta, atol=1e-3, rtol=1e-3
    )


@pytest.mark.parametrize("name", WEIGHTS)
def test_orientation_loss_is_least_at_the_label_and_the_same_at_its_copies(name: str) -> None:
    q = random_quaternions(5, torch.Generator().manual_seed(0)).double()
    group = torch.from_numpy(symmetry_group("D2"))

    def loss_at(label: torch.Tensor) -> torch.Tensor:
        identity = torch.eye(4).double().expand(5, 4, 4)
        return orientation_loss(50 * (identity - q[:, :, None] * q[:, None, :]), label, group, WEIGHTS[name])

    for operator in group:
        assert torch.allclose(loss_at(roma.quat_product(operator.expand(5, 4), q)), loss_at(q), atol=1e-6)
    turned = roma.quat_product(in_plane_quaternion(torch.full((5,), 0.3)).double(), q)
    assert (loss_at(turned) > loss_at(q) + 1e-3).all()


def test_mixture_is_the_weighted_sum() -> None:
    q = random_quaternions(4, torch.Generator().manual_seed(0))
    matrix = matrix_from_upper(torch.randn(4, 10, generator=torch.Generator().manual_seed(1)))
    group = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    parts = {
        name: orientation_loss(matrix, q, group, WEIGHTS[name])
        for name in ("likelihood", "geodesic", "chordal")
    }
    mixed = orientation_loss(matrix, q, group, WEIGHTS["mixture"])
    assert torch.allclose(mixed, 0.3 * parts["likelihood"] + 0.5 * parts["geodesic"] + 0.7 * parts["chordal"])
    # |p - q|^2 = 2 - 2 cos(d / 2)
    assert torch.allclose(parts["chordal"], 2 - 2 * torch.cos(parts["geodesic"] / 2), atol=1e-9)


@pytest.mark.parametrize("name", WEIGHTS)
def test_orientation_loss_gradient_for_flat_and_sharp_posteriors(name: str) -> None:
    q = random_quaternions(3, torch.Generator().manual_seed(0))
    group = torch.tensor([[0.0, 0.0, 0.0, 1.0]])
    for scale in (0.0, 1.0, 1e4):
        theta = (torch.randn(3, 10) * scale).requires_grad_()
        loss = orientation_loss(matrix_from_upper(theta), q, group, WEIGHTS[name])
        loss.sum().backward()
        assert torch.isfinite(loss).all()
        assert torch.isfinite(theta.grad).all()


def test_distance_loss_is_the_mean_error_of_the_distances() -> None:
    generator = torch.Generator().manual_seed(0)
    known, found = random_quaternions(6, generator).double(), random_quaternions(6, generator).double()
    matrix = 50 * (torch.eye(4).double() - found[:, :, None] * found[:, None, :])
    first, second = torch.triu_indices(6, 6, 1)
    group = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).double()
    rotations = [Rotation.from_quat(q.numpy()) for q in (known, found)]
    angles = [(r[first.numpy()].inv() * r[second.numpy()]).magnitude() for r in rotations]
    expected = np.abs(angles[0] - angles[1]).mean()
    assert abs(float(distance_loss(matrix, known, first, second, group)) - expected) < 1e-6
    # a common rotation of all poses changes no distance
    turned = roma.quat_product(random_quaternions(1, generator).double().expand(6, 4), found)
    same = 50 * (torch.eye(4).double() - turned[:, :, None] * turned[:, None, :])
    assert torch.allclose(
        distance_loss(same, known, first, second, group), distance_loss(matrix, known, first, second, group)
    )


def test_curriculum_goes_from_distances_to_orientations() -> None:
    assert curriculum(0.0) == (0.0, 1.0)
    assert curriculum(0.25) == (0.5, 0.5)  # beta_1 = 1/4 for each of two images, beta_2 = 1/2
    assert curriculum(1.0) == (1.0, 0.0)


@pytest.mark.parametrize("encoder", ["polar", "vgg"])
def test_one_pass_gives_the_gradient_of_the_explicit_siamese_double_pass(encoder: str) -> None:
    """Both on the same pairs, with batch statistics fixed (they differ between the branches)."""
    torch.manual_seed(0)
    count, generator = 6, torch.Generator().manual_seed(1)
    settings = NetworkSettings(encoder=encoder, channels=4, features=8, hidden=16, representation="qcqp")
    network = PoseNetwork(32, settings).double().eval()
    images = torch.randn(count, 1, 32, 32, dtype=torch.float64, generator=generator)
    known = random_quaternions(count, generator).double()
    first, second = torch.triu_indices(count, count, 1)
    group, weights = torch.tensor([[0.0, 0.0, 0.0, 1.0]]), WEIGHTS["geodesic"]

    def gradient(loss: torch.Tensor) -> torch.Tensor:
        network.zero_grad()
        loss.backward()
        return torch.cat([p.grad.flatten() for p in network.parameters() if p.grad is not None])

    bingham = network(images).bingham
    one_pass = gradient(
        0.6 * orientation_loss(bingham, known, group, weights).mean()
        + 0.4 * distance_loss(bingham, known, first, second, group)
    )
    branches = torch.cat([network(images[first]).bingham, network(images[second]).bingham])
    labels, pairs = torch.cat([known[first], known[second]]), len(first)
    rows = torch.arange(pairs)
    # every image is in as many pairs as any other, so that the mean over branches is that over images
    double_pass = gradient(
        0.6 * orientation_loss(branches, labels, group, weights).mean()
        + 0.4 * distance_loss(branches, labels, rows, rows + pairs, group)
    )
    assert one_pass.abs().max() > 0
    assert (one_pass - double_pass).abs().max() < 1e-6 * one_pass.abs().max()
