"""Summaries of mixtures of Bingham distributions, by importance sampling with fixed random numbers."""

from __future__ import annotations

from functools import lru_cache

import torch
from torch import Tensor

from cryoforum_plugin.geometry import angular_distance
from cryoforum_plugin.posterior.bingham import matrix_from_upper, mode
from cryoforum_plugin.posterior.credible import angle_table, interpolate

SAMPLES = 256
_ROWS_AT_ONCE = 1024


@lru_cache(maxsize=1)
def _normals() -> Tensor:
    """Scrambled Sobol points as standard normal numbers `(SAMPLES, 4)`; the same for every particle."""
    uniform = torch.quasirandom.SobolEngine(4, scramble=True, seed=1).draw(SAMPLES, dtype=torch.float64)
    normal: Tensor = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    return normal


def weighted_samples(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Rotations `(..., m, 4)` and weights `(..., m)`, which sum to 1, of Bingham matrices `(..., 4, 4)`.

    Proposals are angular central Gaussian with the matrix I + 2 (A - l1 I), which has the Bingham's peak and
    longer tails (Kent, Ganeiber and Mardia 2018).
    """
    values, vectors = torch.linalg.eigh(matrix.double())
    gap = (values - values[..., :1]).unsqueeze(-2)
    spread = 1 + 2 * gap
    x = torch.nn.functional.normalize(_normals() / spread.sqrt(), dim=-1)
    log_weight = 2 * torch.log((x.square() * spread).sum(-1)) - (x.square() * gap).sum(-1)
    return x @ vectors.mT, log_weight.softmax(-1)


@torch.no_grad()
def summarise_mixture(modes: Tensor, log_weight: Tensor, target_rad: float, level: float) -> Tensor:
    """Probability within `target_rad`, mean angle (rad) and radius (rad) of the ball of probability `level`.

    All `(n, 3)` about the mode of the first of modes `(n, k, 10)`, weights exp of log_weight `(n, k)`. The first
    is taken from its exact table, the others from samples.
    """
    rows = zip(modes.double().split(_ROWS_AT_ONCE), log_weight.double().split(_ROWS_AT_ONCE), strict=True)
    return torch.cat([_summary(m, w.exp(), target_rad, level) for m, w in rows])


def _summary(modes: Tensor, weight: Tensor, target_rad: float, level: float) -> Tensor:
    angle, within = angle_table(modes[:, 0])
    matrices = matrix_from_upper(modes)
    rotation, part = weighted_samples(matrices[:, 1:])
    other = angular_distance(rotation, mode(matrices[:, 0])[:, None, None]).flatten(1)
    part = (part * weight[:, 1:, None]).flatten(1)

    def probability(limit: Tensor) -> Tensor:
        return weight[:, 0] * interpolate(angle, within, limit) + (part * (other <= limit[:, None])).sum(1)

    mean = weight[:, 0] * (within.diff(dim=1) * (angle[:, 1:] + angle[:, :-1]) / 2).sum(1)
    low, high = torch.zeros_like(mean), torch.full_like(mean, torch.pi)
    for _ in range(40):
        middle = (low + high) / 2
        enough = probability(middle) >= level
        low, high = torch.where(enough, low, middle), torch.where(enough, middle, high)
    at_target = probability(torch.full_like(mean, target_rad))
    return torch.stack([at_target, mean + (part * other).sum(1), high], dim=1)
