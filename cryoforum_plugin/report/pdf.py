"""The report of a run as a PDF, for RELION's log file."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from pathlib import Path

from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from cryoforum_plugin.charts.figures import as_written, draw, table_figure
from cryoforum_plugin.report.collect import Run
from cryoforum_plugin.report.files import Rows
from cryoforum_plugin.report.panels import Panel
from cryoforum_plugin.report.reliability import reliability_rows
from cryoforum_plugin.report.summary import data_rows, summarise
from cryoforum_plugin.report.threshold_charts import threshold_texts

_ROWS_ON_PAGE = 60


def write_pdf(run: Run, panels: Sequence[Panel], path: Path) -> None:
    """A page for warnings, what the job did and the data, one for each panel, and tables."""
    name = run.directory.name
    with PdfPages(path, metadata={"Title": f"cryoforum: {name}"}) as pages:
        _save_rows(pages, f"cryoforum report: {name}", _first_rows(run))
        for panel in panels:
            _save_panel(pages, panel)
        if run.suspects is not None and run.suspects.first:
            _save_rows(pages, "Particles whose own pose is implausible", run.suspects.first)
        for title, rows in (
            ("Errors and calibration", [*reliability_rows(run.reliability), ("", ""), *run.evaluation]),
            ("Calibration", run.calibration),
            ("Settings of the training", run.settings),
        ):
            _save_rows(pages, title, rows if any(name for name, _ in rows) else [])


def _first_rows(run: Run) -> Rows:
    """Warnings first, then what a reader looks for."""
    warnings = [piece for text in run.warnings for piece in textwrap.wrap(text, 105)]
    rows: Rows = [("Warnings:", ""), *((line, "") for line in warnings or ["none"]), ("", "")]
    rows += summarise(run)
    rows += [("", ""), ("Data", ", ".join(run.tables))] if run.tables else []
    rows += [(name, ", ".join(values)) for name, values in data_rows(run.tables)]
    return [*rows, ("", ""), *run.job]


def panel_figure(panel: Panel) -> Figure:
    """Draw a panel's charts with title and caption; what the slider of the page begins with is told in words."""
    caption = panel.caption
    if panel.thresholds is not None:
        start = panel.thresholds.start
        texts = [f"{name} {values[start]}" for name, values in threshold_texts(panel.thresholds).items()]
        caption += " At the dashed line: " + ", ".join(texts)
    figure = draw(*panel.charts)
    characters = int(15 * figure.get_figwidth())
    with as_written():
        if len(panel.charts) > 1:  # else the chart carries the title
            figure.suptitle(panel.title)
        wrapped = textwrap.wrap(caption, characters, break_on_hyphens=False)
        figure.supxlabel("\n".join(wrapped), fontsize="small")
    return figure


def _save_panel(pages: PdfPages, panel: Panel) -> None:
    if panel.charts:
        pages.savefig(panel_figure(panel))  # type: ignore[no-untyped-call]
    else:
        _save_rows(
            pages,
            panel.title,
            [(line, "") for line in textwrap.wrap(panel.caption, 105, break_on_hyphens=False)],
        )


def _save_rows(pages: PdfPages, title: str, rows: Rows) -> None:
    for start in range(0, len(rows), _ROWS_ON_PAGE):
        pages.savefig(table_figure(title, rows[start : start + _ROWS_ON_PAGE]))  # type: ignore[no-untyped-call]
