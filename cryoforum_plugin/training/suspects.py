"""MODEL_DIR/suspect_labels.csv: particles whose own pose is implausible."""

from __future__ import annotations

import csv
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoforum_plugin.atomic import atomic_file
from cryoforum_plugin.confidence.calibration import Calibration
from cryoforum_plugin.confidence.labels import Judgement, judge, too_many
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
COLUMNS = ("row", "image", "uid", "angle_deg", "probability", "held_out")


def judge_labels(
    model: Model, prepared: Prepared, precision: Precision, quiet: bool
) -> tuple[IntArray, Judgement] | None:
    """Rows of the prepared particles and what one view of each says of its pose; None where labels are not doubted.

    They are not where the calibration of one view, after all, doubted none, nor where more than half of all would be
    suspect. Of more than MOST_PARTICLES particles, so many are judged, evenly spread.
    """
    figures = model.calibration["views"]["1"]
    if float(figures["wrong_labels"]) == 0:
        return None
    rows = spread_rows(np.arange(len(prepared.particles)), MOST_PARTICLES)
    with progress("checking labels", len(rows), quiet) as advance:
        raw = Predictor(model, prepared.pipeline, precision, 1).predict(rows, BATCH, advance)
    group = torch.from_numpy(symmetry_group(model.settings.symmetry))
    start = float(model.calibration["wrong_labels"])
    rotation = prepared.particles.require_rotation()[rows]
    judged = judge(raw, Calibration.of(figures), rotation, group, start)
    return None if too_many(judged) else (rows, judged)


def write_suspects(
    directory: Path,
    model: Model,
    prepared: Prepared,
    table_rows: IntArray,
    precision: Precision,
    quiet: bool,
) -> None:
    """Judge all labels, write the suspect ones, the most implausible first, and log how many there are.

    table_rows : `(n,)` where each of the prepared particles stands in the whole training table. The file appears whole
    or not at all; an older one goes where labels are not doubted.
    """
    judged = judge_labels(model, prepared, precision, quiet)
    if judged is None:
        (directory / FILE).unlink(missing_ok=True)
        if model.calibration["wrong_labels"]:
            LOG.info("no %s: the network knows too little to judge the poses it was given", FILE)
        return
    rows, judgement = judged
    found = np.flatnonzero(judgement.suspect)
    found = found[np.lexsort((-judgement.angle_rad[found], -judgement.probability[found]))]
    held_out = set(prepared.validation_rows.tolist())
    lines = []
    for i in found.tolist():
        row = int(rows[i])
        angle = f"{np.degrees(judgement.angle_rad[i]):.2f}"
        name, uid = _image_name(prepared.particles, row), int(prepared.particles.uid[row])
        probability = f"{judgement.probability[i]:.6f}"
        lines.append((int(table_rows[row]), name, uid, angle, probability, int(row in held_out)))
    _write(directory, lines)
    LOG.info("implausible poses: %d of %d particles (%s); estimated part of wrong poses %.1f %%",
             len(found), len(rows), FILE, 100 * judgement.weight)  # fmt: skip


def join_suspects(directory: Path, folders: Sequence[Path]) -> None:
    """Write the suspect labels of the models in `folders` as one table, each particle once, as the surest says.

    No table where no model has one.
    """
    tables = [folder / FILE for folder in folders if (folder / FILE).exists()]
    if not tables:
        (directory / FILE).unlink(missing_ok=True)
        return
    lines = []
    for path in tables:
        with open(path, newline="", encoding="utf-8", errors="surrogateescape") as handle:
            lines += [tuple(line[column] for column in COLUMNS) for line in csv.DictReader(handle)]
    lines.sort(key=lambda line: (-float(line[4]), -float(line[3])))
    surest: dict[str, tuple[str, ...]] = {}
    for line in lines:
        surest.setdefault(line[0], line)
    _write(directory, surest.values())


def _write(directory: Path, lines: Iterable[tuple[Any, ...]]) -> None:
    with (
        atomic_file(directory / FILE, overwrite=True) as temporary,
        open(temporary, "w", newline="", encoding="utf-8", errors="surrogateescape") as handle,
    ):
        writer = csv.writer(handle)
        writer.writerow(COLUMNS)
        writer.writerows(lines)


def _image_name(particles: ParticleSet, row: int) -> str:
    """RELION's name of an image, number@stack."""
    return f"{particles.slice_index[row] + 1:06d}@{particles.stacks[particles.stack_index[row]]}"
