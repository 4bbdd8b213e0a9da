"""From rows of a table to working images: read, window, recentre, crop in Fourier space, correct the CTF."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.images.working import WorkingBox, to_working_ft
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet

CtfMode = Literal["flip", "multiply", "none"]


def correct_ctf(ft: Tensor, ctf: Tensor | None, mode: CtfMode) -> Tensor:
    """Make the CTF's effect on transforms `ft` non-negative: flip phases, or multiply by the CTF."""
    if ctf is None or mode == "none":
        return ft
    return ft * (torch.sign(ctf) if mode == "flip" else ctf)


def remaining_transfer(ctf: Tensor, mode: CtfMode) -> Tensor:
    """What multiplies the particle's transform after `correct_ctf`: |ctf|, ctf^2 or ctf."""
    if mode == "none":
        return ctf
    return ctf.abs() if mode == "flip" else ctf.square()


@dataclass(frozen=True)
class ImagePipeline:
    """Working images of `particles`; stateless but for the reader's open stacks.

    contrast : +1 or -1, applied on top of the table's own contrast signs.
    """

    particles: ParticleSet
    reader: StackReader
    box: WorkingBox
    ctf_mode: CtfMode
    contrast: float
    device: torch.device

    def ctf(self, rows: IntArray) -> Tensor | None:
        """CTF `(b, n, n // 2 + 1)` of `rows` at the working box, or None where the table has none."""
        if self.particles.ctf is None:
            return None
        return ctf_2d(self.particles.ctf[rows], self.box.size_px, self.sampling_A(rows), device=self.device)

    def sampling_A(self, rows: IntArray) -> FloatArray:
        """Exact pixel size `(b,)` of the working images of `rows` (the window is a whole number of pixels)."""
        pixel_A = self.particles.pixel_size_A[rows]
        sides = np.array([self.box.crop_px(value) for value in np.unique(pixel_A)])
        return sides[np.unique(pixel_A, return_inverse=True)[1]] * pixel_A / self.box.size_px

    def read(self, rows: IntArray) -> Tensor:
        """Original images `(b, box, box)` float32 of `rows`, protein bright where the table says how."""
        images = self.reader.read(self.particles.stack_index[rows], self.particles.slice_index[rows])
        sign = (self.particles.contrast_sign[rows] * self.contrast).astype(np.float32)
        if (sign != 1).any():
            images = images * sign[:, None, None]
        return torch.from_numpy(images).to(self.device)

    def working(
        self, rows: IntArray, shift_A: FloatArray | None = None, originals: Tensor | None = None
    ) -> Tensor:
        """Working images `(b, n, n)` float32 of `rows`, before normalisation and mask.

        shift_A : `(b, 2)` x, y by which the content is translated first (recentring), or None.
        originals : images read before, to read them once for several passes.
        """
        images = self.read(rows) if originals is None else originals
        shift = None if shift_A is None else torch.from_numpy(shift_A).to(self.device)
        pixel_A = self.particles.pixel_size_A[rows]
        n = self.box.size_px
        ft = torch.empty(len(rows), n, n // 2 + 1, dtype=torch.complex64, device=self.device)
        for value in np.unique(pixel_A):
            of_size = torch.from_numpy(np.flatnonzero(pixel_A == value)).to(self.device)
            part = None if shift is None else shift[of_size]
            ft[of_size] = to_working_ft(images[of_size], float(value), self.box, part)
        ft = correct_ctf(ft, self.ctf(rows), self.ctf_mode)
        result: Tensor = torch.fft.irfft2(ft, s=(n, n))
        return result


def unusable(images: Tensor) -> Tensor:
    """Mask `(b,)` of images `(b, n, n)` that are constant or hold NaN or infinite pixels."""
    flat = images.flatten(1)
    low, high = flat.amin(1), flat.amax(1)
    return ~(torch.isfinite(low) & torch.isfinite(high) & (high > low))
