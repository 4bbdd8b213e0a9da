"""Particles of a map under measured views, defocus and shifts, with real ice instead of white noise.

Views (with 2 degrees of jitter, for they come from a coarse search), shifts and CTFs are those of cryoSPARC's
T20S particles (EMPIAR-10025); the poses are for another map's frame and serve as a distribution only. The
noise are random crops of empty-ice patches (EMPIAR-10061), turned by quarters and mirrored; the patches, a
little smaller than the box, are continued by reflection.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import mrcfile
import numpy as np
import torch
from common import SHARED
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from cryoforum_plugin.formats import read_particles
from cryoforum_plugin.geometry import symmetry_group
from cryoforum_plugin.images.fourier import fourier_crop, radial_average
from cryoforum_plugin.simulation.draw import VIEW_JITTER_DEG, Draw
from cryoforum_plugin.simulation.simulate import Simulator

PARTICLES = SHARED / "real" / "cryosparc_refined" / "t20s_empiar10025_J209_particles.cs"
PARTICLE_BOX_PX = 256
PATCHES, PATCH_PIXEL_A = SHARED / "real" / "ice_patches_betagal_192px_1.274A.mrcs", 1.274


def ice_mosaics(pixel_size_A: float, box_px: int) -> Tensor:
    """Patches at about `pixel_size_A`, continued by reflection to twice the box: `(40, m, m)`."""
    with mrcfile.open(PATCHES) as file:
        patches = torch.from_numpy(np.array(file.data, dtype=np.float32))
    size = 2 * round(patches.shape[-1] * PATCH_PIXEL_A / pixel_size_A / 2)
    resampled = fourier_crop(patches, size).numpy()
    wanted = 2 * box_px - size
    pad = (wanted // 2, wanted - wanted // 2)
    return torch.from_numpy(np.pad(resampled, ((0, 0), pad, pad), mode="reflect"))


class IceSimulator(Simulator):
    """A `Simulator` whose noise is ice; `power` is then its mean |rfft2|^2 by shell, at s.d. 1."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.mosaics = ice_mosaics(self.pixel_size_A, self.box_px)
        self.power = torch.stack(
            [radial_average(torch.fft.rfft2(self.ice(64)).abs().square()).mean(0) for _ in range(32)]
        ).mean(0)

    def ice(self, count: int) -> Tensor:
        """Draw noise images `(count, box, box)`, each of mean 0 and s.d. 1."""
        n, room = self.box_px, self.mosaics.shape[-1] - self.box_px + 1
        which, y, x, turns, flip = (
            torch.randint(most, (count,), generator=self.generator).tolist()
            for most in (len(self.mosaics), room, room, 4, 2)
        )
        crops = [
            torch.rot90(self.mosaics[w, j : j + n, i : i + n], t)
            for w, j, i, t in zip(which, y, x, turns, strict=True)
        ]
        images = torch.stack([crop.flip(0) if f else crop for crop, f in zip(crops, flip, strict=True)])
        images = images - images.mean((1, 2), keepdim=True)
        return images / images.std((1, 2), keepdim=True, correction=0)

    def images(self, draw: Draw) -> Iterator[NDArray[np.float32]]:
        """As the parent's, with ice of the s.d. that the SNR asks for."""
        std = self.noise_std(draw)
        for rows in self._batches(np.arange(len(draw))):
            yield (self.signal(draw, rows).cpu() + std * self.ice(len(rows))).numpy()


def measured_draw(draw: Draw, box_px: int, pixel_size_A: float, symmetry: str, seed: int) -> Draw:
    """`draw` with the views, shifts and CTFs of randomly chosen rows of the T20S particles."""
    known = read_particles(PARTICLES, Path(PARTICLES.parent))
    generator = np.random.default_rng(seed)
    rows = generator.choice(len(known), len(draw), replace=len(draw) > len(known))
    jitter = Rotation.from_rotvec(np.radians(VIEW_JITTER_DEG) * generator.standard_normal((len(rows), 3)))
    group = Rotation.from_quat(symmetry_group(symmetry))
    copies = group[generator.integers(len(group), size=len(rows))]
    rotation = copies * jitter * Rotation.from_quat(known.require_rotation()[rows])
    assert known.shift_A is not None
    theirs_A = PARTICLE_BOX_PX * float(known.pixel_size_A[0])
    shift_A = known.shift_A[rows] * box_px * pixel_size_A / theirs_A
    return replace(
        draw,
        rotation=rotation.as_quat(),
        shift_A=shift_A,
        displacement_A=-shift_A,
        ctf=known.require_ctf()[rows],
    )
