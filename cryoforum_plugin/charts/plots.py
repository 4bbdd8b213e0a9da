"""Charts drawn by Bokeh: plots of a web page that show values under the pointer."""

from __future__ import annotations

from collections.abc import Sequence
from functools import singledispatch

import numpy as np
from bokeh.models import (
    BasicTickFormatter,
    CustomJSTickFormatter,
    DataRange1d,
    FixedTicker,
    HoverTool,
    LinearColorMapper,
    Range,
)
from bokeh.models.annotations import ColorBar, Label, Slope, Span, Title
from bokeh.plotting import figure

from cryoforum_plugin.charts.charts import (
    COLOURS,
    DASHES,
    GREY,
    VERMILION,
    Axis,
    Chart,
    DirectionMap,
    DirectionSpots,
    Histogram,
    LineChart,
    Mark,
)

Plot = figure
HEIGHT_PX = 300
_PALETTE = "Cividis256"
_LOG_TICKS = [digit * 10.0**power for power in range(-4, 5) for digit in (1, 2, 5)]


def plot(chart: Chart) -> Plot:
    """Draw a chart as wide as the page gives it room. Images are no plots (NotImplementedError)."""
    drawn = _plot(chart)
    drawn.toolbar.autohide = True
    drawn.toolbar.logo = None
    assert isinstance(drawn.title, Title)
    drawn.title.text_font_size = "13px"
    drawn.grid.grid_line_alpha = 0.4
    for axis in drawn.axis:
        axis.axis_label_text_font_style = "normal"
    for legend in list(drawn.legend):
        drawn.center.remove(legend)
        if len(legend.items) > 1:
            drawn.add_layout(legend, "above")
        legend.update(
            click_policy="hide", orientation="horizontal", ncols=3, border_line_color=None, margin=0, padding=2, spacing=14,
            label_text_font_size="12px",
        )  # fmt: skip
    return drawn


@singledispatch
def _plot(chart: Chart) -> Plot:
    raise NotImplementedError(type(chart))


@_plot.register
def _(chart: LineChart) -> Plot:
    drawn = _frame(chart.title, chart.x, chart.y)
    for position, line in enumerate(chart.lines):
        colour, dash = COLOURS[position % len(COLOURS)], DASHES[position % len(DASHES)]
        data = {"x": line.x, "y": line.y}
        drawn.line("x", "y", source=data, color=colour, line_dash=dash, line_width=2, legend_label=line.name)
        if line.points or np.isfinite(line.y).sum() == 1:
            drawn.scatter("x", "y", source=data, color=colour, size=7, legend_label=line.name)
    drawn.add_tools(HoverTool(tooltips=[(chart.x.label, "@x"), (chart.y.label, "@y")], mode="mouse"))
    _mark(drawn, chart.marks)
    return drawn


@_plot.register
def _(chart: Histogram) -> Plot:
    drawn = _frame(chart.title, chart.x, chart.y)
    for position, (name, counts) in enumerate(chart.counts.items()):
        colour = COLOURS[position % len(COLOURS)]
        data = {"left": chart.edges[:-1], "right": chart.edges[1:], "top": counts}
        filled = 0.45 if position == 0 else 0.0
        bars = drawn.quad(
            left="left", right="right", top="top", bottom=0, source=data, fill_color=colour, fill_alpha=filled,
            line_color=None, legend_label=name,
        )  # fmt: skip
        if position:
            drawn.step(
                chart.edges, np.append(counts, counts[-1:]).astype(np.float64), mode="after", color=colour, line_width=2,
                line_dash=DASHES[position % len(DASHES)], legend_label=name,
            )  # fmt: skip
        tips = [(chart.x.label, "@left to @right"), (f"{name}: {chart.y.label}", "@top")]
        drawn.add_tools(HoverTool(tooltips=tips, renderers=[bars]))
    _limit(drawn.y_range, 0, None)
    _mark(drawn, chart.marks)
    return drawn


