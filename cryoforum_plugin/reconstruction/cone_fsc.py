"""Resolution by direction: the FSC within cones about many directions of Fourier space."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.geometry import cell_centres, cell_of, fibonacci_half_sphere
from cryoforum_plugin.images.fourier import half_multiplicity
from cryoforum_plugin.particles import FloatArray
from cryoforum_plugin.reconstruction.fsc import resolution_A

HALF_ANGLE_DEG = 20.0
DIRECTIONS = 150  # of the half sphere, about 12 degrees apart
THRESHOLD = 0.143
EVEN = 0.1  # relative difference from the median resolution up to which a cone counts as even
FEWEST = 8  # frequencies of a shell in a cone; where there are fewer, the whole shell is taken
PLANES_AT_ONCE = 32


@dataclass(frozen=True)
class ConeFsc:
    """FSC of each cone. directions : `(m, 3)` unit vectors, volume frame xyz. fsc : `(m, n // 2 + 1)`.

    resolution_A : `(m,)` where each falls below 0.143.
    """

    directions: FloatArray
    fsc: Tensor
    resolution_A: FloatArray

    @property
    def best_A(self) -> float:
        """Resolution of the best direction."""
        return float(self.resolution_A.min())

    @property
    def worst_A(self) -> float:
        """Resolution of the worst direction."""
        return float(self.resolution_A.max())

    @property
    def even(self) -> float:
        """Part of the cones whose resolution is within EVEN of the median."""
        return float((np.abs(self.resolution_A / np.median(self.resolution_A) - 1) <= EVEN).mean())


def cone_fsc(a: Tensor, b: Tensor, pixel_size_A: float, times: float = 1.0) -> ConeFsc:
    """Correlate two volumes `(n, n, n)` zyx shell by shell within double cones about DIRECTIONS directions.

    times : tells the FSC of volumes from so many times as many particles, whose signal-to-noise ratio is as much higher.

    Products are summed over small cells of each shell once, and the cells over cones: a cone's rim is as fine as
    a cell, 3 degrees. Shells are those of `fourier_shell_correlation`.
    """
    directions = fibonacci_half_sphere(DIRECTIONS)
    sums = _cell_sums(a, b)  # (4, cells, shells)
    inside = np.abs(directions @ cell_centres().T) >= math.cos(math.radians(HALF_ANGLE_DEG))
    within = torch.from_numpy(inside.astype(np.float64)) @ sums  # (4, cones, shells)
    within = torch.where(within[3] < FEWEST, sums.sum(1, keepdim=True), within)
    power = within[1] * within[2]
    fsc = torch.where(power > 0, within[0] / power.clamp(min=1e-300).sqrt(), 0.0).float()
    if times != 1:
        fsc = torch.where(fsc > 0, times * fsc / (1 - fsc + times * fsc), fsc)
    fsc[:, 0] = 1
    resolution = np.array([resolution_A(curve, THRESHOLD, pixel_size_A) for curve in fsc])
    return ConeFsc(directions, fsc, resolution)


def _cell_sums(a: Tensor, b: Tensor) -> Tensor:
    """Sums of Re(F_a F_b*), |F_a|^2, |F_b|^2 and 1 over cells of direction and shells: `(4, cells, n // 2 + 1)`."""
    n, cells = len(a), len(cell_centres())
    shells = n // 2 + 1
    fa, fb = (torch.fft.rfftn(v.double()).cpu() for v in (a, b))
    times = half_multiplicity(n)
    full, half = np.fft.fftfreq(n, 1 / n), np.arange(n // 2 + 1, dtype=np.float64)
    sums = torch.zeros(4, cells * shells, dtype=torch.float64)
    for start in range(0, n, PLANES_AT_ONCE):
        planes = slice(start, start + PLANES_AT_ONCE)
        kz, ky, kx = np.meshgrid(full[planes], full, half, indexing="ij")
        length = np.sqrt(kx**2 + ky**2 + kz**2)
        shell = np.round(length).astype(np.int64)
        used = (shell > 0) & (shell < shells)
        k = np.stack([kx[used], ky[used], kz[used]], axis=1) / length[used][:, None]
        index = torch.from_numpy(cell_of(k) * shells + shell[used])
        chosen = torch.from_numpy(used)
        x, y = fa[planes][chosen], fb[planes][chosen]
        one = torch.ones(len(index), dtype=torch.float64)
        weight = times.double().expand(used.shape)[chosen]
        for row, values in enumerate(((x * y.conj()).real, x.abs().square(), y.abs().square(), one)):
            sums[row].index_add_(0, index, values * weight)
    return sums.view(4, cells, shells)
