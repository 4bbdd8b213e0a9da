"""Calibration of refined poses: their widths, which of them ended in a wrong basin, and how images and references agree."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from cryoforum_plugin.confidence import calibration
from cryoforum_plugin.confidence.basin import RIGHT_RADII, Basin, fit_basin
from cryoforum_plugin.confidence.calibration import Calibration
from cryoforum_plugin.confidence.crossed import crossed
from cryoforum_plugin.confidence.labels import errors
from cryoforum_plugin.confidence.likeness import figures_of, fit_likeness
from cryoforum_plugin.confidence.outliers import OutlierModel
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import random_quaternions, symmetry_group
from cryoforum_plugin.network.device import Precision
from cryoforum_plugin.network.model import Model
from cryoforum_plugin.particles import FloatArray, IntArray
from cryoforum_plugin.particles.splitting import spread_rows
from cryoforum_plugin.posterior import credible_radius, matrix_about, upper_from_matrix
from cryoforum_plugin.prediction.predict import Predictor
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.refinement.reference import ReferenceMap
from cryoforum_plugin.refinement.refine import Refiner
from cryoforum_plugin.settings import DEFAULT_VIEWS
from cryoforum_plugin.training.known_poses import KnownPoses

BATCH = 256
FEWEST_RIGHT = 20  # refined poses in the right basin, to tell its width
WRONG_EXAMPLES, WRONG_DEG = 128, 10.0

Figures = dict[str, Any]


def calibrate_refined(
    model: Model,
    known: KnownPoses,
    references: Mapping[int, ReferenceMap],
    network: RawPrediction,
    factors: Calibration,
    outliers: OutlierModel,
    precision: Precision,
    advance: Advance,
) -> tuple[Figures, Figures, Figures]:
    """Calibration, reliability and likeness of refined poses, from held-out particles.

    network : the network's calibrated answers for `known.held_out`, `factors` what calibrated them. The width is fitted
    on more: a training particle refined against the reference of the other half set is as new to that map as
    a new particle is to its own. How often a basin is wrong, the held-out ones say: the network knows where to start
    the others.
    """
    pipeline, symmetry, rows = known.pipeline, model.settings.symmetry, known.held_out
    diameter_A, group = model.settings.images.diameter_A, torch.from_numpy(symmetry_group(symmetry))
    refiner = Refiner(pipeline, references, diameter_A, symmetry)
    found = refiner.refine(rows, network, advance)
    rotation = known.rotation[rows]
    error = errors(found, rotation, group)
    more = _of_other_halves(model, known, references, factors, precision, advance)
    all_found, all_rows = found, rows
    if more is not None:
        all_found, all_rows = _together(found, more), np.concatenate([rows, known.learned])
    all_rotation = known.rotation[all_rows]
    all_error = errors(all_found, all_rotation, group)
    right = _in_right_basin(all_found, all_error)
    shift_error_A = known.shift_error_A(all_rows, all_found)
    chosen = np.flatnonzero(right)
    fitted = calibration.fit(all_found[chosen], all_error[chosen], shift_error_A[chosen])
    basin = _basin(refiner, rows, found, right[: len(rows)], rotation, group)
    fitted = replace(fitted, basin=basin)
    figures = (
        fitted.state()
        | {"basin": basin.state()}
        | achieved(found, error, np.arange(len(rows)), fitted)
        | {
            "validation_in_right_basin": float(right[: len(rows)].mean()),
            "calibration_particles": int(right.sum()),
        }
    )
    held_out = np.arange(len(all_rows)) < len(rows)
    judged = crossed(all_found, all_error, shift_error_A, all_rotation, symmetry, basin, right, held_out)
    return figures, judged, fit_likeness(*figures_of(found, network, outliers, group)).state()


def achieved(raw: RawPrediction, error_rad: FloatArray, kept: IntArray, factors: Calibration) -> Figures:
    """Figures on the validation particles, with the calibration that was fitted on them.

    The errors `(n,)` are those of all; the coverage is that of the rows `kept`, without implausible labels, as the fit.
    """
    inside = error_rad[kept] <= calibration.radii(raw[kept], factors, (0.5,))[:, 0]
    return {
        "validation_median_deg": float(np.degrees(np.median(error_rad))),
        "validation_mean_deg": float(np.degrees(error_rad.mean())),
        "validation_coverage_50": float(inside.mean()),
        "implausible_labels": len(error_rad) - len(kept),
    }


def _of_other_halves(
    model: Model,
    known: KnownPoses,
    references: Mapping[int, ReferenceMap],
    factors: Calibration,
    precision: Precision,
    advance: Advance,
) -> RawPrediction | None:
    """Training particles refined against the other half's reference; None where there are no halves or particles."""
    if not {1, 2} <= set(references) or not len(known.learned):
        advance(len(known.learned), "")
        return None
    particles = replace(known.pipeline.particles, half_set=3 - known.pipeline.particles.half_set)
    pipeline = replace(known.pipeline, particles=particles)
    raw = Predictor(model, pipeline, precision, DEFAULT_VIEWS).predict(
        known.learned, BATCH, lambda steps, note: None
    )
    start = calibration.with_widths(raw, factors)
    refiner = Refiner(pipeline, references, model.settings.images.diameter_A, model.settings.symmetry)
    return refiner.refine(known.learned, start, advance)


def _together(first: RawPrediction, second: RawPrediction) -> RawPrediction:
    values = {
        name: None if value is None else torch.cat([value, getattr(second, name)])
        for name, value in vars(first).items()
    }
    return RawPrediction(**values)  # type: ignore[arg-type]


def _in_right_basin(found: RawPrediction, error_rad: FloatArray) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Whether each error `(n,)` is within reach of the width; all are where too few would be."""
    right = np.ones(len(error_rad), dtype=bool)
    for _ in range(3):  # the width is that of the right basin, and what is right depends on the width
        width = calibration.fit_width(found.bingham[right], error_rad[right])
        right = error_rad < RIGHT_RADII * credible_radius(found.bingham * width, calibration.LEVEL).numpy()
        if right.sum() < FEWEST_RIGHT:
            return np.ones(len(error_rad), dtype=bool)
    return right


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