@_plot.register
def _(chart: DirectionMap) -> Plot:
    drawn = _directions(chart.title)
    colours = LinearColorMapper(palette=_PALETTE, low=0, high=chart.highest)
    drawn.image(image=[chart.values], x=-180, y=-1, dw=360, dh=2, color_mapper=colours)  # type: ignore[call-arg]
    drawn.add_tools(
        HoverTool(tooltips=[("rot (deg)", "$x{0}"), ("cos(tilt)", "$y"), (chart.label, "@image")])
    )
    drawn.add_layout(ColorBar(color_mapper=colours, title=chart.label), "right")
    return drawn


@_plot.register
def _(chart: DirectionSpots) -> Plot:
    drawn = _directions(chart.title, margin=0.08)
    colours = LinearColorMapper(
        palette=_PALETTE, low=float(chart.values.min()), high=float(chart.values.max()) + 1e-9
    )
    size = 18 * np.sqrt(chart.count / max(int(chart.count.max()), 1))
    data = {
        "rot": chart.rot_deg, "cos_tilt": np.cos(np.radians(chart.tilt_deg)), "value": chart.values, "n": chart.count,
        "size": size,
    }  # fmt: skip
    drawn.scatter("rot", "cos_tilt", size="size", source=data, color={"field": "value", "transform": colours})
    tips = [("rot (deg)", "@rot"), ("cos(tilt)", "@cos_tilt"), (chart.label, "@value"), ("particles", "@n")]
    drawn.add_tools(HoverTool(tooltips=tips))
    drawn.add_layout(ColorBar(color_mapper=colours, title=chart.label), "right")
    return drawn


def _frame(title: str, x: Axis, y: Axis) -> Plot:
    drawn = figure(
        title=title, x_axis_label=x.label, y_axis_label=y.label, height=HEIGHT_PX, sizing_mode="stretch_width",
        x_axis_type="log" if x.log else "linear", y_axis_type="log" if y.log else "linear",
        tools="box_zoom,reset,save",
    )  # fmt: skip
    for axis, ticks, extent in ((x, drawn.xaxis, drawn.x_range), (y, drawn.yaxis, drawn.y_range)):
        if axis.log:
            ticks[0].ticker = FixedTicker(ticks=_LOG_TICKS)
        ticks[0].formatter = BasicTickFormatter(use_scientific=False)
        if axis.reciprocal:
            ticks[0].formatter = CustomJSTickFormatter(
                code="return tick > 0 ? '1/' + Number((1 / tick).toPrecision(3)) : '0'"
            )
        if axis.limits is not None:
            _limit(extent, *axis.limits)
    return drawn


def _limit(extent: Range, start: float, end: float | None) -> None:
    assert isinstance(extent, DataRange1d)
    extent.start = start
    if end is not None:
        extent.end = end


def _directions(title: str, margin: float = 0.0) -> Plot:
    x = Axis("rot (deg)", limits=(-180 * (1 + margin), 180 * (1 + margin)))
    y = Axis("cos(tilt)", limits=(-1 - margin, 1 + margin))
    drawn = _frame(title, x, y)
    drawn.xaxis[0].ticker = FixedTicker(ticks=[-180, -90, 0, 90, 180])
    drawn.grid.visible = False
    return drawn


def _mark(drawn: Plot, marks: Sequence[Mark]) -> None:
    for mark in marks:
        if mark.along == "diagonal":
            drawn.add_layout(Slope(gradient=1, y_intercept=0, line_color=GREY, line_dash="dotted"))
            continue
        span = Span(
            location=mark.value, dimension="height" if mark.along == "x" else "width",
            line_color=VERMILION if mark.moves else GREY, line_dash="dashed" if mark.moves else "dotted",
            line_width=2 if mark.moves else 1, name=mark.moves or None,
        )  # fmt: skip
        drawn.add_layout(span)
        if mark.along == "x" and mark.label and not mark.moves:
            drawn.add_layout(
                Label(x=mark.value, y=2, y_units="screen", text=mark.label, text_font_size="11px", text_color=GREY, angle=90, angle_units="deg")
            )  # fmt: skip
        if mark.along == "y" and mark.label:
            drawn.add_layout(
                Label(x=2, x_units="screen", y=mark.value, text=mark.label, text_font_size="11px", text_color=GREY)
            )  # fmt: skip
