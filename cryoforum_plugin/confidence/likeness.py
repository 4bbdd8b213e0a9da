"""How unlike the particles a model was calibrated on are others: each by itself, and a set of them."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from torch import Tensor

from cryoforum_plugin.confidence.calibration import LEVEL
from cryoforum_plugin.confidence.outliers import OutlierModel
from cryoforum_plugin.confidence.raw import MATCH, RawPrediction
from cryoforum_plugin.geometry import angular_distance_to_group
from cryoforum_plugin.particles import FloatArray
from cryoforum_plugin.posterior import credible_radius, matrix_from_upper, mode

# what each figure tells of, and on which side of the usual it speaks against a particle: +1 above, -1 below, 0 both
SIDES = {
    "width": 1, "features": 0, "shift": 1, "turn": 1, "contrast": -1, "coarse": 0, "middle": 0, "fine": 0,
    "coarse_rest": 1, "middle_rest": 1, "fine_rest": 1,
}  # fmt: skip
MEANING = {
    "width": "the network is less (or more) sure of poses",
    "features": "the network sees other features",
    "shift": "the particles are less well centred",
    "turn": "refinement moves poses further from the network's",
    "contrast": "the images show more (or less) of the reference",
    "coarse": "coarse detail fits the reference differently (another state, pixel size or envelope)",
    "middle": "middle detail fits the reference differently (another state, pixel size or envelope)",
    "fine": "fine detail fits the reference differently (another state, pixel size or envelope)",
    "coarse_rest": "more (or less) coarse detail is left over than reference and noise explain",
    "middle_rest": "more (or less) middle detail is left over than reference and noise explain",
    "fine_rest": "more (or less) fine detail is left over than reference and noise explain",
}
MOST = 40.0  # standard deviations
LEAST_TURN = 0.05  # in radii: smaller turns are alike
SHRINKAGE = 0.05  # of the correlations towards none
TAIL = 4.0  # beyond the furthest held-out particle P(distance > d) falls as d ** -TAIL
UNLIKE = 0.3  # standard deviations that the median of a figure may lie off, and its standard errors beside
STANDARD_ERRORS = 4.0
OUTLIER = 0.99  # score above which a particle counts as an outlier of a set
MOST_OUTLIERS = 0.05
FEWEST = 20  # particles that say something of a set

Unlikeness = dict[str, Any]


@dataclass(frozen=True)
class Likeness:
    """Figures of held-out particles: their medians and spreads, how they correlate, and how far out they lie.

    names : of the m figures. centre, spread : `(m,)`. inverse : `(m, m)` of the correlations of the figures that speak
    against a particle. distances : ascending quantiles of the distance of held-out particles. count : of those particles.
    """

    names: list[str]
    centre: list[float]
    spread: list[float]
    inverse: list[list[float]]
    distances: list[float]
    count: int

    def deviations(self, figures: FloatArray) -> FloatArray:
        """Figures `(n, m)` in standard deviations off the centre."""
        z = (figures - np.array(self.centre)) / np.array(self.spread)
        return np.asarray(np.clip(z, -MOST, MOST))

    def score(self, figures: FloatArray) -> FloatArray:
        """Part `(n,)` of particles like the held-out ones that lie nearer to the centre, in [0, 1); NaN stays NaN."""
        distance = _distance(self.deviations(figures), self.names, np.array(self.inverse))
        known = np.array(self.distances)
        below = np.interp(distance, known, np.linspace(0, 1, len(known)) * self.count / (self.count + 1))
        beyond = 1 - (distance / known[-1]).clip(min=1) ** -TAIL / (self.count + 1)
        return np.where(np.isnan(distance), np.nan, np.where(distance > known[-1], beyond, below))

    def state(self) -> dict[str, Any]:
        """Plain numbers, for calibration.json."""
        return asdict(self)


def figures_of(
    raw: RawPrediction, network: RawPrediction, features: OutlierModel, group: Tensor
) -> tuple[list[str], FloatArray]:
    """Names and values `(n, m)` of what likeness is told from; NaN for images that could not be read.

    network : the network's calibrated answers; raw : the same, or what refinement made of them. group `(g, 4)`.
    """
    seen = network.bingham.double().nan_to_num()
    width = credible_radius(seen, LEVEL).clamp(min=1e-6).log().numpy()
    unlike = features.distance(network.features).clamp(min=1e-6).log().numpy()
    shift = np.log(np.linalg.norm(raw.shift_A.numpy(), axis=1) + raw.shift_sd_A.double().numpy().clip(1e-3))
    columns = {"width": width, "features": unlike, "shift": shift}
    if raw.match is not None:
        refined = mode(matrix_from_upper(raw.bingham.double().nan_to_num()))
        turn = angular_distance_to_group(refined, mode(matrix_from_upper(seen)), group).numpy()
        columns["turn"] = np.log(turn / np.exp(width) + LEAST_TURN)
        columns |= dict(zip(MATCH, raw.match.numpy().T, strict=True))
    values = np.stack(list(columns.values()), axis=1)
    values[raw.unusable.numpy()] = np.nan
    return list(columns), values


def fit_likeness(names: list[str], figures: FloatArray) -> Likeness:
    """Fit on figures `(n, m)` of held-out particles; robust against a few odd ones among them."""
    figures = figures[np.isfinite(figures).all(axis=1)]
    centre = np.median(figures, axis=0)
    low, high = np.quantile(figures, [0.16, 0.84], axis=0)
    # standing at the same value in most particles, a figure says nothing
    spread = np.maximum((high - low) / 2, np.maximum(1e-3, 1e-3 * np.abs(centre)))
    z = np.clip((figures - centre) / spread, -3, 3)
    z = (z - z.mean(axis=0)) / z.std(axis=0).clip(1e-6)  # one that never changes correlates with nothing
    correlation = (1 - SHRINKAGE) * z.T @ z / len(z)
    np.fill_diagonal(correlation, 1.0)
    inverse = np.asarray(np.linalg.inv(correlation), dtype=np.float64)
    distance = _distance(np.clip((figures - centre) / spread, -MOST, MOST), names, inverse)
    quantiles = np.quantile(distance, np.linspace(0, 1, min(1001, len(distance))))
    return Likeness(
        names,
        centre.tolist(),
        spread.tolist(),
        inverse.tolist(),
        np.maximum.accumulate(quantiles).tolist(),
        len(figures),
    )


def _distance(z: FloatArray, names: list[str], inverse: FloatArray) -> FloatArray:
    """Distance `(n,)` from the usual of deviations `(n, m)`, of which those that speak for a particle count nothing."""
    side = np.array([SIDES[name] for name in names])
    against = np.where(side == 0, z, side * np.maximum(side * z, 0))
    # a figure at its usual value counts nothing, whatever it is correlated with: the length of the rest
    squares = np.einsum("ni,ij,nj->n", against, inverse, against)
    return np.asarray(np.sqrt(np.maximum(squares, np.square(against).max(axis=1))))


def unlikeness(names: list[str], deviations: FloatArray, score: FloatArray, held_out: int) -> Unlikeness:
    """How unlike the calibration's particles a set is, from deviations `(n, m)` of figures `names` and scores `(n,)`.

    held_out : number of the calibration's particles. Returns "particles", "outliers" (part with a score above OUTLIER,
    about 1 % among particles like those), "deviations" (of the median of each figure, in standard deviations of single
    particles), and "alarms", sentences where one lies further off than chance and habit explain.
    """
    known = np.isfinite(deviations).all(axis=1)
    deviations, score, n = deviations[known], score[known], int(known.sum())
    result: Unlikeness = {"particles": n, "outliers": 0.0, "deviations": {}, "alarms": []}
    if n < FEWEST:
        return result
    middle = [float(value) for value in np.median(deviations, axis=0)]
    limit = UNLIKE + STANDARD_ERRORS * math.sqrt(math.pi / 2 * (1 / n + 1 / held_out))
    outliers, expected = float((score > OUTLIER).mean()), 1 - OUTLIER
    chance = STANDARD_ERRORS * math.sqrt(expected * (1 - expected) * (1 / n + 1 / held_out))
    result["deviations"] = dict(zip(names, np.round(middle, 3).tolist(), strict=True))
    result["outliers"] = outliers
    result["alarms"] = [
        f"{MEANING[name]} ({value:+.1f} standard deviations)"
        for name, value in zip(names, middle, strict=True)
        if abs(value) > limit
    ]
    if outliers > MOST_OUTLIERS + chance:
        share = (
            f"{100 * outliers:.0f} % of the particles are outliers, where {100 * expected:.0f} % are usual"
        )
        result["alarms"].append(share)
    return result
