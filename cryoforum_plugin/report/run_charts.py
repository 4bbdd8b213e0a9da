"""Charts of a run as a whole: how training went, FSC curves, how a selection was chosen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from cryoforum_plugin.charts.charts import Axis, Line, LineChart, Mark
from cryoforum_plugin.particles import FloatArray

_CURVE = (
    ("Resolution", "half maps at FSC 0.143 (Å)", {"resolution_A": "all directions", "worst_A": "worst direction"}),
    ("Clarity", "mean log(1 + SSNR) (nat)", {"score": "clarity"}),
    ("View coverage", "1 = uniform views", {"view_coverage": "view coverage"}),
    ("Smallest confidence", "confidence", {"threshold": "smallest confidence"}),
)  # fmt: skip


_KEYS = [key for _, _, names in _CURVE for key in names]


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
    """What the automatic choice weighed, by particles kept; nothing where selection.json does not tell."""
    found = selection.get("auto") or {}
    curve = found.get("curve") or []
    if len(curve) < 2:
        return ()
    columns = {key: np.array([_number(point.get(key)) for point in curve]) for key in ("kept", *_KEYS)}
    chosen = found.get("chosen")
    marks = () if chosen is None else (Mark("x", float(columns["kept"][int(chosen)]), "chosen"),)
    charts = []
    for title, label, names in _CURVE:
        known = {key: words for key, words in names.items() if np.isfinite(columns[key]).any()}
        lines = tuple(Line(words, columns["kept"], columns[key], points=True) for key, words in known.items())
        if lines:
            charts.append(LineChart(title, Axis("particles kept"), Axis(label), lines, marks))
    return tuple(charts)


def _number(value: Any) -> float:
    return float(value) if isinstance(value, int | float) else float("nan")
