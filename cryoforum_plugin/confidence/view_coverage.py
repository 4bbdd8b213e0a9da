"""How evenly views cover Fourier space: the sampling compensation factor, and cells of equal area on the sphere.

An image seen along v fills the great circle of directions perpendicular to v. With s(k) the number of images that
pass through direction k, relative to as many uniform views, the spectral signal-to-noise ratio of a map is attenuated
by SCF = 1 / mean(1 / s), 1 for uniform views (Baldwin and Lyumkis, Prog. Biophys. Mol. Biol. 150, 160, 2020).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from cryoforum_plugin.geometry import (
    cell_centres,
    cell_of,
    fibonacci_half_sphere,
    reduce_to_asymmetric_unit,
    symmetry_group,
)
from cryoforum_plugin.particles import FloatArray, IntArray

DIRECTIONS = 1000  # of the half sphere at which sampling is looked at
SLICE_DEG = 3.0  # s.d. of a slice's thickness, seen from the centre
# Below this part of uniform sampling a direction counts as unsampled, and as sampled that often. Baldwin and Lyumkis
# (150, 53, 2021) let two images stand for such a place (SCF*), whence the figure falls with the number of particles;
# sets of different sizes are compared here.
UNSAMPLED = 0.02
PARTICLES_PER_CELL = 50  # of a balanced selection, where views are uniform
FEWEST_CELLS, MOST_CELLS = 12, 1200
_ROWS_AT_ONCE = 2**16


@dataclass(frozen=True)
class ViewCoverage:
    """scf : 1 where views are uniform, less elsewhere. unsampled : part of the directions that hardly any image shows."""

    scf: float
    unsampled: float


def viewing_directions(rotation: FloatArray) -> FloatArray:
    """Unit vectors `(n, 3)` xyz in the volume frame along which poses `(n, 4)` XYZW view the particle."""
    x, y, z, w = np.moveaxis(np.asarray(rotation, dtype=np.float64), -1, 0)
    result: FloatArray = np.stack(
        [2 * (x * z + w * y), 2 * (y * z - w * x), w * w + z * z - x * x - y * y], -1
    )
    return result


def view_histogram(
    rotation: FloatArray, symmetry: str = "C1", weight: FloatArray | None = None
) -> FloatArray:
    """Sum of the weights `(n,)` (default 1) of poses `(n, 4)` XYZW by cell of their viewing direction: `(m,)`.

    Every pose counts in equal parts for its copies under `symmetry`. Histograms of disjoint sets may be added.
    Raises SettingsError for an unknown group.
    """
    centres = cell_centres()
    plain = np.bincount(cell_of(viewing_directions(rotation)), weight, len(centres)).astype(np.float64)
    operators = Rotation.from_quat(symmetry_group(symmetry)).as_matrix()
    if len(operators) == 1:
        return plain
    copies = [np.bincount(cell_of(centres @ matrix.T), plain, len(centres)) for matrix in operators]
    result: FloatArray = np.sum(copies, axis=0) / len(operators)
    return result


@lru_cache(maxsize=1)
def _slices() -> FloatArray:
    """How much a view of each cell adds to each direction: `(DIRECTIONS, m)`, mean 1 over uniform views."""
    near = np.exp(
        -0.5 * (fibonacci_half_sphere(DIRECTIONS) @ cell_centres().T / math.radians(SLICE_DEG)) ** 2
    )
    result: FloatArray = near / near.mean(axis=1, keepdims=True)
    return result


def sampling(histogram: FloatArray) -> FloatArray:
    """Sampling `(DIRECTIONS,)` of directions of the half sphere, 1 = that of uniform views; of `view_histogram`."""
    result: FloatArray = _slices() @ (histogram / histogram.sum())
    return result


def coverage_of(histogram: FloatArray) -> ViewCoverage:
    """Coverage by the views of a histogram `(m,)`; 0 for an empty one."""
    if histogram.sum() <= 0:
        return ViewCoverage(0.0, 1.0)
    s = sampling(histogram)
    return ViewCoverage(float(1 / np.mean(1 / s.clip(UNSAMPLED))), float(np.mean(s < UNSAMPLED)))


def view_coverage(
    rotation: FloatArray, symmetry: str = "C1", weight: FloatArray | None = None
) -> ViewCoverage:
    """Coverage of Fourier space by poses `(n, 4)` XYZW, optionally weighted `(n,)`. Raises SettingsError."""
    return coverage_of(view_histogram(rotation, symmetry, weight))


def view_cells(rotation: FloatArray, symmetry: str = "C1") -> IntArray:
    """Label `(n,)` of the equal-area cell, in the asymmetric unit, that each pose `(n, 4)` XYZW views from.

    Cells are as large as PARTICLES_PER_CELL uniform views need. Raises SettingsError for an unknown group.
    """
    order = len(symmetry_group(symmetry))
    cells = int(np.clip(len(rotation) * order / PARTICLES_PER_CELL, FEWEST_CELLS * order, MOST_CELLS * order))
    return cell_of(unit_views(rotation, symmetry), cells)


def unit_views(rotation: FloatArray, symmetry: str = "C1") -> FloatArray:
    """Viewing directions `(n, 3)` of poses `(n, 4)` XYZW brought into the asymmetric unit, some at a time."""
    blocks = torch.from_numpy(np.asarray(rotation, dtype=np.float64)).split(_ROWS_AT_ONCE)
    return np.concatenate(
        [viewing_directions(reduce_to_asymmetric_unit(b, symmetry).numpy()) for b in blocks]
    )
