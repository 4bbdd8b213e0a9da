"""The working box: the small, centred, normalised image that the network sees."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cryoforum_plugin.images.fourier import crop_transform, shift_transform, soft_circular_mask

RIM = 0.47  # radius, in box sides, beyond which a working image shows noise only
FLAT = 1e-6  # rim variance, relative to the whole image, below which the rim says nothing about the noise


@dataclass(frozen=True)
class WorkingBox:
    """A square of about `side_A` around the particle, sampled on `size_px` (even) pixels."""

    side_A: float
    size_px: int

    def resampled_px(self, box_px: int, pixel_size_A: float) -> int:
        """Even size to which whole images of `box_px` are Fourier-cropped (or padded, if coarser).

        The working pixel is then `box_px * pixel_size_A / resampled_px`: the nearest to side_A / size_px
        that an even box has.
        """
        even_px = box_px - box_px % 2
        return max(2, 2 * round(even_px * pixel_size_A * self.size_px / self.side_A / 2))


def _radius_px(size_px: int, device: torch.device) -> Tensor:
    """Distance `(size_px, size_px)` of each pixel from pixel n // 2."""
    axis = torch.arange(size_px, device=device) - size_px // 2
    return (axis[:, None] ** 2 + axis[None, :] ** 2).float().sqrt()


def flat_background(images: Tensor, radius_px: float) -> Tensor:
    """Mask `(b,)` of images `(b, n, n)` without noise outside `radius_px` (masked, or simulated without)."""
    flat, weight = images.flatten(1), outside(images.shape[-1], radius_px, images.device)
    rim = (flat - (flat @ weight)[:, None]).square() @ weight
    return rim <= FLAT * flat.var(1, correction=0)


def outside(size_px: int, radius_px: float, device: torch.device) -> Tensor:
    """Weights `(size_px ** 2,)` that average over the pixels outside `radius_px`, at least the corners."""
    mask = (_radius_px(size_px, device) > min(radius_px, size_px / 2)).float().flatten()
    return mask / mask.sum()


def normalise_background(images: Tensor, radius_px: float) -> Tensor:
    """Shift and scale images `(b, n, n)` so that pixels outside `radius_px` have mean 0 and s.d. 1.

    Where the background is flat (images masked by zeros) the whole image takes its place; a constant
    image is returned as zeros.
    """
    flat = images.flatten(1)
    weight = outside(images.shape[-1], radius_px, images.device)
    everywhere = torch.full_like(weight, 1 / len(weight))
    mean = flat @ weight
    centred = flat - mean[:, None]
    variance, whole_square = (centred.square() @ torch.stack([weight, everywhere], 1)).unbind(1)
    whole_mean = centred @ everywhere
    whole_variance = (whole_square - whole_mean.square()).clamp(min=0)
    no_noise = variance <= FLAT * whole_variance
    variance = torch.where(no_noise, whole_variance, variance)
    constant = variance <= (1e-6 * mean).square()  # to rounding
    scale = torch.where(constant, torch.inf, variance).rsqrt()
    offset = torch.where(no_noise, whole_mean, torch.zeros_like(mean))
    if centred.device.type != "cpu" or no_noise.any():  # a look at the numbers would make a GPU wait
        centred -= offset[:, None]
    return centred.mul_(scale[:, None]).view_as(images)


def to_resampled_ft(images: Tensor, pixel_size_A: float, box: WorkingBox, shift_A: Tensor | None) -> Tensor:
    """Transform of whole images at the working pixel size, `(b, m, m // 2 + 1)` complex64.

    images : `(b, n, n)` float32 originals at `pixel_size_A`. shift_A : `(b, 2)` x, y by which the content is
    translated (recentring, sub-pixel), or None. The background, outside the window, is normalised. The
    window is cut by `cut_window` only after the CTF was corrected: the CTF spreads a particle beyond it.
    """
    n = images.shape[-1]
    images = images[:, : n - n % 2, : n - n % 2]  # an even box with the centre where it was, at n // 2
    images = normalise_background(images, box.side_A / pixel_size_A / 2)
    size = box.resampled_px(n, pixel_size_A)
    ft = torch.fft.rfft2(images)
    ft = crop_transform(ft, size) if size <= images.shape[-1] else _pad_transform(ft, size)
    if shift_A is None:
        return ft
    return shift_transform(ft, shift_A.float() * (size / (images.shape[-1] * pixel_size_A)))


def _pad_transform(ft: Tensor, size_px: int) -> Tensor:
    """Embed transforms `(b, n, n // 2 + 1)` in those of a larger box: finer sampling, values kept."""
    n = ft.shape[-2]
    half = n // 2
    padded = ft.new_zeros(len(ft), size_px, size_px // 2 + 1)
    padded[:, :half, :half] = ft[:, :half, :half]
    padded[:, size_px - half + 1 :, :half] = ft[:, half + 1 :, :half]
    return padded * (size_px / n) ** 2


def cut_window(images: Tensor, size_px: int) -> Tensor:
    """Cut images `(b, m, m)` to `(b, size_px, size_px)` about pixel m // 2, or continue them periodically.

    Continued, the rim still shows noise of the image's own strength, which `finish` measures there.
    """
    m = images.shape[-1]
    if m < size_px:
        before = size_px // 2 - m // 2
        index = (torch.arange(size_px, device=images.device) - before) % m
        return images[:, index[:, None], index]
    start = m // 2 - size_px // 2
    return images[:, start : start + size_px, start : start + size_px]


def rim_deviation(images: Tensor) -> Tensor:
    """Standard deviation `(b,)` of working images `(b, n, n)` at the rim, outside the particle."""
    flat, weight = images.flatten(1), outside(images.shape[-1], RIM * images.shape[-1], images.device)
    return ((flat - (flat @ weight)[:, None]).square() @ weight).sqrt()


def finish(images: Tensor, preprocessing: str = "background") -> Tensor:
    """Normalise working images `(b, n, n)` and apply the soft circular mask; `(b, 1, n, n)`.

    The last step before the network, the same for particles, simulated images and test-time views.
    preprocessing : background normalises by the rim, then masks; image masks, then normalises by the whole
    masked image (the paper); none does neither.
    """
    if preprocessing == "none":
        return images.unsqueeze(1)
    n = images.shape[-1]
    edge = max(2.0, n / 16)
    mask = soft_circular_mask(n, n / 2 - 1 - edge, edge, images.device)
    if preprocessing == "background":
        return (normalise_background(images, RIM * n) * mask).unsqueeze(1)
    masked = images * mask
    variance, mean = torch.var_mean(masked, dim=(1, 2), correction=0, keepdim=True)
    constant = variance <= (1e-6 * mean).square()  # to rounding
    return ((masked - mean) * torch.where(constant, torch.inf, variance).rsqrt()).unsqueeze(1)
