"""Training from a map and unaligned particles: what is measured of them, what is made, what comes out."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_volume
from chain import TINY, cryoforum, simulate, succeed, write_blob_map

from cryoforum_plugin import formats
from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.fourier import shell_index
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.images.stacks import StackReader, write_stack
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.maps.given import ShownMap, diameter_of, read_shown_map
from cryoforum_plugin.maps.volume import low_pass, resample
from cryoforum_plugin.settings import Settings, with_values
from cryoforum_plugin.simulation.draw import SimulationSettings, draw_particles
from cryoforum_plugin.simulation.from_map import make_particles
from cryoforum_plugin.simulation.map_contrast import fit_contrast
from cryoforum_plugin.simulation.simulate import Simulator
from cryoforum_plugin.simulation.unaligned import Spectra, map_power, measure_spectra

SIZE, PIXEL_A, DIAMETER_A = 48, 4.0, 110.0
ALONE = (*TINY, "--set", "map_alone.images=300", "--diameter", "120", "--quiet")


def blobs() -> torch.Tensor:
    return blob_volume(blob_positions(12, 9.0), SIZE)


def blurred(volume: torch.Tensor, b_A2: float) -> torch.Tensor:
    q = shell_index(len(volume), 3) / (len(volume) * PIXEL_A)
    return torch.fft.irfftn(torch.fft.rfftn(volume) * torch.exp(-b_A2 * q.square() / 4), s=volume.shape)


def unaligned(
    folder: Path, volume: torch.Tensor, snr: float, count: int = 400
) -> tuple[ImagePipeline, float]:
    """Images of a volume as a pipeline, shifted by up to 2 px, and the s.d. of their noise."""
    settings = SimulationSettings(count=count, snr=snr, shift_px=2, seed=5)
    simulator = Simulator(volume, PIXEL_A, settings)
    draw = draw_particles(settings, PIXEL_A, SIZE)
    write_stack(folder / "stack.mrcs", simulator.images(draw), PIXEL_A, overwrite=True)
    from cryoforum_plugin.simulation.write import particle_set

    particles = particle_set(draw, PIXEL_A, SIZE, folder / "stack.mrcs", folder / "x.star")
    particles = replace(particles, rotation=None, shift_A=None)
    reader, box = StackReader(particles.stacks), WorkingBox(DIAMETER_A * 1.2, 32)
    return (
        ImagePipeline(particles, reader, SIZE, box, "flip", 1.0, torch.device("cpu")),
        simulator.noise_std(draw),
    )


def measured(pipeline: ImagePipeline, size: int = SIZE) -> Spectra:
    rows = np.arange(len(pipeline.particles))
    return measure_spectra(pipeline, rows, size, DIAMETER_A, lambda n, text: None)


@pytest.mark.parametrize("b_A2", [0.0, 200.0, -60.0])
def test_the_fit_finds_amplitude_and_b_factor(tmp_path: Path, b_A2: float) -> None:
    """Images of a map blurred by B, noise of s.d. sigma: amplitude 1 / sigma within 5 %, B within 30 A^2."""
    pipeline, std = unaligned(tmp_path, blurred(blobs(), b_A2), snr=0.5)
    found = fit_contrast(measured(pipeline), map_power(blobs()), "x")
    assert found.amplitude * std == pytest.approx(1, rel=0.05)
    assert found.b_factor_A2 == pytest.approx(b_A2, abs=30)
    assert not found.cut


@pytest.mark.parametrize("kind", ["full", "15", "20", "25", "30", "40", "coarse"])
def test_a_filtered_or_coarse_map_is_compared_up_to_its_own_end(tmp_path: Path, kind: str) -> None:
    """Of low-passed maps, and of one of 10 A voxels, the power that is left does not set the amplitude."""
    pipeline, std = unaligned(tmp_path, blobs(), snr=0.5)
    coarse = resample(resample(blobs(), PIXEL_A, 20, 10.0), 10.0, SIZE, PIXEL_A)
    given = {"full": blobs(), "coarse": coarse}
    volume = given[kind] if kind in given else low_pass(blobs(), PIXEL_A, float(kind))
    found = fit_contrast(measured(pipeline), map_power(volume), "x")
    assert found.amplitude * std == pytest.approx(1, rel=0.06)
    assert abs(found.b_factor_A2) < (400 if kind == "coarse" else 200)
    if kind.isdigit():
        assert float(kind) < found.finest_A < 1.35 * float(kind)
    assert not found.cut


def test_a_low_passed_map_is_shown_as_bright_as_the_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pipeline, std = unaligned(tmp_path, blobs(), snr=0.5)
    (tmp_path / "made").mkdir()
    shown = ShownMap(Path("map.mrc"), low_pass(7 * blobs(), PIXEL_A, 30.0), PIXEL_A, "", alone=True)
    settings = with_values(Settings(), {"images.diameter_A": DIAMETER_A, "map_alone.images": 20})
    with caplog.at_level("WARNING"):
        made = make_particles(
            pipeline.particles, shown, settings, tmp_path / "made", torch.device("cpu"), quiet=True
        )
    factor = float((made.shown.volume * shown.volume).sum() / shown.volume.square().sum())
    assert factor * 7 * std == pytest.approx(1, rel=0.1)
    assert "the map ends at 38 A (filtered, or of large voxels), but the images show" in caplog.text


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("sharpened", r"B-factor of \d{4} A\^2, where at most 2.7 and 1000 A\^2 are believed"),
        ("other", r"by a factor of \d\.\d \(r.m.s. over the Fourier shells to 16 A\)"),
        ("low-passed", "the map ends at 96 A, which leaves 2 Fourier shells to compare"),
    ],
)
def test_a_map_whose_power_is_not_that_of_the_images_is_refused(
    tmp_path: Path, kind: str, words: str
) -> None:
    pipeline, _ = unaligned(tmp_path, blobs(), snr=0.5)
    power = map_power(blobs())
    wrong = {
        "sharpened": map_power(blurred(blobs(), -1500)),
        "other": power * torch.tensor([1.0, 30.0]).repeat(13)[:25],
        "low-passed": power * (torch.arange(25) < 3),
    }[kind]
    with pytest.raises(ImageStackError, match=words):
        fit_contrast(measured(pipeline), wrong, "x")


def test_the_noise_is_that_of_the_images_cropped_or_not(tmp_path: Path) -> None:
    pipeline, _ = unaligned(tmp_path, blobs(), snr=0.5)
    for size in (48, 40):
        spectra = measured(pipeline, size)
        assert spectra.pixel_size_A == pytest.approx(PIXEL_A * 48 / size)
        level = spectra.noise / size**2  # white, of s.d. 1 before cropping
        assert level[1:-1] == pytest.approx(np.full(size // 2 - 1, (size / 48) ** 2), rel=0.1)


def test_filtered_images_end_where_their_filter_ended(tmp_path: Path) -> None:
    pipeline, _ = unaligned(tmp_path, low_pass(blobs(), PIXEL_A, 25.0), snr=2)
    found = fit_contrast(measured(pipeline), map_power(blobs()), "x")
    assert found.cut
    gain = found.gain(torch.tensor([1 / 40, 1 / 18]).double())
    assert gain[0] > 0.7 * found.amplitude
    assert gain[1] < 0.01 * found.amplitude


def test_images_without_particles_are_refused(tmp_path: Path) -> None:
    pipeline, _ = unaligned(tmp_path, blobs(), snr=1e-5, count=100)
    with pytest.raises(ImageStackError, match="no particle can be told from the noise in 100 images"):
        fit_contrast(measured(pipeline), map_power(blobs()), "x")


@pytest.mark.parametrize("colour_A2", [0.0, 60.0])
def test_the_images_made_are_like_the_data(tmp_path: Path, colour_A2: float) -> None:
    """Signal and noise of what is made, measured in the same way, are those of the images it was made after.

    colour_A2 : B-factor of what the detector does to signal and noise alike.
    """
    pipeline, _ = unaligned(tmp_path, blurred(blobs(), 100.0), snr=0.5)
    q = shell_index(SIZE) / (SIZE * PIXEL_A)
    transform = torch.fft.rfft2(pipeline.read(np.arange(400))) * torch.exp(-colour_A2 * q.square() / 4)
    write_stack(tmp_path / "stack.mrcs", torch.fft.irfft2(transform).numpy(), PIXEL_A, overwrite=True)
    pipeline = replace(pipeline, reader=StackReader(pipeline.particles.stacks))
    (tmp_path / "made").mkdir()
    shown = ShownMap(Path("map.mrc"), 7 * blobs(), PIXEL_A, "", alone=True)
    values = {"images.diameter_A": DIAMETER_A, "map_alone.images": 400, "map_alone.contrast_spread": 0.0}
    settings = with_values(Settings(), values)
    made = make_particles(
        pipeline.particles, shown, settings, tmp_path / "made", torch.device("cpu"), quiet=True
    )
    particles = made.particles
    again = measured(replace(pipeline, particles=particles, reader=StackReader(particles.stacks)))
    before = measured(pipeline)
    assert again.noise[2:-1] == pytest.approx(before.noise[2:-1], rel=0.1)  # 1: the mean is taken out
    assert again.signal[1:9] == pytest.approx(before.signal[1:9], rel=0.2)
    assert np.isin(particles.require_ctf().defocus_u_A, pipeline.particles.require_ctf().defocus_u_A).all()
    assert np.std(particles.shift_A) == pytest.approx(0.015 * SIZE * PIXEL_A, rel=0.1)


def test_the_diameter_is_that_of_the_density() -> None:
    alone = ShownMap(Path("map.mrc"), blobs(), PIXEL_A, "", alone=True)
    outermost_A = 2 * PIXEL_A * float(np.linalg.norm(blob_positions(12, 9.0), axis=1).max())
    assert outermost_A < diameter_of(alone, None) < outermost_A + 10 * PIXEL_A
    with pytest.raises(ImageStackError, match="192 A is smaller than the particle of 300 A"):
        diameter_of(alone, 300.0)


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with map.mrc, sim/ (train without poses), and a model that saw no refined particle."""
    folder = tmp_path_factory.mktemp("alone")
    simulate(folder)
    poseless = replace(
        formats.read_particles(folder / "sim" / "train.star"), rotation=None, shift_A=None, host=None
    )
    formats.write_particles(poseless, folder / "picks.star")
    train(folder, folder / "model")
    return folder


