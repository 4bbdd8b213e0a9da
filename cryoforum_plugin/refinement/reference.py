"""What particles are refined against: a map, and how far each of its shells can be believed."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.images.fourier import radial_average, shell_index
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.maps.masking import outline_mask
from cryoforum_plugin.maps.rebuilt import build_reference
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.progress import Advance
from cryoforum_plugin.reconstruction.fsc import fourier_shell_correlation, significant
from cryoforum_plugin.refinement.observing import LARGEST_BOX_PX, ImageSource, whole_images

LOG = logging.getLogger("cryoforum")
LEAST_DETAIL = 6  # resolution elements across the particle, below which a map shows no pose


@dataclass(frozen=True)
class ReferenceMap:
    """A map to refine against.

    volume : `(n, n, n)` zyx float32, filtered by its own signal-to-noise ratio. belief : `(n // 2 + 1,)`
    part of each shell's power that is signal, 1 for a map without noise, 0 beyond its resolution.
    absolute : whether its grey values are those of normalised images, of noise with `noise_density`
    `(n // 2 + 1,)` (see ImageSource). average, fsc : of a map that was rebuilt from particles, the same without
    filter, and the FSC of its halves, of so many `particles` together; None otherwise.
    """

    volume: Tensor
    belief: Tensor
    pixel_size_A: float
    absolute: bool = True
    noise_density: Tensor | None = None
    average: Tensor | None = None
    fsc: Tensor | None = None
    particles: int | None = None

    @property
    def side_A(self) -> float:
        """Side of the map's box."""
        return len(self.volume) * self.pixel_size_A

    @property
    def finest_A(self) -> float:
        """Resolution of the last shell that holds any signal; the side of the box where none does."""
        last = int((self.belief > 0).nonzero().amax()) if (self.belief > 0).any() else 1
        return self.side_A / max(last, 1)

    def error_power(self) -> Tensor:
        """Mean |error|^2 of slices by shell `(n // 2 + 1,)`: what the Wiener filter leaves uncertain; 0 beyond what is used."""
        power = _power(self.volume)
        error = power * (1 - self.belief) / self.belief.clamp(min=0.05)
        return torch.where(self.belief > 0, error, 0.0).float()

    def to(self, device: torch.device) -> ReferenceMap:
        """Return the same on a device."""
        values: dict[str, Any] = {
            name: v.to(device) for name, v in vars(self).items() if isinstance(v, Tensor)
        }
        return replace(self, **values)


