"""Figures of reliability against errors of a known law."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation
from scipy.stats import chi

from cryoforum_plugin.confidence.basin import fit_basin
from cryoforum_plugin.confidence.crossed import crossed
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.confidence.reliability import reliability
from cryoforum_plugin.particles import Prediction
from cryoforum_plugin.posterior import matrix_about, upper_from_matrix

N = 4000
RNG = np.random.default_rng(1)
SD_DEG = 3.0 * np.exp(0.4 * RNG.standard_normal(N))
ERROR_DEG = chi.rvs(3, size=N, random_state=RNG) * SD_DEG
VIEWS = Rotation.random(N, rng=RNG).as_quat()


def predicted(factor: float = 1.0) -> Prediction:
    """Isotropic normal errors, said to be `factor` times as large as they are."""
    said = SD_DEG * factor
    return Prediction(
        confidence=chi.cdf(5 / said, 3),
        rotation=VIEWS,
        expected_error_deg=chi.mean(3) * said,
        credible_radius_90_deg=chi.ppf(0.9, 3) * said,
    )


def test_right_uncertainties_are_reliable_everywhere() -> None:
    found = reliability(predicted(), np.radians(ERROR_DEG), {0.9: 0.9}, "C1")
    assert found["particles"] == N
    expected = [group["expected_deg"] for group in found["quintiles"]]
    assert expected == sorted(expected)
    for group in found["quintiles"]:
        assert group["n"] == N // 5
        assert group["coverage_90"] == pytest.approx(0.9, abs=0.03)
        assert group["actual_deg"] == pytest.approx(group["expected_deg"], rel=0.06)
    assert 20 <= len(found["directions"]) <= 28
    assert sum(cell["n"] for cell in found["directions"]) == N
    assert all(abs(cell["coverage_90"] - 0.9) < 0.1 for cell in found["directions"])
    bins = found["confidence"]
    for said, seen, n in zip(bins["predicted"], bins["observed"], bins["n"], strict=True):
        assert seen == pytest.approx(said, abs=4 * np.sqrt(0.25 / n))
    assert found["spearman"] > 0.5


def test_the_risk_falls_when_the_unsure_are_left_out() -> None:
    found = reliability(predicted(), np.radians(ERROR_DEG), {}, "C1")
    risk = found["risk_coverage"]
    assert risk["kept"][-1] == 1.0
    assert risk["mean_error_deg"][-1] == pytest.approx(ERROR_DEG.mean())
    assert risk["mean_error_deg"][9] == pytest.approx(ERROR_DEG[np.argsort(SD_DEG)[: N // 2]].mean())
    shuffled = predicted()[RNG.permutation(N)]
    assert reliability(shuffled, np.radians(ERROR_DEG), {}, "C1")["aurc_deg"] > 1.2 * found["aurc_deg"]


def test_too_sharp_uncertainties_are_found_out() -> None:
    found = reliability(predicted(0.5), np.radians(ERROR_DEG), {}, "C1")
    assert max(group["coverage_90"] for group in found["quintiles"]) < 0.7
    assert found["brier"] > reliability(predicted(), np.radians(ERROR_DEG), {}, "C1")["brier"]


@pytest.mark.parametrize("claimed", [0.5, 2.0])
def test_each_fifth_is_judged_by_the_others(claimed: float) -> None:
    n, sd = 1000, np.radians(2.0)
    rng = np.random.default_rng(4)
    truth = Rotation.random(n, rng=rng)
    pose = Rotation.from_rotvec(sd * rng.standard_normal((n, 3))) * truth
    matrix = torch.eye(3, dtype=torch.double).expand(n, 3, 3) / (claimed * sd) ** 2
    bingham = upper_from_matrix(matrix_about(torch.from_numpy(pose.as_quat()), matrix))
    raw = RawPrediction(
        bingham, torch.zeros(n, 2), torch.ones(n), torch.zeros(n, 3), torch.zeros(n, dtype=torch.bool)
    )
    error = (pose * truth.inv()).magnitude()
    found = crossed(raw, error, rng.standard_normal((n, 2)), truth.as_quat(), "C1")
    coverage = dict(zip(found["coverage"]["levels"], found["coverage"]["found"], strict=True))
    for level in (0.1, 0.5, 0.9, 0.95):
        assert coverage[level] == pytest.approx(level, abs=0.04)


def test_only_the_judged_are_judged_and_wrong_basins_count() -> None:
    """A twentieth of the poses lies in a wrong basin, with little contrast; the other half of the rows is only fitted on."""
    n, sd = 2000, np.radians(1.0)
    rng = np.random.default_rng(6)
    truth = Rotation.random(n, rng=rng)
    pose = Rotation.from_rotvec(sd * rng.standard_normal((n, 3))) * truth
    right = rng.random(n) > 0.05
    quaternion = np.where(right[:, None], pose.as_quat(), Rotation.random(n, rng=rng).as_quat())
    matrix = torch.eye(3, dtype=torch.double).expand(n, 3, 3) / sd**2
    contrast = np.where(right, rng.normal(1, 0.1, n), rng.normal(0.6, 0.1, n))
    gain = np.full(n, 100.0)
    raw = RawPrediction(
        upper_from_matrix(matrix_about(torch.from_numpy(quaternion), matrix)), torch.zeros(n, 2), torch.ones(n),
        torch.zeros(n, 3), torch.zeros(n, dtype=torch.bool), contrast=torch.from_numpy(contrast), gain=torch.from_numpy(gain),
    )  # fmt: skip
    error = (Rotation.from_quat(quaternion) * truth.inv()).magnitude()
    basin = fit_basin(contrast, gain, right, rng.normal(0.6, 0.1, 128), np.full(128, 100.0), 120.0)
    judged = np.arange(n) < n // 2
    found = crossed(raw, error, rng.standard_normal((n, 2)), truth.as_quat(), "C1", basin, right, judged)
    assert found["particles"] == n // 2
    coverage = dict(zip(found["coverage"]["levels"], found["coverage"]["found"], strict=True))
    assert coverage[0.9] == pytest.approx(0.9, abs=0.04)
    assert coverage[0.5] == pytest.approx(0.5, abs=0.04)
    assert found["confidence"]["observed"][-1] > 0.98
