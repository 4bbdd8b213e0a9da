"""Simulated particles: SNR, poses, junk, files."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_projections, blob_volume, correlation
from click.testing import CliRunner, Result
from scipy.spatial.transform import Rotation

from cryoforum_plugin.cli.main import main
from cryoforum_plugin.errors import ImageStackError, SettingsError
from cryoforum_plugin.formats import read_particles
from cryoforum_plugin.geometry import angular_distance_to_group, quaternion_to_relion_euler, symmetry_group
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.fourier import radial_sum, shift_images
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.maps.volume import low_pass, make_even, randomise_phases, read_map
from cryoforum_plugin.particles import Ctf
from cryoforum_plugin.simulation.draw import (
    OFF_CENTRE,
    PURE_NOISE,
    WRONG_PARTICLE,
    SimulationSettings,
    draw_particles,
)
from cryoforum_plugin.simulation.simulate import Simulator

POSITIONS = blob_positions()
VOLUME = blob_volume(POSITIONS)
PIXEL_A = 4.0


@pytest.fixture
def blob_map(project: Path) -> Path:
    """Write the blobs as blobs.mrc in the current, empty folder."""
    with mrcfile.new(project / "blobs.mrc") as file:
        file.set_data(VOLUME.numpy())
        file.voxel_size = PIXEL_A
    return Path("blobs.mrc")


def simulate(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["simulate", *map(str, arguments)])


def images_of(settings: SimulationSettings) -> tuple[np.ndarray, Simulator]:
    simulator = Simulator(VOLUME, PIXEL_A, settings)
    draw = draw_particles(settings, simulator.pixel_size_A, simulator.box_px)
    return np.concatenate(list(simulator.images(draw))), simulator


@pytest.mark.parametrize("snr", [0.02, 0.1, 1.0])
def test_signal_to_noise_is_the_one_asked_for(snr: float) -> None:
    noisy, _ = images_of(SimulationSettings(count=600, snr=snr))
    clean, _ = images_of(SimulationSettings(count=600, snr=math.inf))
    signal = clean.var(axis=(1, 2)).mean()
    noise = (noisy - clean).var()
    assert signal / noise == pytest.approx(snr, rel=0.02)


def test_noise_is_white() -> None:
    noisy, _ = images_of(SimulationSettings(count=200, snr=0.1))
    clean, _ = images_of(SimulationSettings(count=200, snr=math.inf))
    power = torch.fft.rfft2(torch.from_numpy(noisy - clean)).abs().square().mean(0)
    spectrum = radial_sum(power) / radial_sum(torch.ones_like(power))
    assert float(spectrum[2:].std() / spectrum[2:].mean()) < 0.05


def test_noise_free_images_are_the_projections_displaced_by_minus_the_shift() -> None:
    settings = SimulationSettings(count=8, snr=math.inf)
    simulator = Simulator(VOLUME, PIXEL_A, settings)
    draw = draw_particles(settings, PIXEL_A, 32)
    images = torch.from_numpy(np.concatenate(list(simulator.images(draw))))
    R = Rotation.from_quat(draw.rotation).as_matrix()
    exact = blob_projections(POSITIONS, R, shift_px=draw.shift_A / PIXEL_A)
    exact = torch.fft.irfft2(torch.fft.rfft2(exact) * ctf_2d(draw.ctf, 32, PIXEL_A))
    assert correlation(images, exact).min() > 0.998
    assert np.abs(draw.shift_A).max() <= 3 * PIXEL_A


def test_same_seed_same_images_and_another_seed_others() -> None:
    first, _ = images_of(SimulationSettings(count=20))
    again, _ = images_of(SimulationSettings(count=20))
    other, _ = images_of(SimulationSettings(count=20, seed=2))
    assert np.array_equal(first, again)
    assert not np.allclose(first, other)


def test_noise_level_does_not_change_the_poses() -> None:
    draws = [draw_particles(SimulationSettings(count=9, snr=s), 1.0, 32) for s in (0.1, 1.0)]
    assert np.array_equal(draws[0].rotation, draws[1].rotation)
    assert np.array_equal(draws[0].shift_A, draws[1].shift_A)


def test_views_are_uniform() -> None:
    draw = draw_particles(SimulationSettings(count=20000), 1.0, 32)
    matrices = Rotation.from_quat(draw.rotation).as_matrix()
    assert np.abs(matrices.mean(0)).max() < 0.02
    assert np.histogram(matrices[:, 2, 2], 8, (-1, 1))[0] == pytest.approx(2500, rel=0.08)


def test_defocus_stays_in_its_range() -> None:
    ctf = draw_particles(SimulationSettings(count=500, defocus_um=(0.5, 0.7)), 1.0, 32).ctf
    assert ctf.defocus_u_A.min() >= 5000
    assert ctf.defocus_u_A.max() <= 7000
    assert np.array_equal(ctf.defocus_u_A, ctf.defocus_v_A)


def test_views_are_taken_from_a_table_with_free_in_plane_angle() -> None:
    side = Rotation.from_euler("ZYZ", [30, 90, 10], degrees=True).as_quat()[None]
    draw = draw_particles(SimulationSettings(count=400), 1.0, 32, views=side)
    axes = Rotation.from_quat(draw.rotation).as_matrix()[:, :, 2]  # viewing directions
    angle = np.degrees(np.arccos(np.clip(axes @ Rotation.from_quat(side).as_matrix()[0, :, 2], -1, 1)))
    assert 1 < np.median(angle) < 4
    spins = Rotation.from_quat(draw.rotation).as_matrix()[:, :, 0]
    assert np.linalg.norm(spins.mean(0)) < 0.15


def test_symmetry_spreads_views_over_copies() -> None:
    view = Rotation.from_euler("ZYZ", [10, 60, 10], degrees=True).as_quat()[None]
    draw = draw_particles(SimulationSettings(count=400, symmetry="C4"), 1.0, 32, views=view)
    rot = np.degrees(np.arctan2(*Rotation.from_quat(draw.rotation).as_matrix()[:, [1, 0], 2].T)) % 360
    assert np.histogram(rot, 4, (-35, 325))[0].min() > 60


def test_views_stay_in_the_asymmetric_unit_when_asked() -> None:
    settings = SimulationSettings(count=2000, symmetry="D2", asymmetric_unit=True)
    rotation = draw_particles(settings, 1.0, 32).rotation
    rot, tilt, psi = quaternion_to_relion_euler(rotation).T  # section 4.3 of the paper
    assert np.histogram(rot, 4, (0, 180))[0] == pytest.approx(500, rel=0.15)
    assert np.histogram(np.cos(np.radians(tilt)), 4, (0, 1))[0] == pytest.approx(500, rel=0.15)
    assert np.histogram(psi, 4, (-180, 180))[0] == pytest.approx(500, rel=0.15)
    free = draw_particles(SimulationSettings(count=2000), 1.0, 32).rotation
    assert not np.allclose(rotation, free)
    distance = angular_distance_to_group(*map(torch.from_numpy, (rotation, free, symmetry_group("D2"))))
    assert distance.max() < 1e-7


def test_views_from_a_table_are_brought_into_the_asymmetric_unit() -> None:
    view = Rotation.from_euler("ZYZ", [100, 60, 10], degrees=True).as_quat()[None]
    settings = SimulationSettings(count=100, symmetry="C4", asymmetric_unit=True)
    rot = quaternion_to_relion_euler(draw_particles(settings, 1.0, 32, views=view).rotation)[:, 0]
    assert np.abs(rot).max() < 45
    assert np.median(rot) == pytest.approx(10, abs=2)


def test_ctfs_are_rows_of_the_table() -> None:
    n = 3
    table = Ctf(*(np.arange(n) + 10.0 * i for i in range(7)))
    ctf = draw_particles(SimulationSettings(count=50), 1.0, 32, ctf=table).ctf
    assert set(ctf.defocus_u_A) == {0.0, 1.0, 2.0}
    assert np.array_equal(ctf.voltage_kV - ctf.defocus_u_A, np.full(50, 30.0))


def test_junk_comes_in_thirds_and_looks_like_it() -> None:
    settings = SimulationSettings(count=300, snr=math.inf, junk=0.3)
    simulator = Simulator(VOLUME, PIXEL_A, settings)
    draw = draw_particles(settings, PIXEL_A, 32)
    assert np.bincount(draw.junk).tolist() == [210, 30, 30, 30]
    images = torch.from_numpy(np.concatenate(list(simulator.images(draw))))
    assert torch.equal(images[draw.junk == PURE_NOISE], torch.zeros(30, 32, 32))
    R = torch.from_numpy(Rotation.from_quat(draw.rotation).as_matrix())
    truth = Projector(VOLUME, PIXEL_A).project(R, ctf_2d(draw.ctf, 32, PIXEL_A))
    recentred = shift_images(images, torch.from_numpy(draw.shift_A / PIXEL_A))
    fits = correlation(truth, recentred + 1e-9 * torch.randn_like(images))
    assert fits[draw.junk == 0].min() > 0.99
    assert fits[draw.junk == OFF_CENTRE].median() < 0.5
    assert fits[draw.junk == WRONG_PARTICLE].median() < 0.5
    offset = np.linalg.norm(draw.displacement_A + draw.shift_A, axis=1) / (32 * PIXEL_A)
    assert np.allclose(offset[draw.junk != OFF_CENTRE], 0)
    assert offset[draw.junk == OFF_CENTRE].min() >= 0.15
    assert offset[draw.junk == OFF_CENTRE].max() <= 0.30


def test_wrong_particle_has_the_right_power(generator: torch.Generator) -> None:
    other = randomise_phases(VOLUME, generator)
    assert float(other.square().sum()) == pytest.approx(float(VOLUME.square().sum()), rel=1e-4)
    assert float(correlation(other[None], VOLUME[None])[0]) < 0.6
    assert float(other[:2].abs().max()) < 0.01 * float(other.abs().max())


def test_low_pass_removes_what_lies_beyond() -> None:
    noise = torch.randn(32, 32, 32)
    power = torch.fft.rfftn(low_pass(noise, 2.0, 16.0)).abs().square()  # cut at shell 4
    shells = radial_sum(power, 3) / radial_sum(torch.fft.rfftn(noise).abs().square(), 3)
    assert shells[:4].min() > 0.85
    assert shells[5:].max() < 0.01


def test_odd_maps_get_a_plane_in_front() -> None:
    volume = torch.zeros(5, 5, 5)
    volume[2, 2, 2] = 1
    assert make_even(volume).shape == (6, 6, 6)
    assert make_even(volume)[3, 3, 3] == 1
    assert make_even(volume + 7)[0, 2, 2] == 7  # solvent, not 0


@pytest.mark.parametrize(
    "changes",
    [
        {"snr": 0.0},
        {"junk": 1.5},
        {"count": 1},
        {"defocus_um": (2.0, 1.0)},
        {"shift_px": -1.0},
        {"voltage_kV": 0.0},
    ],
)
def test_settings_out_of_range_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(SettingsError, match="got"):
        SimulationSettings(**changes).check()


@pytest.mark.parametrize("box", [31, 34, 4])
def test_boxes_the_map_cannot_give_are_refused(box: int) -> None:
    with pytest.raises(SettingsError, match="--box"):
        Simulator(VOLUME, PIXEL_A, SimulationSettings(box_px=box))


def test_command_writes_a_readable_set(blob_map: Path) -> None:
    result = simulate(blob_map, "-o", "sim", "--count", 120, "--junk", 0.1, "--split", 0.5, 0.25)
    assert result.exit_code == 0, result.output
    particles = read_particles(Path("sim/particles.star"))
    assert len(particles) == 120
    assert particles.stacks == (Path("sim/particles.mrcs"),) or particles.stacks[0].samefile(
        "sim/particles.mrcs"
    )
    assert "000001@sim/particles.mrcs" in Path("sim/particles.star").read_text()
    assert np.bincount(particles.half_set).tolist() == [0, 60, 60]
    assert np.bincount(particles.micrograph).max() == 50
    assert particles.pixel_size_A == pytest.approx(np.full(120, PIXEL_A))
    reader = StackReader(particles.stacks)
    assert reader.check(particles) == 32
    images = reader.read(particles.stack_index, particles.slice_index)
    assert images.std() > 0
    assert len(read_particles(Path("sim/train.star"))) == 60
    test = read_particles(Path("sim/test.star"))
    assert test.slice_index.tolist() == list(range(60, 90))
    with open("sim/truth.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 120
    assert [row["cryoforumSimulatedJunk"] for row in rows].count("0") == 108
    assert [row["set"] for row in rows].count("test") == 30
    assert sorted(path.name for path in Path("sim").iterdir()) == [
        "particles.mrcs",
        "particles.star",
        "test.star",
        "train.star",
        "truth.csv",
    ]
    assert not list(Path().glob(".sim*"))


def test_command_poses_describe_the_images(blob_map: Path) -> None:
    assert simulate(blob_map, "-o", "sim", "--count", 20, "--snr", "inf", "--box", 24).exit_code == 0
    particles = read_particles(Path("sim/particles.star"))
    images = torch.from_numpy(
        StackReader(particles.stacks).read(particles.stack_index, particles.slice_index)
    )
    projector = Projector(VOLUME, PIXEL_A, box_px=24)
    assert particles.pixel_size_A[0] == pytest.approx(PIXEL_A * 32 / 24, abs=1e-5)
    R = torch.from_numpy(Rotation.from_quat(particles.require_rotation()).as_matrix())
    ctf = ctf_2d(particles.require_ctf(), 24, projector.pixel_size_A)
    assert particles.shift_A is not None
    expected = projector.project(R, ctf, torch.from_numpy(particles.shift_A))
    assert correlation(images, expected).min() > 0.9999


def test_command_writes_cs_and_float16(blob_map: Path) -> None:
    star = simulate(blob_map, "-o", "a", "--count", 12, "--quiet")
    cs = simulate(
        blob_map, "-o", "b", "--count", 12, "--quiet", "--format", "cs", "--float16", "--data-root", "."
    )
    assert star.exit_code == 0, star.output
    assert cs.exit_code == 0, cs.output
    from_star = read_particles(Path("a/particles.star"))
    from_cs = read_particles(Path("b/particles.cs"), Path())
    assert np.abs(np.sum(from_star.require_rotation() * from_cs.require_rotation(), axis=1)).min() > 1 - 1e-9
    assert from_star.shift_A == pytest.approx(from_cs.shift_A, abs=1e-4)
    images = [StackReader(p.stacks).read(p.stack_index, p.slice_index) for p in (from_star, from_cs)]
    assert np.abs(images[0] - images[1]).max() < 1e-2 * images[0].std()
    with mrcfile.open("b/particles.mrcs") as file:
        assert file.header.mode == 12


def test_command_samples_the_tables_it_is_given(blob_map: Path) -> None:
    assert simulate(blob_map, "-o", "first", "--count", 10, "--defocus", 0.4, 0.5, "--kv", 200).exit_code == 0
    result = simulate(
        blob_map, "-o", "second", "--count", 30,
        "--ctf-from", "first/particles.star", "--views-from", "first/particles.star",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    first, second = (
        read_particles(Path(f"{name}/particles.star")).require_ctf() for name in ("first", "second")
    )
    assert set(second.defocus_u_A) <= set(first.defocus_u_A)
    assert set(second.voltage_kV) == {200.0}


def test_command_keeps_views_in_the_asymmetric_unit(blob_map: Path) -> None:
    arguments = (blob_map, "-o", "sim", "--count", 40, "--symmetry", "D2", "--asymmetric-unit", "--quiet")
    assert simulate(*arguments).exit_code == 0
    rot, tilt, _ = quaternion_to_relion_euler(read_particles(Path("sim/particles.star")).require_rotation()).T
    assert rot.min() >= 0
    assert tilt.max() <= 90


def test_command_refuses_to_overwrite_and_can_be_told_to(blob_map: Path) -> None:
    arguments = (blob_map, "-o", "sim", "--count", 10, "--quiet")
    assert simulate(*arguments).exit_code == 0
    refused = simulate(*arguments)
    assert refused.exit_code == 1
    assert "exists already" in refused.output
    assert simulate(*arguments, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--split", 0.9, 0.2], "--split"),
        (["--snr", 0], "--snr"),
        (["--symmetry", "Q9"], "unknown symmetry"),
        (["--box", 64], "--box"),
        (["--junk", 1.0], "every particle is junk"),
        (["--ctf-from", "absent.star"], "absent.star"),
    ],
)
def test_command_says_what_is_wrong_in_one_line(
    blob_map: Path, arguments: list[object], message: str
) -> None:
    result = simulate(blob_map, "-o", "sim", "--count", 10, "--quiet", *arguments)
    assert result.exit_code == 1
    assert message in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1
    assert not Path("sim").exists()


def test_maps_that_cannot_be_used_are_refused(project: Path) -> None:
    with pytest.raises(ImageStackError, match="no such map"):
        read_map(project / "absent.mrc")
    (project / "text.mrc").write_text("not a map")
    with pytest.raises(ImageStackError, match="not a readable MRC map"):
        read_map(project / "text.mrc")
    with mrcfile.new(project / "flat.mrc") as file:
        file.set_data(np.zeros((4, 6, 8), np.float32))
    with pytest.raises(ImageStackError, match="4 x 6 x 8"):
        read_map(project / "flat.mrc")
    with mrcfile.new(project / "unknown.mrc") as file:
        file.set_data(np.zeros((8, 8, 8), np.float32))
    with pytest.raises(ImageStackError, match="--pixel-size"):
        read_map(project / "unknown.mrc")
    assert read_map(project / "unknown.mrc", 2.0)[1] == 2.0
