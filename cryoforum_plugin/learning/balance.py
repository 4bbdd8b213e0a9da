"""Sampling rare viewing directions more often."""

from __future__ import annotations

import math

import numpy as np
import roma
import torch
from torch import Tensor

DIRECTIONS = 1200  # cells on the sphere, about 6 degrees apart
SMOOTH_DEG = 8.0
LARGEST = 5.0  # a particle is drawn at most this many times more, or fewer, than one of mean density
_ROWS_AT_ONCE = 8192


def _directions() -> Tensor:
    """Unit vectors `(DIRECTIONS, 3)` spread evenly (Fibonacci lattice)."""
    i = torch.arange(DIRECTIONS, dtype=torch.float64)
    z, angle = 1 - (2 * i + 1) / DIRECTIONS, i * math.pi * (3 - math.sqrt(5))
    across = (1 - z.square()).sqrt()
    return torch.stack([across * angle.cos(), across * angle.sin(), z], dim=1)


def _nearest(vectors: Tensor, grid: Tensor) -> Tensor:
    """Which of the `grid` `(m, 3)` is nearest to each of `vectors` `(n, 3)`."""
    return torch.cat([(part @ grid.T).argmax(1) for part in vectors.split(_ROWS_AT_ONCE)])


def view_density(rotation: Tensor, group: Tensor, mirrored: bool) -> Tensor:
    """Density `(n,)` of viewing directions at each of poses `(n, 4)` XYZW, 1 where all views are as frequent.

    Directions equivalent under `group` `(g, 4)` count together; so do opposite ones where images are also shown
    `mirrored`, which shows them from behind.
    """
    grid = _directions()
    direction = roma.unitquat_to_rotmat(rotation.double().cpu())[..., 2]
    cell = _nearest(direction, grid)
    count = torch.bincount(cell, minlength=DIRECTIONS).double()
    kernel = torch.exp((grid @ grid.T - 1) / math.radians(SMOOTH_DEG) ** 2)
    density = kernel @ count / kernel.sum(1)
    turned = torch.einsum("gij,mj->gmi", roma.unitquat_to_rotmat(group.double().cpu()), grid)
    turned = torch.cat([turned, -turned]) if mirrored else turned
    copies = _nearest(turned.flatten(0, 1), grid).view(-1, DIRECTIONS)
    even = density[copies].mean(0)
    return even[cell] / (len(rotation) / DIRECTIONS)


def view_weights(rotation: Tensor, group: Tensor, mirrored: bool, power: float) -> Tensor:
    """How often each particle is drawn, relative to the mean: `(n,)`, density to the -`power`, within limits."""
    weight = view_density(rotation, group, mirrored).pow(-power).clamp(1 / LARGEST, LARGEST)
    return weight / weight.mean()


def weighted_rows(weight: Tensor, count: int, generator: torch.Generator) -> Tensor:
    """Draw `count` rows with probabilities proportional to `weight` `(n,)`, with replacement."""
    edges = np.cumsum(weight.numpy())
    at = torch.rand(count, generator=generator, dtype=torch.float64).numpy() * edges[-1]
    return torch.from_numpy(np.minimum(np.searchsorted(edges, at, side="right"), len(edges) - 1))
