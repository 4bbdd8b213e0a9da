"""Rotations: the only place that states a convention (see docs/conventions.md).

R (3x3) maps image-frame xyz to volume-frame xyz; the central slice of the volume's transform that an
image shows lies at R @ (kx, ky, 0). R is the transpose of RELION's Euler matrix and equals cryoSPARC's
`Rotation.from_rotvec(alignments3D/pose)`. Quaternions are XYZW unit vectors, q and -q are the same.
Rotating image content by +a (from x to y) turns q into q * rz(-a); mirroring it in x (x -> -x) turns q
into q * (0, 1, 0, 0): in-plane operations act from the right, point groups of the volume from the left.
"""

from __future__ import annotations

import math

import numpy as np
import roma
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum_plugin.particles import FloatArray


def relion_euler_to_quaternion(angles_deg: FloatArray) -> FloatArray:
    """Convert RELION (rot, tilt, psi) `(n, 3)` in degrees to XYZW quaternions `(n, 4)`."""
    return np.asarray(Rotation.from_euler("ZYZ", angles_deg, degrees=True).as_quat())


def quaternion_to_relion_euler(quaternion: FloatArray) -> FloatArray:
    """Convert XYZW quaternions `(n, 4)` to RELION (rot, tilt, psi) `(n, 3)` in degrees.

    At tilt 0 or 180, where only a combination of rot and psi is defined, rot is 0 as in RELION.
    """
    a = np.swapaxes(Rotation.from_quat(quaternion).as_matrix(), -1, -2)  # RELION's A
    sin_tilt = np.hypot(a[..., 0, 2], a[..., 1, 2])
    regular = sin_tilt > 1e-7
    tilt = np.arctan2(sin_tilt, a[..., 2, 2])
    up = np.where(a[..., 2, 2] > 0, 1.0, -1.0)
    rot = np.where(regular, np.arctan2(a[..., 2, 1], a[..., 2, 0]), 0.0)
    psi = np.where(
        regular,
        np.arctan2(a[..., 1, 2], -a[..., 0, 2]),
        np.arctan2(-up * a[..., 1, 0], up * a[..., 0, 0]),
    )
    result: FloatArray = np.degrees(np.stack([rot, tilt, psi], axis=-1))
    return result


def rotation_vector_to_quaternion(rotation_vector: FloatArray) -> FloatArray:
    """Convert cryoSPARC poses `(n, 3)` (rotation vectors, rad) to XYZW quaternions `(n, 4)`."""
    return np.asarray(Rotation.from_rotvec(np.asarray(rotation_vector, dtype=np.float64)).as_quat())


def quaternion_to_rotation_vector(quaternion: FloatArray) -> FloatArray:
    """Convert XYZW quaternions `(n, 4)` to cryoSPARC poses `(n, 3)` (rotation vectors, rad)."""
    return np.asarray(Rotation.from_quat(quaternion).as_rotvec())


def angular_distance(p: Tensor, q: Tensor) -> Tensor:
    """Angle in rad between rotations given as unit quaternions `(..., 4)`, precise near 0.

    4 asin(min(|p - q|, |p + q|) / 2): finite gradient everywhere but at exact coincidence, where it is 0.
    """
    difference = torch.minimum((p - q).square().sum(-1), (p + q).square().sum(-1))
    chord = torch.where(difference > 0, difference, torch.ones_like(difference)).sqrt()
    return torch.where(difference > 0, 4 * torch.asin((chord / 2).clamp(max=1.0)), difference)


def angular_distance_to_group(p: Tensor, q: Tensor, group: Tensor) -> Tensor:
    """Smallest angle in rad between p and S * q over the operators S of `group` `(g, 4)`."""
    copies = roma.quat_product(
        group.expand(*q.shape[:-1], *group.shape), q.unsqueeze(-2).expand(*q.shape[:-1], *group.shape)
    )  # (..., g, 4)
    return angular_distance(p.unsqueeze(-2), copies).amin(-1)


def right_multiplication_matrix(r: Tensor) -> Tensor:
    """Matrix M `(..., 4, 4)` with M @ q = q * r, for quaternions r `(..., 4)` XYZW."""
    x, y, z, w = r.unbind(-1)
    rows = [w, z, -y, x, -z, w, x, y, y, -x, w, z, -x, -y, -z, w]
    return torch.stack(rows, dim=-1).reshape(*r.shape[:-1], 4, 4)


def left_multiplication_matrix(r: Tensor) -> Tensor:
    """Matrix L `(..., 4, 4)` with L @ q = r * q, for quaternions r `(..., 4)` XYZW."""
    x, y, z, w = r.unbind(-1)
    rows = [w, -z, y, x, z, w, -x, y, -y, x, w, z, -x, -y, -z, w]
    return torch.stack(rows, dim=-1).reshape(*r.shape[:-1], 4, 4)


def in_plane_quaternion(angle_rad: Tensor) -> Tensor:
    """Quaternion `(..., 4)` of the rotation about z by `angle_rad` `(...)`."""
    zero = torch.zeros_like(angle_rad)
    return torch.stack([zero, zero, torch.sin(angle_rad / 2), torch.cos(angle_rad / 2)], dim=-1)


def random_quaternions(n: int, generator: torch.Generator) -> Tensor:
    """Draw `(n, 4)` rotations uniformly over SO(3), float32, on the generator's device."""
    q = torch.randn(n, 4, generator=generator, device=generator.device)
    result: Tensor = q / q.norm(dim=-1, keepdim=True)
    return result


def super_fibonacci_quaternions(n: int) -> Tensor:
    """Spread n rotations evenly over SO(3): `(n, 4)` float64 (Alexa, CVPR 2022, super-Fibonacci spirals)."""
    phi, psi = math.sqrt(2.0), 1.533751168755204288118041
    s = torch.arange(n, dtype=torch.float64) + 0.5
    r, big_r = (s / n).sqrt(), (1 - s / n).sqrt()
    alpha, beta = 2 * math.pi * s / phi, 2 * math.pi * s / psi
    return torch.stack([r * alpha.sin(), r * alpha.cos(), big_r * beta.sin(), big_r * beta.cos()], dim=-1)
