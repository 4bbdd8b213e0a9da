"""Splitting particles into training and validation rows."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.geometry import reduce_to_asymmetric_unit
from cryoforum_plugin.particles.particle_set import IntArray, ParticleSet


def _view_bin(particles: ParticleSet, symmetry: str) -> IntArray:
    """Coarse equal-area bin of the viewing direction, folded onto one hemisphere: 6 heights x 8 sectors.

    Of equivalent directions that in the asymmetric unit counts.
    """
    unit = reduce_to_asymmetric_unit(torch.from_numpy(particles.require_rotation()), symmetry)
    direction = Rotation.from_quat(unit.numpy()).apply([0.0, 0.0, 1.0])
    direction *= np.where(direction[:, 2:] < 0, -1.0, 1.0)
    height = np.minimum((direction[:, 2] * 6).astype(np.int64), 5)
    sector = ((np.arctan2(direction[:, 1], direction[:, 0]) / (2 * np.pi) + 0.5) * 8).astype(np.int64) % 8
    result: IntArray = height * 8 + sector
    return result


def split_rows(
    particles: ParticleSet, fraction: float, seed: int, symmetry: str = "C1"
) -> tuple[IntArray, IntArray]:
    """Split rows into (training, validation), validation holding about `fraction` of the particles.

    Stratified by viewing direction, modulo `symmetry`; rows that show the same physical particle (`particles.origin`:
    duplicates, symmetry-expanded copies) stay together.

    Raises ParticleFileError when there are too few particles to split.
    """
    origins, first, inverse = np.unique(particles.origin, return_index=True, return_inverse=True)
    wanted = round(len(origins) * fraction)
    if len(origins) < 4 or wanted < 1 or wanted >= len(origins):
        raise ParticleFileError(
            f"{particles.source}: {len(origins)} distinct particles cannot be split into training and "
            f"validation with --validation-fraction {fraction:g}; training needs thousands"
        )
    generator = np.random.default_rng(seed)
    order = np.lexsort((generator.random(len(origins)), _view_bin(particles, symmetry)[first]))
    position = (np.arange(wanted) + generator.random()) * len(origins) / wanted
    chosen: NDArray[np.bool_] = np.zeros(len(origins), dtype=bool)
    chosen[order[np.floor(position).astype(np.int64)]] = True
    is_validation = chosen[inverse]
    return np.flatnonzero(~is_validation), np.flatnonzero(is_validation)


def spread_rows(rows: IntArray, most: int) -> IntArray:
    """At most `most` of `rows`, evenly spread over the table."""
    return rows[np.linspace(0, len(rows) - 1, min(len(rows), most)).astype(np.int64)]
