"""Keeping a selection even: between the half sets, and between viewing directions."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.particles import FloatArray, IntArray

Mask = NDArray[np.bool_]

HALF_SETS_APART = 0.02  # cryoSPARC splits anew beyond that
JUNK = 0.25  # of the mean confidence kept: below, a particle is never taken to fill a view


def balanced(
    keep: Mask, half_set: IntArray, confidence: FloatArray, least_apart: int = 0
) -> tuple[Mask, int]:
    """Drop the least confident kept rows of the larger half set, until it is at most 2 % larger.

    least_apart : by so many it may be larger in any case. Returns the new mask `(n,)` and how many were dropped; nothing where there are no two half sets.
    """
    halves = [np.flatnonzero(keep & (half_set == number)) for number in (1, 2)]
    small, large = sorted(halves, key=len)
    allowed = max(int(np.floor(len(small) * (1 + HALF_SETS_APART))), len(small) + least_apart)
    if not len(small) or len(large) <= allowed:
        return keep, 0
    worst = large[np.argsort(confidence[large], kind="stable")][: len(large) - allowed]
    result = keep.copy()
    result[worst] = False
    return result, len(worst)


def balance_views(keep: Mask, cell: IntArray, confidence: FloatArray) -> tuple[Mask, int]:
    """Add the best of rare views, until as large a part of each cell is kept as of all particles.

    cell : `(n,)` label of the viewing direction. Particles of less than JUNK of the mean confidence kept count
    nowhere and are not added. Returns the new mask and how many were added.
    """
    if not keep.any():
        return keep, 0
    worth = keep | (confidence >= JUNK * confidence[keep].mean())
    part = keep.sum() / worth.sum()
    _, label = np.unique(cell, return_inverse=True)
    wanted = np.floor(part * np.bincount(label[worth], minlength=label.max() + 1)).astype(np.int64)
    missing = (wanted - np.bincount(label[keep], minlength=len(wanted))).clip(0)
    spare = np.flatnonzero(worth & ~keep)
    spare = spare[np.lexsort((-confidence[spare], label[spare]))]  # by cell, the best first
    first = np.searchsorted(label[spare], np.arange(len(wanted)))
    added = spare[np.arange(len(spare)) - first[label[spare]] < missing[label[spare]]]
    result = keep.copy()
    result[added] = True
    return result, len(added)


def count_half_sets(half_set: IntArray, keep: Mask) -> dict[str, dict[str, int]]:
    """Numbers kept and rejected: of all, and of each half set where there are any."""
    groups = {"all": np.ones(len(keep), dtype=bool)}
    groups |= {f"half set {value}": half_set == value for value in np.unique(half_set) if value > 0}
    return {
        name: {"kept": int((group & keep).sum()), "rejected": int((group & ~keep).sum())}
        for name, group in groups.items()
    }
