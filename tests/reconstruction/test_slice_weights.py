"""Weights by the covariance of poses: from simulated particles of mixed certainty to the map."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_volume
from click.testing import CliRunner
from memory_reader import Memory
from scipy.spatial.transform import Rotation

from cryoforum_plugin.cli.main import main
from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.posterior.bingham import matrix_about, upper_from_matrix
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation
from cryoforum_plugin.reconstruction.reconstruct import ReconstructionSettings, reconstruct
from cryoforum_plugin.reconstruction.slice_weights import slice_weights
from cryoforum_plugin.simulation.draw import SimulationSettings, draw_particles
from cryoforum_plugin.simulation.simulate import Simulator
from cryoforum_plugin.simulation.write import particle_set

VOLUME = blob_volume(blob_positions())
PIXEL_A, N = 4.0, 1200


@pytest.fixture(scope="module")
def mixed() -> tuple[ParticleSet, Memory]:
    """Particles with turns of 1, 10 and 30 degrees (s.d. about x; half of it about y and z) and a posterior that knows."""
    settings = SimulationSettings(count=N, snr=0.3)
    simulator = Simulator(VOLUME, PIXEL_A, settings)
    draw = draw_particles(settings, PIXEL_A, 32)
    images = np.concatenate(list(simulator.images(draw)))
    particles = particle_set(draw, PIXEL_A, 32, Path("particles.mrcs"), Path("particles.star"))
    rng = np.random.default_rng(1)
    sd = np.radians(rng.choice([1.0, 10.0, 30.0], N))[:, None] * [1.0, 0.5, 0.5]
    true = Rotation.from_quat(particles.require_rotation())
    wrong = true * Rotation.from_rotvec(sd * rng.standard_normal((N, 3)))
    turned = wrong.as_matrix()
    precision = turned @ (np.eye(3) / sd[:, None] ** 2) @ np.swapaxes(turned, 1, 2)
    bingham = upper_from_matrix(matrix_about(torch.from_numpy(wrong.as_quat()), torch.from_numpy(precision)))
    draws = np.linalg.norm(sd[:, None] * rng.standard_normal((N, 400, 3)), axis=2)
    prediction = Prediction(
        (draws < np.radians(5)).mean(axis=1),
        bingham=bingham.numpy(),
        credible_radius_90_deg=np.degrees(np.quantile(draws, 0.9, axis=1)),
    )
    return replace(particles, rotation=wrong.as_quat(), prediction=prediction), Memory(images)


def test_covariance_weights_come_nearer_to_the_truth(mixed: tuple[ParticleSet, Memory]) -> None:
    fits = {}
    for weight in ("none", "confidence", "covariance"):
        result = reconstruct(*mixed, ReconstructionSettings(weight=weight, mask_radius_A=48))
        both = result.half1 + result.half2
        fits[weight] = fourier_shell_correlation(both, VOLUME)[1:11]
    # better where turns matter, not worse where they do not
    assert (fits["covariance"] > fits["none"] - 0.01).all()
    assert fits["covariance"][6:].mean() > fits["none"][6:].mean() + 0.02
    assert fits["covariance"].mean() > fits["confidence"].mean() - 0.005


def test_certain_poses_are_not_damped_and_unknown_ones_only_beyond_the_centre(
    mixed: tuple[ParticleSet, Memory],
) -> None:
    particles = mixed[0]
    weights = slice_weights(particles, "covariance", 40.0**2 / 5)
    _, left = weights.of(np.arange(N), 32, PIXEL_A, "cpu")
    assert left is not None
    assert left.shape == (N, 32, 17)
    assert 0.95 < float(left[:, 0, 0].mean()) <= 1
    sharp = particles.prediction.confidence > 0.98
    assert left[sharp, 0, 8].mean() > 0.9 > 0.5 > left[~sharp, 0, 8].mean()


def test_unknown_weights_are_refused(mixed: tuple[ParticleSet, Memory]) -> None:
    with pytest.raises(SettingsError, match="unknown weight 'some'"):
        slice_weights(mixed[0], "some", 1.0)


def test_former_name_of_the_option() -> None:
    result = CliRunner().invoke(
        main, ["reconstruct", "p.star", "-o", "x", "--weighted", "--weight", "covariance"]
    )
    assert result.exit_code == 2
    assert "former name" in result.stderr
    assert "--weighted" not in CliRunner().invoke(main, ["reconstruct", "--help"]).output
