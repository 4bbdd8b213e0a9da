import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoforum_plugin.confidence.pose_quality import pose_uncertainty, unmixed
from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import Prediction
from cryoforum_plugin.posterior.bingham import matrix_about, upper_from_matrix

RNG = np.random.default_rng(1)


def mixture(right: float, sd_deg: float, n: int = 200_000) -> tuple[float, float]:
    """Confidence at 5 degrees and 90 % radius (deg) of errors that are in a wrong, random place with 1 - right."""
    error = np.degrees(np.linalg.norm(np.radians(sd_deg) * RNG.standard_normal((n, 3)), axis=1))
    wrong = RNG.random(n) > right
    error[wrong] = np.degrees(Rotation.random(int(wrong.sum()), rng=RNG).magnitude())
    return float((error < 5).mean()), float(np.quantile(error, 0.9))


@pytest.mark.parametrize("right", [1.0, 0.97, 0.92, 0.8, 0.5, 0.2])
@pytest.mark.parametrize("sd_deg", [0.4, 1.5, 3.0])
def test_right_basin_is_found_again_from_confidence_and_ball(right: float, sd_deg: float) -> None:
    confidence, radius_deg = mixture(right, sd_deg)
    found, sharp = unmixed(np.array([confidence]), np.array([math.radians(radius_deg) / 2.5003]))
    assert found[0] == pytest.approx(right, abs=0.085)
    if right > 0.95:
        assert math.degrees(sharp[0]) == pytest.approx(sd_deg, rel=0.25)


def test_error_probabilities_are_those_of_the_mixture() -> None:
    right, sd_deg = 0.6, 2.0
    confidence, radius_deg = mixture(right, sd_deg)
    sd = math.radians(radius_deg) / 2.5003
    q = torch.from_numpy(Rotation.random(1, rng=1).as_quat())
    bingham = upper_from_matrix(matrix_about(q, torch.eye(3, dtype=torch.float64)[None] / sd**2)).numpy()
    prediction = Prediction(
        np.array([confidence]), bingham=bingham, credible_radius_90_deg=np.array([radius_deg])
    )
    found = pose_uncertainty(prediction, Path("p.star"))
    # beyond the target the right basin is passed, and what is left are wrong ones: 1 - right, few below 20 degrees
    assert found.probability_below(20)[0] == pytest.approx(right, abs=0.04)
    assert found.probability_below(5)[0] == pytest.approx(confidence, abs=0.04)
    alone = pose_uncertainty(
        Prediction(np.array([confidence]), credible_radius_90_deg=np.array([radius_deg])), Path("p.star")
    )
    assert alone.probability_below(5)[0] == pytest.approx(confidence, abs=0.04)


def test_a_table_without_either_is_refused() -> None:
    with pytest.raises(ParticleFileError, match="neither cryoforumBingham1"):
        pose_uncertainty(Prediction(np.ones(2)), Path("p.star"))


def test_of_several_modes_the_first_keeps_its_own_width() -> None:
    """A mode of s.d. 1 degree that is right in 60 %, beside others: the ball reaches far, the Bingham numbers do not."""
    q = torch.from_numpy(Rotation.random(1, rng=1).as_quat())
    precision = torch.eye(3, dtype=torch.float64)[None] / math.radians(1) ** 2
    bingham = upper_from_matrix(matrix_about(q, precision)).numpy()
    prediction = Prediction(np.array([0.6]), bingham=bingham, credible_radius_90_deg=np.array([120.0]))
    found = pose_uncertainty(prediction, Path("p.star"))
    assert found.right[0] == pytest.approx(0.6, abs=0.01)
    np.testing.assert_allclose(found.covariance[0], math.radians(1) ** 2 * np.eye(3), atol=1e-8)


def test_numbers_that_are_none_are_told_with_their_row() -> None:
    bad = Prediction(np.ones(3), credible_radius_90_deg=np.array([1.0, np.nan, 2.0]))
    with pytest.raises(
        ParticleFileError, match="cryoforumCredibleRadius90 is not a number in 1 of 3 rows, row 2 first"
    ):
        pose_uncertainty(bad, Path("p.star"))
