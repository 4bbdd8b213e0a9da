"""In-plane operations on blobs with exact projections."""

from __future__ import annotations

import math

import pytest
import roma
import torch
from blobs import blob_positions, blob_projections

from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.images.augment import (
    in_plane_operation,
    mirror,
    quarter_turns,
    rotate,
    transform_images,
    transform_vectors,
)

ANGLES = torch.tensor([0.0, 0.3, math.pi / 2, 2.0, -2.7, 3.1])


@pytest.mark.parametrize("mirrored", [False, True])
def test_transformed_projection_is_the_projection_of_the_transformed_pose(mirrored: bool) -> None:
    positions, q = blob_positions(), random_quaternions(len(ANGLES), torch.Generator().manual_seed(0))
    flip = torch.full((len(ANGLES),), mirrored)
    shift = torch.randn(len(ANGLES), 2)

    def project(quaternion: torch.Tensor, displacement: torch.Tensor) -> torch.Tensor:
        matrices = roma.unitquat_to_rotmat(quaternion).double().numpy()
        return blob_projections(positions, matrices, 48, -displacement.double().numpy())

    seen = transform_images(project(q, shift), ANGLES, flip)
    expected = project(
        roma.quat_product(q, in_plane_operation(ANGLES, flip)), transform_vectors(shift, ANGLES, flip)
    )
    assert (seen - expected).abs().max() < 1e-3 * expected.abs().max()


def test_quarter_turns_are_exact_and_cyclic() -> None:
    images = torch.randn(4, 16, 16)
    once = torch.ones(4, dtype=torch.long)
    turned = images
    for count in range(1, 5):
        turned = quarter_turns(turned, once)
        assert torch.equal(turned, quarter_turns(images, count * once))
    assert torch.equal(turned, images)
    assert torch.equal(mirror(mirror(images)), images)
    point = torch.zeros(1, 16, 16)
    point[0, 8, 11] = 1  # 3 px along +x
    assert quarter_turns(point, once[:1])[0, 11, 8] == 1  # now along +y


def test_rotation_keeps_the_spectrum_of_noise() -> None:
    noise = torch.randn(64, 32, 32)
    turned = rotate(noise, torch.full((64,), 0.4))
    inside = (slice(None), slice(8, 24), slice(8, 24))
    # only the Nyquist lines (1 in 16 per shear) lose power; bilinear sampling would lose a third
    assert turned[inside].var() == pytest.approx(float(noise[inside].var()), rel=0.06)
