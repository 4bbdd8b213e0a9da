"""Making the posterior mean what it says: one width, fitted on particles the network did not see."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from scipy.stats.mstats import hdquantiles
from torch import Tensor

from cryoforum_plugin.confidence.basin import Basin
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

TARGET_DEG = 5.0  # the confidence is the probability of an error below this
LEVEL = 0.9
HIGHEST_LEVEL = 0.995  # of a ball that still lies in the right basin
LARGEST_LOG_FACTOR = 14.0

LOG = logging.getLogger("cryoforum")


@dataclass(frozen=True)
class RawPrediction:
    """Network answers before calibration; rows that could not be read are NaN.

    bingham : `(n, 10)`. shift_A : `(n, 2)`. shift_sd_A : `(n,)`. features : `(n, f)`. unusable : `(n,)` bool.
    Of refined poses: contrast `(n,)` relative to the usual one, gain `(n,)` log likelihood over no particle.
    """

    bingham: Tensor
    shift_A: Tensor
    shift_sd_A: Tensor
    features: Tensor
    unusable: Tensor
    contrast: Tensor | None = None
    gain: Tensor | None = None

    def rows(self, rows: Tensor) -> RawPrediction:
        """Those of `rows`."""
        parts: dict[str, Any] = {
            name: None if part is None else part[rows] for name, part in vars(self).items()
        }
        return RawPrediction(**parts)


@dataclass(frozen=True)
class Calibration:
    """Factors that turn the network's numbers for one number of views into calibrated ones.

    width : multiplies A, so that the LEVEL credible ball holds that part of the particles.
    shift : multiplies the s.d. of the shift. basin : of refined poses, tells which ended in a wrong basin.
    """

    width: float
    shift: float
    basin: Basin | None = None


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


def scaled(raw: RawPrediction, calibration: Calibration) -> RawPrediction:
    """Return `raw` with the widths that a calibration gives it."""
    return replace(
        raw, bingham=raw.bingham * calibration.width, shift_sd_A=raw.shift_sd_A * calibration.shift
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
    summary = summarise(safe, math.radians(TARGET_DEG), LEVEL)
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
    )