def train(folder: Path, model: Path, *options: object) -> None:
    succeed(
        "train", "--simulate-from", folder / "map.mrc", "--ctf-from", folder / "picks.star", "-o", model, *ALONE, *options
    )  # fmt: skip


def test_a_map_alone_predicts_real_particles(alone: Path, tmp_path: Path) -> None:
    done = succeed(
        "predict", alone / "model", alone / "sim" / "test.star", "-o", tmp_path / "p.star", "--quiet"
    )
    assert "calibrated on simulated images" in done.stderr
    succeed("evaluate", tmp_path / "p.star", alone / "sim" / "test.star", "--json", tmp_path / "e.json")
    assert json.loads((tmp_path / "e.json").read_text())["median_deg"] < 60  # 126 is chance


def test_the_model_says_what_it_was_made_from(alone: Path) -> None:
    config = json.loads((alone / "model" / "config.json").read_text())
    assert config["calibrated_on"] == "simulated images"
    assert config["simulated_from"]["map"].endswith("map.mrc")
    assert config["simulated_from"]["ctf_from"][0].endswith("picks.star")
    assert len(config["simulated_from"]["sha256"]) == 64
    assert config["settings"]["training.simulated"] == 1.0
    assert config["particles"] == {"training": 270, "validation": 30}
    calibration = json.loads((alone / "model" / "calibration.json").read_text())
    assert calibration["calibrated_on"] == "simulated images"
    assert calibration["wrong_labels"] == 0  # the poses of images that were made are exact
    assert calibration["views"]["1"]["implausible_labels"] == 0
    assert not (alone / "model" / "suspect_labels.csv").exists()
    assert "part of wrong poses" not in (alone / "model" / "log.txt").read_text()
    assert "calibrated on simulated images" in (alone / "model" / "log.txt").read_text()
    assert "signal to noise" in (alone / "model" / "log.txt").read_text()


