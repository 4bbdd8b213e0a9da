"""After training: how wide, how certain, how unlike; all measured on the validation particles."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cryoforum_plugin.confidence import calibration
from cryoforum_plugin.confidence.basin import RIGHT_RADII, Basin, fit_basin
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.confidence.labels import Judgement, errors, estimate_wrong, fit_and_judge
from cryoforum_plugin.confidence.outliers import fit_outliers
from cryoforum_plugin.geometry import random_quaternions, symmetry_group
from cryoforum_plugin.learning.batches import only_simulated
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import FloatArray, IntArray, Prediction
from cryoforum_plugin.particles.splitting import spread_rows
from cryoforum_plugin.posterior import (
    credible_radius,
    matrix_about,
    upper_from_matrix,
)
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.prediction.views import VIEW_COUNTS
from cryoforum_plugin.progress import Advance, progress
from cryoforum_plugin.refinement.reference import ReferenceMap
from cryoforum_plugin.refinement.refine import Refiner
from cryoforum_plugin.settings import DEFAULT_VIEWS
from cryoforum_plugin.training.preparation import Prepared

MOST_PARTICLES = 5000
BATCH = 256
FEWEST_RIGHT = 20  # refined poses in the right basin, to tell its width
WRONG_EXAMPLES, WRONG_DEG = 128, 10.0


def calibrate(
    model: Model,
    prepared: Prepared,
    references: dict[int, ReferenceMap],
    precision: Precision,
    quiet: bool,
) -> Model:
    """Return `model` with its calibration for every number of views and its outlier model filled in.

    references : by half set, to refine against; that of refined poses is filled in too.
    What its calibration holds already is kept; "wrong_labels", the part of labels that training took for wrong,
    lets implausible labels be left out. Where training saw simulated images only, that part is estimated here.
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
    refined: dict[str, Any] = {}
    steps = len(rows) * (len(VIEW_COUNTS) + bool(references)) + len(of_training)
    with progress("calibrating", steps, quiet) as advance:
        for views in VIEW_COUNTS:
            raw = Predictor(model, prepared.pipeline, precision, views).predict(rows, BATCH, advance)
            if held_out is None and only_simulated(model.settings.training):
                wrong = estimate_wrong(raw, rotation, group, wrong)
            shift_error_A = raw.shift_A.numpy() - known_shift_A
            factors, judged = fit_and_judge(raw, rotation, shift_error_A, group, wrong)
            achieved = _achieved(raw, judged, factors) | {"wrong_labels": judged.weight}
            figures[str(views)] = _plain(factors) | achieved
            percentiles[str(views)] = _percentiles(calibration.calibrated(raw, factors, np.zeros(len(rows))))
            held_out = raw.features if held_out is None else held_out
            if references and views == DEFAULT_VIEWS:
                kept = np.flatnonzero(~judged.suspect)
                known = calibration.with_widths(raw[kept], factors)
                refined = _refined(model, prepared, references, rows[kept], known, advance)
                network_deg = float(np.degrees(judged.angle_rad[kept].mean()))
                refined["helps"] = refined["validation_mean_deg"] < network_deg
                advance(len(rows) - len(kept), "")
        training = Predictor(model, prepared.pipeline, precision, 1).predict(of_training, BATCH, advance)
    assert held_out is not None
    return replace(
        model,
        outliers=fit_outliers(training.features, held_out).state(),
        calibration=model.calibration
        | {
            "wrong_labels": wrong,
            "target_deg": calibration.TARGET_DEG,
            "level": calibration.LEVEL,
            "validation_particles": len(rows),
            "views": figures,
            **({"refined": refined} if refined else {}),
            "percentiles": percentiles,
        },
    )


def _refined(
    model: Model,
    prepared: Prepared,
    references: dict[int, ReferenceMap],
    rows: IntArray,
    raw: RawPrediction,
    advance: Advance,
) -> dict[str, Any]:
    """Calibration of refined poses, from held-out `rows` and the network's calibrated answers `raw`."""
    particles, symmetry = prepared.particles, model.settings.symmetry
    refiner = Refiner(prepared.pipeline, references, model.settings.images.diameter_A, symmetry)
    found = refiner.refine(rows, raw, advance)
    assert found.contrast is not None
    assert found.gain is not None
    rotation = particles.require_rotation()[rows]
    group = torch.from_numpy(symmetry_group(symmetry))
    error = errors(found, rotation, group)
    right = np.ones(len(rows), dtype=bool)
    for _ in range(3):  # the width is that of the right basin, and what is right depends on the width
        width = calibration.fit_width(found.bingham[right], error[right])
        right = error < RIGHT_RADII * credible_radius(found.bingham * width, calibration.LEVEL).numpy()
        if right.sum() < FEWEST_RIGHT:
            right = np.ones(len(rows), dtype=bool)
            break
    known_A = np.zeros((len(rows), 2)) if particles.shift_A is None else particles.shift_A[rows]
    chosen = found[np.flatnonzero(right)]
    factors = calibration.fit(chosen, error[right], chosen.shift_A.numpy() - known_A[right])
    basin = _basin(refiner, rows, found, right, rotation, group)
    judged = Judgement(error, np.zeros(len(rows)), np.zeros(len(rows), dtype=bool), 0.0)
    return (
        _plain(factors)
        | {"basin": basin.state()}
        | _achieved(found, judged, factors)
        | {"validation_in_right_basin": float(right.mean())}
    )


def _basin(
    refiner: Refiner,
    rows: IntArray,
    found: RawPrediction,
    right: np.ndarray[Any, np.dtype[np.bool_]],
    rotation: FloatArray,
    group: torch.Tensor,
) -> Basin:
    """How right and wrong basins differ: found poses, and some refined from random ones with no search."""
    part = spread_rows(np.flatnonzero(~found.unusable.numpy()), WRONG_EXAMPLES)
    generator = torch.Generator().manual_seed(1)
    q = random_quaternions(len(part), generator).double()
    sharp = matrix_about(q, torch.eye(3, dtype=torch.double).expand(len(part), 3, 3) * 1e4)
    start = replace(found[part], bingham=upper_from_matrix(sharp))
    examples = refiner.refine(rows[part], start, lambda steps, note: None, search=False)
    assert examples.contrast is not None
    assert examples.gain is not None
    assert found.contrast is not None
    assert found.gain is not None
    wrong_deg = np.degrees(errors(examples, rotation[part], group))
    wrong = wrong_deg > WRONG_DEG
    return fit_basin(
        found.contrast.numpy(),
        found.gain.numpy(),
        right,
        examples.contrast.numpy()[wrong],
        examples.gain.numpy()[wrong],
        float(wrong_deg[wrong].mean()) if wrong.any() else 90.0,
    )


def _plain(factors: calibration.Calibration) -> dict[str, Any]:
    return {"width": factors.width, "shift": factors.shift, "weights": factors.weights}


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
