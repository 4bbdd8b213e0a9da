"""What Doppio shows of a finished job, and what the CCP-EM Pipeliner's reports say of it."""

from __future__ import annotations

import csv
import json
import math
from pathlib import Path
from typing import Any

from pipeliner.display_tools import (
    create_results_display_object,
    histogram_from_starfile_col,
    make_mollweide_angular_distribution,
    make_mrcs_central_slices_montage,
    mini_montage_from_starfile,
)

from relion_external.host import CONFIDENCE

_CURVES = {  # title: column of metrics.csv and name of the curve
    "Loss": {"train_loss": "training", "validation_loss": "validation"},
    "Validation error (deg)": {"validation_median_deg": "median", "validation_mean_deg": "mean"},
}
_STEPS = ("train", "predict", "select", "reconstruct")


def results(folder: Path) -> list[Any]:
    """Make display objects of what is in the job folder: curves, confidences, views, images, maps, report."""
    shown = _training_curves(folder / "model" / "metrics.csv")
    for path in _existing(folder, "predicted.star", "selected.star"):
        shown.append(_confidences(path))
    for path in _existing(folder, "predicted.star"):
        shown.append(make_mollweide_angular_distribution(str(path), str(folder), "Predicted views"))
    for path in _existing(folder, "selected.star", "rejected.star") or _existing(folder, "predicted.star"):
        shown.append(_images(path, folder))
    maps = _existing(folder, "half1.mrc", "half2.mrc", "model/reference.mrc")
    if maps:
        shown.append(make_mrcs_central_slices_montage({str(path): path.name for path in maps}, str(folder)))
    for path in _existing(folder, "logfile.pdf"):
        shown.append(create_results_display_object("pdffile", title="Report", file_path=str(path)))
    return shown


def recorded_figures(folder: Path) -> dict[str, Any]:
    """Read what the steps of the job recorded: counts, validation errors, thresholds, resolutions."""
    record = folder / "job.json"
    steps = json.loads(record.read_text()) if record.is_file() else {}
    return {
        step: {key: value for key, value in steps[step].items() if key not in ("identity", "finished")}
        for step in _STEPS
        if step in steps
    }


def _existing(folder: Path, *names: str) -> list[Path]:
    return [folder / name for name in names if (folder / name).is_file()]


def _training_curves(metrics: Path) -> list[Any]:
    """Loss and validation error by epoch; without metrics none."""
    if not metrics.is_file():
        return []
    with open(metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    return [_graph(title, columns, rows, metrics) for title, columns in _CURVES.items() if rows]


def _graph(title: str, columns: dict[str, str], rows: list[dict[str, str]], metrics: Path) -> Any:
    points = {
        name: [(int(row["epoch"]), value) for row in rows if math.isfinite(value := float(row[column]))]
        for column, name in columns.items()
    }
    return create_results_display_object(
        "graph",
        title=f"{title} by epoch",
        xvalues=[[epoch for epoch, _ in curve] for curve in points.values()],
        yvalues=[[value for _, value in curve] for curve in points.values()],
        xaxis_label="Epoch",
        yaxis_label=title,
        data_series_labels=list(points),
        associated_data=[str(metrics)],
        modes=["lines+markers"],
    )


def _confidences(path: Path) -> Any:
    return histogram_from_starfile_col(
        title=f"Confidence, {path.name}",
        starfile=str(path),
        block="particles",
        data_col=f"_{CONFIDENCE}",
        xlabel="Probability of an error below 5 degrees",
        ylabel="Particles",
    )


def _images(path: Path, folder: Path) -> Any:
    return mini_montage_from_starfile(
        starfile=str(path),
        block="particles",
        column="_rlnImageName",
        outputdir=str(folder),
        title=f"First particles of {path.name}",
        nimg=30,
    )
