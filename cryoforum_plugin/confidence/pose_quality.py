"""What a predicted table knows of each pose: probability of the right basin, covariance there, and error probabilities.

The Bingham numbers of refined poses are widened until their 90 % ball holds that much of the mixture of the right
basin and of others, while the confidence counts both apart. From the two together the mixture is found again, with
the angle of isotropic turns in place of the exact one (chi distribution of three degrees of freedom). Where there are several modes, the numbers are of the first alone.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import chi
from torch import Tensor

from cryoforum_plugin.confidence.calibration import LEVEL, TARGET_DEG
from cryoforum_plugin.confidence.columns import check_finite
from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import FloatArray, Prediction
from cryoforum_plugin.posterior.credible import credible_radius, probability_within
from cryoforum_plugin.posterior.pose_damping import image_covariance

LEVEL_RADII = float(chi.ppf(LEVEL, 3))  # s.d. about one axis in the radius of the LEVEL ball
AGREES = 0.03  # by so much the confidence may miss that of an unmixed posterior, as turns are not isotropic
NOT_WIDENED = 1.3  # the ball's s.d. in those of the Bingham numbers
SHARPEST_RAD = math.radians(0.05)
_STEPS = 64
_REACH = np.linspace(0, 8, 2001)
_WITHIN = chi.cdf(_REACH, 3)
_ROWS_AT_ONCE = 2**17


@dataclass(frozen=True)
class PoseUncertainty:
    """Each particle's pose: `right` `(n,)` probability of the right basin, and the errors within it.

    bingham : `(n, 10)` posterior within the right basin, None where the table has none. covariance : `(n, 3, 3)` rad^2
    of turns in the image frame. shift_sd_A : `(n,)` along one axis.
    """

    right: FloatArray
    bingham: Tensor | None
    covariance: Tensor
    shift_sd_A: Tensor

    def probability_below(self, angle_deg: float) -> FloatArray:
        """Probability `(n,)` that the angular error is at most `angle_deg`."""
        angle = math.radians(angle_deg)
        if self.bingham is None:
            sd = (self.covariance.diagonal(dim1=1, dim2=2).sum(1) / 3).sqrt().numpy()
            inside = _chi(angle / sd.clip(1e-9))
        else:
            inside = probability_within(self.bingham, angle).numpy()
        result: FloatArray = self.right * inside + (1 - self.right) * _uniform(np.array(angle))
        return result


def pose_uncertainty(prediction: Prediction, source: Path) -> PoseUncertainty:
    """Uncertainty of the poses of a predicted table; `source` is for messages.

    Raises ParticleFileError where the table has neither Bingham numbers nor credible radii.
    """
    for name in ("confidence", "bingham", "credible_radius_90_deg", "expected_shift_error_A"):
        check_finite(source, name, getattr(prediction, name))
    shift = prediction.expected_shift_error_A
    # the mean length of a vector of two normal components is their s.d. times this
    shift_sd = np.zeros(len(prediction)) if shift is None else shift / math.sqrt(math.pi / 2)
    radius_deg = prediction.credible_radius_90_deg
    if prediction.bingham is None and radius_deg is None:
        raise ParticleFileError(
            f"{source}: neither cryoforumBingham1 to 10 nor cryoforumCredibleRadius90 are in the table, which say how "
            "uncertain each pose is; write the prediction again with `cryoforum predict`"
        )
    known = None if prediction.bingham is None else torch.from_numpy(prediction.bingham)
    if radius_deg is not None:
        radius = np.radians(radius_deg)
    else:
        assert known is not None
        radius = credible_radius(known, LEVEL).numpy()
    sd = np.maximum(radius, LEVEL_RADII * SHARPEST_RAD) / LEVEL_RADII
    right, sharp = unmixed(prediction.confidence, sd)
    if known is None:
        covariance = torch.from_numpy(sharp**2)[:, None, None] * torch.eye(3, dtype=torch.float64)
        return PoseUncertainty(right, None, covariance, torch.from_numpy(shift_sd))
    covariance = image_covariance(known)
    own = (covariance.diagonal(dim1=1, dim2=2).sum(1) / 3).sqrt().numpy()
    # of several modes the numbers are those of the first alone, which is sharper than the ball around them all
    first = sd > NOT_WIDENED * own
    alone = (prediction.confidence / _chi(math.radians(TARGET_DEG) / own).clip(1e-9)).clip(0, 1)
    right = np.where(first, alone, right)
    factor = torch.from_numpy(np.where(first, 1.0, (sd / sharp) ** 2))
    known = known * factor[:, None]
    covariance = covariance / factor[:, None, None]
    return PoseUncertainty(right, known, covariance, torch.from_numpy(shift_sd))


def unmixed(confidence: FloatArray, sd_rad: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Probability `(n,)` of the right basin, and s.d. in it, of mixtures whose LEVEL ball is that of `sd_rad` `(n,)`.

    Of the s.d. that explain confidence and ball equally well, the largest. A confidence that needs no mixture leaves 1 and
    `sd_rad`.
    """
    parts = [
        _unmixed(confidence[start : start + _ROWS_AT_ONCE], sd_rad[start : start + _ROWS_AT_ONCE])
        for start in range(0, len(sd_rad), _ROWS_AT_ONCE)
    ]
    right, sharp = zip(*parts, strict=True) if parts else ([np.zeros(0)], [np.zeros(0)])
    return np.concatenate(right), np.concatenate(sharp)


def _unmixed(confidence: FloatArray, sd_rad: FloatArray) -> tuple[FloatArray, FloatArray]:
    target, radius = math.radians(TARGET_DEG), LEVEL_RADII * sd_rad
    right, sharp = np.ones(len(sd_rad)), sd_rad.copy()
    mixed = np.abs(_chi(target / sd_rad) - confidence) > AGREES
    beyond = _uniform(np.minimum(radius, math.pi))
    lowest = np.minimum(SHARPEST_RAD, sd_rad)
    misfit = np.full(len(sd_rad), np.inf)
    for step in range(_STEPS + 1):  # from wide to sharp
        sd = sd_rad * (lowest / sd_rad) ** (step / _STEPS)
        near = _chi(target / sd)
        part = (confidence / near.clip(1e-9)).clip(0, 1)
        ball = part * _chi(radius / sd) + (1 - part) * beyond
        now = np.abs(ball - LEVEL) + 10 * (confidence - near).clip(0)
        better = mixed & (now < misfit - 1e-3)
        right[better], sharp[better], misfit[better] = part[better], sd[better], now[better]
    return right, sharp


def _chi(reach: FloatArray) -> FloatArray:
    """Probability that the length of a standard normal vector of three components is below `reach`."""
    result: FloatArray = np.interp(reach, _REACH, _WITHIN)
    return result


def _uniform(angle_rad: FloatArray) -> FloatArray:
    """Probability that the angle of a uniformly random rotation is below `angle_rad`."""
    result: FloatArray = (angle_rad - np.sin(angle_rad)) / math.pi
    return result
