"""The default rule: as many particles as make the map clearest, by the map itself or by the confidences alone."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cryoforum_plugin.confidence.expected_map import expected_resolution_A
from cryoforum_plugin.confidence.pose_quality import pose_uncertainty
from cryoforum_plugin.confidence.view_coverage import coverage_of, view_histogram
from cryoforum_plugin.errors import ImageStackError, ParticleFileError, SettingsError
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet, Prediction
from cryoforum_plugin.posterior.pose_damping import mean_square_coordinate_A2, shell_damping
from cryoforum_plugin.reconstruction.fsc import significant
from cryoforum_plugin.reconstruction.nested import NestedMaps

LOG = logging.getLogger("cryoforum")
Mask = NDArray[np.bool_]

SMALLEST_FRACTION = 0.1  # the default rule never keeps less of the set, nor of either half set
FEWEST = 300  # particles; maps of fewer say too little
STEPS = (
    0.3,
    0.45,
    0.55,
    0.65,
    0.72,
    0.78,
    0.84,
    0.88,
    0.92,
    0.95,
    0.98,
    1.0,
)  # of the sets that may be chosen
VIEWS_LOST = 0.05  # part of the view coverage that may be lost
PERIODS = 4  # across the particle: the coarsest detail that tells poses apart


class Reconstruct(Protocol):
    """What is needed of `reconstruction.nested.NestedReconstruction`."""

    def diameter_A(self, particles: ParticleSet) -> float: ...

    def __call__(self, particles: ParticleSet, parts: Sequence[IntArray]) -> NestedMaps: ...


@dataclass(frozen=True)
class CurvePoint:
    """One of the nested sets.

    threshold : lowest confidence in it. score : mean over Fourier components of log(1 + SSNR) of a half map, nat.
    resolution_A, worst_A : FSC 0.143 of the half maps, over the sphere and in the worst direction. view_coverage :
    sampling compensation factor. allowed : whether it could be chosen.
    """

    threshold: float
    kept: int
    score: float
    resolution_A: float
    worst_A: float
    view_coverage: float
    allowed: bool


@dataclass(frozen=True)
class AutoCurve:
    """Nested sets from small to large, and which of them was chosen."""

    points: tuple[CurvePoint, ...]
    chosen: int

    def figures(self) -> dict[str, Any]:
        """Return plain numbers, for JSON."""
        digits = {"threshold": 4, "score": 5, "resolution_A": 3, "worst_A": 3, "view_coverage": 4}
        return {
            "curve": [
                {
                    name: round(value, digits[name]) if name in digits else value
                    for name, value in vars(point).items()
                }
                for point in self.points
            ],
            "chosen": self.chosen,
        }

    def lines(self) -> list[str]:
        """Return a table for people."""
        head = f"{'kept':>9} {'confidence':>10} {'clarity':>8} {'FSC 0.143':>10} {'worst':>8} {'views':>6}"
        rows = [
            f"{p.kept:9d} {p.threshold:10.3f} {p.score:8.4f} {p.resolution_A:8.2f} Å {p.worst_A:6.2f} Å "
            f"{p.view_coverage:6.3f}{' <- chosen' if i == self.chosen else '' if p.allowed else ' not allowed'}"
            for i, p in enumerate(self.points)
        ]
        return [head, *rows]


def quality_order(prediction: Prediction) -> IntArray:
    """Rows `(n,)` from best to worst: by confidence to a hundredth, then by expected error, then by confidence."""
    error = prediction.expected_error_deg
    tie_break = np.zeros(len(prediction)) if error is None else error
    result: IntArray = np.lexsort((-prediction.confidence, tie_break, -np.round(prediction.confidence, 2)))
    return result


def lenient_signal(particles: ParticleSet, prediction: Prediction, diameter_A: float) -> FloatArray:
    """Part `(n,)` of its signal that each particle adds to the coarsest detail that tells poses apart.

    Where the table does not say how uncertain poses are: the confidence.
    """
    try:
        poses = pose_uncertainty(prediction, particles.source)
    except ParticleFileError:
        return prediction.confidence
    frequency = torch.tensor([PERIODS / diameter_A], dtype=torch.float64)
    rho2_A2 = mean_square_coordinate_A2(diameter_A)
    result: FloatArray = (
        poses.right * shell_damping(poses.covariance, poses.shift_sd_A, rho2_A2, frequency)[:, 0].numpy()
    )
    return result


def by_map(
    particles: ParticleSet, prediction: Prediction, symmetry: str, reconstruct: Reconstruct
) -> tuple[Mask, str, AutoCurve]:
    """Choose the nested set whose half maps are clearest, of those that view as evenly as the whole.

    Clarity is log(1 + SSNR), summed over Fourier components as far as any set has signal: every shell counts, not
    only the one at which the FSC crosses 0.143. But particles that were aligned to the maps agree with them even
    where they show nothing ("Einstein from noise"): their FSC alone could let them in. Therefore no set is allowed
    that goes beyond the largest sum(s) / sqrt(n), with s the part of a particle's signal that its posterior leaves
    at the coarsest detail. s is an upper bound: at finer detail an uncertain pose leaves less. A particle with less
    than half the mean s of those before it therefore lowers the signal-to-noise ratio at every frequency, whatever
    the FSC says of it.

    Raises ImageStackError or ParticleFileError where images cannot be read, SettingsError where the maps show nothing.
    """
    n = len(particles)
    order = quality_order(prediction)
    signal = lenient_signal(particles, prediction, reconstruct.diameter_A(particles))
    last = 1 + int(np.argmax(np.cumsum(signal[order]) / np.sqrt(np.arange(1, n + 1))))
    last = max(last, int(np.ceil(SMALLEST_FRACTION * n)))
    counts = {max(int(np.ceil(SMALLEST_FRACTION * n)), round(step * last)) for step in STEPS}
    counts |= {last + (n - last) // 2, n} if n - last > 0.01 * n else {n}
    sizes = np.array(sorted(counts))
    maps = reconstruct(particles, np.split(order, sizes[:-1]))
    ssnr = _ssnr(maps)
    used = _used_shells(maps)
    if not used.any():
        raise SettingsError("the half maps of these particles have no signal in common")
    weight = maps.points * used
    score = (np.log1p(ssnr) * weight).sum(axis=1) / weight.sum()
    sd = np.sqrt(((1 + np.clip(maps.fsc, 0, 1)) ** 2 * weight).sum(axis=1)) / weight.sum()
    histograms = np.cumsum(
        [
            view_histogram(particles.require_rotation()[part], symmetry)
            for part in np.split(order, sizes[:-1])
        ],
        axis=0,
    )
    coverage = np.array([coverage_of(histogram).scf for histogram in histograms])
    whole = coverage_of(view_histogram(particles.require_rotation(), symmetry, signal)).scf
    even = coverage >= (1 - VIEWS_LOST) * whole
    allowed = (sizes <= last) & even
    if not allowed.any():
        allowed = (sizes <= last) & (coverage >= coverage[sizes <= last].max() - 1e-9)
    best = int(np.flatnonzero(allowed)[np.argmax(score[allowed])])
    # nested sets share particles, and their noise: only the part that they do not share is by chance
    apart = np.sqrt(
        (sd**2 + sd[best] ** 2) * (1 - np.minimum(sizes, sizes[best]) / np.maximum(sizes, sizes[best]))
    )
    chosen = int(np.flatnonzero(allowed & (score >= score[best] - apart))[-1])
    half_fsc = ssnr / (1 + ssnr)
    resolution = expected_resolution_A(half_fsc, maps.side_A)
    ordered = prediction.confidence[order]
    curve = AutoCurve(
        tuple(
            CurvePoint(
                float(ordered[:size].min()), int(size), float(score[i]), float(resolution[i]), float(maps.worst_A[i]),
                float(coverage[i]), bool(allowed[i]),
            )
            for i, size in enumerate(sizes)
        ),
        chosen,
    )  # fmt: skip
    mask = np.zeros(n, dtype=bool)
    mask[order[: sizes[chosen]]] = True
    line = f"automatic: of {len(sizes)} nested sets the one with the clearest half maps"
    if not (even & (sizes <= last)).any():
        line += " among those with the evenest views"
    return mask, line, curve


def _ssnr(maps: NestedMaps) -> FloatArray:
    """Spectral signal-to-noise ratio `(m, shells)` of half maps of all the particles; chance may make it negative."""
    fsc = np.clip(maps.fsc, -0.9, 0.9999)
    result: FloatArray = np.clip(maps.stride * fsc / (1 - fsc), -0.9, None)
    return result


def _used_shells(maps: NestedMaps) -> Mask:
    """Shells `(shells,)` in which any of the sets has signal."""
    points = torch.from_numpy(maps.points).float()
    clean = np.stack([significant(torch.from_numpy(curve).float(), points).numpy() for curve in maps.fsc])
    used = np.any(clean > 0, axis=0)
    used[0] = False
    return np.asarray(used)


def by_confidence(confidence: FloatArray, half_set: IntArray) -> tuple[Mask, str]:
    """Choose the confidence threshold that should make the reconstruction clearest.

    If a particle is well oriented with probability c, signal adds up as sum(c) and noise power as the
    number n kept, so sum(c) / sqrt(n) is maximised: particles are added in order of confidence for as
    long as each has more than about half the mean confidence of those already in. Never less than
    SMALLEST_FRACTION of the set or of a half set is kept. Raises SettingsError if all c are 0.
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
        topped_up[best[: int(np.ceil(SMALLEST_FRACTION * len(rows)))]] = True
    if (topped_up & ~mask).any():
        line += f", topped up to {100 * SMALLEST_FRACTION:g} % of each half set"
    return topped_up, line


def automatic(
    particles: ParticleSet,
    prediction: Prediction,
    symmetry: str = "C1",
    reconstruct: Reconstruct | None = None,
) -> tuple[Mask, str, AutoCurve | None]:
    """Choose by the map where `reconstruct` can make one, else by the confidences; the line says which and why."""
    if not len(prediction) or prediction.confidence.max() <= 0:
        raise SettingsError("--auto: no particle has a confidence above 0; there is nothing to choose by")
    reason = "images were not looked at"
    if reconstruct is not None and len(particles) < FEWEST:
        reason = f"fewer than {FEWEST} particles"
    elif reconstruct is not None:
        try:
            return by_map(particles, prediction, symmetry, reconstruct)
        except (ImageStackError, ParticleFileError, SettingsError) as error:
            reason = str(error)
            LOG.warning("--auto chooses by the confidences alone: %s", reason)
    mask, line = by_confidence(prediction.confidence, particles.half_set)
    return mask, f"{line} (chosen by the confidences alone: {reason})", None
