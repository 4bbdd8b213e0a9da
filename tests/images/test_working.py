"""The working box: window, recentring, normalisation."""

from __future__ import annotations

import pytest
import torch

from cryoforum_plugin.images.working import (
    WorkingBox,
    cut_window,
    finish,
    normalise_background,
    to_working_ft,
)


def gaussian(n: int, x: float, y: float, sigma: float) -> torch.Tensor:
    axis = torch.arange(n) - n // 2
    return torch.exp(-((axis[None] - x) ** 2 + (axis[:, None] - y) ** 2) / (2 * sigma**2))


def working(image: torch.Tensor, box: WorkingBox, shift_A: list[float] | None) -> torch.Tensor:
    shift = None if shift_A is None else torch.tensor([shift_A])
    noise = torch.randn(1, *image.shape) * 1e-3
    return torch.fft.irfft2(
        to_working_ft(image[None] + noise, 2.0, box, shift), s=(box.size_px, box.size_px)
    )[0]


@pytest.mark.parametrize("shift_px", [(0.0, 0.0), (3.0, -2.0), (2.6, -4.3)])
def test_recentring_puts_the_particle_on_the_centre(shift_px: tuple[float, float]) -> None:
    image = gaussian(64, -shift_px[0], -shift_px[1], 4.0)  # displaced by -shift: RELION's origin recentres it
    box = WorkingBox(side_A=80.0, size_px=32)  # 40 px of 2 A -> 32 px of 2.5 A
    made = working(image, box, [2.0 * shift_px[0], 2.0 * shift_px[1]])
    expected = gaussian(32, 0, 0, 4.0 * 2.0 / 2.5)
    made = (made - made.min()) / (made.max() - made.min())
    assert (made - expected).abs().max() < 0.02


def test_window_beyond_the_image_is_zero_and_small_boxes_are_resampled() -> None:
    image = torch.arange(64.0).view(1, 8, 8) + 1
    window = cut_window(image, 12, None)
    assert torch.equal(window[:, 2:10, 2:10], image)
    assert window[:, :2].abs().max() == 0
    shifted = cut_window(image, 4, torch.tensor([[1, 0]]))
    assert torch.equal(shifted[0], image[0, 2:6, 1:5])
    coarse = working(gaussian(32, 0, 0, 3.0), WorkingBox(32.0, 32), None)  # 16 px of 2 A onto 32 px of 1 A
    fine = gaussian(32, 0, 0, 6.0)
    coarse = (coarse - coarse.min()) / (coarse.max() - coarse.min())
    assert (coarse - fine)[8:24, 8:24].abs().max() < 0.05


def test_background_normalisation() -> None:
    images = torch.randn(3, 32, 32) * 5 + 7
    normal = normalise_background(images, 12)
    axis = torch.arange(32) - 16
    rim = (axis[:, None] ** 2 + axis[None] ** 2).float().sqrt() > 12
    assert normal[:, rim].mean(1).abs().max() < 1e-5
    assert torch.allclose(normal[:, rim].var(1, correction=0), torch.ones(3), atol=1e-4)
    assert torch.allclose(normalise_background(images * 3 - 2, 12), normal, atol=1e-5)
    assert torch.equal(normalise_background(torch.full((1, 32, 32), 4.0), 12), torch.zeros(1, 32, 32))


def test_finish_masks_the_rim() -> None:
    finished = finish(torch.randn(2, 32, 32))
    assert finished.shape == (2, 1, 32, 32)
    assert finished[..., 0, :].abs().max() == 0
    assert finished[..., 0, 0].abs().max() == 0


def test_crop_is_even() -> None:
    assert WorkingBox(100.0, 64).crop_px(1.03) % 2 == 0
    assert WorkingBox(100.0, 64).pixel_size_A == pytest.approx(1.5625)
