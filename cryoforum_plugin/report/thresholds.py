"""What each smallest confidence would keep, and what the kept particles would be worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoforum_plugin.confidence.balance import HALF_SETS_APART
from cryoforum_plugin.confidence.view_coverage import coverage_of, view_histogram
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet
from cryoforum_plugin.report.resolution import KnownSignal, predicted_resolution_A

_STEPS = 100  # of confidence, and of the number of particles
_DIGITS = 6  # of a confidence in a STAR file


@dataclass(frozen=True)
class Thresholds:
    """Thresholds `(t,)`, ascending, and what particles at least as confident are: everything else `(t,)`, too.

    texts : the thresholds as they are typed. kept : numbers of all, and of each half set, as `select` balances them.
    total : all there are. expected_deg : mean expected error, None where the table has none. view_coverage : None
    without orientations. resolution_A : predicted, None where nothing tells. start : position to begin with.
    source : the table.
    """

    source: Path
    values: FloatArray
    texts: tuple[str, ...]
    kept: dict[str, IntArray]
    total: dict[str, int]
    expected_deg: FloatArray | None
    view_coverage: FloatArray | None
    resolution_A: FloatArray | None
    start: int


def weigh_thresholds(
    particles: ParticleSet,
    symmetry: str = "C1",
    start: float | None = None,
    signal: KnownSignal | None = None,
) -> Thresholds | None:
    """Weigh up to about 200 thresholds for predicted particles; None where there is nothing to choose.

    start : confidence to begin with. signal : what resolutions are predicted from. Thresholds that would empty a half
    set are left out, as `select` refuses them.
    """
    prediction = particles.prediction
    if prediction is None or np.ptp(prediction.confidence) == 0:
        return None
    confidence, half_set = prediction.confidence, particles.half_set
    texts = _texts(confidence, _lowest_best(confidence, half_set), start)
    values = np.array([float(text) for text in texts])
    if len(values) < 2:  # of one half set no particle has any confidence
        return None
    counts = _kept(confidence, half_set, values)
    parts = _nested(confidence, half_set, counts)
    kept = np.sum(list(counts.values()), axis=0)
    error_deg = prediction.expected_error_deg
    coverage = None if particles.rotation is None else _coverage(particles.rotation, parts, symmetry)
    halves = [half for half in counts if half > 0]
    return Thresholds(
        particles.source,
        values,
        texts,
        {"all": kept} | {f"half set {half}": counts[half] for half in halves},
        {"all": len(particles)} | {f"half set {half}": int((half_set == half).sum()) for half in halves},
        None if error_deg is None else from_the_top([error_deg[rows].sum() for rows in parts]) / kept,
        coverage,
        None if signal is None else predicted_resolution_A(particles, parts, coverage, signal),
        0 if start is None else int(np.abs(values - start).argmin()),
    )


def _lowest_best(confidence: FloatArray, half_set: IntArray) -> float:
    """The largest threshold that leaves something of every half set."""
    return min(float(confidence[half_set == half].max()) for half in np.unique(half_set))


def _texts(confidence: FloatArray, highest: float, start: float | None) -> tuple[str, ...]:
    """Thresholds from 0 to `highest`, at even steps of confidence and of the number of particles."""
    even = np.linspace(0, 1, _STEPS + 1)
    known = [] if start is None else [start]
    scale = 10**_DIGITS
    wanted = np.floor(np.concatenate([even, np.quantile(confidence, even), known]) * scale + 1e-6) / scale
    values = np.unique(wanted[wanted <= highest])
    return tuple(f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".") for value in values)


def _kept(confidence: FloatArray, half_set: IntArray, values: FloatArray) -> dict[int, IntArray]:
    """Numbers `(t,)` that are kept of each half set: of two as many as `confidence.balance.balanced` leaves."""
    found = {}
    for half in np.unique(half_set).tolist():
        of_half = np.sort(confidence[half_set == half])
        found[half] = len(of_half) - np.searchsorted(of_half, values)
    if {1, 2} <= set(found):
        largest = {
            half: np.maximum(np.floor(found[half] * (1 + HALF_SETS_APART)), found[half] + 1).astype(np.int64)
            for half in (1, 2)
        }
        found |= {half: np.minimum(found[half], largest[3 - half]) for half in (1, 2)}
    return found


def _nested(confidence: FloatArray, half_set: IntArray, counts: dict[int, IntArray]) -> list[IntArray]:
    """Rows that each threshold keeps and the next does not; with all that follow, those that it keeps."""
    parts: list[list[IntArray]] = [[] for _ in next(iter(counts.values()))]
    for half, count in counts.items():
        rows = np.flatnonzero(half_set == half)
        best_first = rows[np.argsort(confidence[rows], kind="stable")[::-1]]
        ends = np.append(count, 0)
        for position, part in enumerate(parts):
            part.append(best_first[ends[position + 1] : ends[position]])
    return [np.concatenate(part) for part in parts]


def from_the_top(sums: list[float] | FloatArray) -> FloatArray:
    """Sums `(t, ...)` over each part and all after it."""
    result: FloatArray = np.asarray(sums, dtype=np.float64)[::-1].cumsum(axis=0)[::-1]
    return result


def _coverage(rotation: FloatArray, parts: list[IntArray], symmetry: str) -> FloatArray:
    """Sampling compensation factor `(t,)` of each part and all after it."""
    histograms = np.array([view_histogram(rotation[rows], symmetry) for rows in parts])
    return np.array([coverage_of(histogram).scf for histogram in from_the_top(histograms)])
