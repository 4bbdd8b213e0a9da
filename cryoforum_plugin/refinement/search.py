"""Where to start: low frequencies compared with slices at poses all over one asymmetric unit."""

from __future__ import annotations

import math

import roma
import torch
from torch import Tensor

from cryoforum_plugin.geometry import in_asymmetric_unit, super_fibonacci_quaternions, symmetry_group
from cryoforum_plugin.refinement.solver import Observed, Solver

GRID = 9216  # rotations, about 9 degrees apart
WAVELENGTH = 0.16  # of the particle's diameter: half a step of the grid moves its rim by a quarter of that
APART_DEG = 20.0  # of the starts of one particle


class GridSearch:
    """Scores poses of a grid on the low frequencies of whitened images.

    wavelength_A, side_A : finest detail compared, and the side of the images' box.
    """

    def __init__(self, solver: Solver, symmetry: str, wavelength_A: float, side_A: float) -> None:
        points = solver.points
        self.points = points
        grid = super_fibonacci_quaternions(GRID)
        grid = grid[in_asymmetric_unit(grid, symmetry)]
        group = torch.from_numpy(symmetry_group(symmetry))
        shape = (len(grid), len(group), 4)
        copies = roma.quat_product(group.expand(shape), grid.unsqueeze(1).expand(shape))
        self.copies = copies.to(points.k.device)  # (g, group, 4), float64
        self.grid = grid.float().to(points.k.device)
        self.count = max(points.count(side_A / wavelength_A), min(16, len(points.k)))
        parts = [solver.slicer.values(roma.unitquat_to_rotmat(q), self.count) for q in self.grid.split(1024)]
        self.slices = torch.cat(parts)

    def gains(self, observed: Observed, shift_px: Tensor) -> Tensor:
        """Log likelihood `(b, g)` of each pose of the grid over that of no particle, at the best contrast."""
        k = self.points.k[: self.count] * (2 * math.pi / self.points.box_px)
        transfer = observed.transfer[:, : self.count]
        centred = observed.data[:, : self.count] * torch.polar(transfer, -(shift_px @ k.T))
        overlap = torch.view_as_real(centred).flatten(1) @ torch.view_as_real(self.slices).flatten(1).T
        power = transfer.square() @ self.slices.abs().square().T
        return overlap.clamp(min=0).square() / power.clamp(min=1e-20) / 2

    def energies(self, matrix: Tensor) -> Tensor:
        """q'Aq `(b, g)` of each pose of the grid, of its copy that fits best, for posteriors `(b, 4, 4)`."""
        poses = self.copies.flatten(0, 1)
        energy = torch.einsum("gi,bij,gj->bg", poses, matrix.double(), poses)
        nearest: Tensor = energy.unflatten(1, self.copies.shape[:2]).amin(2).float()
        return nearest

    def starts(self, score: Tensor, number: int) -> Tensor:
        """Rotations `(b, number, 4)` of highest score `(b, g)`, at least APART_DEG from one another."""
        near = math.cos(math.radians(APART_DEG) / 2)
        score, found = score.clone(), []
        for _ in range(number):
            best = self.grid[score.argmax(1)]
            found.append(best)
            score[(best @ self.grid.T).abs() > near] = -torch.inf
        return torch.stack(found, 1)
