"""Directions: cells of equal area on the sphere, and evenly spread points."""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from cryoforum_plugin.particles import FloatArray, IntArray

CELLS = 4000  # about 3 degrees apart


@lru_cache(maxsize=64)
def _rings(cells: int) -> tuple[FloatArray, IntArray]:
    """Rings of the sphere from z = 1 to -1: their edges in z `(rings + 1,)` and numbers of cells, all of equal area."""
    count = max(2, round(math.sqrt(cells * math.pi) / 2))
    polar = (np.arange(count) + 0.5) * math.pi / count
    share = np.cumsum(np.sin(polar))
    numbers = np.diff(np.round(cells * share / share[-1]), prepend=0).astype(np.int64).clip(1)
    edges = 1 - 2 * np.concatenate([[0], np.cumsum(numbers)]) / numbers.sum()
    return edges, numbers


def cell_of(direction: FloatArray, cells: int = CELLS) -> IntArray:
    """Number `(n,)` of the cell that each unit vector `(n, 3)` xyz lies in; about `cells` of equal area."""
    edges, numbers = _rings(cells)
    ring = (np.searchsorted(-edges, -direction[:, 2], side="right") - 1).clip(0, len(numbers) - 1)
    turn = np.arctan2(direction[:, 1], direction[:, 0]) / (2 * math.pi) % 1.0
    within = np.minimum((turn * numbers[ring]).astype(np.int64), numbers[ring] - 1)
    first = np.cumsum(numbers) - numbers
    result: IntArray = first[ring] + within
    return result


@lru_cache(maxsize=8)
def cell_centres(cells: int = CELLS) -> FloatArray:
    """Unit vectors `(m, 3)` xyz of the middles of the cells."""
    edges, numbers = _rings(cells)
    z = np.repeat((edges[1:] + edges[:-1]) / 2, numbers)
    angle = np.concatenate([(np.arange(m) + 0.5) * 2 * math.pi / m for m in numbers])
    across = np.sqrt(1 - z**2)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)


def fibonacci_half_sphere(count: int) -> FloatArray:
    """Unit vectors `(count, 3)` xyz spread evenly over the half sphere z > 0 (Fibonacci lattice)."""
    i = np.arange(count)
    z, angle = 1 - (i + 0.5) / count, i * math.pi * (3 - math.sqrt(5))
    across = np.sqrt(1 - z**2)
    return np.stack([across * np.cos(angle), across * np.sin(angle), z], axis=1)
