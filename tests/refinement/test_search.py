"""Starts from a grid of poses, scored on low frequencies."""

from __future__ import annotations

import math

import numpy as np
import pytest
import roma
import torch
from blobs import blob_positions, blob_volume

from cryoforum_plugin.geometry import angular_distance_to_group, random_quaternions, symmetry_group
from cryoforum_plugin.refinement.refine import LAST_STEPS, MARCH, march
from cryoforum_plugin.refinement.search import APART_DEG, GridSearch
from cryoforum_plugin.refinement.slices import FourierPoints, GradientSlicer
from cryoforum_plugin.refinement.solver import Observed, Solver

N, PIXEL_A, DIAMETER_A = 32, 5.0, 110.0


def solver_of(volume: torch.Tensor) -> Solver:
    points = FourierPoints(N, 12.0)
    return Solver(GradientSlicer(volume, points))


def seen(solver: Solver, q: torch.Tensor, shift_px: torch.Tensor, noise: float) -> Observed:
    """Images of the volume at poses q, displaced by -shift, with CTF and noise."""
    count = len(solver.points.k)
    transfer = (0.3 + torch.rand(len(q), count, generator=torch.Generator().manual_seed(2))) * torch.tensor(
        [1.0, -1.0]
    )[torch.randint(2, (len(q), 1), generator=torch.Generator().manual_seed(3))]
    phase = torch.polar(torch.ones(len(q), count), shift_px @ solver.points.k.T * (2 * math.pi / N))
    data = solver.slicer.values(roma.unitquat_to_rotmat(q), count) * transfer * phase
    noisy = torch.randn(data.shape, dtype=data.dtype, generator=torch.Generator().manual_seed(4))
    return Observed(data + noise * data.abs().mean() * noisy, transfer)


@pytest.mark.parametrize("symmetry", ["C1", "C4"])
def test_the_best_pose_of_the_grid_is_the_nearest(symmetry: str) -> None:
    volume = blob_volume(blob_positions())
    if symmetry == "C4":
        volume = sum(torch.rot90(volume[1:, 1:, 1:], k, (1, 2)) for k in range(4))
        volume = torch.nn.functional.pad(volume, [1, 0] * 3)
    solver = solver_of(volume)
    grid = GridSearch(solver, symmetry, 0.16 * DIAMETER_A, N * PIXEL_A)
    assert len(grid.grid) == pytest.approx(9216 / len(symmetry_group(symmetry)), rel=0.1)
    q = random_quaternions(40, torch.Generator().manual_seed(1))
    shift_px = torch.tensor([1.5, -2.0]).expand(40, 2)
    gains = grid.gains(seen(solver, q, shift_px, 0.7), shift_px)
    starts = grid.starts(gains, 3)
    group = torch.from_numpy(symmetry_group(symmetry)).float()
    error = torch.rad2deg(angular_distance_to_group(starts[:, 0], q, group))
    assert float((error < 12).float().mean()) > 0.9
    apart = torch.rad2deg(2 * (starts[:, 0] * starts[:, 1]).sum(1).abs().clamp(max=1).acos())
    assert float(apart.min()) > APART_DEG - 0.1


def test_the_gain_is_the_likelihood_at_the_best_contrast() -> None:
    solver = solver_of(blob_volume(blob_positions()))
    grid = GridSearch(solver, "C1", 0.16 * DIAMETER_A, N * PIXEL_A)
    q, shift_px = random_quaternions(3, torch.Generator().manual_seed(1)), torch.rand(3, 2)
    observed = seen(solver, q, shift_px, 1.0)
    gains = grid.gains(observed, shift_px)
    count, number = grid.count, 17
    phase = torch.polar(
        observed.transfer[:, :count], shift_px @ solver.points.k[:count].T * (2 * math.pi / N)
    )
    model, data = phase * grid.slices[number], observed.data[:, :count]
    scale = ((model.conj() * data).real.sum(1) / model.abs().square().sum(1)).clamp(min=0)
    expected = (data.abs().square().sum(1) - (data - scale[:, None] * model).abs().square().sum(1)) / 2
    torch.testing.assert_close(gains[:, number], expected, rtol=1e-3, atol=1e-2 * float(gains.max()) / 100)


def test_stages_march_from_the_first_frequency_to_the_last() -> None:
    coarse, fine = march(10.0, 40.0)
    parts = np.array([part for part, _ in fine]) * 40
    assert coarse[0] == (0.25, 3)
    assert parts[-1] == 40
    assert (np.diff([10, *parts]) > 0).all()
    assert (np.array([*parts]) / np.array([10, *parts[:-1]]) <= MARCH**1.25 + 1e-9).all()
    assert march(50.0, 40.0) == (((1.0, 3),), ((1.0, LAST_STEPS),))
