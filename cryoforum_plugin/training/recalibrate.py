"""A finished model calibrated anew, on particles it has not seen: another microscope, state, box or picker."""

from __future__ import annotations

import logging
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoforum_plugin.atomic import atomic_directory, check_directory
from cryoforum_plugin.errors import OutputError, ParticleFileError
from cryoforum_plugin.images.contrast import check_contrast
from cryoforum_plugin.images.identity import among, image_keys
from cryoforum_plugin.images.pipeline import ImagePipeline, unusable
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model, load_model, update_calibration
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.particles.splitting import spread_rows
from cryoforum_plugin.prediction.images import image_pipeline
from cryoforum_plugin.prediction.members import ready
from cryoforum_plugin.refinement.reference_file import read_references
from cryoforum_plugin.training.calibrate import MOST_PARTICLES, calibrate
from cryoforum_plugin.training.joining import joined_calibration
from cryoforum_plugin.training.known_poses import KnownPoses

LOG = logging.getLogger("cryoforum")
FEWEST = 50  # particles for each model; a 90 % ball then holds 86 to 94 % of new ones (one s.d.)
FEW = 200
WRONG_LABELS = 0.05  # part of the poses that may be wrong, to begin with; found is up to twice as much


def recalibrate(
    directory: Path,
    particles: ParticleSet,
    output: Path,
    device: torch.device,
    precision: Precision,
    contrast: str | None = None,
    overwrite: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Write the model of `directory` into folder `output`, calibrated on `particles`; return its new calibration.

    The weights and references stay. Particles that the model learned from are left out.
    Raises ParticleFileError for too few others or particles without poses, and what `predict` raises.
    """
    if directory.resolve() in (output.resolve(), *output.resolve().parents):
        raise OutputError(
            f"{output} is the model itself, or in it; give another folder for the calibrated one"
        )
    model = load_model(directory, device)
    owned = [entry.name for entry in directory.iterdir()]
    check_directory(output, owned, overwrite)
    particles = ready(model, particles)
    particles.require_rotation()
    pipeline = image_pipeline(model, particles, device, contrast)
    if (contrast or model.settings.images.contrast) != "ignore":
        check_contrast(pipeline, np.arange(len(particles)), training=False)
    rows = [_unseen(member, pipeline) for member in model.alone]
    with atomic_directory(output, owned, overwrite) as folder:
        fresh = tuple(
            _calibrated(member, replace(pipeline, box=member.box), held_out, precision, quiet)
            for member, held_out in zip(model.alone, rows, strict=True)
        )
        if model.members:
            names = [member.directory.name for member in model.members if member.directory is not None]
            known = {name: member.calibration for name, member in zip(names, fresh, strict=True)}
            new = replace(model, members=fresh, calibration=joined_calibration(known))
        else:
            new = fresh[0]
        skipped = shutil.ignore_patterns("checkpoint", "cache", "report.html", "suspect_labels.csv", ".*")
        shutil.copytree(directory, folder, dirs_exist_ok=True, ignore=skipped)
        update_calibration(folder, new)
    return new.calibration


def _unseen(member: Model, pipeline: ImagePipeline) -> IntArray:
    """Rows of the member's half set that it did not learn from, with usable images; not more than are needed."""
    particles = pipeline.particles
    fits = np.full(len(particles), True) if member.half_set == 0 else particles.half_set == member.half_set
    learned = among(image_keys(particles, pipeline.reader), member.seen).numpy()
    rows = np.flatnonzero(fits & ~learned)
    if (fits & learned).any():
        LOG.warning("%s: %d particles that the model learned from are left out: they would make it look better than it is",
                    particles.source, int((fits & learned).sum()))  # fmt: skip
    rows = _usable(pipeline, spread_rows(rows, MOST_PARTICLES))
    what = f" of half set {member.half_set}" if member.half_set else ""
    if len(rows) < FEWEST:
        raise ParticleFileError(
            f"{particles.source}: {len(rows)} particles{what} that the model did not learn from; a calibration needs "
            f"{FEWEST} at least, better some hundred"
        )
    if len(rows) < FEW:
        LOG.warning("%s: only %d particles%s to calibrate on: a 90 %% ball may hold %.0f to %.0f %% of new ones",
                    particles.source, len(rows), what, *_spread(len(rows)))  # fmt: skip
    return rows


def _usable(pipeline: ImagePipeline, rows: IntArray) -> IntArray:
    """Leave out constant images and those with NaN or infinite pixels, with a warning."""
    bad = [unusable(pipeline.read(of_batch)).cpu().numpy() for of_batch in pipeline.batches(rows)]
    kept: IntArray = rows[~np.concatenate(bad)] if bad else rows
    if len(kept) < len(rows):
        LOG.warning("%s: %d of %d images are constant or hold NaN or infinite pixels; they are left out",
                    pipeline.particles.source, len(rows) - len(kept), len(rows))  # fmt: skip
    return kept


def _spread(count: int) -> tuple[float, float]:
    """Percent of new particles that a 90 % ball holds, one standard deviation down and up."""
    sd = 100 * (0.9 * 0.1 / count) ** 0.5
    return 90 - sd, 90 + sd


def _calibrated(
    member: Model, pipeline: ImagePipeline, rows: IntArray, precision: Precision, quiet: bool
) -> Model:
    known = KnownPoses(pipeline, rows, np.zeros(0, dtype=np.int64))
    kept = {"wrong_labels": max(float(member.calibration.get("wrong_labels", 0.0)), WRONG_LABELS)}
    model = calibrate(
        replace(member, calibration=kept), known, read_references(member.directory), precision, quiet
    )
    source = f"{len(rows)} particles of {pipeline.particles.source.name}"
    return replace(model, calibration=model.calibration | {"calibrated_on": source})
