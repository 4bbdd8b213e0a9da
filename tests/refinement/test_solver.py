"""Slices with gradients, and the solver: it ends where the noise sets the limit, and knows how far off it is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import roma
import torch
from blobs import blob_positions, blob_volume
from torch import Tensor

from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.particles import Ctf
from cryoforum_plugin.refinement.slices import FourierPoints, GradientSlicer
from cryoforum_plugin.refinement.solver import Refined, Solver, whiten

PIXEL_A, SIZE = 5.0, 32
STAGES = ((0.35, 3), (0.55, 2), (0.8, 2), (1.0, 4))  # parts of the highest frequency, steps at each


def volume() -> Tensor:
    return torch.as_tensor(blob_volume(blob_positions())).float()


def rotations(count: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    quaternion = torch.nn.functional.normalize(torch.randn(count, 4, generator=generator), dim=1)
    return roma.unitquat_to_rotmat(quaternion)


def test_points_stand_for_the_whole_plane() -> None:
    points = FourierPoints(SIZE, SIZE / 2)
    ky, kx = np.meshgrid(np.fft.fftfreq(SIZE, 1 / SIZE), np.fft.fftfreq(SIZE, 1 / SIZE), indexing="ij")
    inside = (kx**2 + ky**2 < (SIZE / 2) ** 2) & (kx**2 + ky**2 > 0)
    assert float(2 * points.multiplicity.sum()) == inside.sum()
    assert (points.radius.diff() >= 0).all()
    assert points.count(5.0) == int((points.radius < 5).sum())


def test_slices_are_those_of_the_projector() -> None:
    points, R = FourierPoints(SIZE, SIZE / 2), rotations(20, 1)
    slicer = GradientSlicer(volume(), points)
    expected = Projector(volume(), PIXEL_A).slices(R).flatten(1)[:, points.index]
    count = len(points.k)
    torch.testing.assert_close(
        slicer.values(R, count), expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max())
    )
    value, _ = slicer.values_and_gradients(R, count)
    torch.testing.assert_close(value, slicer.values(R, count))
    few, _ = slicer.values_and_gradients(R, 50)
    torch.testing.assert_close(few, value[:, :50])


@pytest.mark.parametrize("scale", [1.0, 1.5])
def test_gradients_are_those_of_a_finer_grid(scale: float) -> None:
    """Finite differences on a grid padded eightfold; trilinear interpolation leaves an error of a few per cent."""
    points, R, eps = FourierPoints(SIZE, 8), rotations(20, 2), 1e-2
    coarse = GradientSlicer(volume(), points, scale=scale)
    fine = GradientSlicer(volume(), points, padding=8, scale=scale)
    count = len(points.k)
    _, gradient = coarse.values_and_gradients(R, count)
    for axis in range(3):
        turn = torch.zeros(3)
        turn[axis] = eps
        ahead, behind = (fine.values(roma.rotvec_to_rotmat(s * turn) @ R, count) for s in (1, -1))
        expected = (ahead - behind) / (2 * eps)
        error = (gradient[:, axis] - expected).abs().square().sum() / expected.abs().square().sum()
        assert error < 0.06**2


class Simulated:
    """Noisy images of the blobs with known poses, whitened."""

    def __init__(self, count: int, snr: float, seed: int = 3) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.R = rotations(count, seed)
        self.shift_px = 4 * torch.rand(count, 2, generator=generator) - 2
        ones = np.ones(count)
        defocus = 1e4 + 1.5e4 * torch.rand(count, generator=generator).numpy()
        ctf = ctf_2d(
            Ctf(defocus, defocus - 500, 30 * ones, 300 * ones, 2.7 * ones, 0.1 * ones, 0 * ones),
            SIZE,
            PIXEL_A,
        )
        images = Projector(volume(), PIXEL_A, padding=4).project(self.R, ctf, self.shift_px * PIXEL_A)
        sd = (images.var(dim=(1, 2)).mean() / snr).sqrt()
        images = images + sd * torch.randn(images.shape, generator=generator)
        self.points = FourierPoints(SIZE, SIZE / 2)
        power = torch.full((count, SIZE // 2 + 1), float(sd) ** 2 * SIZE**2)
        transforms = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
        self.observed = replace(whiten(transforms, ctf, power, self.points), usual=torch.ones(count))
        self.solver = Solver(GradientSlicer(volume(), self.points))
        noise = torch.randn(count, 3, generator=generator)
        self.start = roma.rotvec_to_rotmat(0.08 * noise) @ self.R
        self.start_px = self.shift_px + torch.randn(count, 2, generator=generator)

    def errors(self, R: Tensor) -> Tensor:
        return roma.rotmat_geodesic_distance(R, self.R)


def test_the_solver_reaches_the_limit_of_the_noise() -> None:
    data = Simulated(200, snr=1.0)
    found = data.solver.refine(data.observed, data.start, data.start_px, STAGES)
    at_truth = data.solver.refine(data.observed, data.R, data.shift_px, ((1.0, 0),))
    covariance = torch.linalg.inv(at_truth.information.double())
    root = torch.linalg.cholesky(covariance[:, :3, :3])
    draws = root @ torch.randn(200, 3, 100, dtype=torch.double, generator=torch.Generator().manual_seed(1))
    bound = float(draws.norm(dim=1).median())
    error = data.errors(found.R)
    assert float(data.errors(data.start).median()) > 3 * bound
    assert float(error.median()) < 1.15 * bound
    assert float((found.cost < at_truth.cost).float().mean()) > 0.9
    turn = roma.rotmat_to_rotvec(found.R @ data.R.mT).double()
    own = torch.linalg.inv(found.information.double())[:, :3, :3]
    distance = torch.einsum("bi,bij,bj->b", turn, torch.linalg.inv(own), turn)
    assert 1.7 < float(distance.median()) < 3.2  # chi squared of three: 2.37
    shift_sd = torch.linalg.inv(found.information.double())[:, 3:, 3:].diagonal(dim1=1, dim2=2).sqrt()
    pull = (found.shift_px - data.shift_px).double() / shift_sd
    assert 0.8 < float(pull.square().mean().sqrt()) < 1.25


def test_no_pose_ends_worse_than_it_began() -> None:
    data = Simulated(50, snr=0.02)
    last = ((1.0, 4),)
    before = data.solver.refine(data.observed, data.start, data.start_px, ((1.0, 0),))
    after = data.solver.refine(data.observed, data.start, data.start_px, last)
    assert (after.cost <= before.cost).all()


def test_the_contrast_is_found_within_limits() -> None:
    data = Simulated(50, snr=1.0)
    fainter = replace(data.observed, data=data.observed.data * 0.6)
    found = data.solver.refine(fainter, data.R, data.shift_px, STAGES)
    assert 0.55 < float(found.scale.median()) < 0.65
    tiny = replace(data.observed, data=data.observed.data * 1e-3)
    free = replace(tiny, usual=None)
    assert 0.9e-3 < float(data.solver.refine(free, data.R, data.shift_px, STAGES).scale.median()) < 1.1e-3
    assert float(data.solver.refine(tiny, data.R, data.shift_px, STAGES).scale.max()) == 0.25


def test_rows_are_chosen() -> None:
    zeros, ones = (
        Refined(*(torch.full(shape, v) for shape in ((2, 3, 3), (2, 2), (2,), (2,), (2,), (2, 5, 5))))
        for v in (0.0, 1.0)
    )
    chosen = zeros.where(torch.tensor([True, False]), ones)
    assert chosen.cost.tolist() == [0, 1]
    assert chosen.R[1].min() == 1
