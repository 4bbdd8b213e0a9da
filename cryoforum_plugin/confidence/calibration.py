"""Making the posterior mean what it says: widths and a law of errors, fitted on particles the network did not see."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats.mstats import hdquantiles
from torch import Tensor

from cryoforum_plugin.confidence.alternatives import best_alternative
from cryoforum_plugin.confidence.basin import Basin
from cryoforum_plugin.confidence.radial import RadialLaw, fit_radial_law
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.particles import FloatArray, Prediction
from cryoforum_plugin.posterior import (
    credible_radius,
    gaps,
    matrix_from_upper,
    mode,
    reduce_bingham,
    summarise,
    upper_from_matrix,
)
from cryoforum_plugin.posterior.sampling import summarise_mixture

TARGET_DEG = 5.0  # the confidence is the probability of an error below this
LEVEL = 0.9  # of the ball that the width is fitted at, and that the Bingham numbers of a table have
LEVELS = (0.5, 0.9, 0.95)  # of the balls whose radii are reported
HIGHEST_LEVEL = 0.995  # of a ball that still lies in the right basin
LARGEST_FACTOR = 1e6
ROUNDS = 50
SLOPE_SD, LARGEST_STRETCH = 0.3, 3.0  # prior of the slope about 1; of a radius by it
SLOPES = tuple(float(s) for s in np.round(np.arange(-0.9, 1.51, 0.02), 2))  # less 1

LOG = logging.getLogger("cryoforum")


@dataclass(frozen=True)
class Calibration:
    """What turns the network's numbers, of one number of views or of refined poses, into calibrated ones.

    width : multiplies A, so that the LEVEL credible ball holds that part of the particles. slope, pivot : radii grow as
    the `slope` power of what A says, about log radius (rad) `pivot`. shift : multiplies the s.d. of the shift.
    law : of errors in units of the LEVEL radius; None = that of the Bingham distribution itself, as with several modes.
    weights : power of the weights of several modes. basin : of refined poses, tells which ended in a wrong basin.
    """

    width: float
    shift: float
    weights: float = 1.0
    basin: Basin | None = None
    slope: float = 1.0
    pivot: float = 0.0
    law: RadialLaw | None = None

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Calibration:
        """Factors of one number of views, or of refined poses, as calibration.json holds them."""
        return cls(
            figures["width"],
            figures["shift"],
            figures.get("weights", 1.0),
            Basin(**figures["basin"]) if figures.get("basin") else None,
            figures.get("slope", 1.0),
            figures.get("pivot", 0.0),
            RadialLaw(**figures["law"]) if figures.get("law") else None,
        )

    def state(self) -> dict[str, Any]:
        """Plain numbers for calibration.json, all but the basin."""
        plain = {name: getattr(self, name) for name in ("width", "shift", "weights", "slope", "pivot")}
        return plain | ({} if self.law is None else {"law": self.law.state()})

    def widened(self, bingham: Tensor) -> Tensor:
        """Calibrated A `(n, 10)`, float64."""
        bingham = bingham.double() * self.width
        if self.slope == 1:
            return bingham
        return bingham * stretched(bingham / self.width, self.slope, self.pivot)[:, None]


def stretched(bingham: Tensor, slope: float, pivot: float) -> Tensor:
    """Factor `(n,)` of A `(n, 10)` that gives its radius r the radius exp(pivot) (r / exp(pivot)) ** slope."""
    offset = credible_radius(bingham, LEVEL).clamp(min=1e-6).log() - pivot
    reach = math.log(LARGEST_STRETCH)
    stretch: Tensor = (-2 * ((slope - 1) * offset).clamp(-reach, reach)).exp()
    return stretch


def radii(raw: RawPrediction, calibration: Calibration, levels: Sequence[float]) -> FloatArray:
    """Radii `(n, k)` rad of the balls about the modes that hold each of `levels` of the calibrated posterior."""
    if raw.modes is not None and raw.log_weight is not None:
        return _radii_of_several(*scaled(raw.modes, raw.log_weight, calibration), levels)
    errors = _Errors(calibration.widened(raw.bingham), calibration, right_basin(raw, calibration))
    return errors.radii(levels)


def scaled(modes: Tensor, log_weight: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Calibrated modes `(n, k, 10)` and log weights `(n, k)`, float64."""
    return modes.double() * calibration.width, (log_weight.double() * calibration.weights).log_softmax(1)


