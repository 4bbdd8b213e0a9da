"""After training: how wide, how certain, how unlike; all measured on the validation particles."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import Any

import numpy as np
import torch

from cryoforum_plugin.confidence import calibration
from cryoforum_plugin.confidence.calibration import RawPrediction
from cryoforum_plugin.confidence.labels import Judgement, fit_and_judge
from cryoforum_plugin.confidence.outliers import fit_outliers
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import Prediction
from cryoforum_plugin.particles.splitting import spread_rows
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.prediction.views import VIEW_COUNTS
from cryoforum_plugin.progress import progress
from cryoforum_plugin.training.preparation import Prepared

MOST_PARTICLES = 5000
BATCH = 256


def calibrate(model: Model, prepared: Prepared, precision: Precision, quiet: bool) -> Model:
    """Return `model` with its calibration for every number of views and its outlier model filled in.

    What its calibration holds already is kept; "wrong_labels", the part of labels that training took for wrong,
    lets implausible labels be left out.
    """
    particles, rows = prepared.particles, spread_rows(prepared.validation_rows, MOST_PARTICLES)
    rotation = particles.require_rotation()[rows]
    known_shift_A = np.zeros((len(rows), 2)) if particles.shift_A is None else particles.shift_A[rows]
    of_training = spread_rows(prepared.training_rows, MOST_PARTICLES)
    group = torch.from_numpy(symmetry_group(model.settings.symmetry))
    wrong = float(model.calibration.get("wrong_labels", 0.0))
    figures: dict[str, Any] = {}
    percentiles: dict[str, Any] = {}
    held_out: torch.Tensor | None = None
    with progress("calibrating", len(rows) * len(VIEW_COUNTS) + len(of_training), quiet) as advance:
        for views in VIEW_COUNTS:
            raw = Predictor(model, prepared.pipeline, precision, views).predict(rows, BATCH, advance)
            shift_error_A = raw.shift_A.numpy() - known_shift_A
            factors, judged = fit_and_judge(raw, rotation, shift_error_A, group, wrong)
            figures[str(views)] = asdict(factors) | _achieved(raw, judged, factors)
            percentiles[str(views)] = _percentiles(calibration.calibrated(raw, factors, np.zeros(len(rows))))
            held_out = raw.features if held_out is None else held_out
        training = Predictor(model, prepared.pipeline, precision, 1).predict(of_training, BATCH, advance)
    assert held_out is not None
    return replace(
        model,
        outliers=fit_outliers(training.features, held_out).state(),
        calibration=model.calibration
        | {
            "target_deg": calibration.TARGET_DEG,
            "level": calibration.LEVEL,
            "validation_particles": len(rows),
            "views": figures,
            "percentiles": percentiles,
        },
    )


def _achieved(raw: RawPrediction, judged: Judgement, factors: calibration.Calibration) -> dict[str, float]:
    """Figures on the validation particles, with the calibration that was fitted on them.

    The errors are those of all; the coverage leaves out implausible labels, as the fit did.
    """
    error, kept = judged.angle_rad, ~judged.suspect
    inside = error <= calibration.radii(raw, factors, 0.5)
    return {
        "validation_median_deg": float(np.degrees(np.median(error))),
        "validation_mean_deg": float(np.degrees(error.mean())),
        "validation_coverage_50": float(inside[kept].mean()),
        "implausible_labels": int(judged.suspect.sum()),
    }


def _percentiles(prediction: Prediction) -> dict[str, list[float]]:
    """0 to 100 % quantiles of the paper's statistics over the validation particles."""
    grid = np.linspace(0, 1, 101)
    return {
        name: [float(f"{value:.6g}") for value in np.quantile(getattr(prediction, name), grid)]
        for name in ("lambda_max", "trace")
    }
