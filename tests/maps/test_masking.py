"""The soft mask about a map's density: on it, not far from it, of its shape; nothing where nothing stands out."""

from __future__ import annotations

import pytest
import torch
from blobs import blob_positions, blob_volume
from torch import Tensor

from cryoforum_plugin.maps.masking import outline_mask

SIZE, PIXEL_A, RESOLUTION_A = 48, 4.0, 10.0
ROD = torch.linspace(-10, 10, 11)[:, None].numpy() * [[0.0, 0.0, 1.0]]  # along z


def noisy(volume: Tensor, sd: float = 0.05, seed: int = 0) -> Tensor:
    return volume + sd * torch.randn(volume.shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sd", [0.0, 0.05, 0.2])
@pytest.mark.parametrize("diameter_A", [120.0, None])
def test_one_on_the_density_and_nothing_far_from_it(sd: float, diameter_A: float | None) -> None:
    density = blob_volume(blob_positions(12, 9.0), SIZE)
    mask = outline_mask(noisy(density, sd), PIXEL_A, RESOLUTION_A, diameter_A)
    assert mask.shape == density.shape
    assert float(mask.min()) >= 0
    assert float(mask.max()) <= 1
    assert (mask[density > 0.3 * density.max()] > 0.99).all()
    axis = (torch.arange(SIZE) - SIZE // 2).square()
    radius = (axis[:, None, None] + axis[:, None] + axis).sqrt()
    assert float(mask[radius > 20].max()) < 1e-6
    assert ((mask > 0.01) & (mask < 0.99)).any()  # a soft edge


def test_the_mask_has_the_shape_of_the_particle_not_that_of_a_ball() -> None:
    mask = outline_mask(noisy(blob_volume(ROD, SIZE)), PIXEL_A, RESOLUTION_A, 110.0)
    c = SIZE // 2
    assert mask[c - 9 : c + 10, c, c].min() > 0.99
    assert mask[c, c + 11, c] == 0  # beside the rod, but within the ball about it
    assert mask[c, c, c + 11] == 0
    ball = 4 / 3 * torch.pi * (55.0 / PIXEL_A) ** 3
    assert float(mask.sum()) < 0.45 * ball


def test_density_off_the_centre_is_followed() -> None:
    centred = outline_mask(blob_volume(ROD * 0.3, SIZE), PIXEL_A, RESOLUTION_A, None)
    moved = outline_mask(blob_volume(ROD * 0.3 + [5, -4, 0], SIZE), PIXEL_A, RESOLUTION_A, None)
    assert torch.allclose(centred.roll((-4, 5), (1, 2)), moved, atol=0.05)


@pytest.mark.parametrize("size", [16, 20])
def test_small_boxes(size: int) -> None:
    density = blob_volume(blob_positions(4, 2.0), size)
    mask = outline_mask(density, 12.0, 24.0, None)
    assert torch.isfinite(mask).all()
    assert mask[size // 2, size // 2, size // 2] == 1


def test_brightness_and_solvent_level_do_not_matter() -> None:
    density = noisy(blob_volume(blob_positions(12, 9.0), SIZE))
    mask = outline_mask(density, PIXEL_A, RESOLUTION_A, 120.0)
    other = outline_mask(5 * density + 3, PIXEL_A, RESOLUTION_A, 120.0)
    assert float((mask - other).abs().mean()) < 1e-3


@pytest.mark.parametrize("diameter_A", [120.0, None])
def test_where_nothing_stands_out_all_is_kept(diameter_A: float | None) -> None:
    flat = torch.zeros(SIZE, SIZE, SIZE)
    assert (outline_mask(flat, PIXEL_A, RESOLUTION_A, diameter_A) == 1).all()
    noise = [outline_mask(noisy(flat, 1.0, seed), PIXEL_A, RESOLUTION_A, diameter_A) for seed in range(5)]
    assert all((mask == 1).all() for mask in noise)
