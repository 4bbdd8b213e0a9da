"""After training: how wide, how certain, how unlike; all measured on the validation particles."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from cryoforum_plugin.confidence import calibration
from cryoforum_plugin.confidence.calibration import RawPrediction
from cryoforum_plugin.confidence.outliers import fit_outliers
from cryoforum_plugin.geometry import angular_distance_to_group, symmetry_group
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import FloatArray, Prediction
from cryoforum_plugin.particles.splitting import spread_rows
from cryoforum_plugin.posterior import credible_radius, matrix_from_upper, mode
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.prediction.views import VIEW_COUNTS
from cryoforum_plugin.progress import progress
from cryoforum_plugin.refinement.reference import ReferenceMap
from cryoforum_plugin.refinement.refine import Refiner
from cryoforum_plugin.settings import DEFAULT_VIEWS
from cryoforum_plugin.training.preparation import Prepared

MOST_PARTICLES = 5000
BATCH = 256


def _errors(raw: RawPrediction, rotation: FloatArray, symmetry: str) -> FloatArray:
    """Angles `(n,)` rad between the modes and the known poses `(n, 4)`, modulo symmetry."""
    group = torch.from_numpy(symmetry_group(symmetry))
    found = mode(matrix_from_upper(raw.bingham.double()))
    return angular_distance_to_group(found, torch.from_numpy(rotation), group).numpy()


def calibrate(
    model: Model,
    prepared: Prepared,
    references: dict[int, ReferenceMap],
    precision: Precision,
    quiet: bool,
) -> Model:
    """Return `model` with its calibration for every number of views and its outlier model filled in.

    references : by half set, to refine against; that of refined poses is filled in too.
    """
    particles, rows = prepared.particles, spread_rows(prepared.validation_rows, MOST_PARTICLES)
    rotation = particles.require_rotation()[rows]
    known_shift_A = np.zeros((len(rows), 2)) if particles.shift_A is None else particles.shift_A[rows]
    of_training = spread_rows(prepared.training_rows, MOST_PARTICLES)
    figures: dict[str, Any] = {}
    percentiles: dict[str, Any] = {}
    held_out: torch.Tensor | None = None
    refined: dict[str, Any] = {}
    steps = len(rows) * (len(VIEW_COUNTS) + bool(references)) + len(of_training)
    with progress("calibrating", steps, quiet) as advance:
        for views in VIEW_COUNTS:
            raw = Predictor(model, prepared.pipeline, precision, views).predict(rows, BATCH, advance)
            error = _errors(raw, rotation, model.settings.symmetry)
            factors = calibration.fit(raw, error, raw.shift_A.numpy() - known_shift_A)
            figures[str(views)] = asdict(factors) | _achieved(raw, error, factors)
            percentiles[str(views)] = _percentiles(calibration.calibrated(raw, factors, np.zeros(len(rows))))
            held_out = raw.features if held_out is None else held_out
            if references and views == DEFAULT_VIEWS:
                refiner = Refiner(
                    prepared.pipeline, references, model.settings.images.diameter_A, model.settings.symmetry
                )
                raw = refiner.refine(rows, calibration.scaled(raw, factors), advance)
                error = _errors(raw, rotation, model.settings.symmetry)
                factors = calibration.fit(raw, error, raw.shift_A.numpy() - known_shift_A)
                refined = asdict(factors) | _achieved(raw, error, factors)
        training = Predictor(model, prepared.pipeline, precision, 1).predict(of_training, BATCH, advance)
    assert held_out is not None
    return replace(
        model,
        outliers=fit_outliers(training.features, held_out).state(),
        calibration={
            "target_deg": calibration.TARGET_DEG,
            "level": calibration.LEVEL,
            "validation_particles": len(rows),
            "views": figures,
            **({"refined": refined} if refined else {}),
            "percentiles": percentiles,
        },
    )


def _achieved(raw: RawPrediction, error: FloatArray, factors: calibration.Calibration) -> dict[str, float]:
    """Figures on the validation particles, with the calibration that was fitted on them."""
    radius = credible_radius(raw.bingham * factors.width, 0.5).numpy()
    return {
        "validation_median_deg": float(np.degrees(np.median(error))),
        "validation_mean_deg": float(np.degrees(error.mean())),
        "validation_coverage_50": float((error <= radius).mean()),
    }


def _percentiles(prediction: Prediction) -> dict[str, list[float]]:
    """0 to 100 % quantiles of the paper's statistics over the validation particles."""
    grid = np.linspace(0, 1, 101)
    return {
        name: [float(f"{value:.6g}") for value in np.quantile(getattr(prediction, name), grid)]
        for name in ("lambda_max", "trace")
    }
