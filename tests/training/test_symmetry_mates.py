"""Replacing every label by a random symmetry mate changes nothing: loss, gradient, errors, maps, figures."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from blobs import blob_volume, positions_with
from chain import TINY, succeed
from particle_tables import make_particles, make_prediction

from cryoforum_plugin import formats
from cryoforum_plugin.confidence.calibration import fit
from cryoforum_plugin.confidence.evaluation import evaluate
from cryoforum_plugin.confidence.labels import errors
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import (
    angular_distance,
    quaternion_to_relion_euler,
    random_quaternions,
    symmetry_group,
)
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.learning.losses import distance_loss, orientation_loss
from cryoforum_plugin.learning.pairs import stratified_pairs
from cryoforum_plugin.learning.validation import Labels, ValidationData, validate
from cryoforum_plugin.network import NetworkOutput
from cryoforum_plugin.posterior import align_to_copy, matrix_about, matrix_from_upper, mode, upper_from_matrix
from cryoforum_plugin.reconstruction.backproject import BackProjector
from cryoforum_plugin.reconstruction.write import write_map
from cryoforum_plugin.settings import LossSettings, Settings

SIZE = 32
GROUPS = ["C4", "D2", "D7", "D7Y", "T", "O", "I1"]
Mates = Callable[[torch.Tensor, str], torch.Tensor]


@pytest.fixture
def mates(generator: torch.Generator) -> Mates:
    """Return a function that replaces each of `(n, 4)` poses by a random equivalent one."""

    def replaced(q: torch.Tensor, symmetry: str) -> torch.Tensor:
        group = torch.from_numpy(symmetry_group(symmetry)).to(q)
        return roma.quat_product(group[torch.randint(len(group), (len(q),), generator=generator)], q)

    return replaced


def labels(n: int = 64) -> torch.Tensor:
    return torch.nn.functional.normalize(
        random_quaternions(n, torch.Generator().manual_seed(2)).double(), dim=1
    )


@pytest.mark.parametrize("reduced", [False, True])
@pytest.mark.parametrize("symmetry", GROUPS)
def test_loss_and_gradient(symmetry: str, reduced: bool, mates: Mates) -> None:
    known = Labels(symmetry, reduced, torch.device("cpu"))
    weights = LossSettings(geodesic=0.5, chordal=0.3)
    first, second = torch.arange(0, 32), torch.arange(32, 64)
    found = []
    for q in (labels(), mates(labels(), symmetry)):
        theta = 30 * torch.randn(64, 10, dtype=torch.double, generator=torch.Generator().manual_seed(3))
        theta.requires_grad_()
        matrix, label = matrix_from_upper(theta), known.of(q)
        loss = orientation_loss(matrix, label, known.equivalent.double(), weights).mean()
        loss = loss + distance_loss(matrix, label, first, second, known.equivalent.double())
        loss.backward()
        found.append((loss.detach(), theta.grad))
    torch.testing.assert_close(found[0][0], found[1][0], rtol=1e-5, atol=0)
    torch.testing.assert_close(found[0][1], found[1][1], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("symmetry", GROUPS)
def test_pairs_are_drawn_alike(symmetry: str, mates: Mates) -> None:
    group = torch.from_numpy(symmetry_group(symmetry))
    drawn = [
        stratified_pairs(q, group, 256, torch.Generator().manual_seed(0))
        for q in (labels(), mates(labels(), symmetry))
    ]
    assert torch.equal(*drawn)


class Answers(torch.nn.Module):
    """Stands for a network: gives noisy matrices about known poses, whatever it is shown."""

    def __init__(self, q: torch.Tensor) -> None:
        super().__init__()
        precision = 100 * torch.eye(3, dtype=torch.double).expand(len(q), 3, 3)
        turned = roma.quat_product(q, roma.rotvec_to_unitquat(0.1 * torch.randn(len(q), 3).double()))
        self.matrix = matrix_about(turned, precision)

    def forward(self, images: torch.Tensor) -> NetworkOutput:
        n = len(images)
        return NetworkOutput(self.matrix[:n], torch.zeros(n, 2), torch.zeros(n), torch.zeros(n, 3))


@pytest.mark.parametrize("symmetry", GROUPS)
def test_validation_and_calibration(symmetry: str, mates: Mates) -> None:
    q, network = labels(), Answers(labels())
    images, settings = torch.randn(64, 16, 16).half(), Settings(symmetry=symmetry)
    known = Labels(symmetry, False, torch.device("cpu"))
    raw = RawPrediction(
        upper_from_matrix(network.matrix), torch.zeros(64, 2), torch.ones(64), torch.zeros(64, 3),
        torch.zeros(64, dtype=torch.bool),
    )  # fmt: skip
    found = []
    for label in (q, mates(q, symmetry)):
        figures = validate(network, ValidationData(images, label), known, settings)
        factors = fit(
            raw, errors(raw, label.numpy(), torch.from_numpy(symmetry_group(symmetry))), np.ones((64, 2))
        )
        found.append((*figures, factors.width, factors.shift))
    np.testing.assert_allclose(found[0], found[1], rtol=1e-5)


@pytest.mark.parametrize("symmetry", GROUPS)
def test_views_are_averaged_about_the_same_copy(symmetry: str, mates: Mates) -> None:
    """Whichever copy a view finds, it is brought to the one nearest to the first view's."""
    group = torch.from_numpy(symmetry_group(symmetry))
    q, precision = labels(), 50 * torch.eye(3, dtype=torch.double).expand(64, 3, 3)
    nearby = roma.quat_product(q, roma.rotvec_to_unitquat(0.01 * torch.randn(64, 3).double()))
    straight = align_to_copy(matrix_about(nearby, precision), q, group)
    turned = align_to_copy(matrix_about(mates(nearby, symmetry), precision), q, group)
    torch.testing.assert_close(straight, turned, rtol=1e-6, atol=1e-6)
    assert (mode((straight + turned) / 2) * q).sum(1).abs().min() > 0.999


