"""The contrast transfer function, in RELION's convention."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.images.fourier import frequency_grid
from cryoforum_plugin.particles import Ctf, FloatArray


def electron_wavelength_A(voltage_kV: FloatArray) -> FloatArray:
    """Relativistic wavelength in Å of electrons of `voltage_kV` `(n,)`, with RELION's constants."""
    voltage_V = np.asarray(voltage_kV, dtype=np.float64) * 1e3
    return np.asarray(12.2643247 / np.sqrt(voltage_V * (1 + 0.978466e-6 * voltage_V)))


def ctf_phases(ctf: Ctf, box_px: int, pixel_size_A: float | FloatArray) -> FloatArray:
    """Coefficients `(n, 5)` of the CTF's phase on a box of `box_px`: of k^2, of k^2 cos and sin of 2 phi, of k^4; 1.

    k in Fourier pixels, phi from +x towards +y. pixel_size_A : one number or `(n,)`.
    """
    wavelength_A = electron_wavelength_A(ctf.voltage_kV)
    mean_A = (ctf.defocus_u_A + ctf.defocus_v_A) / 2
    half_difference_A = (ctf.defocus_u_A - ctf.defocus_v_A) / 2
    azimuth = 2 * np.radians(ctf.defocus_angle_deg)
    step = 1 / (box_px * np.asarray(pixel_size_A, dtype=np.float64))  # (n,) or (), 1/Å between frequencies
    quadratic = np.pi * wavelength_A * step**2
    quartic = -np.pi / 2 * ctf.spherical_aberration_mm * 1e7 * wavelength_A**3 * step**4
    constant = np.radians(ctf.phase_shift_deg) + np.arcsin(ctf.amplitude_contrast)
    coefficients = [
        quadratic * mean_A,
        quadratic * half_difference_A * np.cos(azimuth),
        quadratic * half_difference_A * np.sin(azimuth),
        quartic,
        constant,
    ]
    return np.stack(coefficients, axis=-1)


def ctf_of_phases(phases: Tensor, box_px: int) -> Tensor:
    """CTF `(n, box, box // 2 + 1)` of the coefficients `(n, 5)` of `ctf_phases`, float32, on their device."""
    with torch.autocast(phases.device.type, enabled=False):
        ky, kx = frequency_grid(box_px, phases.device)
        k2 = kx.square() + ky.square()
        products = torch.stack([k2, kx.square() - ky.square(), 2 * kx * ky, k2.square()]).flatten(1)
        phase = torch.addmm(phases[:, 4:], phases[:, :4], products)
        return phase.sin_().view(-1, box_px, box_px // 2 + 1)


def ctf_2d(
    ctf: Ctf, box_px: int, pixel_size_A: float | FloatArray, device: torch.device | str = "cpu"
) -> Tensor:
    """Evaluate the CTF on the frequencies of `torch.fft.rfft2`.

    Written out rather than taken from torch-ctf: the phase is linear in four frequency products, so one
    matrix product serves all particles (20 x faster on a CPU), U < V and U = V need no special case
    (torch-ctf gives NaN or a NaN gradient), and it follows RELION to 1e-4 (torch-ctf: 1e-3). The tests
    compare the two.

    Parameters
    ----------
    ctf : n particles; the defocus angle turns from +x towards +y (rows downwards), U along it.
    box_px : even box size. pixel_size_A : one number or `(n,)`.

    Returns
    -------
    `(n, box, box // 2 + 1)` float32, DC at [0, 0]: -sin(gamma), which is +amplitude_contrast at DC
    (`3dem/relion:src/ctf.cpp`). Underfocus is positive.
    """
    phases = np.ascontiguousarray(ctf_phases(ctf, box_px, pixel_size_A), dtype=np.float32)
    return ctf_of_phases(torch.from_numpy(phases).to(device), box_px)
