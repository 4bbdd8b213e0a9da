"""From rows of a table to centred Fourier transforms, and into a back-projector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import roma
import torch
from numpy.typing import NDArray
from torch import Tensor

from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.fourier import crop_transform, shift_transform
from cryoforum_plugin.images.working import flat_background, normalise_background
from cryoforum_plugin.particles import IntArray, ParticleSet
from cryoforum_plugin.reconstruction.backproject import BackProjector
from cryoforum_plugin.reconstruction.slice_weights import SliceWeights

PIXELS_PER_BATCH = 2**22


class Reader(Protocol):
    """What is needed of `images.stacks.StackReader`."""

    def check(self, particles: ParticleSet) -> int: ...

    def read(self, stack_index: IntArray, slice_index: IntArray) -> NDArray[np.float32]: ...


@dataclass(frozen=True)
class ReconstructionSettings:
    """How to reconstruct.

    symmetry : point group in RELION's names. box_px : Fourier-crop images to this even box first, None
    = leave. use_ctf : correct for the CTF. weight : of particles, one of WEIGHTS (see `slice_weights`).
    normalise : bring every image's background to mean 0 and s.d. 1. mask_radius_A : soft sphere about the
    centre applied before the FSC, None = the largest that fits. regularisation, padding : see `BackProjector`.
    """

    symmetry: str = "C1"
    box_px: int | None = None
    use_ctf: bool = True
    weight: str = "none"
    normalise: bool = True
    mask_radius_A: float | None = None
    regularisation: float = 1e-3
    padding: int = 2


@dataclass(frozen=True)
class SliceSource:
    """Prepares batches of particles and feeds them to back-projectors."""

    particles: ParticleSet
    reader: Reader
    settings: ReconstructionSettings
    even_px: int
    box_px: int
    pixel_size_A: float
    weighting: SliceWeights

    def back_project(
        self,
        rows: IntArray,
        device: torch.device | str,
        progress: Callable[[int], None] | None,
        into: BackProjector | None = None,
    ) -> tuple[BackProjector, int]:
        """Insert the particles `rows`, into what is there if `into` is given; also return how many could be used."""
        projector = BackProjector(self.box_px, device, self.settings.padding) if into is None else into
        rotation = torch.from_numpy(self.particles.require_rotation())
        step = max(1, PIXELS_PER_BATCH // self.even_px**2)
        count = 0
        for start in range(0, len(rows), step):
            batch = rows[start : start + step]
            transforms, usable = self.read(batch, device)
            ctf = None
            if self.settings.use_ctf:
                ctf = ctf_2d(self.particles.require_ctf()[batch], self.box_px, self.pixel_size_A, device)
            matrices = roma.unitquat_to_rotmat(rotation[batch]).float()
            scalar, damping = self.weighting.of(batch, self.box_px, self.pixel_size_A, device)
            if damping is not None:
                ctf = damping if ctf is None else ctf * damping
            projector.insert(transforms, matrices.to(device), ctf, scalar * usable)
            count += int(usable.sum())
            if progress is not None:
                progress(len(batch))
        return projector, count

    def read(self, rows: IntArray, device: torch.device | str) -> tuple[Tensor, Tensor]:
        """Transforms `(b, box, box // 2 + 1)` of centred images, and `(b,)` 1 where usable, else 0."""
        particles = self.particles
        stored = self.reader.read(particles.stack_index[rows], particles.slice_index[rows])
        images = torch.from_numpy(stored[:, : self.even_px, : self.even_px]).to(device)  # centre stays n // 2
        flat = images.flatten(1)
        usable = torch.isfinite(flat).all(1) & (flat.amax(1) > flat.amin(1))
        images = torch.where(usable[:, None, None], images, torch.zeros_like(images))
        if self.settings.normalise:
            flat = flat_background(images, self.even_px / 2)  # no noise to scale by: kept as they are
            scaled = normalise_background(images, self.even_px / 2)
            images = torch.where(flat[:, None, None], images, scaled)
        transforms = torch.fft.rfft2(torch.fft.ifftshift(images, dim=(-2, -1)))
        transforms = crop_transform(transforms, self.box_px) * (self.box_px / self.even_px)  # density kept
        sign = torch.from_numpy(particles.contrast_sign[rows]).float().to(device)
        if particles.shift_A is not None:
            shift_px = torch.from_numpy(particles.shift_A[rows] / self.pixel_size_A)
            transforms = shift_transform(transforms, shift_px.to(device))
        return transforms * sign[:, None, None], usable.float()
