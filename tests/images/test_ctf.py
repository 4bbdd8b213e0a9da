"""The CTF against RELION's formula written out once more, and against torch-ctf."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch_ctf import calculate_ctf_2d

from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.particles import Ctf


def make_ctf(n: int, seed: int = 0, **changes: float) -> Ctf:
    rng = np.random.default_rng(seed)
    values = {
        "defocus_u_A": rng.uniform(8e3, 3e4, n),
        "defocus_v_A": rng.uniform(8e3, 3e4, n),
        "defocus_angle_deg": rng.uniform(-90, 270, n),
        "voltage_kV": rng.choice([100.0, 200.0, 300.0], n),
        "spherical_aberration_mm": rng.uniform(0, 2.7, n),
        "amplitude_contrast": rng.uniform(0.0, 0.2, n),
        "phase_shift_deg": rng.uniform(0, 90, n),
    }
    return Ctf(**(values | {name: np.full(n, value) for name, value in changes.items()}))


def relion_ctf(ctf: Ctf, i: int, box_px: int, pixel_size_A: float) -> NDArray[np.float64]:
    """One CTF after shared notes on RELION's ctf.cpp: volts, Å, angles from +x to +y, minus sin(gamma)."""
    k_y, k_x = np.meshgrid(
        np.fft.fftfreq(box_px, pixel_size_A), np.fft.rfftfreq(box_px, pixel_size_A), indexing="ij"
    )
    volts = ctf.voltage_kV[i] * 1000
    wavelength = 12.2643247 / np.sqrt(volts * (1.0 + volts * 0.978466e-6))
    u, v = ctf.defocus_u_A[i], ctf.defocus_v_A[i]
    alpha = np.arctan2(k_y, k_x)
    defocus = (u + v) / 2 + (u - v) / 2 * np.cos(2 * (alpha - np.radians(ctf.defocus_angle_deg[i])))
    k_squared = k_x**2 + k_y**2
    spherical_A = ctf.spherical_aberration_mm[i] * 1e7
    q0 = ctf.amplitude_contrast[i]
    gamma = -np.pi * wavelength * defocus * k_squared + np.pi / 2 * spherical_A * wavelength**3 * k_squared**2
    gamma = gamma - np.radians(ctf.phase_shift_deg[i]) - np.arctan(q0 / np.sqrt(1 - q0**2))
    return np.asarray(-np.sin(gamma))


@pytest.mark.parametrize(("box_px", "pixel_size_A"), [(64, 3.0), (100, 3.54), (256, 1.06)])
def test_equals_relions_formula(box_px: int, pixel_size_A: float) -> None:
    ctf = make_ctf(8)
    values = ctf_2d(ctf, box_px, pixel_size_A).numpy()
    for i in range(8):
        assert np.abs(values[i] - relion_ctf(ctf, i, box_px, pixel_size_A)).max() < 5e-4


def test_dc_is_the_amplitude_contrast() -> None:
    assert ctf_2d(make_ctf(3, amplitude_contrast=0.1, phase_shift_deg=0.0), 32, 2.0)[:, 0, 0].numpy() == (
        pytest.approx(0.1, abs=1e-6)
    )


def test_agrees_with_torch_ctf() -> None:
    ctf = make_ctf(5)
    u = np.maximum(ctf.defocus_u_A, ctf.defocus_v_A)
    v = np.minimum(ctf.defocus_u_A, ctf.defocus_v_A)
    swapped = ctf.defocus_u_A < ctf.defocus_v_A
    as_tensor = [
        torch.from_numpy(a).float()
        for a in (
            (u + v) / 2e4,
            (u - v) / 2e4,
            ctf.defocus_angle_deg + 90 * swapped,
            ctf.voltage_kV,
            ctf.spherical_aberration_mm,
            ctf.amplitude_contrast,
            ctf.phase_shift_deg,
        )
    ]
    expected = calculate_ctf_2d(*as_tensor, pixel_size=2.5, image_shape=(64, 64), rfft=True, fftshift=False)
    assert (ctf_2d(ctf, 64, 2.5) - expected).abs().max() < 2e-3


def test_swapping_u_and_v_is_a_quarter_turn() -> None:
    ctf = make_ctf(4)
    swapped = Ctf(
        ctf.defocus_v_A,
        ctf.defocus_u_A,
        ctf.defocus_angle_deg + 90,
        ctf.voltage_kV,
        ctf.spherical_aberration_mm,
        ctf.amplitude_contrast,
        ctf.phase_shift_deg,
    )
    assert (ctf_2d(ctf, 32, 2.0) - ctf_2d(swapped, 32, 2.0)).abs().max() < 1e-4


def test_no_astigmatism_is_round_and_finite() -> None:
    value = ctf_2d(make_ctf(2, defocus_u_A=1e4, defocus_v_A=1e4), 32, 2.0)
    assert torch.isfinite(value).all()
    assert (value[:, :17, 0] - value[:, 0, :]).abs().max() < 1e-5


def test_pixel_sizes_may_differ_between_particles() -> None:
    ctf = make_ctf(4)
    sizes = np.array([1.0, 2.0, 1.0, 3.5])
    together = ctf_2d(ctf, 32, sizes)
    for i, size in enumerate(sizes):
        assert (
            together[i] - ctf_2d(ctf[i : i + 1], 32, float(size))[0]
        ).abs().max() < 5e-4  # float32 phases of up to 500 rad


def test_autocast_does_not_touch_it() -> None:
    ctf = make_ctf(3)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = ctf_2d(ctf, 64, 2.0)
    assert value.dtype == torch.float32
    assert torch.equal(value, ctf_2d(ctf, 64, 2.0))


def test_five_thousand_take_little_time() -> None:
    ctf = make_ctf(5000)
    ctf_2d(ctf[:10], 64, 3.0)
    start = time.perf_counter()
    ctf_2d(ctf, 64, 3.0)
    assert time.perf_counter() - start < 5  # 0.05 s on an idle core
