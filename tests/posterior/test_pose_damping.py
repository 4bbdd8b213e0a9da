"""Damping by uncertain poses, against random poses drawn one by one."""

import math

import numpy as np
import pytest
import torch
from scipy.spatial.transform import Rotation

from cryoforum_plugin.posterior.bingham import matrix_about, upper_from_matrix
from cryoforum_plugin.posterior.pose_damping import (
    damping,
    image_covariance,
    mean_square_coordinate_A2,
    shell_damping,
)

RNG = np.random.default_rng(1)
K = np.array([[0.01, 0.0], [0.0, 0.03], [0.03, 0.03], [-0.05, 0.02], [0.06, 0.0]])
COVARIANCE = np.radians(1) ** 2 * np.array([[9.0, 3.0, 0.0], [3.0, 4.0, -1.0], [0.0, -1.0, 16.0]])


def test_damping_is_the_mean_over_random_turns_and_shifts_of_a_gaussian_cloud() -> None:
    """Points of a Gaussian cloud of s.d. rho; the slice is read where the wrong pose says and compared with the right one."""
    rho, shift_sd = 60.0, 3.0
    points = rho * RNG.standard_normal((4000, 3))
    k3 = np.pad(K, ((0, 0), (0, 1)))
    true = np.exp(-2j * np.pi * k3 @ points.T)  # (k, points)
    total = np.zeros(len(K), dtype=complex)
    turns = 300
    for turn in RNG.multivariate_normal(np.zeros(3), COVARIANCE, turns):
        moved = Rotation.from_rotvec(turn).apply(points)  # the turn of the image frame
        wrong = np.exp(-2j * np.pi * (k3 @ moved.T + (K @ (shift_sd * RNG.standard_normal(2)))[:, None]))
        # the cloud's density is random: only each point with itself correlates
        total += (wrong * true.conj()).mean(axis=1)
    expected = damping(
        torch.from_numpy(COVARIANCE)[None],
        torch.tensor([shift_sd], dtype=torch.float64),
        rho**2,
        torch.from_numpy(K),
    )[0]
    np.testing.assert_allclose((total / turns).real, expected, atol=0.06)
    assert expected.min() < 0.3 < 0.9 < expected.max()


def test_first_order_is_the_usual_exponential() -> None:
    small = torch.from_numpy(COVARIANCE)[None] / 100
    k = torch.from_numpy(np.pad(K, ((0, 0), (0, 1))))
    form = torch.einsum("ki,ij,kj->k", k, torch.eye(3) * small[0].trace() - small[0], k)
    found = damping(small, torch.zeros(1, dtype=torch.float64), 900.0, torch.from_numpy(K))[0]
    torch.testing.assert_close(found, torch.exp(-2 * math.pi**2 * 900 * form), rtol=0.01, atol=0)


def test_covariance_is_that_of_turns_of_the_image_frame() -> None:
    rotation = Rotation.random(3, rng=2)
    matrices = rotation.as_matrix()
    in_volume = matrices @ COVARIANCE @ np.swapaxes(matrices, 1, 2)
    bingham = upper_from_matrix(
        matrix_about(torch.from_numpy(rotation.as_quat()), torch.from_numpy(np.linalg.inv(in_volume)))
    )
    np.testing.assert_allclose(
        image_covariance(bingham), np.broadcast_to(COVARIANCE, (3, 3, 3)), rtol=1e-6, atol=1e-12
    )
    assert torch.isfinite(image_covariance(torch.zeros(1, 10))).all()


def test_shell_mean_is_the_mean_over_the_circle() -> None:
    angle = np.linspace(0, 2 * np.pi, 360, endpoint=False)
    circle = 0.04 * np.stack([np.cos(angle), np.sin(angle)], 1)
    covariance, shift = torch.from_numpy(COVARIANCE)[None], torch.tensor([2.0], dtype=torch.float64)
    expected = damping(covariance, shift, 900.0, torch.from_numpy(circle))[0].mean()
    found = shell_damping(covariance, shift, 900.0, torch.tensor([0.0, 0.04], dtype=torch.float64))[0]
    assert float(found[0]) == 1
    assert float(found[1]) == pytest.approx(float(expected), rel=1e-6)


def test_mean_square_coordinate_of_a_ball() -> None:
    points = RNG.uniform(-50, 50, (400_000, 3))
    ball = points[np.linalg.norm(points, axis=1) < 50]
    assert mean_square_coordinate_A2(100) == pytest.approx(np.square(ball).mean(), rel=0.01)
