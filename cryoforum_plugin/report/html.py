"""The report of a run: one HTML file that needs nothing else, or a PDF."""

from __future__ import annotations

import base64
import io
import textwrap
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import jinja2
import numpy as np
from matplotlib.backends.backend_pdf import PdfPages
from matplotlib.figure import Figure

from cryoforum_plugin import __version__
from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.particles import FloatArray, ParticleSet
from cryoforum_plugin.report import figures
from cryoforum_plugin.report.collect import Rows, Run, collect_run

_ROWS_ON_PAGE = 60


class Panel(NamedTuple):
    """A figure with the sentence that says how to read it."""

    title: str
    caption: str
    figure: Figure


def write_report(
    directory: Path,
    *outputs: Path,
    overwrite: bool = True,
    tables: Mapping[str, ParticleSet] | None = None,
) -> None:
    """Write the report of a model directory or run folder to each of `outputs`: PDF for .pdf, else HTML.

    tables : see `collect_run`. Raises ModelError when there is nothing to show, OutputError when an output
    cannot be written.
    """
    run = collect_run(directory, tables)
    for output in outputs:
        with atomic_file(output, overwrite) as temporary:
            if output.suffix.lower() == ".pdf":
                _write_pdf(run, temporary)
            else:
                temporary.write_text(render_html(run), encoding="utf-8")


def render_html(run: Run) -> str:
    """Fill the template; figures go in as base64 PNG, so that the page loads nothing."""
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("cryoforum_plugin.report", "."), autoescape=True, trim_blocks=True
    )
    panels = [
        {"title": panel.title, "caption": panel.caption, "png": _png_base64(panel.figure)}
        for panel in panels_of(run)
    ]
    page = environment.get_template("template.html.j2")
    return page.render(run=run, panels=panels, summary=summarise(run), version=__version__)


def summarise(run: Run) -> Rows:
    """The few figures a reader looks for first."""
    rows: Rows = []
    best = run.metrics.get("validation_median_deg", np.empty(0))
    if np.isfinite(best).any():
        epoch = run.metrics["epoch"][int(np.nanargmin(best))]
        rows.append(("best validation median error", f"{np.nanmin(best):.3f} deg (epoch {epoch:g})"))
    seconds = run.metrics.get("seconds", np.empty(0))
    if np.isfinite(seconds).any():
        rows.append(("epochs", str(len(run.metrics["epoch"]))))
    if run.suspects is not None:
        rows.append(("particles whose own pose is implausible", str(run.suspects.count)))
    for name, particles in run.tables.items():
        if particles.prediction is not None:
            mean = float(particles.prediction.confidence.mean())
            rows.append((name, f"{len(particles)} particles, mean confidence {mean:.3f}"))
    for name, (resolution_A, fsc) in run.fsc.items():
        rows.append((f"resolution at FSC 0.143, {name}", resolution_text(resolution_A, fsc)))
    return rows


def resolution_text(resolution_A: FloatArray, fsc: FloatArray, level: float = 0.143) -> str:
    """Resolution at which `fsc` `(s,)` first falls below `level`, in words; linear between shells."""
    below = np.flatnonzero(fsc < level)
    if len(below) == 0:
        return f"{resolution_A[-1]:.2f} Å (last shell; never below {level:g})"
    shell = int(below[0])
    if shell == 0 or not np.isfinite(resolution_A[shell - 1]):
        return f"none (below {level:g} from the first shell)"
    before, after = 1 / resolution_A[shell - 1], 1 / resolution_A[shell]
    part = (fsc[shell - 1] - level) / (fsc[shell - 1] - fsc[shell])
    return f"{1 / (before + part * (after - before)):.2f} Å"


def panels_of(run: Run) -> Iterator[Panel]:
    """Yield the figures that the run has data for."""
    if run.metrics and "epoch" in run.metrics:
        yield Panel(
            "Training",
            "The validation particles were not learned from. A validation loss that rises while the training "
            "loss falls means overfitting.",
            figures.training_curves(run.metrics),
        )
    yield from _table_panels(run)
    if run.fsc:
        yield Panel(
            "Resolution",
            "Half maps against each other, within a soft sphere or the given mask. Poses that one network predicted "
            "for both halves are not independent: for a gold-standard resolution refine the halves from them.",
            figures.fsc_curves(run.fsc),
        )


def _table_panels(run: Run) -> Iterator[Panel]:
    tables = dict(sorted(run.tables.items(), key=lambda item: -len(item[1])))
    views = {name: table.rotation for name, table in tables.items() if table.rotation is not None}
    if views:
        yield Panel("Views", "Each cell covers the same solid angle.", figures.view_distributions(views))
    predictions = {name: table.prediction for name, table in tables.items() if table.prediction is not None}
    if predictions:
        confidences = {name: prediction.confidence for name, prediction in predictions.items()}
        selected = [values for name, values in confidences.items() if "select" in name]
        yield Panel(
            "Confidence",
            "Calibrated on held-out particles: of those with confidence c, a fraction c should be within the "
            "target angle.",
            figures.confidence_histogram(confidences, float(selected[0].min()) if selected else None),
        )
    errors = {
        name: prediction.expected_error_deg
        for name, prediction in predictions.items()
        if prediction.expected_error_deg is not None
    }
    if errors:
        yield Panel(
            "Expected error",
            "180 deg marks particles that could not be read or predicted.",
            figures.expected_error_histogram(errors),
        )


def _png_base64(figure: Figure) -> str:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return base64.b64encode(buffer.getvalue()).decode()


def _write_pdf(run: Run, path: Path) -> None:
    """A page for the settings of the job and what it did, one for each figure, tables, and the warnings."""
    name = run.directory.name
    with PdfPages(path, metadata={"Title": f"cryoforum: {name}"}) as pages:
        _save_rows(pages, f"cryoforum report: {name}", [*summarise(run), ("", ""), *run.job])
        for panel in panels_of(run):
            if len(panel.figure.axes) > 1:  # else the panel carries the title
                panel.figure.suptitle(panel.title)
            characters = int(15 * panel.figure.get_figwidth())
            panel.figure.supxlabel("\n".join(textwrap.wrap(panel.caption, characters)), fontsize="small")
            pages.savefig(panel.figure)
        warnings = [piece for text in run.warnings for piece in textwrap.wrap(text, 105)]
        _save_rows(pages, "Warnings", [(line, "") for line in warnings or ["none"]])
        if run.suspects is not None and run.suspects.first:
            _save_rows(pages, "Particles whose own pose is implausible", run.suspects.first)
        for title, rows in (("Calibration", run.calibration), ("Settings of the training", run.settings)):
            _save_rows(pages, title, rows)


def _save_rows(pages: PdfPages, title: str, rows: Rows) -> None:
    for start in range(0, len(rows), _ROWS_ON_PAGE):
        pages.savefig(figures.table_figure(title, rows[start : start + _ROWS_ON_PAGE]))  # type: ignore[no-untyped-call]
