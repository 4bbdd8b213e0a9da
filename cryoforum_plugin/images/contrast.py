"""Is the protein bright, as the network expects?"""

from __future__ import annotations

import logging
import math
from dataclasses import replace

import torch
from torch import Tensor

from cryoforum_plugin.errors import ImageStackError
from cryoforum_plugin.images.pipeline import ImagePipeline
from cryoforum_plugin.particles import IntArray
from cryoforum_plugin.particles.splitting import spread_rows

LOG = logging.getLogger("cryoforum")
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


def check_contrast(pipeline: ImagePipeline, rows: IntArray, training: bool) -> None:
    """Refuse dark protein, warn where a sample of the images cannot tell.

    training : images must be readable, and are recentred by their known shifts.
    """
    check, pipeline = ContrastCheck(), replace(pipeline, ctf_mode="flip")
    known = pipeline.particles.shift_A if training else None
    for of_batch in pipeline.batches(spread_rows(rows, SAMPLE)):
        originals = pipeline.read_usable(of_batch) if training else pipeline.read(of_batch)
        shift_A = None if known is None else known[of_batch]
        check.add(pipeline.working(of_batch, shift_A, originals))
    warning = check.verdict(pipeline.particles.source)
    if warning:
        LOG.warning(warning)
