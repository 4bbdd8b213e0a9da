"""Angular errors, and large ones that are none: poses at another symmetry copy than the known one."""

from __future__ import annotations

import logging

import numpy as np
import torch

from cryoforum_plugin.geometry import COMMON_GROUPS, angular_distance_to_group, symmetry_group
from cryoforum_plugin.particles import FloatArray

LOG = logging.getLogger("cryoforum")
LARGE_DEG, SMALL_DEG = 30.0, 10.0
WORTH_A_LOOK = 0.1  # part of large errors from which on a group is looked for
EXPLAINED = 0.8  # part of them that must become small; random poses: at most 0.02, modulo I
_ROWS_AT_ONCE = 16384
_MOST = 2000


def angular_errors(predicted: FloatArray, reference: FloatArray, group: FloatArray) -> FloatArray:
    """Angles in rad `(n,)` between quaternions `(n, 4)` XYZW, modulo the point group `(g, 4)`."""
    p, q, g = (torch.as_tensor(np.asarray(a, dtype=np.float64)) for a in (predicted, reference, group))
    blocks = zip(torch.split(p, _ROWS_AT_ONCE), torch.split(q, _ROWS_AT_ONCE), strict=True)
    return np.concatenate([angular_distance_to_group(a, b, g).numpy() for a, b in blocks])


def warn_of_copies(
    predicted: FloatArray, reference: FloatArray, error_rad: FloatArray, symmetry: str
) -> str | None:
    """Log, and return the name of, the smallest group modulo which the large errors `(n,)` vanish; None = none.

    symmetry : what the errors were taken modulo. predicted, reference : `(n, 4)` quaternions XYZW.
    """
    large = np.flatnonzero(np.degrees(error_rad) > LARGE_DEG)
    if len(large) < max(2, WORTH_A_LOOK * len(error_rad)):
        return None
    rows = large[:: max(1, len(large) // _MOST)]
    for name in COMMON_GROUPS:
        copies = np.degrees(angular_errors(predicted[rows], reference[rows], symmetry_group(name)))
        if (copies < SMALL_DEG).mean() >= EXPLAINED:
            LOG.warning(
                "%.0f %% of the errors modulo %s are above %.0f deg, but nearly all of these are below %.0f deg modulo "
                "%s: the poses are at other symmetry copies; give --symmetry %s",
                100 * len(large) / len(error_rad), symmetry, LARGE_DEG, SMALL_DEG, name, name,
            )  # fmt: skip
            return name
    return None
