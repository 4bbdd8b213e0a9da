import math
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoforum_plugin.confidence.pose_quality import pose_uncertainty
from cryoforum_plugin.errors import ParticleFileError
from cryoforum_plugin.particles import Prediction
from cryoforum_plugin.posterior.bingham import matrix_about, upper_from_matrix

RNG = np.random.default_rng(1)


def predicted(error_deg: np.ndarray, right: float | None, bingham: np.ndarray | None = None) -> Prediction:
    """What a table says of a particle whose errors (deg) are those given."""
    radius = {
        f"credible_radius_{100 * level:.0f}_deg": np.quantile(error_deg, [level])
        for level in (0.5, 0.9, 0.95)
    }
    known = None if right is None else np.array([right])
    return Prediction(np.array([(error_deg < 5).mean()]), right_basin=known, bingham=bingham, **radius)


def turns_deg(sd_deg: float, n: int = 200_000) -> np.ndarray:
    return np.linalg.norm(sd_deg * RNG.standard_normal((n, 3)), axis=1)


@pytest.mark.parametrize("right", [1.0, 0.97, 0.92, 0.8, 0.6])
@pytest.mark.parametrize("sd_deg", [0.4, 1.5, 3.0])
def test_widths_are_those_of_the_right_basin(right: float, sd_deg: float) -> None:
    error = turns_deg(sd_deg)
    wrong = RNG.random(len(error)) > right
    error[wrong] = np.degrees(Rotation.random(int(wrong.sum()), rng=RNG).magnitude())
    found = pose_uncertainty(predicted(error, right), Path("p.star"))
    assert found.right[0] == right
    np.testing.assert_allclose(found.covariance[0], np.radians(sd_deg) ** 2 * np.eye(3), rtol=0.06, atol=1e-9)
    for angle_deg in (1, 5, 10, 20, 60):
        assert found.probability_below(angle_deg)[0] == pytest.approx((error < angle_deg).mean(), abs=0.015)


def test_long_tails_are_kept() -> None:
    """Student t turns with 4 degrees of freedom: far more large errors than normal turns of the same 90 % ball have."""
    error = turns_deg(1.5) / np.sqrt(RNG.chisquare(4, 200_000) / 4)
    found = pose_uncertainty(predicted(error, None), Path("p.star"))
    for angle_deg in (2, 5, 10):
        assert found.probability_below(angle_deg)[0] == pytest.approx((error < angle_deg).mean(), abs=0.035)
    assert float(found.covariance[0, 0, 0]) < (np.radians(np.quantile(error, 0.9)) / 2.5003) ** 2


def test_the_shape_is_that_of_the_bingham_numbers() -> None:
    q = torch.from_numpy(Rotation.random(1, rng=1).as_quat())
    precision = torch.diag(torch.tensor([1.0, 4.0, 9.0], dtype=torch.float64))[None] * 1e3
    bingham = upper_from_matrix(matrix_about(q, precision)).numpy()
    found = pose_uncertainty(predicted(turns_deg(1.0), 0.99, bingham), Path("p.star"))
    widths = torch.linalg.eigvalsh(found.covariance[0])
    np.testing.assert_allclose(widths / widths[0], [1, 9 / 4, 9], rtol=0.01)


def test_poses_that_are_never_right_are_harmless() -> None:
    error = np.degrees(Rotation.random(20000, rng=RNG).magnitude())
    found = pose_uncertainty(predicted(error, 0.0), Path("p.star"))
    assert np.isfinite(found.covariance.numpy()).all()
    assert found.probability_below(20)[0] == pytest.approx((error < 20).mean(), abs=0.01)


def test_a_table_without_radii_is_refused() -> None:
    with pytest.raises(ParticleFileError, match="no column cryoforumCredibleRadius90"):
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


def test_every_column_that_is_checked_has_a_label() -> None:
    for name in ("credible_radius_50_deg", "credible_radius_95_deg", "right_basin", "expected_shift_error_A"):
        columns = {"credible_radius_90_deg": np.ones(2), name: np.array([1.0, np.nan])}
        with pytest.raises(ParticleFileError, match="is not a number in 1 of 2 rows"):
            pose_uncertainty(Prediction(np.ones(2), **columns), Path("p.star"))
