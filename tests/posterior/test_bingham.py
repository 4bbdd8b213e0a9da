"""The Bingham distribution against Monte Carlo, closed forms and its own gradients."""

from __future__ import annotations

import math

import pytest
import roma
import torch
from scipy.spatial.transform import Rotation
from torch.autograd import gradcheck

from cryoforum_plugin.geometry import (
    angular_distance,
    left_multiplication_matrix,
    random_quaternions,
    symmetry_group,
)
from cryoforum_plugin.posterior import (
    align_to_copy,
    credible_radius,
    gaps,
    log_normaliser,
    matrix_about,
    matrix_from_upper,
    mean_angle,
    mode,
    negative_log_likelihood,
    probability_within,
    summarise,
    upper_from_matrix,
)

CASES = [(0.0, 30.0, 60.0), (5.0, 10.0, 20.0), (1.0, 100.0, 200.0), (30.0, 40.0, 60.0)]


@pytest.fixture(scope="module")
def uniform() -> torch.Tensor:
    return random_quaternions(1_000_000, torch.Generator().manual_seed(0)).double()


def diagonal(gap: tuple[float, float, float]) -> torch.Tensor:
    """A with mode (0, 0, 0, 1) and the given gaps."""
    return torch.diag(torch.tensor([*gap, 0.0], dtype=torch.float64))


def test_upper_triangle_round_trip() -> None:
    theta = torch.randn(5, 10)
    matrix = matrix_from_upper(theta)
    assert torch.equal(matrix, matrix.mT)
    assert torch.equal(upper_from_matrix(matrix), theta)
    assert torch.equal(matrix[0, 1], theta[0, [1, 4, 5, 6]])


@pytest.mark.parametrize("gap", CASES)
def test_normaliser_equals_monte_carlo(gap: tuple[float, float, float], uniform: torch.Tensor) -> None:
    energy = (uniform[:, :3].square() * torch.tensor(gap)).sum(1)
    assert float(log_normaliser(torch.tensor(gap))) == pytest.approx(
        math.log(torch.exp(-energy).mean()), abs=0.02
    )


def test_normaliser_limits() -> None:
    assert float(log_normaliser(torch.zeros(3))) == pytest.approx(0.0, abs=1e-12)
    gap = torch.tensor([1e5, 2e5, 3e5], dtype=torch.float64)
    laplace = 0.5 * torch.log(math.pi / gap).sum() - math.log(math.pi**2)
    assert float(log_normaliser(gap)) == pytest.approx(float(laplace), abs=1e-4)


@pytest.mark.parametrize("gap", [(5.0, 5.0, 5.0), (0.0, 0.0, 0.0), (1.0, 4.0, 9.0)])
def test_gradients_are_exact_also_at_ties(gap: tuple[float, float, float]) -> None:
    theta = upper_from_matrix(diagonal(gap))[None].requires_grad_()
    q = random_quaternions(1, torch.Generator().manual_seed(1)).double()
    negative_log_likelihood(matrix_from_upper(theta), q).sum().backward()
    assert torch.isfinite(theta.grad).all()
    if len(set(gap)) == 3:
        group = torch.from_numpy(symmetry_group("D2"))
        for g in (None, group):
            assert gradcheck(lambda t, g=g: negative_log_likelihood(matrix_from_upper(t), q, g), (theta,))


def test_mode_is_the_smallest_eigenvector_with_a_finite_gradient_at_zero() -> None:
    theta = torch.randn(20, 10, dtype=torch.float64)
    vector = torch.linalg.eigh(matrix_from_upper(theta))[1][..., 0]
    assert torch.allclose(
        (mode(matrix_from_upper(theta)) * vector).sum(-1).abs(), torch.ones(20, dtype=torch.float64)
    )
    zero = torch.zeros(1, 10, dtype=torch.float64, requires_grad=True)
    mode(matrix_from_upper(zero))[0, 0].backward()
    assert torch.isfinite(zero.grad).all()


def test_likelihood_is_a_density(uniform: torch.Tensor) -> None:
    a = matrix_from_upper(torch.randn(10, generator=torch.Generator().manual_seed(3)) * 10)
    density = torch.exp(-negative_log_likelihood(a.expand(len(uniform), 4, 4), uniform))
    assert float(density.mean()) == pytest.approx(1.0, abs=0.03)


def test_likelihood_ignores_sign_and_symmetry_copy() -> None:
    group = torch.from_numpy(symmetry_group("D2"))
    a = matrix_from_upper(torch.randn(6, 10, dtype=torch.float64))
    q = random_quaternions(6, torch.Generator().manual_seed(2)).double()
    first = negative_log_likelihood(a, q, group)
    assert torch.allclose(first, negative_log_likelihood(a, -q, group))
    for operator in group:
        copy = roma.quat_product(operator.expand_as(q).contiguous(), q)
        assert torch.allclose(first, negative_log_likelihood(a, copy, group))
    assert not torch.allclose(first, negative_log_likelihood(a, q))


