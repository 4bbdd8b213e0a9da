"""After training: how wide, how certain, how unlike; all measured on particles that the network did not learn from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cryoforum_plugin.confidence import calibration
from cryoforum_plugin.confidence.crossed import crossed
from cryoforum_plugin.confidence.labels import estimate_wrong, fit_and_judge
from cryoforum_plugin.confidence.likeness import figures_of, fit_likeness
from cryoforum_plugin.confidence.outliers import OutlierModel, fit_outliers
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.learning.batches import only_simulated
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import Prediction
from cryoforum_plugin.particles.splitting import spread_rows
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.prediction.views import VIEW_COUNTS
from cryoforum_plugin.progress import progress
from cryoforum_plugin.refinement.reference import ReferenceMap
from cryoforum_plugin.settings import DEFAULT_VIEWS
from cryoforum_plugin.training.calibrate_refined import achieved, calibrate_refined
from cryoforum_plugin.training.known_poses import KnownPoses

MOST_PARTICLES = 5000
BATCH = 256


def calibrate(
    model: Model,
    known: KnownPoses,
    references: Mapping[int, ReferenceMap],
    precision: Precision,
    quiet: bool,
) -> Model:
    """Return `model` with its calibration for every number of views and its outlier model filled in.

    references : by half set, to refine against; that of refined poses is filled in too.
    What its calibration holds already is kept; "wrong_labels", the part of labels that training took for wrong,
    lets implausible labels be left out. Where training saw simulated images only, that part is estimated here.
    """
    known = replace(
        known,
        held_out=spread_rows(known.held_out, MOST_PARTICLES),
        learned=spread_rows(known.learned, MOST_PARTICLES),
    )
    rows, rotation = known.held_out, known.rotation[known.held_out]
    group = torch.from_numpy(symmetry_group(model.settings.symmetry))
    wrong = float(model.calibration.get("wrong_labels", 0.0))
    figures: dict[str, Any] = {}
    reliabilities: dict[str, Any] = {}
    likenesses: dict[str, Any] = {}
    percentiles: dict[str, Any] = {}
    refined: dict[str, Any] = {}
    steps = len(rows) * (len(VIEW_COUNTS) + bool(references)) + len(known.learned) * (1 + bool(references))
    with progress("calibrating", steps, quiet) as advance:
        if len(known.learned):
            training = Predictor(model, known.pipeline, precision, 1).predict(known.learned, BATCH, advance)
            outliers = fit_outliers(training.features)
        else:
            outliers = OutlierModel(**model.outliers)
        for views in VIEW_COUNTS:
            raw = Predictor(model, known.pipeline, precision, views).predict(rows, BATCH, advance)
            if not figures and only_simulated(model.settings.training) and len(known.learned):
                wrong = estimate_wrong(raw, rotation, group, wrong)
            shift_error_A = known.shift_error_A(rows, raw)
            factors, judged = fit_and_judge(raw, rotation, shift_error_A, group, wrong)
            kept = np.flatnonzero(~judged.suspect)
            error, name = judged.angle_rad, str(views)
            figures[name] = factors.state() | achieved(raw, error, kept, factors)
            figures[name]["wrong_labels"] = judged.weight
            reliabilities[name] = crossed(
                raw[kept], error[kept], shift_error_A[kept], rotation[kept], model.settings.symmetry
            )
            percentiles[name] = _percentiles(calibration.calibrated(raw, factors, np.zeros(len(rows))))
            network = calibration.with_widths(raw, factors)
            likenesses[name] = fit_likeness(*figures_of(network, network, outliers, group)).state()
            if references and views == DEFAULT_VIEWS:
                found = calibrate_refined(
                    model, replace(known, held_out=rows[kept]), references, network[kept], factors, outliers,
                    precision, advance,
                )  # fmt: skip
                refined, reliabilities["refined"], likenesses["refined"] = found
                network_deg = float(np.degrees(error[kept].mean()))
                refined["helps"] = refined["validation_mean_deg"] < network_deg
                advance(len(rows) - len(kept), "")
    return replace(
        model,
        outliers=outliers.state(),
        calibration=model.calibration
        | {
            "wrong_labels": wrong,
            "target_deg": calibration.TARGET_DEG,
            "level": calibration.LEVEL,
            "validation_particles": len(rows),
            "views": figures,
            **({"refined": refined} if refined else {}),
            "reliability": reliabilities,
            "likeness": likenesses,
            "percentiles": percentiles,
        },
    )


def _percentiles(prediction: Prediction) -> dict[str, list[float]]:
    """0 to 100 % quantiles of the paper's statistics over the validation particles."""
    grid = np.linspace(0, 1, 101)
    return {
        name: [float(f"{value:.6g}") for value in np.quantile(getattr(prediction, name), grid)]
        for name in ("lambda_max", "trace")
    }
