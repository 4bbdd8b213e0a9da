"""Fourier-space tools for square images: layout of `torch.fft.rfft2`, DC at [0, 0]; centre pixel n // 2."""

from __future__ import annotations

import math

import torch
from torch import Tensor


def frequency_grid(size_px: int, device: torch.device | str = "cpu") -> tuple[Tensor, Tensor]:
    """Frequencies (ky, kx) in cycles per box, each `(size, size // 2 + 1)` float32, rfft2 layout."""
    ky = torch.fft.fftfreq(size_px, 1 / size_px, device=device)
    kx = torch.fft.rfftfreq(size_px, 1 / size_px, device=device)
    return ky[:, None].expand(-1, len(kx)), kx[None, :].expand(len(ky), -1)


def crop_transform(transform: Tensor, size_px: int) -> Tensor:
    """Keep the frequencies of a `size_px` box of a transform `(..., n, n // 2 + 1)`.

    Values are scaled by (size / n)^2, so that the inverse transform keeps pixel values. The Nyquist row
    and column, which an even box cannot represent for a real image, are set to 0.
    """
    n = transform.shape[-2]
    if size_px == n:
        return transform
    half = _even_half(size_px, n)
    cropped = transform.new_zeros(*transform.shape[:-2], size_px, half + 1)
    cropped[..., :half, :half] = transform[..., :half, :half]
    cropped[..., half + 1 :, :half] = transform[..., n - half + 1 :, :half]
    return cropped.mul_((size_px / n) ** 2)


def fourier_crop(images: Tensor, size_px: int) -> Tensor:
    """Resample images `(..., n, n)` to `(..., size, size)` by leaving out high frequencies.

    Pixel values and the mean are kept, the centre pixel n // 2 becomes size // 2; both sizes must be
    even. Frequencies from the new Nyquist on are removed.

    Raises ValueError for odd or larger sizes.
    """
    n = images.shape[-1]
    if size_px == n:
        return images
    _even_half(size_px, n)
    with torch.autocast(images.device.type, enabled=False):
        transform = crop_transform(torch.fft.rfft2(images.float()), size_px)
        cropped: Tensor = torch.fft.irfft2(transform, s=(size_px, size_px))
        return cropped


def shift_transform(transform: Tensor, shift_px: Tensor) -> Tensor:
    """Multiply transforms `(n, size, size // 2 + 1)` by the phases that move the images by `shift_px`.

    shift_px : `(n, 2)` x, y: +x moves content to higher columns, +y to higher rows. At Nyquist the
    phase is replaced by its real part (a real image has no other half-pixel shift there).
    """
    size = transform.shape[-2]
    shift = shift_px.to(transform.device, torch.float32) * (-2 * math.pi / size)
    angle_x = shift[:, 0, None] * torch.fft.rfftfreq(size, 1 / size, device=transform.device)
    angle_y = shift[:, 1, None] * torch.fft.fftfreq(size, 1 / size, device=transform.device)
    phase_x, phase_y = (torch.complex(a.cos(), _zero_at_nyquist(a.sin(), size)) for a in (angle_x, angle_y))
    return transform * phase_x[:, None, :] * phase_y[:, :, None]


def shift_images(images: Tensor, shift_px: Tensor) -> Tensor:
    """Move the content of images `(n, size, size)` by `shift_px` `(n, 2)` x, y, sub-pixel, periodic.

    +x moves content to higher columns, +y to higher rows; whole pixels equal `torch.roll`.
    """
    with torch.autocast(images.device.type, enabled=False):
        transform = shift_transform(torch.fft.rfft2(images.float()), shift_px)
        moved: Tensor = torch.fft.irfft2(transform, s=images.shape[-2:])
        return moved


def soft_mask(
    size_px: int, radius_px: float, edge_px: float, dimensions: int, device: torch.device | str = "cpu"
) -> Tensor:
    """Ball (or disc) about pixel n // 2: 1 up to `radius_px`, then a raised cosine to 0 over `edge_px`."""
    axis = (torch.arange(size_px, device=device, dtype=torch.float32) - size_px // 2).square()
    distance = _sum_of_axes([axis] * dimensions).sqrt()
    if edge_px <= 0:
        return (distance <= radius_px).float()
    return (1 + torch.cos(math.pi * ((distance - radius_px) / edge_px).clamp(0, 1))) / 2


def soft_circular_mask(
    size_px: int, radius_px: float, edge_px: float, device: torch.device | str = "cpu"
) -> Tensor:
    """Disc `(size, size)` about pixel n // 2: 1 up to `radius_px`, a raised cosine to 0 over `edge_px`."""
    return soft_mask(size_px, radius_px, edge_px, 2, device)


def shell_index(size_px: int, dimensions: int = 2, device: torch.device | str = "cpu") -> Tensor:
    """Index of the shell (rounded |k|) of each frequency of an rfftn of a square or cube, int64."""
    full = torch.fft.fftfreq(size_px, 1 / size_px, device=device).square()
    half = torch.fft.rfftfreq(size_px, 1 / size_px, device=device).square()
    return _sum_of_axes([full] * (dimensions - 1) + [half]).sqrt().round().long()


def half_multiplicity(size_px: int, device: torch.device | str = "cpu") -> Tensor:
    """How often each column of an rfft stands in the full transform: `(size // 2 + 1,)` of 1 and 2."""
    weight = torch.full((size_px // 2 + 1,), 2.0, device=device)
    weight[0] = weight[-1] = 1.0
    return weight


def radial_sum(values: Tensor, dimensions: int = 2) -> Tensor:
    """Sum rfftn-shaped real values `(..., n, [n,] n // 2 + 1)` over the full transform's shells.

    Returns `(..., n // 2 + 1)`: shells of width 1 about |k| = 0 ... n // 2; corners are left out.
    """
    n = values.shape[-2]
    index = shell_index(n, dimensions, values.device).flatten().clamp(max=n // 2 + 1)
    flat = (values * half_multiplicity(n, values.device)).flatten(-dimensions)
    sums = flat.new_zeros(*flat.shape[:-1], n // 2 + 2).index_add_(-1, index, flat)
    return sums[..., : n // 2 + 1]


def radial_average(values: Tensor, dimensions: int = 2) -> Tensor:
    """Mean of rfftn-shaped real values over shells; shapes as in `radial_sum`."""
    one = torch.ones(values.shape[-dimensions:], device=values.device)
    return radial_sum(values, dimensions) / radial_sum(one, dimensions)


def _sum_of_axes(axes: list[Tensor]) -> Tensor:
    """Outer sum `(n0, n1, ...)` of 1-D tensors."""
    total = axes[0]
    for axis in axes[1:]:
        total = total[..., None] + axis
    return total


def _even_half(size_px: int, n: int) -> int:
    if size_px % 2 or n % 2 or not 0 < size_px <= n:
        raise ValueError(
            f"Fourier cropping needs even sizes, the new not above the old: got {n} -> {size_px}"
        )
    return size_px // 2


def _zero_at_nyquist(values: Tensor, size: int) -> Tensor:
    if size % 2:
        return values
    keep = torch.ones(values.shape[-1], device=values.device)
    keep[size // 2] = 0
    return values * keep
