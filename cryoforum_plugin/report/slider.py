"""The slider of a page: it looks up what was worked out for each threshold, and moves the lines that mark it."""

from __future__ import annotations

from collections.abc import Sequence

from bokeh.models import CustomJS, CustomJSTickFormatter
from bokeh.models.annotations import Span
from bokeh.models.widgets import Slider

from cryoforum_plugin.charts.plots import Plot
from cryoforum_plugin.report.threshold_charts import places_of, threshold_texts
from cryoforum_plugin.report.thresholds import Thresholds

_LOOK_UP = """
const i = slider.value
for (const line of lines) line.location = places[line.name][i]
for (const [place, list] of Object.entries(texts)) document.getElementById(place).textContent = list[i]
"""


def place_of(name: str) -> str:
    """Id of the element of the page that shows a text."""
    return "threshold-" + name.replace(" ", "-")


def threshold_slider(found: Thresholds, plots: Sequence[Plot]) -> Slider:
    """Slider over the thresholds; `plots` are those whose lines it moves."""
    places = {name: at.tolist() for name, at in places_of(found).items()}
    lines = [span for plot in plots for name in places for span in plot.select({"type": Span, "name": name})]
    slider = Slider(
        start=0, end=max(len(found.texts) - 1, 1), step=1, value=found.start, title="confidence at least",
        format=CustomJSTickFormatter(args={"texts": list(found.texts)}, code="return texts[Math.round(tick)] ?? ''"),
        sizing_mode="stretch_width",
    )  # fmt: skip
    texts = {place_of(name): list(values) for name, values in threshold_texts(found).items()}
    arguments = {"slider": slider, "lines": lines, "places": places, "texts": texts}
    slider.js_on_change("value", CustomJS(args=arguments, code=_LOOK_UP))
    return slider
