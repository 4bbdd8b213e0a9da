"""A fixed bank of low-pass filters: the image next to coarser versions of itself."""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor, nn

from cryoforum_plugin.network.device import at_least_float32

CUTOFFS = tuple(k / 64 for k in (63, 57, 47, 33, 10))  # of Nyquist
SIGMAS = tuple(10 ** (k / 2) for k in range(-2, 3))  # 0.1 to 10 pixels of an image of 128


@lru_cache(maxsize=16)
def transfer_functions(kind: str, n: int, device: torch.device) -> Tensor:
    """Transfer functions `(5, n, n // 2 + 1)` for `rfft2` of n x n images; kind gaussian or low_pass.

    Radii k are in Fourier pixels; Nyquist is n / 2. Gaussians of sigma s pixels at n = 128 (in proportion
    elsewhere) are exp(-2 (pi s k / 128)^2), their exact transform. Neither depends on direction.
    """
    with torch.inference_mode(False):  # a tensor cached during prediction must also serve training
        frequency = torch.fft.fftfreq(n, 1 / n, device=device)
        k = torch.hypot(frequency[:, None], frequency[: n // 2 + 1].abs())
        if kind == "gaussian":
            return torch.stack([torch.exp(-2 * (math.pi * s * k / 128) ** 2) for s in SIGMAS])
        # an edge one Fourier pixel wide: a sharp one would fall between the pixels at other places for
        # every n, so that the smallest cutoff would not mean the same in small boxes
        return torch.stack([(c * n / 2 - k + 0.5).clamp(0, 1) for c in CUTOFFS])


class BlurLayer(nn.Module):
    """Add five low-pass filtered copies to every image (section 3.3 of the paper); nothing is learned.

    kind : low_pass (cutoffs), gaussian, or none (the image alone). channels : 6, or 1 for none.
    """

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.channels = 1 if kind == "none" else 1 + len(CUTOFFS)

    def forward(self, images: Tensor) -> Tensor:
        """Map images `(b, 1, n, n)` to `(b, channels, n, n)`, the original first."""
        if self.kind == "none":
            return images
        with torch.autocast(images.device.type, enabled=False):
            images = at_least_float32(images)
            filters = transfer_functions(self.kind, images.shape[-1], images.device)
            copies = torch.fft.irfft2(torch.fft.rfft2(images) * filters, s=images.shape[-2:])
            return torch.cat([images, copies], dim=1)
