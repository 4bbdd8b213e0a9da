"""Implausible labels: found where predictions are sure, never where the network is at fault."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from cryoforum_plugin.confidence.labels import LEAST, estimate_wrong, fit_and_judge
from cryoforum_plugin.confidence.raw import RawPrediction
from cryoforum_plugin.geometry import random_quaternions
from cryoforum_plugin.posterior import matrix_about, upper_from_matrix

C1 = torch.tensor([[0.0, 0.0, 0.0, 1.0]]).double()
COUNT = 1000


def made(sigma_rad: float, claimed_rad: float, wrong: float) -> tuple[RawPrediction, np.ndarray, np.ndarray]:
    """Predictions with errors of sigma_rad an axis, claimed to be claimed_rad; labels, of which some are wrong."""
    generator = torch.Generator().manual_seed(1)
    known = random_quaternions(COUNT, generator).double()
    turn = torch.randn(COUNT, 4, generator=generator).double() * sigma_rad / 2
    found = torch.nn.functional.normalize(known + turn, dim=1)
    precision = torch.eye(3).double().expand(COUNT, 3, 3) / claimed_rad**2
    bad = torch.rand(COUNT, generator=generator) < wrong
    known[bad] = random_quaternions(int(bad.sum()), generator).double()
    zero = torch.zeros(COUNT, 2).double()
    bingham = upper_from_matrix(matrix_about(found, precision))
    raw = RawPrediction(bingham, zero, torch.ones(COUNT), zero, torch.zeros(COUNT, dtype=torch.bool))
    return raw, known.numpy(), bad.numpy()


@pytest.mark.parametrize("claimed_rad", [0.03, 0.1, 0.3])
def test_a_tenth_of_wrong_labels_is_found_and_does_not_widen_the_balls(claimed_rad: float) -> None:
    raw, known, bad = made(0.1, claimed_rad, 0.1)
    factors, judged = fit_and_judge(raw, known, np.ones((COUNT, 2)), C1, 0.08)
    assert factors.width == pytest.approx((claimed_rad / 0.1) ** 2, rel=0.15)
    assert judged.weight == pytest.approx(bad.mean(), abs=0.02)
    assert (judged.suspect == bad).mean() > 0.99


def test_right_labels_stay_whatever_is_presupposed() -> None:
    raw, known, _ = made(0.1, 0.05, 0.0)
    _, judged = fit_and_judge(raw, known, np.ones((COUNT, 2)), C1, 0.1)
    assert judged.suspect.mean() < 0.005
    _, judged = fit_and_judge(raw, known, np.ones((COUNT, 2)), C1, 0.0)
    assert not judged.suspect.any()


@pytest.mark.parametrize("claimed_rad", [0.02, 0.5])
def test_a_network_that_knows_nothing_accuses_no_label(claimed_rad: float) -> None:
    raw, known, _ = made(0.1, claimed_rad, 1.0)
    _, judged = fit_and_judge(raw, known, np.ones((COUNT, 2)), C1, 0.02)
    assert judged.suspect.mean() < 0.01
    assert judged.weight == 0 or not judged.suspect.any()


@pytest.mark.parametrize("wrong", [0.0, 0.1, 0.3])
@pytest.mark.parametrize("claimed_rad", [0.03, 0.3])
def test_the_part_that_training_never_saw_is_estimated_up_to_a_half(claimed_rad: float, wrong: float) -> None:
    raw, known, bad = made(0.1, claimed_rad, wrong)
    assert estimate_wrong(raw, known, C1, 0.02) == pytest.approx(bad.mean(), abs=0.02)
    assert estimate_wrong(raw, known, C1, 0.0) == 0


def test_sharp_and_right_labels_leave_a_weight_that_says_they_were_judged() -> None:
    raw, known, _ = made(1e-4, 1e-4, 0.0)
    _, judged = fit_and_judge(raw, known, np.ones((COUNT, 2)), C1, 0.02)
    assert judged.weight == LEAST


def test_where_most_labels_would_be_left_out_the_weight_is_0() -> None:
    """A network sure of itself about wholly wrong poses."""
    raw, known, _ = made(0.1, 0.1, 0.7)
    _, judged = fit_and_judge(raw, known, np.ones((COUNT, 2)), C1, 0.4)
    assert judged.weight == 0
    assert not judged.suspect.any()
