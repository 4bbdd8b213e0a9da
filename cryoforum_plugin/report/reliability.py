"""Charts of how errors and uncertainties agree, for particles whose poses are known.

Figures are those of `reliability` in calibration.json and evaluation.json (docs/files.md); a part that is absent is
left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from cryoforum_plugin.charts.charts import Axis, Chart, DirectionSpots, Line, LineChart, Mark
from cryoforum_plugin.particles import FloatArray
from cryoforum_plugin.report.files import Rows
from cryoforum_plugin.report.particle_charts import CONFIDENCE

Figures = Mapping[str, Any]
_NUMBERS = {"particles": "particles", "brier": "Brier score of the confidence", "spearman": "rank correlation of "
            "expected with actual error", "aurc_deg": "area under the risk-coverage curve (deg)"}  # fmt: skip


def reliability_charts(sets: Mapping[str, Figures]) -> tuple[Chart, ...]:
    """Everything that the named sets of figures have; directions of the first that has them."""
    lines = (
        _lines("Credible balls", Axis("stated probability", limits=(0, 1)), Axis("part of the errors inside", limits=(0, 1)),
               _columns(sets, "coverage", "levels", "found"), diagonal=True),
        _lines("Error, by fifths of the particles", Axis("mean expected error (deg)", log=True),
               Axis("mean actual error (deg)", log=True), _rows(sets, "quintiles", "expected_deg", "actual_deg"),
               diagonal=True),
        _lines("Confidence", Axis(CONFIDENCE, limits=(0, 1)), Axis("part with an error below that", limits=(0, 1)),
               _columns(sets, "confidence", "predicted", "observed"), diagonal=True),
        _lines("Error of the most certain", Axis("part kept, the most certain", limits=(0, 1)),
               Axis("mean actual error (deg)"), _columns(sets, "risk_coverage", "kept", "mean_error_deg"), points=False),
    )  # fmt: skip
    return (*(chart for chart in lines if chart is not None), *_directions(sets))


def reliability_rows(sets: Mapping[str, Figures]) -> Rows:
    """Single figures of each named set."""
    return [
        (f"{words}, {name}", f"{figures[key]:.4g}")
        for name, figures in sets.items()
        for key, words in _NUMBERS.items()
        if isinstance(figures.get(key), int | float)
    ]


def _lines(
    title: str, x: Axis, y: Axis, found: list[Line], diagonal: bool = False, points: bool = True
) -> LineChart | None:
    """Chart of the found lines; a perfect one would lie on the diagonal."""
    if not found:
        return None
    lines = tuple(Line(line.name, line.x, line.y, points) for line in found)
    return LineChart(title, x, y, lines, (Mark("diagonal"),) if diagonal else ())


def _columns(sets: Mapping[str, Figures], part: str, x: str, y: str) -> list[Line]:
    """Lines of figures {part: {x: [...], y: [...]}}."""
    known = {name: figures[part] for name, figures in sets.items() if figures.get(part)}
    return [
        Line(name, _array(values[x]), _array(values[y])) for name, values in known.items() if values.get(x)
    ]


def _rows(sets: Mapping[str, Figures], part: str, x: str, y: str) -> list[Line]:
    """Lines of figures {part: [{x: ..., y: ...}, ...]}."""
    known = {name: figures[part] for name, figures in sets.items() if figures.get(part)}
    return [
        Line(name, _array([row[x] for row in rows]), _array([row[y] for row in rows]))
        for name, rows in known.items()
    ]


def _directions(sets: Mapping[str, Figures]) -> Iterator[DirectionSpots]:
    """Actual error and coverage by viewing direction, where there are particles to tell."""
    for name, figures in sets.items():
        rows = [
            row
            for row in figures.get("directions") or []
            if row.get("n") and row.get("actual_deg") is not None
        ]
        if rows:
            rot, tilt, error = (
                _array([row[key] for row in rows]) for key in ("rot_deg", "tilt_deg", "actual_deg")
            )
            inside = _array([row.get("coverage_90") for row in rows])
            count = np.array([row["n"] for row in rows], dtype=np.int64)
            yield DirectionSpots(f"Error by view, {name}", rot, tilt, error, count, "mean actual error (deg)")
            if np.isfinite(inside).all():
                yield DirectionSpots(
                    f"Coverage by view, {name}", rot, tilt, inside, count, "inside 90 % ball"
                )
            return


def _array(values: Any) -> FloatArray:
    """Numbers, nan for null."""
    return np.array([np.nan if value is None else value for value in values], dtype=np.float64)
