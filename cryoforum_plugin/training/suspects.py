"""MODEL_DIR/suspect_labels.csv: particles whose own pose is implausible."""

from __future__ import annotations

import csv
import logging
from pathlib import Path

import numpy as np
import torch

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.confidence.calibration import Calibration
from cryoforum_plugin.confidence.labels import Judgement, judge
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.particles.splitting import spread_rows
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.progress import progress
from cryoforum_plugin.training.preparation import Prepared

LOG = logging.getLogger("cryoforum")
FILE = "suspect_labels.csv"
MOST_PARTICLES = 200_000
BATCH = 256


def judge_labels(
    model: Model, prepared: Prepared, precision: Precision, quiet: bool
) -> tuple[IntArray, Judgement] | None:
    """Rows of the table and what one view of each says of its pose; None where labels are never doubted.

    Of more than MOST_PARTICLES particles, so many are judged, evenly spread over the table.
    """
    start = float(model.calibration.get("wrong_labels", 0.0))
    if start == 0:
        return None
    rows = spread_rows(np.arange(len(prepared.particles)), MOST_PARTICLES)
    with progress("checking labels", len(rows), quiet) as advance:
        raw = Predictor(model, prepared.pipeline, precision, 1).predict(rows, BATCH, advance)
    figures = model.calibration["views"]["1"]
    group = torch.from_numpy(symmetry_group(model.settings.symmetry))
    factors = Calibration.of(figures)
    return rows, judge(raw, factors, prepared.particles.require_rotation()[rows], group, start)


def write_suspects(
    directory: Path, model: Model, prepared: Prepared, precision: Precision, quiet: bool
) -> None:
    """Judge all labels, write the suspect ones, the most implausible first, and log how many there are.

    The file appears whole or not at all; an older one goes where labels are not doubted.
    """
    judged = judge_labels(model, prepared, precision, quiet)
    if judged is None:
        (directory / FILE).unlink(missing_ok=True)
        return
    rows, judgement = judged
    found = np.flatnonzero(judgement.suspect)
    found = found[np.lexsort((-judgement.angle_rad[found], -judgement.probability[found]))]
    held_out = set(prepared.validation_rows.tolist())
    with (
        atomic_file(directory / FILE, overwrite=True) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as handle,
    ):
        writer = csv.writer(handle)
        writer.writerow(["row", "image", "uid", "angle_deg", "probability", "held_out"])
        for i in found.tolist():
            row = int(rows[i])
            angle = f"{np.degrees(judgement.angle_rad[i]):.2f}"
            name, uid = _image_name(prepared.particles, row), int(prepared.particles.uid[row])
            writer.writerow([row, name, uid, angle, f"{judgement.probability[i]:.6f}", int(row in held_out)])
    LOG.info("implausible poses: %d of %d particles (%s); estimated part of wrong poses %.1f %%",
             len(found), len(rows), FILE, 100 * judgement.weight)  # fmt: skip


def _image_name(particles: ParticleSet, row: int) -> str:
    """RELION's name of an image, number@stack."""
    return f"{particles.slice_index[row] + 1:06d}@{particles.stacks[particles.stack_index[row]]}"
