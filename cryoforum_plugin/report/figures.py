"""Figures, from arrays: matplotlib objects without a window, colours that colour-blind readers tell apart."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from scipy.spatial.transform import Rotation

from cryoforum_plugin.particles import FloatArray

# Okabe & Ito, "Color universal design" (2008)
BLUE, ORANGE, GREEN, PURPLE, SKY, VERMILION = "#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00"
COLOURS = (BLUE, ORANGE, GREEN, VERMILION, PURPLE, SKY)
GREY = "#666666"


def new_figure(columns: int = 1, width_in: float = 4.6, height_in: float = 3.2) -> tuple[Figure, list[Axes]]:
    """Make a figure with panels side by side."""
    figure = Figure(figsize=(width_in * columns, height_in), layout="constrained")
    return figure, list(figure.subplots(1, columns, squeeze=False)[0])


def _plain(axes: Axes, x: str, y: str, title: str = "") -> None:
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.spines[["top", "right"]].set_visible(False)


def _plain_log_ticks(axis: Axis) -> None:
    """Label a logarithmic axis 1, 2, 5, 10, ... instead of powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _as_resolution(frequency: float, _: object) -> str:
    return f"1/{1 / frequency:.3g}" if frequency > 0 else "0"


def training_curves(metrics: Mapping[str, FloatArray]) -> Figure:
    """Loss and validation error by epoch.

    metrics : columns `(epochs,)` epoch, train_loss, validation_loss, validation_median_deg,
        validation_mean_deg; those that are missing or never finite are left out.
    """
    figure, (loss, error) = new_figure(columns=2)
    epoch = metrics["epoch"]
    lines = (
        (loss, "train_loss", "training", BLUE, "-"),
        (loss, "validation_loss", "validation", ORANGE, "--"),
        (error, "validation_median_deg", "median", BLUE, "-"),
        (error, "validation_mean_deg", "mean", ORANGE, "--"),
    )
    for axes, column, label, colour, style in lines:
        values = metrics.get(column)
        if values is not None and np.isfinite(values).any():
            marker = "o" if np.isfinite(values).sum() == 1 else None
            axes.plot(epoch, values, style, color=colour, label=label, marker=marker)
            axes.legend(frameon=False)
    for axes in (loss, error):
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    _plain(loss, "epoch", "loss of single images", "Loss")
    _plain(error, "epoch", "angular error (deg)", "Validation error")
    if error.lines:
        error.set_yscale("log")
        _plain_log_ticks(error.yaxis)
    return figure


def view_distributions(sets: Mapping[str, FloatArray]) -> Figure:
    """Viewing directions of each named set of quaternions `(n, 4)` XYZW, in equal-area bins.

    Density is relative to uniform views (1); horizontal rot, vertical cos(tilt), so areas are true. The
    viewing direction is the third column of R, (sin tilt cos rot, sin tilt sin rot, cos tilt).
    """
    densities = {name: view_density(quaternion) for name, quaternion in sets.items()}
    figure, panels = new_figure(columns=len(sets))
    highest = max(float(density.max()) for density in densities.values())
    for axes, (name, density) in zip(panels, densities.items(), strict=True):
        image = axes.imshow(
            density,
            origin="lower",
            extent=(-180, 180, -1, 1),
            aspect="auto",
            vmin=0,
            vmax=highest,
            cmap="cividis",
        )
        axes.set(xlabel="rot (deg)", ylabel="cos(tilt)", title=f"{name} (n = {len(sets[name])})")
        axes.set_xticks([-180, -90, 0, 90, 180])
    figure.colorbar(image, ax=panels, label="density (1 = uniform)", shrink=0.9)
    return figure


def view_density(quaternion: FloatArray) -> FloatArray:
    """Density of viewing directions relative to uniform, `(cos tilt, rot)` bins, from quaternions `(n, 4)`.

    Bins are as many as leave about ten particles in each, from 6 x 3 to 36 x 18.
    """
    view = np.asarray(Rotation.from_quat(quaternion).as_matrix())[:, :, 2]
    rows = int(np.clip(round(np.sqrt(len(view) / 20)), 3, 18))
    rot_deg = np.degrees(np.arctan2(view[:, 1], view[:, 0]))
    counts, _, _ = np.histogram2d(
        np.clip(view[:, 2], -1, 1), rot_deg, bins=(rows, 2 * rows), range=((-1, 1), (-180, 180))
    )
    return np.asarray(counts * counts.size / len(view))


