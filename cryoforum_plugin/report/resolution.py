"""The resolution that subsets of particles can be expected to reach, from an FSC that is known."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from cryoforum_plugin.confidence.expected_map import (
    CRITERION,
    expected_fsc,
    expected_resolution_A,
    particle_ssnr,
)
from cryoforum_plugin.confidence.pose_quality import pose_uncertainty
from cryoforum_plugin.errors import ModelError, ParticleFileError
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet
from cryoforum_plugin.posterior.pose_damping import mean_square_coordinate_A2, shell_damping
from cryoforum_plugin.refinement.reference_file import read_references

_LOOKED_AT = 200  # particles of each part
_DIAMETER = 0.6  # of the box, where it is not known


@dataclass(frozen=True)
class KnownSignal:
    """FSC `(shells,)` of half maps of `particles` in a box of `side_A`.

    own : they are the particles that subsets are taken of, with the same poses; else those of the training, whose
    poses are taken as right. diameter_A : of the particle.
    """

    fsc: FloatArray
    side_A: float
    particles: int
    own: bool
    diameter_A: float


def of_half_maps(
    resolution_A: FloatArray, fsc: FloatArray, particles: int, diameter_A: float | None
) -> KnownSignal:
    """Signal by an fsc.csv of half maps of the particles themselves."""
    usable = np.isfinite(resolution_A)
    side_A = float(resolution_A[usable][0])
    curve = np.concatenate([[1.0], fsc[usable]])
    return KnownSignal(curve, side_A, particles, True, diameter_A or _DIAMETER * side_A)


def of_model(folder: Path, diameter_A: float | None) -> KnownSignal | None:
    """Signal by the model's reference; None where it has none, or one of no known number of particles."""
    try:
        reference = read_references(folder).get(0)
    except ModelError:
        return None
    if reference is None or reference.fsc is None or reference.particles is None:
        return None
    fsc = reference.fsc.double().numpy()
    side_A = reference.side_A
    return KnownSignal(fsc, side_A, reference.particles, False, diameter_A or _DIAMETER * side_A)


def predicted_resolution_A(
    particles: ParticleSet, parts: list[IntArray], coverage: FloatArray | None, signal: KnownSignal
) -> FloatArray:
    """Resolution `(t,)` in Å of the half maps of each part of the rows and all after it.

    coverage : `(t,)` sampling compensation factors of these.
    """
    sums = np.array([_signal(particles, rows, signal) for rows in parts])
    added = sums[::-1].cumsum(axis=0)[::-1]
    count = np.cumsum([len(rows) for rows in parts[::-1]])[::-1]
    ssnr = _as_seen(signal, added[0] / count[0] if signal.own else np.ones(len(signal.fsc)))
    relative = np.ones(len(parts)) if coverage is None else coverage / max(coverage[0], 1e-9)
    return expected_resolution_A(expected_fsc(ssnr, added, count, relative), signal.side_A)


def _as_seen(signal: KnownSignal, mean_damping: FloatArray) -> FloatArray:
    """Signal-to-noise ratio `(shells,)` of one particle, beyond the last shell with signal no more than was seen there.

    The decay that `particle_ssnr` goes on with knows nothing of a low-pass, or of a mask's edge.
    """
    ssnr = particle_ssnr(signal.fsc, signal.particles, mean_damping)
    below = np.flatnonzero(signal.fsc[1:] < CRITERION)
    if len(below):
        end = int(below[0]) + 1
        seen = max(float(signal.fsc[end]), 0.0)
        most = seen / (1 - seen) / (signal.particles / 2) / max(float(mean_damping[end]), 1e-3) ** 2
        ssnr[end:] *= min(1.0, most / max(float(ssnr[end]), 1e-300))
    return ssnr


def _signal(particles: ParticleSet, rows: IntArray, signal: KnownSignal) -> FloatArray:
    """Sum `(shells,)` over the rows of the part of the signal that their poses leave, from some of them."""
    shells = len(signal.fsc)
    if len(rows) == 0:
        return np.zeros(shells)
    some = rows[:: -(-len(rows) // _LOOKED_AT)]
    assert particles.prediction is not None
    prediction = particles.prediction[some]
    try:
        poses = pose_uncertainty(prediction, particles.source)
    except ParticleFileError:  # only the confidence is known
        return np.full(shells, prediction.confidence.mean() * len(rows))
    frequency = torch.arange(shells, dtype=torch.float64) / signal.side_A
    left = shell_damping(
        poses.covariance, poses.shift_sd_A, mean_square_coordinate_A2(signal.diameter_A), frequency
    )
    mean: FloatArray = (poses.right[:, None] * left.numpy()).mean(axis=0)
    return mean * len(rows)
