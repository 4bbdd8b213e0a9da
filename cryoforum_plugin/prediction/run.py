"""`predict`: a model and a table of particles in, a calibrated prediction of every row out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cryoforum_plugin.confidence.alternatives import with_alternatives
from cryoforum_plugin.confidence.calibration import (
    Calibration,
    calibrated,
    with_widths,
)
from cryoforum_plugin.confidence.likeness import Likeness, Unlikeness, figures_of, unlikeness
from cryoforum_plugin.confidence.outliers import OutlierModel
from cryoforum_plugin.errors import ModelError, ParticleFileError, SettingsError, UnusableImagesError
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.contrast import check_contrast
from cryoforum_plugin.images.pipeline import CtfMode, ImagePipeline
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.maps.given import SIMULATED_IMAGES
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet, Prediction
from cryoforum_plugin.prediction.members import assign
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.prediction.refining import refiner_for, refines
from cryoforum_plugin.prediction.views import VIEW_COUNTS
from cryoforum_plugin.progress import Advance, progress
from cryoforum_plugin.refinement.refine import Refiner
from cryoforum_plugin.settings import DEFAULT_VIEWS

LOG = logging.getLogger("cryoforum")
ROWS_AT_ONCE = 16_384  # calibrated together; bounds the memory for features


@dataclass(frozen=True)
class PredictOptions:
    """Choices of one prediction run.

    batch_size : None = what is fastest on the device. contrast : None = as the model was trained. refine :
    whether poses are refined, None = where there is a reference and it helped held-out particles. reference :
    map to refine against, None = the model's own.
    """

    views: int = DEFAULT_VIEWS
    batch_size: int | None = None
    contrast: str | None = None
    quiet: bool = False
    refine: bool | None = None
    reference: Path | None = None


def predict_particles(
    model: Model, particles: ParticleSet, device: torch.device, precision: Precision, options: PredictOptions
) -> tuple[Prediction, Unlikeness]:
    """Predict every row of `particles`; unreadable images (NaN, constant) become NaN rows.

    Also returns how unlike those of the model's calibration they are, together, and warns where that is much.

    Particles without half sets need `members.ready` first where the model has a model for each half.
    Raises ImageStackError for missing or damaged stacks, dark protein, or when no image is usable;
    ParticleFileError for missing CTF parameters; ModelError when the images cannot hold the particle, or
    refinement is asked for without a reference.
    """
    if options.views not in VIEW_COUNTS:
        raise SettingsError(f"views must be one of {', '.join(map(str, VIEW_COUNTS))}; got {options.views}")
    pipeline = image_pipeline(model, particles, device, options)
    if (options.contrast or model.settings.images.contrast) != "ignore":
        check_contrast(pipeline, np.arange(len(particles)), training=False)
    if model.calibration.get("calibrated_on") == SIMULATED_IMAGES:
        LOG.warning("this model's widths were calibrated on simulated images; on real ones confidence and expected "
                    "error are as good as the simulation")  # fmt: skip
    chosen, seen = assign(model, particles, pipeline.reader)
    refined = refines(model, particles, options.refine, options.reference)
    places, parts, deviations = [], [], []
    with progress("predicting", len(particles), options.quiet) as advance:
        for number, member in enumerate(model.alone):
            rows = np.flatnonzero(chosen == number)
            if not len(rows):
                continue
            seen_by = replace(pipeline, box=member.box)
            predictor = Predictor(member, seen_by, precision, options.views)
            refining = refiner_for(member, seen_by, options.reference) if refined else None
            for start in range(0, len(rows), ROWS_AT_ONCE):
                places.append(rows[start : start + ROWS_AT_ONCE])
                part, off = _predict(member, predictor, refining, places[-1], options, advance)
                parts.append(part)
                deviations.append(off)
    order = np.argsort(np.concatenate(places))
    prediction = _joined(parts)[order]
    _check_usable(prediction, particles)
    usual = [_likeness(member, options, refined)[0] for member in model.alone]
    new = np.flatnonzero(seen == 0)
    off = np.concatenate(deviations)[order]
    assert prediction.outlier_score is not None
    held_out = sum(likeness.count for likeness in usual)
    unlike = unlikeness(usual[0].names, off[new], prediction.outlier_score[new], held_out)
    _warn_of_unlike(particles, unlike)
    return replace(prediction, in_training=np.where(np.isnan(prediction.confidence), np.nan, seen)), unlike


def _predict(
    model: Model,
    predictor: Predictor,
    refining: tuple[Refiner, Calibration] | None,
    rows: IntArray,
    options: PredictOptions,
    advance: Advance,
) -> tuple[Prediction, FloatArray]:
    """Predict and refine `rows`, and calibrate what is found; with how far off the usual each lies `(n, m)`."""
    factors = Calibration.of(model.calibration["views"][str(options.views)])
    symmetry, outliers = model.settings.symmetry, OutlierModel(**model.outliers)
    # a CPU is fastest while the maps of a batch stay in its caches
    batch_size = options.batch_size or (64 if predictor.pipeline.device.type == "cpu" else 512)
    # a particle is done when it is refined
    raw = predictor.predict(
        rows, batch_size, advance if refining is None else lambda count, note: advance(0, note)
    )
    known, group = with_widths(raw, factors), torch.from_numpy(symmetry_group(symmetry))
    likeness, of_refined = _likeness(model, options, refining is not None)
    if refining is not None:
        refiner, factors = refining
        raw = refiner.refine(rows, known, advance)
    figures = figures_of(raw if of_refined else known, known, outliers, group)[1]
    off, score = likeness.deviations(figures), likeness.score(figures)
    if refining is None:
        return calibrated(raw, factors, score, symmetry=symmetry), off
    found = calibrated(raw, factors, score, known.bingham, symmetry)
    return with_alternatives(found, known, symmetry), off


def _likeness(model: Model, options: PredictOptions, refined: bool) -> tuple[Likeness, bool]:
    """What particles are compared with, and whether refined poses are.

    Not where the map was given, or refinement is not calibrated: then nothing is known of how held-out particles fit it.
    """
    known = model.calibration.get("likeness", {})
    refined = refined and options.reference is None and "refined" in known
    found = known.get("refined" if refined else str(options.views))
    if found is None:
        raise ModelError(
            f"{model.directory} was calibrated by an older version of cryoforum; run `cryoforum recalibrate` with refined "
            "particles it has not seen, or train again"
        )
    return Likeness(**found), refined


def _warn_of_unlike(particles: ParticleSet, unlike: Unlikeness) -> None:
    if unlike["alarms"]:
        LOG.warning(
            "%s: these %d particles are unlike those the model was calibrated on, so that its confidence may not hold: %s; "
            "where they are of the same kind, refine some hundred and run `cryoforum recalibrate`",
            particles.source, unlike["particles"], "; ".join(unlike["alarms"]),
        )  # fmt: skip


def _check_usable(prediction: Prediction, particles: ParticleSet) -> None:
    bad = int(np.isnan(prediction.confidence).sum())
    if bad == len(prediction):
        raise UnusableImagesError(
            f"{particles.source}: every image is constant or holds NaN or infinite pixels"
        )
    if bad:
        LOG.warning("%d of %d images are constant or hold NaN or infinite pixels; their confidence is 0",
                    bad, len(prediction))  # fmt: skip


def _joined(parts: list[Prediction]) -> Prediction:
    """One prediction of several; what one does not know, none does."""
    values: dict[str, Any] = {}
    for f in fields(Prediction):
        found = [getattr(part, f.name) for part in parts]
        values[f.name] = None if any(value is None for value in found) else np.concatenate(found)
    return Prediction(**values)


def image_pipeline(
    model: Model, particles: ParticleSet, device: torch.device, options: PredictOptions
) -> ImagePipeline:
    """Images of `particles` as the model expects them. Raises ParticleFileError without CTF, ModelError for too small a box."""
    settings = model.settings.images
    if settings.ctf == "none":
        if particles.ctf is not None:
            LOG.warning("the model was trained without CTF; that of %s is not used", particles.source)
        particles = replace(particles, ctf=None)
    elif particles.ctf is None and settings.ctf != "keep":
        raise ParticleFileError(
            f"{particles.source}: no CTF parameters, but the model was trained with CTF correction; use "
            "particles with estimated CTF, or train a model with --no-ctf"
        )
    reader = StackReader(particles.stacks)
    box_px = reader.check(particles)
    side_A = box_px * float(particles.pixel_size_A.min())
    if side_A < 0.7 * model.box.side_A:
        raise ModelError(
            f"{particles.source}: images of {box_px} px at {particles.pixel_size_A.min():g} A/px show "
            f"{side_A:.0f} A, but the model looks at {model.box.side_A:.0f} A; it was trained on another "
            "particle or box"
        )
    if side_A < 0.95 * model.box.side_A:
        LOG.warning("the images show %.0f A, the model looks at %.0f A; the rim is continued periodically",
                    side_A, model.box.side_A)  # fmt: skip
    contrast = -1.0 if (options.contrast or settings.contrast) == "invert" else 1.0
    mode: CtfMode = settings.ctf  # type: ignore[assignment]
    return ImagePipeline(particles, reader, box_px, model.box, mode, contrast, device)