def test_resume_goes_on_with_the_same_images_and_no_others(
    alone: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cryoforum_plugin.learning import loop

    save, model = loop.Trainer.save, tmp_path / "resumed"
    monkeypatch.setattr(loop, "CHECKPOINT_SECONDS", 0.0)

    def save_then_die(self: loop.Trainer) -> None:
        save(self)
        if self.epoch == 2:
            raise KeyboardInterrupt

    command = ("train", "--ctf-from", alone / "picks.star", "-o", model, *ALONE)
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "save", save_then_die)
        assert cryoforum(*command, "--simulate-from", alone / "map.mrc").exit_code == 130
    write_blob_map(tmp_path / "map.mrc", 36)
    other = cryoforum(*command, "--simulate-from", tmp_path / "map.mrc", "--resume")
    assert other.exit_code == 1
    assert "other particles, map or settings" in other.stderr
    succeed(*command, "--simulate-from", alone / "map.mrc", "--resume")
    weights = [torch.load(m / "model.pt", weights_only=True)["weights"] for m in (alone / "model", model)]
    assert all(torch.allclose(weights[0][name], weights[1][name], atol=1e-4) for name in weights[0])


def test_dark_protein_is_refused_or_inverted(alone: Path, tmp_path: Path) -> None:
    with mrcfile.open(alone / "sim" / "particles.mrcs") as file:
        images = -np.array(file.data)
    write_stack(tmp_path / "particles.mrcs", images, 5.0)
    picks = formats.read_particles(alone / "picks.star")
    formats.write_particles(
        replace(picks, stacks=(tmp_path / "particles.mrcs",), host=None), tmp_path / "dark.star"
    )
    command = ("train", "--simulate-from", alone / "map.mrc", "--ctf-from", tmp_path / "dark.star", *ALONE)
    refused = cryoforum(*command, "-o", tmp_path / "refused")
    assert refused.exit_code == 1
    assert "--invert-contrast" in refused.stderr
    succeed(*command, "-o", tmp_path / "model", "--invert-contrast")
    straight, inverted = (
        json.loads((model / "calibration.json").read_text())["views"]["1"]["validation_median_deg"]
        for model in (alone / "model", tmp_path / "model")
    )
    assert inverted == pytest.approx(straight, abs=5)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give PARTICLES, or --simulate-from MAP"),
        (["--ctf-from", "picks.star"], "give PARTICLES, or --simulate-from MAP"),
        (["--simulate-from", "reference"], "needs PARTICLES"),
        (["--simulate-from", "reference", "--ctf-from", "picks.star"], "needs PARTICLES"),
        (["--simulate-from", "map.mrc"], "needs --ctf-from"),
        (["picks.star", "--ctf-from", "picks.star"], "--ctf-from is for training without PARTICLES"),
        (["picks.star", "--map-pixel-size", "2"], "--map-pixel-size needs --simulate-from MAP"),
    ],
)
def test_sources_that_mean_nothing_together_are_usage_errors(
    project: Path, arguments: list[str], words: str
) -> None:
    result = cryoforum("train", *arguments, "-o", "model")
    assert result.exit_code == 2
    assert words in " ".join(result.stderr.replace("│", " ").split())
    assert not (project / "model").exists()


