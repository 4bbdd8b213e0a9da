"""What map a subset of predicted particles can be expected to give: FSC and resolution of its half maps.

A particle whose pose is right with probability c, and otherwise damped by D(k), adds c D(k) of its signal and all of
its noise. The signal-to-noise ratio of a half map of n / 2 particles is then a(k) (sum c D)^2 / (2 n), with a(k)
that of one particle with a perfect pose.
"""

from __future__ import annotations

import numpy as np

from cryoforum_plugin.particles import FloatArray

CRITERION = 0.143
LARGEST_FSC = 0.9999


def particle_ssnr(fsc: FloatArray, particles: int, mean_damping: FloatArray | float = 1.0) -> FloatArray:
    """Signal-to-noise ratio `(shells,)` of one particle, from the FSC `(shells,)` of half maps.

    particles : in both halves together. mean_damping : mean of c D(k) over them, `(shells,)` or one number; 1 where
    it is unknown, whereby "perfect" means poses as good as theirs. From the first fall below CRITERION on, where
    chance begins, the ratio follows the decay before it, exponential in frequency squared (a B factor).
    """
    clean = np.clip(np.asarray(fsc, dtype=np.float64), 0, LARGEST_FSC)
    damped = np.broadcast_to(np.asarray(mean_damping, dtype=np.float64), clean.shape)
    ratio: FloatArray = clean / (1 - clean) / (particles / 2) / np.maximum(damped, 1e-3) ** 2
    ratio[0] = ratio[1]
    below = np.flatnonzero(clean[1:] < CRITERION)
    if len(below) == 0:
        return ratio
    end = int(below[0]) + 1  # the first shell without signal
    shells = np.arange(len(clean))
    known = np.arange(max(1, end // 3), end)
    if len(known) < 2:
        return np.where(shells < end, ratio, 0.0)
    slope, offset = np.polyfit(known.astype(np.float64) ** 2, np.log(ratio[known].clip(1e-12)), 1)
    beyond = np.exp(
        np.minimum(offset + min(slope, 0.0) * shells.astype(np.float64) ** 2, np.log(ratio[end - 1]))
    )
    result: FloatArray = np.where(shells < end, ratio, beyond)
    return result


def expected_fsc(
    ssnr: FloatArray, signal: FloatArray, particles: FloatArray | int, coverage: FloatArray | float = 1.0
) -> FloatArray:
    """FSC `(..., shells)` of the half maps of subsets.

    ssnr : `(shells,)` of one particle. signal : `(..., shells)` sum of c D(k) over the subset. particles : `(...)`
    number in it. coverage : `(...)` its sampling compensation factor (`view_coverage`), relative to that of the
    particles behind `ssnr`.
    """
    count = np.maximum(np.asarray(particles, dtype=np.float64), 1)[..., None]
    half = ssnr * np.square(signal) / (2 * count) * np.asarray(coverage, dtype=np.float64)[..., None]
    result: FloatArray = half / (1 + half)
    return result


def expected_resolution_A(fsc: FloatArray, side_A: float) -> FloatArray:
    """Resolution `(...)` in Å at which FSC curves `(..., shells)` of a box of `side_A` first fall below CRITERION.

    Linear between shells; the last shell's where a curve never does, `side_A` where it does at shell 1.
    """
    curves = np.atleast_2d(fsc)
    below = curves[:, 1:] < CRITERION
    last = curves.shape[1] - 1
    shell = np.where(below.any(1), below.argmax(1) + 1, last)
    row = np.arange(len(curves))
    before, after = curves[row, shell - 1], curves[row, shell]
    part = np.clip((before - CRITERION) / np.maximum(before - after, 1e-12), 0, 1)
    crossing = np.where(below.any(1), np.where(shell == 1, 1.0, shell - 1 + part), float(last))
    result: FloatArray = (side_A / crossing).reshape(fsc.shape[:-1])
    return result
