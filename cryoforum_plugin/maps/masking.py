"""Where in a map the particle is."""

from __future__ import annotations

import math

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt, label
from torch import Tensor

from cryoforum_plugin.maps.volume import low_pass

FINEST_A = 15.0  # of the low-passed map that shows the outline
LEVEL, SOLVENT_SD = 0.1, 3.0  # above this part of the densest voxels, and so many s.d. of the solvent
STANDS_OUT_SD = 4.0  # of the solvent, that the densest voxels must reach: those of noise have 3
SPECK = 0.05  # of the largest piece of density: smaller ones are noise
GROWN, EDGE = 0.7, 0.5  # by which the outline is dilated, and the width of the edge; in resolutions


def outline_mask(
    volume: Tensor, pixel_size_A: float, resolution_A: float, diameter_A: float | None
) -> Tensor:
    """Soft mask `(n, n, n)` about the density of a map at low resolution; 1 everywhere where none stands out.

    volume : zyx, noise and all. resolution_A : of the map. diameter_A : of the particle; beyond it is solvent,
    None = in the outermost tenth of the box.
    """
    n = len(volume)
    coarse_A = max(FINEST_A, 1.5 * resolution_A, 3 * pixel_size_A)
    smooth = low_pass(volume, pixel_size_A, coarse_A)
    axis = (torch.arange(n) - n // 2).float() * pixel_size_A
    radius_A = (axis[:, None, None].square() + axis[:, None].square() + axis.square()).sqrt()
    rim_A = 0.45 * n * pixel_size_A
    solvent = radius_A > (rim_A if diameter_A is None else min(0.6 * diameter_A, rim_A))
    density = smooth - smooth[solvent].mean()
    densest = float(density[~solvent].topk(max(1, int((~solvent).sum()) // 200)).values.mean())
    sd = float(density[solvent].std())
    core = ((density > max(LEVEL * densest, SOLVENT_SD * sd)) & ~solvent).numpy()
    if densest < STANDS_OUT_SD * sd or not core.any():
        return torch.ones_like(volume)
    away_A = (
        torch.from_numpy(distance_transform_edt(~_without_specks(core)).astype(np.float32)) * pixel_size_A
    )
    edge = ((away_A / coarse_A - GROWN) / EDGE).clamp(0, 1)
    return (1 + torch.cos(math.pi * edge)) / 2


def _without_specks(core: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Leave out pieces of density much smaller than the largest."""
    pieces, _ = label(core, np.ones((3, 3, 3)))
    voxels = np.bincount(pieces.ravel())
    voxels[0] = 0
    kept: NDArray[np.bool_] = (voxels >= SPECK * voxels.max())[pieces] & core
    return kept
