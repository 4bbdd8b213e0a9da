"""Point groups with RELION's axes, and cryoSPARC's where they differ (Dn: 2-fold on y)."""

from __future__ import annotations

import re
from functools import lru_cache

import numpy as np
from scipy.spatial.transform import Rotation

from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.particles import FloatArray

# Groups worth trying on data, small ones first. Dn with even n has no other frame: DnY is the same group.
COMMON_GROUPS: tuple[str, ...] = (
    *("C2", "C3", "C4", "D2", "C5", "C6", "D3", "D3Y", "C7", "C8", "D4", "C9", "C10", "D5", "D5Y", "C11"),
    *(
        "C12",
        "D6",
        "T",
        "D7",
        "D7Y",
        "D8",
        "D9",
        "D9Y",
        "D10",
        "D11",
        "D11Y",
        "D12",
        "O",
        "I1",
        "I2",
        "I3",
        "I4",
    ),
)

# Frame changes from scipy's groups to RELION's settings: F * S * F^-1.
# RELION T has a 3-fold on z and a 2-fold on (0, 0.8165, 0.5774); I is I2 (2-fold z, 5-fold in xz).
_X_TO_Y = Rotation.from_euler("z", 90, degrees=True)
_I2_FROM_I1 = Rotation.from_euler("y", 90, degrees=True)
_TILT_5FOLD_TO_Z_DEG = np.degrees(np.arctan2(0.525731112119134, 0.850650808352040))


def _tetrahedral_frame() -> Rotation:
    """Rotation taking scipy's T (2-folds on the axes, 3-folds on the diagonals) to RELION's."""
    z_axis = np.ones(3) / np.sqrt(3)
    two_fold = np.array([0.0, 0.0, 1.0])
    in_plane = two_fold - z_axis * (two_fold @ z_axis)
    y_axis = in_plane / np.linalg.norm(in_plane)
    return Rotation.from_matrix(np.stack([np.cross(y_axis, z_axis), y_axis, z_axis]))


@lru_cache(maxsize=32)
def symmetry_group(name: str) -> FloatArray:
    """Operators of a point group as XYZW quaternions `(order, 4)`, identity first, RELION's axes.

    name : C1, C2, ..., D2, ..., T, O, I (= I2), I1, I2, I3, I4; case does not matter. D2Y, D3Y, ... have a
    2-fold on y instead of x, as cryoSPARC's D2, D3, ...; for even n both are the same group.
    A pose q of the group is equivalent to S * q for every operator S.

    Raises SettingsError for an unknown group.
    """
    key = name.strip().upper()
    if re.fullmatch(r"([CD])([1-9][0-9]{0,2})", key) or key == "O":
        group = Rotation.create_group(key)
    elif re.fullmatch(r"D[1-9][0-9]{0,2}Y", key):
        group = _X_TO_Y * Rotation.create_group(key[:-1]) * _X_TO_Y.inv()
    elif key == "T":
        frame = _tetrahedral_frame()
        group = frame * Rotation.create_group("T") * frame.inv()
    elif key in ("I", "I1", "I2", "I3", "I4"):
        frame = {
            "I1": Rotation.identity(),
            "I2": _I2_FROM_I1,
            "I": _I2_FROM_I1,
            "I3": Rotation.from_euler("y", -_TILT_5FOLD_TO_Z_DEG, degrees=True) * _I2_FROM_I1,
            "I4": Rotation.from_euler("y", _TILT_5FOLD_TO_Z_DEG, degrees=True) * _I2_FROM_I1,
        }[key]
        group = frame * Rotation.create_group("I") * frame.inv()
    else:
        raise SettingsError(
            f"unknown symmetry {name!r}; use Cn, Dn, T, O, I, I1, I2, I3 or I4 (RELION's names), or DnY for a Dn "
            "with a 2-fold on y (cryoSPARC's)"
        )
    quaternions = np.asarray(group.as_quat())
    return quaternions[np.argsort(-np.abs(quaternions[:, 3]), kind="stable")]
