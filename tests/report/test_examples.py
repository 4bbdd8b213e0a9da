"""Example images look like the reference in their own pose, and like nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import mrcfile
import numpy as np
import pytest
import torch
from blobs import blob_positions, blob_volume, correlation
from chain import succeed
from scipy.spatial.transform import Rotation

from cryoforum_plugin.formats import read_particles, write_particles
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.network.model import Model, build_network, load_model, save_model
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.refinement.reference import from_map
from cryoforum_plugin.refinement.reference_file import write_references
from cryoforum_plugin.report.examples import find_examples, images_and_projections
from cryoforum_plugin.settings import Settings, with_values

VOLUME = blob_volume(blob_positions(12, 0.28 * 48), 48)
SIZE_A = 48 * 5.0


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with sim/particles.star, clear images with shifts and CTF, and a model with references."""
    folder = tmp_path_factory.mktemp("examples")
    with mrcfile.new(folder / "map.mrc") as file:
        file.set_data(VOLUME.numpy())
        file.voxel_size = 5.0
    succeed("simulate", folder / "map.mrc", "-o", folder / "sim", "--count", 40, "--snr", 2, "--quiet")
    settings = with_values(
        Settings(), {"images.diameter_A": 150.0, "images.size_px": 32, "network.channels": 8}
    )
    model = Model(
        build_network(settings, 32),
        settings,
        WorkingBox(0.8 * SIZE_A, 32),
        {"views": {"1": {"width": 1.0}}},
        {},
    )
    (folder / "model").mkdir()
    save_model(folder / "model", model, {})
    write_references(folder / "model", {0: from_map(VOLUME, 5.0)})
    return folder


@pytest.fixture
def particles(folder: Path) -> ParticleSet:
    return read_particles(folder / "sim" / "particles.star")


@pytest.fixture
def model(folder: Path) -> Model:
    return load_model(folder / "model", torch.device("cpu"))


def likeness(model: Model, particles: ParticleSet) -> torch.Tensor:
    """Correlation `(n,)` of images and projections."""
    return correlation(*images_and_projections(model, particles))


def test_images_look_like_projections_in_their_poses(model: Model, particles: ParticleSet) -> None:
    found = likeness(model, particles)
    assert found.min() > 0.5
    assert found.mean() > 0.8


@pytest.mark.parametrize(
    "mistake", ["transposed", "mirrored", "not recentred", "recentred twice", "dark", "no CTF"]
)
def test_a_wrong_convention_is_seen(model: Model, particles: ParticleSet, mistake: str) -> None:
    right = likeness(model, particles)
    q, shift_A = particles.require_rotation(), particles.shift_A
    assert shift_A is not None
    assert np.abs(shift_A).max() > 5
    changed = {
        "transposed": particles.with_poses(Rotation.from_quat(q).inv().as_quat(), shift_A),
        "mirrored": particles.with_poses(q * [1, 1, -1, -1], shift_A),
        "not recentred": particles.with_poses(q, 0 * shift_A),
        "recentred twice": particles.with_poses(q, 2 * shift_A),
        "dark": replace(particles, contrast_sign=-particles.contrast_sign),
        "no CTF": replace(particles, ctf=None),
    }[mistake]
    wrong = likeness(model, changed)
    assert wrong.mean() < right.mean() - 0.04
    if mistake in ("transposed", "mirrored", "dark"):
        assert wrong.mean() < 0.5
        assert (wrong < right).float().mean() > 0.9


def test_each_half_set_meets_its_own_reference(folder: Path, tmp_path: Path, particles: ParticleSet) -> None:
    settings = load_model(folder / "model", torch.device("cpu"))
    other = blob_volume(blob_positions(12, 0.28 * 48, seed=9), 48)
    write_references(tmp_path, {0: from_map(other, 5.0), 1: from_map(VOLUME, 5.0), 2: from_map(other, 5.0)})
    half_set = np.where(np.arange(len(particles)) < 20, 1, 2)
    found = likeness(replace(settings, directory=tmp_path), replace(particles, half_set=half_set))
    assert found[:20].mean() > found[20:].mean() + 0.2


def test_a_box_of_another_size_is_compared_at_the_same_scale(
    tmp_path: Path, model: Model, particles: ParticleSet
) -> None:
    wide = torch.nn.functional.pad(VOLUME, [8] * 6)
    write_references(tmp_path, {0: from_map(wide, 5.0)})
    assert likeness(replace(model, directory=tmp_path), particles).mean() > 0.8


def predicted(particles: ParticleSet, folder: Path, confidence: np.ndarray) -> ParticleSet:
    """Write predicted.star into `folder`; return what is read of it."""
    error = 50 - 40 * confidence
    prediction = Prediction(
        confidence, particles.rotation, particles.shift_A, error, bingham=np.ones((len(error), 10))
    )
    write_particles(particles, folder / "predicted.star", prediction)
    return read_particles(folder / "predicted.star")


def test_the_surest_and_the_least_sure_are_shown(
    folder: Path, tmp_path: Path, particles: ParticleSet
) -> None:
    confidence = np.linspace(0.02, 0.8, 40)
    table = predicted(particles, tmp_path, confidence)
    found = find_examples({"few": table[:10], "all": table}, folder / "model")
    assert not isinstance(found, str)
    assert found.images.shape == found.expected.shape == (12, *found.images.shape[1:])
    shown = [caption.split(",")[0] for caption in found.captions]
    assert shown == [f"{c:.3f}" for c in [*confidence[:-7:-1], *confidence[:6]]]
    assert found.captions[0].endswith("18°")


def test_unreadable_images_are_left_out(folder: Path, tmp_path: Path, particles: ParticleSet) -> None:
    (tmp_path / "stack.mrcs").write_bytes((folder / "sim" / "particles.mrcs").read_bytes())
    with mrcfile.open(tmp_path / "stack.mrcs", "r+") as file:
        file.data[-1] = 0
        file.data[0] = np.nan
    table = predicted(particles, tmp_path, np.linspace(0.02, 0.8, 40))
    table = replace(table, stacks=(tmp_path / "stack.mrcs",))
    found = find_examples({"all": table}, folder / "model")
    assert not isinstance(found, str)
    assert found.captions[0].startswith("0.780")
    assert found.captions[6].startswith("0.040")


def test_what_is_missing_is_said(folder: Path, tmp_path: Path, particles: ParticleSet) -> None:
    table = predicted(particles, tmp_path, np.linspace(0.02, 0.8, 40))
    missing = replace(table, stacks=(tmp_path / "gone.mrcs",))
    assert "gone.mrcs" in str(find_examples({"all": missing}, folder / "model"))
    assert "is not known" in str(find_examples({"all": table}, None))
    assert not isinstance(find_examples({"all": missing, "others": table[:20]}, folder / "model"), str)
    (tmp_path / "model").mkdir()
    for name in ("model.pt", "config.json"):
        (tmp_path / "model" / name).write_bytes((folder / "model" / name).read_bytes())
    assert "no reference" in str(find_examples({"all": table}, tmp_path / "model"))
