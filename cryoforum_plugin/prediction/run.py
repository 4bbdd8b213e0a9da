"""`predict`: a model and a table of particles in, a calibrated prediction of every row out."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace

import numpy as np
import torch

from cryoforum_plugin.confidence.calibration import Calibration, calibrated
from cryoforum_plugin.confidence.outliers import OutlierModel
from cryoforum_plugin.errors import ImageStackError, ModelError, ParticleFileError, SettingsError
from cryoforum_plugin.images.contrast import check_contrast
from cryoforum_plugin.images.pipeline import CtfMode, ImagePipeline
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import ParticleSet, Prediction
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.prediction.views import VIEW_COUNTS
from cryoforum_plugin.progress import progress
from cryoforum_plugin.settings import DEFAULT_VIEWS

LOG = logging.getLogger("cryoforum")
ROWS_AT_ONCE = 16_384  # calibrated together; bounds the memory for features


@dataclass(frozen=True)
class PredictOptions:
    """Choices of one prediction run.

    batch_size : None = what is fastest on the device. contrast : None = as the model was trained.
    """

    views: int = DEFAULT_VIEWS
    batch_size: int | None = None
    contrast: str | None = None
    quiet: bool = False


def predict_particles(
    model: Model, particles: ParticleSet, device: torch.device, precision: Precision, options: PredictOptions
) -> Prediction:
    """Predict every row of `particles`; unreadable images (NaN, constant) become NaN rows.

    Raises ImageStackError for missing or damaged stacks, dark protein, or when no image is usable;
    ParticleFileError for missing CTF parameters; ModelError when the images cannot hold the particle.
    """
    if options.views not in VIEW_COUNTS:
        raise SettingsError(f"views must be one of {', '.join(map(str, VIEW_COUNTS))}; got {options.views}")
    pipeline = _pipeline(model, particles, device, options)
    if (options.contrast or model.settings.images.contrast) != "ignore":
        check_contrast(pipeline, np.arange(len(particles)), training=False)
    predictor = Predictor(model, pipeline, precision, options.views)
    figures = model.calibration["views"][str(options.views)]
    factors, outliers = Calibration(figures["width"], figures["shift"]), OutlierModel(**model.outliers)
    # a CPU is fastest while the maps of a batch stay in its caches
    batch_size = options.batch_size or (64 if device.type == "cpu" else 512)
    parts, rows = [], np.arange(len(particles))
    with progress("predicting", len(rows), options.quiet) as advance:
        for start in range(0, len(rows), ROWS_AT_ONCE):
            raw = predictor.predict(rows[start : start + ROWS_AT_ONCE], batch_size, advance)
            scores = outliers.score(raw.features)
            parts.append(calibrated(raw, factors, scores, model.settings.symmetry))
    prediction = _joined(parts)
    bad = int(np.isnan(prediction.confidence).sum())
    if bad == len(rows):
        raise ImageStackError(f"{particles.source}: every image is constant or holds NaN or infinite pixels")
    if bad:
        LOG.warning("%d of %d images are constant or hold NaN or infinite pixels; their confidence is 0",
                    bad, len(rows))  # fmt: skip
    return prediction


def _joined(parts: list[Prediction]) -> Prediction:
    values = {f.name: np.concatenate([getattr(part, f.name) for part in parts]) for f in fields(Prediction)}
    return Prediction(**values)


def _pipeline(
    model: Model, particles: ParticleSet, device: torch.device, options: PredictOptions
) -> ImagePipeline:
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
