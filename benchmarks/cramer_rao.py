"""The Cramér-Rao bound of a simulation: the least error of poses that any method can have, map and noise known.

Five parameters of a particle, three of rotation and two of shift. The Fisher matrix is that of Gaussian noise
about the noiseless image at the full box, whose derivatives are central differences of the simulator's own
images (with a finer Fourier grid, `refine_grid`), summed in float64: in real space where the noise is white, weighted by the inverse of the noise's mean
power in Fourier space where it is not. No code of `refinement` takes part.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum_plugin.images.fourier import half_multiplicity, shell_index
from cryoforum_plugin.images.projector import Projector
from cryoforum_plugin.maps.volume import low_pass
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.simulation.draw import Draw
from cryoforum_plugin.simulation.simulate import Simulator

STEP_RAD, STEP_PX = 0.005, 0.1
DRAWS = 200  # errors drawn per particle
BATCH = 32


def refine_grid(simulator: Simulator, volume: Tensor, pixel_size_A: float, padding: int) -> None:
    """Give `simulator` a Fourier grid `padding` times as fine as the box of `volume`, the map it was made with.

    Linear interpolation between grid points, whose slope is constant from one to the next, adds to the squared
    derivatives: at the simulator's padding of 2 the bound of the 70S map comes out 1 % too small, with 3 half of that.
    """
    settings = simulator.settings
    if settings.low_pass_A is not None:
        volume = low_pass(volume, pixel_size_A, settings.low_pass_A)
    simulator.projector = Projector(volume, pixel_size_A, simulator.box_px, padding)


def derivatives(simulator: Simulator, draw: Draw, rows: IntArray) -> Tensor:
    """Derivatives `(b, 5, box, box)` float64 of noiseless images, by rad about x, y, z of the volume and by Å."""
    step_A = STEP_PX * simulator.pixel_size_A
    columns = []
    for k in range(5):
        step = STEP_RAD if k < 3 else step_A
        ends = [simulator.signal(_moved(draw, k, sign * step), rows).double() for sign in (1, -1)]
        columns.append((ends[0] - ends[1]) / (2 * step))
    return torch.stack(columns, dim=1)


def _moved(draw: Draw, parameter: int, by: float) -> Draw:
    if parameter < 3:
        turn = Rotation.from_rotvec(by * np.eye(3)[parameter])
        return replace(draw, rotation=(turn * Rotation.from_quat(draw.rotation)).as_quat())
    return replace(draw, displacement_A=draw.displacement_A + by * np.eye(2)[parameter - 3])


def fisher_white(columns: Tensor, variance: float) -> Tensor:
    """Fisher matrices `(b, 5, 5)` under white noise of `variance` per pixel."""
    flat = columns.flatten(2)
    return flat @ flat.mT / variance


def fisher_coloured(columns: Tensor, power: Tensor) -> Tensor:
    """Fisher matrices `(b, 5, 5)` under noise with mean |rfft2|^2 `power` `(box // 2 + 1,)` by shell."""
    n = columns.shape[-1]
    shell = shell_index(n)
    known = (shell > 0) & (shell <= n // 2)  # no power of ice patches at frequency 0: they have mean 0
    weight = torch.where(known, half_multiplicity(n) / power.double()[shell.clamp(max=n // 2)], 0.0)
    ft = (torch.fft.rfft2(columns) * weight.sqrt()).flatten(2)
    return (ft @ ft.mH).real


def bound(
    simulator: Simulator, draw: Draw, rows: IntArray, variance: float, power: Tensor | None = None
) -> dict[str, float]:
    """Figures of errors drawn from normal distributions with the least covariance, over `rows`.

    variance : of the noise per pixel. power : where it is not white, as `fisher_coloured` takes it.
    """
    generator = torch.Generator().manual_seed(1)
    angles, shifts = [], []
    for part in np.array_split(rows, max(1, len(rows) // BATCH)):
        columns = derivatives(simulator, draw, part)
        fisher = fisher_white(columns, variance) if power is None else fisher_coloured(columns, power)
        root = torch.linalg.cholesky(torch.linalg.inv(fisher))
        drawn = root @ torch.randn(len(part), 5, DRAWS, generator=generator, dtype=torch.double)
        angles.append(drawn[:, :3].norm(dim=1).flatten())
        shifts.append(drawn[:, 3:].norm(dim=1).flatten())
    angle, shift = torch.cat(angles), torch.cat(shifts)
    quantiles = {"median_rad": 0.5, "p90_rad": 0.9, "p99_rad": 0.99}
    return {
        "particles": len(rows),
        **{name: round(float(np.quantile(angle.numpy(), q)), 6) for name, q in quantiles.items()},
        "mean_rad": round(float(angle.mean()), 6),
        "shift_rmse_A": round(float(shift.square().mean().sqrt()), 4),
    }
