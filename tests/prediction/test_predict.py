"""The predictor with a network that knows the answer: recentring, tables of two samplings, odd boxes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from blobs import blob_positions, blob_volume
from particle_tables import make_particles

from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.images.stacks import StackReader, write_stack
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.network import NetworkOutput, PoseNetwork
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.settings import NetworkSettings, Settings, with_values

SIDE_A, SIZE = 120.0, 32


class CentreFinder(torch.nn.Module):
    """Stands for a network: finds the shift as the centre of mass, trusted only within `reach` of the box."""

    def __init__(self, reach: float) -> None:
        super().__init__()
        self.reach = reach

    def forward(self, images: torch.Tensor) -> NetworkOutput:
        bright = images[:, 0].clamp(min=1.0) - 1.0
        axis = (torch.arange(SIZE) - SIZE // 2).float()
        mass = bright.sum((1, 2)).clamp(min=1e-6)
        x, y = (bright.sum(1) * axis).sum(1) / mass, (bright.sum(2) * axis).sum(1) / mass
        shift = (-torch.stack([x, y], 1) / SIZE).clamp(-2 * self.reach, 2 * self.reach)
        n = len(images)
        return NetworkOutput(
            torch.eye(4).expand(n, 4, 4) * x[:, None, None], shift, torch.zeros(n), torch.zeros(n, 2)
        )


def particles_of(folder: Path, size: int, pixel_A: np.ndarray, shift_A: np.ndarray) -> ParticleSet:
    """Blob projections in boxes of `size` px, each displaced by -shift_A."""
    n = len(shift_A)
    volume = blob_volume(blob_positions(12, 5.0), 32)
    images = []
    for value, shift in zip(pixel_A, shift_A, strict=True):
        even = size - size % 2
        projector = Projector(torch.nn.functional.pad(volume, [(even - 32) // 2] * 6), float(value))
        image = projector.project(
            roma.unitquat_to_rotmat(torch.tensor([[0.0, 0, 0, 1]])),
            None,
            torch.from_numpy(shift[None]).float(),
        )
        images.append(torch.nn.functional.pad(image, [0, size % 2] * 2)[0])
    stack = folder / "blobs.mrcs"
    noise = 1e-3 * torch.randn(n, size, size, generator=torch.Generator().manual_seed(0))
    write_stack(stack, (torch.stack(images) + noise).numpy(), float(pixel_A[0]), overwrite=True)
    particles = make_particles(folder / "other", n)
    rows = np.arange(n)
    return replace(
        particles, stacks=(stack,), stack_index=0 * rows, slice_index=rows, pixel_size_A=pixel_A, ctf=None, shift_A=shift_A
    )  # fmt: skip


def predictor_for(particles: ParticleSet, network: torch.nn.Module, reach: float) -> Predictor:
    settings = with_values(Settings(), {"training.max_shift": reach, "network.channels": 4})
    box = WorkingBox(SIDE_A, SIZE)
    model = Model(
        PoseNetwork(SIZE, NetworkSettings(channels=4, features=8, hidden=16)).eval(), settings, box, {}, {}
    )
    reader = StackReader(particles.stacks)
    box_px = reader.check(particles)
    pipeline = ImagePipeline(particles, reader, box_px, box, "flip", 1.0, torch.device("cpu"))
    predictor = Predictor(model, pipeline, "32-true", 1)
    predictor.network = network
    return predictor


@pytest.mark.parametrize("size", [48, 49])
def test_far_off_centre_particles_are_recentred_until_they_are_found(tmp_path: Path, size: int) -> None:
    shift_A = np.array([[0.0, 0.0], [3.0, -4.0], [20.0, 8.0], [-24.0, 30.0]])
    particles = particles_of(tmp_path, size, np.full(4, 4.0), shift_A)
    reach = 0.06  # 7.2 A; the stand-in never reports more than twice that
    raw = predictor_for(particles, CentreFinder(reach), reach).predict(
        np.arange(4), 3, lambda steps, note: None
    )
    centred = predictor_for(
        particles_of(tmp_path / "c", size, np.full(4, 4.0), np.zeros((4, 2))), CentreFinder(1.0), 0.2
    )
    zero = centred.predict(np.arange(4), 4, lambda steps, note: None).shift_A[0].numpy()
    assert np.abs(raw.shift_A.numpy()[:3] - zero - shift_A[:3]).max() < 1.0
    assert np.abs(raw.shift_A.numpy()[3] - zero - shift_A[3]).max() < 8.0  # three passes cover most of it


def test_particles_of_two_samplings_in_one_table(tmp_path: Path) -> None:
    shift_A = np.array([[4.0, -6.0], [4.0, -6.0]])
    particles = particles_of(tmp_path, 64, np.array([4.0, 3.0]), shift_A)
    raw = predictor_for(particles, CentreFinder(1.0), 0.2).predict(np.arange(2), 8, lambda steps, note: None)
    zero = particles_of(tmp_path / "c", 64, np.array([4.0, 3.0]), np.zeros((2, 2)))
    base = predictor_for(zero, CentreFinder(1.0), 0.2).predict(np.arange(2), 8, lambda steps, note: None)
    assert np.abs((raw.shift_A - base.shift_A).numpy() - shift_A).max() < 0.6


def test_unreadable_images_are_nan_and_do_not_touch_others(tmp_path: Path) -> None:
    particles = particles_of(tmp_path, 48, np.full(3, 4.0), np.zeros((3, 2)))
    clean = predictor_for(particles, CentreFinder(1.0), 0.2).predict(
        np.arange(3), 8, lambda steps, note: None
    )
    stack = np.memmap(tmp_path / "blobs.mrcs", np.float32, "r+", offset=1024).reshape(3, 48, 48)
    stack[1, 5, 5] = np.nan
    stack.flush()
    raw = predictor_for(particles, CentreFinder(1.0), 0.2).predict(np.arange(3), 8, lambda steps, note: None)
    assert raw.unusable.tolist() == [False, True, False]
    assert torch.isnan(raw.bingham[1]).all()
    assert torch.equal(raw.shift_A[[0, 2]], clean.shift_A[[0, 2]])
