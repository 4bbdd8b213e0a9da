"""The report of a run as one HTML file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from typing import Any

import jinja2
from bokeh.embed import components
from bokeh.model import Model
from bokeh.resources import Resources
from markupsafe import Markup

from cryoforum_plugin import __version__
from cryoforum_plugin.charts.charts import ImagePairs
from cryoforum_plugin.charts.figures import draw
from cryoforum_plugin.charts.plots import plot
from cryoforum_plugin.report.collect import Run
from cryoforum_plugin.report.panels import Panel
from cryoforum_plugin.report.reliability import reliability_rows
from cryoforum_plugin.report.slider import place_of, threshold_slider
from cryoforum_plugin.report.summary import data_rows, summarise
from cryoforum_plugin.report.threshold_charts import threshold_texts


def render_html(run: Run, shown: Sequence[Panel]) -> str:
    """Fill the template; plots, pictures and the library that shows them go in, so that the page loads nothing."""
    plots: dict[str, Model] = {}
    panels = [_described(panel, number, plots) for number, panel in enumerate(shown)]
    script, divisions = components(plots) if plots else ("", {})
    for panel in panels:
        panel["plots"] = [Markup(divisions[name]) for name in panel["plots"]]
        panel["slider"] = Markup(divisions[panel["slider"]]) if panel["slider"] else ""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cryoforum_plugin.report", "."), autoescape=True, trim_blocks=True
    )
    library = Resources(mode="inline", components=["bokeh", "bokeh-widgets"]).render() if plots else ""
    return environment.get_template("template.html.j2").render(
        run=run,
        panels=panels,
        summary=summarise(run),
        data=data_rows(run.tables),
        reliability=reliability_rows(run.reliability),
        version=__version__,
        library=Markup(library),
        script=Markup(script),
    )


def _described(panel: Panel, number: int, plots: dict[str, Model]) -> dict[str, Any]:
    """What the template needs of a panel; its plots are added to `plots`."""
    pictures = [chart for chart in panel.charts if isinstance(chart, ImagePairs)]
    drawn = {
        f"plot-{number}-{place}": plot(chart)
        for place, chart in enumerate(panel.charts)
        if not isinstance(chart, ImagePairs)
    }
    plots |= drawn
    slider, texts = "", dict[str, tuple[str, str]]()
    if panel.thresholds is not None:
        slider = f"slider-{number}"
        plots[slider] = threshold_slider(panel.thresholds, list(drawn.values()))
        texts = _first_texts(threshold_texts(panel.thresholds), panel.thresholds.start)
    return {
        "title": panel.title,
        "caption": panel.caption,
        "pictures": [{"alt": chart.title, "png": _png_base64(chart)} for chart in pictures],
        "plots": list(drawn),
        "slider": slider,
        "texts": texts,
    }


def _first_texts(texts: Mapping[str, list[str]], start: int) -> dict[str, tuple[str, str]]:
    """Name -> (place on the page, text) where the slider begins."""
    return {name: (place_of(name), values[start]) for name, values in texts.items()}


def _png_base64(chart: ImagePairs) -> str:
    buffer = io.BytesIO()
    draw(chart).savefig(buffer, format="png", dpi=110)
    return base64.b64encode(buffer.getvalue()).decode()
