"""Whether uncertainties keep their word: coverage, calibration of the confidence, and what filtering by them gains."""

from __future__ import annotations

from typing import Any

import numpy as np

from cryoforum_plugin.confidence.calibration import TARGET_DEG
from cryoforum_plugin.confidence.ranking import spearman
from cryoforum_plugin.confidence.view_coverage import unit_views
from cryoforum_plugin.geometry import (
    cell_of,
    symmetry_group,
)
from cryoforum_plugin.particles import FloatArray, Prediction

Figures = dict[str, Any]
KEPT = np.arange(1, 21) / 20  # parts of a set whose mean error is told
BINS = np.array([0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 1.0])  # of the confidence
GROUPS = 5
FEWEST = 40  # particles of a direction, or more directions are taken together
MOST_CELLS = 24  # of the asymmetric unit


def reliability(
    prediction: Prediction, error_rad: FloatArray, coverage: dict[float, float], symmetry: str = "C1"
) -> Figures:
    """Compare what was said of particles with their errors `(n,)`; plain numbers for JSON.

    coverage : part of the particles that the ball of each level held. Quintiles are by expected error, the surest
    particles first; directions are cells of equal area of the asymmetric unit. "aurc_deg" is the area under the
    risk-coverage curve (Geifman and El-Yaniv 2017): the mean error of the surest part, averaged over all parts.
    """
    error_deg, confidence = np.degrees(error_rad), prediction.confidence
    expected = prediction.expected_error_deg
    assert expected is not None
    order = np.lexsort((expected, -confidence))
    running = np.cumsum(error_deg[order]) / np.arange(1, len(order) + 1)
    kept = np.maximum(1, np.round(KEPT * len(order)).astype(np.int64))
    below = error_deg < TARGET_DEG
    bins = np.clip(np.digitize(confidence, BINS) - 1, 0, len(BINS) - 2)
    filled = [bins == b for b in range(len(BINS) - 1) if (bins == b).any()]
    by_expected = np.argsort(expected, kind="stable")
    return {
        "particles": len(error_rad),
        "coverage": {"levels": list(coverage), "found": list(coverage.values())},
        "quintiles": [_group(prediction, error_deg, rows) for rows in np.array_split(by_expected, GROUPS)],
        "directions": directions(prediction, error_deg, symmetry),
        "confidence": {
            "predicted": [float(confidence[b].mean()) for b in filled],
            "observed": [float(below[b].mean()) for b in filled],
            "n": [int(b.sum()) for b in filled],
        },
        "risk_coverage": {"kept": KEPT.tolist(), "mean_error_deg": running[kept - 1].tolist()},
        "brier": float(np.mean((confidence - below) ** 2)),
        "aurc_deg": float(running.mean()),
        "spearman": spearman(expected, error_rad),
    }


def directions(prediction: Prediction, error_deg: FloatArray, symmetry: str) -> list[Figures]:
    """The same for each viewing direction with enough particles, of equal-area cells in the asymmetric unit."""
    if prediction.rotation is None:
        return []
    order = len(symmetry_group(symmetry))
    cells = int(np.clip(len(error_deg) / FEWEST, 1, MOST_CELLS)) * order
    view = unit_views(prediction.rotation, symmetry)
    label = cell_of(view, cells)
    found = []
    for cell in np.unique(label):
        rows = np.flatnonzero(label == cell)
        if len(rows) < FEWEST // 2:
            continue
        x, y, z = view[rows].mean(axis=0)
        place = {
            "rot_deg": float(np.degrees(np.arctan2(y, x))),
            "tilt_deg": float(np.degrees(np.arctan2(np.hypot(x, y), z))),
        }
        found.append(place | _group(prediction, error_deg, rows))
    return found


def _group(prediction: Prediction, error_deg: FloatArray, rows: np.ndarray[Any, Any]) -> Figures:
    assert prediction.expected_error_deg is not None
    assert prediction.credible_radius_90_deg is not None
    inside = error_deg[rows] <= prediction.credible_radius_90_deg[rows]
    return {
        "expected_deg": float(prediction.expected_error_deg[rows].mean()) if len(rows) else None,
        "actual_deg": float(error_deg[rows].mean()) if len(rows) else None,
        "coverage_90": float(inside.mean()) if len(rows) else None,
        "n": len(rows),
    }
