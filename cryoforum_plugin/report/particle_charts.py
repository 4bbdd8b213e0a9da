"""Charts of predicted particles: where they are seen from, how certain they are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cryoforum_plugin.charts.charts import Axis, DirectionMap, Histogram, Mark
from cryoforum_plugin.confidence.calibration import TARGET_DEG
from cryoforum_plugin.confidence.view_coverage import viewing_directions
from cryoforum_plugin.particles import FloatArray

CONFIDENCE = f"confidence: probability that the error is below {TARGET_DEG:g}°"
_CONFIDENCE_EDGES = np.linspace(0, 1, 41)


def view_distributions(sets: Mapping[str, FloatArray]) -> tuple[DirectionMap, ...]:
    """Viewing directions of each named set of quaternions `(n, 4)` XYZW, in equal-area bins.

    Density is relative to uniform views (1); horizontal rot, vertical cos(tilt), so areas are true. The
    viewing direction is the third column of R, (sin tilt cos rot, sin tilt sin rot, cos tilt).
    """
    densities = {name: view_density(quaternion) for name, quaternion in sets.items()}
    highest = max(float(density.max()) for density in densities.values())
    return tuple(
        DirectionMap(f"{name} (n = {len(sets[name])})", density, "density (1 = uniform)", highest)
        for name, density in densities.items()
    )


def view_density(quaternion: FloatArray) -> FloatArray:
    """Density of viewing directions relative to uniform, `(cos tilt, rot)` bins, from quaternions `(n, 4)`.

    Bins are as many as leave about ten particles in each, from 6 x 3 to 36 x 18.
    """
    view = viewing_directions(quaternion)
    rows = int(np.clip(round(np.sqrt(len(view) / 20)), 3, 18))
    rot_deg = np.degrees(np.arctan2(view[:, 1], view[:, 0]))
    counts, _, _ = np.histogram2d(
        np.clip(view[:, 2], -1, 1), rot_deg, bins=(rows, 2 * rows), range=((-1, 1), (-180, 180))
    )
    return np.asarray(counts * counts.size / len(view))


def confidence_histogram(sets: Mapping[str, FloatArray], threshold: float | None = None) -> Histogram:
    """Calibrated confidences `(n,)` of each named set; `threshold` is marked by a line."""
    marks = () if threshold is None else (Mark("x", threshold, f"smallest selected {threshold:.2f}"),)
    counts = {name: np.histogram(values, _CONFIDENCE_EDGES)[0] for name, values in sets.items()}
    return Histogram("Confidence", Axis(CONFIDENCE), Axis("particles"), _CONFIDENCE_EDGES, counts, marks)


def expected_error_histogram(sets: Mapping[str, FloatArray]) -> Histogram:
    """Expected angular errors in deg `(n,)` of each named set, on a logarithmic axis."""
    values = np.concatenate(list(sets.values()))
    positive = values[values > 0]
    low = float(positive.min()) if len(positive) else 0.1
    edges = np.geomspace(min(low, 90.0), 180, 41)
    counts = {name: np.histogram(error.clip(edges[0], edges[-1]), edges)[0] for name, error in sets.items()}
    x = Axis("expected angular error (deg)", log=True)
    return Histogram("Expected error", x, Axis("particles"), edges, counts)
