"""Several hypotheses: a nearly C2 molecule, of which one mode cannot say which of two views it shows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_volume, positions_with
from chain import TINY, cryoforum, quick_networks, succeed
from scipy.spatial.transform import Rotation

import cryoforum_plugin.prediction.run as run
from cryoforum_plugin import formats
from cryoforum_plugin.confidence.alternatives import ALTERNATIVE
from cryoforum_plugin.confidence.calibration import Calibration
from cryoforum_plugin.confidence.labels import label_nll
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.network.device import choose_device
from cryoforum_plugin.network.model import load_model
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.prediction.run import PredictOptions, predict_particles

NEAR_DEG = 20.0
C1 = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).double()


@pytest.fixture(scope="module", autouse=True)
def _quick() -> Iterator[None]:
    with quick_networks():
        yield


def write_map(path: Path, blobs: np.ndarray) -> None:
    with mrcfile.new(path) as file:
        file.set_data(blob_volume(blobs, 32).numpy())
        file.voxel_size = 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Simulated particles of seven pairs of blobs, C2 but for one small blob more, and models of 1 and 2 modes."""
    folder = tmp_path_factory.mktemp("modes")
    half = blob_positions(7, 9.0)
    blobs = np.concatenate([half, half * [-1, -1, 1], [[4.0, 3.0, 2.0]]])
    write_map(folder / "map.mrc", blobs)
    succeed(
        "simulate", folder / "map.mrc", "-o", folder / "sim", "--count", 2000, "--snr", 2, "--quiet",
        "--split", 0.75, 0.25,
    )  # fmt: skip
    for modes in (1, 2):
        setting = f"network.modes={modes}"
        succeed(
            "train", folder / "sim" / "train.star", "-o", folder / f"{modes}", *TINY, "--epochs", 9,
            "--set", setting, "--set", "training.simulated=0.5", "--quiet",
        )  # fmt: skip
    return folder


def test_set(folder: Path) -> ParticleSet:
    return formats.read_particles(folder / "sim" / "test.star")


test_set.__test__ = False  # type: ignore[attr-defined]


def predict(folder: Path, modes: int) -> tuple[RawPrediction, Calibration, Prediction]:
    """Raw answers for the test particles, what calibrates them, and the two together."""
    caught: list[tuple[RawPrediction, Calibration]] = []
    original = run.calibrated

    def spy(raw: RawPrediction, factors: Calibration, *rest: Any, **more: Any) -> Prediction:
        caught.append((raw, factors))
        return original(raw, factors, *rest, **more)

    model = load_model(folder / f"{modes}", torch.device("cpu"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "calibrated", spy)
        patch.setattr(run, "FEWEST", 1000)  # all at once
        options = PredictOptions(views=2, quiet=True, refine=False)
        found, _ = predict_particles(model, test_set(folder), choose_device("cpu"), "32-true", options)
    return *caught[0], found


def errors_deg(rotation: np.ndarray, known: np.ndarray) -> np.ndarray:
    return np.degrees((Rotation.from_quat(rotation) * Rotation.from_quat(known).inv()).magnitude())


def test_two_modes_hold_a_pseudo_symmetric_particle_better_than_one(folder: Path) -> None:
    known = test_set(folder).require_rotation()
    (raw_one, factors_one, one), (raw_two, factors_two, two) = (predict(folder, k) for k in (1, 2))
    assert raw_one.modes is None
    assert one.alternative_weight is None
    assert raw_two.modes.shape == (len(known), 2, 10)
    torch.testing.assert_close(raw_two.modes[:, 0], raw_two.bingham, atol=1e-3, rtol=1e-4)
    nll_one = label_nll(raw_one, factors_one, known, C1).mean()
    nll_two = label_nll(raw_two, factors_two, known, C1).mean()
    assert nll_two < nll_one - 0.4
    first = errors_deg(two.rotation, known)
    other = np.where(two.alternative_weight > 0, errors_deg(two.alternative_rotation, known), np.inf)
    near = (np.minimum(first, other) < NEAR_DEG).mean()
    assert near > (errors_deg(one.rotation, known) < NEAR_DEG).mean() + 0.04
    # what is said of the error takes account of the other mode
    named = two.alternative_weight > 0
    assert (two.alternative_weight[named] > ALTERNATIVE).all()
    assert two.expected_error_deg[named].mean() > 2 * two.expected_error_deg[~named].mean()
    assert 0.84 < (first <= two.credible_radius_90_deg).mean() < 0.96
    assert two.confidence.mean() == pytest.approx((first < 5).mean(), abs=0.15)


def test_a_network_starts_only_from_one_with_as_many_modes(folder: Path, tmp_path: Path) -> None:
    result = cryoforum(
        "train", folder / "sim" / "train.star", "-o", tmp_path / "m", *TINY, "--init-from", folder / "2",
        "--set", "network.modes=1", "--quiet",
    )  # fmt: skip
    assert result.exit_code == 1
    assert "network.modes" in result.output


def test_modes_symmetry_and_wrong_labels_together(tmp_path: Path) -> None:
    """D2 blobs, labels moved to random copies and a tenth of them wrong, two modes, all in one training."""
    write_map(tmp_path / "map.mrc", positions_with("D2", 3))
    succeed(
        "simulate", tmp_path / "map.mrc", "-o", tmp_path / "sim", "--count", 800, "--snr", 2, "--quiet",
        "--split", 0.75, 0.25,
    )  # fmt: skip
    particles = formats.read_particles(tmp_path / "sim" / "train.star")
    rng = np.random.default_rng(2)
    group = Rotation.from_quat(symmetry_group("D2"))
    rotation = (group[rng.integers(4, size=600)] * Rotation.from_quat(particles.require_rotation())).as_quat()
    rotation[:60] = Rotation.random(60, rng=rng).as_quat()
    formats.write_particles(particles.with_poses(rotation, particles.shift_A), tmp_path / "wrong.star")
    succeed(
        "train", tmp_path / "wrong.star", "-o", tmp_path / "m", *TINY, "--epochs", 5, "--symmetry", "D2",
        "--set", "network.modes=2", "--set", "training.simulated=0.25", "--quiet",
    )  # fmt: skip
    metrics = np.genfromtxt(tmp_path / "m" / "metrics.csv", delimiter=",", names=True)
    assert metrics["validation_loss"].min() < metrics["validation_loss"][0] - 0.5
    assert 0.04 < metrics["wrong_labels"][-1] < 0.16
    test = tmp_path / "sim" / "test.star"
    succeed("predict", tmp_path / "m", test, "-o", tmp_path / "p.star", "--quiet")
    found, known = formats.read_particles(tmp_path / "p.star"), formats.read_particles(test)
    assert found.prediction is not None
    weight = found.prediction.alternative_weight
    assert weight is not None
    assert ((weight == 0) | ((weight > ALTERNATIVE) & (weight <= 0.5))).all()
    angles = [
        errors_deg(found.require_rotation(), (one * Rotation.from_quat(known.require_rotation())).as_quat())
        for one in group
    ]
    error = np.min(angles, axis=0)
    assert np.median(error) < 25  # chance is 60 modulo D2
    assert 0.75 < (error <= found.prediction.credible_radius_90_deg).mean() < 0.99
