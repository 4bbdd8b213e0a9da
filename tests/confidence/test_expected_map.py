import numpy as np
import pytest

from cryoforum_plugin.confidence.expected_map import (
    expected_fsc,
    expected_resolution_A,
    particle_ssnr,
)

SHELLS = np.arange(33)


def true_fsc(particles: int, wrong: float = 0.0, b_shells: float = 60.0) -> np.ndarray:
    """Half maps of n / 2 particles each, a share `wrong` of them pure noise."""
    half = 0.02 * np.exp(-(SHELLS**2) / b_shells) * (particles * (1 - wrong)) ** 2 / particles / 2
    return half / (1 + half)


def test_a_subset_of_a_known_set_gives_the_fsc_of_its_number() -> None:
    ssnr = particle_ssnr(true_fsc(2000), 2000)
    for n in (200, 1000, 20000):
        np.testing.assert_allclose(expected_fsc(ssnr, np.full(33, float(n)), n), true_fsc(n), atol=0.01)


def test_noise_particles_lower_the_resolution_and_leaving_them_out_restores_it() -> None:
    ssnr = particle_ssnr(true_fsc(2000), 2000)
    with_noise = expected_fsc(ssnr, np.full(33, 1500.0), 2000)
    np.testing.assert_allclose(with_noise, true_fsc(2000, wrong=0.25), atol=0.01)
    best = expected_fsc(ssnr, np.full(33, 1500.0), 1500)
    assert expected_resolution_A(best, 384.0) < expected_resolution_A(with_noise, 384.0)


def test_signal_ratio_takes_out_what_the_known_particles_lost() -> None:
    damped = 0.5 * np.ones(33)
    half = 0.02 * np.exp(-(SHELLS**2) / 60) * 1000 * damped**2
    ssnr = particle_ssnr(half / (1 + half), 2000, damped)
    np.testing.assert_allclose(ssnr[1:10], 0.02 * np.exp(-(SHELLS[1:10] ** 2) / 60), rtol=1e-6)


def test_resolution_is_read_between_shells() -> None:
    curves = np.array([np.interp(SHELLS, [0, 10, 20], [1.0, 1.0, 0.0]), np.ones(33), np.zeros(33)])
    # 1 - (x - 10) / 10 = 0.143 at x = 18.57
    np.testing.assert_allclose(
        expected_resolution_A(curves, 100.0), [100 / 18.57, 100 / 32, 100.0], rtol=1e-3
    )
    assert expected_resolution_A(curves[0], 100.0) == pytest.approx(100 / 18.57, rel=1e-3)
