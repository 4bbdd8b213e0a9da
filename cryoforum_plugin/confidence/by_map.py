"""--auto by the map: of sets nested by confidence, the one with the clearest half maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from cryoforum_plugin.confidence.auto_curve import AutoCurve, CurvePoint
from cryoforum_plugin.confidence.expected_map import expected_resolution_A
from cryoforum_plugin.confidence.pose_quality import pose_uncertainty
from cryoforum_plugin.confidence.view_coverage import coverage_of, view_histogram
from cryoforum_plugin.errors import ParticleFileError, SettingsError
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet, Prediction
from cryoforum_plugin.posterior.pose_damping import mean_square_coordinate_A2, shell_damping
from cryoforum_plugin.reconstruction.fsc import significant
from cryoforum_plugin.reconstruction.nested import NestedMaps

Mask = NDArray[np.bool_]

SMALLEST_FRACTION = 0.1  # of the set; less is never looked at
# sizes of the sets, as parts of the largest that may be chosen
STEPS = (0.3, 0.45, 0.55, 0.65, 0.72, 0.78, 0.84, 0.88, 0.92, 0.95, 0.98, 1.0)
VIEWS_LOST = 0.05  # part of the view coverage that may be lost
PERIODS = 4  # across the particle: the coarsest detail that tells poses apart


class Reconstruct(Protocol):
    """What is needed of `reconstruction.nested.NestedReconstruction`."""

    def diameter_A(self, particles: ParticleSet) -> float: ...

    def __call__(self, particles: ParticleSet, parts: Sequence[IntArray]) -> NestedMaps: ...


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
    at the coarsest detail that tells poses apart. A particle with less than half the mean s of those before it lowers
    the signal-to-noise ratio there, whatever the FSC says of it, and as a rule more so at finer detail, where an
    uncertain pose leaves less.

    Raises ImageStackError or ParticleFileError where images cannot be read, SettingsError where the maps show nothing.
    """
    order = quality_order(prediction)
    signal = lenient_signal(particles, prediction, reconstruct.diameter_A(particles))
    sizes, last = _nested_sizes(signal[order])
    parts = np.split(order, sizes[:-1])
    maps = reconstruct(particles, parts)
    ssnr = _ssnr(maps)
    score, sd = _clarity(maps, ssnr)
    coverage, even = _views(particles, parts, symmetry, signal)
    allowed = (sizes <= last) & even
    note = ""
    if not allowed.any():
        allowed = (sizes <= last) & (coverage >= coverage[sizes <= last].max() - 1e-9)
        note = " among those with the evenest views"
    chosen = _clearest(sizes, score, sd, allowed)
    resolution = expected_resolution_A(ssnr / (1 + ssnr), maps.side_A)
    lowest = [float(prediction.confidence[order[:size]].min()) for size in sizes]
    columns = zip(
        lowest, sizes.tolist(), score.tolist(), resolution.tolist(), maps.worst_A.tolist(), coverage.tolist(),
        allowed.tolist(), strict=True,
    )  # fmt: skip
    curve = AutoCurve(tuple(CurvePoint(*values) for values in columns), chosen)
    mask = np.zeros(len(particles), dtype=bool)
    mask[order[: sizes[chosen]]] = True
    return mask, f"automatic: of {len(sizes)} nested sets the one with the clearest half maps{note}", curve


def _nested_sizes(signal: FloatArray) -> tuple[IntArray, int]:
    """Sizes `(m,)` of the sets to compare, of particles in order `(n,)`, and the largest that may be chosen."""
    n = len(signal)
    least = int(np.ceil(SMALLEST_FRACTION * n))
    last = max(least, 1 + int(np.argmax(np.cumsum(signal) / np.sqrt(np.arange(1, n + 1)))))
    sizes = {max(least, round(step * last)) for step in STEPS} | {n}
    if n - last > 0.01 * n:
        sizes.add(last + (n - last) // 2)
    return np.array(sorted(sizes)), last


def _clarity(maps: NestedMaps, ssnr: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Mean log(1 + SSNR) `(m,)` over Fourier components where any set has signal, and its s.d. by chance."""
    points = torch.from_numpy(maps.points).float()
    clean = np.stack([significant(torch.from_numpy(curve).float(), points).numpy() for curve in maps.fsc])
    weight = maps.points * np.any(clean > 0, axis=0)
    weight[0] = 0
    if weight.sum() == 0:
        raise SettingsError("the half maps of these particles have no signal in common")
    score: FloatArray = (np.log1p(ssnr) * weight).sum(axis=1) / weight.sum()
    # the FSC of a shell has an s.d. of (1 - fsc^2) / sqrt(points); this is how log(1 + SSNR) of all particles follows it
    fsc = np.clip(maps.fsc, 0, 0.9999)
    slope = maps.stride * (1 + fsc) / (1 - fsc + maps.stride * fsc)
    variance = (slope**2 * weight).sum(axis=1)
    return score, np.sqrt(variance) / weight.sum()


def _views(
    particles: ParticleSet, parts: Sequence[IntArray], symmetry: str, signal: FloatArray
) -> tuple[FloatArray, Mask]:
    """View coverage `(m,)` of the nested sets, and whether each keeps enough of that of all particles' signal."""
    rotation = particles.require_rotation()
    histograms = np.cumsum([view_histogram(rotation[part], symmetry) for part in parts], axis=0)
    coverage = np.array([coverage_of(histogram).scf for histogram in histograms])
    whole = coverage_of(view_histogram(rotation, symmetry, signal)).scf
    return coverage, coverage >= (1 - VIEWS_LOST) * whole


def _clearest(sizes: IntArray, score: FloatArray, sd: FloatArray, allowed: Mask) -> int:
    """Place of the best allowed set, or of the largest that is as good but for chance."""
    best = int(np.flatnonzero(allowed)[np.argmax(score[allowed])])
    # nested sets share particles, and their noise: only the part that they do not share is by chance
    shared = np.minimum(sizes, sizes[best]) / np.maximum(sizes, sizes[best])
    apart = np.sqrt((sd**2 + sd[best] ** 2) * (1 - shared))
    return int(np.flatnonzero(allowed & (score >= score[best] - apart))[-1])


def _ssnr(maps: NestedMaps) -> FloatArray:
    """Spectral signal-to-noise ratio `(m, shells)` of half maps of all the particles; chance may make it negative."""
    fsc = np.clip(maps.fsc, -0.9, 0.9999)
    result: FloatArray = np.clip(maps.stride * fsc / (1 - fsc), -0.9, None)
    return result
