"""In-plane operations on batches of images, with their exact effect on poses and shifts.

Rotation is a product of three shears, each a translation of rows or columns done in Fourier space, so that
noise keeps its spectrum: interpolation would smooth it and the network would see which images were turned.
"""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor

from cryoforum_plugin.geometry import in_plane_quaternion


def mirror(images: Tensor) -> Tensor:
    """Mirror images `(..., n, n)`, n even, in x about pixel n // 2 (column 0 is its own partner)."""
    return images.flip(-1).roll(1, -1)


def quarter_turns(images: Tensor, turns: Tensor) -> Tensor:
    """Rotate the content of images `(b, n, n)` by `turns` `(b,)` * 90 degrees (x to y) about pixel n // 2."""
    turns = (turns % 4)[:, None, None]
    transposed = images.transpose(-1, -2)
    once = mirror(transposed)
    twice = mirror(images).flip(-2).roll(1, -2)
    thrice = transposed.flip(-2).roll(1, -2)
    result = torch.where(turns == 1, once, images)
    result = torch.where(turns == 2, twice, result)
    return torch.where(turns == 3, thrice, result)


def _shear(images: Tensor, slope: Tensor, dim: int) -> Tensor:
    """Translate each line along `dim` by slope * its distance from the centre line."""
    n = images.shape[-1]
    frequency = torch.fft.rfftfreq(n, device=images.device)
    offset = torch.arange(n, device=images.device) - n // 2
    turns = slope[:, None, None] * offset[None, :, None] * frequency[None, None, :]  # (b, line, frequency)
    if dim == -2:
        turns = turns.transpose(-1, -2)
    spectrum = torch.fft.rfft(images, dim=dim) * torch.polar(torch.ones_like(turns), -2 * math.pi * turns)
    result: Tensor = torch.fft.irfft(spectrum, n=n, dim=dim)
    return result


def rotate(images: Tensor, angle_rad: Tensor) -> Tensor:
    """Rotate the content of images `(b, n, n)` by `angle_rad` `(b,)` from x to y about pixel n // 2."""
    turns = torch.round(angle_rad / (math.pi / 2))
    rest = angle_rad - turns * (math.pi / 2)
    images = quarter_turns(images, turns.long())
    along_x, along_y = -torch.tan(rest / 2), torch.sin(rest)
    return _shear(_shear(_shear(images, along_x, -1), along_y, -2), along_x, -1)


def transform_images(images: Tensor, angle_rad: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror in x where `mirrored` `(b,)` is true, then rotate by `angle_rad` `(b,)`; images `(b, n, n)`."""
    flipped = torch.where(mirrored[:, None, None], mirror(images), images)
    return rotate(flipped, angle_rad)


def in_plane_operation(angle_rad: Tensor, mirrored: Tensor) -> Tensor:
    """Quaternion r `(b, 4)` such that transforming an image turns its pose q into q * r.

    Mirroring x of a projection gives the projection from behind: q * (0, 1, 0, 0), a half turn about y.
    """
    turned, none = mirrored.to(angle_rad), torch.zeros_like(angle_rad)
    first = torch.stack([none, turned, none, 1 - turned], dim=-1)  # (0, 1, 0, 0) or the identity
    result: Tensor = roma.quat_product(first, in_plane_quaternion(-angle_rad))
    return result


def transform_vectors(vectors: Tensor, angle_rad: Tensor, mirrored: Tensor) -> Tensor:
    """Apply the same mirror and rotation to in-plane vectors `(b, 2)` x, y."""
    x = torch.where(mirrored, -vectors[..., 0], vectors[..., 0])
    y = vectors[..., 1]
    cos, sin = angle_rad.cos(), angle_rad.sin()
    return torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1)
