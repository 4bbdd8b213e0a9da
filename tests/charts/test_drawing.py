"""Every kind of chart, drawn both ways, also where there is next to nothing to show."""

from __future__ import annotations

import io

import numpy as np
import pytest
from bokeh.models.annotations import Span
from bokeh.models.glyphs import Line as GlyphLine
from matplotlib.figure import Figure

from cryoforum_plugin.charts.charts import (
    COLOURS,
    Axis,
    Chart,
    DirectionMap,
    DirectionSpots,
    Histogram,
    ImagePairs,
    Line,
    LineChart,
    Mark,
)
from cryoforum_plugin.charts.figures import draw, table_figure
from cryoforum_plugin.charts.plots import plot

X, Y = Axis("frequency (1/Å)", reciprocal=True), Axis("error (deg)", log=True)
MARKS = (
    Mark("x", 0.2, "chosen", "confidence"),
    Mark("y", 2.0, "2"),
    Mark("diagonal"),
    Mark("x", 0.3, "before"),
)
LINES = (
    Line("many", np.linspace(0.01, 1, 20), np.linspace(1, 100, 20)),
    Line("gap", np.array([0.1, 0.2, 0.3]), np.array([1.0, np.nan, 3.0]), points=True),
    Line("one", np.array([0.5]), np.array([7.0])),
)
CHARTS: dict[str, Chart] = {
    "lines": LineChart("Lines", X, Y, LINES, MARKS),
    "no line": LineChart("Lines", X, Axis("y"), ()),
    "histogram": Histogram(
        "Counts", Axis("x"), Axis("n"), np.arange(4.0), {"a": np.array([1, 2, 3]), "b": np.array([0, 1, 0])}, MARKS[:1]
    ),
    "empty histogram": Histogram("Counts", Axis("x"), Axis("n"), np.arange(3.0), {"a": np.zeros(2, dtype=np.int64)}),
    "map": DirectionMap("Views", np.arange(18.0).reshape(3, 6), "density (1 = uniform)", 17.0),
    "spots": DirectionSpots(
        "Errors", np.array([-170.0, 20.0]), np.array([10.0, 90.0]), np.array([1.0, 5.0]), np.array([3, 100]), "error (deg)"
    ),
    "equal spots": DirectionSpots("Errors", np.zeros(1), np.zeros(1), np.ones(1), np.array([0]), "error (deg)"),
}  # fmt: skip


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=40)
    return buffer.getvalue()


@pytest.mark.parametrize("name", CHARTS)
def test_charts_are_drawn_both_ways_with_the_same_labels(name: str) -> None:
    chart = CHARTS[name]
    figure, drawn = draw(chart), plot(chart)
    axes = figure.axes[0]
    assert png(figure)
    assert axes.get_title() == drawn.title.text == chart.title
    assert (axes.get_xlabel(), axes.get_ylabel()) == (
        drawn.xaxis[0].axis_label,
        drawn.yaxis[0].axis_label,
    )


def test_lines_differ_by_more_than_colour() -> None:
    found = [renderer.glyph for renderer in plot(CHARTS["lines"]).renderers]
    lines = [glyph for glyph in found if isinstance(glyph, GlyphLine)]
    assert [glyph.line_color for glyph in lines] == list(COLOURS[:3])
    assert len({str(glyph.line_dash) for glyph in lines}) == 3


def test_only_a_line_that_moves_has_a_name() -> None:
    spans = plot(CHARTS["lines"]).select({"type": Span})
    assert sorted(str(span.name) for span in spans) == ["None", "None", "confidence"]


def test_a_frequency_axis_starts_where_it_is_told() -> None:
    figure = draw(LineChart("FSC", Axis("f", limits=(0, 2)), Axis("y", limits=(-0.3, 1)), LINES))
    assert figure.axes[0].get_xlim() == (0, 2)
    assert figure.axes[0].get_ylim() == (-0.3, 1)


def test_image_pairs_stand_below_each_other() -> None:
    images = np.random.default_rng(1).standard_normal((4, 8, 8))
    figure = draw(ImagePairs("Examples", ("sure", "unsure"), images, -images, ("a", "b", "c", "d")))
    shown = [axes.images[0].get_array() for axes in figure.axes]
    np.testing.assert_array_equal(
        shown, np.stack([images[:2], -images[:2], images[2:], -images[2:]]).reshape(8, 8, 8)
    )
    assert png(figure)


def test_text_page() -> None:
    assert png(table_figure("Settings", [("epochs", "3"), ("symmetry", "C1")]))
