"""What a kept particle must fulfil, and the rows that do."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.confidence.columns import column
from cryoforum_plugin.confidence.pose_quality import pose_uncertainty
from cryoforum_plugin.errors import SettingsError
from cryoforum_plugin.particles import IntArray, ParticleSet, Prediction

Mask = NDArray[np.bool_]

STATISTICS = ("lambda_max", "trace")


@dataclass(frozen=True)
class Criteria:
    """What a kept particle must fulfil; None means no such demand, several are combined with AND.

    statistic : "lambda_max" or "trace"; kept below the `quantile` of the set being filtered, or below
        `statistic_threshold` when that is known (the same quantile of a model's validation particles).
    target : (fraction, angle in degrees): the largest set in which at most that fraction is expected to be further
        off than the angle, of the particles that fulfil what stands above it.
    auto : the set that makes the map clearest, of those that fulfil everything else.
    images : whether `auto` may look at images.
    balance_views : then add the best of rare views until as large a part of each is kept.
    balance_halves : then drop the least confident of the larger half set until the two are at most 2 %, or `least_apart`
        particles, apart.
    """

    min_confidence: float | None = None
    max_error_deg: float | None = None
    keep_fraction: float | None = None
    statistic: str | None = None
    quantile: float = 0.75
    statistic_threshold: float | None = None
    auto: bool = False
    balance_halves: bool = False
    least_apart: int = 0
    max_outlier: float | None = None
    target: tuple[float, float] | None = None
    balance_views: bool = False
    images: bool = True

    def any(self) -> bool:
        """Tell whether there is a demand at all."""
        demands = (
            self.min_confidence,
            self.max_error_deg,
            self.keep_fraction,
            self.statistic,
            self.max_outlier,
        )
        return self.auto or self.target is not None or any(demand is not None for demand in demands)


def single_masks(
    particles: ParticleSet, prediction: Prediction, criteria: Criteria
) -> list[tuple[Mask, str]]:
    """Masks `(n,)` of the criteria that look at each particle or at the whole set, with a description each."""
    masks: list[tuple[Mask, str]] = []
    if criteria.min_confidence is not None:
        line = f"confidence at least {criteria.min_confidence:g}"
        masks.append((prediction.confidence >= criteria.min_confidence, line))
    if criteria.max_error_deg is not None:
        error_deg = column(particles, prediction, "expected_error_deg")
        masks.append(
            (error_deg <= criteria.max_error_deg, f"expected error at most {criteria.max_error_deg:g} deg")
        )
    if criteria.max_outlier is not None:
        score = column(particles, prediction, "outlier_score")
        masks.append((score <= criteria.max_outlier, f"outlier score at most {criteria.max_outlier:g}"))
    if criteria.keep_fraction is not None:
        mask = best_fraction(prediction, criteria.keep_fraction)
        masks.append((mask, f"the {100 * criteria.keep_fraction:g} % with the highest confidence"))
    if criteria.statistic is not None:
        masks.append(_statistic_mask(particles, prediction, criteria))
    return masks


def _statistic_mask(particles: ParticleSet, prediction: Prediction, criteria: Criteria) -> tuple[Mask, str]:
    """Keep what lies below a quantile of a paper statistic (negative, more negative = more certain)."""
    name = criteria.statistic or ""
    if name not in STATISTICS:
        raise SettingsError(f"unknown statistic {name!r}; use {' or '.join(STATISTICS)}")
    values = column(particles, prediction, name)
    known = values[values != 0]  # 0 stands for an image that could not be read
    if len(known) > 1 and np.ptp(known) <= 1e-4 * np.abs(known).max():
        raise SettingsError(
            f"{name} is the same for every particle of {particles.source}: the model has one uncertainty for all "
            "images (network.representation 6d or quaternion); use qcqp or symmetric"
        )
    threshold, of = criteria.statistic_threshold, "of the model's validation particles"
    if threshold is None:
        threshold, of = float(np.quantile(values, criteria.quantile)), "of this set"
    return values <= threshold, f"{name} below {threshold:.6g}, the {criteria.quantile:g} quantile {of}"


def best_fraction(prediction: Prediction, fraction: float) -> Mask:
    """Mark the `fraction` of `(n,)` particles with the highest confidence, at least one.

    Equal confidences are ordered by expected error, then by row.
    """
    error = prediction.expected_error_deg
    tie_break = np.zeros(len(prediction)) if error is None else error
    order = np.lexsort((tie_break, -prediction.confidence))
    mask = np.zeros(len(prediction), dtype=bool)
    mask[order[: max(1, round(fraction * len(prediction)))]] = True
    return mask


def at_most_wrong(
    particles: ParticleSet, prediction: Prediction, keep: Mask, target: tuple[float, float]
) -> tuple[Mask, str]:
    """Mark the largest part of `keep` in which at most a fraction is expected to be further off than an angle.

    target : (fraction, angle in degrees). Returns a mask `(kept,)` of the rows of `keep`, and a line. Particles are added from the surest on, for as long as the mean of their probabilities of a larger error
    allows. Raises ParticleFileError where the table does not tell those, SettingsError where none is sure enough.
    """
    fraction, angle_deg = target
    wrong = 1 - pose_uncertainty(prediction[keep], particles.source).probability_below(angle_deg)
    order: IntArray = np.argsort(wrong, kind="stable")
    mean = np.cumsum(wrong[order]) / np.arange(1, len(wrong) + 1)
    count = int((mean <= fraction).sum())  # it rises
    if count == 0:
        raise SettingsError(
            f"--target: even the surest particle of {particles.source} is more than {angle_deg:g} degrees off with a "
            f"probability of {wrong.min():.3g}; allow more than {100 * fraction:g} %, or a larger angle"
        )
    mask = np.zeros(len(wrong), dtype=bool)
    mask[order[:count]] = True
    return mask, f"at most {100 * fraction:g} % expected to be more than {angle_deg:g} deg off"


def expected_wrong(
    particles: ParticleSet, prediction: Prediction, keep: Mask, target: tuple[float, float]
) -> str:
    """Say which part of `keep` `(n,)` is expected to be further off than the angle of a target."""
    angle_deg = target[1]
    wrong = 1 - pose_uncertainty(prediction[keep], particles.source).probability_below(angle_deg)
    return f"expected to be more than {angle_deg:g} deg off, of all that is kept: {100 * wrong.mean():.2g} %"
