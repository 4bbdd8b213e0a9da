"""The reference: a map rebuilt from the training particles, and what it says of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import roma
import torch
from torch import Tensor

from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.pipeline import ImagePipeline, remaining_transfer
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.particles.half_sets import dealt_half_sets
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.reconstruction.backproject import BackProjector
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation, resolution_A, wiener_regularisation

# A diameter below this part of the box is not believed: too few images, or poses that do not fit together.
SMALLEST_PART = 0.25


@dataclass(frozen=True)
class Unsymmetrised:
    """The half maps before any symmetry was imposed on them, on the CPU.

    halves : two maps `(n, n, n)` zyx float32. weights : how often each frequency of their Fourier grids was
    seen, `(m, m, m // 2 + 1)` with m a multiple of n; poses kept in one asymmetric unit leave gaps.
    """

    halves: tuple[Tensor, Tensor]
    weights: tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Reference:
    """Map of the training particles at the working box.

    volume : `(n, n, n)` zyx float32, Wiener filtered. halves : two independent maps, unfiltered.
    fsc : `(n // 2 + 1,)` between them. pixel_size_A : of the maps. unsymmetrised : where it was asked for.
    """

    volume: Tensor
    halves: tuple[Tensor, Tensor]
    fsc: Tensor
    pixel_size_A: float
    unsymmetrised: Unsymmetrised | None = None

    @property
    def resolution_A(self) -> float:
        """Resolution in Å where the FSC of the halves falls below 0.143."""
        return resolution_A(self.fsc, 0.143, self.pixel_size_A)


def build_reference(
    pipeline: ImagePipeline,
    rows: IntArray,
    symmetry: str,
    working: Callable[[IntArray], Tensor],
    advance: Advance,
    keep_unsymmetrised: bool = False,
) -> Reference:
    """Back-project recentred working images of `rows` with their known poses, in two halves.

    working : gives the working images `(b, n, n)` of a batch of rows. keep_unsymmetrised : return the maps
    before symmetry too.
    """
    n, device, particles = pipeline.box.size_px, pipeline.device, pipeline.particles
    rotation = torch.from_numpy(particles.require_rotation()).float().to(device)
    group = torch.from_numpy(symmetry_group(symmetry)).float()
    half_of = torch.from_numpy(_halves(particles)).to(device)
    projectors = (BackProjector(n, device), BackProjector(n, device))
    for of_batch in pipeline.batches(rows):
        ft = torch.fft.rfft2(torch.fft.ifftshift(working(of_batch).to(device).float(), dim=(-2, -1)))
        data, weight = ft, torch.ones_like(ft.real)
        if particles.ctf is not None:
            ctf = ctf_2d(particles.ctf[of_batch], n, pipeline.sampling_A(of_batch), device=device)
            transfer = remaining_transfer(ctf, pipeline.ctf_mode)
            # images multiplied by the CTF hold F * CTF already
            data = ft if pipeline.ctf_mode == "multiply" else ft * transfer
            weight = ctf.square()
        matrices = roma.unitquat_to_rotmat(rotation[of_batch])
        for half, projector in enumerate(projectors):
            chosen = half_of[of_batch] == half
            projector.insert_weighted(data[chosen], matrices[chosen], weight[chosen])
        advance(len(of_batch), "")
    before = _unsymmetrised(*projectors) if keep_unsymmetrised else None
    for projector in projectors:
        projector.symmetrise(roma.unitquat_to_rotmat(group).to(device))
    halves = (projectors[0].volume(), projectors[1].volume())
    fsc = fourier_shell_correlation(*halves)
    both = projectors[0]
    both += projectors[1]
    volume = both.volume(wiener_regularisation(fsc))
    return Reference(volume, halves, fsc, float(np.median(pipeline.sampling_A(rows))), before)


def _unsymmetrised(first: BackProjector, second: BackProjector) -> Unsymmetrised:
    return Unsymmetrised(
        (first.volume().cpu(), second.volume().cpu()),
        (first.weights_of_frequencies().cpu(), second.weights_of_frequencies().cpu()),
    )


def _halves(particles: ParticleSet) -> IntArray:
    """0 or 1 for each row: the host's half sets where both are there, else by particle, copies together."""
    if set(np.unique(particles.half_set)) == {1, 2}:
        return particles.half_set - 1
    return dealt_half_sets(particles) - 1


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
    if len(inside) == 0 or profile.max() <= 0 or inside[-1] + 1 < SMALLEST_PART * n / 2:
        return None
    return float(2 * (inside[-1] + 1) * reference.pixel_size_A)
