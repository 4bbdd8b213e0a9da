"""What particles are refined against: a map, and how far each of its shells can be believed."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from cryoforum_plugin.images.fourier import radial_average, shell_index, soft_mask
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.images.working import WorkingBox
from cryoforum_plugin.maps.rebuilt import build_reference
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.reconstruction.fsc import smooth_to_zero

LOG = logging.getLogger("cryoforum")
LARGEST_BOX_PX = 160  # of a reference that is rebuilt from particles
MASK_MARGIN, MASK_EDGE = 1.15, 0.1  # of the particle's diameter


@dataclass(frozen=True)
class ReferenceMap:
    """A map to refine against.

    volume : `(n, n, n)` zyx float32, filtered by its own signal-to-noise ratio. belief : `(n // 2 + 1,)`
    part of each shell's power that is signal, 1 for a map without noise, 0 beyond its resolution.
    absolute : whether its grey values are those of normalised images.
    """

    volume: Tensor
    belief: Tensor
    pixel_size_A: float
    absolute: bool = True

    @property
    def side_A(self) -> float:
        """Side of the map's box."""
        return len(self.volume) * self.pixel_size_A

    @property
    def finest_A(self) -> float:
        """Resolution of the last shell that holds any signal."""
        shells = torch.nonzero(self.belief > 0)[:, 0]
        return self.side_A / max(float(shells[-1]), 1.0)

    def error_power(self) -> Tensor:
        """Mean |error|^2 of slices by shell `(n // 2 + 1,)`: what the Wiener filter leaves uncertain."""
        transform = torch.fft.rfftn(self.volume.double())
        power = radial_average(transform.abs().square(), 3)
        return (power * (1 - self.belief) / self.belief.clamp(min=0.05)).float()

    def to(self, device: torch.device) -> ReferenceMap:
        """Return the same on a device."""
        return replace(self, volume=self.volume.to(device), belief=self.belief.to(device))


def from_map(volume: Tensor, pixel_size_A: float, resolution_A: float | None = None) -> ReferenceMap:
    """A map that is taken as it is, up to `resolution_A` (default: all of it)."""
    n = len(volume)
    belief = torch.ones(n // 2 + 1)
    if resolution_A is not None:
        belief[torch.arange(n // 2 + 1) > n * pixel_size_A / resolution_A] = 0
    belief[-1] = 0
    return ReferenceMap(volume.float(), belief, pixel_size_A, absolute=False)


def whole_images(pipeline: ImagePipeline, size_px: int) -> ImagePipeline:
    """A pipeline of whole images, CTF as it is, resampled to at most `size_px`."""
    side_A = pipeline.box_px * float(pipeline.particles.pixel_size_A.max())
    even_px = pipeline.box_px - pipeline.box_px % 2
    return replace(pipeline, box=WorkingBox(side_A, min(size_px, even_px)), ctf_mode="keep")


def rebuild(
    pipeline: ImagePipeline,
    rows: IntArray,
    symmetry: str,
    diameter_A: float | None,
    advance: Advance,
) -> tuple[ReferenceMap, ReferenceMap, ReferenceMap]:
    """References of both halves of `rows` together, of half 1 and of half 2, from poses as they are known.

    diameter_A : of the particle, for a mask; None = the whole box.
    """
    whole = whole_images(pipeline, LARGEST_BOX_PX)
    known = pipeline.particles.shift_A

    def centred(of_batch: IntArray) -> Tensor:
        shift = None if known is None else known[of_batch]
        return whole.working(of_batch, shift, whole.read_usable(of_batch))

    found = build_reference(whole, rows, symmetry, centred, advance)
    n = len(found.volume)
    mask = torch.ones((n, n, n))
    if diameter_A is not None:
        radius_px = diameter_A * MASK_MARGIN / 2 / found.pixel_size_A
        edge_px = diameter_A * MASK_EDGE / found.pixel_size_A
        mask = soft_mask(n, min(radius_px, n / 2 - edge_px), edge_px, 3)
    single = smooth_to_zero(found.fsc)
    both = 2 * single / (1 + single)
    last = int(torch.nonzero(both > 0)[-1])
    LOG.info(
        "reference for refinement: %d particles, %.1f A", len(rows), n * found.pixel_size_A / max(last, 1)
    )
    maps = []
    first, second = found.halves
    for volume, belief in (((first + second) / 2, both), (first, single), (second, single)):
        filtered = _filtered(volume.cpu(), belief) * mask
        maps.append(ReferenceMap(filtered, belief, found.pixel_size_A))
    return maps[0], maps[1], maps[2]


def _filtered(volume: Tensor, belief: Tensor) -> Tensor:
    """Multiply the shells of a map `(n, n, n)` by `belief` `(n // 2 + 1,)`."""
    n = len(volume)
    index = shell_index(n, 3).clamp(max=n // 2)
    result: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * belief[index], s=volume.shape)
    return result
