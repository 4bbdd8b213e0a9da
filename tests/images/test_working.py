"""The working box: resampling, recentring, window, normalisation."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from particle_tables import make_particles

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.pipeline import ImagePipeline, unusable
from cryoforum_plugin.images.stacks import StackReader, write_stack
from cryoforum_plugin.images.working import (
    WorkingBox,
    cut_window,
    finish,
    normalise_background,
    rim_deviation,
)
from cryoforum_plugin.particles import ParticleSet


def gaussian(n: int, x: float, y: float, sigma: float) -> torch.Tensor:
    axis = torch.arange(n) - n // 2
    return torch.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * sigma**2))


def one_particle(folder: Path, image: torch.Tensor, pixel_size_A: float, ctf: bool = False) -> ParticleSet:
    """Write `image` as a stack of its own and return the one particle in it."""
    stack = folder / "one.mrcs"
    write_stack(stack, image[None].numpy().astype(np.float32), pixel_size_A, overwrite=True)
    particle = make_particles(folder / "other", 1)
    zero = np.zeros(1, dtype=np.int64)
    return replace(
        particle, stacks=(stack,), stack_index=zero, slice_index=zero, pixel_size_A=np.array([pixel_size_A]),
        ctf=particle.ctf if ctf else None,
    )  # fmt: skip


def working(particles: ParticleSet, box: WorkingBox, shift_A: list[float] | None = None) -> torch.Tensor:
    reader = StackReader(particles.stacks)
    pipeline = ImagePipeline(
        particles, reader, reader.check(particles), box, "flip", 1.0, torch.device("cpu")
    )
    shift = None if shift_A is None else np.array([shift_A])
    rows = np.arange(1)
    return pipeline.working(rows, shift, pipeline.read(rows))[0]


def unit(image: torch.Tensor) -> torch.Tensor:
    return (image - image.min()) / (image.max() - image.min())


@pytest.mark.parametrize("size", [64, 65])
@pytest.mark.parametrize("shift_px", [(0.0, 0.0), (3.0, -2.0), (2.6, -4.3)])
def test_recentring_puts_the_particle_on_the_centre(
    tmp_path: Path, size: int, shift_px: tuple[float, float]
) -> None:
    # displaced by -shift: translating by RELION's origin recentres it
    particle = one_particle(tmp_path, gaussian(size, -shift_px[0], -shift_px[1], 4.0), 2.0)
    box = WorkingBox(side_A=80.0, size_px=32)  # 64 px of 2 A resampled to 52 px, 32 of them kept
    made = working(particle, box, [2.0 * shift_px[0], 2.0 * shift_px[1]])
    expected = gaussian(32, 0, 0, 4.0 * 52 / 64)
    assert (unit(made) - expected).abs().max() < 0.02


def test_same_particle_at_two_samplings_looks_the_same(tmp_path: Path) -> None:
    box = WorkingBox(side_A=96.0, size_px=32)  # 3 A
    fine = working(one_particle(tmp_path, gaussian(96, 3, -5, 8.0), 1.5), box)
    coarse = working(one_particle(tmp_path, gaussian(36, 3 / 2.6667, -5 / 2.6667, 3.0), 4.0), box)
    assert (unit(fine) - unit(coarse))[6:26, 6:26].abs().max() < 0.03


def test_signal_that_the_ctf_spread_beyond_the_window_comes_back(tmp_path: Path) -> None:
    size, pixel_A = 128, 1.0
    base = one_particle(tmp_path, gaussian(size, 0, 0, 1.0), pixel_A, ctf=True)
    defocus = np.array([15000.0])
    ctf = replace(base.ctf, defocus_u_A=defocus, defocus_v_A=defocus, phase_shift_deg=np.zeros(1))
    transfer = ctf_2d(ctf, size, pixel_A)[0]
    blurred = torch.fft.fftshift(
        torch.fft.irfft2(
            torch.fft.rfft2(torch.fft.ifftshift(gaussian(size, 0, 0, 1.0))) * transfer, s=(size, size)
        )
    )
    particle = replace(one_particle(tmp_path, blurred, pixel_A, ctf=True), ctf=ctf)
    box = WorkingBox(side_A=32.0, size_px=32)
    found = working(particle, box)
    flipped = torch.fft.fftshift(
        torch.fft.irfft2(
            torch.fft.rfft2(torch.fft.ifftshift(gaussian(size, 0, 0, 1.0))) * transfer.abs(), s=(size, size)
        )
    )
    expected = cut_window(flipped[None], 32)[0]
    assert np.corrcoef(found.flatten(), expected.flatten())[0, 1] > 0.99


def test_window_beyond_the_image_continues_it_periodically() -> None:
    image = torch.arange(64.0).view(1, 8, 8) + 1
    window = cut_window(image, 12)
    assert torch.equal(window[:, 2:10, 2:10], image)
    assert torch.equal(window[:, :2, 2:10], image[:, 6:])
    assert torch.equal(window[:, 2:10, 10:], image[:, :, :2])
    assert cut_window(image, 4)[0, 2, 2] == image[0, 4, 4]


def test_background_normalisation() -> None:
    images = torch.randn(3, 32, 32) * 5 + 7
    normal = normalise_background(images, 12)
    axis = torch.arange(32) - 16
    rim = (axis[:, None] ** 2 + axis[None] ** 2).float().sqrt() > 12
    assert normal[:, rim].mean(1).abs().max() < 1e-5
    assert torch.allclose(normal[:, rim].var(1, correction=0), torch.ones(3), atol=1e-4)
    assert torch.allclose(normalise_background(images * 3 - 2, 12), normal, atol=1e-5)
    assert torch.equal(normalise_background(torch.full((1, 32, 32), 4.0), 12), torch.zeros(1, 32, 32))


def test_images_masked_by_zeros_are_normalised_as_a_whole() -> None:
    masked = torch.randn(4, 32, 32) * gaussian(32, 0, 0, 4.0).gt(0.05)
    normal = normalise_background(masked, 12)
    assert torch.allclose(normal.flatten(1).std(1, correction=0), torch.ones(4), atol=1e-4)
    assert finish(masked).abs().amax() > 1


def test_finish_masks_the_rim() -> None:
    finished = finish(torch.randn(2, 32, 32))
    assert finished.shape == (2, 1, 32, 32)
    assert finished[..., 0, :].abs().max() == 0
    assert torch.allclose(rim_deviation(torch.randn(50, 32, 32) * 3).mean(), torch.tensor(3.0), rtol=0.05)


def test_large_images_come_in_smaller_batches_and_bad_ones_are_named(tmp_path: Path) -> None:
    particles = one_particle(tmp_path, gaussian(16, 0, 0, 2.0), 1.0)
    np.memmap(tmp_path / "one.mrcs", np.float32, "r+", offset=1024)[7] = np.nan
    reader = StackReader(particles.stacks)
    pipeline = ImagePipeline(particles, reader, 2048, WorkingBox(16.0, 16), "flip", 1.0, torch.device("cpu"))
    assert [len(batch) for batch in pipeline.batches(np.arange(5))] == [2, 2, 1]
    with pytest.raises(ImageStackError, match=r"one\.mrcs: image 1 \(row 1 of .*NaN"):
        pipeline.read_usable(np.arange(1))
    assert unusable(torch.tensor([[[1.0, 1.0]], [[1.0, 2.0]], [[1.0, torch.inf]]])).tolist() == [
        True,
        False,
        True,
    ]


def test_preprocessing_of_the_paper_masks_and_then_standardises() -> None:
    images = 3 + 5 * torch.randn(4, 32, 32, generator=torch.Generator().manual_seed(0))
    made = finish(images, "image")
    assert made.mean((1, 2, 3)).abs().max() < 1e-5
    assert (made.var((1, 2, 3), correction=0) - 1).abs().max() < 1e-4
    corners = made[:, 0, 0, 0]
    assert torch.equal(corners, made[:, 0, -1, -1])  # masked: all outside is the same
    assert torch.equal(finish(images, "none")[:, 0], images)
    assert torch.isfinite(finish(torch.full((1, 32, 32), 7.0), "image")).all()
