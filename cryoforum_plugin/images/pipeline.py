"""From rows of a table to working images: read, recentre, resample, correct the CTF, cut the window."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.ctf import ctf_2d
from cryoforum_plugin.images.stacks import StackReader
from cryoforum_plugin.images.working import WorkingBox, cut_window, to_resampled_ft
from cryoforum_plugin.particles import FloatArray, IntArray, ParticleSet

CtfMode = Literal["flip", "multiply", "keep", "none"]
PIXELS_AT_ONCE = 2**23  # 32 MB of float32


def correct_ctf(ft: Tensor, ctf: Tensor | None, mode: CtfMode) -> Tensor:
    """Make the CTF's effect on transforms `ft` non-negative: flip phases, or multiply by the CTF; or keep it."""
    if ctf is None or mode in ("keep", "none"):
        return ft
    return ft * (torch.sign(ctf) if mode == "flip" else ctf)


def remaining_transfer(ctf: Tensor, mode: CtfMode) -> Tensor:
    """What multiplies the particle's transform after `correct_ctf`: |ctf|, ctf^2 or ctf."""
    if mode in ("keep", "none"):
        return ctf
    return ctf.abs() if mode == "flip" else ctf.square()


def unusable(images: Tensor) -> Tensor:
    """Mask `(b,)` of images `(b, n, n)` that are constant or hold NaN or infinite pixels."""
    flat = images.flatten(1)
    bad = ~torch.isfinite(flat.sum(1))
    suspect = (flat[:, ::61] == flat[:, :1]).all(1).nonzero()[:, 0]  # a look at every pixel only where needed
    bad[suspect] |= (flat[suspect] == flat[suspect, :1]).all(1)
    return bad


@dataclass(frozen=True)
class ImagePipeline:
    """Working images of `particles`; stateless but for the reader's open stacks.

    box_px : size of the originals. contrast : +1 or -1, on top of the table's own contrast signs.
    """

    particles: ParticleSet
    reader: StackReader
    box_px: int
    box: WorkingBox
    ctf_mode: CtfMode
    contrast: float
    device: torch.device

    def batches(self, rows: IntArray, most: int = 256) -> Iterator[IntArray]:
        """Split `rows` into batches of at most `most`, fewer where the images are large."""
        count = max(1, min(most, PIXELS_AT_ONCE // self.box_px**2))
        return (rows[start : start + count] for start in range(0, len(rows), count))

    def sampling_A(self, rows: IntArray) -> FloatArray:
        """Exact pixel size `(b,)` in Å of the working images of `rows`."""
        sizes, inverse = np.unique(self.particles.pixel_size_A[rows], return_inverse=True)
        even_px = self.box_px - self.box_px % 2
        working = [even_px * size / self.box.resampled_px(self.box_px, float(size)) for size in sizes]
        return np.array(working)[inverse.reshape(-1)]

    def read(self, rows: IntArray) -> Tensor:
        """Original images `(b, box, box)` float32 of `rows` on the device, protein bright where the table says how."""
        return self.on_device(self.read_ahead(rows))

    def on_device(self, images: Tensor) -> Tensor:
        """Images as `read_ahead` gave them, on the device."""
        return images.to(self.device, non_blocking=True)

    def read_ahead(self, rows: IntArray) -> Tensor:
        """As `read`, in memory from which they go to the device without a wait."""
        images = self.reader.read(self.particles.stack_index[rows], self.particles.slice_index[rows])
        sign = (self.particles.contrast_sign[rows] * self.contrast).astype(np.float32)
        if (sign != 1).any():
            images = images * sign[:, None, None]
        found = torch.from_numpy(images)
        return found.pin_memory() if self.device.type == "cuda" else found

    def read_usable(self, rows: IntArray) -> Tensor:
        """As `read`; raise ImageStackError naming the first image that is constant, NaN or infinite."""
        images = self.read(rows)
        bad = np.flatnonzero(unusable(images).cpu().numpy())
        if len(bad):
            stack = self.particles.stacks[self.particles.stack_index[rows[bad[0]]]]
            raise ImageStackError(
                f"{stack}: image {self.particles.slice_index[rows[bad[0]]] + 1} (row {rows[bad[0]] + 1} of "
                f"{self.particles.source}) is constant or holds NaN or infinite pixels; remove such particles"
            )
        return images

    def working(self, rows: IntArray, shift_A: FloatArray | None, originals: Tensor) -> Tensor:
        """Working images `(b, n, n)` float32 of `rows`, before normalisation and mask.

        shift_A : `(b, 2)` x, y by which the content is translated first (recentring), or None.
        originals : `(b, box, box)`, what `read` gave for these rows.
        """
        shift = None if shift_A is None else torch.from_numpy(shift_A).to(self.device)
        pixel_A = self.particles.pixel_size_A[rows]
        n = self.box.size_px
        images = torch.empty(len(rows), n, n, device=self.device)
        for value in np.unique(pixel_A):
            of_size = np.flatnonzero(pixel_A == value)
            part = slice(None) if len(of_size) == len(rows) else torch.from_numpy(of_size).to(self.device)
            moved = None if shift is None else shift[part]
            ft = to_resampled_ft(originals[part], float(value), self.box, moved)
            ft = correct_ctf(ft, self._ctf(rows[of_size], ft.shape[-2]), self.ctf_mode)
            whole = torch.fft.irfft2(ft, s=(ft.shape[-2],) * 2)
            images[part] = cut_window(whole, n)
        return images

    def _ctf(self, rows: IntArray, size_px: int) -> Tensor | None:
        """CTF `(b, m, m // 2 + 1)` of whole images resampled to `size_px`, None where it is not corrected."""
        if self.particles.ctf is None or self.ctf_mode in ("keep", "none"):
            return None
        return ctf_2d(self.particles.ctf[rows], size_px, self.sampling_A(rows), device=self.device)
