"""Is the protein bright, as the network expects?"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError

SAMPLE = 300  # images a check looks at
_MIN_IMAGES = 30
_CERTAIN = 6.0  # standard errors


class ContrastCheck:
    """Collects how much brighter the centre of phase-flipped working images is than their rim."""

    def __init__(self) -> None:
        self.differences: list[Tensor] = []

    def add(self, images: Tensor) -> None:
        """Take in working images `(b, n, n)` before normalisation and mask."""
        n = images.shape[-1]
        axis = torch.arange(n, device=images.device) - n // 2
        radius = (axis[:, None] ** 2 + axis[None, :] ** 2).float().sqrt()
        centre, rim = (radius < 0.25 * n).float(), ((radius > 0.42 * n) & (radius < 0.49 * n)).float()
        flat = images.flatten(1)
        difference = flat @ (centre.flatten() / centre.sum()) - flat @ (rim.flatten() / rim.sum())
        self.differences.append(difference.cpu())

    def standard_errors(self) -> float:
        """Mean difference in units of its standard error: positive where protein is bright."""
        d = torch.cat(self.differences) if self.differences else torch.zeros(0)
        d = d[torch.isfinite(d)]
        return float(d.mean() / d.std() * math.sqrt(len(d))) if len(d) > 1 and float(d.std()) > 0 else 0.0

    def verdict(self, source: object) -> str | None:
        """Return a warning when the contrast cannot be told, None when it is right.

        Raises ImageStackError when protein is clearly dark.
        """
        count, score = sum(map(len, self.differences)), self.standard_errors()
        if count >= _MIN_IMAGES and score < -_CERTAIN:
            raise ImageStackError(
                f"{source}: protein is dark in these images (centre below rim by {-score:.0f} standard errors over "
                f"{count} images); re-extract with inverted contrast, or pass --invert-contrast "
                "(--ignore-contrast to go on as they are)"
            )
        if score < 3.0:
            return (
                f"contrast of {source} could not be confirmed ({score:+.1f} standard errors over {count} images); "
                "protein must be bright"
            )
        return None
