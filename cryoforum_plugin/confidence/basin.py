"""Whether a refined pose is the right one at all, from how well the reference fits the image there.

Refinement finds the bottom of the basin it starts in; its covariance knows nothing of other basins. In a wrong
one the image shows less of the reference than usual: its contrast and its gain in likelihood are low.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from scipy.optimize import minimize

from cryoforum_plugin.particles import FloatArray

RIGHT_RADII = 3.0  # an error beyond this many 90 % radii is another basin
PSEUDO_COUNT = 0.5  # weight of all examples of wrong basins together, beside those that were seen
RIDGE = 0.02


@dataclass(frozen=True)
class Basin:
    """Logistic regression on log contrast and log gain. wrong_deg : mean error in a wrong basin."""

    mean: list[float]
    spread: list[float]
    weight: list[float]
    bias: float
    wrong_deg: float

    def probability(self, contrast: FloatArray, gain: FloatArray) -> FloatArray:
        """Probability `(n,)` that the basin is the right one, of contrast and gain `(n,)`; NaN stays NaN."""
        z = (_features(contrast, gain) - self.mean) / self.spread @ self.weight + self.bias
        result: FloatArray = 1 / (1 + np.exp(-np.clip(z, -30, 30)))
        return result

    def state(self) -> dict[str, Any]:
        """Plain numbers, for calibration.json."""
        return asdict(self)


def _features(contrast: FloatArray, gain: FloatArray) -> FloatArray:
    return np.stack([np.log(np.clip(contrast, 0.02, None)), np.log1p(np.clip(gain, 0, None))], axis=1)


def fit_basin(
    contrast: FloatArray,
    gain: FloatArray,
    right: np.ndarray[Any, np.dtype[np.bool_]],
    wrong_contrast: FloatArray,
    wrong_gain: FloatArray,
    wrong_deg: float,
) -> Basin:
    """Fit on refined held-out particles `(n,)`, and on examples `(m,)` refined from random poses.

    right : whether each held-out pose was in the right basin. The examples show what a wrong basin looks like; how
    often there is one, the held-out particles say.
    """
    features = np.concatenate([_features(contrast, gain), _features(wrong_contrast, wrong_gain)])
    label = np.concatenate([right, np.zeros(len(wrong_contrast), dtype=bool)])
    weight = np.concatenate(
        [np.ones(len(right)), np.full(len(wrong_gain), PSEUDO_COUNT / max(len(wrong_gain), 1))]
    )
    mean, spread = features.mean(axis=0), features.std(axis=0) + 1e-3
    x = (features - mean) / spread
    sign = np.where(label, 1.0, -1.0)

    def cost(parameters: FloatArray) -> tuple[float, FloatArray]:
        margin = sign * (x @ parameters[:2] + parameters[2])
        slope = -weight * sign / (1 + np.exp(np.clip(margin, -500, 500)))
        value = (weight * np.logaddexp(0, -margin)).sum() + RIDGE * (parameters[:2] ** 2).sum()
        gradient = np.append(slope @ x + 2 * RIDGE * parameters[:2], slope.sum())
        return float(value), gradient

    found = minimize(cost, np.zeros(3), jac=True, method="L-BFGS-B").x
    return Basin(mean.tolist(), spread.tolist(), found[:2].tolist(), float(found[2]), wrong_deg)
