"""Asymmetric units: one pose of all that a point group makes equivalent, the one that RELION keeps."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
import roma
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum_plugin.geometry.symmetry import symmetry_group
from cryoforum_plugin.particles import FloatArray

EDGE = 1e-6  # sine of the angle by which a direction may miss the unit through rounding
_GOLDEN = (1 + math.sqrt(5)) / 2
_TILT_5FOLD = math.atan2(1, _GOLDEN)  # rad from I2's z axis to a 5-fold
_I2 = ((0, 1, 0), (-0.5, -_GOLDEN / 2, 0.5 / _GOLDEN), (0.5, -_GOLDEN / 2, 0.5 / _GOLDEN))
_I4 = (
    (-math.sin(_TILT_5FOLD), 0, -math.cos(_TILT_5FOLD)),
    (0.5 / _GOLDEN * math.sin(_TILT_5FOLD), 0.5, math.cos(_TILT_5FOLD)),
    (0.5 / _GOLDEN * math.sin(_TILT_5FOLD), -0.5, math.cos(_TILT_5FOLD)),
)
_POLYHEDRAL = {
    "T": ((-1, 0, 0), (0.5, math.sqrt(1 / 12), math.sqrt(2 / 3)), (0.5, math.sqrt(3 / 4), 0)),
    "O": math.sqrt(0.5) * np.array([(0, -1, 1), (1, 1, 0), (-1, 1, 0)]),
    "I": _I2,
    "I1": Rotation.from_euler("y", -90, degrees=True).apply(_I2),
    "I2": _I2,
    "I3": Rotation.from_euler("y", -_TILT_5FOLD).apply(_I2),
    "I4": _I4,
}


def reduce_to_asymmetric_unit(quaternion: Tensor, symmetry: str) -> Tensor:
    """Replace poses `(..., 4)` XYZW by their equivalents S * q that RELION's asymmetric unit contains.

    symmetry : as in `symmetry_group`. The viewing direction d = R e_z (RELION's rot and tilt) decides:
    Cn |rot| <= 180 / n; Dn |rot - 90| <= 180 / n and tilt <= 90 degrees; DnY |rot| <= 180 / n and
    tilt <= 90; others n . d >= 0 for three planes. Any float dtype and device, kept; differentiable but at
    the edges. At an edge, where several copies qualify, rounding decides between them.

    Raises SettingsError for an unknown group.
    """
    with torch.autocast(quaternion.device.type, enabled=False):  # half precision would miss by 0.1 degrees
        q = quaternion.to(torch.promote_types(quaternion.dtype, torch.float32))
        result: Tensor = roma.quat_product(operator_to_unit(q, symmetry), q).to(quaternion)
    return result


def operator_to_unit(quaternion: Tensor, symmetry: str) -> Tensor:
    """Operators S `(..., 4)` XYZW of the group with which S * q lies in the asymmetric unit; float32 or better.

    Raises SettingsError for an unknown group.
    """
    with torch.autocast(quaternion.device.type, enabled=False):
        deepest = _depth(quaternion, symmetry).argmax(-1)
        result: Tensor = torch.from_numpy(symmetry_group(symmetry)).to(quaternion)[deepest]
    return result


def in_asymmetric_unit(quaternion: Tensor, symmetry: str) -> Tensor:
    """Whether poses `(..., 4)` XYZW lie in RELION's asymmetric unit, edges included: bool `(...)`.

    Raises SettingsError for an unknown group.
    """
    with torch.autocast(quaternion.device.type, enabled=False):
        q = quaternion.to(torch.promote_types(quaternion.dtype, torch.float32))
        return _depth(q, symmetry)[..., 0] >= -EDGE  # the first operator is the identity


def _depth(quaternion: Tensor, symmetry: str) -> Tensor:
    """How far inside the unit each copy S * q of `(..., 4)` views: `(..., order)`, negative outside.

    The sine of the angle to the nearest of the planes that bound the unit.
    """
    normals = torch.from_numpy(_turned_normals(symmetry)).to(quaternion)
    direction = roma.unitquat_to_rotmat(quaternion)[..., 2]
    sines = direction @ normals.flatten(0, 1).mT
    depth: Tensor = sines.unflatten(-1, normals.shape[:2]).amin(-1)
    return depth


@lru_cache(maxsize=32)
def _turned_normals(symmetry: str) -> FloatArray:
    """Normals S^-1 n `(order, planes, 3)`: turning the planes is cheaper than turning every pose."""
    operators = Rotation.from_quat(symmetry_group(symmetry)).as_matrix()
    turned: FloatArray = np.einsum("sji,pj->spi", operators, _normals(symmetry.strip().upper()))
    return turned


def _normals(key: str) -> FloatArray:
    """Unit normals `(planes, 3)`, pointing inside, of the planes that bound the unit of a known group."""
    if key in _POLYHEDRAL:
        return np.array(_POLYHEDRAL[key], dtype=np.float64)
    order, dihedral = int(key[1:].rstrip("Y")), key[0] == "D"
    towards = (math.pi / order - math.pi / 2) * np.array([1, -1])
    if dihedral and not key.endswith("Y"):
        towards += math.pi / 2  # the wedge's middle, beside the 2-fold on x
    wedge = np.stack([np.cos(towards), np.sin(towards), np.zeros(2)], axis=1)
    if order == 1:
        wedge *= 0  # a full turn has no planes; a null vector excludes nothing
    return np.concatenate([wedge, [[0.0, 0.0, 1.0]]]) if dihedral else wedge