def fit_width(bingham: Tensor, error_rad: FloatArray, level: float = LEVEL) -> float:
    """Factor of A `(n, 10)` with which the `level` credible ball holds `level` of the errors `(n,)`.

    That is the factor at which the `level` quantile (Harrell-Davis) of error / radius is 1: of sharp posteriors the
    inverse square of that quantile, of broad ones found by repeating that.
    """
    width = 1.0
    for _ in range(ROUNDS):
        radius = credible_radius(bingham * width, level).numpy()
        ratio = float(hdquantiles(error_rad / radius, prob=[level])[0])
        width = float(np.clip(width / max(ratio, 1e-6) ** 2, 1 / LARGEST_FACTOR, LARGEST_FACTOR))
        if abs(ratio - 1) < 1e-4 or width in (1 / LARGEST_FACTOR, LARGEST_FACTOR):
            break
    if width in (1 / LARGEST_FACTOR, LARGEST_FACTOR):
        LOG.warning("the posterior could not be calibrated: errors and widths do not fit together")
    return width


def fit_slope(bingham: Tensor, error_rad: FloatArray) -> tuple[float, float]:
    """Slope of log error `(n,)` on log radius of A `(n, 10)`, and the log radius that it is taken about.

    Of the LEVEL quantile, as sure and unsure particles may differ in their tails, and these count (quantile regression,
    Koenker and Bassett 1978). A prior keeps it near 1, which is where a network with well scaled widths stays; few
    particles, or radii that are all alike, move it little.
    """
    radius = credible_radius(bingham, LEVEL).clamp(min=1e-6).log().numpy()
    pivot = float(np.median(radius))
    x, y = radius - pivot, np.log(np.maximum(error_rad, 1e-6)) - radius
    # the loss in units in which its curvature is that of a log likelihood: its variance over the density at the quantile
    near = np.quantile(y, [LEVEL - 0.05, LEVEL + 0.05])
    unit = max(float(near[1] - near[0]), 1e-3) / 0.1 * LEVEL * (1 - LEVEL)

    def loss(change: float) -> float:
        off = y - change * x
        off = off - np.quantile(off, LEVEL)
        return float(np.maximum(LEVEL * off, (LEVEL - 1) * off).sum() / unit + (change / SLOPE_SD) ** 2 / 2)

    return 1.0 + min(SLOPES, key=loss), pivot


def fit(
    raw: RawPrediction, error_rad: FloatArray, shift_error_A: FloatArray, shaped: bool = True
) -> Calibration:
    """Fit on held-out rows of one mode: errors `(n,)` rad, shift errors `(n, 2)` Å.

    shaped : fit slope and law too, not the width alone.
    """
    ratio = np.square(shift_error_A) / np.square(raw.shift_sd_A.double().numpy())[:, None]
    shift = float(np.sqrt(ratio.mean()))
    if not shaped:
        return Calibration(fit_width(raw.bingham, error_rad), shift)
    slope, pivot = fit_slope(raw.bingham, error_rad)
    bingham = raw.bingham.double() * stretched(raw.bingham, slope, pivot)[:, None]
    width = fit_width(bingham, error_rad)
    law = fit_radial_law(error_rad / credible_radius(bingham * width, LEVEL).numpy())
    reach = float(law.quantile(LEVEL))  # a little above 1, for the number of particles is finite
    return Calibration(width / reach**2, shift, slope=slope, pivot=pivot, law=law.scaled(1 / reach))


def with_widths(raw: RawPrediction, calibration: Calibration) -> RawPrediction:
    """Return `raw` with the widths, and weights of modes, that a calibration gives it."""
    modes, log_weight = raw.modes, raw.log_weight
    if modes is not None and log_weight is not None:
        modes, log_weight = scaled(modes, log_weight, calibration)
    usable = ~raw.unusable
    bingham = raw.bingham.double().clone()
    bingham[usable] = calibration.widened(bingham[usable])
    return replace(
        raw,
        bingham=bingham,
        shift_sd_A=raw.shift_sd_A * calibration.shift,
        modes=modes,
        log_weight=log_weight,
    )


def _radii_of_several(modes: Tensor, log_weight: Tensor, levels: Sequence[float]) -> FloatArray:
    columns = [summarise_mixture(modes, log_weight, 0.0, level)[:, 2].numpy() for level in levels]
    return np.stack(columns, axis=1)


def right_basin(raw: RawPrediction, calibration: Calibration) -> FloatArray:
    """Probability `(n,)` that a pose is in the right basin; 1 where nothing tells."""
    if calibration.basin is None or raw.contrast is None or raw.gain is None:
        return np.ones(len(raw.bingham))
    right = calibration.basin.probability(raw.contrast.numpy(), raw.gain.numpy())
    return np.nan_to_num(right, nan=1.0)


