"""The working box: the small, centred, normalised image that the network sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum_plugin.images.fourier import crop_transform, shift_transform, soft_circular_mask


@dataclass(frozen=True)
class WorkingBox:
    """A square of `side_A` around the particle, sampled on `size_px` (even) pixels."""

    side_A: float
    size_px: int

    @property
    def pixel_size_A(self) -> float:
        """Pixel size of the working image in Å."""
        return self.side_A / self.size_px

    def crop_px(self, pixel_size_A: float) -> int:
        """Side, in pixels of the original image, of the square that is cut out (even)."""
        return max(2, 2 * round(self.side_A / pixel_size_A / 2))


def _radius_px(size_px: int, device: torch.device) -> Tensor:
    """Distance `(size_px, size_px)` of each pixel from pixel n // 2."""
    axis = torch.arange(size_px, device=device) - size_px // 2
    return (axis[:, None] ** 2 + axis[None, :] ** 2).float().sqrt()


def normalise_background(images: Tensor, radius_px: float) -> Tensor:
    """Shift and scale images `(b, n, n)` so that pixels outside `radius_px` have mean 0 and s.d. 1.

    An image whose background is constant is returned as zeros.
    """
    n = images.shape[-1]
    outside = (_radius_px(n, images.device) > min(radius_px, n / 2)).to(images.dtype).flatten()
    count = outside.sum()
    flat = images.flatten(1)
    mean = (flat @ outside / count)[:, None]
    variance = ((flat - mean).square() @ outside / count)[:, None]
    scale = torch.where(variance > 0, variance, torch.inf).rsqrt()
    return ((flat - mean) * scale).view_as(images)


def cut_window(images: Tensor, side_px: int, centre_shift_px: Tensor | None) -> Tensor:
    """Cut squares `(b, side_px, side_px)` about pixel n // 2 - centre_shift_px (integers x, y), 0 outside."""
    n = images.shape[-1]
    if centre_shift_px is None:
        centre_shift_px = torch.zeros(len(images), 2, dtype=torch.long, device=images.device)
    offset = torch.arange(side_px, device=images.device) + n // 2 - side_px // 2
    columns = offset - centre_shift_px[:, :1]  # (b, side)
    rows = offset - centre_shift_px[:, 1:]
    batch = torch.arange(len(images), device=images.device)[:, None, None]
    window = images[batch, rows.clamp(0, n - 1)[:, :, None], columns.clamp(0, n - 1)[:, None, :]]
    inside = ((rows >= 0) & (rows < n))[:, :, None] & ((columns >= 0) & (columns < n))[:, None, :]
    return window * inside


def to_working_ft(images: Tensor, pixel_size_A: float, box: WorkingBox, shift_A: Tensor | None) -> Tensor:
    """Transform of the working image, `(b, size_px, size_px // 2 + 1)` complex64, before any CTF handling.

    images : `(b, n, n)` float32 originals at `pixel_size_A`. shift_A : `(b, 2)` x, y by which the content is
    translated (recentring), or None. The background is normalised, a window of `box.side_A` cut out around
    the centre (whole pixels) and moved by the rest in Fourier space, and only low frequencies are kept.
    """
    side_px = box.crop_px(pixel_size_A)
    images = normalise_background(images, side_px / 2)
    whole, rest = None, None
    if shift_A is not None:
        shift_px = shift_A / pixel_size_A
        whole = shift_px.round().long()
        rest = (shift_px - whole).float() * (box.size_px / side_px)
    ft = torch.fft.rfft2(cut_window(images, side_px, whole))
    size = box.size_px
    ft = crop_transform(ft, size) if side_px >= size else _pad_transform(ft, side_px, size)
    return ft if rest is None else shift_transform(ft, rest)


def _pad_transform(ft: Tensor, side_px: int, size: int) -> Tensor:
    """Embed a small transform in a larger box (finer sampling of the same square)."""
    half = side_px // 2
    padded = ft.new_zeros(len(ft), size, size // 2 + 1)
    padded[:, :half, : half + 1] = ft[:, :half]
    padded[:, -half:, : half + 1] = ft[:, half:]
    return padded * (size / side_px) ** 2


def finish(images: Tensor) -> Tensor:
    """Normalise working images `(b, n, n)` by their rim and apply the soft circular mask; `(b, 1, n, n)`.

    The last step before the network, the same for particles, simulated images and test-time views.
    """
    n = images.shape[-1]
    edge = max(2.0, n / 16)
    mask = soft_circular_mask(n, n / 2 - 1 - edge, edge, images.device)
    return (normalise_background(images, 0.47 * n) * mask).unsqueeze(1)
