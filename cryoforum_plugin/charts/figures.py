"""Charts drawn by matplotlib, without a window: for PDF pages and pictures."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import singledispatch

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis as Ticks
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

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
    ImagePairs,
    LineChart,
    Mark,
)

_COLUMNS = 3


def as_written() -> AbstractContextManager[None]:
    """Where texts are made that hold names of files: a $ in them begins no formula."""
    return matplotlib.rc_context({"text.parse_math": False})


def draw(*charts: Chart, width_in: float = 4.6, height_in: float = 3.2) -> Figure:
    """Draw charts side by side, three in a row, four in two rows."""
    columns = 2 if len(charts) == 4 else min(len(charts), _COLUMNS)
    rows = -(-len(charts) // columns)
    scale = 2.2 if isinstance(charts[0], ImagePairs) else 1.0
    size_in = (width_in * columns * scale, height_in * rows * scale)
    figure = Figure(figsize=size_in, layout="constrained")
    panels = figure.subfigures(rows, columns, squeeze=False).flatten()
    with as_written():
        for panel, chart in zip(panels, charts, strict=False):
            _draw(chart, panel)
    return figure


@singledispatch
def _draw(chart: Chart, panel: SubFigure) -> None:
    raise NotImplementedError(type(chart))


@_draw.register
def _(chart: LineChart, panel: SubFigure) -> None:
    axes = panel.subplots()
    for position, line in enumerate(chart.lines):
        marker = "o" if line.points or np.isfinite(line.y).sum() == 1 else None
        axes.plot(
            line.x, line.y, color=COLOURS[position % len(COLOURS)], linestyle=DASHES[position % len(DASHES)],
            marker=marker, markersize=4, label=line.name,
        )  # fmt: skip
    _finish(axes, chart.title, chart.x, chart.y, chart.marks)


@_draw.register
def _(chart: Histogram, panel: SubFigure) -> None:
    axes = panel.subplots()
    for position, (name, counts) in enumerate(chart.counts.items()):
        colour = COLOURS[position % len(COLOURS)]
        if position == 0:
            axes.stairs(counts, chart.edges, fill=True, color=colour, alpha=0.45, label=name)
        else:
            axes.stairs(counts, chart.edges, color=colour, linewidth=1.8, label=name)
    _finish(axes, chart.title, chart.x, chart.y, chart.marks)


@_draw.register
def _(chart: DirectionMap, panel: SubFigure) -> None:
    axes = panel.subplots()
    image = axes.imshow(
        chart.values, origin="lower", extent=(-180, 180, -1, 1), aspect="auto", vmin=0, vmax=chart.highest,
        cmap="cividis",
    )  # fmt: skip
    _finish_directions(axes, chart.title)
    panel.colorbar(image, ax=axes, label=chart.label, shrink=0.9)


@_draw.register
def _(chart: DirectionSpots, panel: SubFigure) -> None:
    axes = panel.subplots()
    area = 140 * chart.count / max(int(chart.count.max()), 1)
    spots = axes.scatter(
        chart.rot_deg, np.cos(np.radians(chart.tilt_deg)), s=area, c=chart.values, cmap="cividis"
    )
    axes.set(xlim=(-185, 185), ylim=(-1.05, 1.05))
    _finish_directions(axes, chart.title)
    panel.colorbar(spots, ax=axes, label=chart.label, shrink=0.9)


@_draw.register
def _(chart: ImagePairs, panel: SubFigure) -> None:
    rows = len(chart.rows)
    columns = -(-len(chart.images) // rows)
    grid = panel.subplots(2 * rows, columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for number, (image, expected) in enumerate(zip(chart.images, chart.expected, strict=True)):
        row, column = 2 * (number // columns), number % columns
        grid[row, column].imshow(image, cmap="gray")
        grid[row, column].set_title(chart.captions[number], fontsize="small")
        grid[row + 1, column].imshow(expected, cmap="gray")
    for row, name in enumerate(chart.rows):
        for axes, text in ((grid[2 * row, 0], name), (grid[2 * row + 1, 0], "projection")):
            axes.text(-0.08, 0.5, text, transform=axes.transAxes, rotation=90, ha="right", va="center")


def _finish(axes: Axes, title: str, x: Axis, y: Axis, marks: Sequence[Mark]) -> None:
    axes.set(xlabel=x.label, ylabel=y.label, title=title)
    axes.spines[["top", "right"]].set_visible(False)
    for axis, ticks, scale, limit in (
        (x, axes.xaxis, axes.set_xscale, axes.set_xlim),
        (y, axes.yaxis, axes.set_yscale, axes.set_ylim),
    ):
        if axis.log:
            scale("log")
            _plain_log_ticks(ticks)
        if axis.reciprocal:
            ticks.set_major_formatter(FuncFormatter(_as_resolution))
        if axis.limits is not None:
            limit(axis.limits)
    for mark in marks:
        _draw_mark(axes, mark)
    if len(axes.get_legend_handles_labels()[1]) > 1:
        axes.legend(frameon=False, fontsize="small")


def _draw_mark(axes: Axes, mark: Mark) -> None:
    if mark.moves:
        axes.axvline(mark.value, color=VERMILION, linestyle="--", label=mark.label)
    elif mark.along == "x":
        axes.axvline(mark.value, color=GREY, linewidth=0.8, linestyle=":", label=mark.label)
    elif mark.along == "diagonal":
        axes.axline((1, 1), (2, 2), color=GREY, linewidth=0.8, linestyle=":")
    else:
        axes.axhline(mark.value, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            mark.label, (1, mark.value), xycoords=("axes fraction", "data"), fontsize="small", color=GREY
        )


def _finish_directions(axes: Axes, title: str) -> None:
    axes.set(xlabel="rot (deg)", ylabel="cos(tilt)", title=title)
    axes.set_xticks([-180, -90, 0, 90, 180])


def _plain_log_ticks(axis: Ticks) -> None:
    """Label a logarithmic axis 1, 2, 5, 10, ... instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _as_resolution(frequency: float, _: object) -> str:
    return f"1/{1 / frequency:.3g}" if frequency > 0 else "0"


_CHARACTER = 0.0078  # width of one on the page


def table_figure(title: str, rows: Sequence[tuple[str, str]]) -> Figure:
    """Make a page of text (A4 portrait) with up to about 60 names and values."""
    figure = Figure(figsize=(8.27, 11.69))
    with as_written():
        figure.text(0.08, 0.95, title, fontsize=15, fontweight="bold")
        for line, (name, value) in enumerate(rows):
            figure.text(0.08, 0.92 - 0.0145 * line, name, fontsize=7.5, family="monospace")
            after = max(0.48, 0.09 + _CHARACTER * len(name))
            figure.text(after, 0.92 - 0.0145 * line, value[:68], fontsize=7.5, family="monospace")
    return figure
