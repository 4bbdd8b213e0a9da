"""Predictions in one asymmetric unit: orientation and Bingham numbers move together, for every group."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch

from cryoforum_plugin.confidence.calibration import Calibration, calibrated
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import (
    angular_distance,
    angular_distance_to_group,
    in_asymmetric_unit,
    random_quaternions,
    reduce_to_asymmetric_unit,
    symmetry_group,
)
from cryoforum_plugin.posterior import (
    gaps,
    matrix_from_upper,
    mode,
    negative_log_likelihood,
    reduce_bingham,
    upper_from_matrix,
)

GROUPS = ["C1", "C2", "C7", "D1", "D2", "D3Y", "D7", "T", "O", "I", "I1", "I2", "I3", "I4"]


@pytest.fixture
def matrices(generator: torch.Generator) -> torch.Tensor:
    """Return 200 Bingham matrices `(200, 4, 4)`, float64."""
    return matrix_from_upper(200 * torch.randn(200, 10, generator=generator, dtype=torch.double))


@pytest.mark.parametrize("name", GROUPS)
def test_mode_and_likelihood_move_into_the_unit_together(name: str, matrices: torch.Tensor) -> None:
    group = torch.from_numpy(symmetry_group(name))
    reduced = reduce_bingham(matrices, name)
    before, after = mode(matrices), mode(reduced)
    assert in_asymmetric_unit(after, name).all()
    assert angular_distance(after, reduce_to_asymmetric_unit(before, name)).max() < 1e-6
    assert angular_distance_to_group(after, before, group).max() < 1e-6
    torch.testing.assert_close(gaps(reduced), gaps(matrices), rtol=1e-9, atol=1e-8)
    q = random_quaternions(200, torch.Generator().manual_seed(1)).double()
    torch.testing.assert_close(
        negative_log_likelihood(reduced, q, group), negative_log_likelihood(matrices, q, group)
    )
    torch.testing.assert_close(reduce_bingham(reduced, name), reduced, rtol=1e-9, atol=1e-6)


@pytest.mark.parametrize("name", GROUPS)
def test_calibrated_predictions_of_all_mates_are_the_same(
    name: str, matrices: torch.Tensor, generator: torch.Generator
) -> None:
    group = torch.from_numpy(symmetry_group(name))
    chosen = group[torch.randint(len(group), (200,), generator=generator)]
    moved = _turned(matrices, chosen)
    first, second = (
        calibrated(_raw(a), Calibration(2.0, 1.0), np.zeros(200), symmetry=name) for a in (matrices, moved)
    )
    q, p = (torch.from_numpy(one.rotation) for one in (first, second))
    # rounding decides between copies on an edge; none of these poses lies on one
    assert angular_distance(q, p).max() < 1e-5
    np.testing.assert_allclose(first.bingham, second.bingham, rtol=1e-5, atol=1e-3)
    for field in ("confidence", "expected_error_deg", "credible_radius_90_deg", "lambda_max", "trace"):
        np.testing.assert_allclose(getattr(first, field), getattr(second, field), rtol=1e-4, atol=1e-6)
    assert in_asymmetric_unit(q, name).all()
    exported = mode(matrix_from_upper(torch.from_numpy(first.bingham)))
    assert angular_distance(exported, q).max() < 1e-6


def _turned(matrices: torch.Tensor, operators: torch.Tensor) -> torch.Tensor:
    """A of S * q, written with a change of basis rather than with the function under test."""
    basis = torch.eye(4, dtype=torch.double).expand(len(operators), 4, 4)
    left = roma.quat_product(operators[:, None].expand(-1, 4, 4), basis).mT  # columns S * e_k
    return left @ matrices @ left.mT


def _raw(matrices: torch.Tensor) -> RawPrediction:
    n = len(matrices)
    return RawPrediction(
        upper_from_matrix(matrices),
        torch.zeros(n, 2),
        torch.ones(n),
        torch.zeros(n, 3),
        torch.zeros(n, dtype=torch.bool),
    )
