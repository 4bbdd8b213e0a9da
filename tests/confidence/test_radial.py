"""The law of errors in units of a particle's own radius."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import chi

from cryoforum_plugin.confidence.radial import fit_radial_law

RATIO = chi.rvs(3, size=20000, random_state=1)


def test_quantiles_probabilities_and_mean_of_a_known_law() -> None:
    law = fit_radial_law(RATIO)
    for level in (0.01, 0.05, 0.5, 0.9, 0.95, 0.99):
        assert float(law.quantile(level)) == pytest.approx(chi.ppf(level, 3), rel=0.03)
        assert law.probability(np.array([chi.ppf(level, 3)]))[0] == pytest.approx(level, abs=0.01)
    assert float(law.mean(np.array([0.1]))[0]) == pytest.approx(0.1 * chi.mean(3), rel=0.02)
    assert float(law.mean(np.array([1000.0]))[0]) == pytest.approx(np.pi)  # no rotation is further away


def test_probability_inverts_quantile_everywhere() -> None:
    law = fit_radial_law(RATIO[:500])
    level = np.array([1e-6, 0.003, 0.2, 0.77, 0.993, 0.9999])
    np.testing.assert_allclose(law.probability(law.quantile(level)), level, atol=1e-6)


def test_confidence_keeps_its_order_and_never_reaches_one() -> None:
    law = fit_radial_law(RATIO[:500])
    far = law.probability(np.array([4.0, 8.0, 16.0, 32.0]))
    assert (np.diff(far) > 0).all()
    assert far[-1] < 1


def test_balls_hold_their_level_of_new_particles_on_average_however_few_they_were_fitted_on() -> None:
    rng = np.random.default_rng(5)
    held = [
        (
            chi.rvs(3, size=400, random_state=rng)
            <= fit_radial_law(chi.rvs(3, size=19, random_state=rng)).quantile(0.9)
        ).mean()
        for _ in range(300)
    ]
    assert np.mean(held) >= 0.9 - 3 * np.std(held) / np.sqrt(300)
