"""The width that is fitted makes credible balls hold what they promise."""

from __future__ import annotations

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


def test_outlier_score_ranks_and_saturates() -> None:
    generator = torch.Generator().manual_seed(0)
    training, held_out = (torch.randn(500, 40, generator=generator) for _ in range(2))
    model = fit_outliers(training, held_out)
    ordinary = model.score(torch.randn(500, 40, generator=generator))
    assert ordinary.mean() == pytest.approx(0.5, abs=0.07)
    assert (model.score(torch.randn(50, 40, generator=generator) + 8) == 1).all()
    assert np.isnan(model.score(torch.full((1, 40), torch.nan))).all()
    again = OutlierModel(**model.state())  # as it is stored in model.pt
    assert np.array_equal(again.score(held_out), model.score(held_out))
