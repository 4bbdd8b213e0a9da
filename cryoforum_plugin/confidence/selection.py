"""Which particles to keep: thresholds, fractions, the paper's statistics, and a default rule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cryoforum_plugin.errors import ParticleFileError, SettingsError
from cryoforum_plugin.particles import FloatArray, ParticleSet, Prediction

Mask = NDArray[np.bool_]

AUTO_SMALLEST_FRACTION = 0.1  # the default rule never keeps less of the set, nor of either half set
HALF_SETS_APART = 0.02  # cryoSPARC splits anew beyond that
STATISTICS = ("lambda_max", "trace")


@dataclass(frozen=True)
class Criteria:
    """What a kept particle must fulfil; None means no such demand, several are combined with AND.

    statistic : "lambda_max" or "trace"; kept below the `quantile` of the set being filtered, or below
        `statistic_threshold` when that is known (the same quantile of a model's validation particles).
    balance_halves : drop the least confident of the larger half set until the two are at most 2 % apart.
    """

    min_confidence: float | None = None
    max_error_deg: float | None = None
    keep_fraction: float | None = None
    statistic: str | None = None
    quantile: float = 0.75
    statistic_threshold: float | None = None
    auto: bool = False
    balance_halves: bool = False

    def any(self) -> bool:
        """Tell whether there is a demand at all."""
        demands = (self.min_confidence, self.max_error_deg, self.keep_fraction, self.statistic)
        return self.auto or any(demand is not None for demand in demands)


@dataclass(frozen=True)
class Selection:
    """Rows to keep `(n,)`, one line a criterion saying what was done, and the counts per half set."""

    keep: Mask
    explanation: tuple[str, ...]
    counts: dict[str, dict[str, int]]

    def figures(self) -> dict[str, Any]:
        """Return everything but the mask, ready for JSON."""
        return {"criteria": list(self.explanation), "counts": self.counts}


def select_particles(particles: ParticleSet, criteria: Criteria) -> Selection:
    """Apply `criteria` to a predicted set.

    Raises ParticleFileError without the prediction columns that a criterion needs, SettingsError when
    nothing, or nothing of one half set, would be left.
    """
    prediction = particles.prediction
    if prediction is None:
        raise ParticleFileError(
            f"{particles.source}: no prediction columns (rlnParticleFigureOfMerit or "
            "components_mode_k/value); run `cryoforum predict` first and select from its output"
        )
    keep = np.ones(len(particles), dtype=bool)
    explanation = []
    for mask, line in _apply(particles, prediction, criteria):
        keep &= mask
        explanation.append(f"{line}: {int(mask.sum())} of {len(mask)}")
    _refuse_empty(particles, keep)
    if criteria.balance_halves:
        keep, dropped = balanced(keep, particles.half_set, prediction.confidence)
        explanation += [f"dropped to balance the half sets: {dropped}"] if dropped else []
    return Selection(keep, tuple(explanation), count_half_sets(particles.half_set, keep))


def _apply(particles: ParticleSet, prediction: Prediction, criteria: Criteria) -> list[tuple[Mask, str]]:
    """Masks `(n,)` of the single criteria, each with its description."""
    masks: list[tuple[Mask, str]] = []
    if criteria.min_confidence is not None:
        line = f"confidence at least {criteria.min_confidence:g}"
        masks.append((prediction.confidence >= criteria.min_confidence, line))
    if criteria.max_error_deg is not None:
        error_deg = _column(particles, prediction, "expected_error_deg", "rlnAccuracyRotations")
        masks.append(
            (error_deg <= criteria.max_error_deg, f"expected error at most {criteria.max_error_deg:g} deg")
        )
    if criteria.keep_fraction is not None:
        mask = best_fraction(prediction, criteria.keep_fraction)
        masks.append((mask, f"the {100 * criteria.keep_fraction:g} % with the highest confidence"))
    if criteria.statistic is not None:
        masks.append(_statistic_mask(particles, prediction, criteria))
    if criteria.auto:
        masks.append(automatic(prediction.confidence, particles.half_set))
    return masks


def _column(particles: ParticleSet, prediction: Prediction, name: str, label: str) -> FloatArray:
    """One field of the prediction; raises ParticleFileError when the table lacks it."""
    values: FloatArray | None = getattr(prediction, name)
    if values is None:
        raise ParticleFileError(
            f"{particles.source}: no column {label}; write the prediction again with `cryoforum predict`"
        )
    return values


def _statistic_mask(particles: ParticleSet, prediction: Prediction, criteria: Criteria) -> tuple[Mask, str]:
    """Keep what lies below a quantile of a paper statistic (negative, more negative = more certain)."""
    name = criteria.statistic or ""
    if name not in STATISTICS:
        raise SettingsError(f"unknown statistic {name!r}; use {' or '.join(STATISTICS)}")
    label = {"lambda_max": "cryoforumLambdaMax", "trace": "cryoforumTrace"}[name]
    values = _column(particles, prediction, name, label)
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


def automatic(confidence: FloatArray, half_set: NDArray[np.int64]) -> tuple[Mask, str]:
    """Choose the confidence threshold that makes the reconstruction clearest.

    If a particle is well oriented with probability c, signal adds up as sum(c) and noise power as the
    number n kept, so sum(c) / sqrt(n) is maximised: particles are added in order of confidence for as
    long as each has more than about half the mean confidence of those already in. Never less than
    AUTO_SMALLEST_FRACTION of the set or of a half set is kept. Raises SettingsError if all c are 0.
    """
    ordered = np.sort(confidence)[::-1]
    if len(ordered) == 0 or ordered[0] <= 0:
        raise SettingsError("--auto: no particle has a confidence above 0; there is nothing to choose by")
    clarity = np.cumsum(ordered) / np.sqrt(np.arange(1, len(ordered) + 1))
    threshold = float(ordered[int(np.argmax(clarity))])
    mask = confidence >= threshold
    line = f"automatic: confidence at least {threshold:.3g}, which makes sum(c)/sqrt(n) largest"
    topped_up = mask.copy()
    for group in (half_set == value for value in np.unique(half_set)):
        rows = np.flatnonzero(group)
        best = rows[np.argsort(-confidence[rows], kind="stable")]
        topped_up[best[: int(np.ceil(AUTO_SMALLEST_FRACTION * len(rows)))]] = True
    if (topped_up & ~mask).any():
        line += f", topped up to {100 * AUTO_SMALLEST_FRACTION:g} % of each half set"
    return topped_up, line


def balanced(keep: Mask, half_set: NDArray[np.int64], confidence: FloatArray) -> tuple[Mask, int]:
    """Drop the least confident kept rows of the larger half set, until it is at most 2 % larger.

    Returns the new mask `(n,)` and how many were dropped; nothing where there are no two half sets.
    """
    halves = [np.flatnonzero(keep & (half_set == number)) for number in (1, 2)]
    small, large = sorted(halves, key=len)
    allowed = int(np.floor(len(small) * (1 + HALF_SETS_APART)))
    if not len(small) or len(large) <= allowed:
        return keep, 0
    worst = large[np.argsort(confidence[large], kind="stable")][: len(large) - allowed]
    result = keep.copy()
    result[worst] = False
    return result, len(worst)


def count_half_sets(half_set: NDArray[np.int64], keep: Mask) -> dict[str, dict[str, int]]:
    """Numbers kept and rejected: of all, and of each half set where there are any."""
    groups = {"all": np.ones(len(keep), dtype=bool)}
    groups |= {f"half set {value}": half_set == value for value in np.unique(half_set) if value > 0}
    return {
        name: {"kept": int((group & keep).sum()), "rejected": int((group & ~keep).sum())}
        for name, group in groups.items()
    }


def _refuse_empty(particles: ParticleSet, keep: Mask) -> None:
    """Raise SettingsError if nothing is left, or nothing of a half set that was there."""
    if not keep.any():
        raise SettingsError(f"no particle of {particles.source} is left; loosen the criteria (or use --auto)")
    for value in np.unique(particles.half_set):
        if value > 0 and not keep[particles.half_set == value].any():
            raise SettingsError(
                f"nothing of half set {value} of {particles.source} is left, so that no gold-standard FSC "
                "would be possible; loosen the criteria (or use --auto)"
            )
