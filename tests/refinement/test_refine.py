"""Particles refined against a reference of other particles, of their own half set, or a map of any scale."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_volume
from scipy.spatial.transform import Rotation
from torch import Tensor
from torch.nn import functional

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import angular_distance
from cryoforum_plugin.images.noise import mean_noise_power
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.particles.concatenation import concatenate
from cryoforum_plugin.posterior import (
    credible_radius,
    matrix_about,
    matrix_from_upper,
    mode,
    upper_from_matrix,
)
from cryoforum_plugin.refinement.reference import ReferenceMap, from_map, rebuild
from cryoforum_plugin.refinement.refine import Refiner
from cryoforum_plugin.simulation.draw import SimulationSettings, draw_particles
from cryoforum_plugin.simulation.simulate import Simulator
from cryoforum_plugin.simulation.write import write_simulation

COUNT, PIXEL_A, DIAMETER_A = 400, 5.0, 110.0


@pytest.fixture(scope="module")
def particles(tmp_path_factory: pytest.TempPathFactory) -> ParticleSet:
    folder = tmp_path_factory.mktemp("simulated") / "run"
    settings = SimulationSettings(count=COUNT, snr=0.5)
    simulator = Simulator(torch.as_tensor(blob_volume(blob_positions())), PIXEL_A, settings)
    write_simulation(simulator, draw_particles(settings, PIXEL_A, 32), folder)
    return formats.read_particles(folder / "particles.star", folder)


@pytest.fixture(scope="module")
def references(particles: ParticleSet) -> tuple[ReferenceMap, ReferenceMap, ReferenceMap]:
    return rebuild(pipeline(particles), np.arange(COUNT - 100), "C1", DIAMETER_A, lambda steps, note: None)


def pipeline(particles: ParticleSet) -> ImagePipeline:
    reader = StackReader(particles.stacks)
    box = WorkingBox(130.0, 24)
    return ImagePipeline(particles, reader, reader.check(particles), box, "flip", 1.0, torch.device("cpu"))


def network_answers(particles: ParticleSet, rows: np.ndarray, off_deg: float = 6.0) -> RawPrediction:
    """Return answers that are off by about `off_deg`, and say so."""
    generator = np.random.default_rng(4)
    turn = Rotation.from_rotvec(np.radians(off_deg) / 1.5 * generator.standard_normal((len(rows), 3)))
    q = torch.from_numpy((turn * Rotation.from_quat(particles.require_rotation()[rows])).as_quat())
    precision = torch.eye(3, dtype=torch.double).expand(len(rows), 3, 3) / np.radians(off_deg) ** 2
    assert particles.shift_A is not None
    shift_A = torch.from_numpy(particles.shift_A[rows] + 2 * generator.standard_normal((len(rows), 2)))
    bingham = upper_from_matrix(matrix_about(q, precision))
    nothing = torch.zeros(len(rows), dtype=torch.bool)
    return RawPrediction(bingham, shift_A, torch.ones(len(rows)).double(), torch.zeros(len(rows), 1), nothing)


def errors(raw: RawPrediction, particles: ParticleSet, rows: np.ndarray) -> Tensor:
    true = torch.from_numpy(particles.require_rotation()[rows])
    return angular_distance(mode(matrix_from_upper(raw.bingham)), true)


def refined(
    particles: ParticleSet,
    references: dict[int, ReferenceMap],
    change: Callable[[RawPrediction], None] | None = None,
) -> tuple[RawPrediction, RawPrediction, np.ndarray]:
    rows = np.arange(COUNT - 100, COUNT)
    raw = network_answers(particles, rows)
    if change is not None:
        change(raw)
    return (
        raw,
        Refiner(pipeline(particles), references, DIAMETER_A).refine(rows, raw, lambda n, note: None),
        rows,
    )


def test_a_reference_of_other_particles_brings_poses_to_the_limit(
    particles: ParticleSet, references: tuple[ReferenceMap, ...]
) -> None:
    raw, found, rows = refined(particles, {0: references[0]})
    before, after = errors(raw, particles, rows), errors(found, particles, rows)
    assert float(after.median()) < float(before.median()) / 2
    inside = (after < credible_radius(found.bingham, 0.9)).double().mean()
    assert 0.75 < float(inside) <= 1
    assert particles.shift_A is not None
    off_A = np.linalg.norm(found.shift_A.numpy() - particles.shift_A[rows], axis=1)
    assert np.median(off_A) < 1.5
    assert 0.3 < float((off_A / found.shift_sd_A.numpy()).mean()) < 3


def test_particles_meet_the_reference_of_their_own_half(
    particles: ParticleSet, references: tuple[ReferenceMap, ...]
) -> None:
    both, first, second = references
    noise = replace(
        second, volume=torch.randn(second.volume.shape, generator=torch.Generator().manual_seed(1))
    )
    raw, found, rows = refined(particles, {0: both, 1: first, 2: noise})
    of_first = particles.half_set[rows] == 1
    before, after = errors(raw, particles, rows), errors(found, particles, rows)
    assert float(after[of_first].median()) < 0.6 * float(before[of_first].median())
    assert float(after[~of_first].median()) > 0.9 * float(before[~of_first].median())


def test_a_map_of_another_box_and_scale(particles: ParticleSet) -> None:
    volume = torch.as_tensor(blob_volume(blob_positions())).float()
    larger = 1e3 * functional.pad(volume, [8] * 6)  # 48 voxels of the same size
    _, plain, rows = refined(particles, {0: from_map(volume, PIXEL_A)})
    _, scaled, _ = refined(particles, {0: from_map(larger, PIXEL_A)})
    limit = float(errors(plain, particles, rows).median())
    assert float(errors(scaled, particles, rows).median()) < 1.2 * limit
    mirrored = {0: from_map(volume.flip(0), PIXEL_A)}
    assert float(errors(refined(particles, mirrored)[1], particles, rows).median()) > 2 * limit


def test_unsure_particles_are_started_more_than_once(
    particles: ParticleSet, references: tuple[ReferenceMap, ...]
) -> None:
    def unsure(raw: RawPrediction) -> None:
        """Turn the modes of some far away, and make the posterior as broad."""
        q = mode(matrix_from_upper(raw.bingham[:30]))
        off = Rotation.from_rotvec(np.radians([35.0, 0, 0])) * Rotation.from_quat(q.numpy())
        broad = torch.eye(3, dtype=torch.double).expand(30, 3, 3) / np.radians(25) ** 2
        raw.bingham[:30] = upper_from_matrix(matrix_about(torch.from_numpy(off.as_quat()), broad))

    _, found, rows = refined(particles, {0: references[0]}, unsure)
    assert float((errors(found, particles, rows)[:30] < np.radians(10)).double().mean()) > 0.7


def test_unusable_rows_stay_as_they_are(particles: ParticleSet, references: tuple[ReferenceMap, ...]) -> None:
    def unusable(raw: RawPrediction) -> None:
        raw.unusable[3] = True
        raw.bingham[3] = torch.nan

    raw, found, _ = refined(particles, {0: references[0]}, unusable)
    assert torch.isnan(found.bingham[3]).all()
    assert torch.equal(found.shift_A[3], raw.shift_A[3])
    assert torch.isfinite(found.bingham[4:]).all()


def test_what_a_reference_says_of_itself(references: tuple[ReferenceMap, ...]) -> None:
    both, first, _ = references
    assert (both.belief >= first.belief)[1:].all()  # shell 0 is one number, where regions may cancel
    assert both.finest_A <= first.finest_A
    assert both.finest_A <= 4 * PIXEL_A
    assert (both.error_power() <= first.error_power() * 1.5 + 1e-6).all()
    given = from_map(both.volume, PIXEL_A, resolution_A=20.0)
    assert given.finest_A >= 20.0
    assert (given.error_power()[given.belief > 0] == 0).all()


def test_noise_is_measured_beside_the_particle(tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(5)
    images = 3 * torch.randn(200, 64, 64, generator=generator)
    images[:, 20:44, 20:44] += 10
    power = mean_noise_power(images, radius_px=20)
    assert power[1:].min() > 0.8 * 9 * 64**2
    assert power[1:].max() < 1.2 * 9 * 64**2


def test_two_pixel_sizes_in_one_table(tmp_path: Path) -> None:
    """The same particle at 5 and 4.6 A a pixel: each is refined at its own sampling, with the same usual contrast."""
    parts = []
    for number, size_A in enumerate((5.0, 4.6)):
        volume = torch.as_tensor(blob_volume(blob_positions()))
        if size_A != PIXEL_A:
            volume = functional.interpolate(
                volume[None, None], scale_factor=PIXEL_A / size_A, mode="trilinear", align_corners=False
            )[0, 0]
            volume = volume[: 2 * (len(volume) // 2), : 2 * (len(volume) // 2), : 2 * (len(volume) // 2)]
            middle = len(volume) // 2
            volume = volume[middle - 16 : middle + 16, middle - 16 : middle + 16, middle - 16 : middle + 16]
        settings = SimulationSettings(count=150, snr=0.5, seed=number + 1)
        simulator = Simulator(volume, size_A, settings)
        write_simulation(simulator, draw_particles(settings, size_A, 32), tmp_path / f"{number}")
        parts.append(
            formats.read_particles(tmp_path / f"{number}" / "particles.star", tmp_path / f"{number}")
        )
    both = concatenate(parts)
    first = np.arange(150)
    references = rebuild(pipeline(both), first, "C1", DIAMETER_A, lambda steps, note: None)
    rows = np.arange(100, 300)
    raw = network_answers(both, rows)
    found = Refiner(pipeline(both), {0: references[0]}, DIAMETER_A).refine(rows, raw, lambda n, note: None)
    error = errors(found, both, rows)
    for part in (slice(0, 50), slice(50, 200)):
        assert float(error[part].median()) < 0.5 * float(errors(raw, both, rows)[part].median())
        assert found.contrast is not None
        assert 0.7 < float(found.contrast[part].median()) < 1.4
