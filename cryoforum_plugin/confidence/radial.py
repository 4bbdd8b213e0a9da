"""How far from the pose that was found the true one lies, in units of the particle's own radius: one law for all."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.stats.mstats import hdquantiles

from cryoforum_plugin.particles import FloatArray

LEVELS = np.arange(1, 100) / 100
INNER_POWER = 3.0  # near the pose, probability grows as the volume of a ball of rotations
TAIL_POWERS = (3.0, 30.0)  # limits of that of the tail; normal errors have about 9


@dataclass(frozen=True)
class RadialLaw:
    """Distribution of error / radius over held-out particles.

    quantiles : at LEVELS, ascending. tail : beyond the last one P(ratio > t) falls as t ** -tail, so that
    the confidence of sharp posteriors keeps its order and never reaches 1.
    """

    quantiles: list[float]
    tail: float

    def quantile(self, level: float | FloatArray) -> FloatArray:
        """Ratio that a particle stays below with probability `level` in (0, 1)."""
        level = np.asarray(level, dtype=np.float64)
        t = np.asarray(self.quantiles)
        inner = t[0] * (level / LEVELS[0]) ** (1 / INNER_POWER)
        outer = t[-1] * ((1 - level).clip(1e-12) / (1 - LEVELS[-1])) ** (-1 / self.tail)
        middle = np.exp(np.interp(level, LEVELS, np.log(t)))
        return np.asarray(np.where(level < LEVELS[0], inner, np.where(level > LEVELS[-1], outer, middle)))

    def probability(self, ratio: FloatArray) -> FloatArray:
        """P(error / radius < ratio) of ratios `(n,)`, in [0, 1)."""
        t = np.asarray(self.quantiles)
        ratio = np.clip(ratio, 1e-12, None)
        inner = LEVELS[0] * (ratio / t[0]).clip(max=1) ** INNER_POWER
        outer = 1 - (1 - LEVELS[-1]) * (ratio / t[-1]).clip(min=1) ** -self.tail
        middle = np.interp(np.log(ratio), np.log(t), LEVELS)
        return np.asarray(np.where(ratio < t[0], inner, np.where(ratio > t[-1], outer, middle)))

    def mean(self, radius: FloatArray, most: float = math.pi) -> FloatArray:
        """Mean error `(n,)` of particles of radii `(n,)`, none above `most`."""
        middles = self.quantile((np.arange(200) + 0.5) / 200)
        rows = np.minimum(np.asarray(radius)[:, None] * middles, most)
        return np.asarray(rows.mean(axis=1))

    def scaled(self, factor: float) -> RadialLaw:
        """Return the law of ratios that are `factor` times as large."""
        return RadialLaw([value * factor for value in self.quantiles], self.tail)

    def state(self) -> dict[str, Any]:
        """Plain numbers, for calibration.json."""
        return asdict(self)


def fit_radial_law(ratio: FloatArray) -> RadialLaw:
    """Law of held-out ratios `(n,)` > 0, of error to radius.

    Quantiles (Harrell and Davis 1982, smoother than single order statistics) are taken at (n + 1) / n times the
    level, as split conformal prediction does (Lei et al. 2018): of a new particle like these, each ball holds at
    least its level on average.
    """
    n = len(ratio)
    values = np.asarray(hdquantiles(ratio, prob=np.minimum(LEVELS * (n + 1) / n, 1.0)))
    values = np.maximum.accumulate(np.maximum(values, 1e-9))
    at_95, at_99 = values[94], values[98]
    tail = math.log(5) / max(math.log(at_99 / at_95), 1e-3)
    return RadialLaw([float(value) for value in values], float(np.clip(tail, *TAIL_POWERS)))
