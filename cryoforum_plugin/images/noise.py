"""The noise of images, measured where there is no particle."""

from __future__ import annotations

import torch
from torch import Tensor

from cryoforum_plugin.images.fourier import radial_average, soft_mask


def mean_noise_power(images: Tensor, radius_px: float) -> Tensor:
    """Mean |noise|^2 of transforms of images `(b, n, n)` by shell, `(n // 2 + 1,)`, from outside a disc."""
    n = images.shape[-1]
    edge = max(2.0, n / 16)
    outside = 1 - soft_mask(n, min(radius_px, n / 2 - edge), edge, 2, images.device)
    mean = (images * outside).sum((1, 2), keepdim=True) / outside.sum()
    power = torch.fft.rfft2((images - mean) * outside).abs().square()
    return radial_average(power).mean(0) / outside.square().mean()
