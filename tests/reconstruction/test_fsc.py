"""Fourier shell correlation, resolution, Wiener terms."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch_fourier_shell_correlation import fsc as library_fsc

from cryoforum_plugin.images.fourier import shell_index
from cryoforum_plugin.reconstruction.fsc import (
    fourier_shell_correlation,
    resolution_A,
    significant,
    smooth_to_zero,
    wiener_regularisation,
)


def test_equals_a_plain_sum_over_shells() -> None:
    a, b = torch.randn(2, 16, 16, 16)
    b = b + a
    fa, fb = np.fft.fftn(a.numpy()), np.fft.fftn(b.numpy())
    k = np.fft.fftfreq(16, 1 / 16)
    shells = np.round(np.sqrt(k[:, None, None] ** 2 + k[:, None] ** 2 + k**2))
    expected = []
    for s in range(9):
        x, y = fa[shells == s], fb[shells == s]
        expected.append((x * y.conj()).sum().real / np.sqrt((abs(x) ** 2).sum() * (abs(y) ** 2).sum()))
    assert fourier_shell_correlation(a, b).numpy() == pytest.approx(np.array(expected), abs=1e-5)


def test_close_to_the_soft_shells_of_the_library() -> None:
    base = torch.randn(32, 32, 32)
    transform = torch.fft.rfftn(base) * torch.exp(-shell_index(32, 3) / 4.0)
    smooth = torch.fft.irfftn(transform, s=base.shape)
    noisy = [smooth + 0.02 * torch.randn(32, 32, 32) for _ in range(2)]
    assert (fourier_shell_correlation(*noisy) - library_fsc(*noisy))[1:].abs().max() < 0.1


def test_identical_is_one_negative_is_minus_one_empty_is_zero() -> None:
    a = torch.randn(16, 16, 16)
    assert torch.allclose(fourier_shell_correlation(a, 3 * a), torch.ones(9), atol=1e-6)
    assert torch.allclose(fourier_shell_correlation(a, -a), -torch.ones(9), atol=1e-6)
    assert torch.equal(fourier_shell_correlation(a, torch.zeros_like(a)), torch.zeros(9))


def test_resolution_interpolates_between_shells() -> None:
    fsc = torch.tensor([1.0, 1.0, 0.9, 0.3, 0.1, 0.0, 0.0, 0.0, 0.0])
    assert resolution_A(fsc, 0.6, 2.0) == pytest.approx(16 * 2.0 / 2.5)
    assert resolution_A(fsc, 0.3, 2.0) == pytest.approx(16 * 2.0 / 3.0)
    assert resolution_A(torch.ones(9), 0.143, 2.0) == 4.0
    assert resolution_A(torch.zeros(9), 0.143, 2.0) == 32.0


def test_chance_peaks_beyond_the_first_fall_are_removed() -> None:
    fsc = torch.tensor([0.0, 0.9, 0.5, 0.1, 0.6, 0.2])
    assert smooth_to_zero(fsc).tolist() == pytest.approx([1, 0.9, 0.5, 0, 0, 0])


def halves(ssnr: torch.Tensor, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two maps of one random signal of a signal-to-noise ratio by shell `(n // 2 + 1,)`, with white noise."""
    n = 2 * (len(ssnr) - 1)
    generator = torch.Generator().manual_seed(seed)
    white = torch.fft.rfftn(torch.randn(n, n, n, generator=generator))
    signal = torch.fft.irfftn(white * ssnr.sqrt()[shell_index(n, 3).clamp(max=n // 2)], s=(n, n, n))
    first, second = signal + torch.randn(2, n, n, n, generator=generator)
    return first, second


SHELLS = torch.arange(17)
POINTS = 2 * torch.pi * SHELLS.square()


def test_of_pure_noise_nothing_is_significant() -> None:
    last = []
    for seed in range(40):
        kept = significant(fourier_shell_correlation(*halves(torch.zeros(17), seed)), POINTS)
        last.append(int((kept > 0).nonzero().max()) if (kept > 0).any() else 0)
    assert np.mean(last) < 1
    assert max(last) <= 2


def test_a_signal_is_kept_as_far_as_it_is_above_chance() -> None:
    """FSC = SSNR / (1 + SSNR); the last shell, which an even box holds in part, is never believed."""
    ssnr = 30 * torch.exp(-(SHELLS / 4.0).square())
    for seed in range(10):
        kept = significant(fourier_shell_correlation(*halves(ssnr, seed)), POINTS)
        assert kept[2:10] == pytest.approx((ssnr / (1 + ssnr))[2:10], abs=0.1)
        assert kept[:2].min() > 0.85  # the sign of shell 0, one number, is chance
        assert (kept[12:] == 0).all()
        everything = significant(fourier_shell_correlation(*halves(torch.full((17,), 20.0), seed)), POINTS)
        assert (everything[:-1] > 0.9).all()
        assert (everything < 1).all()
        assert everything[-1] == 0


def test_few_independent_points_need_more_correlation() -> None:
    fsc = torch.full((17,), 0.15)
    assert (significant(fsc, torch.full((17,), 1000.0))[:-1] > 0).all()
    assert (significant(fsc, torch.full((17,), 100.0)) == 0).all()


def test_wiener_term_is_the_inverse_signal_to_noise_of_both_halves() -> None:
    added = wiener_regularisation(torch.tensor([1.0, 0.8, 0.5, 0.0, 0.0]))
    assert added[1:3].tolist() == pytest.approx([0.2 / 1.6, 0.5])
    assert added[3] > 1e4
    assert torch.isfinite(added).all()
