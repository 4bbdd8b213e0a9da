"""Charts of training, FSC, the automatic choice, and of how errors and uncertainties agree."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from cryoforum_plugin.charts.charts import DirectionSpots, LineChart
from cryoforum_plugin.charts.figures import draw
from cryoforum_plugin.charts.plots import plot
from cryoforum_plugin.report.reliability import reliability_charts, reliability_rows
from cryoforum_plugin.report.run_charts import fsc_curves, selection_curve, training_curves

RELIABILITY: dict[str, Any] = {
    "particles": 250,
    "coverage": {"levels": [0.05, 0.5, 0.99], "found": [0.04, 0.52, 0.98]},
    "quintiles": [
        {"expected_deg": 1.0 + i, "actual_deg": 1.1 + i, "coverage_90": 0.9, "n": 50} for i in range(5)
    ],
    "directions": [
        {"rot_deg": 10.0, "tilt_deg": 90.0, "n": 40, "expected_deg": 1.0, "actual_deg": 2.0, "coverage_90": 0.8},
        {"rot_deg": -90.0, "tilt_deg": 0.0, "n": 0, "expected_deg": None, "actual_deg": None, "coverage_90": None},
    ],
    "confidence": {"predicted": [0.1, 0.9], "observed": [0.2, 0.8], "n": [100, 150]},
    "risk_coverage": {"kept": [0.1, 0.5, 1.0], "mean_error_deg": [1.0, 1.5, 4.0]},
    "brier": 0.08,
    "aurc_deg": 1.7,
    "spearman": None,
}  # fmt: skip


@pytest.mark.parametrize("epochs", [1, 2, 30])
def test_training_curves(epochs: int) -> None:
    epoch = np.arange(1.0, epochs + 1)
    metrics = {
        "epoch": epoch,
        "train_loss": -epoch,
        "validation_loss": np.full(epochs, np.nan),
        "validation_median_deg": 90 / epoch,
    }
    loss, error = training_curves(metrics)
    assert [line.name for line in loss.lines] == ["training"]
    assert "(deg)" in error.y.label
    assert len(draw(loss, error).axes) == 2
    assert plot(loss).renderers


def test_fsc_curves_leave_out_the_origin() -> None:
    resolution_A = np.r_[np.inf, 96 / np.arange(1, 17)]
    chart = fsc_curves({"all": (resolution_A, np.linspace(1, -0.2, 17))})
    assert len(chart.lines[0].x) == 16
    assert chart.y.limits is not None
    assert chart.y.limits[0] <= -0.2


def test_reliability_is_drawn_for_every_set_that_has_it() -> None:
    sets = {"validation": RELIABILITY, "evaluation.json": {"coverage": RELIABILITY["coverage"], "brier": 0.2}}
    charts = reliability_charts(sets)
    names = [chart.title for chart in charts]
    assert names == [
        "Credible balls", "Error, by fifths of the particles", "Confidence", "Error of the most certain",
        "Error by view, validation", "Coverage by view, validation",
    ]  # fmt: skip
    balls, fifths = charts[:2]
    assert isinstance(balls, LineChart)
    assert isinstance(fifths, LineChart)
    assert [line.name for line in balls.lines] == ["validation", "evaluation.json"]
    np.testing.assert_array_equal(fifths.lines[0].y, [1.1, 2.1, 3.1, 4.1, 5.1])
    spots = charts[4]
    assert isinstance(spots, DirectionSpots)
    np.testing.assert_array_equal(spots.values, [2.0])  # an empty direction says nothing
    assert len(draw(*charts).axes) == 6 + 2  # two with colour bars
    for chart in charts:
        assert plot(chart).renderers
    rows = dict(reliability_rows(sets))
    assert rows["Brier score of the confidence, evaluation.json"] == "0.2"
    assert not any("rank correlation" in name for name in rows)


def test_models_without_these_figures_show_none() -> None:
    assert reliability_charts({}) == ()
    assert reliability_charts({"validation": {}}) == ()


def test_the_automatic_choice_is_marked() -> None:
    curve = [
        {"threshold": t, "kept": n, "score": 1 - abs(t - 0.5), "resolution_A": None, "view_coverage": 0.9}
        for t, n in ((0.1, 90), (0.5, 60), (0.9, 20))
    ]
    charts = selection_curve({"auto": {"curve": curve, "chosen": 1}})
    assert [chart.title for chart in charts] == ["Clarity", "View coverage", "Smallest confidence"]
    assert {chart.marks[0].value for chart in charts} == {60}
    assert selection_curve({"criteria": [], "auto": None}) == ()
