"""Refined poses in a wrong basin: told by how little of the reference the image shows there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryoforum_plugin.confidence.basin import Basin, fit_basin
from cryoforum_plugin.confidence.calibration import Calibration, calibrated
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.posterior import credible_radius, matrix_about, upper_from_matrix

RIGHT, WRONG = (1.0, 0.08, 600.0), (0.5, 0.1, 150.0)  # contrast and its s.d., gain


def drawn(kind: tuple[float, float, float], n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    mean, sd, gain = kind
    contrast = mean + sd * generator.standard_normal(n)
    return contrast, gain * np.exp(0.15 * generator.standard_normal(n))


@pytest.mark.parametrize("wrong", [0, 50])
def test_the_chance_of_a_wrong_basin_is_what_was_seen(wrong: int) -> None:
    good, bad = drawn(RIGHT, 1000 - wrong, 1), drawn(WRONG, wrong, 2)
    contrast, gain = (np.concatenate(pair) for pair in zip(good, bad, strict=True))
    right = np.arange(1000) < 1000 - wrong
    basin = fit_basin(contrast, gain, right, *drawn(WRONG, 128, 3), 120.0)
    new_good, new_bad = basin.probability(*drawn(RIGHT, 500, 4)), basin.probability(*drawn(WRONG, 500, 5))
    assert np.quantile(new_good, 0.05) > 0.9
    assert np.quantile(new_bad, 0.95) < 0.6  # even where none was seen among the held-out particles
    expected = np.concatenate([basin.probability(*good), basin.probability(*bad)]).mean()
    assert expected == pytest.approx(1 - wrong / 1000, abs=0.005)


def test_images_that_say_nothing_get_the_part_that_was_seen() -> None:
    contrast, gain = drawn(RIGHT, 1000, 1)
    right = np.random.default_rng(6).random(1000) < 0.7
    basin = fit_basin(contrast, gain, right, *drawn(RIGHT, 128, 3), 120.0)
    assert basin.probability(*drawn(RIGHT, 300, 4)).mean() == pytest.approx(0.7, abs=0.03)


@pytest.mark.parametrize("p", [1.0, 0.95, 0.9, 0.5, 0.0])
def test_a_posterior_is_widened_to_hold_what_it_says(p: float) -> None:
    n = 4
    q = torch.nn.functional.normalize(torch.randn(n, 4, dtype=torch.double), dim=1)
    sharp = upper_from_matrix(matrix_about(q, torch.eye(3, dtype=torch.double).expand(n, 3, 3) * 1e5))
    one = torch.ones(n, dtype=torch.double)
    raw = RawPrediction(
        sharp, torch.zeros(n, 2), one, one[:, None], torch.zeros(n, dtype=torch.bool), contrast=one, gain=one
    )
    bias = float(np.clip(np.log((p + 1e-12) / (1 - p + 1e-12)), -30, 30))
    basin = Basin([0.0, 0.0], [1.0, 1.0], [0.0, 0.0], bias, 120.0)
    found = calibrated(raw, Calibration(1.0, 1.0, basin=basin), np.zeros(n))
    assert found.expected_error_deg is not None
    assert found.credible_radius_90_deg is not None
    assert found.bingham is not None
    np.testing.assert_allclose(found.confidence, p, atol=1e-6)
    inner = np.degrees(credible_radius(sharp, 0.9).numpy())
    mean = float(np.mean(found.expected_error_deg))
    assert mean == pytest.approx((1 - p) * 120, abs=1.0)
    if p == 1:
        np.testing.assert_allclose(found.credible_radius_90_deg, inner, rtol=1e-6)
    elif p > 0.9:
        assert (found.credible_radius_90_deg > inner).all()
        assert (found.credible_radius_90_deg < 3 * inner).all()
    elif p < 0.9:
        assert (found.credible_radius_90_deg > 60).all()
    radius = np.degrees(credible_radius(torch.from_numpy(found.bingham), 0.9).numpy())
    np.testing.assert_allclose(radius, found.credible_radius_90_deg, rtol=0.3)