@pytest.mark.parametrize("symmetry", GROUPS)
def test_reference_and_reconstruction(symmetry: str, mates: Mates) -> None:
    """The symmetrised map of particles and of their mates differ by no more than interpolation."""
    q = random_quaternions(300, torch.Generator().manual_seed(4))
    images = Projector(blob_volume(positions_with(symmetry), SIZE), 1.0).project(roma.unitquat_to_rotmat(q))
    transforms = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
    group = roma.unitquat_to_rotmat(torch.from_numpy(symmetry_group(symmetry)).float())
    maps = []
    for label in (q, mates(q, symmetry)):
        projector = BackProjector(SIZE)
        projector.insert(transforms, roma.unitquat_to_rotmat(label))
        projector.symmetrise(group)
        maps.append(projector.volume())
    assert (maps[0] - maps[1]).norm() / maps[0].norm() < 0.03


@pytest.mark.parametrize("symmetry", GROUPS)
def test_evaluation(symmetry: str, mates: Mates, tmp_path: Path) -> None:
    known = make_particles(tmp_path, 40)
    predicted = replace(known, prediction=make_prediction(40))
    turned = roma.rotvec_to_unitquat(0.2 * torch.randn(40, 3).double())
    predicted = predicted.with_poses(
        roma.quat_product(torch.from_numpy(known.require_rotation()), turned).numpy(), known.shift_A
    )
    figures = []
    for reference in (
        known,
        known.with_poses(mates(torch.from_numpy(known.require_rotation()), symmetry).numpy(), known.shift_A),
    ):
        figures.append(evaluate(predicted, reference, symmetry)[0])
    assert figures[0].keys() == figures[1].keys()
    for name, value in figures[0].items():
        if value is not None:
            assert figures[1][name] == pytest.approx(value, rel=1e-6, abs=1e-9), name


def test_a_whole_training_with_mates_has_the_same_loss_curve(mates: Mates, tmp_path: Path) -> None:
    """Without simulated images: those come from a reference that interpolation changes a little."""
    write_map(tmp_path / "map.mrc", blob_volume(positions_with("D2"), SIZE), 5.0)
    succeed(
        "simulate", tmp_path / "map.mrc", "-o", tmp_path / "sim", "--count", 160, "--snr", 1, "--quiet", "--split", 0.75,
        0.25,
    )  # fmt: skip
    table = tmp_path / "sim" / "train.star"
    particles = formats.read_particles(table, tmp_path)
    moved = particles.with_poses(
        mates(torch.from_numpy(particles.require_rotation()), "D2").numpy(), particles.shift_A
    )
    formats.write_particles(moved, tmp_path / "sim" / "mates.star", data_root=tmp_path)
    curves = []
    for name in ("train", "mates"):
        succeed(
            "train", tmp_path / "sim" / f"{name}.star", "-o", tmp_path / name, "--symmetry", "D2", "--quiet", *TINY,
            "--set", "training.simulated=0", "--set", "training.learning_rate=1e-4", "--diameter", 120,
            "--data-root", tmp_path,
        )  # fmt: skip
        columns = np.genfromtxt(tmp_path / name / "metrics.csv", delimiter=",", names=True)
        curves.append([columns[key] for key in ("train_loss", "validation_loss")])
    # 96 steps multiply rounding: poses moved by 1e-7 rad change the curve as much
    np.testing.assert_allclose(curves[0], curves[1], rtol=1e-2)
    out = tmp_path / "predicted.star"
    succeed(
        "predict",
        tmp_path / "train",
        tmp_path / "sim" / "test.star",
        "-o",
        out,
        "--quiet",
        "--data-root",
        tmp_path,
    )
    predicted = formats.read_particles(out, tmp_path)
    assert predicted.prediction is not None
    assert predicted.prediction.bingham is not None
    found = torch.from_numpy(predicted.require_rotation())
    exported = mode(matrix_from_upper(torch.from_numpy(predicted.prediction.bingham).double()))
    assert angular_distance(found, exported).max() < 1e-4
    tilt, rot = (
        quaternion_to_relion_euler(found.numpy())[:, 1],
        quaternion_to_relion_euler(found.numpy())[:, 0],
    )
    assert tilt.max() < 90.001  # RELION's unit of D2
    assert (rot > -0.001).all()
