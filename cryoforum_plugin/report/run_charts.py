"""Charts of a run as a whole: how training went, FSC curves, how a selection was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cryoforum_plugin.charts.charts import Axis, Line, LineChart, Mark
from cryoforum_plugin.particles import FloatArray

_CURVE = (("kept", "kept particles"), ("view_coverage", "view coverage (1 = uniform)"),
          ("resolution_A", "predicted resolution (Å)"), ("score", "score (higher is better)"))  # fmt: skip


def training_curves(metrics: Mapping[str, FloatArray]) -> tuple[LineChart, LineChart]:
    """Loss and validation error by epoch.

    metrics : columns `(epochs,)` epoch, train_loss, validation_loss, validation_median_deg,
        validation_mean_deg; those that are missing or never finite are left out.
    """
    loss = _known(metrics, {"train_loss": "training", "validation_loss": "validation"})
    error = _known(metrics, {"validation_median_deg": "median", "validation_mean_deg": "mean"})
    return (
        LineChart("Loss", Axis("epoch"), Axis("loss of single images"), loss),
        LineChart("Validation error", Axis("epoch"), Axis("angular error (deg)", log=len(error) > 0), error),
    )


def _known(metrics: Mapping[str, FloatArray], names: Mapping[str, str]) -> tuple[Line, ...]:
    finite = [name for name in names if name in metrics and np.isfinite(metrics[name]).any()]
    return tuple(Line(names[name], metrics["epoch"], metrics[name]) for name in finite)


def fsc_curves(curves: Mapping[str, tuple[FloatArray, FloatArray]]) -> LineChart:
    """Fourier shell correlations: name -> (resolution_A `(s,)`, fsc `(s,)`), with 0.143 and 0.5 marked."""
    lines = []
    for name, (resolution_A, fsc) in curves.items():
        usable = np.isfinite(resolution_A) & (resolution_A > 0)
        lines.append(Line(name, 1 / resolution_A[usable], fsc[usable]))
    lowest = min(-0.05, *(float(fsc.min()) for _, fsc in curves.values()))
    highest = max((float(line.x.max()) for line in lines if len(line.x)), default=1.0)
    return LineChart(
        "FSC",
        Axis("spatial frequency (1/Å)", limits=(0, highest), reciprocal=True),
        Axis("Fourier shell correlation", limits=(lowest, 1.02)),
        tuple(lines),
        tuple(Mark("y", level, f"{level:g}") for level in (0.143, 0.5)),
    )


def selection_curve(selection: Mapping[str, Any]) -> tuple[LineChart, ...]:
    """What the automatic choice weighed, by threshold; nothing where selection.json does not tell."""
    found = selection.get("auto") or {}
    curve = found.get("curve") or []
    if len(curve) < 2:
        return ()
    threshold = np.array([_number(point.get("threshold")) for point in curve])
    chosen = found.get("chosen")
    marks = () if chosen is None else (Mark("x", float(threshold[int(chosen)]), "chosen"),)
    charts = []
    for key, label in _CURVE:
        values = np.array([_number(point.get(key)) for point in curve])
        if np.isfinite(values).any():
            title, lines = label.split(" (")[0].capitalize(), (Line(label.split(" (")[0], threshold, values),)
            charts.append(LineChart(title, Axis("smallest confidence"), Axis(label), lines, marks))
    return tuple(charts)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
