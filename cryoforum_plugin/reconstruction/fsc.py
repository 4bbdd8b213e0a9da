"""Fourier shell correlation and what follows from it."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from cryoforum_plugin.images.fourier import radial_sum


def fourier_shell_correlation(a: Tensor, b: Tensor) -> Tensor:
    """Correlate two volumes `(n, n, n)` shell by shell: `(n // 2 + 1,)` float32.

    Hard shells of width 1, rounded |k|, as RELION's (torch-fourier-shell-correlation weights shells
    linearly, which differs by up to 0.05 in single shells). A shell that is empty in either gives 0.
    """
    with torch.autocast(a.device.type, enabled=False):
        fa, fb = torch.fft.rfftn(a.double()), torch.fft.rfftn(b.double())
        cross = radial_sum((fa * fb.conj()).real, 3)
        power = radial_sum(fa.abs().square(), 3) * radial_sum(fb.abs().square(), 3)
        return torch.where(power > 0, cross / power.clamp(min=1e-300).sqrt(), torch.zeros_like(cross)).float()


def resolution_A(fsc: Tensor, threshold: float, pixel_size_A: float) -> float:
    """Resolution at which `fsc` `(n // 2 + 1,)` first falls below `threshold`, linear between shells.

    If it never does, the Nyquist resolution 2 * pixel_size_A; at shell 1 already, the box size.
    """
    box_px = 2 * (len(fsc) - 1)
    below = (fsc[1:] < threshold).nonzero()
    if len(below) == 0:
        return 2 * pixel_size_A
    shell = int(below[0]) + 1
    before, after = float(fsc[shell - 1]), float(fsc[shell])
    if shell == 1:
        return box_px * pixel_size_A
    crossing = shell - 1 + (before - threshold) / (before - after)
    return box_px * pixel_size_A / crossing


def smooth_to_zero(fsc: Tensor, threshold: float = 0.143) -> Tensor:
    """FSC clipped to [0, 1] and set to 0 from its first fall below `threshold` on (chance peaks removed)."""
    below = (fsc[1:] < threshold).nonzero()
    kept = fsc.clamp(0, 1).clone()
    if len(below):
        kept[int(below[0]) + 1 :] = 0
    kept[0] = 1
    return kept


def significant(fsc: Tensor, points: Tensor) -> Tensor:
    """FSC smoothed over three shells, clipped to [0, 1), and 0 from where it is not three s.d. above chance.

    points : `(shells,)` independent components of each shell: by chance the correlation has s.d. 1 / sqrt(points).
    """
    fsc = torch.cat([fsc[1:2], fsc[1:]])  # the one component of shell 0 says nothing: its sign is chance
    smooth = functional.avg_pool1d(fsc[None, None], 3, 1, 1, count_include_pad=False)[0, 0]
    chance = (3 / points.clamp(min=1).sqrt()).clamp(0.02, 0.3)
    below = (smooth[1:] < chance[1:]).nonzero()
    kept = smooth.clamp(0, 0.9999)
    if len(below):
        kept[int(below[0]) + 1 :] = 0
    kept[0], kept[-1] = kept[1], 0
    return kept


def wiener_regularisation(fsc: Tensor) -> Tensor:
    """Regularisation `(shells,)` for `BackProjector.volume` of the two half sets together.

    The signal-to-noise ratio of the whole is 2 FSC / (1 - FSC) (Rosenthal and Henderson 2003); the
    Wiener filter adds its inverse, in units of the weight. Shells without signal are suppressed.
    """
    clean = smooth_to_zero(fsc)
    return ((1 - clean) / (2 * clean).clamp(min=1e-6)).clamp(min=1e-3)
