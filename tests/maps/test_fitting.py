"""A user's map beside refined particles: brought to their grid and grey values, refused where it does not fit."""

from __future__ import annotations

import json
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_volume
from chain import TINY, cryoforum, simulate, succeed
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError, ParticleFileError
from cryoforum_plugin.images.fourier import radial_sum, shell_index
from cryoforum_plugin.maps.fitting import match_map
from cryoforum_plugin.maps.given import ShownMap
from cryoforum_plugin.maps.rebuilt import Reference
from cryoforum_plugin.maps.volume import low_pass, resample
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation
from cryoforum_plugin.refinement.matching import matched, read_reference
from cryoforum_plugin.refinement.reference import ReferenceMap

SIZE, PIXEL_A = 32, 5.0
POSITIONS = blob_positions(12, 8.0)


def make_reference(noise: float = 0.02, scale: float = 3.0) -> Reference:
    """Halves of the blob map, `scale` times as bright, with white noise."""
    generator = torch.Generator().manual_seed(2)
    truth = scale * blob_volume(POSITIONS, SIZE)
    first, second = (truth + noise * torch.randn(truth.shape, generator=generator) for _ in range(2))
    return Reference((first + second) / 2, (first, second), fourier_shell_correlation(first, second), PIXEL_A)


def shown(volume: Tensor, pixel_A: float = PIXEL_A, alone: bool = False) -> ShownMap:
    return ShownMap(Path("map.mrc"), volume, pixel_A, "", alone)


def blurred(volume: Tensor, b_A2: float) -> Tensor:
    n = len(volume)
    q = shell_index(n, 3) / (n * PIXEL_A)
    return torch.fft.irfftn(torch.fft.rfftn(volume) * torch.exp(-b_A2 * q.square() / 4), s=volume.shape)


