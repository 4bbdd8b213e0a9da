"""Figures against known answers; rows matched by identity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoforum_plugin.confidence.evaluation import angular_errors, evaluate
from cryoforum_plugin.confidence.matching import match_rows
from cryoforum_plugin.confidence.ranking import auroc, spearman
from cryoforum_plugin.errors import ParticleFileError, SettingsError
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.particles import ParticleSet, Prediction

N = 400
KEYS = [
    "n", "median_rad", "mean_rad", "p90_rad", "median_deg", "mean_deg", "p90_deg", "fraction_below_5deg",
    "fraction_below_10deg", "shift_rmse_A", "spearman_expected_vs_actual", "auroc_error_above_10deg",
    "coverage_50", "coverage_90", "coverage_95", "brier", "unpredicted",
]  # fmt: skip


def turned(particles: ParticleSet, vectors_rad: np.ndarray) -> np.ndarray:
    """Orientations turned by rotation vectors `(n, 3)` in the image frame."""
    return (Rotation.from_quat(particles.require_rotation()) * Rotation.from_rotvec(vectors_rad)).as_quat()


def bingham_of(rotation: np.ndarray, sigma_rad: np.ndarray) -> np.ndarray:
    """Ten numbers of isotropic posteriors: A = g (1 - q q'), g = 2 / sigma^2."""
    upper = np.triu_indices(4)
    a = (2 / sigma_rad**2)[:, None, None] * (np.eye(4) - rotation[:, :, None] * rotation[:, None, :])
    return a[:, *upper]


@pytest.fixture
def truth(make_particles) -> ParticleSet:
    return make_particles(N)


def test_known_errors_give_known_figures(make_particles, truth: ParticleSet) -> None:
    error_deg = np.linspace(0, 20, N)
    axes = np.random.default_rng(0).normal(size=(N, 3))
    axes /= np.linalg.norm(axes, axis=1, keepdims=True)
    rotation = turned(truth, axes * np.radians(error_deg)[:, None])
    prediction = Prediction(
        confidence=(error_deg < 5).astype(float),
        expected_error_deg=error_deg**2,
        bingham=bingham_of(rotation, np.full(N, 0.1)),
    )
    predicted = make_particles(N, prediction, rotation=-rotation, shift_A=np.tile([3.0, 4.0], (N, 1)))
    figures, reasons = evaluate(predicted, truth)
    assert list(figures) == KEYS
    assert reasons == {}
    assert figures["n"] == N
    assert figures["median_deg"] == pytest.approx(10, abs=1e-6)
    assert figures["mean_rad"] == pytest.approx(np.radians(10), abs=1e-8)
    assert figures["p90_deg"] == pytest.approx(18, abs=1e-6)
    assert figures["fraction_below_5deg"] == pytest.approx(0.25, abs=0.005)
    assert figures["fraction_below_10deg"] == pytest.approx(0.5, abs=0.005)
    assert figures["shift_rmse_A"] == pytest.approx(5)
    assert figures["spearman_expected_vs_actual"] == pytest.approx(1)
    assert figures["auroc_error_above_10deg"] == 1
    assert figures["brier"] == 0
    assert json.loads(json.dumps(figures)) == figures


def test_coverage_is_the_level_when_errors_follow_the_posterior(make_particles) -> None:
    n = 4000
    truth = make_particles(n)
    rng = np.random.default_rng(1)
    sigma_rad = rng.uniform(0.01, 0.1, n)
    rotation = turned(truth, rng.normal(size=(n, 3)) * sigma_rad[:, None])
    prediction = Prediction(confidence=np.full(n, 0.5), bingham=bingham_of(rotation, sigma_rad))
    figures, reasons = evaluate(make_particles(n, prediction, rotation=rotation), truth)
    for level in (50, 90, 95):
        assert figures[f"coverage_{level}"] == pytest.approx(level / 100, abs=0.025)
    assert figures["brier"] == pytest.approx(0.25)
    assert figures["spearman_expected_vs_actual"] is None
    assert "no expected errors" in reasons["auroc_error_above_10deg"]


def test_symmetry_copies_are_no_error(make_particles, truth: ParticleSet) -> None:
    group = Rotation.from_quat(symmetry_group("D2"))
    picks = np.arange(N) % len(group)
    copies = (group[picks] * Rotation.from_quat(truth.require_rotation())).as_quat()
    predicted = make_particles(N, rotation=copies)
    assert evaluate(predicted, truth, "D2")[0]["p90_deg"] < 1e-5
    assert evaluate(predicted, truth, "C1")[0]["p90_deg"] > 179
    with pytest.raises(SettingsError, match="unknown symmetry"):
        evaluate(predicted, truth, "Q1")


def test_undefined_figures_are_none_with_a_reason(make_particles, truth: ParticleSet) -> None:
    figures, reasons = evaluate(truth, truth)
    assert figures["median_deg"] == 0
    assert {name for name, value in figures.items() if value is None} == set(reasons) == set(KEYS[10:-1])
    prediction = Prediction(
        confidence=np.ones(N), expected_error_deg=np.ones(N), credible_radius_90_deg=np.ones(N)
    )
    figures, reasons = evaluate(make_particles(N, prediction, shift_A=None), truth)
    assert figures["coverage_90"] == 1
    assert set(reasons) == {"shift_rmse_A", *KEYS[10:13], "coverage_95"}
    assert reasons["auroc_error_above_10deg"] == "no errors are above 10 deg"


def test_tables_without_poses_or_rows_are_refused(make_particles, truth: ParticleSet) -> None:
    with pytest.raises(ParticleFileError, match="no orientations"):
        evaluate(make_particles(N, rotation=None), truth)
    with pytest.raises(ParticleFileError, match="no particles"):
        evaluate(truth[:0], truth)


@pytest.mark.parametrize("suffix", ["star", "cs"])
def test_rows_are_matched_by_identity(make_particles, suffix: str) -> None:
    uid = np.random.default_rng(2).permutation(10**6)[:N].astype(np.uint64)
    reference = make_particles(N, source=Path(f"a.{suffix}"), uid=uid)
    order = np.random.default_rng(3).permutation(N)[: N // 2]
    predicted = reference[order]
    np.testing.assert_array_equal(match_rows(predicted, reference), order)
    assert evaluate(predicted, reference)[0]["p90_rad"] == 0


def test_star_and_cs_are_matched_by_image(make_particles) -> None:
    reference = make_particles(6, source=Path("a.cs"), uid=np.arange(100, 106, dtype=np.uint64))
    predicted = make_particles(6)[::-1]
    np.testing.assert_array_equal(match_rows(predicted, reference), np.arange(6)[::-1])


def test_stacks_in_another_order_are_matched(make_particles) -> None:
    a = make_particles(4, stacks=(Path("x.mrcs"), Path("y.mrcs")), stack_index=np.array([0, 0, 1, 1]))
    b = make_particles(4, stacks=(Path("y.mrcs"), Path("./x.mrcs")), stack_index=np.array([1, 1, 0, 0]))
    np.testing.assert_array_equal(match_rows(a, b), np.arange(4))


def test_particles_that_are_missing_are_counted_and_named(make_particles) -> None:
    with pytest.raises(ParticleFileError, match=r"5 of 10 particles .*first: 6@.*stack.mrcs, 7@"):
        match_rows(make_particles(10), make_particles(5))
    elsewhere = make_particles(5, stacks=(Path("other/stack.mrcs"),))
    with pytest.raises(ParticleFileError, match="5 of 5 particles"):
        match_rows(make_particles(5), elsewhere)


def test_particles_that_are_there_twice_are_refused(make_particles) -> None:
    reference = make_particles(5, slice_index=np.array([0, 1, 2, 2, 3]))
    with pytest.raises(ParticleFileError, match=r"1 particles occur more than once .*3@.*stack.mrcs"):
        match_rows(make_particles(4), reference)
    np.testing.assert_array_equal(match_rows(make_particles(2), reference), [0, 1])


def test_auroc_counts_pairs() -> None:
    rng = np.random.default_rng(4)
    score, positive = rng.integers(0, 6, 60).astype(float), rng.random(60) < 0.3
    gain = np.sign(score[positive][:, None] - score[~positive][None, :])
    assert auroc(score, positive) == pytest.approx(((gain + 1) / 2).mean())
    assert auroc(score, np.zeros(60, dtype=bool)) is None
    assert auroc(score, np.ones(60, dtype=bool)) is None


def test_spearman_is_rank_correlation() -> None:
    x = np.array([1.0, 2, 3, 4])
    assert spearman(x, np.exp(x)) == pytest.approx(1)
    assert spearman(x, -(x**3)) == pytest.approx(-1)
    assert spearman(x, np.ones(4)) is None
    assert spearman(x[:2], x[:2]) is None


def test_errors_in_blocks_equal_errors_at_once(generator: torch.Generator) -> None:
    q = torch.nn.functional.normalize(torch.randn(40000, 4, generator=generator).double(), dim=1).numpy()
    errors = angular_errors(q, np.roll(q, 1, axis=0), symmetry_group("C1"))
    dot = np.abs((q * np.roll(q, 1, axis=0)).sum(1)).clip(max=1)
    np.testing.assert_allclose(errors, 2 * np.arccos(dot), atol=1e-6)
