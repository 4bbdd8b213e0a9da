"""Half maps of ever larger sets of particles, in one pass through their images."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import roma
import torch

from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.fourier import radial_sum, soft_mask
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet
from cryoforum_plugin.reconstruction.backproject import BackProjector
from cryoforum_plugin.reconstruction.cone_fsc import cone_fsc
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation
from cryoforum_plugin.reconstruction.half_sets import half_set_rows, in_reading_order
from cryoforum_plugin.reconstruction.reconstruct import DIAMETER_OF_BOX, MASK_EDGE_PX, common_pixel_size_A
from cryoforum_plugin.reconstruction.slice_weights import SliceWeights
from cryoforum_plugin.reconstruction.slices import Reader, ReconstructionSettings, SliceSource

BOX_PX = 96  # images are cropped to this box, or a smaller one; finer detail than its Nyquist frequency does not count
SYMMETRISED = 2e7  # voxels to be turned, by every operator: the box is smaller for large groups
PADDING = 1  # coarse, but all sets alike, and many times as quick
MOST = 60_000  # particles that are looked at; of more every second, third and so on


@dataclass(frozen=True)
class NestedMaps:
    """What the half maps of m nested sets show.

    fsc : `(m, shells)`. points : `(shells,)` independent Fourier components of each. worst_A : `(m,)` resolution of
    the worst direction. side_A : of the box. stride : only every so many-th particle went into the maps.
    """

    fsc: FloatArray
    points: FloatArray
    worst_A: FloatArray
    side_A: float
    stride: int


@dataclass(frozen=True)
class NestedReconstruction:
    """Makes them. mask_radius_A : soft sphere for the FSC, None = the box. progress : called with particles done."""

    reader: Callable[[ParticleSet], Reader]
    symmetry: str = "C1"
    mask_radius_A: float | None = None
    device: torch.device | str = "cpu"
    progress: Callable[[int], None] | None = None

    def diameter_A(self, particles: ParticleSet) -> float:
        """Diameter of the particle: of the mask, at most what boxes leave room for. Raises what the reader raises."""
        box_A = self.reader(particles).check(particles) * common_pixel_size_A(particles)
        largest_A = DIAMETER_OF_BOX * box_A
        return largest_A if self.mask_radius_A is None else min(2 * self.mask_radius_A, largest_A)

    def __call__(self, particles: ParticleSet, parts: Sequence[IntArray]) -> NestedMaps:
        """Half maps of the rows of the first part, of the first two, and so on.

        Raises what `reconstruct` raises.
        """
        particles.require_rotation()
        particles.require_ctf()
        group = roma.unitquat_to_rotmat(torch.from_numpy(symmetry_group(self.symmetry)).float())
        (first, _), _ = half_set_rows(particles)
        in_first = np.zeros(len(particles), dtype=bool)
        in_first[first] = True
        reader = self.reader(particles)
        full_px = reader.check(particles)
        even_px = full_px - full_px % 2
        box = min(BOX_PX, even_px, 2 * int((SYMMETRISED / len(group)) ** (1 / 3) / 2))
        pixel_A = common_pixel_size_A(particles) * even_px / box
        settings = ReconstructionSettings(symmetry=self.symmetry)
        source = SliceSource(particles, reader, settings, even_px, box, pixel_A, SliceWeights())
        largest_px = box / 2 - MASK_EDGE_PX
        radius_px = (
            largest_px if self.mask_radius_A is None else min(self.mask_radius_A / pixel_A, largest_px)
        )
        mask = soft_mask(box, radius_px, MASK_EDGE_PX, 3, self.device)
        stride = max(1, -(-sum(map(len, parts)) // MOST))
        halves = (BackProjector(box, self.device, PADDING), BackProjector(box, self.device, PADDING))
        curves, worst = [], []
        for part in parts:
            for half, projector in enumerate(halves):
                rows = part[in_first[part] == (half == 0)][::stride]
                source.back_project(in_reading_order(particles, rows), self.device, self.progress, projector)
            volumes = [_volume(projector, group, settings.regularisation) * mask for projector in halves]
            curves.append(fourier_shell_correlation(*volumes).double().cpu().numpy())
            worst.append(cone_fsc(volumes[0], volumes[1], pixel_A, stride).worst_A)
        # Friedel mates are one, and so are copies
        share = float(mask.square().mean()) / 2 / len(group)
        points = radial_sum(torch.ones(box, box, box // 2 + 1, dtype=torch.float64), 3).numpy() * share
        return NestedMaps(np.stack(curves), points, np.array(worst), box * pixel_A, stride)


def _volume(projector: BackProjector, group: torch.Tensor, regularisation: float) -> torch.Tensor:
    if len(group) > 1:
        projector = copy.deepcopy(projector)
        projector.symmetrise(group)
    return projector.volume(regularisation)