@pytest.mark.parametrize(("size", "pixel_A"), [(32, 5.0), (40, 4.0), (30, 6.0), (48, 2.5)])
def test_resampling_keeps_centre_and_values(size: int, pixel_A: float) -> None:
    positions = blob_positions(12, 6.0)
    volume = resample(blob_volume(positions, SIZE), PIXEL_A, size, pixel_A)
    axis = (np.arange(size) - size // 2) * pixel_A / PIXEL_A
    x, y, z = (np.exp(-((axis - p[:, None]) ** 2) / 4.5) for p in positions.T)
    exact = np.einsum("nz,ny,nx->zyx", z, y, x)
    if size * pixel_A < SIZE * PIXEL_A:  # the same, of a smaller field of view
        assert size == 48
    assert np.abs(volume.numpy() - exact).max() < 0.02 * exact.max()


def test_what_a_small_map_does_not_show_is_empty() -> None:
    volume = resample(torch.ones(16, 16, 16), PIXEL_A, 32, PIXEL_A)
    assert torch.allclose(volume[8:24, 8:24, 8:24], torch.ones(16, 16, 16), atol=1e-5)
    assert float(volume.abs().sum()) == pytest.approx(16**3, rel=1e-5)


@pytest.mark.parametrize("b_A2", [-150.0, 0.0, 300.0])
def test_a_sharpened_or_blurred_map_gets_the_grey_values_of_the_reference(b_A2: float) -> None:
    """Whatever box, voxel size, brightness and B-factor the map comes with, its shells end as the data's."""
    reference = make_reference()
    other = resample(0.2 * blurred(blob_volume(POSITIONS, SIZE), b_A2), PIXEL_A, 40, 4.0)
    matched = match_map(shown(other, 4.0), reference)
    truth = 3 * blob_volume(POSITIONS, SIZE)
    power = [radial_sum(torch.fft.rfftn(volume).abs().square(), 3) for volume in (matched, truth)]
    ratio = (power[0] / power[1]).sqrt()
    assert ratio[1:8] == pytest.approx(np.ones(7), abs=0.05)
    assert (ratio[8:12] < 1.5).all()


@pytest.mark.parametrize("resolution_A", [18.0, 20.0, 25.0, 30.0, 40.0])
def test_a_low_passed_map_is_compared_up_to_its_own_end(resolution_A: float) -> None:
    low = low_pass(blob_volume(POSITIONS, SIZE), PIXEL_A, resolution_A)
    matched = match_map(shown(0.2 * low), make_reference())
    assert float((matched - 3 * low).norm() / low.norm()) < 0.3
    mirrored = low_pass(blob_volume(POSITIONS * [1, 1, -1], SIZE), PIXEL_A, resolution_A)
    with pytest.raises(ImageStackError, match="the mirrored map fits better"):
        match_map(shown(mirrored), make_reference())


def test_a_map_alone_is_scaled_by_one_factor_and_not_judged() -> None:
    volume = blob_volume(POSITIONS, SIZE)
    matched = match_map(shown(volume, alone=True), make_reference(noise=3.0))
    factor = float((matched * volume).sum() / volume.square().sum())
    assert factor == pytest.approx(3.0, rel=0.1)
    assert torch.allclose(matched, factor * volume, atol=1e-3)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("hand", "the mirrored map fits better"),
        ("inverted", "the mirrored map fits better"),
        ("quarter turn", "turned by quarter turns fits better"),
        ("pixel size", "with 5.000 A a voxel instead of 5.435 A fits better"),
        # truly 15, -10: the maps are compared on voxels of 6.7 A
        ("moved", "moved by about 13, -13, 0 A"),
        ("turned", "in the frame of its refinement"),
        ("other particle", "in the frame of its refinement"),
    ],
)
def test_a_map_that_does_not_fit_is_refused_with_figures(change: str, words: str) -> None:
    rotation = Rotation.from_euler("ZYZ", [40, 70, 10], degrees=True)
    volume = {
        "hand": blob_volume(POSITIONS * [1, 1, -1], SIZE),
        "inverted": blob_volume(-POSITIONS, SIZE),
        "quarter turn": blob_volume(POSITIONS[:, [1, 0, 2]] * [-1, 1, 1], SIZE),
        "moved": blob_volume(POSITIONS, SIZE).roll((-3, 2), (2, 1)),
        "turned": blob_volume(rotation.apply(POSITIONS), SIZE),
        "other particle": blob_volume(blob_positions(12, 8.0, seed=8), SIZE),
    }.get(change, blob_volume(POSITIONS, SIZE))
    pixel_A = PIXEL_A / 0.92 if change == "pixel size" else PIXEL_A
    with pytest.raises(ImageStackError, match=r"\d\.\d\d") as refusal:
        match_map(shown(volume, pixel_A), make_reference())
    assert words in str(refusal.value)


def test_a_map_that_is_smaller_than_the_particle_is_refused() -> None:
    small = shown(blob_volume(POSITIONS, SIZE)[4:-4, 4:-4, 4:-4])
    with pytest.raises(ImageStackError, match="box of 120 A is smaller than the particle of 130 A"):
        match_map(small, make_reference(), 130.0)


def test_a_reference_without_detail_cannot_judge() -> None:
    """The message is right for `train --simulate-from` and for `predict --reference`: it names neither."""
    with pytest.raises(ParticleFileError, match=r"too poor to check map\.mrc against") as refusal:
        match_map(shown(blob_volume(POSITIONS, SIZE)), make_reference(noise=30.0))
    assert "--" not in str(refusal.value)


