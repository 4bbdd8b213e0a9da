"""What thresholds would keep, as charts, as texts, and as commands."""

from __future__ import annotations

import shlex
from dataclasses import replace

from cryoforum_plugin.charts.charts import Axis, Chart, Line, LineChart, Mark
from cryoforum_plugin.particles import FloatArray
from cryoforum_plugin.report.particle_charts import confidence_histogram
from cryoforum_plugin.report.thresholds import Thresholds

_BY_CONFIDENCE, _BY_KEPT = "confidence", "kept"
_KEPT = {"all": "particles kept", "half set 1": "of half set 1", "half set 2": "of half set 2"}


def places_of(found: Thresholds) -> dict[str, FloatArray]:
    """Where the thresholds stand on an axis of confidences, and on one of the percentage kept."""
    return {_BY_CONFIDENCE: found.values, _BY_KEPT: 100.0 * found.kept["all"] / found.total["all"]}


def threshold_charts(found: Thresholds, confidence: FloatArray, name: str) -> tuple[Chart, ...]:
    """Histogram of the confidences `(n,)`, and what the kept particles are worth; the threshold is marked."""
    label, places = f"threshold {found.texts[found.start]}", places_of(found)
    marks = {moves: Mark("x", float(at[found.start]), label, moves) for moves, at in places.items()}
    histogram = replace(confidence_histogram({name: confidence}), marks=(marks[_BY_CONFIDENCE],))
    charts: list[Chart] = [histogram]
    for title, y, values in (
        ("Mean expected error", Axis("expected angular error (deg)"), found.expected_deg),
        ("View coverage", Axis("1 = uniform views", limits=(0.0, 1.05)), found.view_coverage),
        ("Predicted resolution", _resolution_axis(found.resolution_A), found.resolution_A),
    ):
        if values is not None:
            line = Line(title.lower(), places[_BY_KEPT], values)
            x = Axis("particles kept (%)", limits=(0, 100))
            charts.append(LineChart(title, x, y, (line,), (marks[_BY_KEPT],)))
    return tuple(charts)


def _resolution_axis(values: FloatArray | None) -> Axis:
    """As far as twice the best: what a handful of particles would show is of no interest."""
    limits = None
    if values is not None:
        lowest = float(values.min())
        limits = (0.98 * lowest, 1.02 * min(float(values.max()), 2 * lowest))
    return Axis("resolution at FSC 0.143 (Å)", limits=limits)


def threshold_texts(found: Thresholds) -> dict[str, list[str]]:
    """What a page shows at each threshold, by its name; "command" where the table is on disk."""
    texts = {}
    for name, counts in found.kept.items():
        total = found.total[name]
        texts[_KEPT[name]] = [f"{n:,} of {total:,} ({100 * n / total:.1f} %)" for n in counts]
    if found.expected_deg is not None:
        texts["mean expected error"] = [f"{value:.2f} deg" for value in found.expected_deg]
    if found.view_coverage is not None:
        texts["view coverage"] = [f"{value:.2f} (1 = uniform views)" for value in found.view_coverage]
    if found.resolution_A is not None:
        texts["predicted resolution"] = [f"{value:.2f} Å (FSC 0.143)" for value in found.resolution_A]
    if found.source.is_file():
        texts["command"] = [_command(found, position) for position in range(len(found.texts))]
    return texts


def _command(found: Thresholds, position: int) -> str:
    """Return the command that keeps these particles."""
    text = found.texts[position]
    output = found.source.with_name(f"selected_{text}{found.source.suffix}")
    words = ["cryoforum", "select", found.source, "-o", output, "--min-confidence", text]
    return shlex.join(map(str, words))
