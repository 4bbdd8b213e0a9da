"""Training batches: every image shows what its label says, with the noise that was asked for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from blobs import blob_positions, blob_volume, correlation
from chain import simulate

from cryoforum_plugin import formats
from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.pipeline import remaining_transfer
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.images.working import finish, rim_deviation
from cryoforum_plugin.learning.batches import Batch, BatchMaker, TrainingData
from cryoforum_plugin.particles import Ctf
from cryoforum_plugin.settings import TrainingSettings, preset, with_values
from cryoforum_plugin.training.preparation import prepare

SIZE, COUNT, PIXEL_A = 32, 60, 5.0


def full(value: float) -> np.ndarray:
    return np.full(COUNT, value)


def make_data(noise: float, mode: str = "flip") -> TrainingData:
    """Recentred, CTF-corrected blob images with white noise of s.d. `noise`."""
    projector = Projector(blob_volume(blob_positions(12, 9.0), SIZE), PIXEL_A)
    rotation = random_quaternions(COUNT, torch.Generator().manual_seed(3))
    ctf = Ctf(full(15000), full(15000), full(0), full(300), full(2.7), full(0.1), full(0))
    transfer = remaining_transfer(ctf_2d(ctf, SIZE, PIXEL_A), mode)
    images = projector.project(roma.unitquat_to_rotmat(rotation), transfer)
    images = images + noise * torch.randn(images.shape)
    return TrainingData(images.half(), rotation, ctf, full(PIXEL_A), mode, projector)


def expected(data: TrainingData, batch: Batch) -> torch.Tensor:
    """Projections of the reference at the labels, with the CTF that all particles share."""
    transfer = remaining_transfer(ctf_2d(data.ctf, SIZE, PIXEL_A), data.ctf_mode)[: len(batch.shift)]
    matrices = roma.unitquat_to_rotmat(batch.rotation)
    shift_A = batch.shift * SIZE * PIXEL_A
    return data.projector.project(matrices, transfer, shift_A)


@pytest.mark.parametrize("mode", ["flip", "multiply", "keep"])
@pytest.mark.parametrize("simulated", [0.0, 0.5, 1.0])
def test_images_show_their_labels(mode: str, simulated: float) -> None:
    data = make_data(0.0, mode)
    settings = TrainingSettings(simulated=simulated, max_shift=0.1, noise_range=1.0)
    batch = BatchMaker(data, settings, torch.Generator().manual_seed(0)).make(torch.arange(40))
    assert batch.images.shape == (40, 1, SIZE, SIZE)
    assert batch.shift.abs().max() <= 0.1
    found = correlation(batch.images[:, 0], finish(expected(data, batch))[:, 0])
    wrong = correlation(batch.images[:, 0], finish(expected(data, batch))[:, 0].roll(1, 0))
    assert found.min() > 0.97
    assert wrong.max() < 0.97
    unshifted = expected(data, batch._replace(shift=torch.zeros_like(batch.shift)))
    assert found.mean() > correlation(batch.images[:, 0], finish(unshifted)[:, 0]).mean() + 0.02


@pytest.mark.parametrize("noise", [0.5, 4.0])
def test_noise_grows_by_the_factor_that_was_asked_for_whatever_its_strength(noise: float) -> None:
    data = make_data(noise)
    settings = TrainingSettings(simulated=0.0, noise_range=2.0)
    maker = BatchMaker(data, settings, torch.Generator().manual_seed(0))
    seen: list[torch.Tensor] = []
    original = finish.__globals__["normalise_background"]

    def spy(images: torch.Tensor, radius_px: float) -> torch.Tensor:
        seen.append(rim_deviation(images))
        return original(images, radius_px)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(finish.__globals__, "normalise_background", spy)
        maker.make(torch.arange(COUNT))
    factor = seen[0] / noise
    assert 0.85 < factor.min() < 1.2
    assert 1.6 < factor.max() < 2.2


@pytest.mark.parametrize("augmentation", ["none", "noise"])
def test_without_full_augmentation_images_and_labels_stay(augmentation: str) -> None:
    data = replace(make_data(1.0), shift=torch.rand(COUNT, 2))
    settings = TrainingSettings(simulated=0.0, augmentation=augmentation, noise_range=1.5)
    rows = torch.tensor([5, 2, 40])
    batch = BatchMaker(data, settings, torch.Generator().manual_seed(0)).make(rows)
    assert torch.equal(batch.rotation, data.rotation[rows])
    assert torch.equal(batch.shift, data.shift[rows])
    same = torch.equal(batch.images, finish(data.images[rows].float()))
    assert same == (augmentation == "none")
    assert correlation(batch.images[:, 0], finish(data.images[rows].float())[:, 0]).min() > 0.6


def test_preparation_keeps_uncentred_images_with_their_shifts_as_labels(tmp_path: Path) -> None:
    folder = simulate(tmp_path, 300)
    particles = formats.read_particles(folder / "train.star")
    reference = {}
    for augmentation in ("full", "noise"):
        values = {"training.augmentation": augmentation, "training.simulated": 0.0, "images.margin": None}
        settings = with_values(preset("default"), values)
        (tmp_path / augmentation).mkdir()
        prepared = prepare(particles, settings, tmp_path / augmentation, torch.device("cpu"), True)
        reference[augmentation] = prepared.reference.volume
    assert prepared.training.shift is not None
    expected = particles.shift_A[prepared.training_rows] / (32 * 5.0)
    np.testing.assert_allclose(prepared.training.shift.numpy(), expected, atol=1e-6)
    # the reference is made of recentred images either way
    assert correlation(reference["full"][None], reference["noise"][None]) > 0.98


def test_batches_repeat_with_the_seed() -> None:
    data = make_data(1.0)
    first, again, other = (
        BatchMaker(data, TrainingSettings(), torch.Generator().manual_seed(seed)).make(torch.arange(16))
        for seed in (5, 5, 6)
    )
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first.rotation, other.rotation)


def test_preparation_measures_the_particle_and_rebuilds_it(tmp_path: Path) -> None:
    folder = simulate(tmp_path, 600)
    settings = with_values(preset("default"), {"training.max_shift": "0.001"})
    prepared = prepare(
        formats.read_particles(folder / "train.star"), settings, tmp_path, torch.device("cpu"), True
    )
    box_A = 32 * 5.0
    assert 0.45 * box_A < prepared.settings.images.diameter_A < 0.85 * box_A  # blobs reach 0.28 of the box
    truth = blob_volume(blob_positions(12, 0.28 * 32), 32)
    volume = prepared.reference.volume
    size = volume.shape[-1]
    start = 16 - size // 2
    inside = truth[start : start + size, start : start + size, start : start + size]
    assert correlation(volume[None], inside[None]) > 0.8
    # the shifts of the data, 3 px of 32, are trained for although the setting is smaller
    assert prepared.settings.training.max_shift > 0.05
    assert len(prepared.training_rows) + len(prepared.validation_rows) == 450
