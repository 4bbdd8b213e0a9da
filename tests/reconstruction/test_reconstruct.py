"""Half maps from tables: everything between the file and the map, and every refusal."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_volume
from click.testing import CliRunner
from memory_reader import Memory

from cryoforum_plugin.cli.main import main
from cryoforum_plugin.errors import ParticleFileError, SettingsError
from cryoforum_plugin.images.fourier import crop_transform
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation
from cryoforum_plugin.reconstruction.half_sets import half_set_rows
from cryoforum_plugin.reconstruction.reconstruct import Reconstruction, ReconstructionSettings, reconstruct
from cryoforum_plugin.simulation.draw import SimulationSettings, draw_particles
from cryoforum_plugin.simulation.simulate import Simulator
from cryoforum_plugin.simulation.write import particle_set, write_simulation

VOLUME = blob_volume(blob_positions())
PIXEL_A = 4.0


def make(count: int = 1000, **changes: Any) -> tuple[ParticleSet, Memory]:
    settings = SimulationSettings(count=count, **changes)
    simulator = Simulator(VOLUME, PIXEL_A, settings)
    draw = draw_particles(settings, PIXEL_A, 32)
    images = np.concatenate(list(simulator.images(draw)))
    return particle_set(draw, PIXEL_A, 32, Path("particles.mrcs"), Path("particles.star")), Memory(images)


@pytest.fixture(scope="module")
def clean() -> tuple[ParticleSet, Memory]:
    """Noise-free particles with CTF and shifts."""
    return make(snr=float("inf"))


def run(data: tuple[ParticleSet, Memory], **settings: Any) -> Reconstruction:
    return reconstruct(*data, ReconstructionSettings(**settings))


def test_noise_free_particles_give_the_map_back(clean: tuple[ParticleSet, Memory]) -> None:
    result = run(clean, normalise=False)
    for volume in (result.half1, result.half2, result.map):
        assert fourier_shell_correlation(volume, VOLUME)[1:11].min() > 0.98
    assert result.fsc[1:11].min() > 0.98
    assert float((result.map * VOLUME).sum() / VOLUME.square().sum()) == pytest.approx(1, abs=0.1)
    assert (result.count1, result.count2, result.notes) == (500, 500, ())
    assert result.resolution_0143_A <= result.resolution_05_A


def test_noise_lowers_the_resolution_and_the_map_stays_closest() -> None:
    result = run(make(snr=0.05))
    assert 8.0 < result.resolution_0143_A < result.resolution_05_A < 40
    fits = [float(fourier_shell_correlation(v, VOLUME)[1:8].mean()) for v in (result.map, result.half1)]
    assert fits[0] > max(0.9, fits[1])


def test_shifts_are_used(clean: tuple[ParticleSet, Memory]) -> None:
    particles, reader = clean
    without = run((replace(particles, shift_A=None), reader), normalise=False)
    assert fourier_shell_correlation(without.map, VOLUME)[8] < 0.9


def test_ignoring_the_ctf_is_worse(clean: tuple[ParticleSet, Memory]) -> None:
    without = run(clean, use_ctf=False, normalise=False)
    fits = [
        fourier_shell_correlation(r.map, VOLUME)[1:11].min() for r in (without, run(clean, normalise=False))
    ]
    assert fits[0] < 0.9 < fits[1]


def test_smaller_box_is_the_cropped_map(clean: tuple[ParticleSet, Memory]) -> None:
    result = run(clean, box_px=24, normalise=False)
    transform = torch.fft.fftn(VOLUME)
    keep = torch.cat([torch.arange(12), torch.arange(-11, 0)])
    cropped = torch.zeros(24, 24, 24, dtype=torch.complex64)
    cropped[np.ix_(keep, keep, keep)] = transform[np.ix_(keep, keep, keep)]
    truth = torch.fft.ifftn(cropped).real * (24 / 32) ** 3
    assert result.map.shape == (24, 24, 24)
    assert result.pixel_size_A == pytest.approx(PIXEL_A * 32 / 24)
    assert fourier_shell_correlation(result.map, truth)[1:9].min() > 0.98
    assert float((result.map * truth).sum() / truth.square().sum()) == pytest.approx(1, abs=0.1)


def test_dark_protein_is_turned_over(clean: tuple[ParticleSet, Memory]) -> None:
    particles, reader = clean
    dark = replace(particles, contrast_sign=-particles.contrast_sign), Memory(-reader.images)
    assert torch.allclose(run(dark).map, run(clean).map, atol=1e-6)


def test_background_and_scale_of_images_do_not_matter() -> None:
    particles, reader = make(300, snr=0.2)
    scale = np.linspace(0.1, 30, 300, dtype=np.float32)[:, None, None]
    other = run((particles, Memory(reader.images * scale + 100)))
    same = run((particles, reader))
    assert torch.allclose(other.map, same.map, atol=1e-3 * float(same.map.abs().max()))


def test_unusable_images_are_left_out_and_counted() -> None:
    particles, reader = make(300)
    reader.images[3] = np.nan
    reader.images[4] = 7.0
    reader.images[5, 0, 0] = np.inf
    result = run((particles, reader))
    assert torch.isfinite(result.map).all()
    assert (result.count1, result.count2) == (149, 148)
    assert "3 particles" in result.notes[0]


def test_odd_boxes_lose_a_row_and_a_column(clean: tuple[ParticleSet, Memory]) -> None:
    particles, reader = clean
    padded = Memory(np.pad(reader.images, ((0, 0), (0, 1), (0, 1))))
    assert torch.allclose(run((particles, padded)).map, run(clean).map)


def test_weights_are_the_confidence() -> None:
    particles, reader = make(400, snr=1.0)
    reader.images[::4] = np.random.default_rng(0).standard_normal(reader.images[::4].shape)
    confidence = np.ones(400)
    confidence[::4] = 0
    weighted = replace(particles, prediction=Prediction(confidence=confidence))
    with_weights = run((weighted, reader), weight="confidence", normalise=False)
    without = run((weighted, reader), normalise=False)
    fits = [float(fourier_shell_correlation(r.map, VOLUME)[1:8].mean()) for r in (with_weights, without)]
    assert fits[0] > fits[1]
    with pytest.raises(ParticleFileError, match="--weight confidence needs a confidence"):
        run((particles, reader), weight="confidence")


def test_without_half_sets_particles_alternate_and_copies_stay_together() -> None:
    particles, _ = make(10)
    origin = np.array([0, 0, 1, 1, 2, 2, 3, 3, 4, 4])
    unassigned = replace(particles, half_set=np.zeros(10, dtype=np.int64), origin=origin)
    (first, second), note = half_set_rows(unassigned)
    assert first.tolist() == [0, 1, 4, 5, 8, 9]
    assert second.tolist() == [2, 3, 6, 7]
    assert note is not None
    assert "split alternately" in note


def test_a_mask_takes_the_place_of_the_sphere() -> None:
    data = make(200, snr=0.05)
    around = (0.1 * VOLUME.max() < VOLUME).float()
    result = reconstruct(*data, mask=around)
    expected = fourier_shell_correlation(result.half1 * around, result.half2 * around)
    torch.testing.assert_close(result.fsc, expected)
    assert not torch.allclose(result.fsc, reconstruct(*data).fsc, atol=1e-3)
    with pytest.raises(SettingsError, match="the mask has 16 voxels a side, the map 32"):
        reconstruct(*data, mask=torch.ones(16, 16, 16))


def test_refusals_name_the_cause(clean: tuple[ParticleSet, Memory]) -> None:
    particles, reader = clean
    one = replace(particles, half_set=np.ones(len(particles), dtype=np.int64))
    with pytest.raises(ParticleFileError, match="half set 2 is empty"):
        run((one, reader))
    some = replace(particles, half_set=np.where(np.arange(len(particles)) < 5, 0, particles.half_set))
    with pytest.raises(ParticleFileError, match="5 of 1000 particles belong to no half set"):
        run((some, reader))
    mixed = replace(particles, pixel_size_A=np.linspace(4.0, 4.1, len(particles)))
    with pytest.raises(ParticleFileError, match=r"pixel sizes from 4 to 4\.1"):
        run((mixed, reader))
    with pytest.raises(ParticleFileError, match="no orientations"):
        run((replace(particles, rotation=None), reader))
    with pytest.raises(ParticleFileError, match="--no-ctf"):
        run((replace(particles, ctf=None), reader))
    with pytest.raises(SettingsError, match="--box"):
        run(clean, box_px=64)


def test_nearly_equal_pixel_sizes_are_one() -> None:
    particles, reader = make(50)
    run((replace(particles, pixel_size_A=np.linspace(4.0, 4.002, 50)), reader))


def test_symmetry_of_the_settings_reaches_the_map() -> None:
    symmetric = run(make(200), symmetry="C2").map
    turned = symmetric.flip(1, 2).roll((1, 1), (1, 2))  # half a turn about z, centre n // 2
    inner = slice(4, 28)
    a, b = symmetric[inner, inner, inner], turned[inner, inner, inner]
    assert float((a - b).norm() / a.norm()) < 0.05


@pytest.fixture
def folder(project: Path) -> Path:
    """Write 300 simulated particles as sim/ in the current, empty folder."""
    settings = SimulationSettings(count=300, snr=0.5)
    simulator = Simulator(VOLUME, PIXEL_A, settings)
    write_simulation(simulator, draw_particles(settings, PIXEL_A, 32), Path("sim"))
    return project


def test_command_writes_maps_curve_and_figures(folder: Path) -> None:
    arguments = ["reconstruct", "sim/particles.star", "-o", "rec", "--json", "rec.json", "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    figures = json.loads(Path("rec.json").read_text())
    assert (figures["n"], figures["n_half1"], figures["n_half2"]) == (300, 150, 150)
    assert f"{figures['resolution_0143_A']:.2f} Å" in result.stdout
    for name in ("half1", "half2", "map"):
        with mrcfile.open(f"rec/{name}.mrc") as file:
            assert file.data.shape == (32, 32, 32)
            assert file.data.dtype == np.float32
            assert float(file.voxel_size.x) == pytest.approx(PIXEL_A)
            assert fourier_shell_correlation(torch.from_numpy(file.data.copy()), VOLUME)[1:6].min() > 0.9
    with open("rec/fsc.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["shell"]) for row in rows] == list(range(17))
    assert float(rows[4]["resolution_A"]) == pytest.approx(32.0)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 1
    assert "exists already" in again.stderr
    assert CliRunner().invoke(main, [*arguments, "--overwrite"]).exit_code == 0
    masked = CliRunner().invoke(main, [*arguments, "--overwrite", "--mask", "rec/map.mrc"])
    assert masked.exit_code == 0
    assert masked.stdout != result.stdout
    assert CliRunner().invoke(main, [*arguments, "--mask", "m", "--mask-diameter", "9"]).exit_code == 2


def test_command_takes_a_smaller_box_and_tells_of_missing_half_sets(folder: Path) -> None:
    text = Path("sim/particles.star").read_text().splitlines()
    header = next(i for i, line in enumerate(text) if "_rlnRandomSubset" in line)
    column = int(text[header].split("#")[1]) - 1
    kept = [
        " ".join(t for i, t in enumerate(line.split()) if i != column) if "@" in line else line
        for line in text[:header] + text[header + 1 :]
    ]
    Path("plain.star").write_text("\n".join(kept) + "\n")
    result = CliRunner().invoke(
        main, ["reconstruct", "plain.star", "-o", "rec", "--box", "16", "--no-ctf", "--quiet"]
    )
    assert result.exit_code == 0, result.output
    assert "split alternately" in result.stderr
    with mrcfile.open("rec/map.mrc") as file:
        assert file.data.shape == (16, 16, 16)
        assert float(file.voxel_size.x) == pytest.approx(8.0)


def test_command_fails_in_one_line(folder: Path) -> None:
    Path("sim/particles.mrcs").unlink()
    result = CliRunner().invoke(main, ["reconstruct", "sim/particles.star", "-o", "rec", "--quiet"])
    assert result.exit_code == 1
    assert len(result.stderr.strip().splitlines()) == 1
    assert "missing" in result.stderr
    assert not Path("rec").exists()


def test_crop_keeps_the_scale() -> None:
    transform = torch.fft.rfft2(torch.ones(1, 32, 32))
    assert float(torch.fft.irfft2(crop_transform(transform, 16)).mean()) == pytest.approx(1)