def write_map(path: Path, data: np.ndarray, voxel_A: float) -> None:
    with mrcfile.new(path) as file:
        file.set_data(data.astype(np.float32))
        file.voxel_size = voxel_A


@pytest.mark.parametrize(
    ("case", "options", "words"),
    [
        ("missing", [], "no such map"),
        ("not cubic", [], "a cubic map is needed, this one is 32 x 32 x 30"),
        ("no pixel size", [], "pass --map-pixel-size"),
        ("empty", [], "the map is empty"),
        ("good", ["--diameter", "200"], "box of 160 A is smaller than the particle of 200 A"),
        ("good", ["--map-pixel-size", "10", "--diameter", "300"], "show 160 A, but the particle of"),
        ("good", ["--symmetry", "C2"], "does not have the symmetry C2: turned by one of its operators"),
        ("good", ["--preset", "paper"], "needs training.simulated 0"),
    ],
)
def test_maps_that_cannot_be_used_are_one_line(
    alone: Path, tmp_path: Path, case: str, options: list[str], words: str
) -> None:
    data = blob_volume(blob_positions(12, 9.0), 32).numpy()
    if case != "missing":
        changed = {"not cubic": data[:, :, :30], "empty": np.ones_like(data)}.get(case, data)
        write_map(tmp_path / "map.mrc", changed, 0.0 if case == "no pixel size" else 5.0)
    result = cryoforum(
        "train", "--simulate-from", tmp_path / "map.mrc", "--ctf-from", alone / "picks.star", "-o", tmp_path / "model", *options
    )  # fmt: skip
    assert result.exit_code == 1
    assert words in result.stderr
    assert result.stderr.count("cryoforum: error:") == 1
    assert not (tmp_path / "model").exists()


def test_a_map_without_a_pixel_size_is_read_with_the_one_given(tmp_path: Path) -> None:
    write_map(tmp_path / "map.mrc", blob_volume(blob_positions(12, 9.0), 32).numpy() + 5, 0.0)
    shown = read_shown_map(tmp_path / "map.mrc", 4.0)
    assert shown.side_A == 128
    assert abs(float(shown.volume[0, 0, 0])) < 1e-3  # solvent
    shutil.copy(tmp_path / "map.mrc", tmp_path / "copy.mrc")
    assert read_shown_map(tmp_path / "copy.mrc", 4.0).identity() == shown.identity()


def test_an_odd_box_gets_planes_of_solvent(tmp_path: Path) -> None:
    """The solvent is at 5: planes of zeros would be walls of -5, with most of the map's power."""
    odd = blob_volume(blob_positions(12, 9.0), 33)
    write_map(tmp_path / "map.mrc", odd.numpy() + 5, 4.0)
    shown = read_shown_map(tmp_path / "map.mrc").volume
    assert shown.shape == (34, 34, 34)
    assert torch.allclose(shown[1:, 1:, 1:], odd, atol=1e-3)
    assert float(shown.square().sum()) == pytest.approx(float(odd.square().sum()), rel=0.01)
