"""Every representation's matrix is a Bingham distribution about the rotation that is meant."""

from __future__ import annotations

import pytest
import roma
import torch
from torch import Tensor
from torch.autograd import gradcheck

from cryoforum_plugin.geometry import angular_distance, random_quaternions
from cryoforum_plugin.network.representation import NUMBERS, Representation, quaternion_outer_product
from cryoforum_plugin.posterior import gaps, mode, negative_log_likelihood


def random(kind: str, n: int = 20) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    return 2 * torch.randn(n, NUMBERS[kind], dtype=torch.float64, generator=generator)


def direct_quaternion(kind: str, theta: Tensor) -> Tensor:
    """The quaternion that 4 or 6 numbers mean, without any matrix A."""
    if kind == "quaternion":
        return theta / theta.norm(dim=-1, keepdim=True)
    columns = torch.stack([theta[..., :3], theta[..., 3:]], dim=-1)
    return roma.rotmat_to_unitquat(roma.special_gramschmidt(columns))


def test_outer_product_of_the_quaternion_is_linear_in_the_rotation_matrix() -> None:
    q = torch.randn(50, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    q = q / q.norm(dim=-1, keepdim=True)
    half_turns = torch.eye(4, dtype=torch.float64)  # w = 0: where conversions branch
    for quaternion in (q, half_turns):
        expected = quaternion.unsqueeze(-1) * quaternion.unsqueeze(-2)
        assert torch.allclose(quaternion_outer_product(roma.unitquat_to_rotmat(quaternion)), expected)


@pytest.mark.parametrize("kind", ["quaternion", "6d"])
def test_mode_is_the_rotation_and_the_width_is_the_same_for_all(kind: str) -> None:
    representation = Representation(kind).double()
    theta = random(kind)
    matrix = representation(theta)
    assert angular_distance(mode(matrix), direct_quaternion(kind, theta)).max() < 1e-6
    assert torch.allclose(gaps(matrix), torch.full((20, 3), 100.0, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["quaternion", "6d"])
def test_gradient_through_the_mode_is_that_of_the_rotation_itself(kind: str) -> None:
    label = random_quaternions(20, torch.Generator().manual_seed(1)).double()
    theta = random(kind).requires_grad_()
    representation = Representation(kind).double()
    paths = [mode(representation(theta)), direct_quaternion(kind, theta)]
    gradients = [torch.autograd.grad(angular_distance(q, label).mean(), theta)[0] for q in paths]
    assert torch.allclose(*gradients, rtol=1e-5, atol=1e-8)


def test_qcqp_is_the_paper_s_triangular_product() -> None:
    theta = random("qcqp", 1)
    a, b, c, d, e, f, g, h, i, j = theta[0].tolist()
    upper = torch.tensor([[a, b, c, d], [0, e, f, g], [0, 0, h, i], [0, 0, 0, j]], dtype=torch.float64)
    matrix = Representation("qcqp")(theta)
    assert torch.allclose(matrix[0], upper @ upper.T)
    assert torch.linalg.eigvalsh(matrix).min() > 0


@pytest.mark.parametrize("kind", list(NUMBERS))
def test_matrices_are_symmetric_with_right_gradients(kind: str) -> None:
    representation = Representation(kind).double()
    theta = random(kind, 6).reshape(2, 3, -1).requires_grad_()
    matrix = representation(theta)
    assert matrix.shape == (2, 3, 4, 4)
    assert torch.allclose(matrix, matrix.mT)
    assert gradcheck(lambda theta, *_: representation(theta), (theta, *representation.parameters()))


@pytest.mark.parametrize("kind", list(NUMBERS))
def test_gradients_are_finite_where_the_rotation_is_undefined(kind: str) -> None:
    representation = Representation(kind)
    nothing = torch.zeros(3, NUMBERS[kind])
    parallel = torch.ones(3, NUMBERS[kind])
    opposite = parallel * torch.tensor([1, 1, 1, -1, -1, -1, 1, 1, 1, 1])[: NUMBERS[kind]]
    label = random_quaternions(3, torch.Generator().manual_seed(1)).double()
    for values in (nothing, parallel, opposite, 1e-30 * parallel, 100 * parallel):
        theta = values.clone().requires_grad_()
        matrix = representation(theta)
        loss = angular_distance(mode(matrix), label).sum() + negative_log_likelihood(matrix, label).sum()
        loss.backward()
        for tensor in (matrix, loss, theta.grad, *(p.grad for p in representation.parameters())):
            assert torch.isfinite(tensor).all()