def from_map(volume: Tensor, pixel_size_A: float, resolution_A: float | None = None) -> ReferenceMap:
    """A map that is taken as it is, up to `resolution_A` (default: all of it)."""
    n = len(volume)
    belief = torch.ones(n // 2 + 1)
    if resolution_A is not None:
        belief[torch.arange(n // 2 + 1) > n * pixel_size_A / resolution_A] = 0
    belief[-1] = 0
    return ReferenceMap(volume.float(), belief, pixel_size_A, absolute=False)


def rebuild(
    pipeline: ImagePipeline,
    rows: IntArray,
    symmetry: str,
    diameter_A: float | None,
    advance: Advance,
) -> tuple[ReferenceMap, ReferenceMap, ReferenceMap]:
    """References of both halves of `rows` together, of half 1 and of half 2, from poses as they are known.

    Each is masked softly about its density, which is filtered by its own FSC, as is the rest (see `_wiener`).
    diameter_A : of the particle; None = unknown.
    """
    whole = whole_images(pipeline, LARGEST_BOX_PX)
    known = pipeline.particles.shift_A

    def centred(of_batch: IntArray) -> Tensor:
        shift = None if known is None else known[of_batch]
        return whole.working(of_batch, shift, whole.read_usable(of_batch))

    found = build_reference(whole, rows, symmetry, centred, advance)
    halves = (found.halves[0].cpu(), found.halves[1].cpu())
    average = (halves[0] + halves[1]) / 2
    mask = torch.ones_like(average)
    if found.resolution_A <= coarsest(len(average) * found.pixel_size_A, diameter_A):
        # else it would be drawn about chance peaks, where the halves agree because it was drawn there
        mask = outline_mask(average, found.pixel_size_A, found.resolution_A, diameter_A)
    regions = (_region(halves, mask), _region(halves, 1 - mask))
    noise = _noise_density(ImageSource(pipeline, None, diameter_A), rows, n_shells=len(average) // 2 + 1)
    maps = []
    for volume, together in ((average, True), (halves[0], False), (halves[1], False)):
        filtered, belief = _wiener(volume, regions, together)
        maps.append(ReferenceMap(filtered, belief, found.pixel_size_A, noise_density=noise))
    LOG.info("reference for refinement: %d particles, %.1f A", len(rows), maps[0].finest_A)
    return replace(maps[0], average=average, fsc=found.fsc.cpu(), particles=len(rows)), maps[1], maps[2]


def coarsest(side_A: float, diameter_A: float | None) -> float:
    """Resolution that a reference needs to hold a pose, of a particle in a box of `side_A`."""
    return min(diameter_A or side_A, side_A) / LEAST_DETAIL


def _noise_density(source: ImageSource, rows: IntArray, n_shells: int) -> Tensor:
    """Density of the noise in the particles' images, by shell of their widest box; the mean over optics groups."""
    particles = source.original.particles
    kinds, count = np.unique(
        np.stack([particles.optics_group[rows], particles.pixel_size_A[rows]]), axis=1, return_counts=True
    )
    even_px = source.original.box_px - source.original.box_px % 2
    wanted = torch.arange(n_shells) / (even_px * float(particles.pixel_size_A.max()))
    total = torch.zeros(n_shells)
    for (group, size_A), number in zip(kinds.T, count, strict=True):
        frequency, density = source.noise_density(int(group), float(size_A))
        step = float(frequency[1])
        total += number * density.cpu()[(wanted / step).round().long().clamp(max=len(density) - 1)]
    return total / len(rows)


@dataclass(frozen=True)
class _Region:
    """Part of a map: its mask, and what the two halves share there, by shell."""

    mask: Tensor
    fsc: Tensor


def _region(halves: tuple[Tensor, Tensor], mask: Tensor) -> _Region:
    fsc = fourier_shell_correlation(halves[0] * mask, halves[1] * mask)
    part = float(mask.square().mean())  # of the box, and so of its independent Fourier components
    points = 2 * math.pi * torch.arange(len(fsc)).square() * part
    return _Region(mask, significant(fsc, points))


def _wiener(volume: Tensor, regions: Sequence[_Region], together: bool) -> tuple[Tensor, Tensor]:
    """Filter each region of a map by its own signal-to-noise ratio; return the sum, and how far it can be believed.

    The particle is believed to a higher resolution than the solvent, where often nothing is left; what there is
    of a detergent belt, of flexible parts, or in a map that somebody simulated from, stays.
    together : whether both halves went into the map.
    """
    total, error = torch.zeros_like(volume), torch.zeros(len(volume) // 2 + 1)
    for region in regions:
        belief = 2 * region.fsc / (1 + region.fsc) if together else region.fsc
        filtered = _filtered(volume * region.mask, belief)
        total += filtered
        # where nothing is believed nothing is left, and nothing is known of what is missing
        error += _power(filtered) * (1 - belief) / belief.clamp(min=0.05)
    power = _power(total)
    used = torch.stack([region.fsc for region in regions]).amax(0) > 0
    return total, torch.where(used, power / (power + error).clamp(min=1e-30), 0.0).float()


def _power(volume: Tensor) -> Tensor:
    """Mean power by shell `(n // 2 + 1,)` of a map."""
    return radial_average(torch.fft.rfftn(volume.double()).abs().square(), 3)


def _filtered(volume: Tensor, belief: Tensor) -> Tensor:
    """Multiply the shells of a map `(n, n, n)` by `belief` `(n // 2 + 1,)`."""
    n = len(volume)
    index = shell_index(n, 3).clamp(max=n // 2)
    result: Tensor = torch.fft.irfftn(torch.fft.rfftn(volume) * belief[index], s=volume.shape)
    return result
