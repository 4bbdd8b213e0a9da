"""The reference: a map rebuilt from the training particles, and what it says of them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import roma
import torch
from torch import Tensor

from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.pipeline import ImagePipeline, remaining_transfer
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.reconstruction.backproject import BackProjector
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation, resolution_A, wiener_regularisation

BATCH = 256


@dataclass(frozen=True)
class Reference:
    """Map of the training particles at the working box.

    volume : `(n, n, n)` zyx float32, Wiener filtered. halves : two independent maps, unfiltered.
    fsc : `(n // 2 + 1,)` between them. pixel_size_A : of the maps.
    """

    volume: Tensor
    halves: tuple[Tensor, Tensor]
    fsc: Tensor
    pixel_size_A: float

    @property
    def resolution_A(self) -> float:
        """Resolution in Å where the FSC of the halves falls below 0.143."""
        return resolution_A(self.fsc, 0.143, self.pixel_size_A)


def build_reference(
    pipeline: ImagePipeline, rows: IntArray, symmetry: str, working: Tensor | None, advance: Advance
) -> Reference:
    """Back-project recentred working images of `rows` with their known poses, in two halves.

    working : the working images `(len(rows), n, n)` where they are at hand already, else they are read.
    """
    n, device = pipeline.box.size_px, pipeline.device
    particles = pipeline.particles
    rotation = torch.from_numpy(particles.require_rotation()).float().to(device)
    group = torch.from_numpy(symmetry_group(symmetry)).float().to(device)
    projectors = (BackProjector(n, device), BackProjector(n, device))
    for start in range(0, len(rows), BATCH):
        of_batch = rows[start : start + BATCH]
        if working is None:
            shift = None if particles.shift_A is None else particles.shift_A[of_batch]
            images = pipeline.working(of_batch, shift)
        else:
            images = working[start : start + BATCH].to(device).float()
        ft = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
        transfer = torch.ones_like(ft.real)
        if particles.ctf is not None:
            ctf = ctf_2d(particles.ctf[of_batch], n, pipeline.sampling_A(of_batch), device=device)
            transfer = remaining_transfer(ctf, pipeline.ctf_mode)
        matrices = roma.unitquat_to_rotmat(rotation[of_batch])
        parity = torch.from_numpy(particles.origin[of_batch] % 2).to(device)  # copies stay in one half
        for half, projector in enumerate(projectors):
            chosen = parity == half
            projector.insert_weighted(
                ft[chosen] * transfer[chosen], matrices[chosen], transfer[chosen].square()
            )
        advance(len(of_batch), "")
    for projector in projectors:
        projector.symmetrise(roma.unitquat_to_rotmat(group))
    halves = (projectors[0].volume(), projectors[1].volume())
    fsc = fourier_shell_correlation(*halves)
    both = projectors[0]
    both += projectors[1]
    volume = both.volume(wiener_regularisation(fsc))
    return Reference(volume, halves, fsc, pipeline.box.pixel_size_A)


def estimate_diameter_A(reference: Reference) -> float | None:
    """Diameter in Å of the sphere about the box centre that holds the particle; None if it cannot be told.

    The product of two independent half maps, averaged over spherical shells, is the particle's power
    with no contribution from noise; the particle ends where that falls below 2 % of its largest value,
    or into the scatter seen at the rim of the box.
    """
    product = (reference.halves[0] * reference.halves[1]).cpu().numpy()
    n = product.shape[0]
    axis = np.arange(n) - n // 2
    radius = np.sqrt(axis[:, None, None] ** 2 + axis[None, :, None] ** 2 + axis[None, None, :] ** 2)
    shell = np.minimum(radius.round().astype(np.int64), n // 2)
    profile = np.bincount(shell.ravel(), product.ravel()) / np.bincount(shell.ravel())
    profile = np.convolve(np.pad(profile[: n // 2], 1, mode="edge"), [0.25, 0.5, 0.25], mode="valid")
    rim = profile[int(0.9 * n / 2) :]
    inside = np.flatnonzero(profile > max(0.02 * profile.max(), 4 * float(np.abs(rim).max())))
    if len(inside) == 0 or profile.max() <= 0 or inside[-1] < 2:
        return None
    return float(2 * (inside[-1] + 1) * reference.pixel_size_A)
