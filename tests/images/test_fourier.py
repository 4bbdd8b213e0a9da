"""Cropping, shifting, masking and radial sums."""

from __future__ import annotations

import pytest
import torch
from torch_fourier_rescale import fourier_rescale_2d

from cryoforum_plugin.images.fourier import (
    crop_transform,
    fourier_crop,
    half_multiplicity,
    radial_average,
    radial_sum,
    shell_index,
    shift_images,
    soft_circular_mask,
    soft_mask,
)


def gaussian(size: int, centre: tuple[float, float], sigma: float) -> torch.Tensor:
    """Image `(size, size)` of a blob at (x, y) from pixel size // 2."""
    axis = torch.arange(size) - size // 2
    return torch.exp(-((axis[None, :] - centre[0]) ** 2 + (axis[:, None] - centre[1]) ** 2) / (2 * sigma**2))


def test_crop_keeps_values_and_centre() -> None:
    image = gaussian(128, (6.0, -10.0), 6.0)
    assert torch.allclose(fourier_crop(image, 64), gaussian(64, (3.0, -5.0), 3.0), atol=1e-4)


def test_crop_agrees_with_torch_fourier_rescale_below_nyquist() -> None:
    images = torch.randn(3, 64, 64)
    ours = torch.fft.rfft2(fourier_crop(images, 32))
    theirs = torch.fft.rfft2(fourier_rescale_2d(images, target_shape=(32, 32))[0])
    theirs[:, 16, :] = 0
    theirs[:, :, 16] = 0
    assert torch.allclose(ours, theirs, atol=1e-3)


def test_crop_in_two_steps_equals_one() -> None:
    images = torch.randn(2, 64, 64)
    assert torch.allclose(fourier_crop(fourier_crop(images, 48), 32), fourier_crop(images, 32), atol=1e-5)


def test_crop_keeps_the_mean_and_passes_the_same_size_through() -> None:
    images = torch.randn(4, 32, 32) + 3
    assert torch.allclose(fourier_crop(images, 16).mean((1, 2)), images.mean((1, 2)), atol=1e-5)
    assert fourier_crop(images, 32) is images
    assert crop_transform(images, 32) is images


@pytest.mark.parametrize(("old", "new"), [(32, 15), (33, 16), (32, 64), (32, 0)])
def test_crop_refuses_odd_or_larger_sizes(old: int, new: int) -> None:
    with pytest.raises(ValueError, match="even sizes"):
        fourier_crop(torch.zeros(1, old, old), new)


def test_whole_pixel_shifts_are_rolls() -> None:
    image = torch.randn(32, 32)
    moved = shift_images(image[None].expand(2, -1, -1), torch.tensor([[3.0, 0.0], [0.0, -5.0]]))
    assert torch.allclose(moved[0], image.roll(3, 1), atol=1e-5)  # +x: higher columns
    assert torch.allclose(moved[1], image.roll(-5, 0), atol=1e-5)  # +y: higher rows


def test_sub_pixel_shift_moves_a_blob() -> None:
    moved = shift_images(gaussian(32, (0.0, 0.0), 2.0)[None], torch.tensor([[1.25, -2.5]]))[0]
    assert torch.allclose(moved, gaussian(32, (1.25, -2.5), 2.0), atol=1e-4)


def test_shift_and_back_is_the_identity_but_for_nyquist() -> None:
    images = fourier_crop(torch.randn(5, 64, 64), 32)  # nothing at Nyquist
    shift = torch.rand(5, 2) * 6 - 3
    assert torch.allclose(shift_images(shift_images(images, shift), -shift), images, atol=1e-5)


def test_shift_is_differentiable() -> None:
    shift = torch.tensor([[0.3, -0.7]], requires_grad=True)
    shift_images(torch.randn(1, 16, 16), shift).square()[0, 3].sum().backward()
    assert shift.grad is not None
    assert (shift.grad.abs() > 0).all()


def test_mask_is_one_inside_zero_outside_and_soft_between() -> None:
    mask = soft_circular_mask(32, 8.0, 4.0)
    assert mask[16, 16] == 1
    assert mask[16, 24] == 1
    assert mask[16, 26] == pytest.approx(0.5)
    assert mask[16, 28] == pytest.approx(0, abs=1e-6)
    assert torch.equal(mask, mask.T)
    assert set(soft_mask(16, 4.0, 0.0, 3).unique().tolist()) == {0.0, 1.0}


@pytest.mark.parametrize("dimensions", [2, 3])
def test_radial_sums_count_the_full_transform(dimensions: int) -> None:
    n = 12
    values = torch.rand([n] * (dimensions - 1) + [n // 2 + 1])
    real = torch.randn([n] * dimensions)
    power = torch.fft.rfftn(real).abs().square()
    full = torch.fft.fftn(real).abs().square()
    axes = torch.meshgrid(*[torch.fft.fftfreq(n, 1 / n)] * dimensions, indexing="ij")
    shells = torch.stack(axes).square().sum(0).sqrt().round()
    expected = torch.stack([full[shells == s].sum() for s in range(n // 2 + 1)])
    assert torch.allclose(radial_sum(power, dimensions), expected, rtol=1e-4)
    assert torch.allclose(radial_average(torch.ones_like(values), dimensions), torch.ones(n // 2 + 1))
    assert shell_index(n, dimensions).shape == values.shape


def test_radial_average_takes_batches() -> None:
    values = torch.rand(3, 2, 16, 9)
    together = radial_average(values)
    assert together.shape == (3, 2, 9)
    assert torch.allclose(together[1, 1], radial_average(values[1, 1]))


def test_parseval_with_half_multiplicity() -> None:
    image = torch.randn(16, 16)
    power = torch.fft.rfft2(image).abs().square() * half_multiplicity(16)
    assert float(power.sum()) / 16**2 == pytest.approx(float(image.square().sum()), rel=1e-5)


def test_white_noise_loses_variance_with_its_pixels() -> None:
    noise = torch.randn(200, 64, 64)
    ratio = float(fourier_crop(noise, 32).var() / noise.var())
    assert ratio == pytest.approx((31 / 64) ** 2, rel=0.02)