def confidence_histogram(sets: Mapping[str, FloatArray], threshold: float | None = None) -> Figure:
    """Calibrated confidences `(n,)` of each named set; `threshold` is marked by a line."""
    figure, (axes,) = new_figure()
    _histograms(axes, sets, np.linspace(0, 1, 41))
    if threshold is not None:
        axes.axvline(threshold, color=VERMILION, linestyle="--", label=f"smallest selected {threshold:.2f}")
    axes.legend(frameon=False, fontsize="small")
    _plain(axes, "probability that the error is below the target", "particles", "Confidence")
    return figure


def expected_error_histogram(sets: Mapping[str, FloatArray]) -> Figure:
    """Expected angular errors in deg `(n,)` of each named set, on a logarithmic axis."""
    figure, (axes,) = new_figure()
    values = np.concatenate(list(sets.values()))
    positive = values[values > 0]
    low = float(positive.min()) if len(positive) else 0.1
    edges = np.geomspace(min(low, 90.0), 180, 41)
    _histograms(axes, {name: np.maximum(error, edges[0]) for name, error in sets.items()}, edges)
    axes.set_xscale("log")
    _plain_log_ticks(axes.xaxis)
    axes.legend(frameon=False, fontsize="small")
    _plain(axes, "expected angular error (deg)", "particles", "Expected error")
    return figure


def _histograms(axes: Axes, sets: Mapping[str, FloatArray], edges: FloatArray) -> None:
    """Draw one histogram a set: the first filled, the others as outlines."""
    bins = list(edges)
    for position, (name, values) in enumerate(sets.items()):
        colour = COLOURS[position % len(COLOURS)]
        if position == 0:
            axes.hist(values, bins=bins, histtype="stepfilled", color=colour, alpha=0.45, label=name)
        else:
            axes.hist(values, bins=bins, histtype="step", color=colour, linewidth=1.8, label=name)


def fsc_curves(curves: Mapping[str, tuple[FloatArray, FloatArray]]) -> Figure:
    """Fourier shell correlations: name -> (resolution_A `(s,)`, fsc `(s,)`), with 0.143 and 0.5 marked."""
    figure, (axes,) = new_figure(width_in=5.6)
    for position, (name, (resolution_A, fsc)) in enumerate(curves.items()):
        usable = np.isfinite(resolution_A) & (resolution_A > 0)
        style = ("-", "--", "-.", ":")[position % 4]
        colour = COLOURS[position % len(COLOURS)]
        axes.plot(1 / resolution_A[usable], fsc[usable], style, color=colour, label=name)
    for level in (0.143, 0.5):
        axes.axhline(level, color=GREY, linewidth=0.8, linestyle=":")
        axes.annotate(
            f"{level:g}", (1, level), xycoords=("axes fraction", "data"), fontsize="small", color=GREY
        )
    axes.set_ylim(min(-0.05, *(float(fsc.min()) for _, fsc in curves.values())), 1.02)
    axes.set_xlim(left=0)
    axes.legend(frameon=False, fontsize="small")
    axes.xaxis.set_major_formatter(FuncFormatter(_as_resolution))
    _plain(axes, "spatial frequency (1/Å)", "Fourier shell correlation", "FSC")
    return figure


def table_figure(title: str, rows: Sequence[tuple[str, str]]) -> Figure:
    """Make a page of text (A4 portrait) with up to about 60 names and values."""
    figure = Figure(figsize=(8.27, 11.69))
    figure.text(0.08, 0.95, title, fontsize=15, fontweight="bold")
    for line, (name, value) in enumerate(rows):
        figure.text(0.08, 0.92 - 0.0145 * line, name, fontsize=7.5, family="monospace")
        figure.text(0.48, 0.92 - 0.0145 * line, value[:68], fontsize=7.5, family="monospace")
    return figure
