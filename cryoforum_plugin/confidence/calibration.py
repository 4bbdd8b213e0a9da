"""Making the posterior mean what it says: one width, fitted on particles the network did not see."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from scipy.stats.mstats import hdquantiles
from torch import Tensor

from cryoforum_plugin.confidence.basin import Basin
from cryoforum_plugin.geometry import (
    angular_distance_to_group,
    reduce_to_asymmetric_unit,
    symmetry_group,
)
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
LEVEL = 0.9
HIGHEST_LEVEL = 0.995  # of a ball that still lies in the right basin
LARGEST_LOG_FACTOR = 14.0
ALTERNATIVE = 0.1  # weight above which a further hypothesis is reported
ALTERNATIVE_DEG = 10.0  # nearer ones are the same

LOG = logging.getLogger("cryoforum")


@dataclass(frozen=True)
class RawPrediction:
    """Network answers before calibration; rows that could not be read are NaN.

    bingham : `(n, 10)`. shift_A : `(n, 2)`. shift_sd_A : `(n,)`. features : `(n, f)`. unusable : `(n,)` bool.
    modes : `(n, k, 10)`, log_weight : `(n, k)`, of a network with k > 1 hypotheses, the heaviest, which is
    `bingham`, first; None with one. Of refined poses: contrast `(n,)` relative to the usual one, gain `(n,)` log
    likelihood over no particle.
    """

    bingham: Tensor
    shift_A: Tensor
    shift_sd_A: Tensor
    features: Tensor
    unusable: Tensor
    modes: Tensor | None = None
    log_weight: Tensor | None = None
    contrast: Tensor | None = None
    gain: Tensor | None = None

    def __getitem__(self, rows: Any) -> RawPrediction:
        values: dict[str, Any] = {field.name: getattr(self, field.name) for field in fields(self)}
        chosen: dict[str, Any] = {k: None if v is None else v[rows] for k, v in values.items()}
        return RawPrediction(**chosen)


@dataclass(frozen=True)
class Calibration:
    """Factors that turn the network's numbers for one number of views into calibrated ones.

    width : multiplies A, so that the LEVEL credible ball holds that part of the particles.
    shift : multiplies the s.d. of the shift. weights : power of the weights of several modes. basin : of refined
    poses, tells which ended in a wrong basin.
    """

    width: float
    shift: float
    weights: float = 1.0
    basin: Basin | None = None

    @classmethod
    def of(cls, figures: Mapping[str, Any]) -> Calibration:
        """Factors of one number of views, or of refined poses, as calibration.json holds them."""
        basin = Basin(**figures["basin"]) if figures.get("basin") else None
        return cls(figures["width"], figures["shift"], figures.get("weights", 1.0), basin)


def radii(raw: RawPrediction, calibration: Calibration, level: float) -> FloatArray:
    """Radius `(n,)` rad of the ball about the mode that holds `level` of the calibrated posterior."""
    if raw.modes is None or raw.log_weight is None:
        return credible_radius(raw.bingham * calibration.width, level).numpy()
    return summarise_mixture(*scaled(raw.modes, raw.log_weight, calibration), 0.0, level)[:, 2].numpy()


def scaled(modes: Tensor, log_weight: Tensor, calibration: Calibration) -> tuple[Tensor, Tensor]:
    """Calibrated modes `(n, k, 10)` and log weights `(n, k)`, float64."""
    return modes.double() * calibration.width, (log_weight.double() * calibration.weights).log_softmax(1)


def fit_width(bingham: Tensor, error_rad: FloatArray, level: float = LEVEL) -> float:
    """Factor of A `(n, 10)` with which the `level` credible ball holds `level` of the errors `(n,)`.

    Solves for the factor at which the `level` quantile (Harrell-Davis) of error / radius is 1.
    """

    def excess(log_factor: float) -> float:
        radius = credible_radius(bingham * math.exp(log_factor), level).numpy()
        return float(hdquantiles(error_rad / radius, prob=[level])[0]) - 1.0

    low, high = -LARGEST_LOG_FACTOR, LARGEST_LOG_FACTOR
    for _ in range(26):
        middle = (low + high) / 2
        low, high = (low, middle) if excess(middle) > 0 else (middle, high)
    if abs(low + high) / 2 > LARGEST_LOG_FACTOR - 0.01:
        LOG.warning("the posterior could not be calibrated: errors and widths do not fit together")
    return math.exp((low + high) / 2)


def fit(raw: RawPrediction, error_rad: FloatArray, shift_error_A: FloatArray) -> Calibration:
    """Fit both factors on held-out rows: errors `(n,)` rad of the mode, shift errors `(n, 2)` Å."""
    ratio = np.square(shift_error_A) / np.square(raw.shift_sd_A.double().numpy())[:, None]
    return Calibration(fit_width(raw.bingham, error_rad), float(np.sqrt(ratio.mean())))


def with_widths(raw: RawPrediction, calibration: Calibration) -> RawPrediction:
    """Return `raw` with the widths, and weights of modes, that a calibration gives it."""
    modes, log_weight = raw.modes, raw.log_weight
    if modes is not None and log_weight is not None:
        modes, log_weight = scaled(modes, log_weight, calibration)
    return replace(
        raw,
        bingham=raw.bingham * calibration.width,
        shift_sd_A=raw.shift_sd_A * calibration.shift,
        modes=modes,
        log_weight=log_weight,
    )


def _with_basin(raw: RawPrediction, basin: Basin, summary: Tensor, safe: Tensor) -> tuple[Tensor, Tensor]:
    """Count in that a refined pose may be in a wrong basin, where any rotation is as likely.

    summary : `(n, 3)` and safe : `(n, 10)` of the right basin. Return both of the mixture.
    """
    assert raw.contrast is not None
    assert raw.gain is not None
    right = torch.from_numpy(basin.probability(raw.contrast.numpy(), raw.gain.numpy())).nan_to_num(nan=1.0)
    confidence = right * summary[:, 0]
    expected = right * summary[:, 1] + (1 - right) * math.radians(basin.wrong_deg)
    inside = credible_radius(safe, (LEVEL / right).clamp(max=HIGHEST_LEVEL))
    # beyond the right basin: P(angle < a) = (a - sin a) / pi of uniform rotations
    angle = torch.linspace(0, math.pi, 721, dtype=torch.float64)
    spread = ((LEVEL - right) / (1 - right).clamp(min=1e-9)).clamp(0, 1)
    place = torch.searchsorted((angle - angle.sin()) / math.pi, spread).clamp(max=len(angle) - 1)
    radius = torch.where(LEVEL / right < HIGHEST_LEVEL, inside, torch.maximum(inside, angle[place]))
    wider = (summary[:, 2] / radius.clamp(min=1e-9)).square().clamp(max=1)
    return torch.stack([confidence, expected, radius], 1), safe * wider[:, None]


def calibrated(
    raw: RawPrediction,
    calibration: Calibration,
    outlier_score: FloatArray,
    network: Tensor | None = None,
    symmetry: str = "C1",
) -> Prediction:
    """Assemble what is written of each particle; rows that could not be read are NaN throughout.

    Where a refined pose may have ended in a wrong basin, confidence and expected error count that in, and the
    posterior is widened until its LEVEL ball holds that much of the mixture of both. network : `(n, 10)` posterior
    that the paper's statistics are of, that of the network before refinement; default `raw`'s own. symmetry :
    orientation and Bingham numbers are moved together into RELION's asymmetric unit of this group.
    """
    usable = ~raw.unusable
    bingham = raw.bingham.double() * calibration.width
    safe = torch.where(usable[:, None], bingham, torch.zeros_like(bingham))
    if len(symmetry_group(symmetry)) > 1:
        safe = upper_from_matrix(reduce_bingham(matrix_from_upper(safe), symmetry))
    rotation = mode(matrix_from_upper(safe))
    other, other_weight = rotation, torch.zeros(len(rotation), dtype=torch.float64)
    if raw.modes is None or raw.log_weight is None:
        summary = summarise(safe, math.radians(TARGET_DEG), LEVEL)
    else:
        modes, log_weight = scaled(raw.modes.nan_to_num(0.0), raw.log_weight.nan_to_num(0.0), calibration)
        summary = summarise_mixture(modes, log_weight, math.radians(TARGET_DEG), LEVEL)
        other, other_weight = best_alternative(modes, log_weight, symmetry)
    if calibration.basin is not None:
        summary, safe = _with_basin(raw, calibration.basin, summary, safe)
    g = gaps(matrix_from_upper(safe if network is None else network.double().nan_to_num()))

    def column(values: Tensor) -> FloatArray:
        blank = usable.view(-1, *[1] * (values.ndim - 1))
        return torch.where(blank, values.double(), torch.nan).numpy()

    return Prediction(
        confidence=column(summary[:, 0]),
        rotation=column(rotation),
        shift_A=column(raw.shift_A),
        expected_error_deg=column(torch.rad2deg(summary[:, 1])),
        # mean length of a vector with two normal components of this s.d.
        expected_shift_error_A=column(raw.shift_sd_A * calibration.shift * math.sqrt(math.pi / 2)),
        credible_radius_90_deg=column(torch.rad2deg(summary[:, 2])),
        lambda_max=column(-g[:, 0]),
        trace=column(-g.sum(1)),
        bingham=column(safe),
        outlier_score=np.where(usable.numpy(), outlier_score, np.nan),
        alternative_rotation=None if raw.modes is None else column(other),
        alternative_weight=None if raw.modes is None else column(other_weight),
    )


def with_alternatives(found: Prediction, network: RawPrediction, symmetry: str) -> Prediction:
    """Add to refined poses the best hypothesis of the network that is another, where it has several."""
    if network.modes is None or network.log_weight is None or found.rotation is None:
        return found
    chosen = torch.from_numpy(np.nan_to_num(found.rotation, nan=0.5))
    modes, log_weight = network.modes.nan_to_num(0.0), network.log_weight.nan_to_num(0.0)
    other, weight = best_alternative(modes, log_weight, symmetry, chosen)
    bad = network.unusable.numpy()
    return replace(
        found,
        alternative_rotation=np.where(bad[:, None], np.nan, other.numpy()),
        alternative_weight=np.where(bad, np.nan, weight.numpy()),
    )


def best_alternative(
    modes: Tensor, log_weight: Tensor, symmetry: str = "C1", chosen: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Rotation `(n, 4)` and weight `(n,)` of the heaviest mode that is another than the first, or than `chosen` `(n, 4)`.

    modes : `(n, k, 10)`, the heaviest first; log_weight : `(n, k)`. Modes lighter than ALTERNATIVE, or nearer than
    ALTERNATIVE_DEG to the first or its symmetry copies, are none: then the first mode's rotation, and weight 0.
    """
    rotation = mode(matrix_from_upper(modes))
    group = torch.from_numpy(symmetry_group(symmetry))
    first = rotation[:, :1] if chosen is None else chosen.to(rotation).unsqueeze(1)
    first = first.expand_as(rotation)
    apart = angular_distance_to_group(rotation, first, group) > math.radians(ALTERNATIVE_DEG)
    weight = torch.where(apart, log_weight.exp(), 0.0)
    weight = torch.where(weight > ALTERNATIVE, weight, 0.0)
    heaviest, place = weight.max(dim=1)
    place = torch.where(heaviest > 0, place, 0)
    other = rotation[torch.arange(len(rotation)), place]
    other = torch.where(heaviest[:, None] > 0, other, first[:, 0])
    return reduce_to_asymmetric_unit(other, symmetry), heaviest
