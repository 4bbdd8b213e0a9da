"""How an image and the slice that fits it best agree, in bands of frequency."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from cryoforum_plugin.refinement.slices import GradientSlicer
from cryoforum_plugin.refinement.solver import Observed

MOST = 20.0  # standard errors
LEAST_CONTRAST = 0.02


@torch.no_grad()
def agreement(
    slicer: GradientSlicer,
    observed: Observed,
    R: Tensor,
    shift_px: Tensor,
    usual: Tensor,
    counts: tuple[int, int, int],
) -> Tensor:
    """Figures of `confidence.raw.MATCH` `(b, 7)` float64 of poses R `(b, 3, 3)`, shift_px `(b, 2)`.

    usual : `(b,)` usual contrast. counts : how many points lie in the coarse band, in that and the middle one, in all.
    A wrong pose or particle shows too little contrast; another state, pixel size or B-factor another balance of the bands;
    what the reference knows nothing of stays as rest.
    """
    points = slicer.points
    phase = torch.polar(observed.transfer, shift_px @ points.k.T * (2 * math.pi / points.box_px))
    model = (phase * slicer.values(R, len(points.k)))[:, : counts[-1]]
    data = observed.data[:, : counts[-1]]
    parts = torch.stack([(data.conj() * model).real, model.abs().square(), data.abs().square()]).double()
    bands = [parts[:, :, a:b].sum(2) for a, b in zip((0, *counts), counts, strict=False)]
    dm, mm, dd = torch.stack(bands, -1)  # each (b, 3)
    mm = mm.clamp(min=1e-12)
    scale = dm.sum(1, keepdim=True) / mm.sum(1, keepdim=True)
    size = torch.tensor([b - a for a, b in zip((0, *counts), counts, strict=False)], device=dm.device)
    rest = (dd - 2 * scale * dm + scale.square() * mm) / (2 * size.clamp(min=1))
    contrast = (scale[:, 0] / usual).clamp(min=LEAST_CONTRAST).log()
    balance = ((dm / mm - scale) * mm.sqrt()).clamp(-MOST, MOST)
    return torch.cat([contrast[:, None], balance, rest.clamp(min=1e-6).log()], 1)