@pytest.mark.parametrize("gap", CASES)
def test_radii_probabilities_and_means_equal_monte_carlo(
    gap: tuple[float, float, float], uniform: torch.Tensor
) -> None:
    weight = torch.exp(-(uniform[:, :3].square() * torch.tensor(gap)).sum(1))
    angle, order = (2 * torch.acos(uniform[:, 3].abs().clamp(max=1))).sort()
    cumulative = weight[order].cumsum(0) / weight.sum()
    bingham = upper_from_matrix(diagonal(gap))[None]
    for level in (0.5, 0.9, 0.95):
        expected = float(angle[torch.searchsorted(cumulative, level)])
        assert float(credible_radius(bingham, level)) == pytest.approx(expected, rel=0.02)
    assert float(mean_angle(bingham)) == pytest.approx(
        float((angle * weight[order]).sum() / weight.sum()), rel=0.02
    )
    inside = float(cumulative[torch.searchsorted(angle, 0.5)])
    assert float(probability_within(bingham, 0.5)) == pytest.approx(inside, abs=0.01)
    together = summarise(bingham, 0.5, 0.9)[0]
    assert together.tolist() == pytest.approx(
        [
            float(probability_within(bingham, 0.5)),
            float(mean_angle(bingham)),
            float(credible_radius(bingham, 0.9)),
        ]
    )


def test_sharp_isotropic_radius_is_that_of_three_normals() -> None:
    sigma = 1e-3
    bingham = upper_from_matrix(diagonal((2 / sigma**2,) * 3))[None]
    assert float(credible_radius(bingham, 0.9)) == pytest.approx(2.5003 * sigma, rel=3e-3)
    assert float(mean_angle(bingham)) == pytest.approx(2 * math.sqrt(2 / math.pi) * sigma, rel=3e-3)


def test_flat_distribution_covers_all_rotations() -> None:
    flat = torch.zeros(1, 10)
    assert float(probability_within(flat, math.radians(5))) == pytest.approx(
        (math.radians(5) - math.sin(math.radians(5))) / math.pi, rel=0.35
    )
    assert float(mean_angle(flat)) == pytest.approx(math.pi / 2 + 2 / math.pi, rel=1e-3)
    assert torch.isfinite(gaps(matrix_from_upper(flat))).all()


def test_align_to_copy_moves_the_mode_by_an_operator() -> None:
    group = torch.from_numpy(symmetry_group("D2"))
    a = matrix_from_upper(torch.randn(8, 10, dtype=torch.float64) * 5)
    operator = group[torch.arange(8) % 4]
    left = left_multiplication_matrix(operator)
    moved = left @ a @ left.mT
    assert torch.allclose(
        angular_distance(mode(moved), roma.quat_product(operator, mode(a))),
        torch.zeros(8).double(),
        atol=1e-6,
    )
    assert torch.allclose(align_to_copy(moved, mode(a), group), a, atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e4])
def test_mode_and_its_gradient_do_not_depend_on_the_scale_of_ties(scale: float) -> None:
    tied = (
        scale * torch.ones(4, 4, dtype=torch.float64)
    ).requires_grad_()  # three equal smallest eigenvalues
    mode(tied)[0].backward()
    assert torch.isfinite(tied.grad).all()
    generator = torch.Generator().manual_seed(0)
    matrix = matrix_from_upper(torch.randn(5, 10, generator=generator, dtype=torch.float64)).requires_grad_()
    target = random_quaternions(5, generator).double()
    gradients = []
    for factor in (1.0, scale):
        agreement = torch.einsum("bi,bi->b", mode(factor * matrix), target).square().sum()
        gradients.append(torch.autograd.grad(agreement, matrix)[0])
    torch.testing.assert_close(gradients[0], gradients[1])


def test_a_posterior_has_the_precision_it_was_made_from() -> None:
    q = torch.from_numpy(Rotation.random(5, random_state=1).as_quat())
    root = torch.randn(5, 3, 3, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    precision = 1e4 * (root @ root.mT + torch.eye(3))
    matrix = matrix_about(q, precision)
    assert float(angular_distance(mode(matrix), q).max()) < 1e-6
    turn = 1e-3 * torch.randn(5, 3, dtype=torch.double, generator=torch.Generator().manual_seed(2))
    moved = torch.from_numpy((Rotation.from_rotvec(turn.numpy()) * Rotation.from_quat(q.numpy())).as_quat())
    energy = torch.einsum("bi,bij,bj->b", moved, matrix, moved)
    torch.testing.assert_close(
        energy, torch.einsum("bi,bij,bj->b", turn, precision, turn) / 2, rtol=1e-3, atol=0
    )
