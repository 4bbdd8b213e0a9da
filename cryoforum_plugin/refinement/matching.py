"""A map from elsewhere as a reference: in the frame and the grey values of the model's own, or refused."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from cryoforum_plugin.images.fourier import radial_average, shell_index
from cryoforum_plugin.maps.fitting import match_map
from cryoforum_plugin.maps.given import ShownMap, read_shown_map
from cryoforum_plugin.maps.rebuilt import Reference
from cryoforum_plugin.refinement.reference import ReferenceMap, from_map

NEGLIGIBLE = 1e-3  # part of the signal that the shells beyond the last one used hold together


def read_reference(path: Path, own: ReferenceMap | None, diameter_A: float | None) -> ReferenceMap:
    """Read a map that a user gives to refine against, and fit it to the model's own reference.

    Without an own one it is taken as it is. Raises ImageStackError, with figures, for a map of another frame, hand,
    pixel size or particle.
    """
    shown = read_shown_map(path)
    if own is None:
        return from_map(shown.volume, shown.pixel_size_A)
    return matched(shown, own, diameter_A)


def matched(shown: ShownMap, own: ReferenceMap, diameter_A: float | None) -> ReferenceMap:
    """A map on the grid and in the grey values of a model's own reference, up to where it holds signal.

    Raises ImageStackError if it does not fit that reference.
    """
    volume = match_map(shown, _unfiltered(own), diameter_A).cpu()
    n = len(volume)
    power = radial_average(torch.fft.rfftn(volume).abs().square(), 3)
    signal = power * torch.arange(n // 2 + 1)  # of slices: as many points as the shell is long
    rest = signal.flip(0).cumsum(0).flip(0) / signal.sum()
    belief = (rest > NEGLIGIBLE).float()
    belief[-1] = 0
    return ReferenceMap(volume, belief, own.pixel_size_A)


def _unfiltered(own: ReferenceMap) -> Reference:
    """The map that `own` was before its filter, as two equal halves, where there is any signal."""
    n = len(own.volume)
    filtered = torch.fft.rfftn(own.volume)
    divisor = torch.where(own.belief > 0, own.belief, torch.inf)
    average: Tensor = torch.fft.irfftn(
        filtered / divisor[shell_index(n, 3).clamp(max=n // 2)], s=own.volume.shape
    )
    fsc = own.belief / (2 - own.belief)
    return Reference(own.volume, (average, average), fsc, own.pixel_size_A)