@pytest.mark.parametrize(("thickness", "told"), [(1.0, True), (0.1, False)])
def test_a_hand_that_cannot_be_told_is_warned_of(
    thickness: float, told: bool, caplog: pytest.LogCaptureFixture
) -> None:
    """A particle that is nearly flat is nearly its own mirror image at the resolution of its reference."""
    volume = blob_volume(POSITIONS * [1, 1, thickness], SIZE)
    generator = torch.Generator().manual_seed(2)
    first, second = (3 * volume + torch.randn(volume.shape, generator=generator) for _ in range(2))
    fsc = fourier_shell_correlation(first, second)
    reference = Reference((first + second) / 2, (first, second), fsc, PIXEL_A)
    with caplog.at_level("WARNING"):
        match_map(shown(volume), reference)
    assert ("its hand could not be told: the mirrored map fits about as well (" in caplog.text) is not told


def write_reference(path: Path, volume: Tensor, pixel_A: float) -> Path:
    with mrcfile.new(path) as file:
        file.set_data(volume.numpy())
        file.voxel_size = pixel_A
    return path


def test_the_reference_of_a_map_alone_judges_another_map(tmp_path: Path) -> None:
    """`predict --reference` compares with what its own images gave back."""
    volume = blob_volume(POSITIONS, SIZE)
    made = make_reference(noise=0.5)
    rebuilt = ReferenceMap(made.volume, torch.ones(SIZE // 2 + 1), PIXEL_A, average=made.volume, fsc=made.fsc)
    own = matched(shown(0.2 * volume, alone=True), rebuilt, None)
    path = write_reference(tmp_path / "map.mrc", 0.7 * volume, PIXEL_A)
    again = read_reference(path, own, None).volume
    assert float((again - own.volume).norm() / own.volume.norm()) < 0.05
    write_reference(tmp_path / "mirrored.mrc", blob_volume(POSITIONS * [1, 1, -1], SIZE), PIXEL_A)
    with pytest.raises(ImageStackError, match="the mirrored map fits better"):
        read_reference(tmp_path / "mirrored.mrc", own, None)
    write_reference(tmp_path / "unknown.mrc", volume, 0.0)
    with pytest.raises(ImageStackError, match="the header gives no pixel size; write it there"):
        read_reference(tmp_path / "unknown.mrc", own, None)


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with map.mrc and sim/train.star."""
    folder = tmp_path_factory.mktemp("simulated")
    simulate(folder)
    return folder


def test_train_shows_the_map_beside_the_particles_or_refuses_it(simulated: Path, tmp_path: Path) -> None:
    train = ("train", simulated / "sim" / "train.star", "--quiet", *TINY, "--epochs", 1, "--diameter", 120)
    succeed(*train, "-o", tmp_path / "model", "--simulate-from", simulated / "map.mrc")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["simulated_from"]["map"].endswith("map.mrc")
    assert config["calibrated_on"] == "held-out particles"
    assert config["settings"]["training.simulated"] == 0.75
    with mrcfile.open(simulated / "map.mrc") as file:
        data = np.array(file.data)
    with mrcfile.new(tmp_path / "mirrored.mrc") as file:
        file.set_data(data[:, :, ::-1].copy())
        file.voxel_size = PIXEL_A
    refused = cryoforum(*train, "-o", tmp_path / "other", "--simulate-from", tmp_path / "mirrored.mrc")
    assert refused.exit_code == 1
    assert "mirrored map fits better (" in refused.stderr
    assert not (tmp_path / "other").exists()
    again = cryoforum(
        *train, "-o", tmp_path / "model", "--simulate-from", tmp_path / "mirrored.mrc", "--overwrite",
        "--set", "training.simulated=0",
    )  # fmt: skip
    assert again.exit_code == 1
    assert "training.simulated is 0" in again.stderr


def test_reference_means_that_every_image_is_simulated(simulated: Path, tmp_path: Path) -> None:
    train = ("train", simulated / "sim" / "train.star", "--quiet", *TINY, "--epochs", 1)
    succeed(*train, "-o", tmp_path / "model", "--simulate-from", "reference")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    assert config["settings"]["training.simulated"] == 1.0
    assert config["simulated_from"] is None
    assert config["calibrated_on"] == "held-out particles"
