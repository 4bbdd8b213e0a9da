"""What each smallest confidence would keep, and what the kept particles would be worth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from cryoforum_plugin.confidence.view_coverage import coverage_of, view_histogram
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet

_STEPS = 100  # of confidence, and of the number of particles
_DIGITS = 6  # of a confidence in a STAR file


@dataclass(frozen=True)
class Thresholds:
    """Thresholds `(t,)`, ascending, and what particles at least as confident are: everything else `(t,)`, too.

    texts : the thresholds as they are typed. kept : numbers of all, and of each half set. expected_deg : mean expected
    error, None where the table has none. view_coverage : None without orientations. resolution_A : predicted, None
    where nothing tells. start : position to begin with. source : the table.
    """

    source: Path
    values: FloatArray
    texts: tuple[str, ...]
    kept: dict[str, IntArray]
    expected_deg: FloatArray | None
    view_coverage: FloatArray | None
    resolution_A: FloatArray | None
    start: int


def weigh_thresholds(
    particles: ParticleSet, symmetry: str = "C1", start: float | None = None
) -> Thresholds | None:
    """Weigh up to about 200 thresholds for predicted particles; None where there is nothing to choose.

    start : confidence to begin with. Thresholds that would empty a half set are left out, as `select` refuses them.
    """
    prediction = particles.prediction
    if prediction is None or np.ptp(prediction.confidence) == 0:
        return None
    confidence = prediction.confidence
    texts = _texts(confidence, _lowest_best(confidence, particles.half_set), start)
    values = np.array([float(text) for text in texts])
    order = np.argsort(confidence, kind="stable")
    first = np.searchsorted(confidence[order], values)  # place in order from which particles are kept
    parts = np.split(order, first[1:])
    error_deg = prediction.expected_error_deg
    halves = {f"half set {half}": particles.half_set == half for half in (1, 2)}
    counts = {name: _from_the_top(_sums(mask, parts)) for name, mask in halves.items() if mask.any()}
    kept = len(order) - first
    return Thresholds(
        particles.source,
        values,
        texts,
        {"all": kept, **{name: count.astype(np.int64) for name, count in counts.items()}},
        None if error_deg is None else _from_the_top(_sums(error_deg, parts)) / kept,
        None if particles.rotation is None else _coverage(particles.rotation, parts, symmetry),
        None,
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
    wanted = np.floor(np.concatenate([even, np.quantile(confidence, even), known]) * scale + 1e-9) / scale
    values = np.unique(wanted[wanted <= highest])
    return tuple(f"{value:.{_DIGITS}f}".rstrip("0").rstrip(".") for value in values)


def _sums(values: FloatArray, parts: list[IntArray]) -> FloatArray:
    """Sum `(t,)` of values `(n,)` over the rows of each part."""
    return np.array([values[rows].sum() for rows in parts], dtype=np.float64)


def _from_the_top(sums: FloatArray) -> FloatArray:
    """Sums over each part and all after it."""
    return sums[::-1].cumsum(axis=0)[::-1]


def _coverage(rotation: FloatArray, parts: list[IntArray], symmetry: str) -> FloatArray:
    """Sampling compensation factor `(t,)` of each part and all after it."""
    histograms = np.array([view_histogram(rotation[rows], symmetry) for rows in parts])
    return np.array([coverage_of(histogram).scf for histogram in _from_the_top(histograms)])
