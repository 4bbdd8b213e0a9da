"""Half maps, map and FSC from particles with orientations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import roma
import torch
from torch import Tensor

from cryoforum_plugin.errors import ParticleFileError, SettingsError
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.fourier import soft_mask
from cryoforum_plugin.particles import ParticleSet
from cryoforum_plugin.posterior.pose_damping import mean_square_coordinate_A2
from cryoforum_plugin.reconstruction.backproject import BackProjector
from cryoforum_plugin.reconstruction.cone_fsc import ConeFsc, cone_fsc
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation, resolution_A, wiener_regularisation
from cryoforum_plugin.reconstruction.half_sets import half_set_rows, in_reading_order
from cryoforum_plugin.reconstruction.slice_weights import slice_weights
from cryoforum_plugin.reconstruction.slices import Reader, ReconstructionSettings, SliceSource

__all__ = ["Reconstruction", "ReconstructionSettings", "common_pixel_size_A", "reconstruct"]

SIZE_TOLERANCE = 1e-3  # relative spread of pixel sizes that still counts as one
MASK_EDGE_PX = 6.0
DIAMETER_OF_BOX = 2 / 3  # of a particle whose size nobody tells, as boxes are made


@dataclass(frozen=True)
class Reconstruction:
    """Maps `(n, n, n)` zyx float32 on the CPU, protein bright if the particles are.

    half1, half2 : unfiltered. map : both halves together, Wiener filtered by the FSC. fsc :
    `(n // 2 + 1,)` of the masked half maps, cones : the same by direction. count1, count2 : particles
    used. notes : what a user should be told.
    """

    half1: Tensor
    half2: Tensor
    map: Tensor
    fsc: Tensor
    cones: ConeFsc
    pixel_size_A: float
    resolution_0143_A: float
    resolution_05_A: float
    count1: int
    count2: int
    notes: tuple[str, ...]


def reconstruct(
    particles: ParticleSet,
    reader: Reader,
    settings: ReconstructionSettings | None = None,
    device: torch.device | str = "cpu",
    progress: Callable[[int], None] | None = None,
    mask: Tensor | None = None,
) -> Reconstruction:
    """Back-project the two half sets and compare them; images are streamed in batches.

    progress : called with the number of particles done since the last call. mask : `(n, n, n)` for the FSC,
    instead of a soft sphere, in the box of the reconstruction.
    Raises ParticleFileError (no poses, no CTF, empty half set, mixed pixel sizes), SettingsError (a mask of
    another box, for one), and what `reader` raises.
    """
    settings = settings or ReconstructionSettings()
    group = torch.from_numpy(symmetry_group(settings.symmetry)).float()
    particles.require_rotation()
    if settings.use_ctf:
        particles.require_ctf()
    halves, note = half_set_rows(particles)
    pixel_A = common_pixel_size_A(particles)
    full_px = reader.check(particles)
    even_px = full_px - full_px % 2
    box_px = settings.box_px or even_px
    if box_px % 2 or not 8 <= box_px <= even_px:
        raise SettingsError(f"--box must be even and between 8 and {even_px} (the images): got {box_px}")
    if mask is not None and len(mask) != box_px:
        raise SettingsError(
            f"the mask has {len(mask)} voxels a side, the map {box_px}; make the mask from a map of this box"
        )
    sampling_A = pixel_A * even_px / box_px
    if mask is not None and not (mask > 0).any():
        raise SettingsError("the mask is empty: no voxel of it is above 0")
    weighting = slice_weights(particles, settings.weight, _rho2_A2(settings, mask, sampling_A, box_px))
    source = SliceSource(particles, reader, settings, even_px, box_px, sampling_A, weighting)
    projectors, counts = [], []
    for rows in halves:
        projector, count = source.back_project(in_reading_order(particles, rows), device, progress)
        projector.symmetrise(roma.unitquat_to_rotmat(group))
        projectors.append(projector)
        counts.append(count)
    skipped = len(particles) - sum(counts)
    notes = [] if note is None else [note]
    if skipped:
        notes.append(f"{particles.source}: {skipped} particles with constant or non-finite pixels left out")
    return _finish(projectors[0], projectors[1], source, (counts[0], counts[1]), tuple(notes), mask)


def _rho2_A2(
    settings: ReconstructionSettings, mask: Tensor | None, pixel_size_A: float, box_px: int
) -> float:
    """Mean square coordinate of the particle: of the mask, else of a ball, at most DIAMETER_OF_BOX wide."""
    if mask is not None:
        axis = (torch.arange(len(mask)) - len(mask) // 2).double() * pixel_size_A
        profiles = [mask.double().cpu().sum(dim) for dim in ((0, 1), (0, 2), (1, 2))]
        return float(sum((p * axis.square()).sum() / p.sum() for p in profiles) / 3)
    largest_A = DIAMETER_OF_BOX * box_px * pixel_size_A
    given_A = largest_A if settings.mask_radius_A is None else 2 * settings.mask_radius_A
    return mean_square_coordinate_A2(min(given_A, largest_A))


def common_pixel_size_A(particles: ParticleSet) -> float:
    """Pixel size all particles share. Raises ParticleFileError when they differ by more than 0.1 %."""
    sizes = particles.pixel_size_A
    low, high = float(sizes.min()), float(sizes.max())
    if high > low * (1 + SIZE_TOLERANCE):
        raise ParticleFileError(
            f"{particles.source}: pixel sizes from {low:g} to {high:g} Å in one table; "
            "rescale the particles to one pixel size or reconstruct each optics group by itself"
        )
    return float(np.median(sizes))


def _finish(
    first: BackProjector,
    second: BackProjector,
    source: SliceSource,
    counts: tuple[int, int],
    notes: tuple[str, ...],
    mask: Tensor | None,
) -> Reconstruction:
    """Divide, compare the masked halves, and filter their sum."""
    settings, pixel_A, box = source.settings, source.pixel_size_A, source.box_px
    halves = [projector.volume(settings.regularisation) for projector in (first, second)]
    if mask is None:
        largest_px = box / 2 - MASK_EDGE_PX
        radius_px = largest_px if settings.mask_radius_A is None else settings.mask_radius_A / pixel_A
        mask = soft_mask(box, min(radius_px, largest_px), MASK_EDGE_PX, 3, halves[0].device)
    mask = mask.to(halves[0])
    masked = halves[0] * mask, halves[1] * mask
    fsc = fourier_shell_correlation(*masked)
    cones = cone_fsc(*masked, pixel_A)
    first += second
    return Reconstruction(
        half1=halves[0].cpu(),
        half2=halves[1].cpu(),
        map=first.volume(wiener_regularisation(fsc)).cpu(),
        fsc=fsc.cpu(),
        cones=cones,
        pixel_size_A=pixel_A,
        resolution_0143_A=resolution_A(fsc, 0.143, pixel_A),
        resolution_05_A=resolution_A(fsc, 0.5, pixel_A),
        count1=counts[0],
        count2=counts[1],
        notes=notes,
    )
