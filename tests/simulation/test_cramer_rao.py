"""The bound of the benchmark against exact derivatives of blob projections, and its two formulas against each other."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from blobs import SIGMA_PX, blob_positions, blob_projections, blob_volume
from scipy.spatial.transform import Rotation

from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.simulation.draw import SimulationSettings, draw_particles
from cryoforum_plugin.simulation.simulate import Simulator

SIZE, PIXEL_A, COUNT = 32, 4.0, 12


@pytest.fixture(scope="module")
def cramer_rao() -> ModuleType:
    """Return benchmarks/cramer_rao.py."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "cramer_rao.py"
    spec = importlib.util.spec_from_file_location("cramer_rao", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_fisher_matrices_are_those_of_exact_projections(cramer_rao: ModuleType) -> None:
    positions = blob_positions(12, 9.0)
    settings = SimulationSettings(count=COUNT, shift_px=0.0)
    simulator = Simulator(blob_volume(positions, SIZE), PIXEL_A, settings)
    cramer_rao.refine_grid(simulator, blob_volume(positions, SIZE), PIXEL_A, 6)
    draw = draw_particles(settings, PIXEL_A, SIZE)
    found = cramer_rao.fisher_white(cramer_rao.derivatives(simulator, draw, np.arange(COUNT)), 0.5)
    ctf = ctf_2d(draw.ctf, SIZE, PIXEL_A).double()

    def exact(turn: np.ndarray, shift_px: np.ndarray) -> torch.Tensor:
        R = (Rotation.from_rotvec(turn) * Rotation.from_quat(draw.rotation)).as_matrix()
        # the particle stands displaced by -shift in `blob_projections`
        images = blob_projections(positions, R, SIZE, np.tile(-shift_px, (COUNT, 1))).double()
        return torch.fft.irfft2(torch.fft.rfft2(images) * ctf, s=(SIZE, SIZE))

    h, columns = 0.02, []
    for k in range(3):
        turn = h * np.eye(3)[k]
        columns.append((exact(turn, np.zeros(2)) - exact(-turn, np.zeros(2))) / (2 * h))
    for k in range(2):
        step = h * np.eye(2)[k]
        columns.append((exact(np.zeros(3), step) - exact(np.zeros(3), -step)) / (2 * h * PIXEL_A))
    flat = torch.stack(columns, 1).flatten(2)
    expected = flat @ flat.mT / 0.5
    scale = expected.diagonal(dim1=1, dim2=2).sqrt()
    apart = (found - expected) / (scale[:, :, None] * scale[:, None])
    assert apart.abs().max() < 0.08  # what linear interpolation leaves in a box this small
    assert apart.diagonal(dim1=1, dim2=2).abs().median() < 0.02
    assert SIGMA_PX > 1  # blobs that the grid resolves


def test_both_formulas_agree_for_white_noise(cramer_rao: ModuleType) -> None:
    settings = SimulationSettings(count=COUNT)
    simulator = Simulator(blob_volume(blob_positions(12, 9.0), SIZE), PIXEL_A, settings)
    draw = draw_particles(settings, PIXEL_A, SIZE)
    columns = cramer_rao.derivatives(simulator, draw, np.arange(COUNT))
    power = torch.full((SIZE // 2 + 1,), 0.5 * SIZE**2)
    torch.testing.assert_close(
        cramer_rao.fisher_coloured(columns, power),
        cramer_rao.fisher_white(columns, 0.5),
        rtol=1e-3,
        atol=1e-3,
    )
    white = cramer_rao.bound(simulator, draw, np.arange(COUNT), 0.5)
    twice = cramer_rao.bound(simulator, draw, np.arange(COUNT), 2.0)
    assert twice["median_rad"] == pytest.approx(2 * white["median_rad"], rel=1e-3)
