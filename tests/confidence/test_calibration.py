"""The width that is fitted makes credible balls hold what they promise."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from cryoforum_plugin.confidence.calibration import Calibration, calibrated, fit, fit_width
from cryoforum_plugin.confidence.outliers import OutlierModel, fit_outliers
from cryoforum_plugin.posterior import credible_radius
from cryoforum_plugin.prediction.predict import RawPrediction


def raw_prediction(
    n: int, sigma_rad: float, claimed_rad: float
) -> tuple[RawPrediction, np.ndarray, np.ndarray]:
    """Isotropic errors of sigma_rad per axis, claimed to be claimed_rad; shifts likewise."""
    rng = np.random.default_rng(0)
    errors = np.linalg.norm(rng.normal(scale=sigma_rad, size=(n, 3)), axis=1)
    bingham = torch.zeros(n, 10)
    bingham[:, [0, 4, 7]] = 2 / claimed_rad**2
    raw = RawPrediction(
        bingham, torch.zeros(n, 2), torch.ones(n), torch.randn(n, 5), torch.zeros(n, dtype=torch.bool)
    )
    return raw, errors, rng.normal(scale=2.5, size=(n, 2))


@pytest.mark.parametrize("claimed_rad", [0.01, 0.05, 0.2])
def test_fitted_width_reaches_the_promised_coverage(claimed_rad: float) -> None:
    raw, errors, shift_errors = raw_prediction(4000, 0.05, claimed_rad)
    factors = fit(raw, errors, shift_errors)
    assert factors.width == pytest.approx((claimed_rad / 0.05) ** 2, rel=0.1)
    assert factors.shift == pytest.approx(2.5, rel=0.05)
    prediction = calibrated(raw, factors, np.zeros(4000))
    radius = np.radians(prediction.credible_radius_90_deg)
    assert (errors <= radius).mean() == pytest.approx(0.9, abs=0.005)
    for level in (0.5, 0.95):
        inside = errors <= credible_radius(torch.from_numpy(prediction.bingham), level).numpy()
        assert inside.mean() == pytest.approx(level, abs=0.02)
    assert prediction.expected_error_deg.mean() == pytest.approx(np.degrees(errors.mean()), rel=0.05)
    within = errors < np.radians(5)
    assert prediction.confidence.mean() == pytest.approx(within.mean(), abs=0.02)


def test_extreme_errors_do_not_break_the_fit() -> None:
    raw, errors, _ = raw_prediction(200, 0.05, 0.05)
    assert fit_width(raw.bingham, np.full(200, np.pi)) < 0.1
    assert fit_width(raw.bingham, np.full(200, 1e-6)) > 100
    assert np.isfinite(fit_width(torch.zeros(200, 10), errors))


def test_unusable_rows_are_nan_throughout() -> None:
    raw, *_ = raw_prediction(4, 0.05, 0.05)
    bad = torch.tensor([False, True, False, False])
    raw = replace(raw, bingham=torch.where(bad[:, None], torch.nan, raw.bingham), unusable=bad)
    prediction = calibrated(raw, Calibration(1.0, 1.0), np.zeros(4))
    for name in ("confidence", "expected_error_deg", "lambda_max", "trace", "outlier_score"):
        assert np.isnan(getattr(prediction, name)).tolist() == bad.tolist()
    assert np.isfinite(prediction.rotation[0]).all()
    assert (prediction.trace[[0, 2, 3]] < prediction.lambda_max[[0, 2, 3]]).all()


def test_features_far_from_the_training_particles_are_far() -> None:
    generator = torch.Generator().manual_seed(0)
    training, other = (torch.randn(500, 40, generator=generator) for _ in range(2))
    model = fit_outliers(training)
    # of 40 independent features of variance 1, with little of it lost to the few components
    assert float(model.distance(other).mean()) == pytest.approx(40, rel=0.15)
    assert (model.distance(other + 8) > model.distance(other).max()).all()
    assert torch.isnan(model.distance(torch.full((1, 40), torch.nan))).all()
    again = OutlierModel(**model.state())  # as it is stored in model.pt
    assert torch.equal(again.distance(other), model.distance(other))


def student_errors(n: int, seed: int, scale: np.ndarray | float = 0.05) -> np.ndarray:
    """Lengths of vectors of three Student t components of 4 degrees of freedom: many small, some large."""
    rng = np.random.default_rng(seed)
    return np.linalg.norm(rng.normal(size=(n, 3)), axis=1) * scale / np.sqrt(rng.chisquare(4, n) / 4)


def test_balls_of_all_levels_hold_what_they_say_of_heavy_tails() -> None:
    raw, *_ = raw_prediction(4000, 0.05, 0.05)
    factors = fit(raw, student_errors(4000, 1), np.ones((4000, 2)))
    found, new = calibrated(raw, factors, np.zeros(4000)), np.degrees(student_errors(4000, 2))
    for level in (50, 90, 95):
        radius = getattr(found, f"credible_radius_{level}_deg")
        assert (new <= radius).mean() == pytest.approx(level / 100, abs=0.025)
    assert found.expected_error_deg.mean() == pytest.approx(new.mean(), rel=0.05)
    assert found.confidence.mean() == pytest.approx((new < 5).mean(), abs=0.02)
    # normal errors of that 90 % radius would be below half of it far less often
    normal = credible_radius(torch.from_numpy(found.bingham[:1]), 0.5)
    assert np.degrees(float(normal[0])) > 1.1 * found.credible_radius_50_deg[0]


@pytest.mark.parametrize("power", [0.5, 1.0, 1.5])
def test_groups_of_all_widths_are_covered_where_widths_exaggerate(power: float) -> None:
    rng = np.random.default_rng(3)
    claimed = 0.03 * np.exp(0.5 * rng.standard_normal(6000))
    real = 0.03 * (claimed / 0.03) ** power
    raw, *_ = raw_prediction(6000, 0.05, 0.05)
    bingham = torch.zeros(6000, 10)
    bingham[:, [0, 4, 7]] = torch.from_numpy(2 / claimed**2).float()[:, None]
    raw = replace(raw, bingham=bingham)
    error = np.linalg.norm(rng.normal(size=(6000, 3)), axis=1) * real
    half = np.arange(6000) < 3000
    factors = fit(raw[half], error[half], np.ones((3000, 2)))
    assert factors.slope == pytest.approx(power, abs=0.08)
    found = calibrated(raw[~half], factors, np.zeros(3000))
    inside = np.degrees(error[~half]) <= found.credible_radius_90_deg
    for group in np.array_split(np.argsort(claimed[~half]), 5):
        assert inside[group].mean() == pytest.approx(0.9, abs=0.04)


def test_few_particles_leave_widths_in_proportion() -> None:
    raw, errors, shifts = raw_prediction(30, 0.05, 0.05)
    assert fit(raw, errors, shifts).slope == pytest.approx(
        1.0, abs=0.021
    )  # all alike: nothing to learn it from


def test_a_calibration_survives_its_file() -> None:
    raw, errors, shifts = raw_prediction(300, 0.05, 0.03)
    factors = fit(raw, errors, shifts)
    again = Calibration.of(json.loads(json.dumps(factors.state())))
    assert again == factors
    assert np.array_equal(
        calibrated(raw, again, np.zeros(300)).confidence, calibrated(raw, factors, np.zeros(300)).confidence
    )
