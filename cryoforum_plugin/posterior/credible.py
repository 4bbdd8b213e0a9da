"""How far from its mode a Bingham distribution reaches: radii, probabilities and mean angles.

In the eigenframe a rotation by angle a about the unit axis n has density exp(-sin^2(a/2) n'Gn) against the
measure sin^2(a/2) da dn, G = diag(gaps). Integrating n over the sphere leaves a smooth density in a alone,
which is tabulated on a grid of angles and summed: deterministic, and exact for sharp and broad posteriors.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.posterior.bingham import gaps, matrix_from_upper

_ANGLES = 64  # grid intervals over the angles that carry probability
_HEIGHTS = 16  # Gauss-Legendre nodes over the sphere of axes
_REACH = 7.0  # grid end in standard deviations of the widest axis
_ROWS_AT_ONCE = 1024


def _axis_average(strength: Tensor, g: Tensor) -> Tensor:
    """Mean over axes n of exp(-strength * n'Gn); strength `(n, a)`, ascending gaps g `(n, 3)` -> `(n, a)`.

    The azimuth integral gives I0, the height z = t^2 along the sharpest axis is a Gauss-Legendre sum.
    """
    nodes, weights = np.polynomial.legendre.leggauss(_HEIGHTS)
    t = torch.from_numpy((nodes + 1) / 2)
    height, weight = (t**2).to(g), (torch.from_numpy(weights / 2) * 2 * t).to(g)
    g1, g2, g3 = g[:, :, None, None].unbind(1)
    s = strength.unsqueeze(-1)  # (n, a, 1)
    waist = s * (1 - height**2)
    exponent = waist * g1 + s * height**2 * g3  # i0e already carries exp(-waist (g2 - g1) / 2)
    result: Tensor = (torch.special.i0e(waist * (g2 - g1) / 2) * torch.exp(-exponent) * weight).sum(-1)
    return result


def _angle_table(bingham: Tensor) -> tuple[Tensor, Tensor]:
    """Angles `(n, a)` rad from the mode and the probability `(n, a)` within each, for bingham `(n, 10)`."""
    g = gaps(matrix_from_upper(bingham.double())).float()  # float32 tables: good to 1e-5 relative
    end = (_REACH * (2 / g[:, :1].clamp(min=1e-9)).sqrt()).clamp(max=math.pi)
    angle = end * torch.linspace(0, 1, _ANGLES + 1)
    strength = torch.sin(angle / 2).square()
    density = strength * _axis_average(strength, g)
    area = (density[:, 1:] + density[:, :-1]).double().cumsum(1)
    return angle.double(), torch.nn.functional.pad(area / area[:, -1:], (1, 0))


@torch.no_grad()
def _by_blocks(bingham: Tensor, figure: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
    """Apply `figure(angle, probability)` to the tables of a few rows at a time; float64 `(n,)`."""
    blocks = bingham.detach().cpu().split(_ROWS_AT_ONCE)
    return torch.cat([figure(*_angle_table(block)) for block in blocks])


def _interpolate(x: Tensor, y: Tensor, at: float | Tensor) -> Tensor:
    """Piecewise linear y(x) `(n,)` at one value, or one `(n,)` for every row, of ascending x, y `(n, a)`."""
    target = torch.full_like(x[:, :1], at) if isinstance(at, float) else at[:, None].to(x)
    right = torch.searchsorted(x.contiguous(), target).clamp(1, x.shape[1] - 1)
    x0, x1, y0, y1 = (table.gather(1, index) for table in (x, y) for index in (right - 1, right))
    fraction = ((target - x0) / (x1 - x0).clamp(min=1e-15)).clamp(0, 1)
    return (y0 + fraction * (y1 - y0)).squeeze(1)


def _radius(angle: Tensor, probability: Tensor, level: float | Tensor) -> Tensor:
    return _interpolate(probability, angle, level)


def _probability(angle: Tensor, probability: Tensor, angle_rad: float) -> Tensor:
    return _interpolate(angle, probability, angle_rad)


def _mean(angle: Tensor, probability: Tensor) -> Tensor:
    return (probability.diff(dim=1) * (angle[:, 1:] + angle[:, :-1]) / 2).sum(1)


def credible_radius(bingham: Tensor, level: float | Tensor) -> Tensor:
    """Radius in rad `(n,)` of the ball about the mode that holds probability `level`; bingham `(n, 10)`.

    level : one for all, or `(n,)`.
    """
    if isinstance(level, Tensor):
        blocks = zip(bingham.split(_ROWS_AT_ONCE), level.cpu().split(_ROWS_AT_ONCE), strict=True)
        return torch.cat([_radius(*_angle_table(block.detach().cpu()), at) for block, at in blocks])
    return _by_blocks(bingham, lambda angle, probability: _radius(angle, probability, level))


def probability_within(bingham: Tensor, angle_rad: float) -> Tensor:
    """Probability `(n,)` that the rotation lies within `angle_rad` of the mode; bingham `(n, 10)`."""
    return _by_blocks(bingham, lambda angle, probability: _probability(angle, probability, angle_rad))


def mean_angle(bingham: Tensor) -> Tensor:
    """Expected angle in rad `(n,)` between the rotation and the mode; bingham `(n, 10)`."""
    return _by_blocks(bingham, _mean)


def summarise(bingham: Tensor, target_rad: float, level: float) -> Tensor:
    """Probability within `target_rad`, mean angle (rad), credible radius (rad): `(n, 3)` from one table."""
    return _by_blocks(
        bingham,
        lambda angle, probability: torch.stack(
            [
                _probability(angle, probability, target_rad),
                _mean(angle, probability),
                _radius(angle, probability, level),
            ],
            dim=1,
        ),
    )
