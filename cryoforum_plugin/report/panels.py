"""The parts of a report, in order: each is drawn on the page, in the PDF, or in a host's log."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from cryoforum_plugin.charts.charts import Chart
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.report.collect import Run
from cryoforum_plugin.report.examples import find_examples
from cryoforum_plugin.report.particle_charts import (
    confidence_histogram,
    expected_error_histogram,
    view_distributions,
)
from cryoforum_plugin.report.reliability import reliability_charts
from cryoforum_plugin.report.resolution import KnownSignal, of_half_maps, of_model
from cryoforum_plugin.report.run_charts import fsc_curves, selection_curve, training_curves
from cryoforum_plugin.report.threshold_charts import threshold_charts
from cryoforum_plugin.report.thresholds import Thresholds, weigh_thresholds


@dataclass(frozen=True)
class Panel:
    """Charts with the sentence that says how to read them. thresholds : what a slider moves through them."""

    title: str
    caption: str
    charts: tuple[Chart, ...] = ()
    thresholds: Thresholds | None = None


def panels_of(run: Run) -> Iterator[Panel]:
    """Yield the panels that the run has data for."""
    if run.metrics and "epoch" in run.metrics:
        yield Panel(
            "Training",
            "The validation particles were not learned from. A validation loss that rises while the training "
            "loss falls means overfitting.",
            training_curves(run.metrics),
        )
    known = reliability_charts(run.reliability)
    if known:
        yield Panel(
            "Errors and calibration",
            "Particles whose poses are known. On the dotted diagonal, stated and found agree.",
            known,
        )
    tables = dict(sorted(run.tables.items(), key=lambda item: -len(item[1])))
    yield from _table_panels(tables)
    yield from _selection_panels(run, tables)
    if tables:
        yield examples_panel(run)
    if run.fsc:
        yield Panel(
            "Resolution",
            "Half maps against each other, within a soft sphere or the given mask. Poses that one network predicted "
            "for both halves are not independent: for a gold-standard resolution refine the halves from them.",
            (fsc_curves(run.fsc),),
        )


def _table_panels(tables: Mapping[str, ParticleSet]) -> Iterator[Panel]:
    views = {name: table.rotation for name, table in tables.items() if table.rotation is not None}
    if views:
        yield Panel("Views", "Each cell covers the same solid angle.", view_distributions(views))
    predictions = {name: table.prediction for name, table in tables.items() if table.prediction is not None}
    if predictions:
        confidences = {name: prediction.confidence for name, prediction in predictions.items()}
        yield Panel(
            "Confidence",
            "Calibrated on held-out particles: of those with confidence c, a fraction c should be within the "
            "target angle.",
            (confidence_histogram(confidences, smallest_selected(tables)),),
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
            (expected_error_histogram(errors),),
        )


def smallest_selected(tables: Mapping[str, ParticleSet]) -> float | None:
    """Smallest confidence of a table of selected particles, where there is one."""
    for name, table in tables.items():
        if "select" in name and table.prediction is not None:
            return float(table.prediction.confidence.min())
    return None


def _selection_panels(run: Run, tables: Mapping[str, ParticleSet]) -> Iterator[Panel]:
    """What thresholds would do to the largest table, and what the automatic choice saw."""
    if tables:
        yield from _threshold_panel(run, *next(iter(tables.items())), smallest_selected(tables))
    chosen = selection_curve(run.selection)
    if chosen:
        yield Panel("Automatic selection", "What --auto weighed, and what it chose.", chosen)


def _threshold_panel(run: Run, name: str, particles: ParticleSet, start: float | None) -> Iterator[Panel]:
    """Yield what each smallest confidence would keep of a table, where there is anything to choose."""
    signal = _signal(run, name, particles)
    found = weigh_thresholds(particles, run.symmetry, start, signal)
    if found is None or particles.prediction is None:
        return
    caption = (
        "What particles at least as confident would be. View coverage is the factor by which uneven views lower the "
        "signal-to-noise ratio of a map (sampling compensation factor)."
    )
    if len(found.kept) > 2:
        caption += " Of the larger half set the least confident are left out."
    if signal is not None:
        maps = "these particles' half maps" if signal.own else "the training particles"
        caption += f" The resolution is predicted from the FSC of {maps} and the uncertainty of each pose."
    yield Panel(
        "Choose particles", caption, threshold_charts(found, particles.prediction.confidence, name), found
    )


def _signal(run: Run, name: str, particles: ParticleSet) -> KnownSignal | None:
    """What resolutions of parts of a table can be predicted from: its own FSC, or that of the model's reference."""
    stem = name.rpartition(".")[0] or name
    for known in (stem, f"map_{stem}", "all"):
        if known in run.fsc:
            return of_half_maps(*run.fsc[known], len(particles), run.diameter_A)
    return None if run.model is None else of_model(run.model, run.diameter_A)


def examples_panel(run: Run) -> Panel:
    """Images beside projections, or why there are none."""
    found = find_examples(run.tables, run.model)
    if isinstance(found, str):
        return Panel("Examples", f"No example images: {found}.")
    return Panel(
        "Examples",
        "Above each image its confidence and expected error. Low-passed and centred; projections show each image's CTF. The surest images should look like what is below "
        "them; where none does, hand, contrast or frame of the particles may differ from the model's.",
        (found,),
    )
