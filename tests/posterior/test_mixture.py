"""Mixtures of Binghams: likelihood, matching of modes, and figures from weighted samples."""

from __future__ import annotations

import math

import pytest
import torch

from cryoforum_plugin.geometry import random_quaternions, symmetry_group
from cryoforum_plugin.geometry.rotations import left_multiplication_matrix
from cryoforum_plugin.posterior import (
    matrix_from_upper,
    negative_log_likelihood,
    summarise,
    upper_from_matrix,
)
from cryoforum_plugin.posterior.mixture import (
    heaviest_first,
    match_modes,
    mixture_negative_log_likelihood,
)
from cryoforum_plugin.posterior.sampling import summarise_mixture, weighted_samples


def modes_at(q: torch.Tensor, gap: float) -> torch.Tensor:
    """Isotropic Bingham matrices with modes `q`."""
    return gap * (torch.eye(4).double() - q.unsqueeze(-1) * q.unsqueeze(-2))


def random(*shape: int, seed: int = 1) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("symmetry", ["C1", "D2"])
def test_likelihood_is_the_weighted_sum_of_densities(symmetry: str) -> None:
    modes, q = matrix_from_upper(5 * random(6, 3, 10)), random_quaternions(6, torch.Generator()).double()
    log_weight, group = random(6, 3, seed=2).log_softmax(1), torch.from_numpy(symmetry_group(symmetry))
    each = torch.stack([negative_log_likelihood(modes[:, k], q, group) for k in range(3)], dim=1)
    expected = -(log_weight.exp() * (-each).exp()).sum(1).log()
    torch.testing.assert_close(mixture_negative_log_likelihood(modes, log_weight, q, group), expected)
    # as probability densities they integrate to 1 over all rotations
    if symmetry == "C1":
        mild = matrix_from_upper(random(1, 3, 10)).expand(20_000, 3, 4, 4)
        anywhere = random_quaternions(20_000, torch.Generator().manual_seed(3)).double()
        density = (-mixture_negative_log_likelihood(mild, log_weight[:1].expand(20_000, 3), anywhere)).exp()
        assert float(density.mean()) == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("symmetry", ["C1", "C3"])
def test_modes_are_matched_whatever_their_order_and_copy(symmetry: str) -> None:
    q = random_quaternions(60, torch.Generator().manual_seed(4)).double().view(20, 3, 4)
    reference, weight = modes_at(q, 30.0), torch.full((20, 3), 1 / 3).double()
    order, group = torch.tensor([2, 0, 1]), torch.from_numpy(symmetry_group(symmetry))
    left = left_multiplication_matrix(group[-1])
    mixed = (left @ reference @ left.mT)[:, order]
    found = match_modes(mixed, reference, weight, group)
    assert torch.equal(order[found], torch.arange(3).expand(20, 3))


def test_heaviest_comes_first() -> None:
    modes, log_weight = random(5, 3, 10), random(5, 3).log_softmax(1)
    ordered, weights = heaviest_first(modes, log_weight)
    assert (weights.diff(dim=1) <= 0).all()
    assert torch.equal(ordered[:, 0], modes[torch.arange(5), log_weight.argmax(1)])


@pytest.mark.parametrize("scale", [0.0, 3.0, 300.0, 1e5])
def test_samples_have_the_moments_of_the_distribution(scale: float) -> None:
    matrix = matrix_from_upper(scale * random(4, 10))
    rotation, weight = weighted_samples(matrix)
    torch.testing.assert_close(weight.sum(-1), torch.ones(4).double())
    exact = summarise(upper_from_matrix(matrix), math.radians(5), 0.9)
    # a mixture whose modes are all the same is that one Bingham, the first mode exactly
    several = upper_from_matrix(matrix)[:, None].expand(4, 3, 10)
    mixed = summarise_mixture(several, torch.full((4, 3), -math.log(3)).double(), math.radians(5), 0.9)
    assert rotation.shape == (4, 256, 4)
    torch.testing.assert_close(mixed[:, 0], exact[:, 0], atol=0.02, rtol=0.05)
    torch.testing.assert_close(mixed[:, 1:], exact[:, 1:], atol=1e-3, rtol=0.1)


def test_a_second_mode_far_away_costs_confidence_and_widens_the_ball() -> None:
    q = torch.eye(4).double()[[3, 0]]  # no turn, half a turn about x
    modes = upper_from_matrix(modes_at(q, 2000.0)).expand(2, 2, 10)
    weight = torch.tensor([[0.97, 0.03], [0.6, 0.4]]).double()
    alone = summarise(modes[:, 0], math.radians(5), 0.9)
    found = summarise_mixture(modes, weight.log(), math.radians(5), 0.9)
    torch.testing.assert_close(found[:, 0], weight[:, 0] * alone[:, 0], rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(
        found[:, 1], weight[:, 0] * alone[:, 1] + weight[:, 1] * math.pi, rtol=0.02, atol=0
    )
    assert alone[0, 2] < found[0, 2] < 2 * alone[0, 2]
    assert found[1, 2] > 3
