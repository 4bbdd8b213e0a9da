"""What a predicted table knows of each pose: probability of the right basin, covariance there, and error probabilities."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from scipy.stats import chi
from torch import Tensor

from cryoforum_plugin.confidence.calibration import TARGET_DEG
from cryoforum_plugin.confidence.columns import check_finite
from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import FloatArray, Prediction
from cryoforum_plugin.posterior.pose_damping import image_covariance

RADII = {0.5: "credible_radius_50_deg", 0.9: "credible_radius_90_deg", 0.95: "credible_radius_95_deg"}
LEVEL = 0.9  # the ball that every predicted table tells of
LEVEL_RADII = float(chi.ppf(LEVEL, 3))  # s.d. about one axis in the radius of the LEVEL ball
OF_SEVERAL = 1.3  # the ball's s.d. in that of the Bingham numbers, above which these are one mode of several
SHARPEST_RAD, WIDEST_RAD = math.radians(0.05), math.pi
_REACH = np.linspace(0, 8, 2001)
_WITHIN = chi.cdf(_REACH, 3)


@dataclass(frozen=True)
class PoseUncertainty:
    """Each particle's pose: `right` `(n,)` probability of the right basin, and the errors within it.

    covariance : `(n, 3, 3)` rad^2 of turns in the image frame. shift_sd_A : `(n,)` along one axis. angle_rad, sd_rad
    `(n, k)` : the s.d. of normal turns that give the known probability of an error below each angle; it grows with the
    angle where errors have long tails.
    """

    right: FloatArray
    covariance: Tensor
    shift_sd_A: Tensor
    angle_rad: FloatArray
    sd_rad: FloatArray

    def probability_below(self, angle_deg: float) -> FloatArray:
        """Probability `(n,)` that the angular error is at most `angle_deg`."""
        angle = math.radians(angle_deg)
        inside = _chi(angle / _interpolated(self.angle_rad, self.sd_rad, angle))
        result: FloatArray = self.right * inside + (1 - self.right) * _uniform(np.array(angle))
        return result


def pose_uncertainty(prediction: Prediction, source: Path) -> PoseUncertainty:
    """Uncertainty of the poses of a predicted table; `source` is for messages.

    Raises ParticleFileError where the table has no credible radii.
    """
    for name in ("confidence", "bingham", "expected_shift_error_A", "right_basin", *RADII.values()):
        check_finite(source, name, getattr(prediction, name))
    if prediction.credible_radius_90_deg is None:
        raise ParticleFileError(
            f"{source}: no column cryoforumCredibleRadius90, which says how uncertain each pose is; write the prediction "
            "again with `cryoforum predict`"
        )
    shift = prediction.expected_shift_error_A
    # the mean length of a vector of two normal components is their s.d. times this
    shift_sd = np.zeros(len(prediction)) if shift is None else shift / math.sqrt(math.pi / 2)
    ball_sd = np.radians(prediction.credible_radius_90_deg).clip(SHARPEST_RAD) / LEVEL_RADII
    right = np.ones(len(prediction)) if prediction.right_basin is None else prediction.right_basin
    if prediction.bingham is None:
        shape = torch.eye(3, dtype=torch.float64).expand(len(prediction), 3, 3)
        own = ball_sd
    else:
        covariance = image_covariance(torch.from_numpy(prediction.bingham))
        own = (covariance.diagonal(dim1=1, dim2=2).sum(1) / 3).sqrt().numpy()
        shape = covariance / torch.from_numpy(own**2)[:, None, None]
    several = (
        ball_sd > OF_SEVERAL * own
    )  # then the numbers are of the first alone, which the confidence is about
    alone = (prediction.confidence / _chi(math.radians(TARGET_DEG) / own).clip(1e-9)).clip(0, 1)
    right = np.where(several, alone, right)
    angle, sd = _anchors(prediction, right)
    sd = np.where(several[:, None], own[:, None], sd)
    core = _interpolated(angle, sd, 0.0)
    covariance = shape * torch.from_numpy(core**2)[:, None, None]
    return PoseUncertainty(right, covariance, torch.from_numpy(shift_sd), angle, sd)


def _anchors(prediction: Prediction, right: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Angles `(n, k)` rad in ascending order, and the s.d. of normal turns in the right basin that each stands for.

    From the radii of the table, and the confidence, which is the probability of an error below TARGET_DEG.
    """
    known = {level: getattr(prediction, name) for level, name in RADII.items()}
    angles = [np.radians(radius) for radius in known.values() if radius is not None]
    levels = [np.full(len(right), level) for level, radius in known.items() if radius is not None]
    angle = np.stack([*angles, np.full(len(right), math.radians(TARGET_DEG))], axis=1)
    level = np.stack([*levels, prediction.confidence], axis=1)
    inside = (level - (1 - right[:, None]) * _uniform(angle)) / right[:, None].clip(1e-9)
    sd = (angle / np.interp(inside, _WITHIN, _REACH).clip(1e-3)).clip(SHARPEST_RAD, WIDEST_RAD)
    # beyond the right basin, or where nothing is left to be outside, an angle tells no width: the innermost known does
    told = (inside > 0.02) & (inside < 0.998)
    angle = np.where(told, angle, np.inf)
    order = np.argsort(angle, axis=1, kind="stable")
    angle, sd = np.take_along_axis(angle, order, 1), np.take_along_axis(sd, order, 1)
    count = told.sum(axis=1)
    last = np.take_along_axis(sd, (count - 1).clip(0)[:, None], 1)
    # of poses that are hardly ever right no width is known at all
    last = np.where(count[:, None] > 0, last, math.radians(TARGET_DEG))
    sd = np.where(np.isfinite(angle), sd, last)
    return np.where(np.isfinite(angle), angle, math.inf), np.maximum.accumulate(sd, axis=1)


def _interpolated(angle: FloatArray, sd: FloatArray, at: float) -> FloatArray:
    """The s.d. `(n,)` at an angle, between those of ascending angles `(n, k)`; those at the ends beyond them."""
    result = sd[:, 0].copy()
    for left in range(angle.shape[1] - 1):
        a, b = angle[:, left], angle[:, left + 1]
        with np.errstate(invalid="ignore", divide="ignore"):
            part = np.where(np.isfinite(b), (at - a) / np.maximum(b - a, 1e-9), 0.0)
        inner = sd[:, left] + part.clip(0, 1) * (sd[:, left + 1] - sd[:, left])
        result = np.where(at > a, inner, result)
    return result


def _chi(reach: FloatArray) -> FloatArray:
    """Probability that the length of a standard normal vector of three components is below `reach`."""
    result: FloatArray = np.interp(reach, _REACH, _WITHIN)
    return result


def _uniform(angle_rad: FloatArray) -> FloatArray:
    """Probability that the angle of a uniformly random rotation is below `angle_rad`."""
    result: FloatArray = (angle_rad - np.sin(angle_rad)) / math.pi
    return result