class _Errors:
    """How large the errors of calibrated posteriors A `(n, 10)` of one mode are, right with probability `right` `(n,)`."""

    def __init__(self, bingham: Tensor, calibration: Calibration, right: FloatArray) -> None:
        self.bingham, self.law, self.basin, self.right = bingham, calibration.law, calibration.basin, right
        self.inner_rad: FloatArray = credible_radius(bingham, LEVEL).numpy()  # of the right basin

    def radii(self, levels: Sequence[float]) -> FloatArray:
        """Radii `(n, k)` rad of the balls that hold each level."""
        wanted, right = np.array(levels)[None, :], self.right[:, None]
        inner = (wanted / right.clip(1e-9)).clip(max=HIGHEST_LEVEL)
        if self.law is None:
            columns = [credible_radius(self.bingham, torch.from_numpy(at.copy())).numpy() for at in inner.T]
            radius = np.stack(columns, axis=1)
        else:
            radius = self.inner_rad[:, None] * self.law.quantile(inner)
        # beyond the right basin: P(angle < a) = (a - sin a) / pi of uniform rotations
        angle = np.linspace(0, math.pi, 721)
        rest = ((wanted - right) / (1 - right).clip(1e-9)).clip(0, 1)
        outside = np.maximum(radius, np.interp(rest, (angle - np.sin(angle)) / math.pi, angle))
        return np.minimum(np.where(inner < HIGHEST_LEVEL, radius, outside), math.pi)

    def confidence_and_mean(self) -> tuple[FloatArray, FloatArray]:
        """Probability `(n,)` of an error below the target, and mean error `(n,)` rad."""
        target = math.radians(TARGET_DEG)
        if self.law is None:
            inside, mean, _ = summarise(self.bingham, target, LEVEL).numpy().T
        else:
            inside = self.law.probability(target / self.inner_rad)
            mean = self.law.mean(self.inner_rad)
        if self.basin is None:
            return inside, mean
        wrong_rad = math.radians(self.basin.wrong_deg)
        return self.right * inside, self.right * mean + (1 - self.right) * wrong_rad


def calibrated(
    raw: RawPrediction,
    calibration: Calibration,
    outlier_score: FloatArray,
    network: Tensor | None = None,
    symmetry: str = "C1",
    widened: Tensor | None = None,
) -> Prediction:
    """Assemble what is written of each particle; rows that could not be read are NaN throughout.

    Where a refined pose may have ended in a wrong basin, confidence and expected error count that in, and the
    posterior is widened until its LEVEL ball holds that much of the mixture of both. network : `(n, 10)` posterior
    that the paper's statistics are of, that of the network before refinement; default `raw`'s own. symmetry :
    orientation and Bingham numbers are moved together into RELION's asymmetric unit of this group. widened : what
    `with_widths` made of the matrices, where that is known already.
    """
    usable = ~raw.unusable
    if widened is None:
        widened = with_widths(raw, calibration).bingham
    safe = torch.where(usable[:, None], widened, torch.zeros(10, dtype=torch.float64))
    if len(symmetry_group(symmetry)) > 1:
        safe = upper_from_matrix(reduce_bingham(matrix_from_upper(safe), symmetry))
    rotation = mode(matrix_from_upper(safe))
    other, other_weight = rotation, torch.zeros(len(rotation), dtype=torch.float64)
    right = right_basin(raw, calibration)
    if raw.modes is None or raw.log_weight is None:
        errors = _Errors(safe, calibration, right)
        confidence, mean_rad = errors.confidence_and_mean()
        radius_rad = errors.radii(LEVELS)
        if calibration.basin is not None:
            wider = np.square(errors.inner_rad / radius_rad[:, LEVELS.index(LEVEL)].clip(1e-9)).clip(max=1)
            safe = safe * torch.from_numpy(wider)[:, None]
    else:
        unscaled = raw.modes.nan_to_num(0.0), raw.log_weight.nan_to_num(0.0)
        modes, log_weight = scaled(*unscaled, calibration)
        confidence, mean_rad = (
            summarise_mixture(modes, log_weight, math.radians(TARGET_DEG), LEVEL)[:, :2].numpy().T
        )
        radius_rad = _radii_of_several(modes, log_weight, LEVELS)
        other, other_weight = best_alternative(modes, log_weight, symmetry)
    g = gaps(matrix_from_upper(safe if network is None else network.double().nan_to_num()))
    good = usable.numpy()

    def column(values: Tensor | FloatArray) -> FloatArray:
        values = values.double().numpy() if isinstance(values, Tensor) else values
        return np.where(good.reshape(-1, *[1] * (values.ndim - 1)), values, np.nan)

    half, ninety, most = np.degrees(radius_rad).T
    return Prediction(
        confidence=column(confidence),
        rotation=column(rotation),
        shift_A=column(raw.shift_A),
        expected_error_deg=column(np.degrees(mean_rad)),
        # mean length of a vector with two normal components of this s.d.
        expected_shift_error_A=column(raw.shift_sd_A * calibration.shift * math.sqrt(math.pi / 2)),
        credible_radius_50_deg=column(half),
        credible_radius_90_deg=column(ninety),
        credible_radius_95_deg=column(most),
        lambda_max=column(-g[:, 0]),
        trace=column(-g.sum(1)),
        bingham=column(safe),
        outlier_score=column(outlier_score),
        right_basin=None if calibration.basin is None else column(right),
        alternative_rotation=None if raw.modes is None else column(other),
        alternative_weight=None if raw.modes is None else column(other_weight),
    )
